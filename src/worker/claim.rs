//! Step 2: claim the task, or find out that another instance holds it.

use std::time::Duration;

use tokio::time::Instant;

use super::host::Host;
use super::identity::Assignment;
use super::retry::call_until_drained;
use super::{Node, NodeError};
use crate::backend::ledger::{Claim, Claimant};
use crate::clock;
use crate::domain::ids::InstanceId;
use crate::domain::lease::{Lease, Sight, Watch};
use crate::domain::task::{ALONE, Task};

/// The result of a claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// This process holds the task.
    Held(Held),
    /// It is `done` or `failed`.
    Ended(Box<Task>),
    /// Another instance holds it: it is alive, or this node does not wait to find out.
    HeldByOther(Box<Task>),
    /// It must run alone on its node, and would not here.
    Suspect,
    /// The row cannot be claimed, for this reason.
    Odd(String),
    /// The node drains.
    Drained,
}

/// A task that this process has claimed.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) row: Box<Task>,
    /// From before the claim was sent: the lease runs from there.
    pub(super) claimed_at: Instant,
    /// The owner of the expired lease, if the task was taken over.
    pub(super) taken_from: Option<InstanceId>,
}

/// The longest pause between two reads of another's lease: if the holder is alive, this machine is not needed, and
/// should find out soon. 5 s of a beat of 20 s.
const LOOK_PERIOD_MAX: Duration = Duration::from_secs(5);

/// How often the claim starts again because the row changed between two reads. Each time another instance has claimed,
/// released, or redriven the task in that moment; after ten of them this node is not needed.
const ROUNDS_MAX: u32 = 10;
/// The pause before the claim starts again.
const ROUND_PAUSE: Duration = Duration::from_millis(200);

/// Claims the task. If another instance holds it, watches its lease: after a beat, leaves the task to it; takes the
/// task over if EC2 says that the holder is gone, or after a whole lease without a beat.
///
/// Bounded by [`ROUNDS_MAX`]; each round ends with a claim, a live holder, an expired lease, or the drain.
pub(super) async fn acquire(host: &Host, task: &Assignment) -> Result<Claimed, NodeError> {
    let node = &host.node;
    let who = Claimant {
        owner: host.instance.id.clone(),
        mission: task.mission.clone(),
        bucket: node.settings.source_bucket.clone(),
        now: clock::now_rfc3339(),
        // Both have 32 characters: a row may be almost full.
        token: if task.is_alone {
            format!("{ALONE}{:026x}", rand::random::<u128>() >> 24)
        } else {
            format!("{:032x}", rand::random::<u128>())
        },
        is_alone: task.is_alone,
    };
    let ledger = &node.backend.ledger;
    for round in 0..ROUNDS_MAX {
        if round > 0 && is_drained_within(node, ROUND_PAUSE).await {
            return Ok(Claimed::Drained);
        }
        let mut asked = Instant::now();
        let claim = call_until_drained(node, "claiming the task", || {
            asked = Instant::now();
            ledger.claim(&task.src, &who)
        });
        let Some(claim) = claim.await? else { return Ok(Claimed::Drained) };
        let row = match claim {
            Claim::Held(row) => return Ok(Claimed::Held(Held { row, claimed_at: asked, taken_from: None })),
            Claim::Ended(row) => return Ok(Claimed::Ended(row)),
            Claim::Suspect(_) => return Ok(Claimed::Suspect),
            Claim::Odd { row, what } => return Ok(Claimed::Odd(format!("task {}: {what}", row.src))),
            Claim::HeldByOther(row) => row,
        };
        let Some(lease) = row.lease() else { continue };
        tracing::info!(holder = %lease.owner, attempt = lease.attempt.0, "the task is held by {}", lease.owner);
        if !task.waits_for_holder {
            // There are other tasks to do.
            return Ok(Claimed::HeldByOther(row));
        }
        let row = if is_gone(node, &lease).await {
            row
        } else {
            match watch(node, task, row).await? {
                Watched::Expired(row) => row,
                Watched::Alive(row) => return Ok(Claimed::HeldByOther(row)),
                // Released, or ended, meanwhile: the next claim shows which.
                Watched::Free => continue,
                Watched::Drained => return Ok(Claimed::Drained),
            }
        };
        let taken_from = row.instance.clone();
        let claim = call_until_drained(node, "taking the task over", || {
            asked = Instant::now();
            ledger.take_over(&row, &who)
        });
        let Some(claim) = claim.await? else { return Ok(Claimed::Drained) };
        if let Some(row) = claim {
            return Ok(Claimed::Held(Held { row, claimed_at: asked, taken_from }));
        }
        // It changed in this moment, for example because a sweep released it: the sweep has counted the interruption.
    }
    Ok(Claimed::Odd(format!("task {} changed each of the {ROUNDS_MAX} times that it was read", task.src)))
}

/// Waits for `pause`; returns early, with `true`, if the node drains.
async fn is_drained_within(node: &Node, pause: Duration) -> bool {
    // Both arms may be dropped: neither holds anything.
    tokio::select! {
        () = tokio::time::sleep(pause) => false,
        () = node.stopping.drain.cancelled() => true,
    }
}

async fn is_gone(node: &Node, lease: &Lease) -> bool {
    match node.backend.machine.is_gone(lease.owner.as_str()).await {
        Ok(is_gone) => is_gone,
        Err(error) => {
            tracing::info!(
                "EC2 does not say whether {} is alive ({}): waiting for its lease",
                lease.owner,
                error.source
            );
            false
        }
    }
}

enum Watched {
    Expired(Box<Task>),
    Alive(Box<Task>),
    Free,
    Drained,
}

async fn watch(node: &Node, task: &Assignment, mut row: Box<Task>) -> Result<Watched, NodeError> {
    let Some(lease) = row.lease() else { return Ok(Watched::Free) };
    let started = Instant::now();
    let watch = Watch::new(lease, node.settings.lease, Duration::ZERO);
    loop {
        let newest = call_until_drained(node, "watching the lease", || node.backend.ledger.task(&task.src)).await?;
        let Some(newest) = newest else { return Ok(Watched::Drained) };
        let current = newest.as_ref().and_then(Task::lease);
        let sight = watch.look(current.as_ref(), started.elapsed());
        row = match newest {
            Some(newest) if current.is_some() => Box::new(newest),
            _ => return Ok(Watched::Free),
        };
        let rest = match sight {
            Sight::Alive => return Ok(Watched::Alive(row)),
            Sight::Expired => return Ok(Watched::Expired(row)),
            Sight::Waiting(rest) => rest,
        };
        let pause = rest.min(node.settings.lease / 10).clamp(Duration::from_millis(100), LOOK_PERIOD_MAX);
        if is_drained_within(node, pause).await {
            return Ok(Watched::Drained);
        }
    }
}
