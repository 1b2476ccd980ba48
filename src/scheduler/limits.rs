//! The deployment's limits of nodes: a launch is taken from the count before it is asked for.
//!
//! Without a limit anywhere there is no count, and a launch costs one read more.

use std::time::Duration;

use super::{Scheduler, SchedulerError};
use crate::backend::fleet::ManagedInstance;
use crate::backend::ledger::{NodeCount, Shown, StoredLimits, Ticket, hour_of};
use crate::domain::backoff;
use crate::domain::ids::MissionId;
use crate::domain::node_limit::{NodeLimit, NodeLimits};

/// The limits that are set for this scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnLimits {
    /// Nodes at a time.
    pub at_a_time: NodeLimit,
    /// Nodes in an hour.
    pub per_hour: NodeLimit,
}

impl OwnLimits {
    /// The limits that count, given those that are stored.
    fn with(self, stored: NodeLimits) -> NodeLimits {
        NodeLimits { at_a_time: self.at_a_time.with(stored.at_a_time), per_hour: self.per_hour.with(stored.per_hour) }
    }

    /// Whether one of them is a number.
    const fn is_any(self) -> bool {
        matches!(self.at_a_time, NodeLimit::Most(_)) || matches!(self.per_hour, NodeLimit::Most(_))
    }

    const fn stored(self) -> StoredLimits {
        [self.at_a_time.stores(), self.per_hour.stores()]
    }
}

/// What the limits leave of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Grant {
    /// How many nodes may be launched.
    pub(super) count: u32,
    /// How many of them were taken now; the others had been taken for the launch that is repeated.
    pub(super) new: u32,
    /// When they were taken, if they are counted.
    pub(super) ticket: Option<Ticket>,
    /// The mission whose count of On-Demand launches has this one.
    pub(super) on_demand_of: Option<MissionId>,
    /// What time it was, in seconds of DynamoDB's clock.
    pub(super) now: u64,
    /// Why it is fewer than were wanted, if it is.
    pub(super) why: Option<String>,
}

impl Grant {
    pub(super) fn epoch(&self) -> Option<u64> {
        self.ticket.as_ref().map(|ticket| ticket.epoch)
    }
}

/// How often a write to the count is tried again: each time another launch, or a sweep, wrote at that moment.
const TRIES_MAX: u32 = 20;

impl Scheduler {
    /// Takes up to `wanted` nodes, as many as the limits leave.
    pub(super) async fn take_nodes(&self, wanted: u32) -> Result<Grant, SchedulerError> {
        let own = self.settings.node_limits;
        let mut why = String::new();
        for tries in 0..TRIES_MAX {
            let (count, now) = self.node_count_and_time().await?;
            let count = match count {
                None if !own.is_any() => {
                    return Ok(Grant { count: wanted, new: wanted, now, ..Grant::default() });
                }
                Some(count) if !count.is_spoilt => count,
                seen => {
                    self.make_node_count(seen.as_ref()).await?;
                    continue;
                }
            };
            let limits = own.with(count.limits);
            let room = limits.room(count.taken, count.taken_in_hour(now));
            let room = u32::try_from(room).unwrap_or(u32::MAX).min(wanted);
            why = limits.reason(count.taken, hour_of(now).get(11..).unwrap_or_default());
            if room == 0 {
                return Ok(Grant { why: Some(why), now, ..Grant::default() });
            }
            let taken = self.backend.ledger.take_nodes(&count, room, now, limits).await;
            if let Some(ticket) = taken.map_err(SchedulerError::cloud("counting nodes"))? {
                let why = (room < wanted).then_some(why);
                return Ok(Grant { count: room, new: room, ticket: Some(ticket), why, now, on_demand_of: None });
            }
            tokio::time::sleep(backoff::delay(tries.min(4), rand::random()).min(PAUSE_MAX)).await;
        }
        Ok(Grant { why: Some(why), ..Grant::default() })
    }

