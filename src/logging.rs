//! Logs: to standard error, for people or as JSON for machines.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The bars that a line must not be written through, once there are some.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sets logging up, once. `default` is the level without `LIGHTHPC_LOG`, which is a level of our own lines, or
/// a list such as `lighthpc=info,aws_config=debug`.
///
/// # Errors
/// A text that says what is wrong with `LIGHTHPC_LOG`.
pub fn init(default: LevelFilter, format: Format) -> Result<(), String> {
    let filter = match std::env::var("LIGHTHPC_LOG").ok().filter(|text| !text.trim().is_empty()) {
        Some(text) if text.contains('=') => {
            text.parse::<Targets>().map_err(|error| format!("LIGHTHPC_LOG={text}: {error}"))?
        }
        Some(text) => ours(text.trim().parse().map_err(|_| format!("LIGHTHPC_LOG={text} is not a level"))?),
        None => ours(default),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(Stderr).with_target(false);
    let done = match format {
        Format::Json => registry.with(lines.json()).try_init(),
        Format::Text => registry.with(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))).try_init(),
    };
    done.map_err(|error| error.to_string())
}

/// Our own lines from this level on. What other crates have to say comes back to us as errors, and is said once.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_target("lighthpc", level)
}

/// Keeps log lines and bars apart from now on.
pub fn with_bars(bars: &MultiProgress) {
    drop(BARS.set(bars.clone()));
}

/// Standard error, beside the bars.
#[derive(Clone, Copy, Debug)]
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(line)),
            None => io::stderr().write_all(line),
        }
        .map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for Stderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}
