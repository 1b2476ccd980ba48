//! The two passes of a sweep: the first checks everything, the second, a lease later, confirms what needs a second
//! observation.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::parts::{Pages, Part, parts_of, rotated};
use super::repair::WANTED_MAX;
use super::snapshot::{BOOT_MAX, Snapshot};
use super::{PUT_BACK_TIME_MAX, Sweep, Unconfirmed, What};
use crate::backend::ledger::{Cursor, GivenUp, OpenTask, Partition};
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::Mission;
use crate::domain::task::{State, Task};
use crate::scheduler::SchedulerError;

/// The time limit for reading pending tasks in the first pass. The rate is about 10,000 rows per second.
const WAITING_TIME_MAX: Duration = Duration::from_mins(2);
/// The rows that are read at a time: 100 are about 220 kB.
const ROWS_LEN: usize = 100;
/// The maximum number of claimable tasks that are counted for a mission with nodes: a mission has at most 10,000 nodes.
const COUNT_MAX: u64 = 10_000;
/// The checks of idle nodes within one lease. A node that is between two tasks in one check holds a task in the next.
const IDLE_LOOKS: u32 = 5;

impl Sweep<'_> {
    pub(super) async fn first(&mut self, world: &Snapshot) -> Result<(), SchedulerError> {
        for (key, what) in &world.odd {
            self.odd(key, what);
        }
        for mission in world.missions.values() {
            for oddity in &mission.oddities {
                self.odd(mission.id.as_str(), oddity);
            }
        }
        self.figures.instances = world.instances.len() as u64;
        let parts = parts_of(world);
        for part in &parts {
            self.check_running(world, part).await?;
        }
        self.check_all_pending(world, parts).await?;
        for mission in world.missions.values() {
            self.settle(mission).await;
            self.announce(mission, false).await;
            self.close(mission).await;
            self.serve(world, mission).await;
            self.observe(mission).await;
        }
        self.launch_wanted().await;
        let idle = world.idle(&self.holders);
        let mission_of = |id: &str| {
            let ours = world.instances.iter().find(|ours| ours.id == id && ours.src.is_none())?;
            world.mission_tagged(ours)
        };
        self.unconfirmed.idle = idle.into_keys().map(|id| (id.clone(), mission_of(&id))).collect();
        Ok(())
    }

    /// Waits for the second pass; `false` if none is needed or the sweep is to stop. Meanwhile, checks a few times
    /// whether the idle nodes hold a task now.
    pub(super) async fn wait(&mut self) -> Result<bool, SchedulerError> {
        if self.unconfirmed.is_empty() {
            return Ok(false);
        }
        let pause = self.scheduler.settings.lease / IDLE_LOOKS;
        for _ in 0..IDLE_LOOKS {
            // Both arms may be dropped: they hold no resources.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return Ok(false),
            }
            self.forget_busy().await?;
        }
        Ok(true)
    }

    /// Removes nodes from the list of idle ones if they hold a task of their mission now.
    pub(super) async fn forget_busy(&mut self) -> Result<(), SchedulerError> {
        let missions: HashSet<MissionId> = self.unconfirmed.idle.values().flatten().cloned().collect();
        for id in missions {
            let Some(mission) = self.scheduler.mission(&id).await? else { continue };
            for shard in 0..mission.tally_shards {
                let mut pages =
                    Pages::new(self.scheduler, Partition { mission: Some(&id), shard }, State::Running, None);
                while let Some(keys) = pages.next().await? {
                    for rows in keys.chunks(ROWS_LEN) {
                        // Running or just finished: in both cases the holder was active a moment ago.
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

    pub(super) async fn rows(&self, keys: &[OpenTask]) -> Result<Vec<Task>, SchedulerError> {
        let srcs: Vec<SrcId> = keys.iter().map(|task| task.src.clone()).collect();
        self.tasks(&srcs).await
    }

    async fn tasks(&self, srcs: &[SrcId]) -> Result<Vec<Task>, SchedulerError> {
        self.scheduler.backend.ledger.tasks(srcs).await.map_err(SchedulerError::cloud("reading open tasks"))
    }

    /// Checks the running tasks of one partition.
    async fn check_running(&mut self, world: &Snapshot, part: &Part) -> Result<(), SchedulerError> {
        let partition = Partition { mission: part.mission.as_ref(), shard: part.shard };
        self.check_misplaced(partition).await?;
        let mut pages = Pages::new(self.scheduler, partition, State::Running, None);
        while let Some(keys) = pages.next().await? {
            self.odd_keys(&mut pages.odd);
            for rows in keys.chunks(ROWS_LEN) {
                for task in self.rows(rows).await? {
                    if let Some(id) = &part.mission {
                        self.counts.entry(id.clone()).or_default().running += 1;
                    }
                    self.check_holder(world, &task).await;
                }
            }
        }
        Ok(())
    }

    /// Corrects entries of the index whose `openAs` is neither a pending nor a running task's. No other query finds
    /// them.
    async fn check_misplaced(&mut self, partition: Partition<'_>) -> Result<(), SchedulerError> {
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

    async fn check_holder(&mut self, world: &Snapshot, task: &Task) {
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
            if let Err(error) = asked.map_err(SchedulerError::cloud("requesting a node to stop")) {
                self.note_failure(task.src.as_str(), &error);
            }
        }
        if !world.is_alive(owner) && self.is_gone(owner).await {
            self.put_back(task, mission, &format!("EC2 reports that its instance {owner} has terminated")).await;
        } else if !self.unconfirmed.is_full() {
            self.unconfirmed.leases.insert(task.src.clone(), (task.attempt.0, task.beat));
        }
    }

    /// Returns whether an instance that was launched for a task, and is not in the list, may still appear: EC2 lists
    /// new instances and their tags late. The time comes from the row; a wrong clock costs at most one more boot.
    async fn may_appear(&mut self, task: &Task) -> bool {
        let Some(instance) = task.launch.instance.as_deref() else { return false };
        let is_young = clock::since(&task.launch.at).is_some_and(|age| age < BOOT_MAX);
        is_young && !self.is_gone(instance).await
    }

    async fn is_gone(&mut self, owner: &str) -> bool {
        if let Some(is_gone) = self.gone.get(owner) {
            return *is_gone;
        }
        let is_gone = self.scheduler.backend.machine.is_gone(owner).await.unwrap_or_else(|error| {
            tracing::info!("EC2 does not report whether {owner} is running: {}", error.source);
            false
        });
        self.gone.insert(owner.to_owned(), is_gone);
        is_gone
    }

    /// Reports an invalid row, and corrects the index where its state differs from the row's. Returns whether it did
    /// either.
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
                let reason = format!("the index differed from its row, whose state is {}", task.state.as_str());
                self.find(What::Reindexed, task.src.as_str(), &reason);
            }
            Ok(false) => {}
            Err(error) => self.note_failure(task.src.as_str(), &error),
        }
    }

    /// Checks pending tasks from the cursor to the end and from the start to the cursor, until the time limit. The next
    /// sweep continues.
    async fn check_all_pending(&mut self, world: &Snapshot, parts: Vec<Part>) -> Result<(), SchedulerError> {
        let cursor =
            self.scheduler.backend.ledger.cursor().await.map_err(SchedulerError::cloud("reading the cursor"))?;
        let until = Instant::now() + WAITING_TIME_MAX;
        let mut stopped: Option<Part> = None;
        for part in rotated(parts, &cursor) {
            let is_late = Instant::now() >= until || self.stop.is_cancelled();
            let at = if is_late {
                Some(part.clone())
            } else {
                self.check_pending(world, &part, until, stopped.is_some()).await?
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
            // The pass is complete: the next one starts at the beginning.
            None => Cursor { mission: None, shard: 0, after: None, ..cursor.clone() },
        };
        if to != cursor {
            let moved = self.scheduler.backend.ledger.move_cursor(&to).await;
            if let Err(error) = moved.map_err(SchedulerError::cloud("moving the cursor")) {
                self.note_failure("the sweeps' cursor", &error);
            }
        }
        Ok(())
    }

    /// Checks the pending tasks of a part of the index. Returns where it stopped before the end. With `is_full`, tasks
    /// that need their own node are left to the next sweep.
    async fn check_pending(
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
                        self.check_one_pending(world, &task);
                    }
                }
                stopped.from = Some(last.clone());
            }
        }
        Ok(None)
    }

    async fn fail_cancelled(&mut self, mission: &Mission, tasks: Vec<Task>) {
        // The row decides the mission, not the index.
        let is_its = |task: &Task| task.mission.as_ref().is_none_or(|id| *id == mission.id);
        let tasks: Vec<_> = tasks.into_iter().filter(is_its).map(|task| (task, None)).collect();
        let failed =
            self.scheduler.backend.ledger.fail(&tasks, Some(mission), &GivenUp::by_cancel(clock::now_rfc3339())).await;
        match failed.map_err(SchedulerError::cloud("failing tasks of a cancelled mission")) {
            Ok(failed) => {
                for src in failed.tasks {
                    self.find(What::Failed, src.as_str(), "its mission is cancelled");
                }
            }
            Err(error) => self.note_failure(mission.id.as_str(), &error),
        }
    }

    /// Decides whether a pending task needs its own node.
    fn check_one_pending(&mut self, world: &Snapshot, task: &Task) {
        let is_early = task.launch.after.as_deref().and_then(clock::until).is_some_and(|wait| !wait.is_zero());
        if world.has_node(task) || is_early {
            return;
        }
        if let Some(reason) = world.end_of_node(task) {
            self.want(task, world.mission_of(task), &reason);
        } else if task.launch.is_for(task.attempt) {
            // The instance is launched or is about to be. EC2 lists it within a minute.
            self.unconfirmed.launches.insert(task.src.clone(), task.launch.tries);
        } else {
            let reason = if task.attempt.0 > 0 { "it is pending again" } else { "no node was launched for it" };
            self.want(task, world.mission_of(task), reason);
        }
    }

    /// Makes the second pass: acts on observations that have not changed.
    pub(super) async fn second(&mut self, world: &Snapshot) -> Result<(), SchedulerError> {
        let Unconfirmed { leases, idle, launches, publishers } = std::mem::take(&mut self.unconfirmed);
        self.unconfirmed.idle = idle;
        // From here on, `holders` are the current ones.
        self.holders.clear();
        self.held = None;
        self.put_back_until = Instant::now() + PUT_BACK_TIME_MAX;
        let srcs: Vec<SrcId> = leases.keys().cloned().collect();
        for srcs in srcs.chunks(ROWS_LEN) {
            for task in self.tasks(srcs).await? {
                if task.state == State::Running && leases.get(&task.src) == Some(&(task.attempt.0, task.beat)) {
                    self.put_back(
                        &task,
                        world.mission_of(&task),
                        "its lease was not renewed for the length of a lease",
                    )
                    .await;
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
                    let reason = match world.end_of_node(&task) {
                        Some(reason) => reason,
                        None if self.may_appear(&task).await => continue,
                        None => "the instance that was launched for it does not exist".to_owned(),
                    };
                    self.want(&task, world.mission_of(&task), &reason);
                }
            }
        }
        // Checked again, because idle nodes may have claimed tasks that just became pending.
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

    fn odd_keys(&mut self, keys: &mut Vec<String>) {
        for key in keys.drain(..) {
            self.odd(&key, &format!("its key has {} bytes, more than S3 allows: no node claims it", key.len()));
        }
    }
}
