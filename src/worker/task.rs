//! One task on this node: claim it, make an attempt, and make another after a transient failure.

use tracing::Instrument;

use super::attempt::Attempt;
use super::claim::{self, Claimed, Held};
use super::host::Host;
use super::identity::Assignment;
use super::notify::notify_unless_drained;
use super::outcome::{Outcome, infra};
use super::panic::caught;
use super::retry::call_until_drained;
use super::{Node, NodeError, Step, deployment};
use crate::backend::error_chain;
use crate::clock;
use crate::domain::backoff;
use crate::domain::ids::InstanceId;
use crate::domain::task::Task;

/// Upper bound of the random pause before another attempt at a task on the same node, as a number of tries of
/// [`backoff::delay`]: 50 ms doubled six times, 3.2 s.
const RETRY_PAUSE_TRIES: u32 = 7;

/// Makes attempts at one task until it has ended or is released.
pub(super) async fn run(host: &Host, task: &Assignment) -> Result<Outcome, NodeError> {
    let span = tracing::info_span!("task", task.id = %task.src, src.id = %task.src, instance.id = %host.instance.id);
    loop {
        // On the heap, here and below: what is moved with each call that wraps it is a pointer, not the whole attempt.
        let outcome = Box::pin(claim_and_attempt(host, task)).instrument(span.clone()).await;
        // Also if no attempt was made: the check of the deployment begins an upload.
        abort_dropped(&host.node).await;
        let outcome = outcome?;
        // A transient failure is retried here: a new machine would only cost another boot.
        if !matches!(outcome, Outcome::TryAgain(_)) || host.node.stopping.drain.is_cancelled() {
            return Ok(outcome);
        }
    }
}

/// Claims the task and makes one attempt at it.
async fn claim_and_attempt(host: &Host, task: &Assignment) -> Result<Outcome, NodeError> {
    let node = &host.node;
    // A failure of the deployment affects every task, so it is found before one is claimed.
    let bucket = node.result_bucket()?;
    // A check that is dropped has changed nothing.
    let checked = tokio::select! {
        checked = deployment::check(node, bucket, &task.src) => Some(checked),
        () = node.stopping.drain.cancelled() => None,
    };
    let Some(checked) = checked else { return Ok(Outcome::Drained) };
    checked?;
    if host.spot.should_stop_claiming() {
        return Ok(Outcome::Drained);
    }
    let held = match node.step(Step::Claim, claim::acquire(host, task)).await? {
        Claimed::Held(held) => held,
        Claimed::Ended(row) => return ended_before(host, &row, task.looks_at_end).await,
        Claimed::HeldByOther(row) => return Ok(held_by_other(node, &row).await),
        Claimed::Suspect => return Ok(Outcome::Suspect),
        Claimed::Odd(what) => return Err(NodeError::OddRow { what }),
        Claimed::Drained => return Ok(Outcome::Drained),
    };
    let span = tracing::info_span!("attempt", attempt = held.row.attempt.0);
    Box::pin(attempt(host, held, task.looks_at_end)).instrument(span).await
}

/// Makes the attempt. The task is held until this returns, or until the lease is lost.
async fn attempt(host: &Host, held: Held, looks_at_end: bool) -> Result<Outcome, NodeError> {
    let node = &host.node;
    tracing::info!("claimed task {} as attempt {}", held.row.src, held.row.attempt);
    let mut attempt = Attempt::start(host.clone(), held);
    let outcome = if attempt.row.interruptions > node.settings.limits.max_interruptions {
        attempt.give_up().await
    } else {
        let worked = caught(Box::pin(attempt.work())).await;
        let worked = worked.unwrap_or_else(|panic| Err(infra(NodeError::Panicked(panic))));
        let worked = attempt.attribute_full_disk(worked).await;
        // Saved while the lease is still renewed: a large checkpoint takes its time.
        if let Err(stop) = &worked {
            attempt.save_last_checkpoint(stop).await;
        }
        attempt.note_time_cost();
        Box::pin(attempt.finish(worked)).await
    };
    attempt.heartbeat.stop().await;
    // A node that serves a mission looks at its end once for many tasks (`mission_loop.rs`).
    let outcome = match attempt.counted_in.take() {
        Some(mission) if looks_at_end => {
            let noted = notify_unless_drained(node, &host.instance.id, attempt.row.src.as_str(), &mission).await;
            noted.and(outcome)
        }
        _ => outcome,
    };
    // The row is written first: the rest has what is left of a notice's time.
    abort_dropped(node).await;
    attempt.remove_folder().await;

    match outcome {
        Ok(Outcome::TryAgain(error)) if host.spot.should_stop_claiming() => Err(error),
        Ok(Outcome::TryAgain(error)) => {
            // Both arms may be dropped: neither holds anything.
            tokio::select! {
                () = tokio::time::sleep(backoff::delay(RETRY_PAUSE_TRIES, rand::random())) => {}
                () = node.stopping.drain.cancelled() => {}
            }
            Ok(Outcome::TryAgain(error))
        }
        outcome => outcome,
    }
}

/// Aborts uploads that were given up: S3 charges for their parts.
async fn abort_dropped(node: &Node) {
    if tokio::time::timeout(node.stopping.write_limit(), node.backend.store.abort_dropped()).await.is_err() {
        tracing::warn!("parts of an upload stay until the bucket's lifecycle removes them");
    }
}

/// Handles a task that has ended before. If it was the mission's last and no notification was sent, its committer died
/// in between.
async fn ended_before(host: &Host, row: &Task, looks_at_end: bool) -> Result<Outcome, NodeError> {
    let node = &host.node;
    tracing::info!("task {} is {} already: nothing to do", row.src, row.state.as_str());
    repair_index(node, row).await;
    if !looks_at_end {
        return Ok(Outcome::EndedBefore(row.state));
    }
    let mission = call_until_drained(node, "reading the mission", || node.mission_of(row)).await?;
    if let Some(mission) = mission.flatten() {
        notify_unless_drained(node, &host.instance.id, row.src.as_str(), &mission).await?;
    }
    Ok(Outcome::EndedBefore(row.state))
}

async fn held_by_other(node: &Node, row: &Task) -> Outcome {
    repair_index(node, row).await;
    let owner = row.instance.clone();
    Outcome::HeldByOther(owner.unwrap_or_else(|| InstanceId::new("nobody").expect("a constant name is legal")))
}

/// Repairs the index of open tasks if it has this row in another state: otherwise every node of the mission would find
/// the row again. A failure is only logged.
async fn repair_index(node: &Node, row: &Task) {
    if !row.is_leftover() {
        return;
    }
    if let Err(error) = node.backend.ledger.repair_index(row, &clock::now_rfc3339()).await {
        tracing::warn!(src.id = %row.src, "the index still has {} in a wrong state: {}", row.src, error_chain(&error));
    }
}
