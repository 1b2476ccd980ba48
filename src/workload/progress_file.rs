//! Reads the progress file: the newest valid line counts, however the workload writes the file.
//!
//! A workload may append to the file, write it again in place, or replace it by renaming another file. Therefore no
//! position is stored: whenever the file has changed, its last 64 KiB are read, and the last valid line counts. A text
//! that is read while the file is being written is read again in the next check.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::domain::progress::{LINE_BYTES_MAX, Progress};

/// The maximum number of bytes that one check reads. Older lines are skipped, because only the newest counts.
const LOOK_BYTES_MAX: u64 = 64 * 1024;

/// A reader of one attempt's progress file.
#[derive(Debug)]
pub(super) struct ProgressFile {
    path: PathBuf,
    /// The file at the last check.
    seen: Option<Stamp>,
    /// Whether the check before found the same. A change within the clock's resolution (some ms) does not change the
    /// stamp, so a file counts as unchanged only after a second read.
    is_settled: bool,
    /// The start of the next line that was not counted as malformed yet.
    counted_to: u64,
    malformed: u64,
    /// The last result.
    newest: Option<Progress>,
}

/// The state of a file, which changes with its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The end of the file, as it was read.
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    /// Its position in the file.
    pub(super) start: u64,
}

impl ProgressFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, seen: None, is_settled: false, counted_to: 0, malformed: 0, newest: None }
    }

    /// Returns the number of invalid lines that were read.
    pub(super) const fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Returns the newest progress in the file if it has changed. `None` if the file is missing, unreadable, or has no
    /// valid line.
    ///
    /// A line counts when it has a line end. The only line of a file counts without one after two checks found the
    /// same; with `last` any line counts.
    pub(super) fn look(&mut self, last: bool) -> Option<Progress> {
        let (stamp, mut file) = self.open().ok()??;
        let is_same = self.seen == Some(stamp);
        if is_same && self.is_settled && !last {
            return None;
        }
        if self.seen.is_none_or(|seen| seen.file != stamp.file || stamp.bytes < seen.bytes) {
            self.counted_to = 0;
        }
        (self.seen, self.is_settled) = (Some(stamp), is_same);
        let text = read_end(&mut file, stamp.bytes).ok()?;
        let newest = self.newest_of(&text, last, is_same).filter(|newest| self.newest != Some(*newest))?;
        self.newest = Some(newest);
        self.newest
    }

    fn open(&self) -> io::Result<Option<(Stamp, File)>> {
        // The workload may have created any file: opening a FIFO must not wait, and a link may lead to a file that the
        // node may read but the workload may not.
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let file = File::options().read(true).custom_flags(flags).open(&self.path)?;
        let meta = file.metadata()?;
        let stamp = Stamp {
            file: (meta.dev(), meta.ino()),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        };
        Ok(meta.is_file().then_some((stamp, file)))
    }

    pub(super) fn newest_of(&mut self, text: &Text, last: bool, is_same: bool) -> Option<Progress> {
        let mut newest = None;
        let mut start = text.start;
        let mut rest = text.bytes.as_slice();
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            newest = self.read_line(start, &rest[..end]).or(newest);
            start += end as u64 + 1;
            rest = &rest[end + 1..];
        }
        // After complete lines, a line without an end is still being written, perhaps by a program that buffers.
        let is_only = start == 0 && is_same;
        if last || is_only || rest.len() > LINE_BYTES_MAX {
            newest = self.read_line(start, rest).or(newest);
        }
        newest
    }

    fn read_line(&mut self, start: u64, line: &[u8]) -> Option<Progress> {
        // A truncated file whose writer continued at its old position starts with zeros.
        let line = &line[line.iter().take_while(|&&byte| byte == 0).count()..];
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let progress = std::str::from_utf8(line).ok().and_then(Progress::parse);
        if progress.is_none() && start >= self.counted_to {
            if self.malformed == 0 {
                let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
                tracing::warn!(
                    line = shown,
                    "ignored a progress line that is not a percentage from 0 to 100; further ones are only counted"
                );
            }
            self.malformed += 1;
            self.counted_to = start + 1;
        }
        progress
    }
}

