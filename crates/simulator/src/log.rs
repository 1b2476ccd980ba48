//! The program's own log, as lines of the trace.

use std::io;
use std::sync::Mutex;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::lock::locked;

/// The lines since the last call of [`take`], with their times.
static LINES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Where the subscriber writes.
#[derive(Clone, Copy, Debug)]
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if !text.is_empty() {
            locked(&LINES).push((lighthpc_runtime::elapsed().unwrap_or_default(), text));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Collects the log of the program from now on.
pub(crate) fn collect() {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .without_time()
        .with_ansi(false)
        .with_target(false);
    drop(tracing::subscriber::set_global_default(subscriber.with_writer(Lines).finish()));
}

/// Returns the lines since the last call.
pub(crate) fn take() -> Vec<(Duration, String)> {
    std::mem::take(&mut *locked(&LINES))
}
