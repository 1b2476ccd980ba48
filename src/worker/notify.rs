//! Step 8: the mission's tally, and at its end the manifest and the notification.
//!
//! The row is read before the tally, and `Sending` is conditional on what was read (`backend/ledger/publish.rs`): a mission that
//! is opened in between is not announced. While the manifest is written, the publisher renews a lease of its own; whoever sees
//! that lease unchanged for its whole length takes over, and goes on with the manifest from its last stored part.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::retry::{or_drained, retry_transient, retry_transient_unless};
use super::{Node, NodeError, Step};
use crate::backend::Backend;
use crate::backend::ledger::{Announcement, Publication};
use crate::backend::notifier::Message;
use crate::backend::store::{Mark, PutWriter, StoreError, uri};
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::keys::{digest_hex, manifest_key};
use crate::domain::mission::{ManifestProgress, Mission, Notified, RESULT_LIST_LEN_MAX, Tally, result_list};
use crate::domain::printable;
use crate::domain::task::{State, Task};

/// What it takes to look whether a mission is over, and to announce it.
#[derive(Clone, Debug)]
pub struct CompletionNotifier {
    /// The services.
    pub backend: Backend,
    /// The bucket of manifests.
    pub result_bucket: Option<String>,
    /// The topic.
    pub topic_arn: Option<String>,
    /// How long transient failures are retried, and how long a publisher's lease lasts.
    pub patience: Duration,
    /// Cancelled when transient failures are to be retried no more.
    pub stop: CancellationToken,
}

/// How often a mission's row and tally are read again because another hand opened it in between: each time somebody has
/// enlarged or redriven it in that moment, and will see to its end.
const LOOKS_MAX: u32 = 5;
/// The pause before they are read again.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Renewals of the publisher's lease within its length: two may be missed.
const RENEWALS: u32 = 3;

impl CompletionNotifier {
    pub(super) fn for_node(node: &Node) -> Self {
        let settings = &node.settings;
        Self {
            backend: node.backend.clone(),
            result_bucket: settings.result_bucket.clone(),
            topic_arn: settings.topic_arn.clone(),
            patience: settings.lease,
            stop: node.stopping.drain.clone(),
        }
    }

    /// Announces the mission's end, if it has come and nobody has announced it. Returns whether it did.
    ///
    /// Every committer comes here after its own commit, so the last one sees the full count. Exactly one becomes the
    /// publisher; a publisher that died is replaced by whoever comes by and learns that it is gone.
    ///
    /// `me` and `right` name the publisher: the same pair may publish again after its restart. `is_lost` says that the caller has seen
    /// the lease of the publisher that `mission` names unchanged for its whole length.
    ///
    /// # Errors
    /// [`NodeError`]; the mission is then looked at by whoever comes by next.
    pub async fn notify_if_complete(
        &self,
        me: &InstanceId,
        right: &str,
        mission: &Mission,
        is_lost: bool,
    ) -> Result<bool, NodeError> {
        let total = self.tally(mission).await?;
        if !mission.is_complete(total) {
            self.roll_up(mission, total).await?;
            return Ok(false);
        }
        let publication = Publication { by: me.clone(), token: digest_hex(&[me.as_str(), right], 32) };
        for look in 0..LOOKS_MAX {
            if look > 0 {
                // Both arms may be dropped: neither holds anything.
                tokio::select! {
                    () = tokio::time::sleep(LOOK_PAUSE) => {}
                    () = self.stop.cancelled() => return Ok(false),
                }
            }
            let Some(fresh) = self.fresh(&mission.id).await? else { return Ok(false) };
            // After the row: what opens the mission from here on makes the row another.
            let total = self.tally(&fresh).await?;
            if !fresh.is_complete(total) {
                self.roll_up(&fresh, total).await?;
                return Ok(false);
            }
            let is_lost = match &fresh.notified {
                Notified::Yes => {
                    self.roll_up(&fresh, total).await?;
                    return Ok(false);
                }
                Notified::No => false,
                Notified::Sending { token, .. } if *token == publication.token => false,
                Notified::Sending { by, .. } => {
                    let is_lost = is_lost && fresh.notified == mission.notified;
                    if !is_lost && !self.backend.machine.is_gone(by).await.unwrap_or(false) {
                        return Ok(false);
                    }
                    true
                }
            };
            let ledger = &self.backend.ledger;
            let begun = retry_transient_unless(&self.stop, self.patience, || {
                ledger.begin_publication(&fresh, &publication, is_lost, total)
            })
            .await;
            if begun.map_err(NodeError::cloud("becoming the mission's publisher"))? {
                return self.publish(&fresh, total, &publication).await;
            }
        }
        Ok(false)
    }

