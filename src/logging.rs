//! Logs to standard error, as text or as JSON.
//!
//! No log line can send control sequences to a terminal: the writer escapes each formatted line ([`printable`]),
//! whatever names, paths and error messages it contains.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::backend::logs::LogQueue;
use crate::domain::printable;

/// The progress bars, once they exist. They are hidden while a line is written.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Where each line goes too, if anywhere.
static COPIES: OnceLock<LogQueue> = OnceLock::new();

/// Lines that are held while a screen of its own covers the terminal, and how many were dropped.
static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// The most lines that are held: the newest.
const HELD_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Held {
    lines: VecDeque<String>,
    dropped: u64,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sets up logging, once. `default` is the level if `LIGHTHPC_LOG` is not set. The variable is a level for this crate,
/// or a list such as `lighthpc=info,aws_config=debug`.
///
/// # Errors
/// A text that explains why `LIGHTHPC_LOG` is invalid.
pub fn init(default: LevelFilter, format: Format) -> Result<(), String> {
    let filter = match std::env::var("LIGHTHPC_LOG").ok().filter(|text| !text.trim().is_empty()) {
        Some(text) if text.contains('=') => {
            text.parse::<Targets>().map_err(|error| format!("LIGHTHPC_LOG={text}: {error}"))?
        }
        Some(text) => ours(text.trim().parse().map_err(|_| format!("LIGHTHPC_LOG={text} is not a level"))?),
        None => ours(default),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let no_color = std::env::var_os("NO_COLOR");
    let is_coloured = wants_colour(io::IsTerminal::is_terminal(&io::stderr()), no_color.as_deref());
    // The formatter adds no colours, because the escaping would remove them. They are added afterwards.
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

/// Returns whether lines are coloured: on a terminal, unless `NO_COLOR` has a value. Source: no-color.org.
fn wants_colour(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Returns a filter for this crate's lines only: errors of other crates are returned to us, and we log them once.
fn ours(level: LevelFilter) -> Targets {
    Targets::new().with_target("lighthpc", level)
}

/// Hides the bars while a log line is written, from now on.
pub fn with_bars(bars: &MultiProgress) {
    drop(BARS.set(bars.clone()));
}

/// Adds each line to a queue too, from now on.
pub fn copy_to(queue: &LogQueue) {
    drop(COPIES.set(queue.clone()));
}

/// Holds lines back, from now until [`release`]: a screen covers the terminal.
pub fn hold() {
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held::default());
}

/// Writes the lines that were held.
pub fn release() {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    if held.dropped > 0 {
        write_line(&format!("({} earlier lines are not shown)\n", held.dropped));
    }
    held.lines.iter().for_each(|line| write_line(line));
}

/// Writes text to standard error, or holds it. Errors are ignored: there is no other place to report them.
pub fn write_line(text: &str) {
    if let Some(held) = HELD.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        if held.lines.len() >= HELD_MAX {
            held.lines.pop_front();
            held.dropped += 1;
        }
        held.lines.push_back(text.to_owned());
        return;
    }
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Standard error, shared with the progress bars. The formatter writes each event with one call.
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
        if let Some(copies) = COPIES.get() {
            copies.push(&safe);
        }
        let safe = format!("{safe}\n");
        match BARS.get() {
            Some(bars) => bars.suspend(|| write_line(&safe)),
            None => write_line(&safe),
        }
        Ok(line.len())
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
    fn colours_are_for_terminals_and_can_be_switched_off() {
        assert!(wants_colour(true, None) && wants_colour(true, Some(OsStr::new(""))));
        assert!(!wants_colour(true, Some(OsStr::new("1"))) && !wants_colour(false, None));
    }

    #[test]
    fn a_level_has_its_colour_and_an_odd_line_stays() {
        let line = coloured("2026-01-01T00:00:00.000000Z  WARN a b");
        assert_eq!(line, "\u{1b}[2m2026-01-01T00:00:00.000000Z\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m a b");
        assert_eq!(coloured("no level here"), "no level here");
    }
}
