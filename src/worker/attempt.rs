//! An attempt at one task: what it holds from the claim to the task's end or release.
//!
//! `work.rs` downloads, runs the workload (`execute.rs`), and uploads; `finish.rs` writes the row. `task.rs` calls them
//! in order.

use std::sync::Arc;

use super::ahead::Slot;
use super::checkpoint::Checkpoints;
use super::claim::Held;
use super::disk::Place;
use super::heartbeat::{Heartbeat, Periods, TimeCost};
use super::host::Host;
use super::log;
use super::outcome::StopReason;
use super::result::StoredResult;
use crate::backend::ledger::Fence;
use crate::clock;
use crate::domain::ids::{self, InstanceId};
use crate::domain::machine_info::MachineInfo;
use crate::domain::mission::Mission;
use crate::domain::task::{AttemptEnd, Marks, PastAttempt, Task};
use crate::domain::verdict::Verdict;
use crate::workload::WorkloadEnv;

/// An attempt at a task that this node holds.
pub(super) struct Attempt {
    pub(super) host: Host,
    pub(super) fence: Fence,
    /// The row as the claim left it.
    pub(super) row: Box<Task>,
    /// Renews the lease.
    pub(super) heartbeat: Heartbeat,
    /// The task's mission, once it is read.
    pub(super) mission: Option<Mission>,
    /// The mission in whose tally the task's end was counted.
    pub(super) counted_in: Option<Mission>,
    /// The workload's folder and environment, once they are made.
    pub(super) env: Option<Arc<WorkloadEnv>>,
    /// The checkpoints, once the last one is restored.
    pub(super) checkpoints: Option<Checkpoints>,
    /// The input's `ETag`, once it is downloaded.
    pub(super) input_etag: Option<String>,
    /// Whether the task had another one beside it in its slot, until its workload started.
    pub(super) is_ahead: bool,
    /// Whether the workload has started.
    pub(super) has_started: bool,
    /// The workload's exit code, if it succeeded.
    pub(super) exit_code: Option<i32>,
    /// Milliseconds of workload time, all attempts together.
    pub(super) time_cost_ms: u64,
    /// Where the log of the attempt before this one is, if that attempt left no entry in the history.
    pub(super) lost_log: Option<String>,
    /// Registers the folder with the disk's accounting, for as long as it is kept.
    pub(super) place: Option<Place>,
    started: String,
    /// The owner of the expired lease that this attempt took over.
    taken_from: Option<InstanceId>,
}

impl Attempt {
    /// Starts the heartbeat of a task that was just claimed.
    pub(super) fn start(host: Host, held: Held) -> Self {
        let Held { row, claimed_at, taken_from } = held;
        let fence = host.instance.fence(&row);
        let (ledger, settings) = (host.node.backend.ledger.clone(), &host.node.settings);
        let periods = Periods { lease: settings.lease, heartbeat: settings.heartbeat };
        let time_cost = TimeCost::new(row.time_cost_ms);
        let heartbeat = Heartbeat::start(ledger, fence.clone(), periods, claimed_at, time_cost);
        Self {
            fence,
            heartbeat,
            mission: None,
            counted_in: None,
            env: None,
            checkpoints: None,
            input_etag: None,
            is_ahead: host.slot.as_ref().is_some_and(Slot::has_another_task),
            has_started: false,
            exit_code: None,
            time_cost_ms: row.time_cost_ms,
            lost_log: None,
            place: None,
            started: clock::now_rfc3339(),
            taken_from,
            row,
            host,
        }
    }

    /// Returns whether its workload has not started, and could not yet: its slot had, or has, another task.
    pub(super) fn waited_for_slot(&self) -> bool {
        let has_another = || self.host.slot.as_ref().is_some_and(Slot::has_another_task);
        !self.has_started && (self.is_ahead || has_another())
    }

    /// Notes how long the workload ran, for the row.
    pub(super) fn note_time_cost(&mut self) {
        self.time_cost_ms = self.heartbeat.time_cost.borrow().ms();
    }

