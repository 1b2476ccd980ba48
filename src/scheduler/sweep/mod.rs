//! The sweep: repairs failures that no node and no event repairs.
//!
//! ```text
//!   first pass ──► what EC2 or the row proves is repaired at once
//!        └── the rest: wait a whole lease on this process's own clock ──► second pass ──► repair, if unchanged
//! ```
//!
//! Four things need a second observation:
//!
//! - a lease whose holder runs: it is lost if it is not renewed;
//! - an instance without a live task: it may be booting or terminating;
//! - a launch whose instance EC2 does not list;
//! - a publisher whose machine may be alive.
//!
//! Only their keys and counters are kept between the passes. Each write is conditional on the state of the row or
//! mission that was read.
//!
//! Open tasks are read in pages, so the memory does not grow with their number. A sweep checks running tasks first,
//! then pending ones for a limited time, and stores a cursor from which the next one continues. There is no other
//! state, so any number of sweeps can run on any machines at any time.

mod checks;
mod notices;
mod parts;
mod repair;
mod snapshot;

pub use notices::{Figures, STALLED_AFTER};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Scheduler, SchedulerError};
use crate::backend::error_chain;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};

/// A finding of a sweep, and its action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The action.
    pub what: What,
    /// The task, the instance or the mission.
    pub subject: String,
    /// The reason.
    pub reason: String,
}

/// An action of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A lost task became pending.
    PutBack,
    /// A node was launched.
    Launched,
    /// A node is needed, but none was launched.
    NoNode,
    /// A task was failed.
    Failed,
    /// An instance was terminated.
    Ended,
    /// The notification of a complete mission was sent.
    Announced,
    /// An early notification was sent: of the first failure, or of a stall.
    Warned,
    /// An entry of the index of open tasks was corrected.
    Reindexed,
    /// An action failed.
    Failure,
}

impl What {
    /// Returns the word in the output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PutBack => "put-back",
            Self::Launched => "launched",
            Self::NoNode => "no-node",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Announced => "announced",
            Self::Warned => "warned",
            Self::Reindexed => "reindexed",
            Self::Failure => "failure",
        }
    }
}

impl Scheduler {
    /// Sweeps once. Waits for a lease if something needs a second observation; `stop` ends the wait and the sweep.
    ///
    /// # Errors
    /// [`SchedulerError`] if the tables or EC2 cannot be read. A failure of one task is a finding.
    pub async fn sweep(&self, stop: &CancellationToken) -> Result<Vec<Finding>, SchedulerError> {
        self.sweep_and_count(stop).await.map(|(findings, _)| findings)
    }

    /// Sweeps once, as [`Scheduler::sweep`] does, and returns also what it found in numbers.
    ///
    /// # Errors
    /// [`SchedulerError`] if the tables or EC2 cannot be read. A failure of one task is a finding.
    pub async fn sweep_and_count(&self, stop: &CancellationToken) -> Result<(Vec<Finding>, Figures), SchedulerError> {
        let mut sweep = Sweep::new(self, stop);
        sweep.first(&self.snapshot().await?).await?;
        if sweep.wait().await? {
            sweep.second(&self.snapshot().await?).await?;
        }
        let figures = sweep.figures();
        Ok((sweep.into_findings(), figures))
    }

