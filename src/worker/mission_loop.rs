//! The loop of a node that serves a mission: each slot claims the next pending task, until none is left.
//!
//! ```text
//!   lane:  next ──a task──► attempt (as for a single task) ──► next
//!            │  ◄── nothing, but other lanes still work: read again ──┘
//!            └─ nothing, three times, and no lane works ──► the node ends
//! ```
//!
//! A slot has two lanes, of which one runs a workload at a time (`ahead.rs`). The second one works only at times, and
//! never decides that the node ends.
//!
//! Pending tasks are found in the index of open tasks. A page of it serves many claims. Each claim is the same
//! conditional write as for a single task, so a page that is out of date costs a refused write and nothing else. The
//! tasks of a page are tried in random order, because many nodes read the same page. The page has the tasks that have
//! waited longest, so every task is reached.
//!
//! A task that is suspected of having crashed a node (`crash.rs`) runs alone: the slot that takes it waits until no
//! other slot has a task, and none starts one until it has ended. A node with other work leaves it to nodes without
//! work, for at least 15 minutes. Then it waits for the other slots, for at most 5 minutes (`turns.rs`). If they have
//! not ended by then, they continue, and all suspect tasks wait until later, or until there is nothing else to do. As a
//! rule, one node of a mission waits in this way at a time (`queue.rs`).
//!
//! A task that could not be claimed is set aside for a while, twice as long each time, whatever the index says of it. A
//! node that finds only such tasks pauses, and ends, as if there were none.
//!
//! Whether the mission is complete is looked at when no task is found, and when the node ends (`mission_end.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::ahead::{Ahead, InLane, Slot};
use super::crash::RecoveredTask;
use super::host::Host;
use super::identity::Assignment;
use super::mission_end::MissionEnd;
use super::outcome::Outcome;
use super::queue::{NextTask, PAGE_LIFE, Queue};
use super::retry::{Retryable, call_until_drained, retry_transient_unless};
use super::turns::{SUSPECT_WAIT, Turn, Turns, Waited};
use super::{Node, NodeError, task};
use crate::backend::error_chain;
use crate::backend::ledger::Partition;
use crate::domain::backoff;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::task::{State, Task};
use crate::workload::Sandbox;

/// The smallest page of the index, in entries: a hundred keys are about 20 kB, 2.5 read units.
const PAGE_LEN_MIN: usize = 100;
/// The largest page of the index: 200 kB, 25 read units.
const PAGE_LEN_MAX: usize = 1_000;
/// How often a slot must find nothing before it ends: an index lags, by much less than a second as a rule.
const EMPTY_LOOKS: u32 = 3;
/// The pause after such a read; three of them are six seconds.
const EMPTY_PAUSE: Duration = Duration::from_secs(2);
/// The pause between checks of a full disk: a check is one system call.
const ROOM_PAUSE: Duration = Duration::from_secs(2);
/// The pause between reads of a slot without work while other slots of this node have some.
const IDLE_PAUSE: Duration = Duration::from_secs(15);
/// The most pages that are read of a partition whose first pages hold only tasks that are set aside.
const PAGES_MAX: usize = 20;

