//! Sets failed tasks to pending again, with their attempts counted from zero.

use std::collections::HashSet;

use super::launch::LaunchResult;
use super::sweep::tally_of;
use super::{Scheduler, SchedulerError};
use crate::backend::error_chain;
use crate::backend::ledger::Redrive;
use crate::clock;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::task::{Launch, State, Task};
use crate::domain::verdict::Verdict;

/// The result of a redrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Tasks that became pending.
    pub put_back: u64,
    /// Nodes that were launched for them.
    pub launched: u64,
    /// The reasons why others have no node yet, each once.
    pub waits: Vec<String>,
    /// Given tasks that are not failed, or not of this mission.
    pub others: Vec<String>,
    /// Whether the mission was cancelled and was reinstated.
    pub is_reinstated: bool,
}

impl Scheduler {
    /// Sets a mission's failed tasks to pending again: all, those with one verdict, or the given ones. Reinstates a
    /// cancelled mission.
    ///
    /// May be repeated: pending tasks do not change.
    ///
    /// # Errors
    /// [`SchedulerError`]. Tasks that were returned before the error stay pending.
    pub async fn redrive(
        &self,
        id: &MissionId,
        verdict: Option<Verdict>,
        srcs: &[SrcId],
    ) -> Result<Redriven, SchedulerError> {
        let mut mission = self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))?;
        let ledger = &self.backend.ledger;
        let wanted: HashSet<&SrcId> = srcs.iter().collect();
        let mut redriven = Redriven::default();
        let is_meant = |task: &Task| {
            task.state == State::Failed
                && task.mission.as_ref() == Some(id)
                && verdict.is_none_or(|verdict| task.verdict == Some(verdict))
        };
        let mut tasks = Vec::new();
        if srcs.is_empty() {
            let each = |task: Task| tasks.extend(Some(task).filter(is_meant));
            ledger.each_task(Some(id), each).await.map_err(SchedulerError::cloud("listing the mission's tasks"))?;
        } else {
            let rows = ledger.tasks(srcs).await.map_err(SchedulerError::cloud("reading tasks"))?;
            tasks.extend(rows.into_iter().filter(is_meant));
        }
        let found: HashSet<&SrcId> = tasks.iter().map(|task| &task.src).collect();
        redriven.others = wanted.into_iter().filter(|src| !found.contains(*src)).map(ToString::to_string).collect();
        // Without a selection, the mission is always reinstated. With one, only if it matches a failed task.
        let is_whole = srcs.is_empty() && verdict.is_none();
        if mission.cancelled_at.is_some() && (is_whole || !tasks.is_empty()) {
            ledger.reinstate_mission(&mission).await.map_err(SchedulerError::cloud("reinstating the mission"))?;
            redriven.is_reinstated = true;
            mission = self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))?;
        }
        let mut may_launch = self.settings.template.is_some() && mission.nodes.is_none();
        for task in tasks {
            let now = clock::now_rfc3339();
            let put_back = ledger.redrive(&task, tally_of(&task, Some(&mission)).as_ref(), &now).await;
            if put_back.map_err(SchedulerError::cloud("setting a task to pending"))? == Redrive::NotFailed {
                continue;
            }
            redriven.put_back += 1;
            if !may_launch {
                continue;
            }
            // The number of tries continues, because it is a part of the next launch's token.
            let launch = Launch { tries: task.launch.tries, ..Launch::default() };
            let pending = Task { state: State::Pending, open_since: Some(now), launch, seen: None, ..task };
            match self.launch_for(&pending, Some(&mission)).await {
                Ok(LaunchResult::Launched(_)) => redriven.launched += 1,
                Ok(LaunchResult::Waits(why) | LaunchResult::Held(why)) => remember(&mut redriven.waits, why),
                Ok(LaunchResult::NotNeeded) => {}
                // The remaining tasks are returned nevertheless; a sweep launches their nodes.
                Err(error) => {
                    may_launch = error.is_transient();
                    remember(&mut redriven.waits, error_chain(&error));
                }
            }
        }
        if mission.nodes.is_some() && self.settings.template.is_some() && redriven.put_back > 0 {
            match self.launch_own(&mission).await {
                Ok(launched) => {
                    redriven.launched = launched.instances.len() as u64;
                    redriven.waits = launched.shortfall;
                }
                Err(error) => remember(&mut redriven.waits, error_chain(&error)),
            }
        }
        Ok(redriven)
    }
}

/// Adds a reason if it is new.
pub(super) fn remember(reasons: &mut Vec<String>, reason: String) {
    if !reasons.contains(&reason) {
        reasons.push(reason);
    }
}
