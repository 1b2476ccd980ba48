//! The workload's output: read without ever blocking the workload, and stored with a bound.
//!
//! Both streams share one pipe, so their order is kept. The output is stored in segments of one size, `log.0`, `log.1`,
//! and so on. The first and the newest two are kept: a workload that writes 200 MB fills neither the disk nor the
//! memory. A reader gets the beginning, the end, and, from the numbers, the size of the omitted part.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::domain::printable::Stream;

/// The size of a segment. Three are 6 MiB, an upload of about a second.
const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
/// The maximum number of segments at a time.
const SEGMENTS_MAX: usize = 4;
/// The maximum size of the copy on standard error, which goes to the journal.
const ECHO_BYTES: u64 = 1024 * 1024;
/// The time that the pipe is read after the workload's exit. Only a descendant that left the process group can still
/// hold it.
const LINGER: Duration = Duration::from_millis(500);

/// Reads the pipe into segments in `folder` until it is closed, or for half a second after `ended` resolves.
///
/// A full disk pauses the log, but not the reading.
pub(super) async fn drain(mut source: pipe::Receiver, folder: &Path, echo: bool, ended: impl Future<Output = ()>) {
    let mut sink = Sink::new(folder, echo);
    let mut buffer = vec![0; 64 * 1024];
    tokio::pin!(ended);
    let mut deadline: Option<Instant> = None;
    loop {
        // The losing arms are safe to drop: a read that did not happen consumed nothing, and `ended` is polled again.
        // The deadline comes first, because a descendant that writes without end would block the node.
        let count = tokio::select! {
            biased;
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => break,
            () = &mut ended, if deadline.is_none() => {
                deadline = Some(Instant::now() + LINGER);
                continue;
            }
            count = source.read(&mut buffer) => count,
        };
        match count {
            Ok(0) | Err(_) => break,
            Ok(count) => sink.take(&buffer[..count]),
        }
    }
    sink.close();
}

/// Reads the current log: the beginning, a line about the omitted part, the end. Empty if nothing was written.
///
/// # Errors
/// The system's error.
pub(super) fn read(folder: &Path) -> io::Result<Vec<u8>> {
    let mut numbers: Vec<u64> = std::fs::read_dir(folder)?.filter_map(|entry| number_of(&entry.ok()?.path())).collect();
    numbers.sort_unstable();
    // The first, the newest two, and briefly one more are kept. Other files with such a name are the workload's.
    if numbers.len() > SEGMENTS_MAX {
        numbers.drain(1..numbers.len() + 1 - SEGMENTS_MAX);
    }
    let mut text = Vec::new();
    let mut expected = 0;
    for number in numbers {
        // It was dropped after the listing. The next segment's number accounts for it.
        let Ok(segment) = read_file(&segment(folder, number), SEGMENT_BYTES) else { continue };
        if number > expected {
            let dropped = (number - expected) * SEGMENT_BYTES;
            text.extend_from_slice(format!("\n[lighthpc: {dropped} bytes of output were dropped here]\n").as_bytes());
        }
        text.extend_from_slice(&segment);
        expected = number + 1;
    }
    if let Ok(notes) = read_file(&folder.join(NOTES_NAME), 2 * NOTES_BYTES_MAX) {
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        text.extend_from_slice(&notes);
    }
    Ok(text)
}

/// Reads a file of the folder, up to its bound: a workload without a sandbox can create any file there.
fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Does not wait for a FIFO.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The file of lighthpc's own lines, which come at the end of the log.
const NOTES_NAME: &str = "notes";
/// The maximum size of that file, because some notes can repeat.
const NOTES_BYTES_MAX: u64 = 16 * 1024;

/// Adds a line to the notes. Errors are ignored: the log must not fail a task.
pub(super) fn note(folder: &Path, line: &str) {
    let path = folder.join(NOTES_NAME);
    if path.metadata().is_ok_and(|meta| meta.len() > NOTES_BYTES_MAX) {
        return;
    }
    let line = format!("[lighthpc: {line}]\n");
    let written =
        File::options().create(true).append(true).open(path).and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        tracing::debug!("writing a note failed: {error}");
    }
}

fn segment(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log.{number}"))
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("log.")?.parse().ok()
}

/// The time between two tries after a disk error: a full disk may have space again.
const RETRY_PERIOD: Duration = Duration::from_secs(10);

struct Sink {
    folder: PathBuf,
    /// The newest segment, and its free space; `None` before the first output, and after a disk error.
    newest: Option<(File, u64)>,
    /// The number of the next segment.
    next: u64,
    /// The time of the next try after a disk error.
    retry_at: Instant,
    /// The bytes of output that could not be written.
    lost_bytes: u64,
    echo_left: u64,
    /// The copy is escaped, because standard error or the journal may be shown on a terminal.
    echo: Stream,
}

impl Sink {
    fn new(folder: &Path, echo: bool) -> Self {
        Self {
            folder: folder.to_owned(),
            newest: None,
            next: 0,
            retry_at: Instant::now(),
            lost_bytes: 0,
            echo_left: if echo { ECHO_BYTES } else { 0 },
            echo: Stream::default(),
        }
    }

