//! What is going on in a mission: counts, failures by reason, what waits, nodes, time left, and cost.
//!
//! A summary reads the mission's row, its tally, the index of open tasks, and a bounded number of rows: it takes as long
//! for a million tasks as for ten. Pending tasks are not counted one by one: they are what remains.

mod reasons;
mod select;

pub use reasons::{Group, Reasons, common};
pub use select::{Order, Selected, Selection};

use std::time::Duration;

use crate::backend::ledger::{PAGE_LEN, Partition};
use crate::backend::{Backend, CloudError};
use crate::domain::ids::SrcId;
use crate::domain::machine_info::{MicroUsd, PurchaseOption};
use crate::domain::mission::{Mission, Tally};
use crate::domain::task::{State, Task};

/// The most running tasks that are counted. A mission with more shows this number with a `+`.
pub const RUNNING_MAX: u64 = 20_000;
/// The most failed tasks whose rows are read for the reasons: five reads of 100 rows.
pub const FAILED_SAMPLE: usize = 500;
/// The most pending tasks whose rows are read for why they wait.
const PENDING_SAMPLE: usize = 100;

/// A mission at one moment.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The row.
    pub mission: Mission,
    /// The sum of its tally items.
    pub total: Tally,
    /// Running tasks, up to [`RUNNING_MAX`].
    pub running: u64,
    /// Tasks that are neither running nor ended; `None` if the row does not say how many tasks there are.
    pub pending: Option<u64>,
    /// Failed tasks by reason.
    pub failures: Reasons,
    /// Pending tasks by why they wait; only those that have a reason.
    pub waits: Reasons,
    /// Instances that serve the mission or a task of it; `None` if this caller may not list them.
    pub nodes: Option<Nodes>,
}

/// Running instances by purchase option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Spot instances.
    pub spot: u64,
    /// On-Demand instances.
    pub on_demand: u64,
}

impl Summary {
    /// Reads a mission's summary.
    ///
    /// # Errors
    /// [`CloudError`]; that the instances may not be listed is none.
    pub async fn read(backend: &Backend, mission: Mission) -> Result<Self, CloudError> {
        let ledger = &backend.ledger;
        let (id, shards) = (Some(&mission.id), mission.tally_shards);
        let (total, running, failed, waiting, instances) = tokio::join!(
            ledger.tally(&mission),
            ledger.count_open(id, shards, State::Running, RUNNING_MAX),
            sample(backend, &mission, State::Failed, FAILED_SAMPLE),
            sample(backend, &mission, State::Pending, PENDING_SAMPLE),
            backend.fleet.list_instances(&ledger.tables().tasks),
        );
        let total = mission.total(total?);
        let (running, failed, waiting) = (running?, failed?, waiting?);
        let nodes = instances.ok().map(|instances| {
            let mut nodes = Nodes::default();
            for instance in instances
                .iter()
                .filter(|instance| !instance.is_stopped && !instance.is_ended && instance.is_of(&mission.id))
            {
                if instance.is_spot { nodes.spot += 1 } else { nodes.on_demand += 1 }
            }
            nodes
        });
        let pending = mission.trans_number.map(|number| number.saturating_sub(total.ended()).saturating_sub(running));
        Ok(Self {
            running,
            pending,
            failures: Reasons::of_failures(&failed, total.failed),
            waits: Reasons::of_waits(&waiting, &mission, pending.unwrap_or(0)),
            nodes,
            mission,
            total,
        })
    }

    /// Returns whether every task has ended. A mission of unknown size never has.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.mission.is_complete(self.total)
    }

    /// Returns how many tasks end per minute: the running ones, each in the mean time of those that have ended; `None`
    /// if that is not known.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn rate_per_min(&self) -> Option<f64> {
        let mean_ms = self.total.time_cost_ms.checked_div(self.total.ended())?.max(1);
        (self.running > 0).then(|| self.running as f64 * 60_000.0 / mean_ms as f64)
    }

    /// Returns the expected cost of the whole mission: what it cost so far, for all tasks; `None` if that is not known.
    #[must_use]
    pub fn cost_in_all(&self) -> Option<MicroUsd> {
        let cost = u128::from(self.total.cost.0) * u128::from(self.mission.trans_number?);
        let all = cost.checked_div(u128::from(self.total.ended()))?;
        Some(MicroUsd(u64::try_from(all).unwrap_or(u64::MAX).max(self.total.cost.0)))
    }

    /// Returns the expected time until the last task has ended; `None` if that is not known.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.pending?.saturating_add(self.running);
        let minutes = left as f64 / self.rate_per_min()?;
        Duration::try_from_secs_f64(minutes * 60.0).ok()
    }
}

/// Reads up to `most` rows of a mission in one state, the oldest first in each partition.
async fn sample(backend: &Backend, mission: &Mission, state: State, most: usize) -> Result<Vec<Task>, CloudError> {
    let mut srcs: Vec<SrcId> = Vec::new();
    let shards = mission.tally_shards.max(1);
    let share = most.div_ceil(usize::try_from(shards).unwrap_or(usize::MAX)).clamp(1, PAGE_LEN);
    for shard in 0..shards {
        let partition = Partition { mission: Some(&mission.id), shard };
        let page = backend.ledger.open_page(partition, state, share, None).await?;
        srcs.extend(page.tasks.into_iter().map(|task| task.src));
    }
    srcs.truncate(most);
    let mut rows = backend.ledger.tasks(&srcs).await?;
    // The index may lag: the row decides.
    rows.retain(|row| row.state == state && row.mission.as_ref().is_none_or(|id| *id == mission.id));
    Ok(rows)
}

/// Returns the word for a purchase option in texts for people.
#[must_use]
pub const fn purchase_word(purchase: PurchaseOption) -> &'static str {
    match purchase {
        PurchaseOption::Spot => "Spot",
        PurchaseOption::OnDemand => "On-Demand",
        PurchaseOption::Local => "this computer",
    }
}
