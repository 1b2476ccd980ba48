//! A node's life, in order.
//!
//! ```text
//!   identify → claim → download → execute → upload → commit → notify → terminate
//!                │         └────────┴─────────┴── a failure: release, or fail (commit without a result) → notify
//!                ├── ended already: notify, if its mission is complete and not yet announced
//!                └── held by a live instance: leave
//! ```
//!
//! [`run`] is the only place that orders these steps. The last step terminates the machine, whatever happened before
//! it, an error and a panic included: a node without a task is a leak. Only a machine that is proved to be a node is
//! terminated (`backend::machine`).
//!
//! `task.rs` makes the attempts at one task; an `Attempt` holds what they need. No two files here import each
//! other, directly or in a circle.

mod ahead;
mod attempt;
mod checkpoint;
mod checkpoint_files;
mod checkpoint_size;
mod claim;
mod cloud_log;
mod completion;
mod cost;
mod crash;
mod deployment;
mod disk;
mod error;
mod execute;
mod finish;
mod given;
mod heartbeat;
mod host;
mod identity;
pub(crate) mod log;
mod machine_info;
mod manifest;
mod mission_end;
mod mission_loop;
mod node;
mod notify;
mod outcome;
mod output;
mod panic;
mod pins;
mod preflight;
mod publish;
mod queue;
mod recent_mission;
mod result;
mod retry;
mod settings;
mod spot;
mod stopping;
mod task;
mod turns;
mod work;

pub use cloud_log::NAMESPACE;
pub use completion::CompletionNotifier;
pub use cost::billed_before;
pub use disk::{Begun, Disk};
pub use error::NodeError;
pub use given::GivenTask;
pub use node::{Life, Node};
pub use outcome::Outcome;
pub use preflight::Preflight;
pub use publish::reason_lines;
pub use settings::{NodeLog, NodeSettings, Pricing, Report, Step};
pub use stopping::{DRAIN_LIMIT, Stopping};

use lighthpc_runtime::spawn;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use host::Host;
use identity::Job;
use spot::SpotWatcher;

use crate::backend::machine::EndProof;
use crate::workload::Removal;

/// How long the end of a node waits for the last addition of its cost, and for its last log lines.
const LAST_COUNTS_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs a node: its task or its mission, then the termination of its machine.
///
/// Every path reaches the last step, panics included. Not cancel-safe: cancel `stopping.drain` and wait.
pub async fn run(node: Node) -> Life {
    run_node(node, None).await
}

/// Runs a node for a mission whose tasks the caller gives, then the termination of its machine. It ends when the channel
/// is closed.
///
/// As [`run`].
pub async fn run_given(node: Node, tasks: mpsc::Receiver<GivenTask>) -> Life {
    run_node(node, Some(tasks)).await
}

async fn run_node(node: Node, given: Option<mpsc::Receiver<GivenTask>>) -> Life {
    let mut task = JoinSet::new();
    let (proof, seen) = watch::channel(None);
    spawn(&mut task, life(node.clone(), proof, given).in_current_span());
    let lifetime = async {
        match node.settings.max_lifetime {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
        tracing::warn!("this node has reached its maximum lifetime: it drains");
        node.stopping.drain.cancel();
        std::future::pending::<()>().await;
    };
    // A drain whose time is over is cut short: to other nodes, this looks like the death of the process.
    let joined = tokio::select! {
        joined = task.join_next() => Some(joined),
        () = lifetime => unreachable!("the lifetime only drains"),
        () = node.stopping.is_over() => None,
    };
    let outcome = match joined {
        Some(Some(Ok(outcome))) => outcome,
        Some(Some(Err(panic))) => Err(NodeError::Panicked(panic.to_string())),
        Some(None) => Err(NodeError::Panicked("the node's task vanished".to_owned())),
        None => {
            task.shutdown().await;
            Err(NodeError::DrainCutShort)
        }
    };
    let seen = seen.borrow().clone();
    let end = node.step(Step::Terminate, node.backend.machine.end(node.settings.end_order, seen)).await;
    Life { outcome, end }
}

/// Runs the steps from identify to notify. Sends what the tags prove as soon as they are read, for the terminate step.
async fn life(
    node: Node,
    proof: watch::Sender<Option<EndProof>>,
    given: Option<mpsc::Receiver<GivenTask>>,
) -> Result<Outcome, NodeError> {
    let (instance, work) = node.step(Step::Identify, identity::find(&node, &proof)).await?;
    // Stopped before it began: nothing is claimed, so nothing has to be released.
    let Some(work) = work else { return Ok(Outcome::Drained) };
    // Tasks of an earlier process are settled first: a claim would take them for released.
    let crash::Reported { found, failed, settled, unsettled } = crash::report(&node, &instance).await;
    let mut removal = Removal::start(settled, unsettled, &node.stopping.drain);
    removal.head_start().await;
    let (spot, mut polls) =
        SpotWatcher::start(node.backend.machine.clone(), node.backend.ledger.clone(), instance.is_on_ec2());
    let (mut counts, stop) = (JoinSet::new(), CancellationToken::new());
    spawn(&mut counts, cost::count(node.clone(), instance.clone(), stop.clone()).in_current_span());
    let sent = cloud_log::send(node.clone(), instance.id.to_string(), stop.clone());
    spawn(&mut counts, sent.in_current_span());
    spawn(&mut polls, machine_info::look_up(node.clone(), instance.clone()).in_current_span());
    let host = Host { node, instance, spot, recent_mission: std::sync::Arc::default(), slot: None };
    let outcome = match work {
        Job::Task(task) => match failed.into_iter().find(|(src, _)| *src == task.src) {
            Some((_, error)) => Err(error),
            None => task::run(&host, &task).await,
        },
        Job::Mission(mission) => match given {
            Some(tasks) => given::serve(&host, &mission, tasks).await,
            None => mission_loop::serve(&host, &mission, found).await,
        },
    };
    polls.shutdown().await;
    removal.end().await;
    // A drain whose time for writes is over leaves the last minute out.
    stop.cancel();
    let all = async { while counts.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        () = tokio::time::sleep(LAST_COUNTS_TIMEOUT) => {
            tracing::warn!("the last of the node's cost and log was not sent: no answer in time");
        }
        () = host.node.stopping.writes_are_over() => {}
    }
    outcome
}
