//! Step 8: the mission's tally, and at its end the manifest and the notification.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::insist::insist;
use super::{Node, NodeError};
use crate::backend::Backend;
use crate::backend::ledger::Publication;
use crate::backend::notifier::Message;
use crate::backend::store::uri;
use crate::clock;
use crate::domain::ids::InstanceId;
use crate::domain::keys::{digest_hex, manifest_key};
use crate::domain::mission::{Mission, Notified, RESULT_LIST_LEN_MAX, Tally, result_list};
use crate::domain::task::{State, Task};

/// What it takes to look whether a mission is over, and to say so.
#[derive(Clone, Debug)]
pub struct Announcer {
    /// The services.
    pub backend: Backend,
    /// The bucket of manifests.
    pub result_bucket: Option<String>,
    /// The topic.
    pub topic_arn: Option<String>,
    /// Where the manifest is made.
    pub work_dir: PathBuf,
    /// How long trouble that may pass is borne.
    pub patience: Duration,
}

impl Announcer {
    pub(super) fn of(node: &Node) -> Self {
        let settings = &node.settings;
        Self {
            backend: node.backend.clone(),
            result_bucket: settings.result_bucket.clone(),
            topic_arn: settings.topic_arn.clone(),
            work_dir: settings.work_dir.clone(),
            patience: settings.lease,
        }
    }

    /// Looks whether the mission is over; if it is and nobody has said so, says so. Returns whether it did.
    ///
    /// Every committer comes here after its own commit, so the last one sees the full count. Exactly one becomes the
    /// publisher; a publisher that died is replaced by whoever comes by and learns that it is gone.
    ///
    /// `me` and `right` name the publisher: the same pair may publish again after its restart. `dead` is a publisher that the
    /// caller knows to be gone, though EC2 cannot say so of it.
    ///
    /// # Errors
    /// [`NodeError`]; the mission is then looked at by whoever comes by next.
    pub async fn see(
        &self,
        me: &InstanceId,
        right: &str,
        mission: &Mission,
        dead: Option<&str>,
    ) -> Result<bool, NodeError> {
        let ledger = &self.backend.ledger;
        let limit = self.patience;
        let sum = insist(limit, || ledger.tally(mission)).await.map_err(NodeError::cloud("reading the tally"))?;
        let total = mission.total(sum);
        if !mission.is_complete(total) {
            if mission.wants_roll_up(total) {
                insist(limit, || ledger.roll_up(mission, total))
                    .await
                    .map_err(NodeError::cloud("rolling the tally up"))?;
            }
            return Ok(false);
        }
        // The row as it is now: it may have grown, and it knows whether somebody publishes.
        let fresh =
            insist(limit, || ledger.mission(&mission.id)).await.map_err(NodeError::cloud("reading the mission"))?;
        let Some(mission) = fresh else { return Ok(false) };
        let total = mission.total(sum);
        let other = match &mission.notified {
            Notified::Yes => return Ok(false),
            Notified::No => None,
            Notified::Sending { by } => Some(by.clone()).filter(|by| by != me.as_str()),
        };
        if !mission.is_complete(total) {
            return Ok(false);
        }
        let dead = match other {
            Some(by) if Some(by.as_str()) == dead => Some(by),
            Some(by) if self.backend.machine.is_gone(&by).await.unwrap_or(false) => Some(by),
            _ => None,
        };
        let publication = Publication { by: me.clone(), token: digest_hex(&[me.as_str(), right], 32) };
        let won = insist(limit, || ledger.begin_publication(&mission, &publication, dead.as_deref(), total));
        if won.await.map_err(NodeError::cloud("becoming the mission's publisher"))? {
            publish(self, &mission, total, &publication).await?;
            return Ok(true);
        }
        Ok(false)
    }
}

async fn publish(
    announcer: &Announcer,
    mission: &Mission,
    total: Tally,
    publication: &Publication,
) -> Result<(), NodeError> {
    // A mission whose every node lacked the bucket has failed, and its people must hear of it all the more.
    let bucket = announcer.result_bucket.as_deref();
    let now = clock::now_rfc3339();
    let key = manifest_key(&mission.id);
    let manifest = bucket.map_or_else(|| "none: no result bucket is set".to_owned(), |bucket| uri(bucket, &key));
    let results = write_manifest(announcer, mission, total, &now, bucket, &key).await?;

    if let Some(topic) = &announcer.topic_arn {
        let message = message(mission, total, &manifest, &now);
        // Not insisted on: a repeat of one that arrived tells people twice.
        let sent = announcer.backend.notifier.publish(topic, &message).await;
        sent.map_err(NodeError::cloud("publishing the mission's end"))?;
    } else {
        tracing::warn!("mission {} is over, but no topic is set: nobody is told", mission.id);
    }
    let list = result_list(&mission.results, &results, &manifest);
    let ledger = &announcer.backend.ledger;
    let end = || ledger.end_publication(mission, publication, total, &list, &manifest, &now);
    let marked = insist(announcer.patience, end).await;
    if marked.map_err(NodeError::cloud("marking the mission as announced"))? {
        tracing::info!(mission = %mission.id, ok = total.ok, failed = total.failed, "mission {} is announced", mission.id);
    } else {
        tracing::warn!(
            "mission {} was announced, but the mark was no longer ours: it was opened again, or another published too",
            mission.id
        );
    }
    Ok(())
}

