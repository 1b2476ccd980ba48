//! Submits many tasks: creates a mission and its rows, and launches its nodes.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::launch::LaunchResult;
use super::redrive::remember;
use super::submit_plan::SubmitPlan;
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::Request;
use crate::backend::ledger::{Ledger, Made, NewMission, NewTask, TableKind};
use crate::backend::parallel::Parallel;
use crate::backend::{CloudError, Kind, error_chain};
use crate::clock;
use crate::domain::backoff;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, tally_shards_for};
use crate::domain::policy::Purchase;
use crate::domain::tags;
use crate::domain::task::{State, Task};

/// Rows that are written at the same time. At 5 ms per write, 64 exceed the 4,000 writes per second of a new table.
/// Source: DynamoDB developer guide, "On-demand capacity mode", "Initial throughput".
const ROWS_PARALLEL: usize = 64;
/// How long a row is tried again while DynamoDB throttles: four times as long as 64 rows take at one write a second, so
/// that only a table whose writes have come to a stop ends a submission.
const THROTTLED_MAX: Duration = Duration::from_mins(4);

/// The maximum number of recounts of a mission's tasks, if other submissions change the number meanwhile.
const RESIZES_MAX: u32 = 5;

/// The rows of a submission that are checked at a time: 10 calls, and about 20 MB if each row has ten attempts with the
/// longest log keys.
pub(super) const CHECKED_AT_ONCE: usize = 1000;

/// The result of a submission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// Whether the mission was created.
    pub is_new: bool,
    /// Rows that were created.
    pub made: u64,
    /// Rows that existed.
    pub there: u64,
    /// Instances that were launched.
    pub launched: u64,
    /// Tasks that wait for a node.
    pub waiting: u64,
    /// The reasons why some have no node, each once.
    pub waits: Vec<String>,
}

/// The state that a submission finds before it writes.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The mission, if it exists.
    pub mission: Option<Mission>,
    /// The launch requests: the first of one node per task, or those of the mission's nodes.
    pub requests: Vec<Request>,
    /// The tasks that have rows.
    known: HashSet<SrcId>,
    /// Rows that are not in the mission's index yet: from the first version, from manual edits, or from an upload
    /// before the mission existed.
    to_adopt: Vec<Task>,
}

/// A mission that is ready for the rows of its tasks.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The mission, with its final number of tasks.
    pub mission: Mission,
    /// Whether the mission was created.
    pub is_new: bool,
    /// The tasks that have rows.
    pub known: HashSet<SrcId>,
}

/// Creates a task's row. Slows down while DynamoDB throttles: the SDK's own tries are few, and all rows share them.
async fn create(ledger: &Ledger, new: &NewTask) -> Result<Made, CloudError> {
    let started = Instant::now();
    let mut tries = 0;
    loop {
        match ledger.create_task(new).await {
            Err(error) if error.kind == Kind::Throttled && started.elapsed() < THROTTLED_MAX => tries += 1,
            made => return made,
        }
        tokio::time::sleep(backoff::delay(tries, rand::random())).await;
    }
}

impl Scheduler {
    /// Creates or enlarges the mission. This comes first, because an uploaded object becomes a task at once, and must
    /// find its mission. Pending rows without a mission become its tasks.
    ///
    /// May be repeated after any result.
    ///
    /// # Errors
    /// [`SchedulerError::OtherMission`], [`SchedulerError::OtherTask`] or [`SchedulerError::OtherWork`] before anything is
    /// written; else a service's error.
    pub async fn prepare(&self, plan: &SubmitPlan) -> Result<Prepared, SchedulerError> {
        let checked = self.check_rows(plan).await?;
        self.prepare_checked(plan, checked).await
    }

