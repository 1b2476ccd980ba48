//! What a submission asks for.

use std::collections::HashMap;

use super::SchedulerError;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::NotifyOn;
use crate::domain::task::Task;
use crate::domain::work::Work;

/// A mission to be created or enlarged.
#[derive(Clone, Debug)]
pub struct SubmitPlan {
    /// The mission.
    pub mission: MissionId,
    /// The display name.
    pub name: Option<String>,
    /// The bucket of the inputs; `None` if no task has an input there.
    pub bucket: Option<String>,
    /// The names of the tasks, without duplicates.
    pub srcs: Vec<SrcId>,
    /// What tasks work on, if that is not the object of their name.
    pub works: HashMap<SrcId, Work>,
    /// The workload, for `sh -c`.
    pub exec: Option<String>,
    /// The number of nodes of the mission; `None`: one node per task.
    pub nodes: Option<u32>,
    /// The number of tasks that a node runs at the same time.
    pub slots: Option<u16>,
    /// Whether objects under the mission's prefix become tasks too; `None`: no for a new mission, unchanged for an
    /// existing one.
    pub uploads: Option<bool>,
    /// What people are notified of before the mission's end; `None`: nothing for a new mission, unchanged for an
    /// existing one.
    pub notify_on: Option<NotifyOn>,
}

impl SubmitPlan {
    /// Returns what a task works on.
    #[must_use]
    pub fn work(&self, src: &SrcId) -> Work {
        self.works.get(src).cloned().unwrap_or_default()
    }

    /// Refuses a row that has the name of one of the plan's tasks, and works on something else.
    pub(super) fn refuse_other_work(&self, task: &Task) -> Result<(), SchedulerError> {
        let work = self.work(&task.src);
        let other = |what: String| Err(SchedulerError::OtherWork { src: task.src.to_string(), what });
        match &task.work {
            Err(what) => return other(what.clone()),
            Ok(row) => {
                if let Some(difference) = work.difference(row) {
                    return other(format!("it has {difference}"));
                }
            }
        }
        match (&task.bucket, &self.bucket) {
            (Some(theirs), Some(ours)) if work.needs_bucket() && theirs != ours => {
                other(format!("its input is in the bucket {theirs}"))
            }
            _ => Ok(()),
        }
    }
}
