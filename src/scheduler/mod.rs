//! The scheduler: creates tasks, launches nodes for them, and repairs what was lost.
//!
//! ```text
//!   an object ──► ingest: row (pending, launch reserved) ──► launch ──► a node claims it
//!                                                             │ no capacity: the row has the reason and the next try
//!   sweep: pending without a node ──► launch      running without a holder ──► pending ──► launch
//!          instance without a task ──► terminate  mission complete, no notification ──► send the notification
//! ```
//!
//! Plain functions over a [`Backend`], which the command line, the Lambda function and the sweep share. All state is in
//! the tables and in EC2, so a process can die at any point, and the call can be repeated.

mod cancel;
mod error;
mod ingest;
mod launch;
mod launch_request;
mod limits;
mod pacer;
mod pools;
mod redrive;
mod rounds;
mod submit;
mod submit_plan;
mod submitted_objects;
mod sweep;

pub use cancel::Cancelled;
pub use error::SchedulerError;
pub use ingest::{Ingested, TaskIngest, UploadedObject};
pub use launch::LaunchResult;
pub use limits::OwnLimits;
pub use pacer::PER_SECOND;
pub use redrive::Redriven;
pub use submit::{Checked, Prepared, Submitted};
pub use submit_plan::SubmitPlan;
pub use sweep::{Figures, Finding, STALLED_AFTER, What};

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::backend::fleet::Template;
use crate::domain::budget::Limits;
use crate::domain::ids::{InstanceId, MissionId};
use crate::domain::policy::Policy;
use crate::worker::CompletionNotifier;
use pacer::Pacer;
use pools::Offers;

/// A scheduler's settings.
#[derive(Clone, Debug)]
pub struct SchedulerSettings {
    /// The launch template of the nodes. Without it, rows are created and nothing is launched.
    pub template: Option<Template>,
    /// The subnets that nodes may run in; empty: the template's.
    pub subnets: Vec<String>,
    /// The default policy, for what a mission's row leaves open.
    pub policy: Policy,
    /// The bucket of inputs. Events of other buckets are refused.
    pub source_bucket: Option<String>,
    /// The bucket of results. Its events are refused, because each result would become a task.
    pub result_bucket: Option<String>,
    /// The topic for the notification of a complete mission.
    pub topic_arn: Option<String>,
    /// The mission of uploads whose key names none.
    pub default_mission: Option<MissionId>,
    /// The duration of a lease; must be the same as the nodes'.
    pub lease: Duration,
    /// The limits of retries; must be the same as the nodes'.
    pub limits: Limits,
    /// The limits of nodes of the deployment.
    pub node_limits: OwnLimits,
    /// Launches per second, after the first few. [`PER_SECOND`] is EC2's limit.
    pub pace: f64,
}

/// A scheduler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scheduler {
    /// The services.
    pub backend: Backend,
    /// The settings.
    pub settings: Arc<SchedulerSettings>,
    pacer: Arc<Pacer>,
    offers: Arc<Offers>,
    me: InstanceId,
}

impl Scheduler {
    /// Creates a scheduler. Sends no requests.
    #[must_use]
    pub fn new(backend: Backend, settings: SchedulerSettings) -> Self {
        let name = format!("scheduler-{:016x}", rand::random::<u64>());
        let me = InstanceId::new(name).expect("a constant form is legal");
        let pacer = Arc::new(Pacer::new(settings.pace));
        Self { backend, settings: Arc::new(settings), pacer, offers: Arc::default(), me }
    }

    /// Returns the value of the tag that marks this deployment's instances.
    fn owner_tag(&self) -> &str {
        &self.backend.ledger.tables().tasks
    }

    fn notifier(&self) -> CompletionNotifier {
        CompletionNotifier {
            backend: self.backend.clone(),
            result_bucket: self.settings.result_bucket.clone(),
            topic_arn: self.settings.topic_arn.clone(),
            patience: self.settings.lease,
            stop: CancellationToken::new(),
        }
    }
}
