//! When a node that serves a mission looks whether the mission is complete.
//!
//! To look is to read the mission's row and all its tally items: up to 65 reads. So a node does not look after each
//! commit, but:
//!
//! - when a slot finds no task: the slot that commits the last task finds none then, so people are notified at once;
//! - when the node ends, unless it ends because a service does not answer: then a sweep, or another node, looks;
//! - after some time, so that the row's counters move, and if a slot is held up between two tasks.
//!
//! Each time only if a task has ended since the last look, as far as this node knows. A node looks once before it
//! ends, also if it had no task: the node that committed the last one may be gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::NodeError;
use super::completion::CompletionNotifier;
use super::host::Host;
use super::notify::notify_unless_drained;
use super::retry::or_drained;
use crate::domain::ids::MissionId;
use crate::domain::mission::Mission;

/// The shortest time between two looks of a node that has tasks: as often as it adds its cost (`cost.rs`).
const PAUSE_MIN: Duration = Duration::from_mins(1);
/// How long a node pauses for each item that it reads, so that large missions do not cost more: 64 items are read every
/// 11 minutes.
const PAUSE_FOR_AN_ITEM: Duration = Duration::from_secs(10);

/// Whether the mission that a node serves may have ended.
pub(super) struct MissionEnd {
    host: Host,
    mission: MissionId,
    /// Set when a task has ended that no look has counted.
    is_due: AtomicBool,
    /// One look at a time: the looks of a node are the same publisher's.
    looking: Mutex<()>,
}

impl MissionEnd {
    pub(super) fn new(host: Host, mission: MissionId) -> Self {
        Self { host, mission, is_due: AtomicBool::new(true), looking: Mutex::new(()) }
    }

    /// Returns how long a node waits between looks while it has tasks.
    pub(super) fn interval(mission: &Mission) -> Duration {
        (PAUSE_FOR_AN_ITEM * mission.tally_shards).max(PAUSE_MIN)
    }

    /// Notes that a task of the mission has ended, here or elsewhere.
    pub(super) fn may_have_come(&self) {
        self.is_due.store(true, Ordering::SeqCst);
    }

    /// Sends the mission's notification, if a task has ended since the last look, and the mission is complete. Leaves
    /// that to others during a drain, as [`notify_unless_drained`].
    ///
    /// # Errors
    /// [`NodeError`]: a later look is due, here or elsewhere.
    pub(super) async fn look(&self) -> Result<(), NodeError> {
        let _alone = self.looking.lock().await;
        // Before the read: what ends during the read may not be in it.
        if !self.is_due.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.look_now().await.inspect_err(|_| self.may_have_come())
    }

    async fn look_now(&self) -> Result<(), NodeError> {
        let node = &self.host.node;
        let notifier = CompletionNotifier::for_node(node);
        let read = tokio::select! {
            read = notifier.mission(&self.mission) => read,
            () = node.stopping.writes_are_over() => return Ok(()),
        };
        let Some(Some(mission)) = or_drained(node, read)? else { return Ok(()) };
        notify_unless_drained(node, &self.host.instance.id, self.mission.as_str(), &mission).await
    }
}