    /// Repairs the loss of one instance, which EC2 reports as terminated or, if not `is_over`, as terminating. A
    /// terminating one may still save its task and release it.
    ///
    /// # Errors
    /// [`SchedulerError`].
    pub async fn instance_gone(&self, id: &str, is_over: bool) -> Result<Vec<Finding>, SchedulerError> {
        let described = self.backend.fleet.find_instance(id, self.owner_tag()).await;
        let Some(ours) = described.map_err(SchedulerError::cloud("reading the tags of an instance"))? else {
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
            // Reads all running tasks only when the termination is certain: each node causes two events.
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
                    sweep.put_back(&task, mission.as_ref(), "EC2 reports that its instance has terminated").await;
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

    /// Sends the notification of a complete mission if nobody has; returns whether this scheduler did. `is_lost`: its
    /// publisher, as in `mission`, was observed not to renew its lease.
    pub(super) async fn announce(&self, mission: &Mission, is_lost: bool) -> Result<bool, SchedulerError> {
        let wrong = |source| SchedulerError::Announce { mission: mission.id.to_string(), source };
        let seen =
            self.notifier().notify_if_complete(&self.me, mission.id.as_str(), mission, is_lost).await.map_err(wrong);
        if seen.is_err() {
            // Parts of a manifest that was started.
            self.backend.store.abort_dropped().await;
        }
        seen
    }
}

/// Returns the mission that counts a task. A mission without a row also has a tally.
pub(super) fn tally_of(task: &Task, mission: Option<&Mission>) -> Option<Mission> {
    mission.cloned().or_else(|| task.mission.clone().map(Mission::unknown))
}

/// The time limit for returning lost tasks in one half of a sweep, at about 40 per second.
const PUT_BACK_TIME_MAX: Duration = Duration::from_mins(2);
/// The maximum number of failures that are listed. The others are only counted.
const FAILURES_MAX: usize = 100;
/// The maximum number of tasks that are kept between the passes. A key and two counters are about 150 bytes: 30 MB.
const UNCONFIRMED_MAX: usize = 200_000;

/// The state of one sweep.
struct Sweep<'a> {
    scheduler: &'a Scheduler,
    stop: &'a CancellationToken,
    findings: Vec<Finding>,
    failures: usize,
    /// Cleared when EC2 refuses every launch, to avoid further requests.
    may_launch: bool,
    /// The limit of nodes that prevented a launch in this half, if any.
    held: Option<String>,
    /// Missions whose launches EC2 refuses.
    refused: HashSet<Option<MissionId>>,
    /// Tasks that need a node, with the reason. Launches are slow, so they come last.
    wanted: Vec<(Task, Option<Mission>, String)>,
    unconfirmed: Unconfirmed,
    /// Instances that hold a running task.
    holders: HashSet<String>,
    /// EC2's answers about holders that are not in the list of instances.
    gone: HashMap<String, bool>,
    counts: HashMap<MissionId, Counts>,
    /// The time when this half stops returning tasks.
    put_back_until: Instant,
    /// Lost tasks that are left to the next sweep.
    left: u64,
    /// What the first pass counted.
    figures: Figures,
}

/// The observations that the second pass must confirm.
#[derive(Default)]
struct Unconfirmed {
    /// Leases whose holder may be alive: task → (attempt, beat).
    leases: BTreeMap<SrcId, (u64, u64)>,
    /// Instances without a live task, and their mission if they serve one.
    idle: BTreeMap<String, Option<MissionId>>,
    /// Launches without an instance: task → tries.
    launches: BTreeMap<SrcId, u64>,
    /// Publishers whose machine may be alive: mission → its state.
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

/// The counters of one mission.
#[derive(Default)]
struct Counts {
    running: u64,
    /// Claimable tasks, up to the counting limit.
    claimable: u64,
    /// The time since the longest of them has waited.
    since: Option<String>,
    /// Whether a part of the mission was not checked.
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
            figures: Figures::default(),
        }
    }

    /// Returns the sweep in numbers.
    fn figures(&self) -> Figures {
        let count = |what: What| self.findings.iter().filter(|finding| finding.what == what).count() as u64;
        Figures {
            running_tasks: self.counts.values().map(|counts| counts.running).sum(),
            lost_tasks: count(What::PutBack),
            leaked_instances: count(What::Ended),
            missing_nodes: count(What::NoNode),
            problems: self.failures as u64,
            ..self.figures
        }
    }

    fn into_findings(mut self) -> Vec<Finding> {
        if self.failures > FAILURES_MAX {
            let reason = format!("{} more failures; the log lists each", self.failures - FAILURES_MAX);
            self.findings.push(Finding { what: What::Failure, subject: "others".to_owned(), reason });
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
