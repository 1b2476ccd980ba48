//! The workload's output: drained without ever blocking it, kept with a bound.
//!
//! Both streams share one pipe, so their order is kept. It goes into segments of one size, `log.0`, `log.1`, and so on, of
//! which the first and the newest two stay: a workload that writes 200 MB fills neither the disk nor the memory, and
//! whoever reads them at any moment has the beginning, the end, and by the segments' numbers what was dropped between.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::domain::printable::Stream;

/// The bytes of a segment. Three of them are 6 MiB, about a second's upload.
const SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
/// The bytes that are repeated on standard error, for the journal, which keeps them for good.
const ECHO_BYTES: u64 = 1024 * 1024;
/// How long the pipe is read after the workload's end: only a descendant that left the process group can still hold it.
const LINGER: Duration = Duration::from_millis(500);

/// Drains the pipe into segments in `folder` until it is closed, or for half a second after `ended` resolves.
///
/// A disk that is full stops the log, not the draining.
pub(super) async fn drain(mut source: pipe::Receiver, folder: &Path, echo: bool, ended: impl Future<Output = ()>) {
    let mut sink = Sink::new(folder, echo);
    let mut buffer = vec![0; 64 * 1024];
    tokio::pin!(ended);
    let mut deadline: Option<Instant> = None;
    loop {
        // The losing arms are safe to drop: a read that did not happen took nothing, and `ended` is polled again. The
        // deadline goes first, or a descendant that writes without end would hold the node.
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
}

/// Reads the log as it stands: the beginning, a line about what was dropped, the end. Empty if nothing was written.
///
/// # Errors
/// The system's.
pub(super) fn read(folder: &Path) -> io::Result<Vec<u8>> {
    let mut numbers: Vec<u64> = std::fs::read_dir(folder)?.filter_map(|entry| number_of(&entry.ok()?.path())).collect();
    numbers.sort_unstable();
    let mut text = Vec::new();
    let mut expected = 0;
    for number in numbers {
        // One that is gone was dropped between the look and this: the next one counts it.
        let Ok(segment) = std::fs::read(segment(folder, number)) else { continue };
        if number > expected {
            let dropped = (number - expected) * SEGMENT_BYTES;
            text.extend_from_slice(format!("\n[lighthpc: {dropped} bytes of output were dropped here]\n").as_bytes());
        }
        text.extend_from_slice(&segment);
        expected = number + 1;
    }
    Ok(text)
}

fn segment(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("log.{number}"))
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("log.")?.parse().ok()
}

struct Sink {
    folder: PathBuf,
    /// The newest segment, its number, and the room in it; `None` once the disk has refused.
    newest: Option<(File, u64, u64)>,
    echo_left: u64,
    /// What is repeated is escaped: standard error may be a terminal, and the journal is read on one.
    echo: Stream,
}

impl Sink {
    fn new(folder: &Path, echo: bool) -> Self {
        let echo_left = if echo { ECHO_BYTES } else { 0 };
        let mut sink = Self { folder: folder.to_owned(), newest: None, echo_left, echo: Stream::default() };
        sink.begin(0);
        sink
    }

    /// Begins a segment, and drops the one that is neither the first nor among the newest two.
    fn begin(&mut self, number: u64) {
        let file = File::create(segment(&self.folder, number));
        let file = file.inspect_err(|error| tracing::warn!("the workload's output is not kept: {error}"));
        self.newest = file.ok().map(|file| (file, number, SEGMENT_BYTES));
        if number > 2 {
            // It was there; if it cannot be removed, a little more is kept.
            std::fs::remove_file(segment(&self.folder, number - 2)).ok();
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        self.echo(bytes);
        while let Some((file, number, room)) = &mut self.newest {
            let fits = usize::try_from(*room).unwrap_or(usize::MAX).min(bytes.len());
            if let Err(error) = file.write_all(&bytes[..fits]) {
                tracing::warn!("the workload's output is no longer kept: {error}");
                self.newest = None;
                return;
            }
            *room -= fits as u64;
            bytes = &bytes[fits..];
            if bytes.is_empty() {
                return;
            }
            let next = *number + 1;
            self.begin(next);
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
        // Nobody listens on standard error: then nobody can be informed.
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
}
