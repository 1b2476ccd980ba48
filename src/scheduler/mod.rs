//! The other half: what makes tasks, launches nodes for them, and heals what was lost.
//!
//! ```text
//!   an object ──► ingest: row (pending, launch reserved) ──► launch ──► a node claims it
//!                                                             │ no capacity: the row says why, and when again
//!   sweep: what waits without a node ──► launch      what runs without a holder ──► put back ──► launch
//!          an instance without a task ──► ended      a mission that is over and not announced ──► announced
//! ```
//!
//! Plain functions over a [`Backend`]: the command line, the Lambda function, and the sweep call the same ones. What is known is
//! read from the tables and from EC2, so each may die at any point and be called again.

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
mod sweep;

pub use cancel::Cancelled;
pub use error::SchedulerError;
pub use ingest::{Ingested, TaskIngest, UploadedObject};
pub use launch::Node;
pub use limits::OwnLimits;
pub use pacer::PER_SECOND;
pub use redrive::Redriven;
pub use submit::{Checked, Prepared, SubmitPlan, Submitted};
pub use sweep::{Finding, What};

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
pub struct Settings {
    /// What nodes are launched from. Without it, rows are made and nothing is launched.
    pub template: Option<Template>,
    /// The subnets, any of which will do; empty: the template's.
    pub subnets: Vec<String>,
    /// What a mission's row leaves open.
    pub policy: Policy,
    /// The bucket of inputs: events of others are refused.
    pub source_bucket: Option<String>,
    /// The bucket of results: events of it are refused, for they would go round for ever.
    pub result_bucket: Option<String>,
    /// The topic that a mission's end is published to.
    pub topic_arn: Option<String>,
    /// The mission of uploads that name none.
    pub default_mission: Option<MissionId>,
    /// How long a lease lasts; the same as the nodes'.
    pub lease: Duration,
    /// How often a task is tried again; the same as the nodes'.
    pub limits: Limits,
    /// How many nodes the deployment may have.
    pub node_limits: OwnLimits,
    /// Launches a second, after the first few; [`PER_SECOND`] is what EC2 bears.
    pub pace: f64,
}

/// A scheduler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scheduler {
    /// The services.
    pub backend: Backend,
    /// The settings.
    pub settings: Arc<Settings>,
    pacer: Arc<Pacer>,
    offers: Arc<Offers>,
    me: InstanceId,
}

impl Scheduler {
    /// Makes a scheduler. Sends nothing.
    #[must_use]
    pub fn new(backend: Backend, settings: Settings) -> Self {
        let name = format!("scheduler-{:016x}", rand::random::<u64>());
        let me = InstanceId::new(name).expect("a constant form is legal");
        let pacer = Arc::new(Pacer::new(settings.pace));
        Self { backend, settings: Arc::new(settings), pacer, offers: Arc::default(), me }
    }

    /// The value of the tag that marks instances as ours.
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