    /// Makes all checks that can refuse the submission, and writes nothing. With `launches`, also asks EC2 by a dry
    /// run.
    ///
    /// # Errors
    /// The error that the submission would return.
    pub async fn check(&self, plan: &SubmitPlan, launches: bool) -> Result<Checked, SchedulerError> {
        let mut checked = self.check_rows(plan).await?;
        if launches {
            let ledger = &self.backend.ledger;
            // The other parts of the tables that launches need.
            let (index, tasks, missions) = tokio::join!(
                ledger.has_index(),
                ledger.may_work_at(TableKind::Tasks),
                ledger.may_work_at(TableKind::Missions)
            );
            index.map(drop).and(tasks).and(missions).map_err(SchedulerError::cloud("checking the tables"))?;
            checked.requests = self.requests(plan, checked.mission.as_ref()).await?;
            self.check_launch(&checked.requests).await?;
        }
        Ok(checked)
    }

    /// Checks that the template exists, and that EC2 would accept each launch. A missing permission to read the
    /// template is ignored, because launches do not need it.
    async fn check_launch(&self, requests: &[Request]) -> Result<(), SchedulerError> {
        let Some(first) = requests.first() else { return Ok(()) };
        match self.backend.fleet.template(&first.template).await {
            Err(error) if error.kind != Kind::AccessDenied => {
                return Err(SchedulerError::cloud("reading the launch template")(error));
            }
            _ => {}
        }
        for request in requests {
            let token = format!("check-{:016x}", rand::random::<u64>());
            let asked = self.backend.fleet.may_launch(&Request { token, ..request.clone() }).await;
            asked.map_err(SchedulerError::cloud("checking the launch by a dry run"))?;
        }
        Ok(())
    }

    /// Reads the rows and the mission, and refuses conflicts with the plan.
    async fn check_rows(&self, plan: &SubmitPlan) -> Result<Checked, SchedulerError> {
        let is_ours = |task: &Task| match &task.mission {
            Some(mission) => *mission == plan.mission,
            // A finished task was counted nowhere, and a node that runs now will not count it.
            None => task.state == State::Pending,
        };
        let is_to_adopt =
            |task: &Task| task.state == State::Pending && (task.mission.is_none() || task.open_since.is_none());
        let (mut known, mut to_adopt) = (HashSet::new(), Vec::new());
        // In chunks, to bound the memory for rows and their histories.
        for srcs in plan.srcs.chunks(CHECKED_AT_ONCE) {
            let rows = self.backend.ledger.tasks(srcs).await.map_err(SchedulerError::cloud("reading rows"))?;
            if let Some(task) = rows.iter().find(|task| !is_ours(task)) {
                return Err(other_task(task));
            }
            rows.iter().try_for_each(|task| plan.refuse_other_work(task))?;
            known.extend(rows.iter().map(|task| task.src.clone()));
            to_adopt.extend(rows.into_iter().filter(is_to_adopt));
        }
        let mission = self.mission(&plan.mission).await?;
        if let Some(mission) = &mission {
            refuse_other(mission, plan)?;
        }
        self.policy(mission.as_ref())?;
        Ok(Checked { mission, requests: Vec::new(), known, to_adopt })
    }

    /// Works like [`Self::prepare`], from the result of [`Self::check`].
    ///
    /// # Errors
    /// A service's error, or [`SchedulerError::OtherTask`] if a node claimed a task first.
    pub async fn prepare_checked(&self, plan: &SubmitPlan, checked: Checked) -> Result<Prepared, SchedulerError> {
        let ledger = &self.backend.ledger;
        let Checked { mission, known, to_adopt, .. } = checked;
        let made = if mission.is_none() { self.make_mission(plan).await? } else { None };
        let is_new = made.is_some();
        let mission = match made {
            Some(mission) => mission,
            // It existed, or another submission created it meanwhile.
            None => self.enlarge(plan, &known).await?,
        };
        let mission = match plan.uploads {
            Some(are_taken) if !is_new => {
                let set = ledger.set_uploads(&mission.id, are_taken).await;
                set.map_err(SchedulerError::cloud("setting whether the mission accepts uploads"))?;
                Mission { accepts_uploads: are_taken, ..mission }
            }
            _ => mission,
        };
        if let Some(notify_on) = plan.notify_on.filter(|_| !is_new) {
            let set = ledger.set_notify_on(&mission.id, notify_on).await;
            set.map_err(SchedulerError::cloud("setting the mission's early notifications"))?;
        }
        for task in &to_adopt {
            self.take_over_row(task, &mission).await?;
        }
        Ok(Prepared { mission, is_new, known })
    }

