//! The report as one HTML file: no network, readable without JavaScript, on a phone, and on paper.
//!
//! Pictures are inline SVG with titles; each has its numbers as text beside it. The table of all tasks is compressed in
//! the file, and a script unpacks, searches, and sorts it. Without the script, failed and long tasks are listed.

use std::io::Write as _;

use super::lanes::{Lane, MARK_WIDTH, concurrency, lay_out};
use super::{MissionReport, SpanKind, rfc3339};
use crate::domain::machine_info::{MicroUsd, PurchaseOption};
use crate::domain::task::State;

/// The width of the time axis, in units of the pictures.
const WIDTH: u32 = 1000;
/// The most lanes that are drawn; the others are counted.
const LANES_MAX: usize = 150;
/// The most pieces of all lanes: 12 bytes each. With more, gaps between pieces are closed.
const PIECES_MAX: usize = 30_000;
/// The steps of the curve of parallel tasks.
const STEPS_MAX: usize = 500;
/// The bars of a histogram.
const BARS_MAX: u16 = 30;

const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// Returns the report as HTML.
#[must_use]
pub fn html(report: &MissionReport) -> String {
    let id = escape(report.mission.id.as_str());
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Mission {id}</title><style>{STYLE}</style></head>\n\
         <body><header><h1>Mission {id}</h1><p>{}</p></header>\n<main>\n",
        headline(report)
    );
    page.push_str(&summary(report));
    page.push_str(&timeline(report));
    page.push_str(&distributions(report));
    page.push_str(&failures(report));
    page.push_str(&held_up(report));
    page.push_str(&money(report));
    page.push_str(&table(report));
    page.push_str(&format!("</main>\n<footer><p>Made by lighthpc at {}.</p></footer>\n", escape(&report.made_at)));
    page.push_str(&format!("<script>{SCRIPT}</script>\n</body></html>\n"));
    page
}

/// Escapes text for HTML. Control characters have no place in it.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            c if crate::domain::printable::is_unsafe(c) => {
                safe.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => safe.push(c),
        }
    }
    safe
}

fn headline(report: &MissionReport) -> String {
    let [pending, running, done, failed] = report.states;
    let name = report.mission.name.as_ref().map(|name| format!("{}: ", escape(name))).unwrap_or_default();
    let state = match (pending + running, failed) {
        (0, 0) => "complete".to_owned(),
        (0, failed) => format!("complete, {} failed", grouped(failed)),
        (open, _) => format!("{} not finished", grouped(open)),
    };
    format!("{name}{} of {} tasks are done; {state}.", grouped(done), grouped(pending + running + done + failed))
}

/// Returns a number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn time_ms(ms: u64) -> String {
    if ms < 1000 {
        format!("{ms} ms")
    } else if ms < 60_000 {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let seconds = ms as f64 / 1000.0;
        format!("{seconds:.1} s")
    } else {
        time(ms / 1000)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

fn usd(amount: MicroUsd) -> String {
    if amount.usd() >= 1.0 { format!("{:.2} USD", amount.usd()) } else { format!("{:.4} USD", amount.usd()) }
}

fn share(part: u64, of: u64) -> String {
    match (u128::from(part) * 1000).checked_div(u128::from(of)) {
        Some(tenths) => format!("{}.{} %", tenths / 10, tenths % 10),
        None => "-".to_owned(),
    }
}

fn summary(report: &MissionReport) -> String {
    let [pending, running, done, failed] = report.states;
    let attempts: u64 = report.spent.values().map(|spent| spent.attempts).sum();
    let attempt_s: u64 = report.spent.values().map(|spent| spent.time_s).sum();
    let wasted_s: u64 = report.spent.values().map(|spent| spent.wasted_s).sum();
    let mut facts = vec![
        ("done", grouped(done)),
        ("failed", grouped(failed)),
        ("pending or running", grouped(pending + running)),
        ("attempts kept", grouped(attempts)),
    ];
    if let Some((start, end)) = report.range() {
        facts.push(("first start", rfc3339(start)));
        facts.push(("last end", rfc3339(end)));
        facts.push(("took", time(end - start)));
        let mean = (attempt_s * 10).checked_div(end - start).unwrap_or(0);
        facts.push(("tasks at a time, mean", format!("{}.{}", mean / 10, mean % 10)));
    }
    facts.push(("workload time", time_ms(report.total.time_cost_ms)));
    facts.push(("time without a result", format!("{} ({})", time(wasted_s), share(wasted_s, attempt_s))));
    if report.total.node_s > 0 {
        facts.push(("time of nodes", time(report.total.node_s)));
        facts.push(("cost of nodes", cost(report)));
    }
    let facts: String =
        facts.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>")).collect();
    format!("<section><h2>Summary</h2><dl>{facts}</dl></section>\n")
}

fn cost(report: &MissionReport) -> String {
    let total = &report.total;
    if total.unpriced_s >= total.node_s {
        return "unknown prices".to_owned();
    }
    let rest =
        if total.unpriced_s > 0 { format!(", and {} of unknown price", time(total.unpriced_s)) } else { String::new() };
    format!("{}{rest}", usd(total.cost))
}

/// Returns the class of a kind, which has its colour.
const fn class(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::Done => "d",
        SpanKind::Failed => "f",
        SpanKind::Interrupted => "i",
        SpanKind::Running => "r",
    }
}

