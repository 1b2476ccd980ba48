//! A mission is cancelled: nothing new begins, what runs is asked to stop, and each task ends as failed.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::sweep::tally_of;
use super::{Scheduler, SchedulerError};
use crate::backend::CloudError;
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::mission::Mission;
use crate::domain::task::{State, Task};
use crate::domain::verdict::Verdict;

/// What a cancellation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Tasks that waited and have ended.
    pub ended: u64,
    /// Tasks that ran and were asked to stop.
    pub asked: u64,
    /// Tasks that still run: a sweep ends those that do not answer.
    pub running: u64,
    /// Instances that were ended.
    pub instances: Vec<String>,
}

/// The pause between two looks at what still runs.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Tasks under way at once: a transaction takes about 10 ms, so this is some thousands a second.
const TASKS_PARALLEL: usize = 32;

/// What became of one open task.
enum Step {
    Ended,
    Asked,
    Runs,
    None,
}

impl Scheduler {
    /// Cancels a mission, and waits up to `patience` for what runs: a node finds it at its next heartbeat, ends the workload,
    /// saves its log, and ends the task.
    ///
    /// May be called twice: the second goes on where the first was.
    ///
    /// # Errors
    /// [`SchedulerError`]; what was ended by then stays so.
    pub async fn cancel(&self, id: &MissionId, patience: Duration) -> Result<Cancelled, SchedulerError> {
        let ledger = &self.backend.ledger;
        let now = clock::now_rfc3339();
        let marked = ledger.cancel_mission(id, &now).await.map_err(SchedulerError::cloud("cancelling the mission"))?;
        if !marked {
            return Err(SchedulerError::NoMission(id.to_string()));
        }
        let mission = self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))?;
        let mut cancelled = Cancelled::default();
        let until = Instant::now() + patience;
        let mut is_quiet = false;
        loop {
            let mut open = self.open(Some(id), mission.tally_shards, State::Pending).await?;
            open.extend(self.open(Some(id), mission.tally_shards, State::Running).await?);
            let tasks = ledger.tasks(&open).await.map_err(SchedulerError::cloud("reading open tasks"))?;
            cancelled.running = 0;
            let mut changed = false;
            let mut error = None;
            for steps in tasks.chunks(TASKS_PARALLEL) {
                let steps: JoinSet<_> =
                    steps.iter().map(|task| step(self.clone(), task.clone(), mission.clone(), now.clone())).collect();
                for step in steps.join_all().await {
                    match step {
                        Ok(Step::Ended) => cancelled.ended += 1,
                        Ok(Step::Asked) => cancelled.asked += 1,
                        Ok(Step::Runs) | Err(_) => {}
                        Ok(Step::None) => continue,
                    }
                    changed |= !matches!(step, Ok(Step::Runs));
                    cancelled.running += u64::from(matches!(step, Ok(Step::Asked | Step::Runs)));
                    error = step.err().or(error);
                }
                if Instant::now() >= until {
                    break;
                }
            }
            if let Some(error) = error.filter(|error| !error.is_retryable() || Instant::now() >= until) {
                return Err(SchedulerError::cloud("ending a task")(error));
            }
            // Twice the same: the index lags, and a node may have claimed in between.
            if cancelled.running == 0 && !changed && is_quiet || Instant::now() >= until {
                break;
            }
            is_quiet = cancelled.running == 0 && !changed;
            tokio::time::sleep(LOOK_PERIOD.min(patience)).await;
        }
        if cancelled.running == 0 {
            cancelled.instances = self.end_instances(id).await?;
        }
        self.announce(&mission, None).await?;
        Ok(cancelled)
    }

    async fn end_instances(&self, id: &MissionId) -> Result<Vec<String>, SchedulerError> {
        let instances = self.backend.fleet.ours(self.mark()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing our instances"))?;
        let its: Vec<String> = instances
            .into_iter()
            .filter(|ours| ours.mission.as_deref() == Some(id.as_str()))
            .map(|ours| ours.id)
            .collect();
        self.backend.fleet.terminate(&its).await.map_err(SchedulerError::cloud("ending instances"))?;
        Ok(its)
    }
}

/// Ends a task that waits, or asks its holder to.
async fn step(scheduler: Scheduler, task: Task, mission: Mission, now: String) -> Result<Step, CloudError> {
    let ledger = &scheduler.backend.ledger;
    match task.state {
        State::Pending => {
            let tally = tally_of(&task, Some(&mission));
            let is_ended = ledger.fail(&task, tally.as_ref(), Verdict::Cancelled, None).await?;
            // If it is not, it has gone on: the next look sees how.
            Ok(if is_ended { Step::Ended } else { Step::Runs })
        }
        State::Running if task.cancelled => Ok(Step::Runs),
        State::Running => Ok(if ledger.ask_to_cancel(&task, &now).await? { Step::Asked } else { Step::Runs }),
        State::Done | State::Failed => Ok(Step::None),
    }
}