/// The message, in the article's words, with what the article left out.
fn message(mission: &Mission, total: Tally, manifest: &str, now: &str) -> Message {
    let id = &mission.id;
    let failed = if total.failed > 0 { format!(" with {} failed", total.failed) } else { String::new() };
    let text = format!(
        "HPC mission {id} accomplished at {now}{failed}.\n\n\
         tasks: {}\nok: {}\nfailed: {}\ntime cost: {} s of workload time\nmanifest: {manifest}\n",
        mission.trans_number.unwrap_or_else(|| total.ended()),
        total.ok,
        total.failed,
        total.time_cost_s,
    );
    // A mission that is opened again (redriven, enlarged) and ends again has another count of changes: another message.
    let deduplication = digest_hex(&[id.as_str(), &total.seq.to_string()], 64);
    Message { subject: format!("HPC mission {id} accomplished{failed}"), text, group: id.to_string(), deduplication }
}

/// Writes the list of the mission's tasks, and returns the results for the row, as many as it may hold and one.
async fn write_manifest(
    announcer: &Announcer,
    mission: &Mission,
    total: Tally,
    now: &str,
    bucket: Option<&str>,
    key: &str,
) -> Result<Vec<String>, NodeError> {
    let folder = &announcer.work_dir;
    let path =
        folder.join(format!("manifest-{}-{:08x}", digest_hex(&[mission.id.as_str()], 16), rand::random::<u32>()));
    let disk = |source| NodeError::Disk { doing: "writing the manifest", path: path.clone(), source };
    let file = std::fs::create_dir_all(folder).and_then(|()| std::fs::File::create(&path)).map_err(disk)?;
    let mut writer = ManifestWriter { out: BufWriter::new(file), results: Vec::new(), count: 0, error: None };
    writer.begin(mission, total, now);
    let scan = announcer.backend.ledger.each_task(Some(&mission.id), |task| writer.task(&task)).await;
    let written = writer.end();
    let put = match (scan, written) {
        (Err(error), _) => Err(NodeError::cloud("listing the mission's tasks")(error)),
        (_, Err(error)) => Err(disk(error)),
        (Ok(()), Ok(results)) => put(announcer, bucket, key, &path).await.map(|()| results),
    };
    std::fs::remove_file(&path).map_err(disk)?;
    put
}

async fn put(announcer: &Announcer, bucket: Option<&str>, key: &str, path: &Path) -> Result<(), NodeError> {
    let Some(bucket) = bucket else { return Ok(()) };
    let put = insist(announcer.patience, || announcer.backend.store.put_file(bucket, key, path)).await;
    put.map(|_| ()).map_err(|source| NodeError::Store { doing: "storing the manifest", source })
}

/// Writes the manifest as it comes: a mission may have a hundred thousand tasks.
struct ManifestWriter {
    out: BufWriter<std::fs::File>,
    results: Vec<String>,
    count: u64,
    error: Option<io::Error>,
}

impl ManifestWriter {
    fn begin(&mut self, mission: &Mission, total: Tally, now: &str) {
        let head = serde_json::json!({
            "mission": mission.id.as_str(), "accomplishedAt": now, "transNumber": mission.trans_number,
            "transOK": total.ok, "transFailed": total.failed, "timeCost": total.time_cost_s,
        });
        let head = head.to_string();
        self.write(&format!("{},\n\"tasks\": [", head.trim_end_matches('}')));
    }

    fn task(&mut self, task: &Task) {
        let entry = serde_json::json!({
            "srcFilename": task.src.as_str(), "state": task.state.as_str(), "attempt": task.attempt.0,
            "rsltFilename": task.result, "resultETag": task.result_etag, "resultBytes": task.result_bytes,
            "timeCost": task.time_cost_s, "verdict": task.verdict.map(crate::domain::verdict::Verdict::as_str),
            "exitCode": task.exit_code,
        });
        let comma = if self.count > 0 { "," } else { "" };
        self.count += 1;
        self.write(&format!("{comma}\n{entry}"));
        if task.state == State::Done && self.results.len() <= RESULT_LIST_LEN_MAX {
            self.results.extend(task.result.clone());
        }
    }

    fn write(&mut self, text: &str) {
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).err();
        }
    }

    fn end(mut self) -> io::Result<Vec<String>> {
        self.write("\n]}\n");
        match self.error {
            Some(error) => Err(error),
            None => self.out.flush().map(|()| self.results),
        }
    }
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
}
