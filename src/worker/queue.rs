//! Pending tasks that a node of a mission knows: a page of the index, tasks that could not be claimed, and tasks that
//! must run alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::crash::RecoveredTask;
use super::turns::SUSPECT_WAIT;
use crate::domain::backoff;
use crate::domain::ids::SrcId;

/// How many tasks of a page may be found taken before it is discarded: other nodes have used it.
const TAKEN_MAX: u32 = 5;
/// How long a page is used: by then, other nodes have taken most of it.
pub(super) const PAGE_LIFE: Duration = Duration::from_secs(10);
/// How long a task that could not be claimed is set aside at first: longer than an index lags, or a page is used.
const ASIDE_FIRST: Duration = Duration::from_secs(10);
/// The longest time that a task is set aside. The sweep reports a row that stays odd.
const ASIDE_LAST: Duration = Duration::from_mins(10);
/// The most tasks that are remembered as set aside: about 150 bytes each. Above that, those with the shortest time are
/// forgotten.
const ASIDE_LEN_MAX: usize = 10_000;
/// The shortest time that a suspect task is left to nodes without other work. A node that takes it must let its slots
/// run empty.
const SUSPECT_PATIENCE: Duration = Duration::from_mins(15);
/// How often that is doubled after unsuccessful waits: up to four hours, of which a wait of five minutes is 2 %.
const DOUBLINGS_MAX: u32 = 4;
/// The most nodes among which the waits are spread: the last of them waits after more than eight hours.
const NODES_MAX: u32 = 100;

/// The pending tasks that are known.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) page: VecDeque<SrcId>,
    pub(super) read_at: Option<Instant>,
    /// Tasks that slots of this process have: the claim would take them for tasks of an earlier process of this
    /// machine.
    pub(super) held: HashSet<SrcId>,
    /// Tasks of this page that other nodes had taken.
    pub(super) taken: u32,
    /// Tasks that could not be claimed: until when they are set aside, and for how long that is.
    aside: HashMap<SrcId, (Instant, Duration)>,
    /// Tasks that must run alone, and the time after which they do not wait for this node to be idle.
    suspects: HashMap<SrcId, Instant>,
    /// The time after which the node may run empty for one of them, and how many such waits failed, one after another.
    waits_from: Instant,
    waits_failed: u32,
    /// The nodes of the mission.
    nodes: u32,
}

/// The next task of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextTask {
    pub(super) src: SrcId,
    pub(super) is_suspect: bool,
}

impl Queue {
    /// Makes the queue. Tasks of an earlier process come first: this machine still holds them, or this node is as idle
    /// as any. A task that has crashed a node on its own waits: the next crash may end this machine.
    pub(super) fn new(left: Vec<RecoveredTask>, nodes: u32) -> Self {
        let now = Instant::now();
        let (suspects, held): (Vec<_>, Vec<_>) = left.into_iter().partition(|found| found.crash.is_some());
        let due = |found: &RecoveredTask| {
            if found.crash.is_some_and(|crash| crash.crashes > 0) { now + patience(nodes, 0) } else { now }
        };
        Self {
            page: held.into_iter().map(|found| found.src).collect(),
            read_at: Some(now),
            held: HashSet::new(),
            taken: 0,
            aside: HashMap::new(),
            suspects: suspects.into_iter().map(|found| (found.src.clone(), due(&found))).collect(),
            waits_from: now,
            waits_failed: 0,
            nodes,
        }
    }

    /// Remembers a task that must run alone. Tasks beyond the bound are found again later.
    pub(super) fn suspect(&mut self, src: SrcId, now: Instant) {
        if self.suspects.len() < ASIDE_LEN_MAX {
            self.suspects.entry(src).or_insert_with(|| now + patience(self.nodes, 0));
        }
    }

    /// Returns whether other nodes have used so much of the page that a larger one is better.
    pub(super) fn is_contended(&self) -> bool {
        self.taken >= TAKEN_MAX
    }