fn timeline(report: &MissionReport) -> String {
    let Some(range) = report.range() else {
        return "<section><h2>Timeline</h2><p>No attempt has ended.</p></section>\n".to_owned();
    };
    let mut gap = 1;
    let mut lanes = lay_out(&report.spans, range, WIDTH, gap);
    while lanes.iter().take(LANES_MAX).map(|lane| lane.pieces.len()).sum::<usize>() > PIECES_MAX && gap < WIDTH {
        gap *= 2;
        lanes = lay_out(&report.spans, range, WIDTH, gap);
    }
    let curve = concurrency(&report.spans, STEPS_MAX);
    let peak = curve.iter().map(|step| step.1).max().unwrap_or(0);
    let legend: String = SpanKind::ALL
        .iter()
        .map(|kind| format!("<span class=\"key {}\">{}</span> ", class(*kind), kind.word()))
        .collect();
    let marks = [
        ("n", "Spot notice", lanes.iter().any(|lane| !lane.notices.is_empty())),
        ("c", "newest checkpoint of an attempt", lanes.iter().any(|lane| !lane.checkpoints.is_empty())),
    ];
    let marks: String = marks
        .iter()
        .filter(|(_, _, is_there)| *is_there)
        .map(|(class, word, _)| format!("<span class=\"key {class}\">{word}</span> "))
        .collect();
    let mut text = format!(
        "<section><h2>Timeline</h2><p>{} of {} instances. {legend}{marks}</p>\n",
        count(lanes.len(), "slot"),
        grouped(report.instances.len() as u64)
    );
    text.push_str(&curve_svg(&curve, range, peak));
    text.push_str(&lanes_svg(report, &lanes, range));
    if lanes.len() > LANES_MAX {
        text.push_str(&format!("<p>{} more slots are not drawn.</p>", grouped((lanes.len() - LANES_MAX) as u64)));
    }
    if report.left_out > 0 {
        text.push_str(&format!("<p>{} attempts are left out of the timeline.</p>", grouped(report.left_out)));
    }
    if gap > 1 {
        text.push_str("<p>Attempts that are close to each other are drawn as one.</p>");
    }
    text.push_str("</section>\n");
    text
}

fn count(number: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(number as u64), if number == 1 { "" } else { "s" })
}

fn axis(range: (u64, u64), y: u32) -> String {
    let length = range.1 - range.0;
    let ticks = (0..=4_u64).map(|tick| {
        let (x, anchor) = match tick {
            0 => (0, "start"),
            4 => (WIDTH, "end"),
            tick => (WIDTH / 4 * u32::try_from(tick).unwrap_or(0), "middle"),
        };
        let class = if tick % 4 == 0 { "" } else { " class=\"mid\"" };
        format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\"{class}>{}</text>", time(length * tick / 4))
    });
    ticks.collect()
}

