//! What people see: bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::logging;
use crate::worker::{Report, Step};

/// Writes to standard error; if nobody reads it, there is nobody to tell.
pub(super) fn to_stderr(text: &str) {
    drop(io::stderr().write_all(text.as_bytes()));
}

/// Writes to standard output; a closed pipe (`| head`) is no error.
pub(super) fn to_stdout(text: &str) {
    drop(io::stdout().write_all(text.as_bytes()));
}

/// The progress of a mission: one bar for all, one for each task under way.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bars: Option<(MultiProgress, ProgressBar)>,
    total: u64,
}

impl Screen {
    pub(super) fn new(total: u64, done: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self { bars: None, total };
        }
        let bars = MultiProgress::new();
        logging::with_bars(&bars);
        let all = bars.add(ProgressBar::new(total).with_position(done));
        all.set_style(style("{bar:20} {pos}/{len} tasks, {elapsed}"));
        all.enable_steady_tick(Duration::from_millis(250));
        Self { bars: Some((bars, all)), total }
    }

    /// Returns the line of a task that begins.
    pub(super) fn begin(&self, name: &str) -> Option<ProgressBar> {
        let (bars, _) = self.bars.as_ref()?;
        let bar = bars.add(ProgressBar::new(100));
        // The last field takes what the terminal's width leaves.
        bar.set_style(style("{bar:12} {pos:>3}% {prefix:8} {wide_msg}"));
        bar.set_message(plain(name));
        Some(bar)
    }

    /// Says how a task ended; `ended` counts it and those before it.
    pub(super) fn end(&self, bar: Option<ProgressBar>, ended: u64, line: &str) {
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        match &self.bars {
            Some((bars, all)) => {
                all.set_position(ended);
                drop(bars.println(line));
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

/// Shows a node's newest report.
pub(super) fn show(bar: &ProgressBar, report: Report) {
    bar.set_position(report.progress.pct().into());
    bar.set_prefix(if report.step == Step::Execute { "" } else { report.step.as_str() });
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌░")
}

/// Returns other people's text as one line that no terminal acts on: control characters are written out.
pub(super) fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Writes a time for people: `0.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