    /// Returns whether the node may run empty for a suspect task.
    pub(super) fn may_wait(&self, now: Instant) -> bool {
        self.waits_from <= now
    }

    /// Postpones a suspect task for which the other slots have not ended in time, and all other suspect tasks with it.
    pub(super) fn put_off(&mut self, src: SrcId, now: Instant) {
        if self.may_wait(now) {
            self.waits_failed = (self.waits_failed + 1).min(DOUBLINGS_MAX);
            self.waits_from = now + patience(self.nodes, self.waits_failed);
        }
        self.suspect(src, now);
    }

    /// Notes that a suspect task was alone.
    pub(super) fn was_alone(&mut self) {
        self.waits_failed = 0;
    }

    /// Takes the suspect task that has waited longest for this node, if its time has come, or the node has nothing
    /// else.
    pub(super) fn take_suspect(&mut self, now: Instant, is_idle: bool) -> Option<NextTask> {
        let waits = self
            .suspects
            .iter()
            .filter(|(src, due)| (is_idle || **due <= now && self.may_wait(now)) && !self.held.contains(*src));
        let src = waits.min_by_key(|(_, due)| **due)?.0.clone();
        self.suspects.remove(&src);
        self.held.insert(src.clone());
        Some(NextTask { src, is_suspect: true })
    }

    /// Sets aside a task that could not be claimed.
    pub(super) fn set_aside(&mut self, src: SrcId, now: Instant) {
        self.taken += 1;
        if self.is_contended() {
            self.page.clear();
        }
        if self.aside.len() >= ASIDE_LEN_MAX {
            self.aside.retain(|_, (until, time)| *until > now && *time > ASIDE_FIRST);
        }
        let time = self.aside.get(&src).map_or(ASIDE_FIRST, |(_, time)| (*time * 2).min(ASIDE_LAST));
        self.aside.insert(src, (now + time, time));
    }

    fn is_aside(&self, src: &SrcId, now: Instant) -> bool {
        self.aside.get(src).is_some_and(|(until, _)| *until > now)
    }

    fn is_left(&self, src: &SrcId, now: Instant) -> bool {
        self.is_aside(src, now) || self.suspects.contains_key(src)
    }

    /// Returns how many of these tasks could be taken.
    pub(super) fn takeable(&self, srcs: &[SrcId], now: Instant) -> usize {
        srcs.iter().filter(|src| !self.is_left(src, now) && !self.held.contains(*src)).count()
    }

    /// Takes the next task that no other slot has.
    pub(super) fn take(&mut self, now: Instant) -> Option<NextTask> {
        while let Some(src) = self.page.pop_front() {
            if !self.is_left(&src, now) && self.held.insert(src.clone()) {
                return Some(NextTask { src, is_suspect: false });
            }
        }
        None
    }

    /// Forgets tasks whose time is over for so long that a new failure is unrelated.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.aside.retain(|_, (until, _)| *until + ASIDE_LAST > now);
    }
}

