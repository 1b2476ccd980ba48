//! Early notifications, for missions that ask for them (`notifyOn`), and the figures of a sweep.
//!
//! A message is sent first, and noted in the row afterwards: if the sweep dies in between, or two sweep at once, it
//! comes twice, but it is never lost.

use std::time::Duration;

use super::{Sweep, What};
use crate::backend::Backend;
use crate::backend::ledger::Notice;
use crate::backend::notifier::Message;
use crate::clock;
use crate::domain::keys::digest_hex;
use crate::domain::mission::{Mission, Notified, NotifyOn, Tally};
use crate::domain::printable;
use crate::scheduler::SchedulerError;
use crate::summary::{Reasons, Summary};
use crate::worker::reason_lines;

/// How long sweeps must find that a mission's tasks wait, that none runs, and that none has ended: then it has stalled. A
/// boot takes minutes; between two tasks of a node a sweep may find none that runs.
pub const STALLED_AFTER: Duration = Duration::from_mins(30);

/// What a sweep found, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Missions that are neither complete nor cancelled.
    pub open_missions: u64,
    /// Those of them that have stalled: for [`STALLED_AFTER`], tasks wait, none runs, and none has ended.
    pub stalled_missions: u64,
    /// Running tasks.
    pub running_tasks: u64,
    /// Failed tasks of missions of known size that are neither cancelled nor closed: a sweep closes a mission some
    /// minutes after its end.
    pub failed_tasks: u64,
    /// Instances of the deployment that EC2 lists, before the sweep.
    pub instances: u64,
    /// Lost tasks that are pending again.
    pub lost_tasks: u64,
    /// Instances without work that the sweep terminated.
    pub leaked_instances: u64,
    /// Launches that got no instance.
    pub missing_nodes: u64,
    /// Actions that failed.
    pub problems: u64,
}

impl Sweep<'_> {
    /// Counts a mission, and sends the early notifications that it asks for.
    pub(super) async fn observe(&mut self, mission: &Mission) {
        let total = self.scheduler.backend.ledger.tally(mission).await;
        let total = match total.map_err(SchedulerError::cloud("reading the tally")) {
            Ok(sum) => mission.total(sum),
            Err(error) => return self.note_failure(mission.id.as_str(), &error),
        };
        let is_live = mission.cancelled_at.is_none() && mission.trans_number.is_some();
        let is_open = is_live && !mission.is_complete(total);
        let stalled_for = if is_open { self.stalled_for(mission, total).await } else { None };
        let figures = &mut self.figures;
        figures.failed_tasks += if is_live { total.failed } else { 0 };
        figures.open_missions += u64::from(is_open);
        figures.stalled_missions += u64::from(stalled_for.is_some());
        if !is_open || mission.notified != Notified::No {
            return;
        }
        let NotifyOn { failure, stall } = mission.notify_on;
        if failure && total.failed > 0 && mission.failure_notified != Some(mission.opened) {
            self.notify(mission, total, Notice::Failure(mission.opened), Duration::ZERO).await;
        }
        if let Some(stalled_for) = stalled_for.filter(|_| stall && mission.stall_notified != Some(total.seq)) {
            self.notify(mission, total, Notice::Stall(total.seq), stalled_for).await;
        }
    }

    /// Returns how long a mission has had tasks that wait and none that runs or has ended, if that is longer than usual.
    /// Notes when that began.
    async fn stalled_for(&mut self, mission: &Mission, total: Tally) -> Option<Duration> {
        let counts = self.counts.get(&mission.id);
        let is_idle = counts.is_some_and(|counts| counts.running == 0 && counts.claimable > 0);
        let since = mission.idle.as_ref().filter(|(seq, _)| *seq == total.seq).map(|(_, since)| since);
        let now = clock::now_rfc3339();
        let change = match (is_idle, since, &mission.idle) {
            (true, None, _) => Some(Some((total.seq, now.as_str()))),
            (false, _, Some(_)) => Some(None),
            (true, Some(_), _) | (false, _, None) => None,
        };
        if let Some(idle) = change {
            let noted = self.scheduler.backend.ledger.note_idle(&mission.id, idle).await;
            if let Err(error) = noted.map_err(SchedulerError::cloud("noting since when a mission is idle")) {
                self.note_failure(mission.id.as_str(), &error);
            }
            return None;
        }
        since.filter(|_| is_idle).and_then(|since| clock::since(since)).filter(|idle| *idle >= STALLED_AFTER)
    }

    async fn notify(&mut self, mission: &Mission, total: Tally, notice: Notice, stalled_for: Duration) {
        let Some(topic) = self.scheduler.settings.topic_arn.clone() else { return };
        let sent = async {
            let backend = &self.scheduler.backend;
            let message = message(backend, mission, total, notice, stalled_for).await?;
            let published = backend.notifier.publish(&topic, &message).await;
            published.map_err(SchedulerError::cloud("sending an early notification"))?;
            let noted = backend.ledger.note_notice(&mission.id, notice).await;
            noted.map_err(SchedulerError::cloud("noting an early notification"))
        };
        match sent.await {
            Ok(()) => self.find(What::Warned, mission.id.as_str(), &reason(notice, total, stalled_for)),
            Err(error) => self.note_failure(mission.id.as_str(), &error),
        }
    }
}