/// Does the mission's tasks until none is left, or the node must stop.
pub(super) async fn serve(host: &Host, mission: &MissionId, left: Vec<RecoveredTask>) -> Result<Outcome, NodeError> {
    let node = &host.node;
    let row = call_until_drained(node, "reading the mission", || node.backend.ledger.mission(mission)).await?;
    let Some(row) = row else { return Ok(Outcome::Drained) };
    let row = row.ok_or_else(|| NodeError::NoMission { mission: mission.to_string() })?;
    host.instance.note_mission(&row);
    let slots = slots_of(node, row.slots.or(node.settings.slots).unwrap_or(1).max(1));
    tracing::info!(mission = %mission, slots, "serving mission {mission}, {slots} tasks at a time");
    let host = Host { node: with_sandbox(node, |sandbox| sandbox.shared(slots)), ..host.clone() };
    let all_slots = 2 * row.nodes.unwrap_or(1) * u32::from(slots);
    let looking = usize::try_from(all_slots / row.tally_shards.max(1)).unwrap_or(PAGE_LEN_MAX);
    let server = Arc::new(Server {
        mission: mission.clone(),
        shards: row.tally_shards,
        // Twice as many as slots that look at the same page, so that few try for the same task.
        page_len: AtomicUsize::new(looking.clamp(PAGE_LEN_MIN, PAGE_LEN_MAX)),
        many_len: usize::try_from(all_slots)
            .unwrap_or(PAGE_LEN_MAX)
            .clamp(1, looking.clamp(PAGE_LEN_MIN, PAGE_LEN_MAX)),
        ahead: Arc::new(Ahead::new(node.settings.claim_ahead)),
        queue: Mutex::new(Queue::new(left, row.nodes.unwrap_or(1))),
        slots,
        turns: Turns::new(SUSPECT_WAIT),
        end: MissionEnd::new(host.clone(), mission.clone()),
        host,
        working: AtomicUsize::new(0),
        is_over: AtomicBool::new(row.cancelled_at.is_some()),
    });
    let mut running = JoinSet::new();
    for slot in 0..slots {
        let span = tracing::info_span!("slot", slot, mission = %mission, instance.id = %server.host.instance.id);
        let node = with_sandbox(&server.host.node, |sandbox| sandbox.of_slot(slot));
        let slot = Slot::new(server.ahead.clone());
        let host = Host { node, slot: Some(slot.clone()), ..server.host.clone() };
        let first_ended = CancellationToken::new();
        let (first, first_host, first_slot) = (server.clone(), host.clone(), slot.clone());
        let ends = first_ended.clone().drop_guard();
        let first = async move {
            // Dropped at its end, however that comes.
            let _ends = ends;
            first.first_lane(&first_host, &first_slot).await
        };
        lighthpc_runtime::spawn(&mut running, first.instrument(span.clone()));
        let second = server.clone();
        let second = async move { second.second_lane(&host, &slot, &first_ended).await };
        lighthpc_runtime::spawn(&mut running, second.instrument(span));
    }
    let (mut done, mut other, mut failure) = (0, 0, None);
    let look = MissionEnd::interval(&row);
    loop {
        // A join and a pause may be dropped: neither holds anything.
        let ended = tokio::select! {
            ended = running.join_next() => ended,
            () = tokio::time::sleep(look) => {
                if let Err(error) = server.end.look().await {
                    tracing::warn!("whether mission {mission} is complete is not known: {}", error_chain(&error));
                }
                continue;
            }
        };
        let Some(ended) = ended else { break };
        match ended.map_err(|panic| NodeError::Panicked(panic.to_string())) {
            Ok(lane) => {
                done += lane.done;
                other += lane.other;
                failure = failure.or(lane.failure);
            }
            Err(panic) => {
                server.is_over.store(true, Ordering::SeqCst);
                server.end.may_have_come();
                failure = failure.or(Some(panic));
            }
        }
    }
    // If a service does not answer, it is not waited for once more.
    if !failure.as_ref().is_some_and(Retryable::is_transient) {
        failure = failure.or(server.end.look().await.err());
    }
    failure.map_or(Ok(Outcome::Served { done, other }), Err)
}

/// Returns how many tasks a node runs at the same time. In a sandbox each has a user of its own, so the machine's users
/// are the limit.
fn slots_of(node: &Node, wanted: u16) -> u16 {
    let most = node.settings.bounds.sandbox.as_ref().map_or(u16::MAX, Sandbox::slots_max);
    if wanted > most {
        tracing::warn!(
            "{wanted} slots are asked for, and this machine has users for {most}: run scripts/provision again"
        );
    }
    wanted.min(most)
}

/// Returns a node with another sandbox for its workloads, if it has one.
fn with_sandbox(node: &Node, change: impl FnOnce(&Sandbox) -> Sandbox) -> Node {
    let mut node = node.clone();
    if let Some(sandbox) = &node.settings.bounds.sandbox {
        let mut settings = (*node.settings).clone();
        settings.bounds.sandbox = Some(change(sandbox));
        node.settings = Arc::new(settings);
    }
    node
}

/// What became of a lane's search for a task.
enum Taken {
    /// It had one, or the node must end.
    One,
    /// The disk is full.
    NoRoom,
    /// There is none.
    None {
        /// The other lanes of this node that have a task, or search for one.
        others: usize,
    },
}

/// What one lane did.
#[derive(Debug, Default)]
struct Lane {
    done: u64,
    other: u64,
    failure: Option<NodeError>,
}

struct Server {
    host: Host,
    mission: MissionId,
    shards: u32,
    /// It grows while other nodes take most of a page before it is used: tasks are short.
    page_len: AtomicUsize,
    /// The tasks of a page that are enough for all slots of the mission, if they can be claimed.
    many_len: usize,
    ahead: Arc<Ahead>,
    queue: Mutex<Queue>,
    slots: u16,
    turns: Turns,
    end: MissionEnd,
    /// Lanes that have a task, or search for one.
    working: AtomicUsize,
    /// Set when no lane may start another task.
    is_over: AtomicBool,
}

