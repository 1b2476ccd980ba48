//! The order of tasks on a node of several slots: ordinary tasks run side by side, a suspect task runs alone.
//!
//! A suspect task waits until no other slot has a task, and meanwhile none starts one: the node runs empty for it. So
//! only one waits at a time, and for a bounded time: a task that still runs then may run for days.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The longest time that slots of a node stay empty for one suspect task, until it is alone.
pub(super) const SUSPECT_WAIT: Duration = Duration::from_mins(5);
/// How often a slot that waits for the others checks whether the suspect task is still pending.
const SUSPECT_LOOK: Duration = Duration::from_secs(10);

/// The turns of a node's slots. The locks are granted in the order in which they are requested.
#[derive(Debug)]
pub(super) struct Turns {
    /// [`SUSPECT_WAIT`], except in tests.
    wait: Duration,
    /// Shared by slots with ordinary tasks; held exclusively by a slot with a suspect task.
    slots: RwLock<()>,
    /// Held by the suspect task that runs, or that waits to be alone.
    suspects: Mutex<()>,
}

/// A slot's right to work, for as long as it is kept.
#[derive(Debug)]
#[expect(dead_code, reason = "a lock is kept for what its drop does")]
pub(super) enum Turn<'a> {
    /// Beside others.
    Shared(RwLockReadGuard<'a, ()>),
    /// Alone.
    Alone(RwLockWriteGuard<'a, ()>, MutexGuard<'a, ()>),
}

/// The result of waiting to be alone.
#[derive(Debug)]
pub(super) enum Waited<'a> {
    /// It is alone.
    Alone(Turn<'a>),
    /// The other slots did not end in time, or the node must not wait now.
    NotNow,
    /// The task is not pending any more, or the node drains.
    Over,
}

impl Turns {
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, slots: RwLock::default(), suspects: Mutex::default() }
    }

    /// Waits for the turn of an ordinary task; `None` if the node drains.
    pub(super) async fn shared(&self, drain: &CancellationToken) -> Option<Turn<'_>> {
        // Both arms may be dropped: a lock that was not granted is held by nobody. A drain frees locks, and goes first.
        tokio::select! {
            biased;
            () = drain.cancelled() => None,
            turn = self.slots.read() => Some(Turn::Shared(turn)),
        }
    }

    /// Waits for the turn of a suspect task: as long as necessary for other suspect tasks, then for a bounded time, if
    /// the node `may_wait`. Meanwhile checks whether the task `still_waits`.
    pub(super) async fn alone<F: Future<Output = bool>>(
        &self,
        drain: &CancellationToken,
        may_wait: impl Future<Output = bool>,
        still_waits: impl Fn() -> F,
    ) -> Waited<'_> {
        let first = tokio::select! {
            biased;
            () = drain.cancelled() => return Waited::Over,
            first = self.suspects.lock() => first,
        };
        if let Ok(turn) = self.slots.try_write() {
            return Waited::Alone(Turn::Alone(turn, first));
        }
        if !may_wait.await {
            return Waited::NotNow;
        }
        if !still_waits().await {
            return Waited::Over;
        }
        let deadline = Instant::now() + self.wait;
        let turn = self.slots.write();
        tokio::pin!(turn);
        loop {
            // The place in the queue for the lock is kept; the other arms hold nothing.
            tokio::select! {
                turn = &mut turn => return Waited::Alone(Turn::Alone(turn, first)),
                () = drain.cancelled() => return Waited::Over,
                () = tokio::time::sleep_until(deadline.min(Instant::now() + SUSPECT_LOOK)) => {}
            }
            if Instant::now() >= deadline {
                return Waited::NotNow;
            }
            // An answer that takes long must not lengthen the wait.
            match tokio::time::timeout_at(deadline, still_waits()).await {
                Ok(true) => {}
                Ok(false) => return Waited::Over,
                Err(_) => return Waited::NotNow,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;

    const WAIT: Duration = Duration::from_millis(300);
    /// How much later a busy machine may be.
    const LATE: Duration = Duration::from_secs(20);

    /// A task of a day must not keep the other slots empty for a day, and two suspect tasks not twice as long.
    #[tokio::test]
    async fn a_suspect_task_empties_a_node_for_a_bounded_time() {
        let (turns, drain, started) = (Turns::new(WAIT), CancellationToken::new(), Instant::now());
        let long = turns.shared(&drain).await.unwrap();
        let first = turns.alone(&drain, ready(true), || ready(true));
        let second = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let waited = turns.alone(&drain, ready(false), || ready(true)).await;
            assert!(matches!(waited, Waited::NotNow));
            assert!(started.elapsed() < WAIT + LATE, "{:?}", started.elapsed());
        };
        let other = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let turn = turns.shared(&drain).await;
            assert!(turn.is_some() && started.elapsed() >= WAIT, "it would not have been alone");
            assert!(started.elapsed() < WAIT + LATE, "{:?}", started.elapsed());
        };
        let (waited, (), ()) = tokio::join!(first, second, other);
        assert!(matches!(waited, Waited::NotNow));
        drop(long);
        let alone = turns.alone(&drain, ready(false), || ready(false)).await;
        assert!(matches!(alone, Waited::Alone(_)), "whoever is alone need not wait");
    }

    #[tokio::test]
    async fn everyone_who_waits_hears_a_drain_and_a_task_that_others_took_empties_nothing() {
        // Nobody waits here until the time is over.
        let turns = Turns::new(Duration::from_hours(1));
        let (drain, started) = (CancellationToken::new(), Instant::now());
        let long = turns.shared(&drain).await.unwrap();
        let gone = turns.alone(&drain, ready(true), || ready(false)).await;
        assert!(matches!(gone, Waited::Over) && started.elapsed() < LATE);

        let order = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drain.cancel();
        };
        let other = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            turns.shared(&drain).await.is_none()
        };
        let (first, second, is_none, ()) = tokio::join!(
            turns.alone(&drain, ready(true), || ready(true)),
            turns.alone(&drain, ready(true), || ready(true)),
            other,
            order
        );
        assert!(matches!((first, second, is_none), (Waited::Over, Waited::Over, true)));
        drop(long);
    }
}
