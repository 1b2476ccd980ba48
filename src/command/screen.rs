//! The output for users: progress bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::failure::Failure;
use crate::command::exit::ExitCode;
use crate::domain::printable;
use crate::logging;
use crate::worker::{Report, Step};

/// The first error of standard output.
static OUTPUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Writes to standard error, escaped ([`printable::lines`]). Errors are ignored: there is no other place to report
/// them.
pub(super) fn to_stderr(text: &str) {
    logging::write_line(&printable::lines(text));
}

/// Writes to standard output, escaped ([`printable::lines`]). An error is kept for [`finish_stdout`].
pub(super) fn to_stdout(text: &str) {
    keep(io::stdout().write_all(printable::lines(text).as_bytes()));
}

/// Writes one line of JSON to standard output. Control characters in its strings are escaped.
pub(super) fn json_to_stdout(value: &Value) {
    keep(io::stdout().write_all(format!("{}\n", printable::json(&value.to_string())).as_bytes()));
}

/// Writes CSV to standard output. Control characters stay, for programs; on a terminal they are escaped.
pub(super) fn csv_to_stdout(text: &str) {
    let text = if io::stdout().is_terminal() { printable::lines(text) } else { text.into() };
    keep(io::stdout().write_all(text.as_bytes()));
}

/// Keeps the first error of standard output. A closed pipe (`| head`) is not an error: the reader needs no more.
fn keep(written: io::Result<()>) {
    if let Err(error) = written.and_then(|()| io::stdout().flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        drop(OUTPUT_ERROR.set(error));
    }
}

/// Checks that all output was written to standard output. Called before the program exits.
///
/// # Errors
/// A [`Failure`] with [`ExitCode::OutputNotWritten`]: the output for a script is incomplete.
pub(super) fn finish_stdout() -> Result<(), Failure> {
    match OUTPUT_ERROR.get() {
        None => Ok(()),
        Some(error) => Err(Failure {
            exit: ExitCode::OutputNotWritten,
            error: anyhow::anyhow!("standard output could not be written: {error}"),
            hint: Some(
                "free space on its disk, or redirect the output elsewhere; the command's changes are complete"
                    .to_owned(),
            ),
        }),
    }
}

/// The progress of a mission: one bar for the mission, and one for each running task.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bars: Option<(MultiProgress, ProgressBar)>,
    total: u64,
}

impl Screen {
    /// Makes the bars on a terminal; elsewhere, and with `is_plain`, one line per task is printed.
    pub(super) fn new(total: u64, done: u64, is_plain: bool) -> Self {
        if is_plain || !io::stderr().is_terminal() {
            return Self { bars: None, total };
        }
        let bars = MultiProgress::new();
        logging::with_bars(&bars);
        let all = bars.add(ProgressBar::new(total).with_position(done));
        all.set_style(style("{bar:20} {pos}/{len} tasks, {elapsed}"));
        all.enable_steady_tick(Duration::from_millis(250));
        Self { bars: Some((bars, all)), total }
    }

    /// Adds the bar of a task that starts.
    pub(super) fn begin(&self, name: &str) -> Option<ProgressBar> {
        let (bars, _) = self.bars.as_ref()?;
        let bar = bars.add(ProgressBar::new(100));
        // The last field gets the remaining width of the terminal.
        bar.set_style(style("{bar:12} {pos:>3}% {prefix:8} {wide_msg}"));
        bar.set_message(plain(name));
        Some(bar)
    }

    /// Prints the outcome of a task; `ended` is the number of finished tasks.
    pub(super) fn end(&self, bar: Option<ProgressBar>, ended: u64, line: &str) {
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        match &self.bars {
            Some((bars, all)) => {
                all.set_position(ended);
                drop(bars.println(printable::lines(line)));
            }
            None => to_stderr(&format!("[{ended}/{}] {line}\n", self.total)),
        }
    }

    /// Removes the bars.
    pub(super) fn close(&self) {
        if let Some((bars, all)) = &self.bars {
            all.finish_and_clear();
            drop(bars.clear());
        }
    }
}

/// Updates a bar from a node's newest report.
pub(super) fn show(bar: &ProgressBar, report: Report) {
    bar.set_position(report.progress.pct().into());
    bar.set_prefix(if report.step == Step::Execute { "" } else { report.step.as_str() });
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌░")
}