impl Server {
    /// Does task after task; `host` has the slot's own sandbox.
    async fn first_lane(&self, host: &Host, slot: &Slot) -> Lane {
        let (mut lane, mut empty) = (Lane::default(), 0);
        while !self.must_end() {
            // If this waits, the other lane has a task, which ends with a drain, too.
            let in_lane = slot.begin().await;
            if self.must_end() {
                break;
            }
            match self.take_one(host, in_lane, &mut lane).await {
                Taken::One => empty = 0,
                Taken::NoRoom => self.pause(ROOM_PAUSE).await,
                Taken::None { others } => {
                    empty += 1;
                    if empty >= EMPTY_LOOKS && others == 0 {
                        break;
                    }
                    if let Err(error) = self.end.look().await {
                        self.fail(&mut lane, error);
                        break;
                    }
                    self.pause(if empty < EMPTY_LOOKS { EMPTY_PAUSE } else { IDLE_PAUSE }).await;
                }
            }
        }
        lane
    }

    /// Does tasks beside those of the first lane of its slot, whenever this hides the time of requests.
    async fn second_lane(&self, host: &Host, slot: &Slot, first_ended: &CancellationToken) -> Lane {
        let mut lane = Lane::default();
        loop {
            // Both arms may be dropped: a lane that has not begun holds nothing.
            let in_lane = tokio::select! {
                biased;
                () = first_ended.cancelled() => return lane,
                in_lane = slot.begin_beside() => in_lane,
            };
            if self.must_end() {
                drop(in_lane);
                // The first lane ends as soon as it sees it.
                first_ended.cancelled().await;
                return lane;
            }
            let is_none = match self.take_one(host, in_lane, &mut lane).await {
                Taken::One => false,
                Taken::NoRoom => {
                    self.pause(ROOM_PAUSE).await;
                    false
                }
                Taken::None { .. } => {
                    self.ahead.note_waiting(false);
                    true
                }
            };
            // It may have ended the mission's last task, while the first lane pauses.
            if slot.is_full()
                && let Err(error) = self.end.look().await
            {
                self.fail(&mut lane, error);
            }
            if is_none {
                self.pause(EMPTY_PAUSE).await;
            }
        }
    }

    /// Finds a task, and makes attempts at it.
    async fn take_one(&self, host: &Host, _in_lane: InLane, lane: &mut Lane) -> Taken {
        // There is no room while other lanes work and the disk is full.
        let Some(_begun) = host.node.settings.disk.begin(&host.node.settings.work_dir) else { return Taken::NoRoom };
        // Counted before the read: a lane that is about to work must not seem idle to the others.
        self.working.fetch_add(1, Ordering::SeqCst);
        let has_ended = match self.next().await {
            Ok(Some(next)) => {
                self.work(host, &next, lane).await;
                self.queue.lock().await.held.remove(&next.src);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.fail(lane, error);
                true
            }
        };
        let others = self.working.fetch_sub(1, Ordering::SeqCst) - 1;
        if has_ended { Taken::One } else { Taken::None { others } }
    }

    /// Ends the node: the next task would fail in the same way.
    fn fail(&self, lane: &mut Lane, error: NodeError) {
        self.is_over.store(true, Ordering::SeqCst);
        lane.failure = lane.failure.take().or(Some(error));
    }

    fn must_end(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
            || self.host.node.stopping.drain.is_cancelled()
            || self.host.spot.should_stop_claiming()
    }