    /// Returns where the log of the attempt before this one is, if that attempt left no entry in the history.
    pub(super) async fn find_lost_log(&self) -> Option<String> {
        let node = &self.host.node;
        let bucket = node.settings.result_bucket.as_deref();
        log::find_lost(&node.backend, bucket, &self.fence.src, self.lost_before()?).await
    }

    /// Returns the number of the attempt before this one, if that attempt left no entry in the history.
    fn lost_before(&self) -> Option<ids::AttemptNumber> {
        let before = ids::AttemptNumber(self.fence.attempt.0.saturating_sub(1));
        let last = self.row.history.last().map_or(ids::AttemptNumber(0), |past| past.attempt);
        (last < before).then_some(before)
    }

    /// Returns the task's history with the end of this attempt. An attempt before it that left no entry is entered as
    /// lost.
    pub(super) async fn history(&self, end: AttemptEnd, log: Option<String>) -> Vec<PastAttempt> {
        let mut row = self.row.clone();
        let now = clock::now_rfc3339();
        if let Some(before) = self.lost_before() {
            let lost = PastAttempt {
                attempt: before,
                // Without a takeover it was this very instance, before a restart.
                instance: self.taken_from.as_ref().unwrap_or(&self.fence.owner).to_string(),
                machine: MachineInfo::default(),
                started: String::new(),
                ended: self.started.clone(),
                end: AttemptEnd::of(Verdict::Lost, "the instance stopped renewing the lease and gave no reason"),
                marks: Marks::default(),
                // An attempt that ended early has not searched for it.
                log: if self.lost_log.is_some() { self.lost_log.clone() } else { self.find_lost_log().await },
            };
            row.history = row.history_with(lost);
        }
        row.history_with(PastAttempt {
            attempt: self.fence.attempt,
            instance: self.fence.owner.to_string(),
            machine: self.host.instance.machine_info(),
            started: self.started.clone(),
            ended: now,
            end,
            marks: Marks {
                spot_notice_at: self.host.spot.seen_at.get().cloned(),
                checkpoint_at: self.checkpoints.as_ref().and_then(|saved| saved.saved_at().map(ToOwned::to_owned)),
            },
            log,
        })
    }

    /// Decides whether a full disk is this task's own doing, while the attempt's folder still exists. If it is not, no
    /// budget counts the failure.
    pub(super) async fn attribute_full_disk(
        &self,
        mut worked: Result<StoredResult, StopReason>,
    ) -> Result<StoredResult, StopReason> {
        if let Err(StopReason::Failed(failure)) = &mut worked
            && failure.class.verdict == Verdict::DiskFull
        {
            // A task that was claimed ahead took room on the disk: from now on, none is.
            if self.host.slot.as_ref().is_some_and(Slot::turn_off) {
                tracing::warn!("task {}: the disk is full: no task is claimed ahead any more", self.fence.src);
                failure.class.is_counted = false;
                return worked;
            }
            let settings = &self.host.node.settings;
            let folder = self.env.as_ref().map_or(&*settings.work_dir, |env| env.folder());
            let is_counted = settings.disk.is_to_blame(folder, failure.error.wanted_bytes()).await;
            if !is_counted {
                tracing::warn!("task {}: the disk is full of other tasks' files: nothing counts it", self.fence.src);
            }
            failure.class.is_counted = is_counted;
        }
        worked
    }

    /// Removes the attempt's folder, off this thread: it may have very many files. When a drain's time is over, the
    /// rest is left to the next process.
    pub(super) async fn remove_folder(&self) {
        let Some(env) = self.env.clone() else { return };
        let (folder, stop) = (env.folder().to_owned(), self.host.node.stopping.token().clone());
        let removed = lighthpc_runtime::blocking(move || env.remove_unless(&stop)).await;
        if let Err(error) = removed.map_err(std::io::Error::other).flatten() {
            tracing::warn!("the folder {} is left behind: {error}", folder.display());
        }
    }
}
