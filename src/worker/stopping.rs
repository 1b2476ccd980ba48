//! How a node is stopped, and how long that may take. All bounds of a drain are here.
//!
//! ```text
//!    0 s  a signal: nothing new starts, and the workload has its grace (10 s as a rule; GRACE_MAX)
//!   45 s  UPLOADS_LIMIT: uploads under way, of a result or a checkpoint, are given up. The row is written first, so
//!         that another node can continue; then the log, and what else there is to clean up
//!   65 s  WRITES_LIMIT: the log, a notification, and the removal of the folder are given up
//!   70 s  DRAIN_LIMIT: whatever is still under way is dropped. The machine is terminated: one call of EC2 takes some
//!         seconds, five tries included
//!   90 s  TimeoutStopSec= of systemd/lighthpc.service, when a power-off waits for no node any more
//! ```
//!
//! The row has the time from 45 s to 70 s: one call that is not answered within its 20 s, and another.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a node may take to stop after a signal, without the termination of the machine.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(70);
/// When uploads are given up, as a share of [`DRAIN_LIMIT`]: 45 of 70 s.
const UPLOADS_LIMIT: f64 = 45.0 / 70.0;
/// When everything except the row is given up: 65 of 70 s.
const WRITES_LIMIT: f64 = 65.0 / 70.0;
/// The share of the uploads' time that a workload may use as its grace: half, 22 s. The other half is for the
/// checkpoint.
const GRACE_MAX: f64 = 0.5;
/// How long one last write may take if no deadline is nearer.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_mins(1);

/// The order to stop a node. A clone is the same order.
#[derive(Clone, Debug, Default)]
pub struct Stopping {
    /// Cancelled when the node must drain: stop the workload, release the task, terminate the machine.
    pub drain: CancellationToken,
    /// Cancelled when the drain is to hurry: the workload gets no more grace.
    pub hurry: CancellationToken,
    /// The deadline; none if the node may take its time, as at the end of its lifetime.
    deadline: watch::Sender<Option<Deadline>>,
    /// Cancelled when everything but the row is to be given up.
    writes_over: CancellationToken,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    uploads: Instant,
    writes: Instant,
    all: Instant,
}

impl Stopping {
    /// Starts a drain that must end within `limit`, [`DRAIN_LIMIT`] as a rule. A second call can only shorten the
    /// first's time.
    pub fn drain_within(&self, limit: Duration) {
        let now = Instant::now();
        let deadline = Deadline {
            uploads: now + limit.mul_f64(UPLOADS_LIMIT),
            writes: now + limit.mul_f64(WRITES_LIMIT),
            all: now + limit,
        };
        self.deadline.send_if_modified(|before| {
            let is_nearer = before.is_none_or(|before| deadline.all < before.all);
            if is_nearer {
                *before = Some(deadline);
            }
            is_nearer
        });
        self.drain.cancel();
    }

    /// Waits until uploads must be given up; forever if there is no deadline.
    pub(super) async fn uploads_are_over(&self) {
        self.is_past(|deadline| deadline.uploads).await;
    }

    /// Waits until everything except the row must be given up.
    pub(super) async fn writes_are_over(&self) {
        self.is_past(|deadline| deadline.writes).await;
    }

    /// Waits until the drain's time is over, and cancels [`Stopping::token`] when that is due.
    pub(super) async fn is_over(&self) {
        self.writes_are_over().await;
        self.writes_over.cancel();
        self.is_past(|deadline| deadline.all).await;
    }

    /// Returns a token that is cancelled when everything except the row must be given up, for threads that cannot be
    /// dropped.
    pub(super) const fn token(&self) -> &CancellationToken {
        &self.writes_over
    }

    async fn is_past(&self, of: impl Fn(&Deadline) -> Instant) {
        let mut deadline = self.deadline.subscribe();
        loop {
            let by = deadline.borrow_and_update().as_ref().map(&of);
            let sleep = async {
                match by {
                    Some(by) => tokio::time::sleep_until(by).await,
                    None => std::future::pending().await,
                }
            };
            // Both arms may be dropped: neither holds anything. A deadline only comes nearer.
            let has_changed = tokio::select! {
                () = sleep => false,
                changed = deadline.changed() => changed.is_ok(),
            };
            if !has_changed {
                return;
            }
        }
    }

