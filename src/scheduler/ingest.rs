//! Ingests an uploaded object: creates the task's row, and launches its node.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{LaunchResult, Scheduler, SchedulerError};
use crate::backend::error_chain;
use crate::backend::ledger::{Made, NewTask};
use crate::clock;
use crate::domain::ids::{IdError, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};
use crate::domain::work::Work;

/// An object that was created in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedObject {
    /// The bucket.
    pub bucket: String,
    /// The key, decoded.
    pub src: SrcId,
    /// Its size, if that is known.
    pub bytes: Option<u64>,
    /// The time of the event, from the event.
    pub time: String,
    /// The kind of event, such as `ObjectCreated:Put`.
    pub trigger: String,
}

/// The result of an ingest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingested {
    /// The task has a row and a node.
    Launched(String),
    /// The task has a row, and waits for one of the mission's nodes.
    Queued,
    /// The task has a row and no node yet, with the reason.
    Waits(String),
    /// The row already existed.
    Duplicate,
    /// The object is not a task, with the reason.
    Refused(&'static str),
}

/// The maximum age of a cached mission row. An invocation of the function may take minutes, and the mission may be
/// cancelled or closed for uploads meanwhile. For 1,000 objects, this costs one more read every 5 s.
const MISSION_AGE_MAX: Duration = Duration::from_secs(5);

/// The reason for refusing an object whose mission does not accept uploads.
const NO_UPLOADS: &str =
    "its mission does not accept uploads (`uploads` is `no`); `lighthpc submit --uploads yes` changes that";

/// The ingest of a batch of objects. Mission rows are cached for [`MISSION_AGE_MAX`].
#[derive(Debug)]
pub struct TaskIngest<'a> {
    scheduler: &'a Scheduler,
    missions: HashMap<MissionId, (Instant, Option<Mission>)>,
}

impl<'a> TaskIngest<'a> {
    /// Creates an ingest with an empty cache.
    #[must_use]
    pub fn new(scheduler: &'a Scheduler) -> Self {
        Self { scheduler, missions: HashMap::new() }
    }