    /// Starts a segment, and removes the one that is neither the first nor among the newest two.
    fn begin(&mut self) {
        let number = self.next;
        match File::create(segment(&self.folder, number)) {
            Ok(file) => {
                self.newest = Some((file, SEGMENT_BYTES));
                self.next += 1;
            }
            Err(error) => self.refused(&error),
        }
        if number > 2 {
            // If it cannot be removed, a little more is kept.
            std::fs::remove_file(segment(&self.folder, number - 2)).ok();
        }
    }

    fn refused(&mut self, error: &io::Error) {
        if self.lost_bytes == 0 {
            tracing::warn!("the workload's output cannot be stored at the moment: {error}");
        }
        self.newest = None;
        self.retry_at = Instant::now() + RETRY_PERIOD;
    }

    fn take(&mut self, mut bytes: &[u8]) {
        self.echo(bytes);
        if self.newest.is_none() && Instant::now() >= self.retry_at {
            self.begin();
        }
        while !bytes.is_empty() {
            if self.newest.as_ref().is_some_and(|(_, room)| *room == 0) {
                self.begin();
            }
            let Some((file, room)) = &mut self.newest else {
                self.lost_bytes += bytes.len() as u64;
                return;
            };
            let fits = usize::try_from(*room).unwrap_or(usize::MAX).min(bytes.len());
            match file.write_all(&bytes[..fits]) {
                Ok(()) => {
                    *room -= fits as u64;
                    bytes = &bytes[fits..];
                }
                Err(error) => self.refused(&error),
            }
        }
    }

    /// Adds a note about lost output.
    fn close(self) {
        if self.lost_bytes > 0 {
            note(&self.folder, &format!("{} bytes of output were lost because of disk errors", self.lost_bytes));
        }
    }

    fn echo(&mut self, bytes: &[u8]) {
        let len = usize::try_from(self.echo_left).unwrap_or(usize::MAX).min(bytes.len());
        if len == 0 {
            return;
        }
        self.echo_left -= len as u64;
        let text = self.echo.push(&bytes[..len]);
        let mut stderr = io::stderr().lock();
        // Errors are ignored: there is no other place to report them.
        drop(stderr.write_all(text.as_bytes()));
        if self.echo_left == 0 {
            drop(stderr.write_all(b"\n[lighthpc: the rest of the output is in the task's log only]\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_beginning_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = Sink::new(dir.path(), false);
        assert!(read(dir.path()).unwrap().is_empty());
        sink.take(b"first\n");
        for _ in 0..10_000 {
            sink.take(&[b'x'; 1000]);
        }
        sink.take(b"\nlast");

        let log = String::from_utf8(read(dir.path()).unwrap()).unwrap();
        assert!(log.starts_with("first\n") && log.ends_with("\nlast"));
        // 10,000,011 bytes are four full segments and a fifth: the second and the third are gone.
        assert!(log.contains(&format!("[lighthpc: {} bytes of output were dropped here]", 2 * SEGMENT_BYTES)));
        assert_eq!(log.matches('x').count() as u64, 10_000_000 - 2 * SEGMENT_BYTES);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn notes_come_last_and_have_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        note(dir.path(), "alone");
        assert_eq!(read(dir.path()).unwrap(), b"[lighthpc: alone]\n");
        Sink::new(dir.path(), false).take(b"no newline");
        for _ in 0..2000 {
            note(dir.path(), "again and again");
        }
        let log = String::from_utf8(read(dir.path()).unwrap()).unwrap();
        assert!(log.starts_with("no newline\n[lighthpc: alone]\n[lighthpc: again and again]\n"));
        assert!((log.len() as u64) < NOTES_BYTES_MAX + 1024);
    }

    #[test]
    fn a_disk_that_has_room_again_keeps_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", segment(dir.path(), 0)).unwrap();
        let mut sink = Sink::new(dir.path(), false);
        sink.take(b"lost\n");
        sink.take(b"lost\n");
        assert!(!segment(dir.path(), 1).exists(), "it is not tried at once");
        sink.retry_at = Instant::now();
        sink.take(b"kept\n");
        sink.close();
        std::fs::remove_file(segment(dir.path(), 0)).unwrap();
        let log = String::from_utf8(read(dir.path()).unwrap()).unwrap();
        assert!(log.ends_with("kept\n[lighthpc: 10 bytes of output were lost because of disk errors]\n"), "{log}");
    }

    /// A disk without room, or without inodes, refuses the log; the workload writes on, and its pipe is drained.
    #[tokio::test]
    async fn a_disk_that_refuses_the_log_stops_neither_the_workload_nor_the_drain() {
        let dir = tempfile::tempdir().unwrap();
        let full = dir.path().join("full");
        std::fs::create_dir(&full).unwrap();
        std::os::unix::fs::symlink("/dev/full", segment(&full, 0)).unwrap();
        for folder in [full, dir.path().join("not-there")] {
            let (reader, mut writer) = io::pipe().unwrap();
            let write = tokio::task::spawn_blocking(move || {
                for _ in 0..64 {
                    writer.write_all(&vec![b'x'; 64 * 1024]).unwrap();
                }
            });
            let source = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
            drain(source, &folder, false, std::future::pending()).await;
            write.await.unwrap();
            note(&folder, "x");
        }
    }
}
