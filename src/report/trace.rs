//! The report as a trace for ui.perfetto.dev: an instance is a process, a slot is a thread.
//!
//! Format: Chrome's "Trace Event Format", JSON object form; times are in microseconds.

use super::{MissionReport, Span};

/// Returns the attempts as a trace. Their names are their kinds: the timeline does not keep the names of tasks.
#[must_use]
pub fn perfetto(report: &MissionReport) -> String {
    let mut text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[".to_owned();
    for (number, name) in report.instances.iter().enumerate() {
        let name = serde_json::Value::from(name.as_str());
        let comma = if number > 0 { "," } else { "" };
        text.push_str(&format!(
            "{comma}\n{{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":{number},\"args\":{{\"name\":{name}}}}}"
        ));
    }
    let Some((start, _)) = report.range() else { return text + "\n]}\n" };
    let mut is_first = report.instances.is_empty();
    // Without gaps closed: one event per attempt.
    let mut slots: std::collections::HashMap<u32, Vec<u64>> = std::collections::HashMap::new();
    let mut spans: Vec<&Span> = report.spans.iter().collect();
    spans.sort_by_key(|span| (span.start_s, span.end_s));
    for span in spans {
        let ends = slots.entry(span.instance).or_default();
        let slot = ends.iter().position(|end| *end <= span.start_s).unwrap_or(ends.len());
        if slot == ends.len() {
            ends.push(0);
        }
        ends[slot] = span.end_s.max(span.start_s + 1);
        let comma = if is_first { "" } else { "," };
        is_first = false;
        text.push_str(&format!("{comma}\n{{\"ph\":\"X\",\"name\":\"{}\",\"cat\":\"attempt\",\"pid\":{},\"tid\":{slot},\"ts\":{},\"dur\":{}}}",
            span.kind.word(),
            span.instance,
            (span.start_s - start) * 1_000_000,
            // Times have whole seconds; what took less is shown all the same.
            ((span.end_s - span.start_s) * 1_000_000).max(1)));
    }
    text + "\n]}\n"
}
