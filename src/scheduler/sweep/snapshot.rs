//! What a sweep knows of the world at one moment: the missions that are not closed, and the instances of ours with the tasks
//! that they were launched for. Open tasks are not in it: they are read in pages, for there may be millions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::backend::fleet::ManagedInstance;
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::tags;
use crate::domain::task::{State, Task};
use crate::scheduler::{Scheduler, SchedulerError};

/// How long an instance may run without a task of its own: a boot takes one or two minutes, a large image a few more. What
/// is older and holds nothing when it is looked at twice does not work.
pub(super) const BOOT_MAX: Duration = Duration::from_mins(15);

/// How long an announced mission is still looked at after it was seen to have no open task: the index lags, usually by less
/// than a second, and this is a few sweeps.
const CLOSING: Duration = Duration::from_mins(15);

/// The missions and the instances.
pub(super) struct Snapshot {
    /// Missions that may have open tasks, or whose end may not be announced.
    pub(super) missions: HashMap<MissionId, Mission>,
    pub(super) instances: Vec<ManagedInstance>,
    /// Rows of the missions table that cannot be missions, and why.
    pub(super) odd: Vec<(String, String)>,
    /// Instances of ours that have ended, as long as EC2 shows them: by their ids.
    ended: HashMap<String, ManagedInstance>,
    /// The places in `instances` of those that run or boot, by their task's tag.
    by_src: HashMap<String, Vec<usize>>,
    /// The ids of those that run or boot.
    alive: HashSet<String>,
    /// The tasks that instances were launched for, by their tag.
    tasks: HashMap<String, Brief>,
}

/// What is kept of a task's row.
struct Brief {
    state: State,
    instance: Option<InstanceId>,
    /// The instance that was noted as launched for the next attempt.
    launched: Option<String>,
}

impl Scheduler {
    /// Reads missions and instances.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, SchedulerError> {
        let mut missions = HashMap::new();
        let each = |mission: Mission| {
            if !is_closed(&mission) {
                missions.insert(mission.id.clone(), mission);
            }
        };
        let odd = self.backend.ledger.each_mission(each).await.map_err(SchedulerError::cloud("listing missions"))?;
        if let Some(default) = &self.settings.default_mission
            && !missions.contains_key(default)
            && self.mission(default).await?.is_none()
        {
            // Tasks may count for it although nobody has made it.
            missions.insert(default.clone(), Mission::unknown(default.clone()));
        }
        // Before the instances: what is taken after this is counted by itself.
        let count = self.node_count().await?;
        let all = self.backend.fleet.list_all_instances(self.owner_tag()).await;
        let all = all.map_err(SchedulerError::cloud("listing our instances"))?;
        self.correct_node_count(count, &all).await?;
        let (ended, instances): (Vec<ManagedInstance>, Vec<ManagedInstance>) =
            all.into_iter().partition(|ours| ours.is_ended);
        let ended = ended.into_iter().map(|ours| (ours.id.clone(), ours)).collect();
        let mut tasks = HashMap::new();
        // Their tasks are looked at whether the index has them or not: it lags, and of rows of the first version has none.
        for some in instances.chunks(100) {
            let mut srcs = Vec::new();
            for value in some.iter().filter_map(|ours| ours.src.as_deref()) {
                srcs.extend(self.src_of(value).await?);
            }
            let rows = self.backend.ledger.tasks(&srcs).await.map_err(SchedulerError::cloud("reading tasks"))?;
            tasks.extend(rows.into_iter().map(|task| (tags::src_value(&task.src), Brief::of(&task))));
        }
        let mut by_src: HashMap<String, Vec<usize>> = HashMap::new();
        let runs = |(_, ours): &(usize, &ManagedInstance)| !ours.is_stopped;
        for (place, ours) in instances.iter().enumerate().filter(runs) {
            if let Some(src) = &ours.src {
                by_src.entry(src.clone()).or_default().push(place);
            }
        }
        let alive = instances.iter().filter(|ours| !ours.is_stopped).map(|ours| ours.id.clone()).collect();
        Ok(Snapshot { missions, instances, odd, ended, by_src, alive, tasks })
    }

    /// Returns the task that a tag names; `None` if it cannot be one, or is a short name that nobody wrote down.
    pub(super) async fn src_of(&self, value: &str) -> Result<Option<SrcId>, SchedulerError> {
        if tags::is_short(value) {
            return self.backend.ledger.key_of(value).await.map_err(SchedulerError::cloud("looking up a task's name"));
        }
        Ok(SrcId::new(value).ok())
    }

    pub(in crate::scheduler) async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        self.backend.ledger.mission(id).await.map_err(SchedulerError::cloud("reading the mission"))
    }

    /// Notes that an announced mission has an open task again.
    pub(in crate::scheduler) async fn note_late(&self, id: &MissionId) -> Result<(), SchedulerError> {
        let noted = self.backend.ledger.note_late(id, &format!("{:016x}", rand::random::<u64>())).await;
        noted.map_err(SchedulerError::cloud("noting that a mission has a late task"))
    }
}