    /// Creates the task's row, and launches its node. May be repeated: the second call finds the row.
    ///
    /// The task belongs to the mission at the start of its key (`MISSION/…`) if that mission exists; else to the
    /// default mission if one is set; else to none. A key that starts like another item of the missions table
    /// (`M#tally#0/…`, `~sweep/…`) belongs to no mission. If the mission does not accept uploads, neither a row nor a
    /// node is created; submitted tasks get their rows from `submit`.
    ///
    /// # Errors
    /// [`SchedulerError`] if the row could not be created, or it is unknown whether it was. If it [is
    /// transient](SchedulerError::is_transient), call again. A refused launch is not an error: the row exists and waits.
    pub async fn ingest(&mut self, upload: &UploadedObject) -> Result<Ingested, SchedulerError> {
        let settings = &self.scheduler.settings;
        if settings.result_bucket.as_deref() == Some(&upload.bucket) {
            return Ok(Ingested::Refused("it is in the result bucket; results must not become tasks"));
        }
        if settings.source_bucket.as_deref().is_some_and(|ours| ours != upload.bucket) {
            return Ok(Ingested::Refused("it is not in the source bucket"));
        }
        if upload.src.as_str().ends_with('/') && upload.bytes.unwrap_or(0) == 0 {
            return Ok(Ingested::Refused("it is an empty object that represents a folder"));
        }
        let mission = self.mission_of(&upload.src).await?;
        if mission.as_ref().is_some_and(|mission| mission.cancelled_at.is_some()) {
            return Ok(Ingested::Refused("its mission is cancelled"));
        }
        let by_nodes = mission.as_ref().and_then(|mission| mission.nodes);
        let now = clock::now_rfc3339();
        let new = NewTask {
            src: upload.src.clone(),
            mission: mission.as_ref().map(|mission| (mission.id.clone(), mission.tally_shards)),
            bucket: Some(upload.bucket.clone()),
            work: Work::default(),
            now: now.clone(),
            trigger_time: upload.time.clone(),
            trigger: upload.trigger.clone(),
        };
        let ledger = &self.scheduler.backend.ledger;
        let made = if mission.as_ref().is_none_or(|mission| mission.accepts_uploads) {
            ledger.create_task(&new).await.map_err(SchedulerError::cloud("creating the task's row"))?
        } else {
            let there = ledger.task(&upload.src).await.map_err(SchedulerError::cloud("reading the task's row"))?;
            let Some(task) = there else { return Ok(Ingested::Refused(NO_UPLOADS)) };
            Made::There(Box::new(task))
        };
        let is_new = made == Made::New;
        let waits = match &made {
            Made::New => true,
            Made::There(task) => task.state == State::Pending,
        };
        // Read again now that the row exists: a later check for completion finds the row.
        if waits
            && let Some(mission) = &mission
            && self.scheduler.mission(&mission.id).await?.is_some_and(|mission| mission.notified == Notified::Yes)
        {
            // A complete mission is reopened, so that sweeps read its tasks again.
            self.scheduler.note_late(&mission.id).await?;
        }
        if !is_new {
            let noted = ledger.note_duplicate(&upload.src).await;
            noted.map_err(SchedulerError::cloud("recording a duplicate event"))?;
            return Ok(Ingested::Duplicate);
        }
        let launched = match (by_nodes, mission) {
            (Some(_), Some(mission)) => self.one_node(&mission).await,
            (_, mission) if self.scheduler.settings.template.is_some() => {
                let task = Task::new(upload.src.clone(), mission.as_ref().map(|m| m.id.clone()));
                let task = Task { made_at: Some(now.clone()), open_since: Some(now), ..task };
                self.scheduler.launch_for(&task, mission.as_ref()).await.map(|node| match node {
                    LaunchResult::Launched(instance) => Ingested::Launched(instance),
                    LaunchResult::Waits(why) | LaunchResult::Held(why) => Ingested::Waits(why),
                    LaunchResult::NotNeeded => Ingested::Duplicate,
                })
            }
            _ => Ok(Ingested::Waits("no launch template is set".to_owned())),
        };
        match launched {
            // The row exists and has the reason. After the cause is fixed, a sweep launches the node.
            Err(error) if !error.is_transient() => {
                tracing::error!(src.id = %upload.src, "no node was launched for {}: {}", upload.src, error_chain(&error));
                Ok(Ingested::Waits(error_chain(&error)))
            }
            launched => launched,
        }
    }

    /// Launches one of the mission's nodes, unless all were launched before. Later, sweeps replace lost ones.
    async fn one_node(&self, mission: &Mission) -> Result<Ingested, SchedulerError> {
        if self.scheduler.settings.template.is_none() {
            return Ok(Ingested::Queued);
        }
        let Some(launched) = self.scheduler.launch_one(mission).await? else { return Ok(Ingested::Queued) };
        Ok(match launched.instances.into_iter().next() {
            Some(instance) => Ingested::Launched(instance),
            None if launched.shortfall.is_empty() => Ingested::Queued,
            None => Ingested::Waits(launched.shortfall.join("; ")),
        })
    }

    async fn mission_of(&mut self, src: &SrcId) -> Result<Option<Mission>, SchedulerError> {
        if let Some((name, _)) = src.as_str().split_once('/') {
            match MissionId::new(name) {
                Ok(id) => {
                    if let Some(mission) = self.mission(&id).await? {
                        return Ok(Some(mission));
                    }
                }
                Err(error @ IdError::Form { .. }) => {
                    tracing::warn!(src.id = %src, "{src} belongs to no mission: {error}");
                    return Ok(None);
                }
                // The key starts with `/`, so it names no mission.
                Err(IdError::Empty { .. } | IdError::TooLong { .. }) => {}
            }
        }
        let Some(default) = self.scheduler.settings.default_mission.clone() else { return Ok(None) };
        let mission = self.mission(&default).await?;
        Ok(Some(mission.unwrap_or_else(|| Mission::unknown(default))))
    }

    async fn mission(&mut self, id: &MissionId) -> Result<Option<Mission>, SchedulerError> {
        let asked = Instant::now();
        if let Some((read_at, mission)) = self.missions.get(id)
            && asked.duration_since(*read_at) < MISSION_AGE_MAX
        {
            return Ok(mission.clone());
        }
        let mission = self.scheduler.mission(id).await?;
        self.missions.insert(id.clone(), (asked, mission.clone()));
        Ok(mission)
    }
}
