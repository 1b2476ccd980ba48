//! The sweep: repairs what no node and no event will.
//!
//! ```text
//!   first look ──► what EC2 or the row says for certain is done at once
//!        └── what must be seen twice: wait a whole lease on this process's own clock ──► second look ──► done, if unchanged
//! ```
//!
//! Seen twice are: a lease whose holder EC2 says is running (it must not have moved), an instance without a live task (it may
//! be booting, or ending), a launch whose instance does not show, and a publisher whose machine may live. Of these only keys and
//! counters are kept between the looks. Whatever a sweep assumed of a row or of a mission is a condition of what it writes.
//!
//! Open tasks are read in pages, so memory does not grow with their number. A sweep looks at what runs first, then at what
//! waits, for a bounded time; where it stops it leaves a cursor, from which the next one goes on. Nothing else is remembered, so
//! any number of sweeps may run, on any machines, at any times.

mod checks;
mod parts;
mod repair;
mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Scheduler, SchedulerError};
use crate::backend::error_chain;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};

/// What a sweep found, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it did.
    pub what: What,
    /// The task, the instance, or the mission.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A lost task is pending again.
    PutBack,
    /// A node was launched.
    Launched,
    /// A node is wanted and there is none.
    NoNode,
    /// A task was failed.
    Failed,
    /// An instance was ended.
    Ended,
    /// A mission's end was announced.
    Announced,
    /// An entry of the index of open tasks was corrected.
    Reindexed,
    /// Something could not be done.
    Failure,
}

impl What {
    /// Returns the word that is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PutBack => "put-back",
            Self::Launched => "launched",
            Self::NoNode => "no-node",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Announced => "announced",
            Self::Reindexed => "reindexed",
            Self::Failure => "failure",
        }
    }
}

impl Scheduler {
    /// Sweeps once. Waits a lease in between if something must be seen twice; `stop` ends the wait, and with it the sweep.
    ///
    /// # Errors
    /// [`SchedulerError`] if the tables or EC2 cannot be read. What goes wrong with one task is a finding.
    pub async fn sweep(&self, stop: &CancellationToken) -> Result<Vec<Finding>, SchedulerError> {
        let mut sweep = Sweep::new(self, stop);
        sweep.first(&self.snapshot().await?).await?;
        if sweep.wait().await? {
            sweep.second(&self.snapshot().await?).await?;
        }
        Ok(sweep.into_findings())
    }

    /// Repairs what one instance's end has lost: EC2 says that it is gone, or, if not `is_over`, that it is going. One that is going
    /// may still save what it holds, and hand it back.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub async fn instance_gone(&self, id: &str, is_over: bool) -> Result<Vec<Finding>, SchedulerError> {
        let described = self.backend.fleet.find_instance(id, self.owner_tag()).await;
        let Some(ours) = described.map_err(SchedulerError::cloud("reading an instance's tags"))? else {
            return Ok(Vec::new());
        };
        let stop = CancellationToken::new();
        let mut sweep = Sweep::new(self, &stop);
        let named = match &ours.mission {
            Some(value) => self.backend.ledger.mission_named(value).await,
            None => Ok(None),
        };
        let mission = match named.map_err(SchedulerError::cloud("looking up a mission's name"))? {
            Some(mission) => self.mission(&mission).await?,
            None => None,
        };
        let srcs = match (&ours.src, &mission) {
            (Some(value), _) => self.src_of(value).await?.into_iter().collect(),
            // Reading them all is for the end that is certain: each of its nodes comes here twice.
            (None, Some(mission)) if is_over => {
                let running =
                    self.backend.ledger.open_tasks(Some(&mission.id), mission.tally_shards, State::Running).await;
                running.map_err(SchedulerError::cloud("listing open tasks"))?
            }
            (None, _) => Vec::new(),
        };
        for some in srcs.chunks(100) {
            let tasks = self.backend.ledger.tasks(some).await.map_err(SchedulerError::cloud("reading tasks"))?;
            for task in tasks {
                let held =
                    task.state == State::Running && task.instance.as_ref().is_some_and(|owner| owner.as_str() == id);
                let was_for_it = task.state == State::Pending && task.launch.instance.as_deref() == Some(id);
                if held && is_over {
                    sweep.put_back(&task, mission.as_ref(), "EC2 says that its instance is gone").await;
                } else if was_for_it && ours.src.is_some() {
                    sweep.want(&task, mission.as_ref(), &ours.end_words());
                }
            }
        }
        if let Some(mission) =
            mission.filter(|_| ours.src.is_none() && ours.reason.as_ref().is_some_and(|r| !r.is_usual()))
        {
            self.note_mission(&mission, &ours.end_words()).await?;
            sweep.find(What::NoNode, mission.id.as_str(), &ours.end_words());
        }
        sweep.launch_wanted().await;
        Ok(sweep.into_findings())
    }

    /// Announces a mission's end, if it has come and nobody has; returns whether this scheduler did. `is_lost`: its publisher, as
    /// `mission` names it, was seen not to renew its lease.
    pub(super) async fn announce(&self, mission: &Mission, is_lost: bool) -> Result<bool, SchedulerError> {
        let wrong = |source| SchedulerError::Announce { mission: mission.id.to_string(), source };
        let seen =
            self.notifier().notify_if_complete(&self.me, mission.id.as_str(), mission, is_lost).await.map_err(wrong);
        if seen.is_err() {
            // Parts of a manifest that was begun.
            self.backend.store.abort_dropped().await;
        }
        seen
    }
}

