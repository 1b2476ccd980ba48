//! Hides the time of requests on a node that serves a mission: a slot has two lanes.
//!
//! ```text
//!   lane 1:  claim, download │ workload │ upload, commit, claim, download │ workload │ upload …
//!   lane 2:        …         │   claim, download    …   │ workload │ upload, commit, claim …
//! ```
//!
//! Each lane does task after task as a slot without lanes would. Only the workload needs the slot: of the lanes of a
//! slot, one runs a workload at a time. A lane takes a task beside that of the other lane only while this is worth it:
//! the slot's last workload succeeded, its recent ones were short, the one that runs is not long, and many tasks wait.
//! Otherwise a task would wait here that another node could begin. A task that waits although no workload should take so
//! long is handed back; so is one whose node turns out to be at fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio::time::Instant;

use super::outcome::StopReason;

/// How long a claimed task waits for its slot, as a multiple of the longest workload for which one is claimed ahead.
const WAIT_FACTOR: u32 = 2;

/// What the slots of a node have in common.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The longest workload beside which a task is claimed; zero: never.
    limit: Duration,
    /// Whether enough tasks wait for all nodes of the mission.
    many_wait: watch::Sender<bool>,
    /// Whether a task was ever claimed ahead.
    was_used: AtomicBool,
    /// Set when the disk has no room for it.
    is_off: AtomicBool,
}

impl Ahead {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            many_wait: watch::Sender::new(false),
            was_used: AtomicBool::default(),
            is_off: AtomicBool::default(),
        }
    }

    /// Notes whether many tasks wait.
    pub(super) fn note_waiting(&self, many_wait: bool) {
        self.many_wait.send_if_modified(|before| std::mem::replace(before, many_wait) != many_wait);
    }
}

/// A slot: the place of one workload, and of up to two tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    ahead: Arc<Ahead>,
    place: Arc<Mutex<()>>,
    known: watch::Sender<Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The lanes that have a task, or search for one.
    lanes: u8,
    /// Whether the one lane with a task has claimed it as alone on its node.
    is_alone: bool,
    /// The mean time of workloads since the last one that failed. The newest has half of the weight.
    workload: Option<Duration>,
    /// Since when the workload runs that runs now.
    running: Option<Instant>,
    /// Whether a workload failed for a reason that is this node's. Only a task that was claimed before is handed back for
    /// it: a node that goes on is not at fault.
    is_at_fault: bool,
}

/// A lane that has a task, or searches for one, for as long as this is kept.
#[derive(Debug)]
pub(super) struct InLane(Slot);

/// The right to run a workload in a slot, for as long as it is kept. Dropped, the workload counts as failed.
#[derive(Debug)]
pub(super) struct Running {
    slot: Slot,
    since: Instant,
    ended: Ended,
    _place: OwnedMutexGuard<()>,
}

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Succeeded,
    Failed,
    /// The next one on this node would fail in the same way.
    NodeAtFault,
}

impl Slot {
    pub(super) fn new(ahead: Arc<Ahead>) -> Self {
        Self { ahead, place: Arc::default(), known: watch::Sender::default() }
    }

    /// Returns whether a task may be claimed beside another one.
    fn is_worthwhile(&self, known: &Known) -> bool {
        let limit = self.ahead.limit;
        let is_short = known.workload.is_some_and(|workload| workload < limit)
            && known.running.is_none_or(|since| since.elapsed() < limit);
        is_short && !known.is_at_fault && *self.ahead.many_wait.borrow() && !self.ahead.is_off.load(Ordering::SeqCst)
    }

    /// Waits until the first lane may take a task. Safe to drop.
    pub(super) async fn begin(&self) -> InLane {
        self.begin_if(|slot, known| known.lanes == 0 || slot.may_begin_beside(known)).await
    }

    /// Waits until the second lane may take a task: beside one of the first. Safe to drop.
    pub(super) async fn begin_beside(&self) -> InLane {
        self.begin_if(Self::may_begin_beside).await
    }

