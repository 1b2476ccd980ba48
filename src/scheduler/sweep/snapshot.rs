//! The snapshot of a sweep: the missions that are not closed, and the deployment's instances with their tasks. It does
//! not contain open tasks, which are read in pages, because there may be millions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::backend::fleet::ManagedInstance;
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::tags;
use crate::domain::task::{State, Task};
use crate::scheduler::{Scheduler, SchedulerError};

/// The maximum age of an instance without a task. A boot takes one or two minutes, and a few more with a large image.
/// An older one that holds nothing in two observations does not work.
pub(super) const BOOT_MAX: Duration = Duration::from_mins(15);

/// The time for which a mission with a sent notification is still checked after it had no open task. The index usually
/// lags by less than a second; this covers a few sweeps.
const CLOSING: Duration = Duration::from_mins(15);

/// The missions and the instances.
pub(super) struct Snapshot {
    /// Missions that may have open tasks, or need their notification.
    pub(super) missions: HashMap<MissionId, Mission>,
    pub(super) instances: Vec<ManagedInstance>,
    /// Invalid rows of the missions table, with the reason.
    pub(super) odd: Vec<(String, String)>,
    /// The deployment's terminated instances that EC2 still lists, by id.
    ended: HashMap<String, ManagedInstance>,
    /// The indexes in `instances` of those that run or boot, by their task's tag.
    by_src: HashMap<String, Vec<usize>>,
    /// The ids of those that run or boot.
    alive: HashSet<String>,
    /// The tasks that instances were launched for, by their tag.
    tasks: HashMap<String, Brief>,
}

/// The relevant part of a task's row.
struct Brief {
    state: State,
    instance: Option<InstanceId>,
    /// The instance that was recorded as launched for the next attempt.
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
            // Tasks may belong to the default mission before its row exists.
            missions.insert(default.clone(), Mission::unknown(default.clone()));
        }
        // Before the instances: launches after this read are counted by their own scheduler.
        let count = self.node_count().await?;
        let all = self.backend.fleet.list_all_instances(self.owner_tag()).await;
        let all = all.map_err(SchedulerError::cloud("listing the instances of this deployment"))?;
        self.correct_node_count(count, &all).await?;
        let (ended, instances): (Vec<ManagedInstance>, Vec<ManagedInstance>) =
            all.into_iter().partition(|ours| ours.is_ended);
        let ended = ended.into_iter().map(|ours| (ours.id.clone(), ours)).collect();
        let mut tasks = HashMap::new();
        // These tasks are read by key, because the index lags and does not contain rows of the first version.
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

    /// Returns the task that a tag names; `None` if it is invalid, or an unknown short name.
    pub(super) async fn src_of(&self, value: &str) -> Result<Option<SrcId>, SchedulerError> {
        if tags::is_short(value) {
            return self
                .backend
                .ledger
                .key_of(value)
                .await
                .map_err(SchedulerError::cloud("reading a task's short name"));
        }
        Ok(SrcId::new(value).ok())
    }

    pub(in crate::scheduler) async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        self.backend.ledger.mission(id).await.map_err(SchedulerError::cloud("reading the mission"))
    }

    /// Records that a mission with a sent notification has an open task again.
    pub(in crate::scheduler) async fn note_late(&self, id: &MissionId) -> Result<(), SchedulerError> {
        let noted = self.backend.ledger.note_late(id, &format!("{:016x}", rand::random::<u64>())).await;
        noted.map_err(SchedulerError::cloud("recording that a mission has a late task"))
    }
}

impl Brief {
    fn of(task: &Task) -> Self {
        let launched = task.launch.instance.clone().filter(|_| task.launch.is_for(task.attempt));
        Self { state: task.state, instance: task.instance.clone(), launched }
    }

    /// Returns whether this is the task's node: the recorded instance or, if none is recorded, any with the task's tag.
    fn is_node(&self, ours: &ManagedInstance) -> bool {
        !ours.is_stopped && self.launched.as_ref().is_none_or(|launched| *launched == ours.id)
    }
}

impl Snapshot {
    pub(super) fn mission_of(&self, task: &Task) -> Option<&Mission> {
        task.mission.as_ref().and_then(|id| self.missions.get(id))
    }

    /// Returns the mission that an instance's tag names. For a short name, only missions of this snapshot are known.
    pub(super) fn mission_tagged(&self, ours: &ManagedInstance) -> Option<MissionId> {
        let value = ours.mission.as_deref()?;
        if tags::is_short_mission(value) {
            return self.missions.keys().find(|id| ours.is_of(id)).cloned();
        }
        MissionId::new(value).ok()
    }

    /// Returns whether an instance of the deployment runs or boots.
    pub(super) fn is_alive(&self, id: &str) -> bool {
        self.alive.contains(id)
    }

    /// Returns whether an instance runs that was launched for this task's next attempt.
    pub(super) fn has_node(&self, task: &Task) -> bool {
        let (value, brief) = (tags::src_value(&task.src), Brief::of(task));
        let places = self.by_src.get(&value);
        places.into_iter().flatten().any(|place| brief.is_node(&self.instances[*place]))
    }

    /// Returns why the instance for the task's next attempt terminated; `None` if EC2 does not report that it did.
    pub(super) fn end_of_node(&self, task: &Task) -> Option<String> {
        let id = task.launch.instance.as_ref().filter(|_| task.launch.is_for(task.attempt))?;
        self.ended.get(id).map(ManagedInstance::end_words)
    }

    /// Returns why a node of a mission terminated unintentionally, for example because EC2 could not start it.
    pub(super) fn odd_end(&self, mission: &MissionId) -> Option<String> {
        let is_its = |ours: &&ManagedInstance| ours.src.is_none() && ours.mission.as_deref() == Some(mission.as_str());
        let is_odd = |ours: &&ManagedInstance| ours.reason.as_ref().is_some_and(|reason| !reason.is_usual());
        // The most recently launched one.
        self.ended.values().filter(is_its).filter(is_odd).min_by_key(|ours| ours.age).map(ManagedInstance::end_words)
    }

    /// Returns idle instances with the reason: their task is finished or held by another instance, or they hold no task
    /// of their mission. `holders` are the instances that hold a running task.
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
                return Some("it is stopped, and its volumes cost money");
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
                    (!is_young).then_some("it has not claimed its task, which is still pending")
                }
                // In an unknown state, the instance may be working.
                (Some(task), ..) if task.state == State::Unknown => None,
                (Some(task), ..)
                    if task.state == State::Running
                        && task.instance.as_ref().is_some_and(|i| i.as_str() == ours.id) =>
                {
                    None
                }
                (Some(_), ..) => Some("its task is finished, or another instance holds it"),
                // The row may be created after its node, and the index lists a mission's new tasks late.
                (None, Some(_), _) => (!is_young).then_some("its task has no row"),
                (None, None, Some(_)) => (!is_young).then_some("it holds no task of its mission"),
                (None, None, None) => Some("it has neither the tag of a task nor of a mission"),
            }
        };
        self.instances.iter().filter_map(|ours| Some((ours.id.clone(), reason(ours)?))).collect()
    }
}

/// Returns whether a mission's notification was sent and it had no open task for so long that it needs no more checks.
fn is_closed(mission: &Mission) -> bool {
    let is_settled = mission.closed_at.as_deref().and_then(clock::since).is_some_and(|age| age >= CLOSING);
    mission.notified == Notified::Yes && mission.late.is_none() && is_settled
}
