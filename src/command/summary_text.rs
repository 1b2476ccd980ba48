//! The text of a mission's summary, in 80 columns.

use std::time::Duration;

use super::{listing, screen};
use crate::domain::machine_info::MicroUsd;
use crate::domain::mission::{Mission, Notified, Tally};
use crate::summary::{Order, Reasons, Selected, Summary};

/// The width of the output: that of a terminal that nobody has changed.
const WIDTH: usize = 80;

/// Returns the beginning of the summary: the bar and the figures, in 80 columns.
pub(super) fn head(summary: &Summary, flag: &str) -> String {
    let Summary { mission, total, .. } = summary;
    let id = screen::plain(mission.id.as_str());
    let name = mission.name.as_ref().map(|name| format!(" ({})", screen::plain(name))).unwrap_or_default();
    let mut text = format!("{}\n", screen::cut(&format!("mission {id}{name}: {}", state(summary)), WIDTH));
    text.push_str(&format!("{}\n\n", bar(total.ok, total.failed, mission.trans_number)));
    let left = summary.time_left().map_or_else(|| "-".to_owned(), |left| format!("about {}", screen::rough(left)));
    let rate = summary.rate_per_min().map_or_else(|| "-".to_owned(), |rate| format!("{} tasks/min", digits(rate)));
    let running = match summary.running {
        crate::summary::RUNNING_MAX => format!("{}+", screen::grouped(summary.running)),
        running => screen::grouped(running),
    };
    let nodes = match summary.nodes {
        Some(nodes) => format!("{} Spot, {} On-Demand", nodes.spot, nodes.on_demand),
        None => "unknown (not permitted)".to_owned(),
    };
    let nodes = if flag.is_empty() { nodes } else { "this computer".to_owned() };
    let workloads = screen::duration(Duration::from_millis(total.time_cost_ms));
    let pairs = [
        ("done", screen::grouped(total.ok), "rate", rate),
        ("failed", screen::grouped(total.failed), "time left", left),
        ("running", running, "nodes", nodes),
        ("pending", summary.pending.map_or_else(|| "?".to_owned(), screen::grouped), "workloads", workloads),
    ];
    for (one, value, other, more) in pairs {
        text.push_str(&format!("  {one:<8} {value:>11}     {other:<10} {more}\n"));
    }
    if flag.is_empty() {
        text.push_str(&format!("  cost      {}\n", cost(summary)));
    }
    text.push_str(&format!("  notification: {}\n", notification(mission)));
    text
}

/// Returns the summary for people, in 80 columns. `to_continue` is the command for a mission that nobody works on.
pub(super) fn text(summary: &Summary, selected: Option<&Selected>, flag: &str, to_continue: Option<&str>) -> String {
    let mut text = head(summary, flag);
    text.push_str(&reasons("failed", &summary.failures));
    text.push_str(&reasons("waiting", &summary.waits));
    if let Some(selected) = selected {
        text.push_str(&format!("\n{}", listing::table(&selected.tasks)));
        if selected.order == Order::Scan && flag.is_empty() {
            text.push_str("(found by a scan of the whole table)\n");
        }
        if selected.is_cut {
            text.push_str("(there are more: raise --limit, or use `lighthpc list`)\n");
        }
    }
    match to_continue.filter(|_| !summary.is_complete()) {
        Some(command) => text.push_str(&format!("\nno run is active\nnext: {command}\n")),
        None => text.push_str(&format!("\nnext: {}\n", next(summary, flag))),
    }
    text
}

fn state(summary: &Summary) -> &'static str {
    let is_complete = summary.is_complete();
    match (&summary.mission.cancelled_at, is_complete, summary.total.failed) {
        (Some(_), true, _) => "cancelled",
        (Some(_), false, _) => "being cancelled",
        (None, true, 0) => "complete",
        (None, true, _) => "complete, with failed tasks",
        (None, false, _) if summary.running > 0 => "running",
        (None, false, _) => "waiting",
    }
}