    fn may_begin_beside(&self, known: &Known) -> bool {
        known.lanes == 1 && !known.is_alone && self.is_worthwhile(known)
    }

    /// Returns whether the second lane would have to wait.
    pub(super) fn is_full(&self) -> bool {
        !self.may_begin_beside(&self.known.borrow())
    }

    async fn begin_if(&self, may_begin: impl Fn(&Self, &Known) -> bool) -> InLane {
        let (mut known, mut many_wait) = (self.known.subscribe(), self.ahead.many_wait.subscribe());
        loop {
            known.mark_unchanged();
            many_wait.mark_unchanged();
            let begins = self.known.send_if_modified(|known| {
                let begins = may_begin(self, known);
                known.lanes += u8::from(begins);
                begins
            });
            if begins {
                self.ahead.was_used.fetch_or(self.has_another_task(), Ordering::SeqCst);
                return InLane(self.clone());
            }
            // The senders are this value's, so the channels are open. Time alone allows nothing more.
            tokio::select! {
                _ = known.changed() => {}
                _ = many_wait.changed() => {}
            }
        }
    }

    /// Returns whether the lane that asks is the only one with a task, and stays so until this task has ended.
    pub(super) fn claim_alone(&self) -> bool {
        self.known.send_if_modified(|known| {
            let is_alone = known.lanes == 1 && !self.is_worthwhile(known);
            known.is_alone |= is_alone;
            is_alone
        })
    }

    /// Returns whether both lanes have a task.
    pub(super) fn has_another_task(&self) -> bool {
        self.known.borrow().lanes > 1
    }

    /// Claims no task ahead any more on this node. Returns whether that changes anything.
    pub(super) fn turn_off(&self) -> bool {
        !self.ahead.is_off.swap(true, Ordering::SeqCst) && self.ahead.was_used.load(Ordering::SeqCst)
    }

    /// Waits until no other workload runs in this slot. Safe to drop.
    ///
    /// # Errors
    /// [`StopReason::HandedBack`] if one runs for longer than expected, or this node is at fault.
    pub(super) async fn run(&self) -> Result<Running, StopReason> {
        let place = tokio::time::timeout(self.ahead.limit * WAIT_FACTOR, self.place.clone().lock_owned()).await;
        let Ok(place) = place else {
            let why = "it was claimed ahead, and the workload before it runs for longer than expected";
            return Err(StopReason::HandedBack(why));
        };
        if self.known.borrow().is_at_fault {
            return Err(StopReason::HandedBack("this node cannot run workloads"));
        }
        let since = Instant::now();
        self.known.send_modify(|known| known.running = Some(since));
        Ok(Running { slot: self.clone(), since, ended: Ended::Failed, _place: place })
    }
}

impl Drop for InLane {
    fn drop(&mut self) {
        self.0.known.send_modify(|known| {
            known.lanes -= 1;
            known.is_alone = false;
            known.is_at_fault &= known.lanes > 0;
        });
    }
}

