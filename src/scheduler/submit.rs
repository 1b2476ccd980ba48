//! Many tasks at once: a mission, its rows, and its nodes.

use std::collections::HashSet;

use super::launch::Node;
use super::redrive::remember;
use super::{Scheduler, SchedulerError};
use crate::backend::fleet::Request;
use crate::backend::ledger::{Made, NewMission, NewTask, TableKind};
use crate::backend::parallel::Parallel;
use crate::backend::{CloudError, Kind, error_chain};
use crate::clock;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, tally_shards_for};
use crate::domain::policy::Purchase;
use crate::domain::tags;
use crate::domain::task::{State, Task};

/// Rows under way at once: at 5 ms a write, 64 of them are more than the 4,000 writes a second that a new table takes.
/// Source: DynamoDB developer guide, "On-demand capacity mode", "Initial throughput".
const ROWS_PARALLEL: usize = 64;

/// How often the number of a mission's tasks is counted again because another has changed it meanwhile.
const RESIZES_MAX: u32 = 5;

/// How many rows of a submission are read and looked at in one go: ten calls, and some 20 MB if each
/// row has a history of ten attempts whose logs have the longest keys.
const CHECKED_AT_ONCE: usize = 1000;

/// A mission to be made or enlarged.
#[derive(Clone, Debug)]
pub struct SubmitPlan {
    /// The mission.
    pub mission: MissionId,
    /// What it is called.
    pub name: Option<String>,
    /// The bucket of the inputs.
    pub bucket: String,
    /// The keys of the inputs, each once.
    pub srcs: Vec<SrcId>,
    /// The workload, for `sh -c`.
    pub exec: Option<String>,
    /// How many nodes serve it; `None`: a node for each task.
    pub nodes: Option<u32>,
    /// How many tasks such a node works at, at a time.
    pub slots: Option<u16>,
    /// Whether objects that are put below its prefix become tasks of it, too; `None`: not of a new one, and of one that is there
    /// as before.
    pub uploads: Option<bool>,
}

/// What a submission did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Submitted {
    /// Whether the mission was made; else it was there.
    pub is_new: bool,
    /// Rows that were made.
    pub made: u64,
    /// Rows that were there already.
    pub there: u64,
    /// Instances that were launched.
    pub launched: u64,
    /// Tasks that wait for a node, or for one of the mission's nodes.
    pub waiting: u64,
    /// Why some have none, each reason once.
    pub waits: Vec<String>,
}

/// What a submission finds, before it writes anything.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The mission, if it is there.
    pub mission: Option<Mission>,
    /// The launches that it would ask for: the first of a node for each task, or those of the mission's nodes.
    pub requests: Vec<Request>,
    /// The tasks that have rows.
    known: HashSet<SrcId>,
    /// Rows that are not yet in the mission's index: the first version made them, or a hand, or an upload before there
    /// was the mission.
    to_adopt: Vec<Task>,
}

/// A mission that is ready for its tasks' rows.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The mission, as large as it will be.
    pub mission: Mission,
    /// Whether it was made; else it was there.
    pub is_new: bool,
    /// The tasks that have rows.
    pub known: HashSet<SrcId>,
}

impl Scheduler {
    /// Makes the mission, or enlarges it, before anything that could make one of its tasks: an object that goes up is a task at
    /// once, and must find its mission. Rows of no mission that wait are taken over.
    ///
    /// May be called again, whatever became of the first call.
    ///
    /// # Errors
    /// [`SchedulerError::OtherMission`], [`SchedulerError::OtherTask`] before anything is written; else what a service said.
    pub async fn prepare(&self, plan: &SubmitPlan) -> Result<Prepared, SchedulerError> {
        let checked = self.check_rows(plan).await?;
        self.prepare_checked(plan, checked).await
    }

    /// Checks all that could refuse the submission, and writes nothing. With `launches`, EC2 is asked too whether it
    /// would launch.
    ///
    /// # Errors
    /// What the submission itself would fail with.
    pub async fn check(&self, plan: &SubmitPlan, launches: bool) -> Result<Checked, SchedulerError> {
        let mut checked = self.check_rows(plan).await?;
        if launches {
            let ledger = &self.backend.ledger;
            // What a launch needs of the tables, beyond what was read by now.
            let (index, tasks, missions) = tokio::join!(
                ledger.has_index(),
                ledger.may_work_at(TableKind::Tasks),
                ledger.may_work_at(TableKind::Missions)
            );
            index.map(drop).and(tasks).and(missions).map_err(SchedulerError::cloud("looking at the tables"))?;
            checked.requests = self.requests(plan, checked.mission.as_ref()).await?;
            self.check_launch(&checked.requests).await?;
        }
        Ok(checked)
    }

