//! What a sweep sees: missions, open tasks, and the instances of ours.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use crate::backend::fleet::Ours;
use crate::clock;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::tags;
use crate::domain::task::{State, Task};
use crate::scheduler::{Scheduler, SchedulerError};

/// How long an instance may run without a task of its own: a boot takes one or two minutes, a large image a few more. What
/// is older and holds nothing when it is looked at twice does not work.
const BOOT_MAX: Duration = Duration::from_mins(15);

/// How long an announced mission is still looked at after it was seen to have no open task: the index lags, usually by less
/// than a second, and this is a few sweeps.
const CLOSING: Duration = Duration::from_mins(15);

/// What one look sees.
pub(super) struct Look {
    pub(super) missions: HashMap<MissionId, Mission>,
    pub(super) pending: Vec<Task>,
    pub(super) running: Vec<Task>,
    /// Of the tasks that were asked after by name, those that have ended.
    ended: Vec<Task>,
    pub(super) instances: Vec<Ours>,
    /// The instances' places in that list, by their task's tag.
    by_src: HashMap<String, Vec<usize>>,
    ids: HashSet<String>,
    /// Missions with an open task.
    open: HashSet<MissionId>,
}

impl Scheduler {
    /// Looks. Tasks that were open at an `earlier` look are read whatever the index says: it lags.
    pub(super) async fn look(&self, earlier: Option<&Look>) -> Result<Look, SchedulerError> {
        let missions = self.backend.ledger.missions().await.map_err(SchedulerError::cloud("listing missions"))?;
        let mut srcs: Vec<SrcId> = earlier
            .map(|look| look.pending.iter().chain(&look.running).map(|task| task.src.clone()).collect())
            .unwrap_or_default();
        for state in [State::Pending, State::Running] {
            srcs.extend(self.open(None, 1, state).await?);
            for mission in missions.iter().filter(|mission| !is_closed(mission)) {
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
        let (running, ended): (Vec<_>, Vec<_>) = rest.into_iter().partition(|task| task.state == State::Running);
        let missions = missions.into_iter().map(|mission| (mission.id.clone(), mission)).collect();
        let open = pending.iter().chain(&running).filter_map(|task| task.mission.clone()).collect();
        let ids = instances.iter().map(|ours| ours.id.clone()).collect();
        let mut by_src: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, ours) in instances.iter().enumerate() {
            if let Some(src) = &ours.src {
                by_src.entry(src.clone()).or_default().push(place);
            }
        }
        Ok(Look { missions, pending, running, ended, instances, by_src, ids, open })
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

    /// Notes that an announced mission has an open task again.
    pub(in crate::scheduler) async fn note_late(&self, id: &MissionId) -> Result<(), SchedulerError> {
        let noted = self.backend.ledger.note_late(id, &format!("{:016x}", rand::random::<u64>())).await;
        noted.map_err(SchedulerError::cloud("noting that a mission has a late task"))
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
        self.ids.contains(id)
    }

    /// Whether a mission has an open task, as far as was seen.
    pub(super) fn is_open(&self, mission: &MissionId) -> bool {
        self.open.contains(mission)
    }

    /// Whether an instance runs that was launched for this task's next attempt.
    pub(super) fn has_node(&self, task: &Task) -> bool {
        let places = self.by_src.get(&tags::src_value(&task.src));
        places.into_iter().flatten().any(|place| is_node_of(&self.instances[*place], task))
    }

    /// Instances that have nothing to do: their task has ended or is another's, or their mission has no open task. One that
    /// held a task at any time since an `earlier` look is between two tasks.
    pub(super) fn idle(&self, earlier: Option<&Self>) -> BTreeMap<String, &'static str> {
        let was_open: HashSet<&SrcId> =
            earlier.iter().flat_map(|look| look.pending.iter().chain(&look.running)).map(|task| &task.src).collect();
        let just_ended = self.ended.iter().filter(|task| was_open.contains(&task.src));
        let held = self.running.iter().chain(earlier.iter().flat_map(|look| &look.running)).chain(just_ended);
        let holders: HashSet<&str> = held.filter_map(|task| task.instance.as_ref()).map(InstanceId::as_str).collect();
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
        let taken: HashSet<String> =
            self.running.iter().chain(&self.ended).map(|task| tags::src_value(&task.src)).collect();
        let reason = |ours: &Ours| {
            if holders.contains(ours.id.as_str()) || publishers.contains(ours.id.as_str()) {
                return None;
            }
            let is_young = ours.age < BOOT_MAX;
            match (&ours.src, &ours.mission) {
                (Some(src), _)
                    if waiting.get(src).is_some_and(|task| !is_node_of(ours, task) && self.has_node(task)) =>
                {
                    Some("another instance was launched for its task")
                }
                (Some(src), _) if waiting.contains_key(src) => {
                    (!is_young).then_some("its task waits, and it has not claimed it")
                }
                (Some(src), _) if taken.contains(src) => Some("its task has ended, or another instance holds it"),
                // A row may come after its node, and the index tells late of a mission's new tasks.
                (Some(_), _) => (!is_young).then_some("its task has no row"),
                (None, Some(_)) => (!is_young).then_some("it holds none of its mission's tasks"),
                (None, None) => Some("it has neither a task nor a mission"),
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

/// Whether this is the instance that was launched for a task. Of a launch that was not noted, any that bears its name.
fn is_node_of(ours: &Ours, task: &Task) -> bool {
    let is_noted = match &task.launch.instance {
        Some(instance) if task.launch.is_for(task.attempt) => *instance == ours.id,
        _ => true,
    };
    is_noted && ours.src.as_deref() == Some(tags::src_value(&task.src).as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(tasks: Vec<Task>) -> Look {
        let (ended, open): (Vec<_>, Vec<_>) =
            tasks.into_iter().partition(|task| matches!(task.state, State::Done | State::Failed));
        let (pending, running) = open.into_iter().partition(|task| task.state == State::Pending);
        let server =
            Ours { id: "i-1".to_owned(), src: None, mission: Some("M".to_owned()), is_spot: false, age: 2 * BOOT_MAX };
        Look {
            missions: HashMap::new(),
            pending,
            running,
            ended,
            instances: vec![server],
            by_src: HashMap::new(),
            ids: HashSet::new(),
            open: HashSet::new(),
        }
    }

    fn task(state: State, instance: Option<&str>) -> Task {
        let instance = instance.map(|id| InstanceId::new(id).unwrap());
        let mission = MissionId::new("M").unwrap();
        Task { state, instance, ..Task::new(SrcId::new("abc").unwrap(), Some(mission)) }
    }

    /// It took a task after the first look and ended it before the second: it will take the next one at once.
    #[test]
    fn a_node_between_two_tasks_is_not_idle() {
        let first = look(vec![task(State::Pending, None)]);
        let second = look(vec![task(State::Done, Some("i-1"))]);
        assert_eq!(second.idle(Some(&first)).len(), 0);
        let ran = look(vec![task(State::Running, Some("i-1"))]);
        assert_eq!(look(Vec::new()).idle(Some(&ran)).len(), 0);
        assert_eq!(second.idle(Some(&look(Vec::new()))).len(), 1, "that was long ago");
    }
}