impl Running {
    /// Makes room for the next workload.
    pub(super) fn end(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        self.slot.known.send_modify(|known| {
            known.running = None;
            known.is_at_fault |= self.ended == Ended::NodeAtFault;
            known.workload = match self.ended {
                Ended::Succeeded => Some(known.workload.map_or(took, |before| (before + took) / 2)),
                Ended::Failed | Ended::NodeAtFault => None,
            };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn slot(limit: Duration) -> Slot {
        Slot::new(Arc::new(Ahead::new(limit)))
    }

    async fn workload(slot: &Slot, takes: Duration, ended: Ended) {
        let running = slot.run().await.unwrap();
        tokio::time::sleep(takes).await;
        running.end(ended);
    }

    async fn at_once<T>(begins: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(SECOND / 100, begins).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_task_is_taken_only_while_workloads_are_short_and_many_tasks_wait() {
        let slot = slot(10 * SECOND);
        let may_begin = async || at_once(slot.begin_beside()).await.is_some();
        assert!(!may_begin().await, "the first lane has none");
        let _first = slot.begin().await;
        slot.ahead.note_waiting(true);
        assert!(!may_begin().await, "no workload has ended");
        workload(&slot, SECOND, Ended::Succeeded).await;
        assert!(may_begin().await && may_begin().await, "a lane that ends makes room");
        slot.ahead.note_waiting(false);
        assert!(!may_begin().await, "other nodes may lack tasks");
        slot.ahead.note_waiting(true);
        workload(&slot, 30 * SECOND, Ended::Succeeded).await;
        assert!(!may_begin().await, "they have become long");
        workload(&slot, SECOND, Ended::Succeeded).await;
        assert!(may_begin().await);
        let running = slot.run().await.unwrap();
        tokio::time::sleep(11 * SECOND).await;
        assert!(!may_begin().await, "this one is long already");
        running.end(Ended::Failed);
        assert!(!may_begin().await, "the next may fail, too");
        workload(&slot, SECOND, Ended::Succeeded).await;
        assert!(may_begin().await);
        let second = slot.begin_beside().await;
        assert!(!may_begin().await && at_once(slot.begin()).await.is_none(), "a slot has two tasks at the most");
        drop(second);
        assert!(slot.turn_off() && !slot.turn_off() && !may_begin().await);

        let never = self::slot(Duration::ZERO);
        never.ahead.note_waiting(true);
        let _first = never.begin().await;
        workload(&never, Duration::ZERO, Ended::Succeeded).await;
        assert!(at_once(never.begin_beside()).await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_waits_for_its_slot_and_is_handed_back_if_a_workload_takes_unexpectedly_long() {
        let slot = slot(10 * SECOND);
        let first = slot.run().await.unwrap();
        let other = slot.clone();
        let mut second = std::pin::pin!(other.run());
        assert!(tokio::time::timeout(19 * SECOND, &mut second).await.is_err(), "one workload at a time");
        first.end(Ended::Succeeded);
        let second = second.await.unwrap();

        let started = Instant::now();
        assert!(matches!(slot.run().await, Err(StopReason::HandedBack(_))));
        assert_eq!(started.elapsed(), 20 * SECOND);
        second.end(Ended::NodeAtFault);
        assert!(matches!(slot.run().await, Err(StopReason::HandedBack(_))), "it would fail in the same way");
        drop(slot.begin().await);
        assert!(slot.run().await.is_ok(), "a node that goes on is not at fault");
    }

    #[tokio::test(start_paused = true)]
    async fn beside_a_task_that_is_alone_on_its_node_none_is_taken() {
        let slot = slot(10 * SECOND);
        slot.ahead.note_waiting(true);
        let first = slot.begin().await;
        assert!(slot.claim_alone(), "nothing is known yet");
        workload(&slot, SECOND, Ended::Succeeded).await;
        assert!(at_once(slot.begin_beside()).await.is_none(), "its result still goes up");
        drop(first);

        let first = slot.begin().await;
        assert!(!slot.claim_alone(), "another may be taken");
        let second = at_once(slot.begin_beside()).await.unwrap();
        drop(first);
        slot.ahead.note_waiting(false);
        assert!(slot.claim_alone(), "the second lane has the only task, and no other is taken");
        assert!(at_once(slot.begin()).await.is_none());
        drop(second);
        assert!(at_once(slot.begin()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_reason_to_work_hears_of_it() {
        let slot = slot(10 * SECOND);
        let _first = slot.begin().await;
        let waiting = async {
            let _second = slot.begin_beside().await;
            Instant::now()
        };
        let later = async {
            workload(&slot, SECOND, Ended::Succeeded).await;
            tokio::time::sleep(SECOND).await;
            slot.ahead.note_waiting(true);
            Instant::now()
        };
        let (woken, noted) = tokio::join!(waiting, later);
        assert_eq!(woken, noted);
    }
}