fn reason(notice: Notice, total: Tally, stalled_for: Duration) -> String {
    match notice {
        Notice::Failure(_) if total.failed == 1 => "a task has failed".to_owned(),
        Notice::Failure(_) => format!("{} tasks have failed", total.failed),
        Notice::Stall(_) => format!("no task has run for {} min", stalled_for.as_secs() / 60),
    }
}

/// Returns the text of an early notification.
async fn message(
    backend: &Backend,
    mission: &Mission,
    total: Tally,
    notice: Notice,
    stalled_for: Duration,
) -> Result<Message, SchedulerError> {
    let summary = Summary::read(backend, mission.clone()).await.map_err(SchedulerError::cloud("reading a summary"))?;
    let id = mission.id.as_str();
    let (shown, word) = (printable::one_line(id), printable::shell(id));
    let subject = match notice {
        Notice::Failure(_) => format!("HPC mission {shown}: tasks fail"),
        Notice::Stall(_) => format!("HPC mission {shown} has stalled"),
    };
    let tasks = mission.trans_number.map_or_else(String::new, |number| format!(" of {number}"));
    let mut lines = vec![
        format!("HPC mission {shown}: {}.\n", reason(notice, total, stalled_for)),
        format!("tasks done: {}{tasks}", total.ok),
        format!("failed: {}", total.failed),
    ];
    lines.extend(summary.pending.map(|pending| format!("pending: {pending}")));
    let (title, reasons, hint) = match notice {
        Notice::Failure(_) => ("failures", &summary.failures, format!("lighthpc status {word} --failed")),
        Notice::Stall(_) => ("why they wait", &summary.waits, format!("lighthpc status {word}")),
    };
    let reasons = reason_lines(&listed(reasons));
    if !reasons.is_empty() {
        lines.push(format!("\n{title}:"));
        lines.extend(reasons);
    }
    lines.push(format!("\nnext: {hint}"));
    if let Some(group) = summary.failures.groups.first() {
        lines.push(format!("      lighthpc explain {word} {}", printable::shell(group.example.as_str())));
    }
    let number = match notice {
        Notice::Failure(opened) => format!("failure {opened}"),
        Notice::Stall(seq) => format!("stall {seq}"),
    };
    Ok(Message {
        subject,
        text: format!("{}\n", lines.join("\n")),
        group: id.to_owned(),
        deduplication: digest_hex(&[id, &number], 64),
    })
}

fn listed(reasons: &Reasons) -> Vec<(String, u64)> {
    let reason = |group: &crate::summary::Group| {
        let verdict = group.verdict.map(|verdict| format!("{verdict}: ")).unwrap_or_default();
        (format!("{verdict}{}", group.reason), group.count)
    };
    reasons.groups.iter().map(reason).collect()
}
