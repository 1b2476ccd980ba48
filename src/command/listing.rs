//! Tasks as a table for people, and as CSV.

use std::time::Duration;

use super::screen;
use crate::clock;
use crate::domain::machine_info::PurchaseOption;
use crate::domain::task::{State, Task};
use crate::domain::verdict::Verdict;

/// The longest reason that a table shows, in characters.
const REASON_CHARS: usize = 60;

/// Returns tasks as a table.
pub(super) fn table(tasks: &[Task]) -> String {
    let mut rows = vec![["TASK", "STATE", "PROGRESS", "TIME", "ATTEMPT", "INSTANCE", "REASON"].map(str::to_owned)];
    rows.extend(tasks.iter().map(|task| {
        [
            task.src.to_string(),
            task.state.as_str().to_owned(),
            task.progress.clone(),
            screen::duration(time(task)),
            task.attempt.to_string(),
            instance(task).unwrap_or_default(),
            screen::cut(&why(task), REASON_CHARS),
        ]
    }));
    screen::table(&rows)
}

/// Returns the workload time of a task; of a running one, the time since its claim.
pub(super) fn time(task: &Task) -> Duration {
    let since = task.open_since.as_deref().filter(|_| task.state == State::Running);
    since.and_then(clock::since).unwrap_or(Duration::from_millis(task.time_cost_ms))
}

/// Returns the instance that holds, or last held, the task. For a pending task, returns the instance that was launched
/// for it.
fn instance(task: &Task) -> Option<String> {
    let launched = task.launch.instance.as_ref().filter(|_| task.state == State::Pending);
    launched.cloned().or_else(|| task.instance.as_ref().map(ToString::to_string))
}

/// Returns why the last attempt failed; for a pending task, why it has no node.
pub(super) fn why(task: &Task) -> String {
    let verdict = task.verdict.map(Verdict::as_str).unwrap_or_default();
    match (&task.launch.error, &task.error) {
        _ if task.state == State::Running => String::new(),
        (Some(error), _) if task.state == State::Pending => format!("no node: {}", screen::plain(error)),
        (_, Some(error)) if task.state == State::Pending => {
            format!("last attempt: {verdict}: {}", screen::plain(error))
        }
        (_, Some(error)) => format!("{verdict}: {}", screen::plain(error)),
        _ => verdict.to_owned(),
    }
}

/// Returns how the last attempt ended.
pub(super) fn why_ended(task: &Task) -> String {
    let verdict = task.verdict.map(Verdict::as_str).unwrap_or_default();
    format!("{verdict}: {}", screen::plain(task.error.as_deref().unwrap_or_default()))
}

/// The columns of the CSV form. New columns are added at the end.
const COLUMNS: [&str; 18] = [
    "task",
    "state",
    "attempt",
    "verdict",
    "error",
    "exitCode",
    "signal",
    "timeCostMs",
    "instance",
    "type",
    "zone",
    "purchase",
    "usdPerHour",
    "peakMemory",
    "started",
    "ended",
    "result",
    "resultBytes",
];

/// Returns tasks as CSV (RFC 4180), with a header.
pub(super) fn csv(tasks: &[Task]) -> String {
    let mut text = format!("{}\r\n", COLUMNS.join(","));
    for task in tasks {
        let last = task.history.last();
        let machine = last.map(|past| &past.machine);
        let number = |value: Option<String>| value.unwrap_or_default();
        let cells = [
            task.src.to_string(),
            task.state.as_str().to_owned(),
            task.attempt.to_string(),
            task.verdict.map(Verdict::as_str).unwrap_or_default().to_owned(),
            task.error.clone().unwrap_or_default(),
            number(task.exit_code.map(|code| code.to_string())),
            number(task.signal.map(|signal| signal.to_string())),
            task.time_cost_ms.to_string(),
            instance(task).unwrap_or_default(),
            machine.and_then(|machine| machine.instance_type.clone()).unwrap_or_default(),
            machine.and_then(|machine| machine.zone.clone()).unwrap_or_default(),
            machine.and_then(|machine| machine.purchase).map(PurchaseOption::as_str).unwrap_or_default().to_owned(),
            number(machine.and_then(|machine| machine.usd_per_hour).map(|price| price.to_string())),
            number(last.and_then(|past| past.end.peak_memory).map(|bytes| bytes.to_string())),
            last.map(|past| past.started.clone()).unwrap_or_default(),
            last.map(|past| past.ended.clone()).unwrap_or_default(),
            task.result.clone().unwrap_or_default(),
            number(task.result_bytes.map(|bytes| bytes.to_string())),
        ];
        text.push_str(&cells.map(|cell| quoted(&cell)).join(","));
        text.push_str("\r\n");
    }
    text
}

/// Returns a cell, in quotes if it needs them. A cell that a spreadsheet would take for a formula begins with a quote
/// character. Source: OWASP, "CSV Injection".
pub(super) fn quoted(cell: &str) -> String {
    let is_formula =
        cell.starts_with(['=', '+', '@', '\t', '\r']) || cell.starts_with('-') && cell.parse::<f64>().is_err();
    let cell = if is_formula { format!("'{cell}") } else { cell.to_owned() };
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::SrcId;

    #[test]
    fn csv_quotes_what_it_must() {
        for (cell, written) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "'=1+1"),
            ("-9", "-9"),
            ("-9+cmd", "'-9+cmd"),
            ("", ""),
        ] {
            assert_eq!(quoted(cell), written);
        }
    }

    #[test]
    fn csv_has_a_row_per_task_and_as_many_cells_as_columns() {
        let mut task = Task::new(SrcId::new("a,b").unwrap(), None);
        task.error = Some("it \"failed\"".to_owned());
        let text = csv(&[task.clone(), task]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("\"a,b\",pending,0,,\"it \"\"failed\"\"\","), "{text}");
        assert_eq!(lines[1].matches(',').count(), COLUMNS.len(), "one of them is in a name");
    }
}