    async fn fresh(&self, id: &MissionId) -> Result<Option<Mission>, NodeError> {
        let read = retry_transient_unless(&self.stop, self.patience, || self.backend.ledger.mission(id)).await;
        read.map_err(NodeError::cloud("reading the mission"))
    }

    async fn tally(&self, mission: &Mission) -> Result<Tally, NodeError> {
        let sum = retry_transient_unless(&self.stop, self.patience, || self.backend.ledger.tally(mission)).await;
        Ok(mission.total(sum.map_err(NodeError::cloud("reading the tally"))?))
    }

    async fn roll_up(&self, mission: &Mission, total: Tally) -> Result<(), NodeError> {
        if !mission.wants_roll_up(total) {
            return Ok(());
        }
        let rolled =
            retry_transient_unless(&self.stop, self.patience, || self.backend.ledger.roll_up(mission, total)).await;
        rolled.map_err(NodeError::cloud("rolling the tally up"))
    }

    /// Publishes, and renews the publisher's lease meanwhile. Returns whether it sent the message: if the lease is lost, another
    /// publishes, or the mission was opened.
    async fn publish(&self, mission: &Mission, total: Tally, publication: &Publication) -> Result<bool, NodeError> {
        let is_sending = AtomicBool::new(false);
        // The message and what comes after it are not broken off by a lost lease: either arm of the select may be dropped
        // before, for parts of a manifest are aborted, or belong to the successor.
        let renewals = async {
            loop {
                tokio::time::sleep(self.patience / RENEWALS).await;
                let renewed = self.backend.ledger.renew_publication(&mission.id, publication, None).await;
                match renewed {
                    Ok(true) => {}
                    Ok(false) if is_sending.load(Ordering::SeqCst) => std::future::pending().await,
                    Ok(false) => return,
                    // The next one may arrive; if none does, a successor waits for a whole lease.
                    Err(error) => tracing::warn!("the publisher's lease was not renewed: {error}: {}", error.source),
                }
            }
        };
        tokio::select! {
            published = self.publish_held(mission, total, publication, &is_sending) => published,
            () = renewals => {
                tracing::warn!("mission {} is announced by another, or was opened again", mission.id);
                Ok(false)
            }
        }
    }

    async fn publish_held(
        &self,
        mission: &Mission,
        total: Tally,
        publication: &Publication,
        is_sending: &AtomicBool,
    ) -> Result<bool, NodeError> {
        // A mission whose every node lacked the bucket has failed, and its people must be notified all the more.
        let now = clock::now_rfc3339();
        let key = manifest_key(&mission.id);
        let (manifest, results) = match self.result_bucket.as_deref() {
            None => ("none: no result bucket is set".to_owned(), Some(Vec::new())),
            Some(bucket) => match self.write_manifest(mission, total, publication, (bucket, &key), &now).await {
                Ok(results) => (uri(bucket, &key), results),
                // The end is announced all the same.
                Err(NodeError::Store { source: error @ StoreError::Taken { .. }, .. }) => {
                    tracing::error!("mission {} is announced without a manifest: {error}", mission.id);
                    (format!("none: {error}"), Some(Vec::new()))
                }
                Err(error) => return Err(error),
            },
        };
        let ledger = &self.backend.ledger;
        let to = self.topic_arn.as_deref().unwrap_or("none");
        let results = result_list(&mission.results, results.as_deref(), &manifest);
        let announcement = Announcement { results: &results, manifest: &manifest, to, now: &now };
        let prepared = retry_transient_unless(&self.stop, self.patience, || {
            ledger.prepare_publication(mission, publication, total, &announcement)
        })
        .await;
        if !prepared.map_err(NodeError::cloud("writing what the mission came to"))? {
            tracing::warn!("mission {} is announced by another, or was opened again", mission.id);
            return Ok(false);
        }
        is_sending.store(true, Ordering::SeqCst);
        if let Some(topic) = &self.topic_arn {
            let message = message(mission, total, &manifest, &now);
            // Not retried here: a repeat of one that arrived notifies people twice.
            let sent = self.backend.notifier.publish(topic, &message).await;
            sent.map_err(NodeError::cloud("publishing the mission's end"))?;
        } else {
            tracing::warn!("mission {} is over, but no topic is set: no notification is sent", mission.id);
        }
        // Retried whatever the node is told: without the mark, the next one notifies people once more.
        let marked = retry_transient(self.patience, || ledger.end_publication(&mission.id, publication)).await;
        if marked.map_err(NodeError::cloud("marking the mission as announced"))? {
            tracing::info!(mission = %mission.id, ok = total.ok, failed = total.failed, "mission {} is announced", mission.id);
        } else {
            tracing::warn!(
                "mission {} was announced, but the mark was no longer ours: it was opened again, or another published too",
                mission.id
            );
        }
        Ok(true)
    }

