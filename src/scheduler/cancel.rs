//! A mission is cancelled: nothing new begins, what runs is asked to stop, and each task ends as failed.

use std::time::Duration;

use tokio::time::Instant;

use super::sweep::tally_of;
use super::{Scheduler, SchedulerError};
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::task::State;
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
            let mut changed = 0;
            for task in tasks {
                match task.state {
                    State::Pending => {
                        let tally = tally_of(&task, Some(&mission));
                        let ended = ledger.fail(&task, tally.as_ref(), Verdict::Cancelled, None).await;
                        let ended = ended.map_err(SchedulerError::cloud("ending a task"))?;
                        cancelled.ended += u64::from(ended);
                        changed += 1;
                    }
                    State::Running => {
                        cancelled.running += 1;
                        if !task.cancelled {
                            let asked = ledger.ask_to_cancel(&task, &now).await;
                            let asked = asked.map_err(SchedulerError::cloud("asking a node to stop"))?;
                            cancelled.asked += u64::from(asked);
                            changed += 1;
                        }
                    }
                    State::Done | State::Failed => {}
                }
            }
            // Twice the same: the index lags, and a node may have claimed in between.
            if cancelled.running == 0 && changed == 0 && is_quiet || Instant::now() >= until {
                break;
            }
            is_quiet = cancelled.running == 0 && changed == 0;
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