    /// Takes nodes for a launch that is repeated: all, or none. Those that were taken for it before are not taken again, as long
    /// as they are counted and do not show: the epoch in the row is not believed alone.
    pub(super) async fn take_nodes_again(&self, n: u32, epoch: Option<u64>) -> Result<Grant, SchedulerError> {
        let (count, now) = self.node_count_and_time().await?;
        let mut held = Grant { now, ..Grant::default() };
        if let (Some(epoch), Some(count)) = (epoch, count) {
            let taken = match count.epoch.checked_sub(epoch) {
                Some(0) => count.in_epoch,
                Some(1) => count.in_last_epoch,
                _ => 0,
            };
            if taken > 0 {
                let instances = self.backend.fleet.all_of_epoch(self.owner_tag(), epoch).await;
                let shown = instances.map_err(SchedulerError::cloud("listing our instances"))?.len();
                let hidden = taken.saturating_sub(i64::try_from(shown).unwrap_or(i64::MAX)).max(0);
                held.count = u32::try_from(hidden).unwrap_or(u32::MAX).min(n);
                held.ticket = Some(Ticket { epoch, hour: String::new() });
            }
        }
        if held.count == n {
            return Ok(held);
        }
        let grant = self.take_nodes(n - held.count).await?;
        if grant.count < n - held.count {
            self.give_nodes_back(grant.count, &grant).await;
            return Ok(Grant { count: 0, new: 0, now, ..grant });
        }
        Ok(Grant { count: n, ..grant })
    }

    /// Gives back all that was taken for a node that is not launched.
    pub(super) async fn give_back(&self, grant: &Grant) {
        self.give_nodes_back(grant.count, grant).await;
        let Some(mission) = &grant.on_demand_of else { return };
        if let Err(error) = self.backend.ledger.give_on_demand_back(mission).await {
            tracing::warn!(mission = %mission, "an On-Demand launch that was not made stays counted: {}", error.source);
        }
    }

    /// Gives back what was taken and not launched. If that fails, two epochs forget it.
    pub(super) async fn give_nodes_back(&self, n: u32, grant: &Grant) {
        let Some(ticket) = grant.ticket.as_ref().filter(|_| n > 0) else { return };
        for tries in 0..TRIES_MAX {
            let given = match self.backend.ledger.node_count().await {
                Ok(Some(count)) if !count.is_spoilt => self.backend.ledger.give_nodes_back(&count, n, ticket).await,
                Ok(_) => return,
                Err(error) => Err(error),
            };
            match given {
                Ok(true) => return,
                Ok(false) => tokio::time::sleep(backoff::delay(tries.min(4), rand::random()).min(PAUSE_MAX)).await,
                Err(error) => {
                    tracing::warn!("{n} nodes are not given back to the count now, but by sweeps: {}", error.source);
                    return;
                }
            }
        }
    }

    pub(super) async fn node_count(&self) -> Result<Option<NodeCount>, SchedulerError> {
        self.backend.ledger.node_count().await.map_err(SchedulerError::cloud("reading the count of nodes"))
    }

    pub(super) async fn node_count_and_time(&self) -> Result<(Option<NodeCount>, u64), SchedulerError> {
        self.backend.ledger.node_count_and_time().await.map_err(SchedulerError::cloud("reading the count of nodes"))
    }

    async fn make_node_count(&self, seen: Option<&NodeCount>) -> Result<(), SchedulerError> {
        let instances = self.backend.fleet.list_instances(self.owner_tag()).await;
        let alive = instances.map_err(SchedulerError::cloud("listing our instances"))?.len() as u64;
        let made = self.backend.ledger.make_node_count(seen, alive, self.settings.node_limits.stored()).await;
        made.map_err(SchedulerError::cloud("making the count of nodes"))
    }

    /// Corrects the count by `instances`, ended ones too, which were listed after it was read; stores this scheduler's limits.
    pub(super) async fn correct_node_count(
        &self,
        seen: Option<NodeCount>,
        instances: &[ManagedInstance],
    ) -> Result<(), SchedulerError> {
        let own = self.settings.node_limits;
        let fresh;
        let (seen, instances) = match seen {
            None if !own.is_any() => return Ok(()),
            Some(seen) if !seen.is_spoilt => (seen, instances),
            seen => {
                self.make_node_count(seen.as_ref()).await?;
                let Some(seen) = self.node_count().await?.filter(|seen| !seen.is_spoilt) else { return Ok(()) };
                let listed = self.backend.fleet.list_all_instances(self.owner_tag()).await;
                fresh = listed.map_err(SchedulerError::cloud("listing our instances"))?;
                (seen, fresh.as_slice())
            }
        };
        let alive = instances.iter().filter(|ours| !ours.is_ended).count() as u64;
        let of =
            |epoch: Option<u64>| instances.iter().filter(|ours| epoch.is_some() && ours.epoch == epoch).count() as u64;
        let shown = Shown { alive, in_epoch: of(Some(seen.epoch)), in_last_epoch: of(seen.epoch.checked_sub(1)) };
        let corrected = self.backend.ledger.correct_node_count(&seen, shown, own.stored());
        corrected.await.map(drop).map_err(SchedulerError::cloud("correcting the count of nodes"))
    }
}

/// The longest pause before the count is read again: another's write takes some ms.
const PAUSE_MAX: Duration = Duration::from_millis(200);
