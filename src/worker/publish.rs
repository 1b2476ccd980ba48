//! The publisher of a mission's end: writes the manifest, then sends the notification.
//!
//! While the manifest is written, the publisher renews a lease of its own. Another that sees that lease unchanged for
//! its whole length takes over, and continues the manifest after its last stored part.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::NodeError;
use super::completion::CompletionNotifier;
use super::manifest::ManifestWriter;
use super::retry::retry_transient;
use crate::backend::error_chain;
use crate::backend::ledger::{Announcement, Publication};
use crate::backend::notifier::Message;
use crate::backend::store::{Mark, StoreError, uri};
use crate::clock;
use crate::domain::keys::{digest_hex, manifest_key, report_key};
use crate::domain::mission::{Mission, Tally, result_list};
use crate::domain::printable;
use crate::domain::task::AttemptEnd;
use crate::domain::verdict::Verdict;
use crate::report::{Collector, MissionReport, html};

/// Renewals of the publisher's lease within its length: two may be missed.
const RENEWALS: u32 = 3;

/// The publication of one mission's end, by this process.
pub(super) struct Publisher<'a> {
    notifier: &'a CompletionNotifier,
    mission: &'a Mission,
    total: Tally,
    publication: &'a Publication,
    now: String,
}

impl<'a> Publisher<'a> {
    /// Makes the publisher of a mission that `publication` gives the right to announce.
    pub(super) fn new(
        notifier: &'a CompletionNotifier,
        mission: &'a Mission,
        total: Tally,
        publication: &'a Publication,
    ) -> Self {
        Self { notifier, mission, total, publication, now: clock::now_rfc3339() }
    }

    /// Publishes, and renews the publisher's lease meanwhile. Returns whether it sent the message: if the lease is
    /// lost, another process publishes, or the mission was opened.
    pub(super) async fn publish(&self) -> Result<bool, NodeError> {
        let Self { notifier, mission, publication, .. } = *self;
        let is_sending = AtomicBool::new(false);
        // A lost lease does not interrupt the message and what comes after it. Before that, either arm may be dropped:
        // parts of a manifest are aborted, or belong to the successor.
        let renewals = async {
            loop {
                tokio::time::sleep(notifier.patience / RENEWALS).await;
                let renewed = notifier.backend.ledger.renew_publication(&mission.id, publication, None).await;
                match renewed {
                    Ok(true) => {}
                    Ok(false) if is_sending.load(Ordering::SeqCst) => std::future::pending().await,
                    Ok(false) => return,
                    // The next one may arrive; if none does, a successor waits for a whole lease.
                    Err(error) => tracing::warn!("the publisher's lease was not renewed: {}", error_chain(&error)),
                }
            }
        };
        tokio::select! {
            published = self.publish_held(&is_sending) => published,
            () = renewals => {
                tracing::warn!("mission {} is announced by another process, or was opened again", mission.id);
                Ok(false)
            }
        }
    }

