//! Objects that are submitted under other names than their keys: their tasks of earlier submissions, and those of events.

use std::collections::HashSet;

use super::submit::CHECKED_AT_ONCE;
use super::submit_plan::SubmitPlan;
use super::{Scheduler, SchedulerError};
use crate::backend::ledger::GivenUp;
use crate::clock;
use crate::domain::ids::SrcId;
use crate::domain::task::{AttemptEnd, State, Task};
use crate::domain::verdict::Verdict;
use crate::domain::work::{Inputs, Work};

/// Returns the name that a task of the object would have if it were named after the object's key.
fn key_of(work: &Work) -> Option<SrcId> {
    match &work.inputs {
        Inputs::Key(key) => SrcId::new(key.as_str()).ok(),
        _ => None,
    }
}

impl SubmitPlan {
    fn keys(&self) -> Vec<SrcId> {
        self.works.values().filter_map(key_of).collect()
    }
}

impl Scheduler {
    /// Keeps the names of tasks that an earlier version submitted: it named each after its object's key.
    ///
    /// # Errors
    /// [`SchedulerError::Cloud`].
    pub async fn keep_names(&self, plan: &mut SubmitPlan) -> Result<(), SchedulerError> {
        let keys = plan.keys();
        if keys.is_empty() || self.mission(&plan.mission).await?.is_none() {
            return Ok(());
        }
        let mut earlier = HashSet::new();
        // In chunks, to bound the memory for rows and their histories.
        for keys in keys.chunks(CHECKED_AT_ONCE) {
            let rows = self.backend.ledger.tasks(keys).await.map_err(SchedulerError::cloud("reading rows"))?;
            let ours = rows.into_iter().filter(|row| row.mission.as_ref() == Some(&plan.mission));
            earlier.extend(ours.map(|row| row.src));
        }
        let SubmitPlan { srcs, works, .. } = plan;
        for src in srcs {
            let key = works.get(src).and_then(key_of).filter(|key| earlier.contains(key));
            if let Some(key) = key {
                works.remove(src);
                *src = key;
            }
        }
        Ok(())
    }

    /// Ends the tasks of no mission that events have made of the plan's objects, and that nobody has claimed: otherwise
    /// two tasks would work on one object.
    pub(super) async fn end_tasks_of_events(&self, plan: &SubmitPlan) -> Result<(), SchedulerError> {
        let is_unclaimed = |row: &Task| {
            let is_of_object = row.work == Ok(Work::default()) && row.bucket == plan.bucket;
            let is_unclaimed = row.state == State::Pending && row.attempt.0 == 0 && row.oddity().is_none();
            row.mission.is_none() && is_of_object && is_unclaimed
        };
        let why = format!("its object was submitted as a task of mission {}", plan.mission);
        let end = AttemptEnd::of(Verdict::Cancelled, &why);
        for keys in plan.keys().chunks(CHECKED_AT_ONCE) {
            let rows = self.backend.ledger.tasks(keys).await.map_err(SchedulerError::cloud("reading rows"))?;
            let unclaimed: Vec<_> = rows.into_iter().filter(is_unclaimed).map(|row| (row, None)).collect();
            let reason = GivenUp { end: end.clone(), is_for_cancel: false, now: clock::now_rfc3339() };
            let ended = self.backend.ledger.fail(&unclaimed, None, &reason).await;
            ended.map_err(SchedulerError::cloud("ending the tasks that events made of the objects"))?;
        }
        Ok(())
    }
}
