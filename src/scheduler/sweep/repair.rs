//! What a sweep does about what it sees.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::snapshot::Snapshot;
use super::{Finding, What, tally_of};
use crate::backend::fleet::Ours;
use crate::backend::ledger::{Cursor, OpenTask, PAGE_LEN, Partition};
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::Verdict;
use crate::scheduler::launch::{Node, waited_since};
use crate::scheduler::{Scheduler, SchedulerError};

/// How many instances that were launched for one attempt may vanish without a claim before the task is failed: each has
/// cost a boot, and an image that cannot boot will not learn to.
const LAUNCHES_LOST_MAX: u64 = 5;

/// How long one half of a sweep launches nodes for tasks, at two a second: the whole sweep must end within the 15 minutes of a
/// Lambda function. That is 2 + 2 + 3 minutes for the first half, 2 + 3 for the second, and a lease in between. The next sweep
/// goes on.
const LAUNCHES_TIME_MAX: Duration = Duration::from_mins(3);
/// How long one half of a sweep puts lost tasks back, at some 40 a second.
const PUT_BACK_TIME_MAX: Duration = Duration::from_mins(2);
/// How long the first look reads tasks that wait, at about 10,000 rows a second.
const WAITING_TIME_MAX: Duration = Duration::from_mins(2);
/// The most tasks that one sweep launches nodes for: as many as [`LAUNCHES_TIME_MAX`] allows at two a second. Each row is
/// kept until then: 360 are about 1 MB.
const WANTED_MAX: usize = 360;
/// The most tasks that are kept from one look to the other: key and two counters are about 150 bytes, so this is 30 MB.
const UNCONFIRMED_MAX: usize = 200_000;
/// The rows that are read at once: 100 are about 220 kB.
const ROWS_LEN: usize = 100;
/// The most claimable tasks that are counted for the nodes of one mission: no mission has more nodes.
const COUNT_MAX: u64 = 10_000;
/// Looks at what idle nodes of a mission hold, within one lease: a node between two tasks is seen with one by the next.
const IDLE_LOOKS: u32 = 5;
/// The most findings of one kind of trouble that are listed; of the rest only the number is.
const TROUBLES_MAX: usize = 100;

/// What the first look leaves to the second.
#[derive(Default)]
struct Unconfirmed {
    /// Leases whose holder may live: task → (attempt, beat).
    leases: BTreeMap<SrcId, (u64, u64)>,
    /// Instances without a live task, and their mission if they serve one.
    idle: BTreeMap<String, Option<MissionId>>,
    /// Launches without an instance: task → tries.
    launches: BTreeMap<SrcId, u64>,
    /// Publishers whose machine may live: mission → as it was.
    publishers: BTreeMap<MissionId, Notified>,
}

impl Unconfirmed {
    fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.idle.is_empty() && self.launches.is_empty() && self.publishers.is_empty()
    }

    fn is_full(&self) -> bool {
        self.leases.len() + self.launches.len() >= UNCONFIRMED_MAX
    }
}

/// What was counted of one mission.
#[derive(Default)]
struct Counts {
    running: u64,
    /// Tasks that a node could claim, as far as they were counted.
    claimable: u64,
    /// Since when the longest of them waits.
    since: Option<String>,
    /// Whether something of it was not looked at.
    is_cut: bool,
}

pub(super) struct Sweep<'a> {
    scheduler: &'a Scheduler,
    stop: &'a CancellationToken,
    findings: Vec<Finding>,
    troubles: usize,
    /// Cleared when EC2 refuses to launch at all: there is no use in asking it a thousand times.
    may_launch: bool,
    /// Missions whose launches it refuses.
    refused: HashSet<Option<MissionId>>,
    /// Tasks that want a node, and why. Launches are slow, so they come after everything else.
    wanted: Vec<(Task, Option<Mission>, String)>,
    unconfirmed: Unconfirmed,
    /// Instances that hold a running task.
    holders: HashSet<String>,
    /// What EC2 has said of holders that are not among our instances.
    gone: HashMap<String, bool>,
    counts: HashMap<MissionId, Counts>,
    /// When no more tasks are put back in this half.
    put_back_until: Instant,
    /// Lost tasks that were left to the next sweep.
    left: u64,
}