fn curve_svg(curve: &[(u64, u64)], range: (u64, u64), peak: u64) -> String {
    const HEIGHT: u32 = 120;
    let x = |second: u64| (second.clamp(range.0, range.1) - range.0) * u64::from(WIDTH) / (range.1 - range.0).max(1);
    let y = |number: u64| u64::from(HEIGHT) - number * u64::from(HEIGHT) / peak.max(1);
    let mut path = format!("M0 {HEIGHT}");
    for &(second, number) in curve {
        path.push_str(&format!("H{}V{}", x(second), y(number)));
    }
    format!(
        "<h3>Tasks at a time</h3><svg viewBox=\"0 -14 {WIDTH} {}\" role=\"img\" aria-label=\"Tasks that ran at a time: at \
         most {peak}\"><title>Tasks that ran at a time: at most {peak}</title><path class=\"area\" \
         d=\"{path}H{WIDTH}V{HEIGHT}Z\"/><text x=\"0\" y=\"-3\">{peak}</text>{}</svg>\n",
        HEIGHT + 46,
        axis(range, HEIGHT + 28)
    )
}

fn lanes_svg(report: &MissionReport, lanes: &[Lane], range: (u64, u64)) -> String {
    let drawn = &lanes[..lanes.len().min(LANES_MAX)];
    // Few lanes are high enough to see on a phone.
    let lane_height: u32 = match drawn.len() {
        0..=25 => 20,
        26..=60 => 12,
        _ => 8,
    };
    let piece_height = lane_height - 2;
    let height = lane_height * u32::try_from(drawn.len()).unwrap_or(0);
    let mut text = format!(
        "<h3>Slots</h3><svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Attempts on each slot over time\">\
         <title>Attempts on each slot over time</title>",
        height + 32
    );
    for (row, lane) in drawn.iter().enumerate() {
        let y = lane_height * u32::try_from(row).unwrap_or(0);
        let name = report.instances.get(lane.instance as usize).map_or("", String::as_str);
        text.push_str(&format!("<g><title>{}</title>", escape(name)));
        for kind in SpanKind::ALL {
            let mut path = String::new();
            for (from, to, _) in lane.pieces.iter().filter(|piece| piece.2 == kind) {
                path.push_str(&format!("M{from} {y}h{}v{piece_height}h-{}z", to - from, to - from));
            }
            if !path.is_empty() {
                text.push_str(&format!("<path class=\"{}\" d=\"{path}\"/>", class(kind)));
            }
        }
        // A notice is as high as its lane, a checkpoint is a diamond.
        let notices: String =
            lane.notices.iter().map(|x| format!("M{x} {y}h{MARK_WIDTH}v{}h-{MARK_WIDTH}z", lane_height - 1)).collect();
        let r = piece_height / 2;
        let checkpoints: String =
            lane.checkpoints.iter().map(|x| format!("M{x} {y}l{r} {r}l-{r} {r}l-{r}-{r}z")).collect();
        for (class, title, path) in [("n", "Spot notice", notices), ("c", "checkpoint", checkpoints)] {
            if !path.is_empty() {
                text.push_str(&format!("<path class=\"{class}\" d=\"{path}\"><title>{title}</title></path>"));
            }
        }
        text.push_str("</g>");
    }
    text.push_str(&format!("{}</svg>\n", axis(range, height + 27)));
    text
}

fn distributions(report: &MissionReport) -> String {
    let mut text = "<section><h2>Distributions</h2>\n".to_owned();
    let pictures = [
        ("Workload time of tasks that are done", &report.durations, time_ms as fn(u64) -> String),
        ("Peak memory of attempts", &report.memory, bytes),
    ];
    for (title, values, unit) in pictures {
        let Some((low, high)) = values.range else {
            text.push_str(&format!("<h3>{title}</h3><p>Nothing was measured.</p>"));
            continue;
        };
        let bars = values.bars(BARS_MAX);
        let most = bars.iter().map(|bar| bar.2).max().unwrap_or(1).max(1);
        let width = WIDTH / u32::try_from(bars.len()).unwrap_or(1).max(1);
        let mut svg = String::new();
        for (place, (from, to, count)) in bars.iter().enumerate() {
            let height = u32::try_from(u128::from(*count) * 100 / u128::from(most)).unwrap_or(100);
            let height = if *count > 0 { height.max(1) } else { 0 };
            let x = width * u32::try_from(place).unwrap_or(0);
            svg.push_str(&format!("<rect class=\"bar\" x=\"{x}\" y=\"{}\" width=\"{}\" height=\"{height}\"><title>{} to {}: {}</title></rect>",
                100 - height,
                width.saturating_sub(2),
                unit(*from),
                unit(*to),
                grouped(*count)));
        }
        text.push_str(&format!("<h3>{title}</h3><svg viewBox=\"0 0 {WIDTH} 132\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>{svg}\
             <text x=\"0\" y=\"127\">{}</text><text x=\"{WIDTH}\" y=\"127\" text-anchor=\"end\">{}</text></svg>\
             <p>{} values: mean {}, median about {}, 95 % below about {}, largest {}.</p>\n",
            unit(low),
            unit(high),
            grouped(values.count),
            unit(values.mean()),
            unit(values.percentile(50)),
            unit(values.percentile(95)),
            unit(high)));
    }
    text.push_str("</section>\n");
    text
}