    /// Asks EC2 whether the template is there, and whether it would take each launch. That the template may not be
    /// read is no reason: a launch does not need that.
    async fn check_launch(&self, requests: &[Request]) -> Result<(), SchedulerError> {
        let Some(first) = requests.first() else { return Ok(()) };
        match self.backend.fleet.template(&first.template).await {
            Err(error) if error.kind != Kind::AccessDenied => {
                return Err(SchedulerError::cloud("looking at the launch template")(error));
            }
            _ => {}
        }
        for request in requests {
            let token = format!("check-{:016x}", rand::random::<u64>());
            let asked = self.backend.fleet.may_launch(&Request { token, ..request.clone() }).await;
            asked.map_err(SchedulerError::cloud("asking EC2 whether it would launch"))?;
        }
        Ok(())
    }

    /// Looks at rows and mission, and refuses what does not fit them.
    async fn check_rows(&self, plan: &SubmitPlan) -> Result<Checked, SchedulerError> {
        let is_ours = |task: &Task| match &task.mission {
            Some(mission) => *mission == plan.mission,
            // It was counted nowhere when it ended, and a node that runs it will not count it.
            None => task.state == State::Pending,
        };
        let is_to_adopt =
            |task: &Task| task.state == State::Pending && (task.mission.is_none() || task.open_since.is_none());
        let (mut known, mut to_adopt) = (HashSet::new(), Vec::new());
        // In parts: the rows of a large mission, with their logs, would fill the memory.
        for srcs in plan.srcs.chunks(CHECKED_AT_ONCE) {
            let rows = self.backend.ledger.tasks(srcs).await.map_err(SchedulerError::cloud("looking for rows"))?;
            if let Some(task) = rows.iter().find(|task| !is_ours(task)) {
                return Err(other_task(task));
            }
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

    /// As [`Self::prepare`], with what [`Self::check`] has found.
    ///
    /// # Errors
    /// What a service said, or [`SchedulerError::OtherTask`] if a node was quicker.
    pub async fn prepare_checked(&self, plan: &SubmitPlan, checked: Checked) -> Result<Prepared, SchedulerError> {
        let ledger = &self.backend.ledger;
        let Checked { mission, known, to_adopt, .. } = checked;
        let made = if mission.is_none() { self.make_mission(plan).await? } else { None };
        let is_new = made.is_some();
        let mission = match made {
            Some(mission) => mission,
            // It was there, or another submission has made it meanwhile.
            None => self.enlarge(plan, &known).await?,
        };
        let mission = match plan.uploads {
            Some(are_taken) if !is_new => {
                let set = ledger.set_uploads(&mission.id, are_taken).await;
                set.map_err(SchedulerError::cloud("saying whether the mission takes uploads"))?;
                Mission { accepts_uploads: are_taken, ..mission }
            }
            _ => mission,
        };
        for task in &to_adopt {
            self.take_over_row(task, &mission).await?;
        }
        Ok(Prepared { mission, is_new, known })
    }

    /// Makes a row of no mission, or one that is in no index, a task of the mission.
    async fn take_over_row(&self, task: &Task, mission: &Mission) -> Result<(), SchedulerError> {
        let adopted = self.backend.ledger.adopt(task, mission, &clock::now_rfc3339()).await;
        let is_adopted = adopted.map_err(SchedulerError::cloud("taking a row over"))?;
        // A node was quicker.
        if is_adopted || task.mission.is_some() { Ok(()) } else { Err(other_task(task)) }
    }

    /// Makes the rows that are not there. `progress` hears how many are done.
    ///
    /// May be called again, whatever became of the first call: nothing doubles.
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
        // Made by the event of an object after the rows were looked at, and before there was the mission.
        let mut others = Vec::new();
        let make = |src: SrcId| {
            let now = clock::now_rfc3339();
            let new = NewTask {
                src,
                mission: Some((mission.id.clone(), mission.tally_shards)),
                bucket: plan.bucket.clone(),
                now: now.clone(),
                trigger_time: now,
                trigger: "lighthpc submit".to_owned(),
            };
            let ledger = ledger.clone();
            async move { ledger.create_task(&new).await }
        };
        // By number: a closure over references is not general enough for a future that is sent.
        let rows = (0..plan.srcs.len()).filter_map(|n| {
            let src = &plan.srcs[n];
            (!known.contains(src)).then(|| make(src.clone()))
        });
        // Dropping the rest on an error is safe: each row is there or not, and the next call finds which.
        let mut rows = Parallel::new(ROWS_PARALLEL, rows);
        while let Some(made) = rows.next().await {
            let made = made.map_err(|panic| CloudError::new(Kind::Invalid, "PutItem", "a row", panic.to_string()));
            match made.flatten().map_err(SchedulerError::cloud("making a row"))? {
                Made::New => submitted.made += 1,
                Made::There(task) => {
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
        self.recount(prepared).await?;
        Ok(submitted)
    }

    /// Makes the mission; `None` if it is there.
    async fn make_mission(&self, plan: &SubmitPlan) -> Result<Option<Mission>, SchedulerError> {
        let trans_number = plan.srcs.len() as u64;
        let new = NewMission {
            tally_shards: tally_shards_for(trans_number),
            exec: plan.exec.clone(),
            name: plan.name.clone(),
            nodes: plan.nodes,
            slots: plan.slots,
            uploads: Some(plan.uploads.unwrap_or(false)),
            policy: self.settings.policy.clone(),
            now: clock::now_rfc3339(),
            ..NewMission::of(plan.mission.clone(), trans_number)
        };
        let made = self.backend.ledger.create_mission(&new).await;
        if !made.map_err(SchedulerError::cloud("making the mission"))? {
            return Ok(None);
        }
        self.present(&plan.mission).await.map(Some)
    }

    async fn present(&self, id: &MissionId) -> Result<Mission, SchedulerError> {
        self.mission(id).await?.ok_or_else(|| SchedulerError::NoMission(id.to_string()))
    }

    /// Makes a mission that is there as large as it will be with the new tasks. Before their rows: it must not look over while
    /// it grows.
    async fn enlarge(&self, plan: &SubmitPlan, known: &HashSet<SrcId>) -> Result<Mission, SchedulerError> {
        let mission = self.present(&plan.mission).await?;
        refuse_other(&mission, plan)?;
        let has_all = known.len() == plan.srcs.len();
        self.fit_number(mission, &plan.srcs, |mission, count| has_all && mission.trans_number == Some(count)).await
    }

    /// Counts again after the rows were made: another submission to the mission saw only those that were there when it counted.
    /// The last of them to end sees all.
    async fn recount(&self, prepared: &Prepared) -> Result<(), SchedulerError> {
        let mission = self.present(&prepared.mission.id).await?;
        // Each submission to a mission that is there opens it.
        if prepared.is_new && mission.opened == 0 {
            return Ok(());
        }
        let is_enough = |mission: &Mission, count| mission.trans_number.is_some_and(|number| number >= count);
        self.fit_number(mission, &[], is_enough).await.map(drop)
    }

    /// Sets the number of a mission's tasks to that of its rows and of `more`, unless it `fits`. Counted afresh, so that a call
    /// that died halfway counts nothing twice; and again, if another has changed the number meanwhile.
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
            // A mission that was made for more tasks waits for these, too.
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
        let what = "is being changed by others again and again".to_owned();
        Err(SchedulerError::OtherMission { mission: mission.id.to_string(), what })
    }

    /// Launches what the mission's waiting tasks need: a node for each, or the mission's nodes. `progress` hears how many
    /// tasks have been seen to.
    ///
    /// # Errors
    /// [`SchedulerError`] if EC2 refuses to launch at all; what it has no room for waits, and a sweep tries again.
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
                    Ok(Node::Launched(_)) => submitted.launched += 1,
                    Ok(Node::NotNeeded) => {}
                    Ok(Node::Waits(why) | Node::Held(why)) => {
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

    /// The launches that a submission would ask for, as they would be sent: the first of a node a task, or the mission's.
    ///
    /// # Errors
    /// [`SchedulerError`]: no template, or a policy that cannot be read.
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
        theirs: theirs.map_or_else(|| "a run of no mission".to_owned(), |id| format!("mission {id}")),
    }
}

/// Refuses to add to a mission that was made otherwise, or is cancelled.
fn refuse_other(mission: &Mission, plan: &SubmitPlan) -> Result<(), SchedulerError> {
    let other = |what: &str| SchedulerError::OtherMission { mission: mission.id.to_string(), what: what.to_owned() };
    if mission.cancelled_at.is_some() {
        return Err(other("is cancelled: `lighthpc redrive` opens it again"));
    }
    if plan.exec.is_some() && plan.exec != mission.exec {
        let theirs = mission.exec.as_deref().map_or_else(|| "its nodes' own".to_owned(), |exec| format!("`{exec}`"));
        return Err(other(&format!("its workload is {theirs}: its results would be of two kinds")));
    }
    if plan.nodes.is_some() && plan.nodes != mission.nodes {
        return Err(other("is served otherwise: look at --nodes"));
    }
    if plan.slots.is_some() && plan.slots != mission.slots {
        return Err(other("is served otherwise: look at --slots"));
    }
    Ok(())
}