/// A part of the index that is still to be looked at.
#[derive(Clone)]
struct Part {
    mission: Option<MissionId>,
    shard: u32,
    from: Option<OpenTask>,
    /// The last entry that is looked at; `None`: all of them.
    until: Option<OpenTask>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(scheduler: &'a Scheduler, stop: &'a CancellationToken) -> Self {
        Self {
            scheduler,
            stop,
            findings: Vec::new(),
            troubles: 0,
            may_launch: scheduler.settings.template.is_some(),
            refused: HashSet::new(),
            wanted: Vec::new(),
            unconfirmed: Unconfirmed::default(),
            holders: HashSet::new(),
            gone: HashMap::new(),
            counts: HashMap::new(),
            put_back_until: Instant::now() + PUT_BACK_TIME_MAX,
            left: 0,
        }
    }

    pub(super) fn into_findings(mut self) -> Vec<Finding> {
        if self.troubles > TROUBLES_MAX {
            let reason = format!("{} more could not be done or read; the log has each", self.troubles - TROUBLES_MAX);
            self.findings.push(Finding { what: What::Trouble, subject: "the rest".to_owned(), reason });
        }
        if self.left > 0 {
            tracing::warn!("{} lost tasks are left to the next sweep", self.left);
        }
        self.findings
    }

    pub(super) async fn first(&mut self, world: &Snapshot) -> Result<(), SchedulerError> {
        for mission in world.missions.values() {
            for oddity in &mission.oddities {
                self.odd(mission.id.as_str(), oddity);
            }
        }
        let parts = parts_of(world);
        for part in &parts {
            self.look_at_running(world, part).await?;
        }
        self.look_at_all_waiting(world, parts).await?;
        for mission in world.missions.values() {
            self.announce(mission, false).await;
            self.close(mission).await;
            self.serve(world, mission).await;
        }
        self.launch_wanted().await;
        let idle = world.idle(&self.holders);
        let mission_of = |id: &str| {
            let ours = world.instances.iter().find(|ours| ours.id == id && ours.src.is_none())?;
            MissionId::new(ours.mission.clone()?).ok()
        };
        self.unconfirmed.idle = idle.into_keys().map(|id| (id.clone(), mission_of(&id))).collect();
        Ok(())
    }

