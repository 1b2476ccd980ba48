//! Cancels a mission: no task starts, running workloads are requested to stop, and each task becomes failed.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Scheduler, SchedulerError};
use crate::backend::CloudError;
use crate::backend::fleet::ManagedInstance;
use crate::backend::ledger::{GivenUp, PAGE_LEN, Partition};
use crate::clock;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};

/// The result of a cancellation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    /// Pending tasks that became failed.
    pub ended: u64,
    /// Running tasks that were requested to stop.
    pub asked: u64,
    /// Tasks that still run. A sweep fails those that do not respond.
    pub running: u64,
    /// Instances that were terminated.
    pub instances: Vec<String>,
    /// Whether the mission was reinstated meanwhile. Nothing was changed after that.
    pub is_reinstated: bool,
}

/// The pause after the first pass over the running tasks, doubled each time up to [`LOOK_PERIOD_MAX`]. A pass has some
/// requests for each shard of the mission, and a holder reacts within a heartbeat, which is 20 s as a rule.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
const LOOK_PERIOD_MAX: Duration = Duration::from_secs(5);

/// The rows that are read and failed at a time.
const ROWS_LEN: usize = 100;

/// The pending tasks without an entry in the index that one scan fails. The next scan continues.
const UNLISTED_MAX: usize = 1_000;

/// The result of one pass over a cancelled mission.
#[derive(Default)]
struct Look {
    ended: u64,
    asked: u64,
    running: u64,
    /// Whether a task changed between the read and the write.
    has_changed: bool,
    has_mission_moved: bool,
    error: Option<CloudError>,
}