    /// Returns how long a workload's grace may be at the most.
    pub(super) fn grace_max(&self) -> Duration {
        self.left(|deadline| deadline.uploads).map_or(Duration::MAX, |left| left.mul_f64(GRACE_MAX))
    }

    /// Returns how long a checkpoint may take that is saved before the row.
    pub(super) fn upload_limit(&self) -> Duration {
        self.left(|deadline| deadline.uploads).unwrap_or(LAST_WRITE_TIMEOUT).min(LAST_WRITE_TIMEOUT)
    }

    /// Returns how long one last write may take after the row.
    pub(super) fn write_limit(&self) -> Duration {
        self.left(|deadline| deadline.writes).unwrap_or(LAST_WRITE_TIMEOUT).min(LAST_WRITE_TIMEOUT)
    }

    fn left(&self, of: impl Fn(&Deadline) -> Instant) -> Option<Duration> {
        self.deadline.borrow().as_ref().map(|deadline| of(deadline).saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds_of(unit: &str, name: &str) -> u64 {
        let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap();
        value.trim_end_matches('s').parse().unwrap()
    }

    /// What a drain may take, the machine's end included, is less than what systemd waits for.
    #[test]
    fn a_drain_ends_before_systemd_kills() {
        let unit = include_str!("../../systemd/lighthpc.service");
        let stop_s = seconds_of(unit, "TimeoutStopSec");
        assert!(DRAIN_LIMIT.as_secs() + 20 <= stop_s, "{stop_s} s");
        let power_off = include_str!("../../systemd/poweroff.conf");
        assert!(seconds_of(power_off, "JobTimeoutSec") >= stop_s + 30);
    }

    #[tokio::test]
    async fn the_bounds_follow_one_another_and_a_later_order_gives_no_more_time() {
        let (stopping, started) = (Stopping::default(), Instant::now());
        assert_eq!((stopping.upload_limit(), stopping.write_limit()), (LAST_WRITE_TIMEOUT, LAST_WRITE_TIMEOUT));
        stopping.drain_within(Duration::from_millis(700));
        stopping.drain_within(DRAIN_LIMIT);
        assert!(stopping.drain.is_cancelled());
        assert!(stopping.grace_max() <= Duration::from_millis(225) && stopping.upload_limit() > Duration::ZERO);
        let over = async {
            stopping.is_over().await;
            started.elapsed()
        };
        let writes = async {
            stopping.token().cancelled().await;
            started.elapsed()
        };
        let uploads = async {
            stopping.uploads_are_over().await;
            assert_eq!(stopping.upload_limit(), Duration::ZERO);
            started.elapsed()
        };
        let (over, writes, uploads) = tokio::join!(over, writes, uploads);
        let at = [uploads, writes, over].map(|at| at.as_millis());
        assert!(at[0] >= 450 && at[1] >= 650 && at[2] >= 700 && at.is_sorted() && at[2] < 20_000, "{at:?}");
    }

    #[test]
    fn the_grace_of_a_drain_leaves_a_checkpoint_its_time() {
        let stopping = Stopping::default();
        stopping.drain_within(DRAIN_LIMIT);
        assert_eq!(stopping.grace_max().as_secs(), 22);
        assert_eq!((stopping.upload_limit().as_secs(), stopping.write_limit()), (44, LAST_WRITE_TIMEOUT));
    }

    /// At the end of its life a node has its time; a power-off meanwhile sets a deadline.
    #[tokio::test]
    async fn an_order_without_a_deadline_may_get_one() {
        let stopping = Stopping::default();
        stopping.drain.cancel();
        assert_eq!(stopping.grace_max(), Duration::MAX);
        let order = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!stopping.token().is_cancelled());
            stopping.drain_within(Duration::from_millis(50));
        };
        tokio::join!(stopping.is_over(), order);
        assert!(stopping.token().is_cancelled());
    }
}