    /// Waits for a slot's turn. `None` if the task is not pending any more, or must wait until later, or the node must
    /// stop.
    async fn turn(&self, next: &NextTask) -> Option<Turn<'_>> {
        let drain = &self.host.node.stopping.drain;
        if !next.is_suspect {
            return self.turns.shared(drain).await.filter(|_| !self.must_end());
        }
        tracing::info!(src.id = %next.src, "task {} is suspected of a crash: it waits to run alone", next.src);
        let may_wait = async { self.queue.lock().await.may_wait(Instant::now()) };
        match self.turns.alone(drain, may_wait, || self.still_waits(&next.src)).await {
            Waited::Alone(turn) => {
                self.queue.lock().await.was_alone();
                Some(turn).filter(|_| !self.must_end())
            }
            Waited::NotNow => {
                tracing::info!(src.id = %next.src, "task {} was not alone in time: it waits until later", next.src);
                self.queue.lock().await.put_off(next.src.clone(), Instant::now());
                None
            }
            Waited::Over => None,
        }
    }

    async fn still_waits(&self, src: &SrcId) -> bool {
        let row = self.host.node.backend.ledger.task(src).await;
        let waits = |row: Task| match row.state {
            State::Running => row.instance.as_ref() == Some(&self.host.instance.id),
            state => state == State::Pending,
        };
        // A row that cannot be read now is read again in a moment.
        !self.must_end() && row.map_or(true, |row| row.is_some_and(waits))
    }

    async fn work(&self, host: &Host, next: &NextTask, lane: &mut Lane) {
        let src = &next.src;
        // Held until the attempt has ended.
        let Some(turn) = self.turn(next).await else { return };
        let is_only = || self.slots == 1 && host.slot.as_ref().is_none_or(Slot::claim_alone);
        let is_alone = matches!(turn, Turn::Alone(..)) || is_only();
        let task = Assignment {
            src: src.clone(),
            mission: Some(self.mission.clone()),
            waits_for_holder: false,
            looks_at_end: false,
            is_alone,
        };
        let outcome = task::run(host, &task).await;
        if !matches!(outcome, Ok(Outcome::HeldByOther(_))) {
            self.end.may_have_come();
        }
        match outcome {
            Ok(Outcome::Committed { .. }) => lane.done += 1,
            // Another node was faster, or the index lags.
            Ok(Outcome::EndedBefore(_) | Outcome::HeldByOther(_)) => self.set_aside(src).await,
            Ok(Outcome::Suspect) => self.queue.lock().await.suspect(src.clone(), Instant::now()),
            Ok(Outcome::Cancelled) => {
                lane.other += 1;
                self.is_over.store(true, Ordering::SeqCst);
            }
            Ok(Outcome::NoRoom(error)) => {
                // The next task, which may be this one, waits for free space.
                lane.other += 1;
                tracing::warn!(src.id = %src, "task {src}: {}", error_chain(&error));
            }
            Ok(Outcome::Drained | Outcome::Interrupted | Outcome::Served { .. } | Outcome::TryAgain(_)) => {
                lane.other += 1;
            }
            Err(error @ NodeError::OddRow { .. }) => {
                tracing::warn!(src.id = %src, "{}", error_chain(&error));
                self.set_aside(src).await;
            }
            Err(error) => {
                lane.other += 1;
                if error.is_the_tasks_own() {
                    tracing::warn!(src.id = %src, "task {src}: {}", error_chain(&error));
                    if matches!(error, NodeError::Cloud { .. }) {
                        // A person must change the row, so it is not tried again at once.
                        self.set_aside(src).await;
                    }
                } else {
                    self.fail(lane, error);
                }
            }
        }
    }

    async fn set_aside(&self, src: &SrcId) {
        self.queue.lock().await.set_aside(src.clone(), Instant::now());
    }

    /// Finds the next pending task. Reads one page as a rule, and at most [`PAGES_MAX`] of each of the mission's
    /// partitions, if all that comes first is set aside.
    async fn next(&self) -> Result<Option<NextTask>, NodeError> {
        let mut queue = self.queue.lock().await;
        if let Some(next) = queue.take_suspect(Instant::now(), false) {
            return Ok(Some(next));
        }
        let is_fresh = queue.read_at.is_some_and(|read_at| read_at.elapsed() < PAGE_LIFE);
        if is_fresh && let Some(next) = queue.take(Instant::now()) {
            return Ok(Some(next));
        }
        queue.forget_old(Instant::now());
        if queue.is_contended() {
            let page_len = self.page_len.load(Ordering::SeqCst);
            self.page_len.store((2 * page_len).min(PAGE_LEN_MAX), Ordering::SeqCst);
        }
        let page_len = self.page_len.load(Ordering::SeqCst);
        let first: u32 = rand::random();
        for n in 0..self.shards {
            let shard = (first % self.shards + n) % self.shards;
            let partition = Partition { mission: Some(&self.mission), shard };
            let mut from = None;
            for _ in 0..PAGES_MAX {
                if self.must_end() {
                    return Ok(None);
                }
                let ledger = &self.host.node.backend.ledger;
                let page = || ledger.open_page(partition, State::Pending, page_len, from.as_ref());
                let page = match retry_transient_unless(
                    &self.host.node.stopping.drain,
                    self.host.node.settings.max_idle,
                    page,
                )
                .await
                {
                    Err(error) if error.is_retryable() && self.must_end() => return Ok(None),
                    page => page,
                };
                let page = page.map_err(NodeError::cloud("looking for the next task"))?;
                let last = page.tasks.last().cloned().filter(|_| !page.is_last);
                let mut srcs: Vec<SrcId> = page.tasks.into_iter().map(|task| task.src).collect();
                self.ahead.note_waiting(queue.takeable(&srcs, Instant::now()) >= self.many_len);
                srcs.shuffle(&mut rand::rng());
                queue.page = srcs.into();
                queue.read_at = Some(Instant::now());
                queue.taken = 0;
                if let Some(next) = queue.take(Instant::now()) {
                    return Ok(Some(next));
                }
                match last {
                    Some(last) => from = Some(last),
                    None => break,
                }
            }
        }
        // A node is idle if no other lane has a task, or searches for one.
        let is_idle = self.working.load(Ordering::SeqCst) <= 1;
        Ok(queue.take_suspect(Instant::now(), is_idle))
    }

    /// Waits, up to a fifth shorter or longer by chance, unless the node drains.
    async fn pause(&self, pause: Duration) {
        let pause = backoff::jittered(pause, 0.2, rand::random());
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.host.node.stopping.drain.cancelled() => {}
        }
    }
}