fn failures(report: &MissionReport) -> String {
    if report.reasons.is_empty() {
        return "<section><h2>Failures</h2><p>No task has failed.</p></section>\n".to_owned();
    }
    let mut reasons: Vec<&(String, u64)> = report.reasons.iter().collect();
    reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.clone()));
    let rows: String = reasons
        .iter()
        .map(|(reason, count)| format!("<tr><td class=\"n\">{}</td><td>{}</td></tr>", grouped(*count), escape(reason)))
        .collect();
    let mut text = format!(
        "<section><h2>Failures</h2><div class=\"scroll\"><table><thead><tr><th>tasks</th><th>reason</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>\n"
    );
    for task in &report.failed {
        text.push_str(&format!("<details><summary>{}: {}</summary>", escape(task.src.as_str()), escape(&task.reason)));
        match (&task.tail, &task.log) {
            (Some(tail), _) => {
                text.push_str(&format!("<pre>{}</pre>", escape(tail)));
            }
            (None, Some(log)) => {
                text.push_str(&format!("<p>Log: {}</p>", escape(log)));
            }
            (None, None) => text.push_str("<p>The workload printed nothing that was kept.</p>"),
        }
        text.push_str("</details>\n");
    }
    let failed = report.states[3];
    if failed > report.failed.len() as u64 {
        text.push_str(&format!("<p>Of {} failed tasks, a few of each reason are shown here.</p>", grouped(failed)));
    }
    text.push_str("</section>\n");
    text
}

