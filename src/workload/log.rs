//! The workload's output: drained without ever blocking it, kept with a bound.
//!
//! Both streams share one pipe, so their order is kept. Of a long log the head and the tail are kept, and between
//! them stands how much was dropped: a workload that writes 200 MB fills neither the disk nor the memory.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

/// The bytes that are kept of the log's beginning, and as many of its end. Together 4 MiB, a second's upload.
const HEAD_BYTES: u64 = 2 * 1024 * 1024;
const TAIL_BYTES: usize = 2 * 1024 * 1024;
/// The bytes that are repeated on standard error, for the journal, which keeps them for good.
const ECHO_BYTES: u64 = 1024 * 1024;
/// How long the pipe is read after the workload's end: only a descendant that left the process group can still hold it.
const LINGER: Duration = Duration::from_millis(500);

/// Drains the pipe into `file` until it is closed, or for half a second after `ended` resolves.
///
/// A disk that is full stops the log, not the draining.
pub(super) async fn drain(mut source: pipe::Receiver, file: &Path, echo: bool, ended: impl Future<Output = ()>) {
    let mut sink = Sink::new(file, echo);
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
    sink.close();
}

struct Sink {
    file: Option<std::fs::File>,
    head_left: u64,
    tail: VecDeque<u8>,
    dropped: u64,
    echo_left: u64,
}

impl Sink {
    fn new(file: &Path, echo: bool) -> Self {
        let file = std::fs::File::create(file)
            .inspect_err(|error| tracing::warn!("the workload's output is not kept: {error}"))
            .ok();
        Self {
            file,
            head_left: HEAD_BYTES,
            tail: VecDeque::new(),
            dropped: 0,
            echo_left: if echo { ECHO_BYTES } else { 0 },
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.echo(bytes);
        let head_len = usize::try_from(self.head_left).unwrap_or(usize::MAX).min(bytes.len());
        let (head, rest) = bytes.split_at(head_len);
        self.write(head);
        self.head_left -= head.len() as u64;
        self.tail.extend(rest);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
        self.dropped += surplus as u64;
    }

    fn echo(&mut self, bytes: &[u8]) {
        let len = usize::try_from(self.echo_left).unwrap_or(usize::MAX).min(bytes.len());
        if len == 0 {
            return;
        }
        self.echo_left -= len as u64;
        let mut stderr = io::stderr().lock();
        // Nobody listens on standard error: then there is nobody to tell.
        drop(stderr.write_all(&bytes[..len]));
        if self.echo_left == 0 {
            drop(stderr.write_all(b"\n[lighthpc: the rest of the output is in the task's log only]\n"));
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(bytes)
        {
            tracing::warn!("the workload's output is no longer kept: {error}");
            self.file = None;
        }
    }

    fn close(mut self) {
        if self.dropped > 0 {
            self.write(format!("\n[lighthpc: {} bytes of output were dropped here]\n", self.dropped).as_bytes());
        }
        let tail = std::mem::take(&mut self.tail);
        let (first, second) = tail.as_slices();
        self.write(first);
        self.write(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_head_and_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut sink = Sink::new(&path, false);
        sink.take(b"first\n");
        for _ in 0..5_000 {
            sink.take(&[b'x'; 1000]);
        }
        sink.take(b"\nlast");
        sink.close();

        let log = std::fs::read_to_string(path).unwrap();
        assert!(log.starts_with("first\n") && log.ends_with("\nlast"));
        let dropped = 5_000_011 - HEAD_BYTES - TAIL_BYTES as u64;
        assert!(log.contains(&format!("{dropped} bytes of output were dropped")));
    }
}
