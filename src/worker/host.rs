//! A node on its machine: what every step of a task needs.

use std::sync::Arc;

use super::Node;
use super::ahead::Slot;
use super::identity::Instance;
use super::recent_mission::RecentMission;
use super::spot::SpotWatcher;

/// A node, the machine that it runs on, and the Spot notices for that machine. Cheap to clone.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) node: Node,
    pub(super) instance: Instance,
    pub(super) spot: SpotWatcher,
    pub(super) recent_mission: Arc<RecentMission>,
    /// The place of workloads; none if nothing else could run there.
    pub(super) slot: Option<Slot>,
}