    /// Writes the manifest, prepares the row, sends the message, and marks the mission as announced.
    async fn publish_held(&self, is_sending: &AtomicBool) -> Result<bool, NodeError> {
        let Self { notifier, mission, total, publication, ref now } = *self;
        // A mission without a result bucket has failed, and its owner must still be notified.
        let key = manifest_key(&mission.id);
        let mut collector = Some(Collector::new(mission, total, now));
        let mut report = None;
        let (manifest, results) = match notifier.result_bucket.as_deref() {
            None => ("none: no result bucket is set".to_owned(), Some(Vec::new())),
            Some(bucket) => match self.write_manifest(bucket, &key, &mut collector).await {
                Ok(results) => {
                    if let Some(collector) = collector.take() {
                        report = Some(self.write_report(bucket, collector.finish()).await);
                    }
                    (uri(bucket, &key), results)
                }
                // The end is still announced.
                Err(NodeError::Store { source: error @ StoreError::Taken { .. }, .. }) => {
                    tracing::error!("mission {} is announced without a manifest: {error}", mission.id);
                    (format!("none: {error}"), Some(Vec::new()))
                }
                Err(error) => return Err(error),
            },
        };
        let ledger = &notifier.backend.ledger;
        let to = notifier.topic_arn.as_deref().unwrap_or("none");
        let results = result_list(&mission.results, results.as_deref(), &manifest);
        let announcement = Announcement { results: &results, manifest: &manifest, to, now };
        let prepared = notifier.retry(|| ledger.prepare_publication(mission, publication, total, &announcement)).await;
        if !prepared.map_err(NodeError::cloud("writing the mission's totals"))? {
            tracing::warn!("mission {} is announced by another process, or was opened again", mission.id);
            return Ok(false);
        }
        is_sending.store(true, Ordering::SeqCst);
        if let Some(topic) = &notifier.topic_arn {
            let message = message(mission, total, &manifest, report.as_ref(), now);
            // Not retried here: if the first one arrived, a repeat would be a second notification.
            let sent = notifier.backend.notifier.publish(topic, &message).await;
            sent.map_err(NodeError::cloud("publishing the mission's end"))?;
        } else {
            tracing::warn!("mission {} is over, but no topic is set: no notification is sent", mission.id);
        }
        // Retried even if the node drains: without the mark, the next caller would send a second notification.
        let marked = retry_transient(notifier.patience, || ledger.end_publication(&mission.id, publication)).await;
        if marked.map_err(NodeError::cloud("marking the mission as announced"))? {
            let Tally { ok, failed, .. } = total;
            tracing::info!(mission = %mission.id, ok, failed, "mission {} is announced", mission.id);
        } else {
            tracing::warn!(
                "mission {} was announced, but its row was not marked: it was opened again, or another published too",
                mission.id
            );
        }
        Ok(true)
    }

    /// Writes the list of the mission's tasks, from where an earlier publisher has stopped. Returns the results for the
    /// row; `None` if they are more than it may hold.
    async fn write_manifest(
        &self,
        bucket: &str,
        key: &str,
        collector: &mut Option<Collector>,
    ) -> Result<Option<Vec<String>>, NodeError> {
        let Self { notifier, mission, total, publication, ref now } = *self;
        let wrong = |source| NodeError::Store { doing: "storing the manifest", source };
        let (store, ledger) = (&notifier.backend.store, &notifier.backend.ledger);
        let writer = || store.writer(bucket, key, Mark::of_mission(ledger.tables(), &mission.id), notifier.patience);
        let begun = mission.manifest_progress.clone().filter(|progress| progress.opened == mission.opened);
        let mut list = match begun {
            Some(progress) => {
                // The tasks before it are not read again: `lighthpc report` makes the report.
                *collector = None;
                ManifestWriter::resume(writer(), progress)
            }
            None => ManifestWriter::begin(writer(), mission, total, now).await.map_err(wrong)?,
        };
        let mut noted_at = Instant::now();
        loop {
            let after = list.after.clone();
            let page = notifier.retry(|| ledger.task_page(Some(&mission.id), after.as_deref())).await;
            let (tasks, last) = page.map_err(NodeError::cloud("listing the mission's tasks"))?;
            if let Some(collector) = collector {
                for task in &tasks {
                    collector.add(task);
                }
            }
            let added = list.add(&tasks).await;
            if let Err(error) = added {
                return Err(self.without_progress(wrong(error)).await);
            }
            let Some(last) = last else { break };
            list.after = Some(last);
            // A small manifest is written at once; of a large one, each part is noted.
            if noted_at.elapsed() < notifier.patience / RENEWALS {
                continue;
            }
            let stored = list.checkpoint(mission.opened).await;
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => return Err(self.without_progress(wrong(error)).await),
            };
            if let Some(progress) = stored {
                noted_at = Instant::now();
                let noted =
                    notifier.retry(|| ledger.renew_publication(&mission.id, publication, Some(&progress))).await;
                noted.map_err(NodeError::cloud("noting the manifest's progress"))?;
            }
        }
        match list.finish().await {
            Ok(results) => Ok(results),
            Err(error @ StoreError::Taken { .. }) => Err(wrong(error)),
            Err(error) => Err(self.without_progress(wrong(error)).await),
        }
    }

    /// Stores the report beside the manifest. Without it the end is announced all the same.
    async fn write_report(&self, bucket: &str, report: MissionReport) -> (Option<String>, MissionReport) {
        let Self { notifier, mission, .. } = *self;
        let (key, store) = (report_key(&mission.id), &notifier.backend.store);
        let mark = Mark::of_mission(notifier.backend.ledger.tables(), &mission.id);
        let mut out = store.writer(bucket, &key, mark, notifier.patience);
        let written = async {
            out.write(html(&report).as_bytes()).await?;
            out.finish().await
        };
        match written.await {
            Ok(_) => (Some(uri(bucket, &key)), report),
            Err(error) => {
                tracing::warn!("the report of mission {} was not stored: {}", mission.id, error_chain(&error));
                (None, report)
            }
        }
    }

    /// Removes the progress of a manifest that could not be continued, so that the next publisher starts it again: its
    /// parts may be gone.
    async fn without_progress(&self, error: NodeError) -> NodeError {
        let Self { notifier, mission, publication, .. } = *self;
        if let Err(error) = notifier.backend.ledger.forget_manifest(&mission.id, publication).await {
            tracing::warn!("the manifest's progress was not removed: {}", error_chain(&error));
        }
        error
    }
}