/// The mission that a task's end is counted in: one without a row has a tally all the same.
pub(super) fn tally_of(task: &Task, mission: Option<&Mission>) -> Option<Mission> {
    mission.cloned().or_else(|| task.mission.clone().map(Mission::unknown))
}

/// How long one half of a sweep puts lost tasks back, at some 40 a second.
const PUT_BACK_TIME_MAX: Duration = Duration::from_mins(2);
/// The most findings of failures that are listed. Of the rest only the number is.
const FAILURES_MAX: usize = 100;
/// The most tasks that are kept from one look to the other: key and two counters are about 150 bytes, so this is 30 MB.
const UNCONFIRMED_MAX: usize = 200_000;

/// One sweep: what it has seen, and what it has done.
struct Sweep<'a> {
    scheduler: &'a Scheduler,
    stop: &'a CancellationToken,
    findings: Vec<Finding>,
    failures: usize,
    /// Cleared when EC2 refuses to launch at all: there is no use in asking it a thousand times.
    may_launch: bool,
    /// The limit of nodes that holds launches back, once it did in this half.
    held: Option<String>,
    /// Missions whose launches it refuses.
    refused: HashSet<Option<MissionId>>,
    /// Tasks that want a node, and why. Launches are slow, so they come after everything else.
    wanted: Vec<(Task, Option<Mission>, String)>,
    unconfirmed: Unconfirmed,
    /// Instances that hold a running task.
    holders: HashSet<String>,
    /// What EC2 has said of holders that are not among our instances.
    gone: HashMap<String, bool>,
    counts: HashMap<MissionId, Counts>,
    /// When no more tasks are put back in this half.
    put_back_until: Instant,
    /// Lost tasks that were left to the next sweep.
    left: u64,
}

/// What the first look leaves to the second.
#[derive(Default)]
struct Unconfirmed {
    /// Leases whose holder may live: task → (attempt, beat).
    leases: BTreeMap<SrcId, (u64, u64)>,
    /// Instances without a live task, and their mission if they serve one.
    idle: BTreeMap<String, Option<MissionId>>,
    /// Launches without an instance: task → tries.
    launches: BTreeMap<SrcId, u64>,
    /// Publishers whose machine may live: mission → as it was.
    publishers: BTreeMap<MissionId, Notified>,
}

impl Unconfirmed {
    fn is_empty(&self) -> bool {
        self.leases.is_empty() && self.idle.is_empty() && self.launches.is_empty() && self.publishers.is_empty()
    }

    fn is_full(&self) -> bool {
        self.leases.len() + self.launches.len() >= UNCONFIRMED_MAX
    }
}

/// What was counted of one mission.
#[derive(Default)]
struct Counts {
    running: u64,
    /// Tasks that a node could claim, as far as they were counted.
    claimable: u64,
    /// Since when the longest of them waits.
    since: Option<String>,
    /// Whether something of it was not looked at.
    is_cut: bool,
}

impl<'a> Sweep<'a> {
    fn new(scheduler: &'a Scheduler, stop: &'a CancellationToken) -> Self {
        Self {
            scheduler,
            stop,
            findings: Vec::new(),
            failures: 0,
            may_launch: scheduler.settings.template.is_some(),
            held: None,
            refused: HashSet::new(),
            wanted: Vec::new(),
            unconfirmed: Unconfirmed::default(),
            holders: HashSet::new(),
            gone: HashMap::new(),
            counts: HashMap::new(),
            put_back_until: Instant::now() + PUT_BACK_TIME_MAX,
            left: 0,
        }
    }

    fn into_findings(mut self) -> Vec<Finding> {
        if self.failures > FAILURES_MAX {
            let reason = format!("{} more could not be done or read; the log has each", self.failures - FAILURES_MAX);
            self.findings.push(Finding { what: What::Failure, subject: "the rest".to_owned(), reason });
        }
        if self.left > 0 {
            tracing::warn!("{} lost tasks are left to the next sweep", self.left);
        }
        self.findings
    }

    fn find(&mut self, what: What, subject: &str, reason: &str) {
        tracing::info!(what = what.as_str(), "{} {subject}: {reason}", what.as_str());
        self.findings.push(Finding { what, subject: subject.to_owned(), reason: reason.to_owned() });
    }

    fn note_failure(&mut self, subject: &str, error: &SchedulerError) {
        self.odd(subject, &error_chain(error));
    }

    fn odd(&mut self, subject: &str, reason: &str) {
        tracing::warn!("{subject}: {reason}");
        self.failures += 1;
        if self.failures <= FAILURES_MAX {
            let (subject, reason) = (subject.to_owned(), reason.to_owned());
            self.findings.push(Finding { what: What::Failure, subject, reason });
        }
    }
}