/// Returns how long a suspect task is left to other nodes: spread so that one node waits for it at a time. Otherwise
/// all nodes would run empty for it.
fn patience(nodes: u32, doublings: u32) -> Duration {
    let spread = SUSPECT_PATIENCE.max(SUSPECT_WAIT * nodes.min(NODES_MAX));
    SUSPECT_PATIENCE * 2_u32.pow(doublings) + backoff::between(Duration::ZERO, spread, rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::Crash;

    fn src(name: &str) -> SrcId {
        SrcId::new(name).unwrap()
    }

    fn found(name: &str, crash: Option<(u64, bool)>) -> RecoveredTask {
        let crash = crash.map(|(crashes, was_alone)| Crash { crashes, was_alone });
        RecoveredTask { src: src(name), crash }
    }

    fn next(name: &str, is_suspect: bool) -> NextTask {
        NextTask { src: src(name), is_suspect }
    }

    #[test]
    fn a_suspect_goes_first_unless_it_has_crashed_a_node_alone() {
        let left = vec![found("held", None), found("neighbour", Some((0, false))), found("culprit", Some((1, true)))];
        let mut queue = Queue::new(left, 1);
        let now = Instant::now();
        assert_eq!(queue.take_suspect(now, false), Some(next("neighbour", true)));
        assert_eq!(queue.take_suspect(now, false), None);
        assert_eq!(queue.take(now), Some(next("held", false)));
        assert_eq!(queue.take_suspect(now, true), Some(next("culprit", true)), "a node that has nothing else takes it");
        assert_eq!(queue.take_suspect(now, true), None);
    }

    #[test]
    fn a_suspect_waits_for_idle_nodes_for_a_bounded_time_and_is_taken_by_one_slot() {
        let mut queue = Queue::new(Vec::new(), 1);
        let now = Instant::now();
        queue.suspect(src("a"), now);
        // Found again on the next page: its time does not start again.
        queue.suspect(src("a"), now + SUSPECT_PATIENCE);
        queue.page = [src("a"), src("b")].into();
        assert_eq!(queue.take(now), Some(next("b", false)), "no slot asks for it again");
        assert_eq!(queue.take_suspect(now + SUSPECT_PATIENCE.mul_f64(0.99), false), None);
        let late = now + SUSPECT_PATIENCE * 2;
        assert_eq!(queue.take_suspect(late, false), Some(next("a", true)));
        queue.suspect(src("a"), now);
        assert_eq!(queue.take_suspect(late + SUSPECT_PATIENCE, true), None, "a slot has it");
        queue.held.remove(&src("a"));
        assert_eq!(queue.take_suspect(late + SUSPECT_PATIENCE, false), Some(next("a", true)));
    }

    #[test]
    fn after_a_wait_in_vain_no_suspect_task_empties_the_node_for_longer_each_time() {
        let mut queue = Queue::new(Vec::new(), 1);
        let mut now = Instant::now();
        queue.suspect(src("a"), now);
        for doublings in 1..=DOUBLINGS_MAX + 2 {
            queue.suspect(src("b"), now);
            now += SUSPECT_PATIENCE * 2;
            now = now.max(queue.waits_from);
            assert!(queue.may_wait(now) && queue.take_suspect(now, false).is_some());
            queue.held.clear();
            queue.put_off(src("a"), now);
            // One that waited behind it.
            queue.put_off(src("b"), now);
            let pause = SUSPECT_PATIENCE * 2_u32.pow(doublings.min(DOUBLINGS_MAX));
            assert_eq!(queue.take_suspect(now + pause - Duration::from_secs(1), false), None, "{doublings}");
            assert!(!queue.may_wait(now + pause - Duration::from_secs(1)), "{doublings}");
            assert!(queue.may_wait(now + pause + SUSPECT_PATIENCE), "{doublings}: once");
        }
        assert!(queue.take_suspect(now, true).is_some(), "a node that has nothing else does not wait");
        queue.was_alone();
        assert_eq!(queue.waits_failed, 0);
    }

    /// Each node that waits runs empty: of a hundred, one at a time.
    #[test]
    fn the_waits_of_a_missions_nodes_are_spread() {
        let mut dues: Vec<_> = (0..100).map(|_| patience(100, 0)).collect();
        dues.sort();
        assert!(dues[0] >= SUSPECT_PATIENCE && dues[0] < SUSPECT_PATIENCE + SUSPECT_WAIT * 30, "{:?}", dues[0]);
        let waiting = |at: Duration| dues.iter().filter(|due| **due <= at && at < **due + SUSPECT_WAIT).count();
        let mean = dues.iter().map(|due| waiting(*due)).sum::<usize>() / dues.len();
        assert!(mean <= 4, "{mean} at a time");
        assert!(patience(u32::MAX, DOUBLINGS_MAX) < Duration::from_hours(13));
    }
}