/// Returns a bar of the tasks that have ended, and their share.
fn bar(ok: u64, failed: u64, of: Option<u64>) -> String {
    const CELLS: u64 = 40;
    let Some(of) = of.filter(|&of| of > 0) else { return "  the number of tasks is unknown".to_owned() };
    let ended = ok.saturating_add(failed);
    let share = |cells: u64, part: u64| {
        u64::try_from(u128::from(part) * u128::from(cells) / u128::from(of)).unwrap_or(cells).min(cells)
    };
    let (all, bad) = (share(CELLS, ended), share(CELLS, failed).max(u64::from(failed > 0 && ended >= of)));
    let good = all.saturating_sub(bad);
    let cells = |n: u64, cell: &str| cell.repeat(usize::try_from(n).unwrap_or(0));
    format!(
        "  [{}{}{}] {:>3} %  {} of {}",
        cells(good, "#"),
        cells(all - good, "x"),
        cells(CELLS - all, "."),
        share(100, ended),
        screen::grouped(ended),
        screen::counted(of, "task", screen::grouped)
    )
}

/// Returns reasons with their counts and an example each, in 80 columns.
fn reasons(what: &str, reasons: &Reasons) -> String {
    if reasons.groups.is_empty() {
        return String::new();
    }
    let read = if reasons.read < reasons.total {
        format!(", reasons of {} that were read", screen::grouped(reasons.read))
    } else {
        String::new()
    };
    let mut text = format!("\n{what} ({}{read})\n", screen::grouped(reasons.total));
    for group in &reasons.groups {
        let verdict = group.verdict.map(|verdict| format!("{verdict}: ")).unwrap_or_default();
        let line = format!("  {:>7}  {verdict}{}", screen::grouped(group.count), screen::plain(&group.reason));
        text.push_str(&format!("{}\n", screen::cut(&line, WIDTH)));
        text.push_str(&format!(
            "{}\n",
            screen::cut(&format!("           e.g. {}", screen::plain(group.example.as_str())), WIDTH)
        ));
    }
    text
}

/// Returns the next useful command.
fn next(summary: &Summary, flag: &str) -> String {
    let id = crate::domain::printable::shell(summary.mission.id.as_str());
    match summary.failures.groups.first() {
        Some(group) => {
            format!("lighthpc explain{flag} {id} {}", crate::domain::printable::shell(group.example.as_str()))
        }
        None if summary.is_complete() => format!("lighthpc fetch{flag} {id} --to DIR"),
        None => format!("lighthpc wait{flag} {id}"),
    }
}

/// Returns what the mission costs so far, and about in all, as far as prices are known.
fn cost(summary: &Summary) -> String {
    let Tally { node_s, unpriced_s, cost, .. } = summary.total;
    if node_s == 0 {
        return "not known yet: a node adds it once a minute".to_owned();
    }
    let hours = |seconds: u64| screen::duration(Duration::from_secs(seconds));
    if unpriced_s >= node_s {
        return format!("{} of nodes, whose price is unknown", hours(node_s));
    }
    let mut text = format!("{} USD so far", usd(cost));
    if let Some(all) = summary.cost_in_all().filter(|_| !summary.is_complete()) {
        text.push_str(&format!(", about {} in all", usd(all)));
    }
    if unpriced_s > 0 {
        text.push_str(&format!("; {} at an unknown price", hours(unpriced_s)));
    }
    text
}

/// Returns an amount of money with as many digits as matter.
fn usd(amount: MicroUsd) -> String {
    if amount.usd() >= 1.0 { format!("{:.2}", amount.usd()) } else { format!("{:.4}", amount.usd()) }
}

fn digits(rate: f64) -> String {
    if rate >= 100.0 {
        format!("{rate:.0}")
    } else if rate >= 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.2}")
    }
}

