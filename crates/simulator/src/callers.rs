//! Commands and invocations of the function: each is a caller of its own, and may be killed.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::fleet::Template;
use lighthpc::domain::budget::Limits;
use lighthpc::domain::node_limit::NodeLimit;
use lighthpc::domain::policy::Policy;
use lighthpc::scheduler::{OwnLimits, PER_SECOND, Scheduler, SchedulerSettings};
use local_cloud::{RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};
use tokio_util::sync::CancellationToken;

use crate::settings::LEASE;
use crate::who::Who;
use crate::world::World;

/// The time of a function: the scheduler's, and that of uploads. Source: cloudformation/stack.yaml.
pub(crate) const FUNCTION_LIMIT: Duration = Duration::from_mins(15);
pub(crate) const UPLOADS_LIMIT: Duration = Duration::from_mins(3);
/// How long a person waits for a command.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_mins(30);

fn scheduler(world: &Arc<World>, who: Who) -> Scheduler {
    let plan = &world.plan.mission;
    let settings = SchedulerSettings {
        template: Some(Template { name: "nodes".to_owned(), version: "1".to_owned() }),
        subnets: Vec::new(),
        policy: Policy::default(),
        source_bucket: Some(SOURCE_BUCKET.to_owned()),
        result_bucket: Some(RESULT_BUCKET.to_owned()),
        topic_arn: Some(TOPIC_ARN.to_owned()),
        default_mission: None,
        lease: LEASE,
        limits: Limits { max_interruptions: plan.max_interruptions, ..Limits::default() },
        node_limits: OwnLimits {
            at_a_time: plan.node_limit.map_or(NodeLimit::Stored, NodeLimit::Most),
            per_hour: NodeLimit::Stored,
        },
        pace: PER_SECOND,
    };
    Scheduler::new(world.backend(who, None), settings)
}

/// Runs a command or an invocation within its time. `None`: it was killed, or its time was over.
pub(crate) async fn call<T, F: Future<Output = T>>(
    world: &Arc<World>,
    what: &str,
    limit: Duration,
    work: impl FnOnce(Scheduler) -> F,
) -> Option<T> {
    let who = world.next_caller();
    let kill = CancellationToken::new();
    world.set_kill(who, kill.clone());
    world.note(&format!("{who}: {what}"));
    tokio::select! {
        done = work(scheduler(world, who)) => Some(done),
        () = kill.cancelled() => {
            world.saw("command or function killed");
            None
        }
        () = tokio::time::sleep(limit) => {
            world.saw("function killed at its time limit");
            world.note(&format!("{who}: its time is over"));
            world.disturb(who, None);
            None
        }
    }
}