    /// Writes the list of the mission's tasks, from where an earlier publisher has stopped, and returns the results for the
    /// row; `None` if they are more than it may hold.
    async fn write_manifest(
        &self,
        mission: &Mission,
        total: Tally,
        publication: &Publication,
        (bucket, key): (&str, &str),
        now: &str,
    ) -> Result<Option<Vec<String>>, NodeError> {
        let wrong = |source| NodeError::Store { doing: "storing the manifest", source };
        let (store, ledger) = (&self.backend.store, &self.backend.ledger);
        let writer = || store.writer(bucket, key, Mark::of_mission(ledger.tables(), &mission.id), self.patience);
        let begun = mission.manifest_progress.clone().filter(|progress| progress.opened == mission.opened);
        let mut list = match begun {
            Some(progress) => List::resume(writer(), progress),
            None => List::begin(writer(), mission, total, now).await.map_err(wrong)?,
        };
        let mut noted_at = Instant::now();
        loop {
            let after = list.after.clone();
            let page = retry_transient_unless(&self.stop, self.patience, || {
                ledger.task_page(Some(&mission.id), after.as_deref())
            })
            .await;
            let (tasks, last) = page.map_err(NodeError::cloud("listing the mission's tasks"))?;
            let added = list.add(&tasks).await;
            if let Err(error) = added {
                return Err(self.without_progress(mission, publication, wrong(error)).await);
            }
            let Some(last) = last else { break };
            list.after = Some(last);
            // A small manifest is written in one go; of a large one each part is noted.
            if noted_at.elapsed() < self.patience / RENEWALS {
                continue;
            }
            let stored = list.checkpoint(mission.opened).await;
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => return Err(self.without_progress(mission, publication, wrong(error)).await),
            };
            if let Some(progress) = stored {
                noted_at = Instant::now();
                let noted = retry_transient_unless(&self.stop, self.patience, || {
                    ledger.renew_publication(&mission.id, publication, Some(&progress))
                })
                .await;
                noted.map_err(NodeError::cloud("noting how far the manifest is"))?;
            }
        }
        match list.finish().await {
            Ok(results) => Ok(results),
            Err(error @ StoreError::Taken { .. }) => Err(wrong(error)),
            Err(error) => Err(self.without_progress(mission, publication, wrong(error)).await),
        }
    }

    /// A manifest that could not be gone on with is begun again by the next publisher, for its parts may be gone.
    async fn without_progress(&self, mission: &Mission, publication: &Publication, error: NodeError) -> NodeError {
        if let Err(error) = self.backend.ledger.forget_manifest(&mission.id, publication).await {
            tracing::warn!("how far the manifest is was not removed: {error}: {}", error.source);
        }
        error
    }
}

/// Notifies people if the mission is complete, now that a task of it has ended. During a drain this is left to others if a
/// service is unavailable, or if it takes too long: a sweep does it then, and takes over from a publisher that was
/// interrupted.
pub(super) async fn notify_unless_drained(
    node: &Node,
    me: &InstanceId,
    src: &SrcId,
    mission: &Mission,
) -> Result<(), NodeError> {
    let notifier = CompletionNotifier::for_node(node);
    let notified = tokio::select! {
        notified = node.step(Step::Notify, notifier.notify_if_complete(me, src.as_str(), mission, false)) => notified,
        () = node.stopping.writes_are_over() => {
            tracing::warn!("whether mission {} is complete is left to others: the node drains", mission.id);
            return Ok(());
        }
    };
    or_drained(node, notified).map(drop)
}

/// The manifest as it is written: a mission may have millions of tasks.
struct List {
    out: PutWriter,
    /// The results for the mission's row; `None`: more than it may hold.
    results: Option<Vec<String>>,
    count: u64,
    /// The key of the last row that was read.
    after: Option<String>,
}

impl List {
    async fn begin(mut out: PutWriter, mission: &Mission, total: Tally, now: &str) -> Result<Self, StoreError> {
        let head = serde_json::json!({
            "mission": mission.id.as_str(), "accomplishedAt": now, "transNumber": mission.trans_number,
            "transOK": total.ok, "transFailed": total.failed, "timeCost": total.time_cost_s,
        });
        let head = head.to_string();
        out.write(format!("{},\n\"tasks\": [", head.trim_end_matches('}')).as_bytes()).await?;
        Ok(Self { out, results: Some(Vec::new()), count: 0, after: None })
    }

