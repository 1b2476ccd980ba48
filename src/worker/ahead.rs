//! Hides the time of requests on a node that serves a mission: a slot has two lanes.
//!
//! ```text
//!   lane 1:  claim, download │ workload │ upload, commit, claim, download │ workload │ upload …
//!   lane 2:        …         │   claim, download    …   │ workload │ upload, commit, claim …
//! ```
//!
//! Each lane does task after task as a slot without lanes would. Only the workload needs the slot: of the lanes of a
//! slot, one runs a workload. The second lane works only while this is worth it: the last workload succeeded, recent
//! ones were short, and many tasks wait. Otherwise tasks would wait here that another node could begin, or would fail for
//! the reason for which this node is about to end. A task that waits here although no workload should take so long is
//! handed back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::outcome::StopReason;

/// How long a claimed task waits for its slot, as a multiple of the longest workload for which one is claimed ahead.
const WAIT_FACTOR: u32 = 2;

/// What is known of a node's workloads, and of the tasks that wait. Shared by its slots.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The longest workload for which the second lane works; zero: never.
    limit: Duration,
    known: watch::Sender<Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The mean time of workloads since the last one that failed. The newest has half of the weight.
    workload: Option<Duration>,
    /// Whether so many tasks wait that no other node lacks one.
    many_wait: bool,
}

impl Ahead {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, known: watch::Sender::default() }
    }

    /// Returns whether the second lanes may take a task.
    pub(super) fn is_worthwhile(&self) -> bool {
        self.known.borrow().allow(self.limit)
    }

    /// Waits until the second lanes may take a task. Safe to drop.
    pub(super) async fn becomes_worthwhile(&self) {
        let mut known = self.known.subscribe();
        // This value owns the sender, so the channel is open.
        known.wait_for(|known| known.allow(self.limit)).await.map(drop).unwrap_or_default();
    }

    /// Notes whether many tasks wait.
    pub(super) fn note_waiting(&self, many_wait: bool) {
        self.known.send_if_modified(|known| std::mem::replace(&mut known.many_wait, many_wait) != many_wait);
    }

    /// Notes that a workload failed.
    fn note_failure(&self) {
        self.known.send_modify(|known| known.workload = None);
    }

    /// Notes how long a workload took, or has run already.
    fn note_workload(&self, took: Duration) {
        self.known.send_modify(|known| {
            known.workload = Some(known.workload.map_or(took, |before| (before + took) / 2));
        });
    }
}

impl Known {
    fn allow(self, limit: Duration) -> bool {
        self.many_wait && self.workload.is_some_and(|workload| workload < limit)
    }
}

/// The place of a workload: one runs at a time. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    ahead: Arc<Ahead>,
    place: Arc<Mutex<()>>,
}

/// The right to run a workload in a slot, for as long as it is kept. Dropped, the workload counts as failed.
#[derive(Debug)]
pub(super) struct Running {
    ahead: Arc<Ahead>,
    since: Instant,
    has_succeeded: bool,
    _place: OwnedMutexGuard<()>,
}

impl Slot {
    pub(super) fn new(ahead: Arc<Ahead>) -> Self {
        Self { ahead, place: Arc::default() }
    }

    /// Waits until no other workload runs in this slot. Safe to drop.
    ///
    /// # Errors
    /// [`StopReason::SlotBusy`] if one runs for longer than expected.
    pub(super) async fn run(&self) -> Result<Running, StopReason> {
        let limit = self.ahead.limit * WAIT_FACTOR;
        let Ok(place) = tokio::time::timeout(limit, self.place.clone().lock_owned()).await else {
            self.ahead.note_workload(limit);
            return Err(StopReason::SlotBusy);
        };
        Ok(Running { ahead: self.ahead.clone(), since: Instant::now(), has_succeeded: false, _place: place })
    }
}

impl Running {
    /// Makes room for the next workload.
    pub(super) fn end(mut self, has_succeeded: bool) {
        self.has_succeeded = has_succeeded;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_succeeded {
            self.ahead.note_workload(self.since.elapsed());
        } else {
            self.ahead.note_failure();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_second_lane_works_only_while_workloads_are_short_and_many_tasks_wait() {
        let ahead = Ahead::new(10 * SECOND);
        assert!(!ahead.is_worthwhile(), "nothing is known");
        ahead.note_waiting(true);
        assert!(!ahead.is_worthwhile(), "no workload has ended");
        ahead.note_workload(SECOND);
        assert!(ahead.is_worthwhile());
        ahead.note_waiting(false);
        assert!(!ahead.is_worthwhile(), "other nodes may lack tasks");
        ahead.note_waiting(true);
        ahead.note_workload(30 * SECOND);
        assert!(!ahead.is_worthwhile(), "they have become long");
        ahead.note_workload(SECOND);
        assert!(ahead.is_worthwhile());
        ahead.note_failure();
        assert!(!ahead.is_worthwhile(), "this node may be at fault");

        let never = Ahead::new(Duration::ZERO);
        never.note_waiting(true);
        never.note_workload(Duration::ZERO);
        assert!(!never.is_worthwhile());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_waits_for_its_slot_and_is_handed_back_if_a_workload_takes_unexpectedly_long() {
        let ahead = Arc::new(Ahead::new(10 * SECOND));
        ahead.note_waiting(true);
        ahead.note_workload(SECOND);
        let slot = Slot::new(ahead.clone());
        let first = slot.run().await.unwrap();
        let second = slot.clone();
        let mut second = std::pin::pin!(second.run());
        assert!(tokio::time::timeout(19 * SECOND, &mut second).await.is_err(), "one workload at a time");
        first.end(true);
        let second = second.await.unwrap();

        let started = Instant::now();
        assert!(matches!(slot.run().await, Err(StopReason::SlotBusy)));
        assert_eq!(started.elapsed(), 20 * SECOND);
        assert!(!ahead.is_worthwhile(), "the next would wait as long");
        second.end(true);
        assert!(ahead.known.borrow().workload.is_some());
        drop(slot.run().await.unwrap());
        assert!(ahead.known.borrow().workload.is_none(), "a panic is a failure");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_reason_to_work_hears_of_it() {
        let ahead = Arc::new(Ahead::new(10 * SECOND));
        let waiting = async {
            ahead.becomes_worthwhile().await;
            Instant::now()
        };
        let later = async {
            ahead.note_waiting(true);
            tokio::time::sleep(SECOND).await;
            ahead.note_workload(SECOND);
            Instant::now()
        };
        let (woken, noted) = tokio::join!(waiting, later);
        assert_eq!(woken, noted);
    }
}
