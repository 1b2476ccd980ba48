//! The progress file: read as it grows, the newest valid line wins.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::OFlags;

use crate::domain::progress::{LINE_BYTES_MAX, Progress};

/// The most bytes that one look reads. Of a chattier workload the older lines are passed over: only the newest counts.
const LOOK_BYTES_MAX: u64 = 64 * 1024;

/// A reader of one attempt's progress file.
#[derive(Debug)]
pub(super) struct ProgressFile {
    path: PathBuf,
    offset: u64,
    changed: Option<SystemTime>,
    partial: Vec<u8>,
    malformed: u64,
}

impl ProgressFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, changed: None, partial: Vec::new(), malformed: 0 }
    }

    /// Returns how many lines were no progress.
    pub(super) const fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Reads what was appended since the last look and returns the newest progress in it. With `last`, a line that is not
    /// ended counts too. A file that was written anew is read anew; one that is gone or unreadable says nothing.
    pub(super) fn look(&mut self, last: bool) -> Option<Progress> {
        let text = self.appended().unwrap_or_default();
        self.partial.extend_from_slice(&text);
        let mut newest = None;
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            newest = self.read_line(&line[..end]).or(newest);
        }
        if last || self.partial.len() > LINE_BYTES_MAX {
            let line = std::mem::take(&mut self.partial);
            newest = self.read_line(&line).or(newest);
        }
        newest
    }

    fn appended(&mut self) -> io::Result<Vec<u8>> {
        // The workload may have put anything here: opening a FIFO must not wait for its writer, and a link may lead to what
        // the node may read and the workload may not.
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let mut file = File::options().read(true).custom_flags(flags).open(&self.path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Ok(Vec::new());
        }
        let changed = meta.modified().ok();
        let rewritten = meta.len() < self.offset || (meta.len() == self.offset && changed != self.changed);
        self.changed = changed;
        if rewritten {
            self.offset = 0;
            self.partial.clear();
        }
        if meta.len() - self.offset > LOOK_BYTES_MAX {
            self.offset = meta.len() - LOOK_BYTES_MAX;
            self.partial.clear();
            file.seek(SeekFrom::Start(self.offset))?;
            let mut text = self.read_on(file)?;
            // The first line is cut: it says nothing.
            let start = text.iter().position(|&byte| byte == b'\n').map_or(text.len(), |end| end + 1);
            return Ok(text.split_off(start));
        }
        file.seek(SeekFrom::Start(self.offset))?;
        self.read_on(file)
    }

    fn read_on(&mut self, file: File) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.offset += file.take(LOOK_BYTES_MAX).read_to_end(&mut text)? as u64;
        Ok(text)
    }

    fn read_line(&mut self, line: &[u8]) -> Option<Progress> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let progress = std::str::from_utf8(line).ok().and_then(Progress::parse);
        if progress.is_none() {
            if self.malformed == 0 {
                let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
                tracing::warn!(
                    line = shown,
                    "a progress line is not a percentage from 0 to 100: it and its like are ignored"
                );
            }
            self.malformed += 1;
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn append(path: &std::path::Path, text: &str) {
        File::options().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_newest_whole_line_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        assert_eq!(file.look(false), None);

        append(&path, "10\n20%\nrubbish\n");
        assert_eq!(file.look(false), Some(Progress::running(20)));
        append(&path, "3");
        assert_eq!(file.look(false), None);
        append(&path, "0 step\n\n");
        assert_eq!(file.look(false), Some(Progress::running(30)));
        append(&path, "40");
        assert_eq!(file.look(true), Some(Progress::running(40)));
        assert_eq!(file.malformed(), 1);
    }

    #[test]
    fn a_link_in_its_place_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "50\n").unwrap();
        let path = dir.path().join("progress");
        std::os::unix::fs::symlink(dir.path().join("secret"), &path).unwrap();

        assert_eq!(ProgressFile::new(path).look(true), None);
    }

    #[test]
    fn a_file_that_is_written_anew_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        std::fs::write(&path, "50 a long line\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(50)));
        std::fs::write(&path, "60\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(60)));
    }

    #[test]
    fn a_chatty_workload_costs_one_bounded_look() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        append(&path, &"17 some words to fill the line\n".repeat(100_000));
        append(&path, "18\n");
        assert_eq!(file.look(false), Some(Progress::running(18)));
        assert_eq!(file.malformed(), 0);
    }
}
