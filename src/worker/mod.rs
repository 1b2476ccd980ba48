//! A node's life, in order.
//!
//! ```text
//!   identify → claim → download → execute → upload → commit → notify → terminate
//!                │         └────────┴─────────┴── a failure: release, or fail (commit without a result) → notify
//!                ├── ended already: notify, if its mission still waits for that
//!                └── held by another who lives: leave
//! ```
//!
//! [`run`] is the only place that says what happens after what. Whatever happens before it, an error and a panic
//! included, the last step is the machine's own end: a node without a task is a leak. Only a machine that is proved to
//! be a node is ended (`backend::machine`).

mod attempt;
mod checkpoint;
mod checkpoint_files;
mod checkpoint_size;
mod claim;
mod completion;
mod crash;
mod deployment;
mod disk;
mod error;
mod execute;
mod finish;
mod heartbeat;
mod host;
mod identity;
pub(crate) mod log;
mod manifest;
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
mod result;
mod retry;
mod settings;
mod spot;
mod stopping;
mod task;
mod turns;
mod work;

pub use completion::CompletionNotifier;
pub use disk::{Begun, Disk};
pub use error::NodeError;
pub use node::{Life, Node};
pub use outcome::Outcome;
pub use preflight::Preflight;
pub use settings::{Report, Settings, Step};
pub use stopping::{DRAIN_LIMIT, Stopping};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

use host::Host;
use identity::Work;
use spot::SpotWatcher;

use crate::backend::machine::EndProof;
use crate::workload::Removal;

/// Runs a node: one task from its instance's tag to its end, then the end of the machine.
///
/// Every way out passes the last step, panics included. Not cancel-safe: cancel `stopping.drain` and wait.
pub async fn run(node: Node) -> Life {
    let mut task = JoinSet::new();
    let (proof, seen) = watch::channel(None);
    task.spawn(life(node.clone(), proof).in_current_span());
    let lifetime = async {
        match node.settings.max_lifetime {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
        tracing::warn!("this node has lived as long as it may: it drains");
        node.stopping.drain.cancel();
        std::future::pending::<()>().await;
    };
    // A drain whose time is over is cut short: to everyone else, that is the death of the process.
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

/// The steps from identity to notification. Hands on what the tags prove as soon as they are read, for the step after
/// the last.
async fn life(node: Node, proof: watch::Sender<Option<EndProof>>) -> Result<Outcome, NodeError> {
    let (instance, work) = node.step(Step::Identify, identity::find(&node, &proof)).await?;
    // Stopped before it began: nothing is claimed, so nothing has to be handed back.
    let Some(work) = work else { return Ok(Outcome::Drained) };
    // What an earlier process held is settled first: a claim would take it for handed back.
    let crash::Reported { found, failed, settled, unsettled } = crash::report(&node, &instance).await;
    let mut removal = Removal::start(settled, unsettled, &node.stopping.drain);
    removal.head_start().await;
    let (spot, mut looks) =
        SpotWatcher::start(node.backend.machine.clone(), node.backend.ledger.clone(), instance.is_on_ec2());
    let host = Host { node, instance, spot };
    let outcome = match work {
        Work::Task(task) => match failed.into_iter().find(|(src, _)| *src == task.src) {
            Some((_, error)) => Err(error),
            None => task::run(&host, &task).await,
        },
        Work::Mission(mission) => mission_loop::serve(&host, &mission, found).await,
    };
    looks.shutdown().await;
    removal.end().await;
    outcome
}
