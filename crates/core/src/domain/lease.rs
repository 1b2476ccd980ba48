//! The lease on a task, and how an observer learns that its holder is gone.
//!
//! Nobody compares the clocks of two machines. An observer notes (`attempt`, `beat`) and the reading
//! of its own monotonic clock; only if both are unchanged for a whole lease may it take over:
//!
//! ```text
//!   first sight ──same (attempt, beat)──► waiting ──a whole lease──► expired: take over
//!        │                                   │
//!        └──────────── anything moved ───────┴──► alive: leave it
//! ```

use std::time::Duration;

use super::ids::{AttemptNumber, InstanceId};

/// Who holds a task, and the last sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The instance that holds the attempt.
    pub owner: InstanceId,
    /// The attempt it holds.
    pub attempt: AttemptNumber,
    /// Heartbeats of this attempt so far.
    pub beat: u64,
}

/// One observer's watch over another's lease.
#[derive(Clone, Debug)]
pub struct Watch {
    seen: Lease,
    since: Duration,
    lease_ttl: Duration,
}

/// What an observer knows after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The holder renewed, released, or was replaced since the first sight.
    Alive,
    /// No sign yet; expired if nothing moves for this long.
    Waiting(Duration),
    /// Unchanged for a whole lease on this observer's clock.
    Expired,
}

impl Watch {
    /// Starts a watch at `now`, a reading of the observer's monotonic clock.
    #[must_use]
    pub const fn new(seen: Lease, lease_ttl: Duration, now: Duration) -> Self {
        Self { seen, since: now, lease_ttl }
    }

    /// Returns the lease that is being watched.
    #[must_use]
    pub const fn seen(&self) -> &Lease {
        &self.seen
    }

    /// Takes a look at `now`: `current` is the lease as the table has it, `None` if nobody holds the task.
    #[must_use]
    pub fn look(&self, current: Option<&Lease>, now: Duration) -> Sight {
        if current != Some(&self.seen) {
            return Sight::Alive;
        }
        let waited = now.saturating_sub(self.since);
        match self.lease_ttl.checked_sub(waited) {
            Some(rest) if !rest.is_zero() => Sight::Waiting(rest),
            _ => Sight::Expired,
        }
    }
}

/// Returns how long a holder may go without a renewal before it must stop: the lease less a margin.
///
/// The margin is a sixth of the lease (15 s of 90 s): time to end the workload's process group before
/// anybody else may begin.
#[must_use]
pub fn hold_limit(lease_ttl: Duration) -> Duration {
    lease_ttl.mul_f64(5.0 / 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(90);

    fn lease(attempt: u64, beat: u64) -> Lease {
        Lease { owner: InstanceId::new("i-1").unwrap(), attempt: AttemptNumber(attempt), beat }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_a_whole_unchanged_lease_expires() {
        let watch = Watch::new(lease(1, 7), LEASE, at(1_000));

        assert_eq!(watch.look(Some(&lease(1, 7)), at(1_089)), Sight::Waiting(at(1)));
        assert_eq!(watch.look(Some(&lease(1, 7)), at(1_090)), Sight::Expired);
        assert_eq!(watch.look(Some(&lease(1, 8)), at(1_090)), Sight::Alive);
        assert_eq!(watch.look(Some(&lease(2, 0)), at(9_999)), Sight::Alive);
        assert_eq!(watch.look(None, at(9_999)), Sight::Alive);
    }

    #[test]
    fn a_clock_that_steps_back_only_waits_longer() {
        let watch = Watch::new(lease(1, 1), LEASE, at(1_000));
        assert_eq!(watch.look(Some(&lease(1, 1)), at(400)), Sight::Waiting(LEASE));
    }

    #[test]
    fn a_holder_stops_before_an_observer_may_begin() {
        assert_eq!(hold_limit(LEASE), at(75));
        assert!(hold_limit(Duration::from_secs(1)) < Duration::from_secs(1));
    }
}
