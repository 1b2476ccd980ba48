//! The manifest of a mission: one JSON object that lists every task.

use crate::backend::store::{PutWriter, StoreError};
use crate::domain::mission::{ManifestProgress, Mission, RESULT_LIST_LEN_MAX, Tally};
use crate::domain::task::{State, Task};
use crate::domain::verdict::Verdict;

/// Writes a manifest part by part: a mission may have millions of tasks.
pub(super) struct ManifestWriter {
    out: PutWriter,
    /// The results for the mission's row; `None`: more than it may hold.
    results: Option<Vec<String>>,
    count: u64,
    /// The key of the last row that was read.
    pub(super) after: Option<String>,
}

impl ManifestWriter {
    pub(super) async fn begin(
        mut out: PutWriter,
        mission: &Mission,
        total: Tally,
        now: &str,
    ) -> Result<Self, StoreError> {
        let head = serde_json::json!({
            "mission": mission.id.as_str(), "accomplishedAt": now, "transNumber": mission.trans_number,
            "transOK": total.ok, "transFailed": total.failed, "timeCost": total.time_cost_s(), "timeCostMs": total.time_cost_ms,
        });
        let head = head.to_string();
        out.write(format!("{},\n\"tasks\": [", head.trim_end_matches('}')).as_bytes()).await?;
        Ok(Self { out, results: Some(Vec::new()), count: 0, after: None })
    }

    pub(super) fn resume(mut out: PutWriter, progress: ManifestProgress) -> Self {
        tracing::info!(tasks = progress.tasks, "the manifest continues after {} tasks", progress.tasks);
        let (count, after) = (progress.tasks, Some(progress.after));
        out.resume(progress.upload, &progress.parts);
        // A list that is stored in parts has more results than the row may hold.
        Self { out, results: None, count, after }
    }

    pub(super) async fn add(&mut self, tasks: &[Task]) -> Result<(), StoreError> {
        for task in tasks {
            let entry = serde_json::json!({
                "srcFilename": task.src.as_str(), "state": task.state.as_str(), "attempt": task.attempt.0,
                "rsltFilename": task.result, "resultETag": task.result_etag, "resultBytes": task.result_bytes,
                "timeCost": task.time_cost_s(), "timeCostMs": task.time_cost_ms, "verdict": task.verdict.map(Verdict::as_str),
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
    pub(super) async fn checkpoint(&mut self, opened: u64) -> Result<Option<ManifestProgress>, StoreError> {
        let Some(after) = self.after.clone() else { return Ok(None) };
        let Some((upload, parts)) = self.out.store_part().await? else { return Ok(None) };
        Ok(Some(ManifestProgress { upload, parts, tasks: self.count, after, opened }))
    }

    pub(super) async fn finish(mut self) -> Result<Option<Vec<String>>, StoreError> {
        self.out.write(b"\n]}\n").await?;
        self.out.finish().await?;
        Ok(self.results)
    }
}
