//! The mission's row, read once for several claims of a node.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Node;
use crate::backend::CloudError;
use crate::domain::mission::Mission;
use crate::domain::task::Task;

/// How old the row may be when a task begins. A cancellation reaches a task that began with an older row as it reaches
/// any task that runs: with its next heartbeat.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The row that was read last, and when the read began. All slots of a node share it.
#[derive(Debug, Default)]
pub(super) struct RecentMission(Mutex<Option<(Instant, Mission)>>);

impl RecentMission {
    /// Returns the mission of a task's row, at most [`AGE_MAX`] old; `None` if the task has none.
    ///
    /// # Errors
    /// [`CloudError`] if the table cannot be read.
    pub(super) async fn of(&self, node: &Node, task: &Task) -> Result<Option<Mission>, CloudError> {
        let is_recent = |(read_at, mission): &(Instant, Mission)| {
            task.mission.as_ref() == Some(&mission.id) && read_at.elapsed() < AGE_MAX
        };
        let known = self.locked().clone();
        if let Some((_, mission)) = known.filter(is_recent) {
            return Ok(Some(mission));
        }
        let read_at = Instant::now();
        let mission = node.mission_of(task).await?;
        // A cancelled one is read again: it may be reinstated, and then each task that begins would be released.
        let kept = mission.clone().filter(|mission| mission.cancelled_at.is_none());
        *self.locked() = kept.map(|mission| (read_at, mission));
        Ok(mission)
    }

    fn locked(&self) -> MutexGuard<'_, Option<(Instant, Mission)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
