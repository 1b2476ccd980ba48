//! Step 4: run the workload, and read from its end what it means.

use tokio_util::sync::CancellationToken;

use super::heartbeat::Heartbeat;
use super::{Node, NodeError};
use crate::domain::budget;
use crate::domain::verdict::Verdict;
use crate::workload::{Contract, Ended, Stops, Workload};

/// `EX_TEMPFAIL` of sysexits.h: try again.
const EXIT_TRY_AGAIN: i32 = 75;

/// Why an attempt goes no further.
#[derive(Debug)]
pub(super) enum Stop {
    /// The lease is lost: write nothing.
    LeaseLost,
    /// The node is to drain.
    Drain,
    /// Something failed.
    Trouble(Trouble),
}

/// A failure, as the task's row and the user see it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) ending: budget::Ending,
    pub(super) exit_code: Option<i32>,
    pub(super) error: NodeError,
}

impl Trouble {
    pub(super) const fn new(verdict: Verdict, may_pass: bool, error: NodeError) -> Self {
        Self { ending: budget::Ending { verdict, may_pass }, exit_code: None, error }
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// Runs the workload to its end, to the loss of the lease, or to the drain. Returns its exit code, which is 0.
pub(super) async fn run(
    node: &Node,
    workload: &Workload,
    contract: &Contract,
    heartbeat: &Heartbeat,
) -> Result<i32, Stop> {
    let stops = Stops { stop: CancellationToken::new(), hurry: node.stopping.hurry.clone() };
    heartbeat.time_cost.send_modify(super::heartbeat::TimeCost::start);
    let run = workload.run(contract, node.settings.bounds, &heartbeat.progress, &stops);
    let watch = async {
        // Only one of them matters, and the run is waited for in any case.
        tokio::select! {
            () = heartbeat.lost.cancelled() => {}
            () = node.stopping.drain.cancelled() => {}
        }
        stops.stop.cancel();
        std::future::pending::<()>().await;
    };
    let report = mirror(node, heartbeat);
    // The run is the only arm that ends.
    let ended = tokio::select! {
        ended = run => ended,
        () = watch => unreachable!("the watch never ends"),
        () = report => unreachable!("the mirror never ends"),
    };
    heartbeat.time_cost.send_modify(super::heartbeat::TimeCost::stop);
    if heartbeat.lost.is_cancelled() {
        return Err(Stop::LeaseLost);
    }
    let disk =
        |source| NodeError::Disk { doing: "running the workload in", path: contract.folder().to_owned(), source };
    let ended = ended.map_err(|error| Trouble::new(Verdict::Infra, true, disk(error)))?;
    judge(ended, node.stopping.drain.is_cancelled())
}

/// Repeats the workload's progress to whoever watches the node.
async fn mirror(node: &Node, heartbeat: &Heartbeat) {
    let mut progress = heartbeat.progress.subscribe();
    loop {
        let now = *progress.borrow_and_update();
        node.settings.report.send_modify(|report| report.progress = now);
        if progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn judge(ended: Ended, is_draining: bool) -> Result<i32, Stop> {
    let failed = |how: String, exit_code, may_pass| {
        let trouble = Trouble::new(Verdict::AppError, may_pass, NodeError::WorkloadFailed { how });
        Err(Trouble { exit_code, ..trouble }.into())
    };
    match ended {
        Ended::Exited { code: Some(0), .. } => Ok(0),
        Ended::Stopped => Err(Stop::Drain),
        // A shutdown's signal reaches the workload too, perhaps before it reaches us.
        Ended::Exited { signal: Some(_), .. } if is_draining => Err(Stop::Drain),
        Ended::Exited { code: Some(code), .. } if code == EXIT_TRY_AGAIN => {
            failed(format!("exited with code {code} (try again)"), Some(code), true)
        }
        Ended::Exited { code: Some(code), .. } => failed(format!("exited with code {code}"), Some(code), false),
        Ended::Exited { signal, .. } => failed(format!("was ended by signal {}", signal.unwrap_or(0)), None, false),
        Ended::TimedOut => Err(Trouble::new(Verdict::Timeout, true, NodeError::TimeLimit).into()),
        Ended::NotStarted { program, source } => {
            Err(Trouble::new(Verdict::AppError, false, NodeError::NotStarted { program, source }).into())
        }
    }
}