    /// Waits for the second look; `false` if none is needed, or the sweep is to stop. Meanwhile the nodes that seem to have
    /// nothing to do are looked at a few times: one that is between two tasks is seen with one.
    pub(super) async fn wait(&mut self) -> Result<bool, SchedulerError> {
        if self.unconfirmed.is_empty() {
            return Ok(false);
        }
        let pause = self.scheduler.settings.lease / IDLE_LOOKS;
        for _ in 0..IDLE_LOOKS {
            // Both arms may be dropped: neither holds anything.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return Ok(false),
            }
            self.forget_busy().await?;
        }
        Ok(true)
    }

    /// Takes nodes off the list of idle ones that hold a task of their mission now.
    async fn forget_busy(&mut self) -> Result<(), SchedulerError> {
        let missions: HashSet<MissionId> = self.unconfirmed.idle.values().flatten().cloned().collect();
        for id in missions {
            let Some(mission) = self.scheduler.mission(&id).await? else { continue };
            for shard in 0..mission.tally_shards {
                let mut pages =
                    Pages::new(self.scheduler, Partition { mission: Some(&id), shard }, State::Running, None);
                while let Some(keys) = pages.next().await? {
                    for rows in keys.chunks(ROWS_LEN) {
                        // Whether it still runs or has just ended: its holder was at it a moment ago.
                        for task in self.rows(rows).await? {
                            if let Some(holder) = &task.instance {
                                self.unconfirmed.idle.remove(holder.as_str());
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn rows(&self, keys: &[OpenTask]) -> Result<Vec<Task>, SchedulerError> {
        let srcs: Vec<SrcId> = keys.iter().map(|task| task.src.clone()).collect();
        self.tasks(&srcs).await
    }

    async fn tasks(&self, srcs: &[SrcId]) -> Result<Vec<Task>, SchedulerError> {
        self.scheduler.backend.ledger.tasks(srcs).await.map_err(SchedulerError::cloud("reading open tasks"))
    }

    /// Looks at what runs in one partition.
    async fn look_at_running(&mut self, world: &Snapshot, part: &Part) -> Result<(), SchedulerError> {
        let partition = Partition { mission: part.mission.as_ref(), shard: part.shard };
        self.look_at_misplaced(partition).await?;
        let mut pages = Pages::new(self.scheduler, partition, State::Running, None);
        while let Some(keys) = pages.next().await? {
            self.odd_keys(&mut pages.odd);
            for rows in keys.chunks(ROWS_LEN) {
                for task in self.rows(rows).await? {
                    if let Some(id) = &part.mission {
                        self.counts.entry(id.clone()).or_default().running += 1;
                    }
                    self.look_at_holder(world, &task).await;
                }
            }
        }
        Ok(())
    }

    /// Corrects entries of the index whose `openAs` is neither a waiting nor a running task's: nothing else finds them.
    async fn look_at_misplaced(&mut self, partition: Partition<'_>) -> Result<(), SchedulerError> {
        let misplaced = self.scheduler.backend.ledger.misplaced(partition).await;
        let misplaced = misplaced.map_err(SchedulerError::cloud("listing misplaced entries of the index"))?;
        for srcs in misplaced.chunks(ROWS_LEN) {
            for task in self.tasks(srcs).await? {
                match task.oddity() {
                    Some(oddity) => self.odd(task.src.as_str(), &oddity),
                    None => self.reindex(&task).await,
                }
            }
        }
        Ok(())
    }

    async fn look_at_holder(&mut self, world: &Snapshot, task: &Task) {
        if self.is_odd_or_leftover(task).await || task.state != State::Running {
            return;
        }
        let owner = task.instance.as_ref().map_or("", InstanceId::as_str);
        self.holders.insert(owner.to_owned());
        let mission = world.mission_of(task);
        if let Some(mission) = mission.filter(|mission| mission.cancelled_at.is_some())
            && !task.cancelled
        {
            let asked = self.scheduler.backend.ledger.ask_to_cancel(&[task], mission, &clock::now_rfc3339()).await;
            if let Err(error) = asked.map_err(SchedulerError::cloud("asking a node to stop")) {
                self.trouble(task.src.as_str(), &error);
            }
        }
        if !world.is_alive(owner) && self.is_gone(owner).await {
            self.put_back(task, mission, &format!("EC2 says that its instance {owner} is gone")).await;
        } else if !self.unconfirmed.is_full() {
            self.unconfirmed.leases.insert(task.src.clone(), (task.attempt.0, task.beat));
        }
    }

    async fn is_gone(&mut self, owner: &str) -> bool {
        if let Some(is_gone) = self.gone.get(owner) {
            return *is_gone;
        }
        let is_gone = self.scheduler.backend.machine.is_gone(owner).await.unwrap_or_else(|error| {
            tracing::info!("EC2 does not say whether {owner} lives: {}", error.source);
            false
        });
        self.gone.insert(owner.to_owned(), is_gone);
        is_gone
    }

    /// Reports a row that cannot be understood, and corrects the index where it has another state than the row. Returns whether
    /// there was such a thing.
    async fn is_odd_or_leftover(&mut self, task: &Task) -> bool {
        if let Some(oddity) = task.oddity() {
            self.odd(task.src.as_str(), &oddity);
            return true;
        }
        if !task.is_leftover() {
            return false;
        }
        self.reindex(task).await;
        true
    }

    async fn reindex(&mut self, task: &Task) {
        let repaired = self.scheduler.backend.ledger.repair_index(task, &clock::now_rfc3339()).await;
        match repaired.map_err(SchedulerError::cloud("correcting the index")) {
            Ok(true) => {
                let reason =
                    format!("the index had it in another state than its row, which is {}", task.state.as_str());
                self.find(What::Reindexed, task.src.as_str(), &reason);
            }
            Ok(false) => {}
            Err(error) => self.trouble(task.src.as_str(), &error),
        }
    }

    /// Looks at what waits, from the cursor on and round to it, for as long as there is time. What was left is the next sweep's.
    async fn look_at_all_waiting(&mut self, world: &Snapshot, parts: Vec<Part>) -> Result<(), SchedulerError> {
        let cursor =
            self.scheduler.backend.ledger.cursor().await.map_err(SchedulerError::cloud("reading the cursor"))?;
        let until = Instant::now() + WAITING_TIME_MAX;
        let mut stopped: Option<Part> = None;
        for part in rotated(parts, &cursor) {
            let is_late = Instant::now() >= until || self.stop.is_cancelled();
            let at = if is_late {
                Some(part.clone())
            } else {
                self.look_at_waiting(world, &part, until, stopped.is_some()).await?
            };
            if let Some(at) = at {
                if let Some(id) = &part.mission {
                    self.counts.entry(id.clone()).or_default().is_cut = true;
                }
                stopped = stopped.or(Some(at));
            }
        }
        let to = match stopped {
            Some(part) => Cursor { mission: part.mission, shard: part.shard, after: part.from, ..cursor.clone() },
            // All of it was looked at: the next one begins at the beginning.
            None => Cursor { mission: None, shard: 0, after: None, ..cursor.clone() },
        };
        if to != cursor {
            let moved = self.scheduler.backend.ledger.move_cursor(&to).await;
            if let Err(error) = moved.map_err(SchedulerError::cloud("moving the cursor")) {
                self.trouble("the sweeps' cursor", &error);
            }
        }
        Ok(())
    }

    /// Looks at what waits in a part of the index; returns where it stopped, if not at the end. With `is_full`, tasks that want a
    /// node of their own are left to the next sweep.
    async fn look_at_waiting(
        &mut self,
        world: &Snapshot,
        part: &Part,
        until: Instant,
        is_full: bool,
    ) -> Result<Option<Part>, SchedulerError> {
        let mission = part.mission.as_ref().and_then(|id| world.missions.get(id));
        let is_cancelled = mission.is_some_and(|mission| mission.cancelled_at.is_some());
        let wanted_for_nodes = mission.and_then(|mission| {
            let slots = u64::from(mission.slots.unwrap_or(1));
            mission.nodes.map(|nodes| (u64::from(nodes) * slots).min(COUNT_MAX))
        });
        if is_full && !is_cancelled && wanted_for_nodes.is_none() {
            return Ok(Some(part.clone()));
        }
        let partition = Partition { mission: part.mission.as_ref(), shard: part.shard };
        let mut pages = Pages::new(self.scheduler, partition, State::Pending, part.from.clone());
        let mut stopped = Part { ..part.clone() };
        while let Some(keys) = pages.next().await? {
            self.odd_keys(&mut pages.odd);
            for keys in keys.chunks(ROWS_LEN) {
                let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
                if part.until.as_ref().is_some_and(|until| (&first.open_as, &first.src) > (&until.open_as, &until.src))
                {
                    return Ok(None);
                }
                let is_out = Instant::now() >= until || self.stop.is_cancelled() || self.unconfirmed.is_full();
                let is_enough = self.wanted.len() >= WANTED_MAX && !is_cancelled && wanted_for_nodes.is_none();
                if is_out || is_enough {
                    return Ok(Some(stopped));
                }
                let mut waiting = Vec::new();
                for task in self.rows(keys).await? {
                    if !self.is_odd_or_leftover(&task).await && task.state == State::Pending {
                        waiting.push(task);
                    }
                }
                if let Some(id) = &part.mission {
                    let counts = self.counts.entry(id.clone()).or_default();
                    counts.claimable += waiting.len() as u64;
                    let since = waiting.iter().filter_map(|task| task.open_since.clone()).min();
                    counts.since = [counts.since.take(), since].into_iter().flatten().min();
                }
                if let Some(mission) = mission.filter(|_| is_cancelled) {
                    self.fail_cancelled(mission, waiting).await;
                } else if let Some(enough) = wanted_for_nodes {
                    let id = part.mission.as_ref().expect("a mission with nodes has a name");
                    if self.counts.get(id).is_some_and(|counts| counts.claimable >= enough) {
                        return Ok(None);
                    }
                } else {
                    for task in waiting {
                        self.look_at_one_waiting(world, &task);
                    }
                }
                stopped.from = Some(last.clone());
            }
        }
        Ok(None)
    }

    async fn fail_cancelled(&mut self, mission: &Mission, tasks: Vec<Task>) {
        // A row that names another mission is that one's, whatever the index says.
        let is_its = |task: &Task| task.mission.as_ref().is_none_or(|id| *id == mission.id);
        let tasks: Vec<_> = tasks.into_iter().filter(is_its).map(|task| (task, None)).collect();
        let failed = self.scheduler.backend.ledger.fail(&tasks, Some(mission), Verdict::Cancelled, true).await;
        match failed.map_err(SchedulerError::cloud("failing tasks of a cancelled mission")) {
            Ok(failed) => {
                for src in failed.tasks {
                    self.find(What::Failed, src.as_str(), "its mission is cancelled");
                }
            }
            Err(error) => self.trouble(mission.id.as_str(), &error),
        }
    }

    /// Decides whether a task that waits for a node of its own wants one.
    fn look_at_one_waiting(&mut self, world: &Snapshot, task: &Task) {
        let is_early = task.launch.after.as_deref().and_then(clock::until).is_some_and(|wait| !wait.is_zero());
        if world.has_node(task) || is_early {
            return;
        }
        if task.launch.is_for(task.attempt) {
            // Launched, or about to be: an instance shows within a minute.
            self.unconfirmed.launches.insert(task.src.clone(), task.launch.tries);
        } else {
            let reason = if task.attempt.0 > 0 { "it was put back" } else { "nothing was launched for it" };
            self.want(task, world.mission_of(task), reason);
        }
    }

    /// Notes whether an announced mission still has open tasks.
    async fn close(&mut self, mission: &Mission) {
        let counts = self.counts.get(&mission.id);
        let is_open = counts.is_some_and(|counts| counts.running > 0 || counts.claimable > 0);
        if mission.notified != Notified::Yes || !is_open && counts.is_some_and(|counts| counts.is_cut) {
            return;
        }
        let noted = match (is_open, &mission.closed_at) {
            (true, Some(_)) => self.scheduler.note_late(&mission.id).await,
            (false, None) => {
                let noted = self.scheduler.backend.ledger.close_mission(mission, &clock::now_rfc3339()).await;
                noted.map_err(SchedulerError::cloud("closing a mission"))
            }
            (true, None) | (false, Some(_)) => Ok(()),
        };
        if let Err(error) = noted {
            self.trouble(mission.id.as_str(), &error);
        }
    }

    /// Remembers that a task wants a node. Beyond [`WANTED_MAX`] it is the next sweep's: the row says that it waits.
    pub(super) fn want(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        if self.wanted.len() >= WANTED_MAX {
            return;
        }
        self.wanted.push((task.clone(), mission.cloned(), reason.to_owned()));
    }

    /// Launches nodes for the tasks that want one.
    pub(super) async fn launch_wanted(&mut self) {
        let until = Instant::now() + LAUNCHES_TIME_MAX;
        let wanted = std::mem::take(&mut self.wanted);
        let total = wanted.len();
        for (number, (task, mission, reason)) in wanted.into_iter().enumerate() {
            if Instant::now() >= until || self.stop.is_cancelled() {
                tracing::warn!("{} of {total} launches are left to the next sweep", total - number);
                return;
            }
            self.launch(&task, mission.as_ref(), &reason).await;
        }
    }

    /// Looks again at what had to be seen twice, and acts on what has not changed.
    pub(super) async fn second(&mut self, world: &Snapshot) -> Result<(), SchedulerError> {
        let Unconfirmed { leases, launches, publishers, .. } =
            std::mem::take(&mut self.unconfirmed).with_idle(&mut self.unconfirmed);
        // From here on: who holds a task now.
        self.holders.clear();
        self.put_back_until = Instant::now() + PUT_BACK_TIME_MAX;
        let srcs: Vec<SrcId> = leases.keys().cloned().collect();
        for srcs in srcs.chunks(ROWS_LEN) {
            for task in self.tasks(srcs).await? {
                if task.state == State::Running && leases.get(&task.src) == Some(&(task.attempt.0, task.beat)) {
                    self.put_back(&task, world.mission_of(&task), "its lease has not moved for a whole lease").await;
                } else if let Some(holder) = task.instance.as_ref().filter(|_| task.state == State::Running) {
                    self.holders.insert(holder.to_string());
                }
            }
        }
        let srcs: Vec<SrcId> = launches.keys().cloned().collect();
        for srcs in srcs.chunks(ROWS_LEN) {
            for task in self.tasks(srcs).await? {
                let is_same = launches.get(&task.src) == Some(&task.launch.tries) && task.launch.is_for(task.attempt);
                if task.state == State::Pending && is_same && !world.has_node(&task) {
                    self.want(&task, world.mission_of(&task), "what was launched for it is not there");
                }
            }
        }
        // Once more: what was put back meanwhile may have been claimed by one of them.
        self.forget_busy().await?;
        self.terminate_idle(world).await;
        for (id, seen) in &publishers {
            if let Some(mission) = world.missions.get(id).filter(|mission| mission.notified == *seen) {
                self.announce(mission, true).await;
            }
        }
        self.launch_wanted().await;
        Ok(())
    }

    async fn terminate_idle(&mut self, world: &Snapshot) {
        let idle = world.idle(&self.holders);
        let is_idle = |ours: &&Ours| idle.contains_key(&ours.id) && self.unconfirmed.idle.contains_key(&ours.id);
        let instances: Vec<Ours> = world.instances.iter().filter(is_idle).cloned().collect();
        let ended = self.scheduler.backend.fleet.terminate(&instances).await;
        match ended.map_err(SchedulerError::cloud("terminating instances")) {
            Ok(()) => {
                for ours in &instances {
                    self.find(What::Ended, &ours.id, idle[&ours.id]);
                }
            }
            Err(error) => {
                let ids: Vec<&str> = instances.iter().map(|ours| ours.id.as_str()).collect();
                self.trouble(&ids.join(", "), &error);
            }
        }
    }

    /// Puts a task back whose holder is gone, within its budget; it wants a node then. In a cancelled mission it ends.
    pub(super) async fn put_back(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        let Some(lease) = task.lease() else { return };
        if Instant::now() >= self.put_back_until || self.stop.is_cancelled() {
            self.left += 1;
            return;
        }
        let now = clock::now_rfc3339();
        let bucket = self.scheduler.settings.result_bucket.as_deref();
        let past = PastAttempt {
            attempt: task.attempt,
            instance: lease.owner.to_string(),
            started: task.open_since.clone().unwrap_or_default(),
            ended: now.clone(),
            verdict: Verdict::Lost,
            exit_code: None,
            log: crate::worker::log::of_lost(&self.scheduler.backend, bucket, &task.src, task.attempt).await,
        };
        if mission.is_some_and(|mission| mission.cancelled_at.is_some()) {
            let reason = format!("its mission is cancelled, and {reason}");
            return self.fail(task, mission, Verdict::Cancelled, Some(past), &reason).await;
        }
        if task.interruptions >= self.scheduler.settings.limits.max_interruptions {
            let reason = format!("{reason}, and it has been interrupted {} times before", task.interruptions);
            return self.fail(task, mission, Verdict::Lost, Some(past), &reason).await;
        }
        let expired = self.scheduler.backend.ledger.expire(task, past, &now).await;
        match expired.map_err(SchedulerError::cloud("putting a task back")) {
            Ok(Some(pending)) => {
                self.find(What::PutBack, task.src.as_str(), reason);
                if mission.is_none_or(|mission| mission.nodes.is_none()) {
                    self.want(&pending, mission, "it was put back");
                }
            }
            // It moved after all.
            Ok(None) => {}
            Err(error) => self.trouble(task.src.as_str(), &error),
        }
    }

    async fn launch(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        if task.launch.is_for(task.attempt) && task.launch.lost + 1 >= LAUNCHES_LOST_MAX {
            let reason = format!("{LAUNCHES_LOST_MAX} instances for it have ended before they claimed it");
            return self.fail(task, mission, Verdict::Infra, None, &reason).await;
        }
        if !self.may_launch || self.refused.contains(&task.mission) {
            return;
        }
        match self.scheduler.launch_for(task, mission).await {
            Ok(Node::Launched(instance)) => {
                self.find(What::Launched, task.src.as_str(), &format!("{reason}: {instance}"));
            }
            Ok(Node::Waits(why)) => self.find(What::NoNode, task.src.as_str(), &why),
            Ok(Node::NotNeeded) => {}
            Err(error) => {
                self.refuse(task.mission.clone(), &error);
                self.trouble(task.src.as_str(), &error);
            }
        }
    }

    /// Remembers, for the rest of this sweep, what EC2 will refuse again.
    fn refuse(&mut self, mission: Option<MissionId>, error: &SchedulerError) {
        if error.is_of_every_launch() {
            self.may_launch = false;
        } else if !error.may_pass() {
            self.refused.insert(mission);
        }
    }

    /// Launches what a mission lacks of its own nodes.
    async fn serve(&mut self, world: &Snapshot, mission: &Mission) {
        if mission.nodes.is_none() || mission.cancelled_at.is_some() || !self.may_launch {
            return;
        }
        let Some(counts) = self.counts.get(&mission.id).filter(|counts| counts.claimable > 0) else { return };
        let (claimable, open) = (counts.claimable, counts.claimable + counts.running);
        let longest = waited_since(counts.since.as_deref());
        match self.scheduler.launch_missing(mission, open, longest, &world.instances).await {
            Ok(launched) => {
                for instance in &launched.instances {
                    let reason = format!("{claimable} tasks of mission {} wait, or more", mission.id);
                    self.find(What::Launched, instance, &reason);
                }
                if !launched.shortfall.is_empty() {
                    self.find(What::NoNode, mission.id.as_str(), &launched.shortfall.join("; "));
                }
            }
            Err(error) => {
                self.refuse(Some(mission.id.clone()), &error);
                self.trouble(mission.id.as_str(), &error);
            }
        }
    }

    /// Announces a mission's end, if it has come and nobody has. A publisher whose machine may live is looked at again.
    async fn announce(&mut self, mission: &Mission, is_lost: bool) {
        match self.scheduler.announce(mission, is_lost).await {
            Ok(true) => self.find(What::Announced, mission.id.as_str(), "its tasks have ended"),
            Ok(false) if !is_lost && matches!(mission.notified, Notified::Sending { .. }) => {
                self.unconfirmed.publishers.insert(mission.id.clone(), mission.notified.clone());
            }
            Ok(false) => {}
            Err(error) => self.trouble(mission.id.as_str(), &error),
        }
    }

    async fn fail(
        &mut self,
        task: &Task,
        mission: Option<&Mission>,
        verdict: Verdict,
        past: Option<PastAttempt>,
        reason: &str,
    ) {
        let mission = tally_of(task, mission);
        let is_for_cancel = verdict == Verdict::Cancelled;
        let one = [(task.clone(), past)];
        let failed = self.scheduler.backend.ledger.fail(&one, mission.as_ref(), verdict, is_for_cancel).await;
        match failed.map_err(SchedulerError::cloud("failing a task")) {
            Ok(failed) if failed.tasks.is_empty() => {}
            Ok(_) => {
                self.find(What::Failed, task.src.as_str(), reason);
                if let Some(mission) = &mission {
                    self.announce(mission, false).await;
                }
            }
            Err(error) => self.trouble(task.src.as_str(), &error),
        }
    }

    fn find(&mut self, what: What, subject: &str, reason: &str) {
        tracing::info!(what = what.as_str(), "{} {subject}: {reason}", what.as_str());
        self.findings.push(Finding { what, subject: subject.to_owned(), reason: reason.to_owned() });
    }

    fn trouble(&mut self, subject: &str, error: &SchedulerError) {
        self.odd(subject, &crate::worker::words(error));
    }

    fn odd_keys(&mut self, keys: &mut Vec<String>) {
        for key in keys.drain(..) {
            self.odd(&key, &format!("its key has {} bytes, more than a key of S3: no node claims it", key.len()));
        }
    }

    fn odd(&mut self, subject: &str, reason: &str) {
        tracing::warn!("{subject}: {reason}");
        self.troubles += 1;
        if self.troubles <= TROUBLES_MAX {
            let (subject, reason) = (subject.to_owned(), reason.to_owned());
            self.findings.push(Finding { what: What::Trouble, subject, reason });
        }
    }
}

impl Unconfirmed {
    /// Leaves the idle instances in `kept`.
    fn with_idle(mut self, kept: &mut Self) -> Self {
        kept.idle = std::mem::take(&mut self.idle);
        self
    }
}

/// All partitions of the index that may hold open tasks, always in the same order.
fn parts_of(world: &Snapshot) -> Vec<Part> {
    let mut missions: Vec<&Mission> = world.missions.values().collect();
    missions.sort_by(|a, b| a.id.cmp(&b.id));
    let part = |mission: Option<&Mission>, shard| Part {
        mission: mission.map(|m| m.id.clone()),
        shard,
        from: None,
        until: None,
    };
    let own =
        missions.into_iter().flat_map(|mission| (0..mission.tally_shards).map(move |shard| part(Some(mission), shard)));
    std::iter::once(part(None, 0)).chain(own).collect()
}

/// The parts in the order in which they are looked at: from the cursor to the end, and from the beginning to the cursor.
fn rotated(mut parts: Vec<Part>, cursor: &Cursor) -> Vec<Part> {
    let is_before = |part: &Part| (&part.mission, part.shard) < (&cursor.mission, cursor.shard);
    let start = parts.iter().take_while(|part| is_before(part)).count();
    parts.rotate_left(start);
    let is_at = |part: &Part| part.mission == cursor.mission && part.shard == cursor.shard;
    if let (Some(first), Some(after)) = (parts.first_mut().filter(|part| is_at(part)), &cursor.after) {
        let rest = Part { until: Some(after.clone()), ..first.clone() };
        first.from = Some(after.clone());
        parts.push(rest);
    }
    parts
}

/// The pages of one partition of the index.
struct Pages<'a> {
    scheduler: &'a Scheduler,
    partition: Partition<'a>,
    state: State,
    from: Option<OpenTask>,
    /// Keys that cannot be a task's.
    odd: Vec<String>,
    is_over: bool,
}

impl<'a> Pages<'a> {
    const fn new(scheduler: &'a Scheduler, partition: Partition<'a>, state: State, from: Option<OpenTask>) -> Self {
        Self { scheduler, partition, state, from, odd: Vec::new(), is_over: false }
    }

    async fn next(&mut self) -> Result<Option<Vec<OpenTask>>, SchedulerError> {
        if self.is_over {
            return Ok(None);
        }
        let ledger = &self.scheduler.backend.ledger;
        let page = ledger.open_page(self.partition, self.state, PAGE_LEN, self.from.as_ref()).await;
        let page = page.map_err(SchedulerError::cloud("listing open tasks"))?;
        self.is_over = page.is_last;
        self.odd.extend(page.odd);
        self.from = page.tasks.last().cloned();
        Ok(Some(page.tasks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(mission: Option<&str>, shard: u32) -> Part {
        Part { mission: mission.map(|id| MissionId::new(id).unwrap()), shard, from: None, until: None }
    }

    fn names(parts: &[Part]) -> Vec<String> {
        let name = |part: &Part| {
            let mark = |task: &Option<OpenTask>| task.as_ref().map_or(String::new(), |task| task.src.to_string());
            let id = part.mission.as_ref().map_or("", MissionId::as_str);
            format!("{id}#{} {}..{}", part.shard, mark(&part.from), mark(&part.until))
        };
        parts.iter().map(name).collect()
    }

    #[test]
    fn a_sweep_goes_on_at_the_cursor_and_round_to_it() {
        let all = || vec![part(None, 0), part(Some("A"), 0), part(Some("A"), 1), part(Some("B"), 0)];
        assert_eq!(names(&rotated(all(), &Cursor::default())), ["#0 ..", "A#0 ..", "A#1 ..", "B#0 .."]);
        let after = OpenTask { src: SrcId::new("x").unwrap(), open_as: "pending#1".to_owned() };
        let cursor = Cursor {
            mission: Some(MissionId::new("A").unwrap()),
            shard: 1,
            after: Some(after),
            moved: 3,
            ..Cursor::default()
        };
        assert_eq!(names(&rotated(all(), &cursor)), ["A#1 x..", "B#0 ..", "#0 ..", "A#0 ..", "A#1 ..x"]);
        // A mission that is gone since: its place is gone on from.
        let gone = Cursor { mission: Some(MissionId::new("AA").unwrap()), ..cursor };
        assert_eq!(names(&rotated(all(), &gone)), ["B#0 ..", "#0 ..", "A#0 ..", "A#1 .."]);
        let last = Cursor { mission: Some(MissionId::new("Z").unwrap()), ..Cursor::default() };
        assert_eq!(names(&rotated(all(), &last)), ["#0 ..", "A#0 ..", "A#1 ..", "B#0 .."]);
    }
}