    fn resume(mut out: PutWriter, progress: ManifestProgress) -> Self {
        tracing::info!(tasks = progress.tasks, "the manifest is gone on with after {} tasks", progress.tasks);
        let (count, after) = (progress.tasks, Some(progress.after));
        out.resume(progress.upload, &progress.parts);
        // A list that is stored in parts has more results than the row may hold.
        Self { out, results: None, count, after }
    }

    async fn add(&mut self, tasks: &[Task]) -> Result<(), StoreError> {
        for task in tasks {
            let entry = serde_json::json!({
                "srcFilename": task.src.as_str(), "state": task.state.as_str(), "attempt": task.attempt.0,
                "rsltFilename": task.result, "resultETag": task.result_etag, "resultBytes": task.result_bytes,
                "timeCost": task.time_cost_s, "verdict": task.verdict.map(crate::domain::verdict::Verdict::as_str),
                "exitCode": task.exit_code,
            });
            let comma = if self.count > 0 { "," } else { "" };
            self.count += 1;
            self.out.write(format!("{comma}\n{entry}").as_bytes()).await?;
            if task.state == State::Done {
                self.results = self.results.take().filter(|results| results.len() < RESULT_LIST_LEN_MAX);
                if let Some(results) = &mut self.results {
                    results.extend(task.result.clone());
                }
            }
        }
        Ok(())
    }

    /// Stores what was added as a part, if it is enough for one; returns how far the list is then.
    async fn checkpoint(&mut self, opened: u64) -> Result<Option<ManifestProgress>, StoreError> {
        let Some(after) = self.after.clone() else { return Ok(None) };
        let Some((upload, parts)) = self.out.store_part().await? else { return Ok(None) };
        Ok(Some(ManifestProgress { upload, parts, tasks: self.count, after, opened }))
    }

    async fn finish(mut self) -> Result<Option<Vec<String>>, StoreError> {
        self.out.write(b"\n]}\n").await?;
        self.out.finish().await?;
        Ok(self.results)
    }
}

/// The message, in the article's words, with what the article left out.
fn message(mission: &Mission, total: Tally, manifest: &str, now: &str) -> Message {
    let id = &mission.id;
    // A name of several lines must not add some to the message.
    let (shown, manifest) = (printable::one_line(id.as_str()), printable::one_line(manifest));
    let failed = if total.failed > 0 { format!(" with {} failed", total.failed) } else { String::new() };
    let text = format!(
        "HPC mission {shown} accomplished at {now}{failed}.\n\n\
         tasks: {}\nok: {}\nfailed: {}\ntime cost: {} s of workload time\nmanifest: {manifest}\n",
        mission.trans_number.unwrap_or_else(|| total.ended()),
        total.ok,
        total.failed,
        total.time_cost_s,
    );
    // A mission that is opened again (redriven, enlarged) and ends again has another count of changes: another message.
    let deduplication = digest_hex(&[id.as_str(), &total.seq.to_string()], 64);
    Message { subject: format!("HPC mission {shown} accomplished{failed}"), text, group: id.to_string(), deduplication }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::MissionId;

    #[test]
    fn the_message_is_in_the_articles_words() {
        let mission = Mission { trans_number: Some(3), ..Mission::unknown(MissionId::new("M001").unwrap()) };
        let total = Tally { ok: 2, failed: 1, time_cost_s: 31, seq: 3 };

        let message = message(&mission, total, "s3://r/manifests/M001.json", "2026-02-03T04:05:06Z");

        assert_eq!(message.subject, "HPC mission M001 accomplished with 1 failed");
        assert_eq!(
            message.text,
            "HPC mission M001 accomplished at 2026-02-03T04:05:06Z with 1 failed.\n\n\
             tasks: 3\nok: 2\nfailed: 1\ntime cost: 31 s of workload time\nmanifest: s3://r/manifests/M001.json\n"
        );
    }

    #[test]
    fn a_name_of_several_lines_adds_none_to_the_message() {
        let id = MissionId::new("M\r\nmanifest: https://evil.example\u{1b}[2J\u{202e}").unwrap();
        let total = Tally { ok: 1, failed: 0, time_cost_s: 0, seq: 1 };
        let message = message(&Mission::unknown(id), total, "s3://r/manifests/M\nx.json", "2026-02-03T04:05:06Z");
        assert_eq!(message.text.lines().count(), 7, "{}", message.text);
        let is_plain = |text: &str| !text.contains(|c| c != '\n' && printable::is_unsafe(c));
        assert!(is_plain(&message.text) && is_plain(&message.subject), "{message:?}");
    }
}