/// Returns a progress bar on a terminal; a hidden one elsewhere.
pub(super) fn bar(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{msg:8} {bar:20} {pos}/{len}, {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌░"));
    bar.set_message(what);
    bar
}

/// Returns untrusted text as one line without control characters.
pub(super) fn plain(text: &str) -> String {
    printable::one_line(text)
}

/// Returns a number with its noun: `1 task`, `2 tasks`.
pub(super) fn count(number: impl Into<u64>, noun: &str) -> String {
    counted(number.into(), noun, |number| number.to_string())
}

/// Returns a number with its noun, the number in a form of its own.
pub(super) fn counted(number: u64, noun: &str, form: impl Fn(u64) -> String) -> String {
    let plural = match (number, noun.ends_with("sh")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{} {noun}{plural}", form(number))
}

/// Returns a number with commas between its thousands.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a time as people say it: the largest unit, and the next one.
pub(super) fn rough(time: Duration) -> String {
    let minutes = time.as_secs().div_ceil(60);
    match minutes {
        0..=1 => "a minute".to_owned(),
        2..=90 => format!("{minutes} min"),
        91..=2879 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} days", minutes.div_ceil(1440)),
    }
}

/// Cuts a line at a width in columns. A cut line ends with `…`.
pub(super) fn cut(line: &str, width: usize) -> String {
    if line.width() <= width {
        return line.to_owned();
    }
    let mut text = String::new();
    for c in line.chars() {
        text.push(c);
        if text.width() >= width {
            text.pop();
            break;
        }
    }
    format!("{text}…")
}

/// Formats rows as aligned columns, by the display width of their characters. Cells are escaped.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| plain(cell))).collect();
    let widths: Vec<usize> =
        (0..N).map(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| padded(cell, width));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn padded(cell: &str, width: usize) -> String {
    format!("{cell}{}", " ".repeat(width.saturating_sub(cell.width())))
}

/// The progress of a long preparation: silent in the first second, then a bar on a terminal, or one line elsewhere.
#[derive(Debug)]
pub(super) struct Preparation {
    what: &'static str,
    total: u64,
    started: Instant,
    bar: Option<ProgressBar>,
    is_said: bool,
}

/// The time before a preparation is shown.
const SILENT: Duration = Duration::from_secs(1);

impl Preparation {
    /// Creates the progress. `started` is the time when the user began to wait.
    pub(super) fn new(what: &'static str, total: u64, started: Instant) -> Self {
        Self { what, total, started, bar: None, is_said: false }
    }

    /// Shows that `done` of `total` are finished.
    pub(super) fn at(&mut self, done: u64) {
        if !self.is_said && self.started.elapsed() < SILENT {
            return;
        }
        if !self.is_said {
            self.is_said = true;
            if io::stderr().is_terminal() {
                let bar = ProgressBar::new(self.total);
                bar.set_style(style("{msg} {bar:20} {pos}/{len}, {elapsed}"));
                bar.set_message(self.what);
                self.bar = Some(bar);
            } else {
                to_stderr(&format!("{}: {} in total\n", self.what, self.total));
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Preparation {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Formats a time: `12 ms`, `0.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if (1..100).contains(&time.as_millis()) => format!("{} ms", time.as_millis()),
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preparation_is_shown_once_it_takes_more_than_a_second() {
        let mut short = Preparation::new("preparing", 3, Instant::now());
        short.at(1);
        assert!(!short.is_said);
        let mut long = Preparation::new("preparing", 3, Instant::now().checked_sub(2 * SILENT).unwrap());
        long.at(1);
        assert!(long.is_said);
    }

    #[test]
    fn a_table_lines_up_whatever_its_cells_hold() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(&[row("NAME", "X"), row("文件", "1"), row("e\u{301}\u{1b}[2J", "2"), row("a\nb", "3")]);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.contains('\u{1b}'));
        let column = |line: &str| line[..line.len() - 1].width();
        assert_eq!(text.lines().map(column).collect::<std::collections::HashSet<_>>().len(), 1, "{text}");
    }

    #[test]
    fn times_and_numbers_are_written_as_people_do() {
        let rough = |minutes: u64| rough(Duration::from_secs(minutes * 60));
        assert_eq!([0, 1, 42, 95, 3000].map(rough), ["a minute", "a minute", "42 min", "1 h 35 min", "3 days"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
