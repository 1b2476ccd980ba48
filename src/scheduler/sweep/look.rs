//! What a sweep sees: missions, open tasks, and the instances of ours.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::backend::fleet::Ours;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::tags;
use crate::domain::task::{State, Task};
use crate::scheduler::{Scheduler, SchedulerError};

/// How long an instance may run without a task of its own: a boot takes one or two minutes, a large image a few more. What
/// is older and holds nothing when it is looked at twice does not work.
const BOOT_MAX: Duration = Duration::from_mins(15);

/// What one look sees.
pub(super) struct Look {
    pub(super) missions: HashMap<MissionId, Mission>,
    pub(super) pending: Vec<Task>,
    pub(super) running: Vec<Task>,
    pub(super) instances: Vec<Ours>,
}

impl Scheduler {
    pub(super) async fn look(&self) -> Result<Look, SchedulerError> {
        let missions = self.backend.ledger.missions().await.map_err(SchedulerError::cloud("listing missions"))?;
        let mut srcs = Vec::new();
        for state in [State::Pending, State::Running] {
            srcs.extend(self.open(None, 1, state).await?);
            for mission in missions.iter().filter(|mission| mission.notified != Notified::Yes || mission.is_late) {
                srcs.extend(self.open(Some(&mission.id), mission.tally_shards, state).await?);
            }
            if let Some(default) = &self.settings.default_mission
                && !missions.iter().any(|mission| mission.id == *default)
            {
                srcs.extend(self.open(Some(default), 1, state).await?);
            }
        }
        // The instances are read after the index and before the rows: one that a row names was there to be seen.
        let instances = self.backend.fleet.ours(self.mark()).await;
        let instances = instances.map_err(SchedulerError::cloud("listing our instances"))?;
        // Their tasks are looked at whether the index has them or not: it lags, and of rows of the first version has none.
        for value in instances.iter().filter_map(|ours| ours.src.as_deref()) {
            srcs.extend(self.src_of(value).await?);
        }
        srcs.sort();
        srcs.dedup();
        let tasks = self.backend.ledger.tasks(&srcs).await.map_err(SchedulerError::cloud("reading open tasks"))?;
        let (pending, rest): (Vec<_>, Vec<_>) = tasks.into_iter().partition(|task| task.state == State::Pending);
        let running = rest.into_iter().filter(|task| task.state == State::Running).collect();
        let missions = missions.into_iter().map(|mission| (mission.id.clone(), mission)).collect();
        Ok(Look { missions, pending, running, instances })
    }

    pub(super) async fn src_of(&self, value: &str) -> Result<Option<SrcId>, SchedulerError> {
        if tags::is_short(value) {
            return self.backend.ledger.key_of(value).await.map_err(SchedulerError::cloud("looking up a task's name"));
        }
        Ok(SrcId::new(value).ok())
    }

    pub(in crate::scheduler) async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        self.backend.ledger.mission(id).await.map_err(SchedulerError::cloud("reading the mission"))
    }

    pub(in crate::scheduler) async fn open(
        &self,
        mission: Option<&MissionId>,
        shards: u32,
        state: State,
    ) -> Result<Vec<SrcId>, SchedulerError> {
        let open = self.backend.ledger.open_tasks(mission, shards, state).await;
        open.map_err(SchedulerError::cloud("listing open tasks"))
    }
}

impl Look {
    pub(super) fn mission_of(&self, task: &Task) -> Option<&Mission> {
        task.mission.as_ref().and_then(|id| self.missions.get(id))
    }

    pub(super) fn has_instance(&self, id: &str) -> bool {
        self.instances.iter().any(|ours| ours.id == id)
    }

    /// Instances that have nothing to do: their task has ended or is another's, or their mission has no open task.
    pub(super) fn idle(&self) -> BTreeMap<String, &'static str> {
        let holders: HashSet<&str> =
            self.running.iter().filter_map(|task| task.instance.as_ref()).map(InstanceId::as_str).collect();
        let publishers: HashSet<&str> = self
            .missions
            .values()
            .filter_map(|mission| match &mission.notified {
                Notified::Sending { by } => Some(by.as_str()),
                Notified::No | Notified::Yes => None,
            })
            .collect();
        let waiting: HashMap<String, &Task> =
            self.pending.iter().map(|task| (tags::src_value(&task.src), task)).collect();
        let open: HashSet<&MissionId> =
            self.pending.iter().chain(&self.running).filter_map(|task| task.mission.as_ref()).collect();
        let reason = |ours: &Ours| {
            if holders.contains(ours.id.as_str()) || publishers.contains(ours.id.as_str()) {
                return None;
            }
            let is_young = ours.age < BOOT_MAX;
            match (&ours.src, &ours.mission) {
                (Some(src), _)
                    if waiting.get(src).is_some_and(|task| !is_node_of(ours, task) && has_node(self, task)) =>
                {
                    Some("another instance was launched for its task")
                }
                (Some(src), _) if waiting.contains_key(src) => {
                    (!is_young).then_some("its task waits, and it has not claimed it")
                }
                (Some(_), _) => Some("its task has ended, or another instance holds it"),
                (None, Some(mission)) if open.iter().any(|id| id.as_str() == mission) => {
                    (!is_young).then_some("it holds none of its mission's tasks")
                }
                (None, Some(_)) => Some("its mission has no open task"),
                (None, None) => Some("it has neither a task nor a mission"),
            }
        };
        self.instances.iter().filter_map(|ours| Some((ours.id.clone(), reason(ours)?))).collect()
    }
}

/// Whether an instance runs that was launched for this task's next attempt.
pub(super) fn has_node(look: &Look, task: &Task) -> bool {
    look.instances.iter().any(|ours| is_node_of(ours, task))
}

/// Whether this is the instance that was launched for a task. Of a launch that was not noted, any that bears its name.
fn is_node_of(ours: &Ours, task: &Task) -> bool {
    let is_noted = match &task.launch.instance {
        Some(instance) if task.launch.is_for(task.attempt) => *instance == ours.id,
        _ => true,
    };
    is_noted && ours.src.as_deref() == Some(tags::src_value(&task.src).as_str())
}