/// The most reasons of failures that the message names.
const REASONS_MAX: usize = 5;

/// Returns a text as one line of a bounded length: a row that others have written may have any text.
fn short_line(text: &str) -> String {
    AttemptEnd::of(Verdict::AppError, text).error.unwrap_or_default()
}

/// Returns the lines of a message that name reasons, with how many tasks have each.
#[must_use]
pub fn reason_lines(reasons: &[(String, u64)]) -> Vec<String> {
    let shown = reasons.iter().take(REASONS_MAX);
    let mut lines: Vec<String> = shown.map(|(reason, count)| format!("  {count}  {}", short_line(reason))).collect();
    if reasons.len() > REASONS_MAX {
        lines.push(format!("  and {} other reasons", reasons.len() - REASONS_MAX));
    }
    lines
}

/// Returns the message: the article's sentence, the counts, what failed, and where everything is.
fn message(
    mission: &Mission,
    total: Tally,
    manifest: &str,
    report: Option<&(Option<String>, MissionReport)>,
    now: &str,
) -> Message {
    let id = &mission.id;
    // A name of several lines must not add some to the message.
    let shown = printable::one_line(id.as_str());
    let failed = if total.failed > 0 { format!(" with {} failed", total.failed) } else { String::new() };
    let end = match (&mission.cancelled_at, total.failed) {
        (Some(_), _) => "cancelled",
        (None, 0) => "accomplished",
        (None, _) => "finished",
    };
    let minutes = total.time_cost_ms / 60_000;
    let workloads = if minutes < 10 {
        let tenths = total.time_cost_ms.saturating_add(50) / 100;
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        format!("{} h {} min", minutes / 60, minutes % 60)
    };
    let mut lines = vec![
        format!("HPC mission {shown} {end} at {now}{failed}.\n"),
        format!("tasks: {}", mission.trans_number.unwrap_or_else(|| total.ended())),
        format!("done: {}", total.ok),
        format!("failed: {}", total.failed),
        format!("workload time: {workloads}"),
    ];
    if total.node_s > 0 {
        let unpriced =
            if total.unpriced_s > 0 { format!(", {} s at an unknown price", total.unpriced_s) } else { String::new() };
        lines.push(format!("cost so far: {:.2} USD for {} s of nodes{unpriced}", total.cost.usd(), total.node_s));
    }
    lines.push(format!("manifest: {}", printable::one_line(manifest)));
    if let Some((uri, report)) = report {
        lines.extend(uri.as_ref().map(|uri| format!("report: {}", printable::one_line(uri))));
        let mut reasons = report.reasons.clone();
        reasons.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.clone()));
        if !reasons.is_empty() {
            lines.push("\nfailures:".to_owned());
            lines.extend(reason_lines(&reasons));
        }
        if let Some(task) = report.failed.first() {
            let (mission, task) = (printable::shell(id.as_str()), printable::shell(task.src.as_str()));
            lines.push(format!("\nnext: lighthpc explain {mission} {task}\n      lighthpc redrive {mission}"));
        }
    }
    // A mission that is opened again (redriven, enlarged) and ends again has another count of changes: another message.
    let deduplication = digest_hex(&[id.as_str(), &total.seq.to_string()], 64);
    let subject = format!("HPC mission {shown} {end}{failed}");
    Message { subject, text: format!("{}\n", lines.join("\n")), group: id.to_string(), deduplication }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{MissionId, SrcId};
    use crate::domain::machine_info::MicroUsd;
    use crate::domain::task::{State, Task};

    #[test]
    fn the_message_says_how_it_ended_and_what_failed() {
        let mission = Mission { trans_number: Some(3), ..Mission::unknown(MissionId::new("M001").unwrap()) };
        let total = Tally { ok: 3, time_cost_ms: 31_400, seq: 3, ..Tally::default() };
        let (manifest, now) = ("s3://r/manifests/M001.json", "2026-02-03T04:05:06Z");

        let all_done = message(&mission, total, manifest, None, now);
        assert_eq!(all_done.subject, "HPC mission M001 accomplished");
        assert_eq!(
            all_done.text,
            "HPC mission M001 accomplished at 2026-02-03T04:05:06Z.\n\n\
             tasks: 3\ndone: 3\nfailed: 0\nworkload time: 31.4 s\nmanifest: s3://r/manifests/M001.json\n"
        );

        let total = Tally { ok: 2, failed: 1, node_s: 90, cost: MicroUsd(12_000), ..total };
        let mut task = Task::new(SrcId::new("M001/a b").unwrap(), Some(mission.id.clone()));
        (task.state, task.verdict) = (State::Failed, Some(Verdict::AppError));
        task.error = Some("the workload exited with code 3".to_owned());
        let mut collector = Collector::new(&mission, total, now);
        collector.add(&task);
        let report = (Some("s3://r/manifests/M001.html".to_owned()), collector.finish());
        let some_failed = message(&mission, total, manifest, Some(&report), now);
        assert_eq!(some_failed.subject, "HPC mission M001 finished with 1 failed");
        expect_test::expect![[r"
            HPC mission M001 finished at 2026-02-03T04:05:06Z with 1 failed.

            tasks: 3
            done: 2
            failed: 1
            workload time: 31.4 s
            cost so far: 0.01 USD for 90 s of nodes
            manifest: s3://r/manifests/M001.json
            report: s3://r/manifests/M001.html

            failures:
              1  app-error: the workload exited with code 3

            next: lighthpc explain M001 'M001/a b'
                  lighthpc redrive M001
        "]]
        .assert_eq(&some_failed.text);
    }

    #[test]
    fn a_name_of_several_lines_adds_none_to_the_message() {
        let id = MissionId::new("M\r\nmanifest: https://evil.example\u{1b}[2J\u{202e}").unwrap();
        let total = Tally { ok: 1, failed: 0, seq: 1, ..Tally::default() };
        let message = message(&Mission::unknown(id), total, "s3://r/manifests/M\nx.json", None, "2026-02-03T04:05:06Z");
        assert_eq!(message.text.lines().count(), 7, "{}", message.text);
        let is_plain = |text: &str| !text.contains(|c| c != '\n' && printable::is_unsafe(c));
        assert!(is_plain(&message.text) && is_plain(&message.subject), "{message:?}");
    }
}
