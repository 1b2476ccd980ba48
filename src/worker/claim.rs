//! Step 2: take the task, or learn that it is taken.

use std::time::Duration;

use tokio::time::Instant;

use super::identity::{Assignment, Instance};
use super::insist::insist;
use super::{Node, NodeError};
use crate::backend::ledger::{Claim, Claimant};
use crate::clock;
use crate::domain::ids::InstanceId;
use crate::domain::lease::{Lease, Sight, Watch};
use crate::domain::task::Task;

/// What became of the claim.
#[derive(Debug)]
pub(super) enum Claimed {
    /// It is ours.
    Held(Held),
    /// It is `done` or `failed`.
    Ended(Box<Task>),
    /// Its holder lives.
    HeldByOther(Lease),
    /// The node is to drain.
    Drained,
}

/// A task that is ours.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) row: Box<Task>,
    /// From before the claim was sent: the lease runs from there.
    pub(super) claimed_at: Instant,
    /// Whose lease had expired, if it was taken over.
    pub(super) taken_from: Option<InstanceId>,
}

/// The longest wait between two looks at another's lease: its next beat should be seen soon, for a live holder means
/// that this machine is one too many. 5 s of a beat of 20 s.
const LOOK_PERIOD_MAX: Duration = Duration::from_secs(5);

/// Claims the task. If another holds it, watches for up to a lease: a beat means leave; EC2's word that the holder is
/// gone, or a whole lease without a beat, means take over.
///
/// Bounded: each round ends with a claim, a live holder, or an expired lease, of which only a third party's claim in
/// the same moment begins another round.
pub(super) async fn acquire(node: &Node, instance: &Instance, task: &Assignment) -> Result<Claimed, NodeError> {
    let who = Claimant {
        owner: instance.id.clone(),
        mission: task.mission.clone(),
        bucket: node.settings.source_bucket.clone(),
        now: clock::now_rfc3339(),
        token: format!("{:032x}", rand::random::<u128>()),
    };
    let mut expired: Option<Lease> = None;
    loop {
        let mut asked = Instant::now();
        let claim = insist(node.settings.max_idle, || {
            asked = Instant::now();
            node.backend.ledger.claim(&task.src, &who, expired.as_ref())
        });
        let claim = claim.await;
        let lease = match claim.map_err(NodeError::cloud("claiming the task"))? {
            Claim::Held(row) => {
                let taken_from = expired.filter(|lease| lease.attempt.0 + 1 == row.attempt.0).map(|lease| lease.owner);
                return Ok(Claimed::Held(Held { row, claimed_at: asked, taken_from }));
            }
            Claim::Ended(task) => return Ok(Claimed::Ended(task)),
            Claim::HeldByOther(lease) => lease,
        };
        tracing::info!(holder = %lease.owner, attempt = lease.attempt.0, "the task is held by {}: watching its lease", lease.owner);
        if task.is_pulled {
            // There are others to do.
            return Ok(Claimed::HeldByOther(lease));
        }
        if is_gone(node, &lease).await {
            expired = Some(lease);
            continue;
        }
        match watch(node, task, lease).await? {
            Watched::Expired(lease) => expired = Some(lease),
            Watched::Alive(lease) => return Ok(Claimed::HeldByOther(lease)),
            // Handed back, or ended, meanwhile: the claim will tell.
            Watched::Free => {}
            Watched::Drained => return Ok(Claimed::Drained),
        }
    }
}

async fn is_gone(node: &Node, lease: &Lease) -> bool {
    match node.backend.machine.is_gone(lease.owner.as_str()).await {
        Ok(is_gone) => is_gone,
        Err(error) => {
            tracing::info!("EC2 does not say whether {} lives ({}): its lease will", lease.owner, error.source);
            false
        }
    }
}

enum Watched {
    Expired(Lease),
    Alive(Lease),
    Free,
    Drained,
}

async fn watch(node: &Node, task: &Assignment, lease: Lease) -> Result<Watched, NodeError> {
    let started = Instant::now();
    let watch = Watch::new(lease, node.settings.lease, Duration::ZERO);
    loop {
        let row = insist(node.settings.max_idle, || node.backend.ledger.task(&task.src)).await;
        let row = row.map_err(NodeError::cloud("watching the lease"))?;
        let current = row.and_then(|row| row.lease());
        let rest = match watch.look(current.as_ref(), started.elapsed()) {
            Sight::Alive => return Ok(current.map_or(Watched::Free, Watched::Alive)),
            Sight::Expired => return Ok(Watched::Expired(watch.seen().clone())),
            Sight::Waiting(rest) => rest,
        };
        let pause = rest.min(node.settings.lease / 10).clamp(Duration::from_millis(100), LOOK_PERIOD_MAX);
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.stopping.drain.cancelled() => return Ok(Watched::Drained),
        }
    }
}