impl Brief {
    fn of(task: &Task) -> Self {
        let launched = task.launch.instance.clone().filter(|_| task.launch.is_for(task.attempt));
        Self { state: task.state, instance: task.instance.clone(), launched }
    }

    /// Whether this is the instance that was launched for the task. Of a launch that was not noted, any that bears its name.
    fn is_node(&self, ours: &ManagedInstance) -> bool {
        !ours.is_stopped && self.launched.as_ref().is_none_or(|launched| *launched == ours.id)
    }
}

impl Snapshot {
    pub(super) fn mission_of(&self, task: &Task) -> Option<&Mission> {
        task.mission.as_ref().and_then(|id| self.missions.get(id))
    }

    /// The mission that an instance's tag names; of a short name, if the mission is among those that are looked at.
    pub(super) fn mission_tagged(&self, ours: &ManagedInstance) -> Option<MissionId> {
        let value = ours.mission.as_deref()?;
        if tags::is_short_mission(value) {
            return self.missions.keys().find(|id| ours.is_of(id)).cloned();
        }
        MissionId::new(value).ok()
    }

    /// Whether an instance of ours runs or boots.
    pub(super) fn is_alive(&self, id: &str) -> bool {
        self.alive.contains(id)
    }

    /// Whether an instance runs that was launched for this task's next attempt.
    pub(super) fn has_node(&self, task: &Task) -> bool {
        let (value, brief) = (tags::src_value(&task.src), Brief::of(task));
        let places = self.by_src.get(&value);
        places.into_iter().flatten().any(|place| brief.is_node(&self.instances[*place]))
    }

    /// Why the instance has ended that was launched for the task's next attempt; `None` if EC2 does not say that it has.
    pub(super) fn end_of_node(&self, task: &Task) -> Option<String> {
        let id = task.launch.instance.as_ref().filter(|_| task.launch.is_for(task.attempt))?;
        self.ended.get(id).map(ManagedInstance::end_words)
    }

    /// Why a node of a mission has ended that was not meant to, such as one that EC2 could not start.
    pub(super) fn odd_end(&self, mission: &MissionId) -> Option<String> {
        let is_its = |ours: &&ManagedInstance| ours.src.is_none() && ours.mission.as_deref() == Some(mission.as_str());
        let is_odd = |ours: &&ManagedInstance| ours.reason.as_ref().is_some_and(|reason| !reason.is_usual());
        // The youngest.
        self.ended.values().filter(is_its).filter(is_odd).min_by_key(|ours| ours.age).map(ManagedInstance::end_words)
    }

    /// Instances that have nothing to do, with the reason: their task has ended or is another's, or they hold none of their
    /// mission's. `holders` are the instances that hold a running task.
    pub(super) fn idle(&self, holders: &HashSet<String>) -> BTreeMap<String, &'static str> {
        let publishers: HashSet<&str> = self
            .missions
            .values()
            .filter_map(|mission| match &mission.notified {
                Notified::Sending { by, .. } => Some(by.as_str()),
                Notified::No | Notified::Yes => None,
            })
            .collect();
        let reason = |ours: &ManagedInstance| {
            if ours.is_stopped {
                return Some("it is stopped, and its volumes bill");
            }
            if holders.contains(&ours.id) || publishers.contains(ours.id.as_str()) {
                return None;
            }
            let is_young = ours.age < BOOT_MAX;
            let task = ours.src.as_ref().and_then(|src| self.tasks.get(src));
            match (task, &ours.src, &ours.mission) {
                (Some(task), Some(src), _) if task.state == State::Pending => {
                    let others = self.by_src.get(src).into_iter().flatten();
                    let is_replaced =
                        !task.is_node(ours) && others.into_iter().any(|place| task.is_node(&self.instances[*place]));
                    if is_replaced {
                        return Some("another instance was launched for its task");
                    }
                    (!is_young).then_some("its task waits, and it has not claimed it")
                }
                // Whatever an unknown state means, the instance may be at it.
                (Some(task), ..) if task.state == State::Unknown => None,
                (Some(task), ..)
                    if task.state == State::Running
                        && task.instance.as_ref().is_some_and(|i| i.as_str() == ours.id) =>
                {
                    None
                }
                (Some(_), ..) => Some("its task has ended, or another instance holds it"),
                // A row may come after its node, and the index tells late of a mission's new tasks.
                (None, Some(_), _) => (!is_young).then_some("its task has no row"),
                (None, None, Some(_)) => (!is_young).then_some("it holds none of its mission's tasks"),
                (None, None, None) => Some("it has neither a task nor a mission"),
            }
        };
        self.instances.iter().filter_map(|ours| Some((ours.id.clone(), reason(ours)?))).collect()
    }
}

/// Whether a mission was announced and had no open task for so long that none is looked for.
fn is_closed(mission: &Mission) -> bool {
    let is_settled = mission.closed_at.as_deref().and_then(clock::since).is_some_and(|age| age >= CLOSING);
    mission.notified == Notified::Yes && mission.late.is_none() && is_settled
}