    /// Makes a row without a mission, or one that is in no index, a task of the mission.
    async fn take_over_row(&self, task: &Task, mission: &Mission) -> Result<(), SchedulerError> {
        let adopted = self.backend.ledger.adopt(task, mission, &clock::now_rfc3339()).await;
        let is_adopted = adopted.map_err(SchedulerError::cloud("adding a row to the mission"))?;
        // Otherwise a node claimed it first.
        if is_adopted || task.mission.is_some() { Ok(()) } else { Err(other_task(task)) }
    }

    /// Creates the missing rows. `progress` receives the number of finished rows.
    ///
    /// May be repeated after any result: no row is created twice.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub async fn make_rows(
        &self,
        plan: &SubmitPlan,
        prepared: &Prepared,
        progress: impl Fn(u64),
    ) -> Result<Submitted, SchedulerError> {
        let ledger = &self.backend.ledger;
        let Prepared { mission, is_new, known } = prepared;
        let there = known.len() as u64;
        let mut submitted = Submitted { is_new: *is_new, there, ..Submitted::default() };
        progress(there);
        // Rows that an upload event created between the check and the creation of the mission.
        let mut others = Vec::new();
        let make = |src: SrcId| {
            let now = clock::now_rfc3339();
            let work = plan.work(&src);
            let new = NewTask {
                src,
                mission: Some((mission.id.clone(), mission.tally_shards)),
                bucket: plan.bucket.clone().filter(|_| work.needs_bucket()),
                work,
                now: now.clone(),
                trigger_time: now,
                trigger: "lighthpc submit".to_owned(),
            };
            let ledger = ledger.clone();
            async move { create(&ledger, &new).await }
        };
        // By index, because a closure over references is not general enough for a `Send` future.
        let rows = (0..plan.srcs.len()).filter_map(|n| {
            let src = &plan.srcs[n];
            (!known.contains(src)).then(|| make(src.clone()))
        });
        // May be dropped on an error: the next call finds the rows that exist.
        let mut rows = Parallel::new(ROWS_PARALLEL, rows);
        while let Some(made) = rows.next().await {
            let made = made.map_err(|panic| CloudError::new(Kind::Invalid, "PutItem", "a row", panic.to_string()));
            match made.flatten().map_err(SchedulerError::cloud("creating a row"))? {
                Made::New => submitted.made += 1,
                Made::There(task) => {
                    plan.refuse_other_work(&task)?;
                    submitted.there += 1;
                    others.extend(Some(*task).filter(|task| task.mission.as_ref() != Some(&mission.id)));
                }
            }
            progress(submitted.made + submitted.there);
        }
        for task in &others {
            if task.mission.is_some() || task.state != State::Pending || task.oddity().is_some() {
                return Err(other_task(task));
            }
            self.take_over_row(task, mission).await?;
        }
        self.end_tasks_of_events(plan).await?;
        self.recount(prepared).await?;
        Ok(submitted)
    }

    /// Creates the mission; `None` if it exists.
    async fn make_mission(&self, plan: &SubmitPlan) -> Result<Option<Mission>, SchedulerError> {
        let trans_number = plan.srcs.len() as u64;
        let new = NewMission {
            tally_shards: tally_shards_for(trans_number),
            exec: plan.exec.clone(),
            name: plan.name.clone(),
            nodes: plan.nodes,
            slots: plan.slots,
            uploads: Some(plan.uploads.unwrap_or(false)),
            notify_on: plan.notify_on.unwrap_or_default(),
            policy: self.settings.policy.clone(),
            now: clock::now_rfc3339(),
            ..NewMission::of(plan.mission.clone(), trans_number)
        };
        let made = self.backend.ledger.create_mission(&new).await;
        if !made.map_err(SchedulerError::cloud("creating the mission"))? {
            return Ok(None);
        }
        self.present(&plan.mission).await.map(Some)
    }

    async fn present(&self, id: &MissionId) -> Result<Mission, SchedulerError> {
        self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))
    }

    /// Enlarges an existing mission by the new tasks. This comes before their rows, so that the mission is not complete
    /// while it grows.
    async fn enlarge(&self, plan: &SubmitPlan, known: &HashSet<SrcId>) -> Result<Mission, SchedulerError> {
        let mission = self.present(&plan.mission).await?;
        refuse_other(&mission, plan)?;
        let has_all = known.len() == plan.srcs.len();
        self.fit_number(mission, &plan.srcs, |mission, count| has_all && mission.trans_number == Some(count)).await
    }

    /// Counts again after the rows were created, because parallel submissions do not see each other's rows. The last
    /// one to finish sees all.
    async fn recount(&self, prepared: &Prepared) -> Result<(), SchedulerError> {
        let mission = self.present(&prepared.mission.id).await?;
        // A submission to an existing mission reopens it.
        if prepared.is_new && mission.opened == 0 {
            return Ok(());
        }
        let is_enough = |mission: &Mission, count| mission.trans_number.is_some_and(|number| number >= count);
        self.fit_number(mission, &[], is_enough).await.map(drop)
    }

    /// Sets the mission's number of tasks to that of its rows and of `more`, unless it `fits`. It counts afresh, so
    /// that a failed call counts nothing twice, and repeats if another submission changed the number.
    async fn fit_number(
        &self,
        mut mission: Mission,
        more: &[SrcId],
        fits: impl Fn(&Mission, u64) -> bool,
    ) -> Result<Mission, SchedulerError> {
        for _ in 0..RESIZES_MAX {
            let mut all: HashSet<SrcId> = more.iter().cloned().collect();
            let each = |task: Task| {
                all.insert(task.src);
            };
            let counted = self.backend.ledger.each_task(Some(&mission.id), each).await;
            counted.map_err(SchedulerError::cloud("counting the mission's tasks"))?;
            // A mission that was created for more tasks keeps the larger number.
            let count = (all.len() as u64).max(mission.trans_number.unwrap_or(0));
            if fits(&mission, count) {
                return Ok(mission);
            }
            let resized = self.backend.ledger.resize_mission(&mission, count).await;
            let is_resized = resized.map_err(SchedulerError::cloud("enlarging the mission"))?;
            mission = self.present(&mission.id).await?;
            if is_resized {
                return Ok(mission);
            }
        }
        let what = "is changed by other submissions at the same time".to_owned();
        Err(SchedulerError::OtherMission { mission: mission.id.to_string(), what })
    }

    /// Launches the nodes for the pending tasks: one per task, or the mission's nodes. `progress` receives the number
    /// of processed tasks.
    ///
    /// # Errors
    /// [`SchedulerError`] if EC2 refuses every launch. Tasks without capacity wait, and a sweep retries.
    pub async fn launch_all(
        &self,
        mission: &Mission,
        submitted: &mut Submitted,
        progress: impl Fn(u64, u64),
    ) -> Result<(), SchedulerError> {
        let open = self.backend.ledger.open_tasks(Some(&mission.id), mission.tally_shards, State::Pending).await;
        let open = open.map_err(SchedulerError::cloud("listing open tasks"))?;
        let total = open.len() as u64;
        if mission.nodes.is_some() {
            submitted.waiting = total;
            let launched = self.launch_own(mission).await?;
            submitted.launched = launched.instances.len() as u64;
            submitted.waits = launched.shortfall;
            return Ok(());
        }
        for (number, batch) in open.chunks(100).enumerate() {
            let tasks = self.backend.ledger.tasks(batch).await.map_err(SchedulerError::cloud("reading open tasks"))?;
            for (task, place) in tasks.into_iter().zip(1_u64..) {
                if task.state != State::Pending || task.launch.is_for(task.attempt) {
                    continue;
                }
                match self.launch_for(&task, Some(mission)).await {
                    Ok(LaunchResult::Launched(_)) => submitted.launched += 1,
                    Ok(LaunchResult::NotNeeded) => {}
                    Ok(LaunchResult::Waits(why) | LaunchResult::Held(why)) => {
                        submitted.waiting += 1;
                        remember(&mut submitted.waits, why);
                    }
                    Err(error) if error.is_transient() => {
                        submitted.waiting += 1;
                        remember(&mut submitted.waits, error_chain(&error));
                    }
                    Err(error) => return Err(error),
                }
                progress(number as u64 * 100 + place, total);
            }
        }
        Ok(())
    }

    /// Returns the launch requests of a submission: the first of one node per task, or those of the mission's nodes.
    ///
    /// # Errors
    /// [`SchedulerError`]: there is no template, or the policy is invalid.
    async fn requests(&self, plan: &SubmitPlan, mission: Option<&Mission>) -> Result<Vec<Request>, SchedulerError> {
        let new = Mission { nodes: plan.nodes, slots: plan.slots, ..Mission::unknown(plan.mission.clone()) };
        let mission = mission.cloned().unwrap_or(new);
        let policy = self.policy(Some(&mission))?;
        if mission.nodes.is_some() {
            let count = mission.nodes_wanted(plan.srcs.len() as u64);
            let (on_demand, spot) = policy.split(count, 0, std::time::Duration::ZERO);
            let of = [(Purchase::OnDemand, on_demand), (Purchase::Spot, spot)];
            let tags = self.tags(plan.mission.as_str(), Some(&mission));
            let mut requests = Vec::new();
            for (purchase, count) in of.into_iter().filter(|(_, count)| *count > 0) {
                requests.push(self.request(&policy, purchase, count, tags.clone(), String::new()).await?);
            }
            return Ok(requests);
        }
        let Some(src) = plan.srcs.first() else { return Ok(Vec::new()) };
        let mut tags = self.tags(src.as_str(), Some(&mission));
        tags.push((tags::SRC.to_owned(), tags::src_value(src)));
        let purchase = policy.purchase(std::time::Duration::ZERO).unwrap_or(Purchase::OnDemand);
        self.request(&policy, purchase, 1, tags, String::new()).await.map(|request| vec![request])
    }
}

fn other_task(task: &Task) -> SchedulerError {
    let theirs = task.mission.as_ref();
    SchedulerError::OtherTask {
        src: task.src.to_string(),
        theirs: theirs.map_or_else(|| "no mission".to_owned(), |id| format!("mission {id}")),
    }
}

/// Refuses a plan that differs from the existing mission, or a cancelled mission.
fn refuse_other(mission: &Mission, plan: &SubmitPlan) -> Result<(), SchedulerError> {
    let other = |what: &str| SchedulerError::OtherMission { mission: mission.id.to_string(), what: what.to_owned() };
    if mission.cancelled_at.is_some() {
        return Err(other("is cancelled; reinstate it with `lighthpc redrive`"));
    }
    if plan.exec.is_some() && plan.exec != mission.exec {
        let theirs =
            mission.exec.as_deref().map_or_else(|| "the default of its nodes".to_owned(), |exec| format!("`{exec}`"));
        return Err(other(&format!("its workload is {theirs}; a mission has one workload")));
    }
    if plan.nodes.is_some() && plan.nodes != mission.nodes {
        return Err(other("has another value of --nodes"));
    }
    if plan.slots.is_some() && plan.slots != mission.slots {
        return Err(other("has another value of --slots"));
    }
    Ok(())
}