/// Returns what made the mission longer than it had to be.
fn held_up(report: &MissionReport) -> String {
    let Some((start, end)) = report.range() else { return String::new() };
    let mut points = Vec::new();
    if let Some(made) = report.mission.made_at.as_deref().and_then(super::seconds)
        && start > made + 60
    {
        points.push(format!("The first attempt started {} after the mission was made.", time(start - made)));
    }
    let curve = concurrency(&report.spans, usize::MAX);
    let peak = curve.iter().map(|step| step.1).max().unwrap_or(0);
    let tail = curve.iter().rev().find(|step| step.1 * 2 >= peak).map_or(start, |step| step.0);
    if peak > 1 && end > tail {
        points.push(format!(
            "For the last {} ({} of the whole time), fewer than half of the {peak} slots had work.",
            time(end - tail),
            share(end - tail, end - start)
        ));
    }
    let (wasted, all): (u64, u64) =
        report.spent.values().fold((0, 0), |sum, spent| (sum.0 + spent.wasted_s, sum.1 + spent.time_s));
    if wasted > 0 {
        points.push(format!(
            "Attempts without a result took {} ({} of all attempts).",
            time(wasted),
            share(wasted, all)
        ));
    }
    let points: String = points.iter().map(|point| format!("<li>{point}</li>")).collect();
    let rows: String = report
        .longest
        .iter()
        .map(|long| {
            format!(
                "<tr><td>{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
                escape(long.src.as_str()),
                time(long.end_s - long.start_s),
                if long.end_s >= end { "ended last" } else { "" }
            )
        })
        .collect();
    format!(
        "<section><h2>What held the mission up</h2><ul>{points}</ul><h3>The longest attempts</h3><div class=\"scroll\">\
         <table><thead><tr><th>task</th><th>time</th><th></th></tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )
}

fn money(report: &MissionReport) -> String {
    let rows: String = report
        .spent
        .iter()
        .map(|(purchase, spent)| {
            let name = match purchase {
                Some(PurchaseOption::Local) => "this computer",
                Some(PurchaseOption::Spot) => "Spot",
                Some(PurchaseOption::OnDemand) => "On-Demand",
                None => "unknown",
            };
            let (cost, wasted) = if spent.unpriced_s >= spent.time_s {
                ("unknown".to_owned(), "unknown".to_owned())
            } else {
                (usd(spent.cost), usd(spent.wasted))
            };
            format!(
                "<tr><td>{name}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{cost}</td>\
                 <td class=\"n\">{}</td><td class=\"n\">{wasted}</td></tr>",
                grouped(spent.attempts),
                time(spent.time_s),
                time(spent.wasted_s)
            )
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>Cost by purchase option</h2><div class=\"scroll\"><table><thead><tr><th>purchase</th><th>attempts</th>\
         <th>time</th><th>cost</th><th>time without a result</th><th>its cost</th></tr></thead><tbody>{rows}</tbody></table>\
         </div><p>The time of attempts. Boot and idle time of nodes is in the summary only.</p></section>\n"
    )
}

/// Returns the table of all tasks: compressed, for the script; and a note for readers without it.
fn table(report: &MissionReport) -> String {
    let mut lines = String::new();
    let prefix = format!("{}/", report.mission.id);
    for line in &report.table {
        let name = line.src.as_str().strip_prefix(&prefix).unwrap_or(line.src.as_str());
        let name = name.replace(['\t', '\n', '\r'], " ");
        let state = match line.state {
            State::Done => 'd',
            State::Failed => 'f',
            State::Running => 'r',
            State::Pending | State::Unknown => 'p',
        };
        let reason = line.reason.map(|reason| reason.to_string()).unwrap_or_default();
        lines.push_str(&format!("{name}\t{state}\t{}\t{}\t{reason}\n", line.time_cost_ms, line.attempts));
    }
    let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    let packed = packer.write_all(lines.as_bytes()).and_then(|()| packer.finish());
    let packed = packed.expect("writing to memory does not fail");
    let reasons: Vec<&str> = report.reasons.iter().map(|(reason, _)| reason.as_str()).collect();
    // Escaped for JSON first: what is escaped for HTML only is no JSON any more.
    let reasons = escape(&crate::domain::printable::json(&serde_json::json!(reasons).to_string()));
    let cut = if report.states.iter().sum::<u64>() > report.table.len() as u64 {
        format!("<p>{} of the tasks are listed.</p>", grouped(report.table.len() as u64))
    } else {
        String::new()
    };
    format!(
        "<section id=\"tasks\"><h2>Tasks</h2>{cut}<noscript><p>With JavaScript, this is a table of all tasks that can be \
         searched and sorted. <code>lighthpc list</code> prints the same.</p></noscript>\
         <div id=\"table\" data-rows=\"{}\" data-reasons=\"{reasons}\"></div></section>\n",
        aws_smithy_types::base64::encode(packed)
    )
}

/// Returns a duration as the report writes it, for tests.
#[cfg(test)]
fn shown(duration: std::time::Duration) -> String {
    time(duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::super::Collector;
    use super::*;
    use crate::domain::ids::{AttemptNumber, InstanceId, MissionId, SrcId};
    use crate::domain::machine_info::MachineInfo;
    use crate::domain::mission::{Mission, Tally};
    use crate::domain::task::{AttemptEnd, Marks, PastAttempt, Task};
    use crate::domain::verdict::Verdict;
    use std::time::Duration;

    /// A mission whose tasks ran on 40 instances; one in fifty failed, one in thirty was interrupted first.
    pub(crate) fn report(count: u64) -> MissionReport {
        let mut mission = Mission::unknown(MissionId::new("M001").unwrap());
        mission.trans_number = Some(count);
        mission.made_at = Some("2026-01-01T00:00:00Z".to_owned());
        let total = Tally { ok: count, node_s: count * 13, cost: MicroUsd(count * 120), ..Tally::default() };
        let mut collector = Collector::new(&mission, total, "2026-01-02T00:00:00Z");
        let mut clocks = [1_767_225_700_u64; 40];
        for n in 0..count {
            let mut task = Task::new(SrcId::new(format!("M001/sample-{n:06}.fastq.gz")).unwrap(), None);
            let slot = usize::try_from(n * 7919 % 40).unwrap();
            let instance = format!("i-{slot:017x}");
            let took = 3 + n * 104_729 % 17;
            let ends = [
                (n % 30 == 0).then(|| AttemptEnd::of(Verdict::SpotInterrupted, "EC2 takes the instance back")),
                Some(if n % 50 == 0 {
                    let end =
                        AttemptEnd::of(Verdict::AppError, &format!("the workload exited with code {}", n % 3 + 1));
                    AttemptEnd { exit_code: Some(3), peak_memory: Some(1 << 30), ..end }
                } else {
                    AttemptEnd { peak_memory: Some((100 + n % 400) << 20), ..AttemptEnd::ok() }
                }),
            ];
            for (number, end) in ends.into_iter().flatten().enumerate() {
                let start = clocks[slot];
                clocks[slot] += took;
                let is_notified = end.verdict == Verdict::SpotInterrupted;
                task.history.push(PastAttempt {
                    attempt: AttemptNumber(number as u64 + 1),
                    instance: instance.clone(),
                    machine: MachineInfo {
                        instance_type: Some("c7i.large".to_owned()),
                        zone: Some("us-east-1a".to_owned()),
                        purchase: Some(PurchaseOption::Spot),
                        usd_per_hour: Some(MicroUsd(34_100)),
                    },
                    started: rfc3339(start),
                    ended: rfc3339(clocks[slot]),
                    end,
                    marks: Marks {
                        spot_notice_at: is_notified.then(|| rfc3339(clocks[slot] - 2)),
                        checkpoint_at: (n % 5 == 0).then(|| rfc3339(clocks[slot] - 1)),
                    },
                    log: Some(format!("s3://results/logs/M001/sample-{n:06}.fastq.gz.1.log")),
                });
            }
            let last = task.history.last().unwrap().end.clone();
            task.state = if last.verdict == Verdict::Ok { State::Done } else { State::Failed };
            (task.verdict, task.error) = (Some(last.verdict), last.error);
            (task.attempt, task.time_cost_ms) = (AttemptNumber(task.history.len() as u64), took * 1000 + n % 1000);
            task.instance = Some(InstanceId::new(instance).unwrap());
            collector.add(&task);
        }
        let mut report = collector.finish();
        for task in &mut report.failed {
            task.tail = Some("reading the input\n<b>no such & sample</b>\n".to_owned());
        }
        report
    }

    #[test]
    fn the_report_of_fifty_thousand_tasks_fits_into_its_size() {
        for count in [0, 1, 10, 1_000, 50_000] {
            let page = html(&report(count));
            assert!(page.len() < 1_500_000, "{count} tasks: {} bytes", page.len());
            if let Some(folder) = std::env::var_os("LIGHTHPC_TEST_REPORTS") {
                let file = std::path::Path::new(&folder).join(format!("report-{count}.html"));
                std::fs::write(file, &page).unwrap();
            }
        }
    }

    #[test]
    fn nothing_of_others_is_markup_and_nothing_is_loaded() {
        let mut report = report(60);
        let evil = "</script><img src=x onerror=alert(1)>\u{202e}\"'&";
        report.mission.name = Some(evil.to_owned());
        report.failed[0].reason = evil.to_owned();
        report.failed[0].tail = Some(evil.to_owned());
        report.reasons[0].0 = evil.to_owned();
        report.instances[0] = evil.to_owned();
        let page = html(&report);
        assert!(!page.contains("<img") && !page.contains('\u{202e}'));
        assert_eq!(page.matches("</script>").count(), 1);
        for word in ["http://", "https://", "url(", "@import", "<link", "src="] {
            assert!(!page.replace("src=x", "").contains(word), "{word}");
        }
    }

    #[test]
    fn notices_and_checkpoints_are_marked() {
        let page = html(&report(60));
        for part in [
            "<span class=\"key n\">Spot notice</span>",
            "<span class=\"key c\">newest checkpoint of an attempt</span>",
            "<path class=\"n\" d=\"M",
            "<path class=\"c\" d=\"M",
        ] {
            assert!(page.contains(part), "{part:?} is missing");
        }
        // No key of what is not drawn.
        assert!(!html(&report(50_000)).contains("Spot notice"));
    }

    #[test]
    fn a_report_has_the_figures_of_its_rows() {
        let page = html(&report(1_000));
        for part in [
            "980 of 1,000 tasks are done; complete, 20 failed.",
            "app-error: the workload exited with code",
            "<td>Spot</td><td class=\"n\">1,034</td>",
            "reading the input\n&lt;b&gt;no such &amp; sample&lt;/b&gt;",
            "aria-label=\"Tasks that ran at a time: at most 40\"",
        ] {
            assert!(page.contains(part), "{part:?} is missing");
        }
        assert_eq!(shown(Duration::from_secs(90_061)), "25 h 1 min");
    }
}