/// Reads the last lines of a file, up to the limit. An incomplete first line is omitted.
fn read_end(file: &mut File, bytes: u64) -> io::Result<Text> {
    // One more byte shows whether the first line is complete.
    let skipped = bytes.saturating_sub(LOOK_BYTES_MAX + 1);
    file.seek(SeekFrom::Start(skipped))?;
    let mut text = Vec::new();
    file.take(LOOK_BYTES_MAX + 1).read_to_end(&mut text)?;
    if skipped == 0 {
        return Ok(Text { bytes: text, start: 0 });
    }
    let cut = text.iter().position(|&byte| byte == b'\n').map_or(text.len(), |end| end + 1);
    Ok(Text { bytes: text.split_off(cut), start: skipped + cut as u64 })
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

    /// Shorter, of equal length, longer; longer with the old text at the same place; and with the time of change set
    /// back.
    #[test]
    fn a_file_that_is_rewritten_in_place_is_read_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        for (text, pct) in [
            ("50 a long line\n", 50),
            ("60\n", 60),
            ("61\n", 61),
            ("61\n62\n", 62),
            ("70 a much longer line than before\n", 70),
            ("10\n20\n30\n40\n50\n60\n71\n", 71),
            ("72\n20\n30\n40\n50\n60\n73\n", 73),
            ("5\n", 5),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(file.look(false), Some(Progress::running(pct)), "{text:?}");
        }
        let old = path.metadata().unwrap().modified().unwrap();
        std::fs::write(&path, "6\n").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(file.look(false), Some(Progress::running(6)), "changed within the clock's grain");
        assert_eq!(file.malformed(), 0);
    }

    #[test]
    fn a_file_that_is_renamed_into_its_place_is_read_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join("progress"), dir.path().join("next"));
        let mut file = ProgressFile::new(path.clone());
        std::fs::write(&path, "10 one\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(10)));
        for (text, pct) in [("20 two\n", 20), ("30\n", 30), ("39 and a half\n40 and so on\n", 40), ("41", 41)] {
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &path).unwrap();
            let found = file.look(false).or_else(|| file.look(false));
            assert_eq!(found, Some(Progress::running(pct)), "{text:?}");
        }
    }

    #[test]
    fn a_rewrite_that_is_half_done_says_nothing_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        std::fs::write(&path, "50\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(50)));
        for half in ["", "7"] {
            std::fs::write(&path, half).unwrap();
            assert_eq!(file.look(false), None, "{half:?}");
        }
        std::fs::write(&path, "75").unwrap();
        assert_eq!(file.look(false), None);
        assert_eq!(file.look(false), Some(Progress::running(75)), "the only line, and unchanged");
        assert_eq!(file.look(false), None);
        // A program that buffers ends a block anywhere, and goes on with it much later.
        std::fs::write(&path, "76\n7").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(76)));
        assert_eq!((file.look(false), file.look(false)), (None, None));
        assert_eq!(file.look(true), Some(Progress::running(7)), "the workload has ended");
    }

    #[test]
    fn what_is_no_file_says_nothing_and_a_file_after_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        std::fs::write(&path, "10\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(10)));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.look(false), None);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(file.look(false), None);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(file.look(false), None);
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "20\n").unwrap();
        assert_eq!(file.look(false), Some(Progress::running(20)));
    }

    #[test]
    fn a_huge_file_costs_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let mut file = ProgressFile::new(path.clone());
        assert_eq!(file.look(false), None);
        append(&path, "\n18\n");
        assert_eq!(file.look(false), Some(Progress::running(18)));
    }

    /// Each line is counted once, however often the file's end is read.
    #[test]
    fn malformed_lines_are_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let mut file = ProgressFile::new(path.clone());
        append(&path, "one\n10\ntwo\n");
        assert_eq!((file.look(false), file.look(false)), (Some(Progress::running(10)), None));
        append(&path, "three\n20\n");
        assert_eq!(file.look(false), Some(Progress::running(20)));
        assert_eq!(file.malformed(), 3);
        std::fs::write(&path, [b"\0\0\0".as_slice(), b"30\n"].concat()).unwrap();
        assert_eq!(file.look(false), Some(Progress::running(30)));
        assert_eq!(file.malformed(), 3);
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