impl Scheduler {
    /// Cancels a mission, and waits up to `patience` for running tasks. A node reads the cancellation at its next
    /// heartbeat, stops the workload, saves its log, and fails the task.
    ///
    /// May be repeated: the second call continues the first.
    ///
    /// # Errors
    /// [`SchedulerError`]. Tasks that were failed before the error stay so.
    pub async fn cancel(&self, id: &MissionId, patience: Duration) -> Result<Cancelled, SchedulerError> {
        let ledger = &self.backend.ledger;
        let now = clock::now_rfc3339();
        let marked = ledger.cancel_mission(id, &now).await.map_err(SchedulerError::cloud("cancelling the mission"))?;
        if !marked {
            return Err(SchedulerError::NoMission(id.to_string()));
        }
        let mission = self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))?;
        let mut cancelled = Cancelled { is_reinstated: mission.cancelled_at.is_none(), ..Cancelled::default() };
        let until = Instant::now() + patience;
        let (mut is_quiet, mut odd, mut pause) = (false, HashSet::new(), LOOK_PERIOD);
        while !cancelled.is_reinstated {
            let look = self.cancel_once(&mission, &now, until, &mut odd).await?;
            cancelled.ended += look.ended;
            cancelled.asked += look.asked;
            cancelled.running = look.running;
            cancelled.is_reinstated = look.has_mission_moved;
            if let Some(error) = look.error.filter(|error| !error.is_retryable() || Instant::now() >= until) {
                return Err(SchedulerError::cloud("failing a task")(error));
            }
            // Two empty passes are needed: the index lags, and a node may have claimed a task in between.
            let is_over = look.running == 0 && look.ended == 0 && !look.has_changed;
            if is_over && is_quiet || Instant::now() >= until {
                break;
            }
            is_quiet = is_over;
            tokio::time::sleep(pause.min(patience)).await;
            pause = (2 * pause).min(LOOK_PERIOD_MAX);
        }
        if cancelled.is_reinstated {
            return Ok(cancelled);
        }
        // First the notification: once this process or a node has begun it, no other node will.
        let announced = async {
            let settled = if is_quiet { self.settle(id).await? } else { None };
            self.announce(settled.as_ref().unwrap_or(&mission), false).await
        };
        let announced = announced.await;
        if cancelled.running == 0 {
            cancelled.instances = self.end_instances(id).await?;
        }
        announced?;
        Ok(cancelled)
    }

    /// Ends a cancelled mission that the index shows no open task of, and that is not complete: fails the pending tasks
    /// that the index does not list, and sets the mission's number of tasks to the number of its rows. Tasks that were
    /// never submitted will not come, and without this the mission would never end. Scans the tasks table. Returns the
    /// mission if its number has changed.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub(super) async fn settle(&self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        let ledger = &self.backend.ledger;
        let Some(mission) = self.mission(id).await?.filter(|mission| mission.cancelled_at.is_some()) else {
            return Ok(None);
        };
        let sum = ledger.tally(&mission).await.map_err(SchedulerError::cloud("reading the tally"))?;
        let Some(expected) = mission.trans_number.filter(|_| !mission.is_complete(mission.total(sum))) else {
            return Ok(None);
        };
        let (mut rows, mut open, mut pending) = (0, 0, Vec::new());
        let each = |task: Task| {
            rows += 1;
            open += usize::from(!matches!(task.state, State::Done | State::Failed));
            if task.state == State::Pending && task.oddity().is_none() && pending.len() < UNLISTED_MAX {
                pending.push((task, None));
            }
        };
        ledger.each_task(Some(id), each).await.map_err(SchedulerError::cloud("counting the mission's tasks"))?;
        let failed = ledger.fail(&pending, Some(&mission), &GivenUp::by_cancel(clock::now_rfc3339())).await;
        let failed = failed.map_err(SchedulerError::cloud("failing tasks"))?;
        if failed.tasks.len() < open || rows >= expected {
            return Ok(None);
        }
        let settled = ledger.settle_mission(&mission, rows).await;
        if !settled.map_err(SchedulerError::cloud("setting the mission's number of tasks"))? {
            return Ok(None);
        }
        tracing::warn!(mission = %id, "mission {id} is cancelled: it has {rows} of {expected} tasks, and no more will come");
        self.mission(id).await
    }

    /// Fails pending tasks and requests running ones to stop, page by page. A large mission has many pages; `until`
    /// stops the pass after at least one. `odd` collects the tasks with invalid rows, to report each once.
    async fn cancel_once(
        &self,
        mission: &Mission,
        now: &str,
        until: Instant,
        odd: &mut HashSet<SrcId>,
    ) -> Result<Look, SchedulerError> {
        let ledger = &self.backend.ledger;
        let mut look = Look::default();
        let mut seen_running: HashSet<SrcId> = HashSet::new();
        for shard in 0..mission.tally_shards {
            let misplaced = ledger.misplaced(Partition { mission: Some(&mission.id), shard }).await;
            let misplaced = misplaced.map_err(SchedulerError::cloud("listing misplaced entries of the index"))?;
            for row in ledger.tasks(&misplaced).await.map_err(SchedulerError::cloud("reading open tasks"))? {
                self.correct(&row, now, &mut look, odd).await;
            }
        }
        for state in [State::Pending, State::Running] {
            for shard in 0..mission.tally_shards {
                let partition = Partition { mission: Some(&mission.id), shard };
                let mut from = None;
                loop {
                    let page = ledger.open_page(partition, state, PAGE_LEN, from.as_ref()).await;
                    let page = page.map_err(SchedulerError::cloud("listing open tasks"))?;
                    for keys in page.tasks.chunks(ROWS_LEN) {
                        let srcs: Vec<SrcId> = keys.iter().map(|task| task.src.clone()).collect();
                        let rows = ledger.tasks(&srcs).await.map_err(SchedulerError::cloud("reading open tasks"))?;
                        // A task that was claimed between two pages is in both.
                        let rows = rows
                            .into_iter()
                            .filter(|row| row.state != State::Running || seen_running.insert(row.src.clone()));
                        self.cancel_rows(mission, rows.collect(), now, &mut look, odd).await;
                        if look.has_mission_moved {
                            return Ok(look);
                        }
                    }
                    from = page.tasks.last().cloned();
                    if page.is_last || Instant::now() >= until {
                        break;
                    }
                }
            }
        }
        Ok(look)
    }

    /// Corrects the index where its state differs from the row's. An invalid row is not changed, and is reported.
    async fn correct(&self, row: &Task, now: &str, look: &mut Look, odd: &mut HashSet<SrcId>) {
        if let Some(oddity) = row.oddity() {
            if odd.insert(row.src.clone()) {
                tracing::warn!(src.id = %row.src, "task {} was not changed: {oddity}", row.src);
            }
            return;
        }
        match self.backend.ledger.repair_index(row, now).await {
            Ok(is_repaired) => look.has_changed |= is_repaired,
            Err(error) => look.error = Some(error),
        }
    }

    /// Fails the pending tasks among `srcs`, and requests the holders of the running ones to stop.
    async fn cancel_rows(
        &self,
        mission: &Mission,
        rows: Vec<Task>,
        now: &str,
        look: &mut Look,
        odd: &mut HashSet<SrcId>,
    ) {
        let ledger = &self.backend.ledger;
        // The row decides the mission, not the index.
        let is_its = |row: &Task| row.mission.as_ref().is_none_or(|id| *id == mission.id);
        let rows: Vec<Task> = rows.into_iter().filter(is_its).collect();
        let is_leftover = |row: &Task| row.oddity().is_some() || row.is_leftover();
        let (misplaced, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_leftover);
        for row in &misplaced {
            self.correct(row, now, look, odd).await;
        }
        let (running, rest): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.state == State::Running);
        let pending: Vec<_> =
            rest.into_iter().filter(|row| row.state == State::Pending).map(|row| (row, None)).collect();
        match ledger.fail(&pending, Some(mission), &GivenUp::by_cancel(clock::now_rfc3339())).await {
            Ok(failed) => {
                look.ended += failed.tasks.len() as u64;
                look.has_changed |= failed.tasks.len() < pending.len();
                look.has_mission_moved |= failed.has_mission_moved;
            }
            Err(error) => look.error = Some(error),
        }
        look.running += running.len() as u64;
        let unasked: Vec<&Task> = running.iter().filter(|row| !row.cancelled).collect();
        match ledger.ask_to_cancel(&unasked, mission, now).await {
            Ok(asked) => {
                look.asked += asked;
                // Some tasks or the mission changed. The next pass reads them again.
                look.has_changed |= asked < unasked.len() as u64;
            }
            Err(error) => look.error = Some(error),
        }
    }

    /// Terminates the mission's instances, except the one that sends the notification of its end: without it, another
    /// process would send a second one.
    async fn end_instances(&self, id: &MissionId) -> Result<Vec<String>, SchedulerError> {
        let instances = self.backend.fleet.list_instances(self.owner_tag()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing the instances of this deployment"))?;
        // After the list: if the mission was reinstated, its instances work again.
        let Some(mission) = self.mission(id).await?.filter(|mission| mission.cancelled_at.is_some()) else {
            return Ok(Vec::new());
        };
        let publisher = match mission.notified {
            Notified::Sending { by, .. } => Some(by),
            Notified::No | Notified::Yes => None,
        };
        let is_publisher = |ours: &ManagedInstance| publisher.as_ref().is_some_and(|by| *by == ours.id);
        let its: Vec<ManagedInstance> =
            instances.into_iter().filter(|ours| ours.is_of(id) && !is_publisher(ours)).collect();
        self.backend.fleet.terminate(&its).await.map_err(SchedulerError::cloud("terminating instances"))?;
        Ok(its.into_iter().map(|ours| ours.id).collect())
    }
}