/// Returns the state of the notification. Without a topic, the mission is marked but nothing is sent.
pub(super) fn notification(mission: &Mission) -> &'static str {
    match (&mission.notified, mission.notified_to.as_deref()) {
        (Notified::Yes, Some("none")) => "none (no topic)",
        (notified, _) => notified.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{AttemptNumber, InstanceId, MissionId, SrcId};
    use crate::domain::task::Task;
    use crate::domain::verdict::Verdict;
    use crate::render::{mission_json, summary_json};
    use crate::summary::Nodes;
    use unicode_width::UnicodeWidthStr;

    fn summary(mission: Mission, total: Tally, running: u64, rows: &[Task]) -> Summary {
        let pending = mission.trans_number.map(|n| n.saturating_sub(total.ended()).saturating_sub(running));
        Summary {
            failures: Reasons::of_failures(rows, total.failed),
            waits: Reasons::default(),
            nodes: Some(Nodes { spot: 28, on_demand: 2 }),
            mission,
            total,
            running,
            pending,
        }
    }

    fn failed(src: &str, verdict: Verdict, error: &str) -> Task {
        let mut task = Task::new(SrcId::new(src).unwrap(), None);
        (task.verdict, task.error) = (Some(verdict), Some(error.to_owned()));
        task
    }

    #[test]
    fn a_summary_fits_into_80_columns() {
        let mut mission = Mission::unknown(MissionId::new("M001").unwrap());
        (mission.trans_number, mission.name) = (Some(10_000), Some("gc content of all samples".to_owned()));
        let total = Tally {
            ok: 7_379,
            failed: 21,
            time_cost_ms: 435_600_000,
            seq: 7_400,
            node_s: 500_000,
            unpriced_s: 3_600,
            cost: MicroUsd(3_420_000),
        };
        let rows = [
            failed("M001/sample-0017.txt", Verdict::AppError, "the workload exited with code 3"),
            failed("M001/sample-0018.txt", Verdict::AppError, "the workload exited with code 3"),
            failed("M001/sample-0231.txt", Verdict::Oom, &"the workload ran out of memory ".repeat(9)),
        ];
        let text = text(&summary(mission, total, 60, &rows), None, "", None);
        expect_test::expect![[r"
            mission M001 (gc content of all samples): running
              [#############################...........]  74 %  7,400 of 10,000 tasks

              done           7,379     rate       61.2 tasks/min
              failed            21     time left  about 43 min
              running           60     nodes      28 Spot, 2 On-Demand
              pending        2,540     workloads  121 h 0 min
              cost      3.42 USD so far, about 4.62 in all; 1 h 0 min at an unknown price
              notification: No

            failed (21, reasons of 3 that were read)
                    2  app-error: the workload exited with code 3
                       e.g. M001/sample-0017.txt
                    1  oom: the workload ran out of memory the workload ran out of memory t…
                       e.g. M001/sample-0231.txt

            next: lighthpc explain M001 M001/sample-0017.txt
        "]]
        .assert_eq(&text);
        assert!(text.lines().all(|line| line.width() <= WIDTH), "{text}");
    }

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        assert_eq!(bar(0, 0, None), "  the number of tasks is unknown");
        assert!(bar(0, 0, Some(3)).contains(&format!("[{}]   0 %  0 of 3 tasks", ".".repeat(40))));
        assert!(bar(0, 1, Some(1)).contains(&format!("[{}] 100 %  1 of 1 task", "x".repeat(40))));
        assert!(bar(999, 1, Some(1000)).contains("#x] 100 %"));
        assert!(bar(999_999, 0, Some(1_000_000)).contains(" 99 %"));
        assert!(bar(u64::MAX, u64::MAX, Some(1)).contains("100 %"));
    }

    #[test]
    fn odd_rows_are_shown_and_do_nothing_to_a_terminal() {
        let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\n";
        let mut mission = Mission::unknown(MissionId::new(format!("M{evil}")).unwrap());
        mission.trans_number = Some(u64::MAX);
        mission.tally_base = u64::MAX;
        mission.name = Some(evil.to_owned());
        let mut task = failed(&format!("文件{evil}"), Verdict::Infra, &evil.repeat(30));
        task.time_cost_ms = u64::MAX;
        task.attempt = AttemptNumber(u64::MAX);
        task.progress = evil.to_owned();
        task.instance = Some(InstanceId::new(format!("i{evil}")).unwrap());
        let total = Tally {
            ok: 1,
            failed: u64::MAX,
            time_cost_ms: u64::MAX,
            seq: u64::MAX,
            node_s: u64::MAX,
            unpriced_s: u64::MAX,
            cost: MicroUsd(u64::MAX),
        };
        let selected = Selected { tasks: vec![task.clone(), task.clone()], is_cut: true, order: Order::Scan };
        let shown = summary(mission, total, 0, &[task]);
        let text = text(&shown, Some(&selected), "", None);
        assert!(!text.contains(|c: char| c != '\n' && crate::domain::printable::is_unsafe(c)), "{text:?}");
        assert!(summary_json(&shown)["failures"]["groups"][0]["example"].as_str().unwrap().contains('\u{1b}'));
    }

    #[test]
    fn an_end_without_a_topic_is_not_called_a_notification() {
        let mut mission = Mission::unknown(MissionId::new("M").unwrap());
        mission.notified = Notified::Yes;
        assert_eq!(notification(&mission), "Yes");
        mission.notified_to = Some("none".to_owned());
        assert_eq!(notification(&mission), "none (no topic)");
        assert_eq!(mission_json(&mission, mission.rolled)["notifyEmail"], "Yes");
        mission.notified = Notified::No;
        assert_eq!(notification(&mission), "No");
    }
}
