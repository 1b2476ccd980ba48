//! A node's settings: validated, and the same whether they came from flags, variables, or a test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::disk::Disk;
use super::preflight::Preflight;
use crate::backend::logs::LogQueue;
use crate::backend::machine::EndOrder;
use crate::domain::budget::{Limits, SizeLimits};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::machine_info::MicroUsd;
use crate::domain::progress::Progress;
use crate::workload::{Bounds, Left, Simulation, Workload};

/// A step of a node's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Step {
    /// Find out which machine this is, and its task.
    #[default]
    Identify,
    /// Take the task.
    Claim,
    /// Download the input.
    Download,
    /// Run the workload.
    Execute,
    /// Store the result.
    Upload,
    /// Write the task's end and count it.
    Commit,
    /// Release the task.
    Release,
    /// Check whether the mission is complete, and send its notification.
    Notify,
    /// Terminate the machine.
    Terminate,
}

impl Step {
    /// Returns the step's name in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "identify",
            Self::Claim => "claim",
            Self::Download => "download",
            Self::Execute => "execute",
            Self::Upload => "upload",
            Self::Commit => "commit",
            Self::Release => "release",
            Self::Notify => "notify",
            Self::Terminate => "terminate",
        }
    }
}

/// Where a node is, for its observers: only the newest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The step.
    pub step: Step,
    /// The workload's progress.
    pub progress: Progress,
}

/// Where the price of a node comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pricing {
    /// The node is a part of a local mission and costs nothing.
    Local,
    /// The node is an EC2 instance.
    Ec2 {
        /// On-Demand prices per hour, by instance type. The Spot price is looked up in EC2.
        on_demand: BTreeMap<String, MicroUsd>,
        /// The machine's time before this process that is in no tally yet ([`billed_before`](super::billed_before)).
        billed_before: Duration,
    },
}

/// Where the node's log goes beside standard error.
#[derive(Clone, Debug)]
pub struct NodeLog {
    /// The lines that wait.
    pub queue: LogQueue,
    /// The log group. The stream has the name of the instance.
    pub group: String,
    /// The most bytes of a workload's output that the event of an attempt has.
    pub output_bytes: u64,
}

/// A node's settings.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// The task; from the instance's tag `srcID` if not given.
    pub src: Option<SrcId>,
    /// The mission; from the row, or from the tag `missionID`, if not given.
    pub mission: Option<MissionId>,
    /// The bucket of the input, if the row names none.
    pub source_bucket: Option<String>,
    /// The bucket of results, logs, and manifests.
    pub result_bucket: Option<String>,
    /// The topic that the mission's end is published to.
    pub topic_arn: Option<String>,
    /// Where the attempts' folders are made.
    pub work_dir: PathBuf,
    /// How long a lease lasts without a renewal.
    pub lease: Duration,
    /// The time between renewals; at most a third of the lease.
    pub heartbeat: Duration,
    /// The time between two saves of a checkpoint that changes.
    pub checkpoint_every: Duration,
    /// The time between two copies of a running workload's log.
    pub log_every: Duration,
    /// Tasks that a node of a mission runs at the same time, if the mission does not say.
    pub slots: Option<u16>,
    /// The longest workload during which the next task of a mission is claimed and downloaded; zero: never.
    pub claim_ahead: Duration,
    /// Attempts that an earlier process of this machine left when it died.
    pub left: Vec<Left>,
    /// How long a node may wait for tables that do not answer before it ends.
    pub max_idle: Duration,
    /// How long a node may live; then it drains.
    pub max_lifetime: Option<Duration>,
    /// Whether to terminate the machine.
    pub end_order: EndOrder,
    /// Whether this process holds the lock of the work folder: only then may it be named by its instance's id.
    pub holds_work_dir: bool,
    /// The workload; the mission's, or the simulated one, if not given.
    pub workload: Option<Workload>,
    /// How the simulated workload runs, if it does.
    pub simulation: Simulation,
    /// The bounds of a run.
    pub bounds: Bounds,
    /// How often a task is retried.
    pub limits: Limits,
    /// How large results and checkpoints may be.
    pub sizes: SizeLimits,
    /// Where the node's price comes from.
    pub pricing: Pricing,
    /// Where the log goes beside standard error.
    pub log: Option<NodeLog>,
    /// What is known of the disk, for all that share it.
    pub disk: Arc<Disk>,
    /// What is known of the deployment, for all that share it.
    pub preflight: Arc<Preflight>,
    /// Publishes the node's progress.
    pub report: watch::Sender<Report>,
}
