//! Logs: to standard error, for people or as JSON for machines.
//!
//! Whatever a message or a field holds (names, errors of services, paths), no line acts on a terminal: the writer
//! escapes each line as a whole ([`printable`]), after it was formatted.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::domain::printable;

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
    let is_coloured = io::IsTerminal::is_terminal(&io::stderr());
    // Colours are added after the escaping, so the formatter adds none.
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(Stderr { format, is_coloured })
        .with_target(false)
        .with_ansi(false);
    let done = match format {
        Format::Json => registry.with(lines.json()).try_init(),
        Format::Text => registry.with(lines).try_init(),
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

/// Standard error, beside the bars. The formatter writes each event with one call.
#[derive(Clone, Copy, Debug)]
struct Stderr {
    format: Format,
    is_coloured: bool,
}

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let safe = match self.format {
            Format::Json => printable::json(text),
            Format::Text if self.is_coloured => coloured(&printable::one_line(text)),
            Format::Text => printable::one_line(text),
        };
        let safe = format!("{safe}\n");
        match BARS.get() {
            Some(bars) => bars.suspend(|| io::stderr().write_all(safe.as_bytes())),
            None => io::stderr().write_all(safe.as_bytes()),
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

/// Dims a line's time and colours its level.
fn coloured(line: &str) -> String {
    let parts = line.split_once(' ').and_then(|(time, rest)| {
        let (level, message) = rest.trim_start().split_once(' ')?;
        let colour = match level {
            "ERROR" => 31,
            "WARN" => 33,
            "INFO" => 32,
            "DEBUG" => 34,
            "TRACE" => 35,
            _ => return None,
        };
        Some(format!("\u{1b}[2m{time}\u{1b}[0m \u{1b}[{colour}m{level:>5}\u{1b}[0m {message}"))
    });
    parts.unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_has_its_colour_and_an_odd_line_stays() {
        let line = coloured("2026-01-01T00:00:00.000000Z  WARN a b");
        assert_eq!(line, "\u{1b}[2m2026-01-01T00:00:00.000000Z\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m a b");
        assert_eq!(coloured("no level here"), "no level here");
    }
}
