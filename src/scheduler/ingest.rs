//! An object has arrived: its row, and its node.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Node, Scheduler, SchedulerError};
use crate::backend::error_chain;
use crate::backend::ledger::{Made, NewTask};
use crate::clock;
use crate::domain::ids::{IdError, MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};

/// An object that was put into a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedObject {
    /// The bucket.
    pub bucket: String,
    /// The key, decoded.
    pub src: SrcId,
    /// Its size, if that is known.
    pub bytes: Option<u64>,
    /// When it happened, as the event says.
    pub time: String,
    /// What happened, such as `ObjectCreated:Put`.
    pub trigger: String,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ingested {
    /// It has a row and a node.
    Launched(String),
    /// It has a row, and waits for the mission's own nodes.
    Queued,
    /// It has a row, and no node yet: why.
    Waits(String),
    /// It had a row.
    Duplicate,
    /// It is no task: why.
    Refused(&'static str),
}

/// How old a mission's row may be by which an object is judged: an invocation of the function may take minutes, and its owner
/// may cancel the mission or close it for uploads meanwhile. Of a thousand objects a second one row is read every five seconds.
const MISSION_AGE_MAX: Duration = Duration::from_secs(5);

/// Why an object is refused whose mission takes no uploads.
const NO_UPLOADS: &str =
    "its mission takes only tasks that are submitted (`uploads` is `no`): `lighthpc submit --uploads yes` opens it";

/// Takes objects in. Missions' rows are kept for [`MISSION_AGE_MAX`].
#[derive(Debug)]
pub struct TaskIngest<'a> {
    scheduler: &'a Scheduler,
    missions: HashMap<MissionId, (Instant, Option<Mission>)>,
}

impl<'a> TaskIngest<'a> {
    /// Begins.
    #[must_use]
    pub fn new(scheduler: &'a Scheduler) -> Self {
        Self { scheduler, missions: HashMap::new() }
    }

    /// Makes the object's row, and launches its node. May be called twice: the second time finds the row.
    ///
    /// A task counts for the mission that its key begins with (`MISSION/…`), if there is such a mission; else for the default
    /// mission, if one is set; else for none. A key that begins with that of another item of the missions table (`M#tally#0/…`,
    /// `~sweep/…`) counts for none. A mission that takes no uploads gets none: neither a row nor a node; what was submitted has
    /// its row already, or gets it from `submit`.
    ///
    /// # Errors
    /// [`SchedulerError`] if the row could not be made, or may not have been. If it [is transient](SchedulerError::is_transient), call
    /// again. That EC2 refuses to launch is no error here: the row is there, and waits.
    pub async fn ingest(&mut self, upload: &UploadedObject) -> Result<Ingested, SchedulerError> {
        let settings = &self.scheduler.settings;
        if settings.result_bucket.as_deref() == Some(&upload.bucket) {
            return Ok(Ingested::Refused("it is in the result bucket, and results must not become tasks"));
        }
        if settings.source_bucket.as_deref().is_some_and(|ours| ours != upload.bucket) {
            return Ok(Ingested::Refused("it is in a bucket that is not ours"));
        }
        if upload.src.as_str().ends_with('/') && upload.bytes.unwrap_or(0) == 0 {
            return Ok(Ingested::Refused("it is an empty object that stands for a folder"));
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
            bucket: upload.bucket.clone(),
            now: now.clone(),
            trigger_time: upload.time.clone(),
            trigger: upload.trigger.clone(),
        };
        let ledger = &self.scheduler.backend.ledger;
        let made = if mission.as_ref().is_none_or(|mission| mission.accepts_uploads) {
            ledger.create_task(&new).await.map_err(SchedulerError::cloud("making the task's row"))?
        } else {
            let there = ledger.task(&upload.src).await.map_err(SchedulerError::cloud("looking for the task's row"))?;
            let Some(task) = there else { return Ok(Ingested::Refused(NO_UPLOADS)) };
            Made::There(Box::new(task))
        };
        let is_new = made == Made::New;
        let waits = match &made {
            Made::New => true,
            Made::There(task) => task.state == State::Pending,
        };
        // Read again, now that the row is there: whoever announces the mission after this finds the row.
        if waits
            && let Some(mission) = &mission
            && self.scheduler.mission(&mission.id).await?.is_some_and(|mission| mission.notified == Notified::Yes)
        {
            // Announced already: a sweep would not look for tasks of it any more.
            self.scheduler.note_late(&mission.id).await?;
        }
        if !is_new {
            let noted = ledger.note_duplicate(&upload.src).await;
            noted.map_err(SchedulerError::cloud("noting a duplicate event"))?;
            return Ok(Ingested::Duplicate);
        }
        let launched = match (by_nodes, mission) {
            (Some(_), Some(mission)) => self.one_node(&mission).await,
            (_, mission) if self.scheduler.settings.template.is_some() => {
                let task = Task::new(upload.src.clone(), mission.as_ref().map(|m| m.id.clone()));
                let task = Task { made_at: Some(now.clone()), open_since: Some(now), ..task };
                self.scheduler.launch_for(&task, mission.as_ref()).await.map(|node| match node {
                    Node::Launched(instance) => Ingested::Launched(instance),
                    Node::Waits(why) | Node::Held(why) => Ingested::Waits(why),
                    Node::NotNeeded => Ingested::Duplicate,
                })
            }
            _ => Ok(Ingested::Waits("no launch template is set".to_owned())),
        };
        match launched {
            // The row is there and says so, too; once it is fixed, a sweep launches.
            Err(error) if !error.is_transient() => {
                tracing::error!(src.id = %upload.src, "no node for {}: {}", upload.src, error_chain(&error));
                Ok(Ingested::Waits(error_chain(&error)))
            }
            launched => launched,
        }
    }

    /// Launches one of the mission's nodes, as long as it has not had all of them; from then on a sweep replaces them.
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
                    tracing::warn!(src.id = %src, "{src} counts for no mission: {error}");
                    return Ok(None);
                }
                // As no name of a mission: `/a`.
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
