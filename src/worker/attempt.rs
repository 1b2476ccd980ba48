//! One attempt at one task: from the claim to the task's end, or to its release.

use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::checkpoint::Checkpoints;
use super::claim::{self, Claimed, Held};
use super::error::classify;
use super::execute;
use super::finish::{self, Attempted};
use super::heartbeat::{Heartbeat, Periods, TimeCost};
use super::identity::{Assignment, Instance};
use super::node::{mission_of, step};
use super::outcome::{AttemptFailure, Outcome, StopReason, infra, of_disk};
use super::panic::caught;
use super::retry::{or_drained, retry_transient, retry_transient_unless};
use super::spot::SpotWatcher;
use super::spot::{LAST_WORDS, speed, upload_time};
use super::{Node, NodeError, Step, checkpoint_size, deployment, result};
use crate::backend::Kind;
use crate::backend::ledger::{Completion, Fence};
use crate::backend::store::{Downloaded, StoreError, uri};
use crate::clock;
use crate::domain::backoff;
use crate::domain::ids::InstanceId;
use crate::domain::mission::Mission;
use crate::domain::task::Task;
use crate::domain::verdict::Verdict;
use crate::workload::{Workload, WorkloadEnv};

/// The pause before a task is tried again on the same node lies between nothing and this.
const AGAIN_PAUSE_TRIES: u32 = 7; // 50 ms doubled six times: up to 3.2 s.

/// Makes one attempt.
pub(super) async fn run(
    node: &Node,
    instance: &Instance,
    spot: &SpotWatcher,
    task: &Assignment,
) -> Result<Outcome, NodeError> {
    // What is wrong with every task is found before one is claimed.
    let bucket = result_bucket(node)?;
    // A check that is dropped has changed nothing.
    let checked = tokio::select! {
        checked = deployment::check(node, bucket, &task.src) => Some(checked),
        () = node.stopping.drain.cancelled() => None,
    };
    let Some(checked) = checked else {
        abort_dropped(node).await;
        return Ok(Outcome::Drained);
    };
    checked?;
    if spot.should_stop_claiming() {
        return Ok(Outcome::Drained);
    }
    let held = match step(node, Step::Claim, claim::acquire(node, instance, task)).await? {
        Claimed::Held(held) => held,
        Claimed::Ended(row) => return ended_before(node, instance, &row, task.is_pulled).await,
        Claimed::HeldByOther(row) => return Ok(held_by_other(node, &row).await),
        Claimed::Suspect => return Ok(Outcome::Suspect),
        Claimed::Odd(what) => return Err(NodeError::OddRow { what }),
        Claimed::Drained => return Ok(Outcome::Drained),
    };
    let span = tracing::info_span!("attempt", attempt = held.row.attempt.0);
    hold(node, instance, spot, held).instrument(span).await
}

/// The attempt itself: the task is held until this returns, or until the lease is lost.
async fn hold(node: &Node, instance: &Instance, spot: &SpotWatcher, held: Held) -> Result<Outcome, NodeError> {
    let Held { row, claimed_at, taken_from } = held;
    tracing::info!("claimed task {} as attempt {}", row.src, row.attempt);
    let fence = Fence { src: row.src.clone(), attempt: row.attempt, owner: instance.id.clone() };
    let periods = Periods { lease: node.settings.lease, heartbeat: node.settings.heartbeat };
    let time_cost = TimeCost::new(row.time_cost_s);
    let mut heartbeat = Heartbeat::start(node.backend.ledger.clone(), fence.clone(), periods, claimed_at, time_cost);

    let is_exhausted = row.interruptions > node.settings.limits.max_interruptions;
    let mut attempted = Attempted::new(fence, row, clock::now_rfc3339(), taken_from);
    if is_exhausted {
        return finish::give_up(node, &attempted, &mut heartbeat).await;
    }
    let mut checkpoints = None;
    let worked = caught(work(node, &mut attempted, &heartbeat, spot, &mut checkpoints)).await;
    let outcome = worked.unwrap_or_else(|panic| Err(infra(NodeError::Panicked(panic))));
    let outcome = blame_for_full_disk(node, &attempted, outcome).await;
    // Saved while the lease is still renewed: a large checkpoint takes its time.
    if let (Err(stop), Some(checkpoints)) = (&outcome, &mut checkpoints) {
        finish::save_last(node, checkpoints, stop).await;
    }
    attempted.time_cost_s = heartbeat.time_cost.borrow().seconds();
    let outcome = finish::finish(node, &attempted, outcome, checkpoints.as_ref(), &mut heartbeat).await;
    heartbeat.stop().await;
    // The row comes first: what else there is to do has the rest of a notice's time.
    abort_dropped(node).await;
    attempted.clean(node).await;

    match outcome {
        Ok(Outcome::TryAgain(error)) if spot.should_stop_claiming() => Err(error),
        Ok(Outcome::TryAgain(error)) => {
            // Both arms may be dropped: neither holds anything.
            tokio::select! {
                () = tokio::time::sleep(backoff::delay(AGAIN_PAUSE_TRIES, rand::random())) => {}
                () = node.stopping.drain.cancelled() => {}
            }
            Ok(Outcome::TryAgain(error))
        }
        outcome => outcome,
    }
}

/// Finds out whose doing it is that the disk is full, while the attempt's folder is there.
async fn blame_for_full_disk(
    node: &Node,
    attempted: &Attempted,
    outcome: Result<Completion, StopReason>,
) -> Result<Completion, StopReason> {
    match outcome {
        Err(StopReason::Failed(mut failure)) if failure.class.verdict == Verdict::DiskFull => {
            let folder = attempted.env.as_ref().map_or(&*node.settings.work_dir, |env| env.folder());
            failure.class.is_counted = node.settings.disk.is_to_blame(folder, failure.error.wanted_bytes()).await;
            if !failure.class.is_counted {
                tracing::warn!(
                    "task {}: the disk is full of other tasks' files: nothing counts it",
                    attempted.fence.src
                );
            }
            Err(StopReason::Failed(failure))
        }
        outcome => outcome,
    }
}

/// Aborts the uploads that were given up: their parts bill.
async fn abort_dropped(node: &Node) {
    if tokio::time::timeout(node.stopping.write_limit(), node.backend.store.abort_dropped()).await.is_err() {
        tracing::warn!("parts of an upload stay until the bucket's lifecycle removes them");
    }
}

/// The task has ended before. If that was the mission's last and nobody has said so, its committer died in between.
async fn ended_before(node: &Node, instance: &Instance, row: &Task, is_pulled: bool) -> Result<Outcome, NodeError> {
    tracing::info!("task {} is {} already: nothing to do", row.src, row.state.as_str());
    repair_index(node, row).await;
    if is_pulled {
        // RecoveredTask in an index that lags behind: whoever ended the task has looked at the mission.
        return Ok(Outcome::EndedBefore(row.state));
    }
    let (drain, limit) = (&node.stopping.drain, node.settings.lease);
    let mission = retry_transient_unless(drain, limit, || mission_of(node, row)).await;
    let mission = or_drained(node, mission.map_err(NodeError::cloud("reading the mission")))?.flatten();
    if let Some(mission) = mission {
        finish::notify(node, &instance.id, &row.src, &mission).await?;
    }
    Ok(Outcome::EndedBefore(row.state))
}

async fn held_by_other(node: &Node, row: &Task) -> Outcome {
    repair_index(node, row).await;
    let owner = row.instance.clone();
    Outcome::HeldByOther(owner.unwrap_or_else(|| InstanceId::new("nobody").expect("a constant name is legal")))
}

/// Whoever meets a row that the index of open tasks has in another state repairs the index: every node of the mission
/// would find the row again and again. A failure of this stops nobody.
async fn repair_index(node: &Node, row: &Task) {
    if !row.is_leftover() {
        return;
    }
    if let Err(error) = node.backend.ledger.repair_index(row, &clock::now_rfc3339()).await {
        tracing::warn!(src.id = %row.src, "the index still has {} in a wrong state: {error}: {}", row.src, error.source);
    }
}

/// Download, workload, upload; each ends early when the lease is lost, the first two also when the node is to drain.
async fn work(
    node: &Node,
    attempted: &mut Attempted,
    heartbeat: &Heartbeat,
    spot: &SpotWatcher,
    checkpoints: &mut Option<Checkpoints>,
) -> Result<Completion, StopReason> {
    let bucket = result_bucket(node).map_err(infra)?;
    let source = attempted.row.bucket.clone().or_else(|| node.settings.source_bucket.clone());
    let source = source.ok_or_else(|| {
        let hint = "set --source-bucket or LIGHTHPC_SOURCE_BUCKET, or bucketname in the task's row";
        infra(NodeError::Setting { what: "the source bucket", hint })
    })?;
    let env = prepare(node, attempted).await?;

    // None needs another, and all are round trips.
    let mission = async {
        let mission = retry_transient(node.settings.lease, || mission_of(node, &attempted.row)).await;
        mission.map_err(|error| infra(NodeError::cloud("reading the mission")(error)))
    };
    let lost_log = async { Ok(attempted.lost_log(node).await) };
    let fetch = Box::pin(async { tokio::try_join!(mission, download(node, &source, &env), lost_log) });
    let fetch = step(node, Step::Download, fetch);
    let fetched =
        unless(&heartbeat.lost, StopReason::LeaseLost, unless(&node.stopping.drain, StopReason::Drain, fetch));
    let (mission, input, lost_log) = unless_noticed(spot, at_once, fetched).await?;
    (attempted.mission, attempted.lost.1) = (mission, lost_log);
    attempted.input_etag = Some(input.etag);
    if attempted.mission.as_ref().is_some_and(|mission| mission.cancelled_at.is_some()) {
        return Err(StopReason::Cancelled);
    }
    let named = attempted.row.checkpoint.clone();
    let restore = Checkpoints::restore(node, &env, &attempted.fence, bucket, named.as_deref());
    let restored = Box::pin(async { restore.await.map_err(of_disk) });
    let restored =
        unless(&heartbeat.lost, StopReason::LeaseLost, unless(&node.stopping.drain, StopReason::Drain, restored));
    let (restored, resumed) = unless_noticed(spot, at_once, restored).await?;
    let checkpoints = checkpoints.insert(restored);
    let mut resuming = (*env).clone();
    resuming.resumed = resumed;
    let env = Arc::new(resuming);

    let workload = choose(node, attempted.mission.as_ref());
    let execute = execute::run(node, &workload, &env, heartbeat, spot, checkpoints);
    attempted.exit_code = Some(step(node, Step::Execute, execute).await?);
    let upload = Box::pin(step(node, Step::Upload, result::upload(node, &env, &attempted.fence, bucket)));
    let given_up = upload_given_up(node, &env);
    let uploaded = unless_noticed(spot, given_up, unless(&heartbeat.lost, StopReason::LeaseLost, upload));
    // A finished result is worth the time that there is. An upload may be dropped: its parts are aborted later.
    tokio::select! {
        uploaded = uploaded => uploaded,
        () = node.stopping.uploads_are_over() => Err(StopReason::Drain),
    }
}

/// When an upload is given up under a Spot notice, by the deadline. A result is worth more than a checkpoint, so it may use
/// all the time but the last words'; but if at the speed that was measured the rest of it does not fit, and there is a
/// checkpoint to save, it is given up at once.
fn upload_given_up(
    node: &Node,
    env: &Arc<WorkloadEnv>,
) -> impl Fn(Instant) -> Pin<Box<dyn Future<Output = Instant> + Send>> {
    let (store, env, sizes) = (node.backend.store.clone(), env.clone(), node.settings.sizes);
    let before = store.uploaded_bytes();
    move |deadline| {
        let (store, env) = (store.clone(), env.clone());
        Box::pin(async move {
            let found = env.clone();
            let bytes = tokio::task::spawn_blocking(move || result::bytes(&found)).await.unwrap_or(0);
            let has_checkpoint = checkpoint_size::bytes_to_save(&env, sizes).await > 0;
            let now = Instant::now();
            let last = deadline.checked_sub(LAST_WORDS).unwrap_or(now);
            let left = bytes.saturating_sub(store.uploaded_bytes() - before);
            let fits = upload_time(left, speed(&store)) <= last.saturating_duration_since(now);
            if fits || !has_checkpoint { last } else { now }
        })
    }
}

/// Gives up at once.
async fn at_once(_deadline: Instant) -> Instant {
    Instant::now()
}

/// Waits for `work`, but when a Spot notice comes with a deadline, only until `given_up` of that. `work` must be safe to drop.
async fn unless_noticed<T, F: Future<Output = Instant>>(
    spot: &SpotWatcher,
    given_up: impl Fn(Instant) -> F,
    work: impl Future<Output = Result<T, StopReason>>,
) -> Result<T, StopReason> {
    let notice = async {
        let deadline = spot.wait_for_notice().await;
        tokio::time::sleep_until(given_up(deadline).await).await;
        deadline
    };
    tokio::select! {
        done = work => done,
        deadline = notice => Err(StopReason::Interrupted(deadline)),
    }
}

/// Waits for `work`, unless `token` is cancelled first. `work` must be safe to drop.
async fn unless<T>(
    token: &CancellationToken,
    stop: StopReason,
    work: impl Future<Output = Result<T, StopReason>>,
) -> Result<T, StopReason> {
    tokio::select! {
        done = work => done,
        () = token.cancelled() => Err(stop),
    }
}

fn result_bucket(node: &Node) -> Result<&str, NodeError> {
    node.settings
        .result_bucket
        .as_deref()
        .ok_or(NodeError::Setting { what: "the result bucket", hint: "set --result-bucket or LIGHTHPC_RESULT_BUCKET" })
}

/// The node's own setting goes first, then the mission's, then the simulated workload.
fn choose(node: &Node, mission: Option<&Mission>) -> Workload {
    let of_mission = || mission.and_then(|mission| mission.exec.clone()).map(Workload::Shell);
    let chosen = node.settings.workload.clone().or_else(of_mission);
    chosen.unwrap_or_else(|| Workload::Simulated(node.settings.simulation.clone()))
}

async fn prepare(node: &Node, attempted: &mut Attempted) -> Result<Arc<WorkloadEnv>, StopReason> {
    let (work_dir, fence) = (node.settings.work_dir.clone(), attempted.fence.clone());
    let (mission, deployment) = (attempted.row.mission.clone(), node.backend.ledger.tables().tasks.clone());
    let make = move || WorkloadEnv::prepare(&work_dir, &deployment, fence.src, mission, fence.attempt);
    let made = tokio::task::spawn_blocking(make).await.map_err(std::io::Error::other).flatten();
    let disk = |source| NodeError::Disk {
        doing: "making the attempt's folder in",
        path: node.settings.work_dir.clone(),
        source,
    };
    let env = Arc::new(made.map_err(|error| of_disk(disk(error)))?);
    attempted.place = Some(node.settings.disk.enter(env.folder()));
    attempted.env = Some(env.clone());
    Ok(env)
}

async fn download(node: &Node, bucket: &str, env: &WorkloadEnv) -> Result<Downloaded, StopReason> {
    let input = env.input();
    let download = || node.backend.store.download(bucket, env.src.as_str(), &input);
    let error = match retry_transient(node.settings.lease, download).await {
        Ok(downloaded) => {
            node.settings.preflight.note_read();
            return Ok(downloaded);
        }
        Err(error) => error,
    };
    // S3 is consistent: what is not there now will not be there on the next try.
    if matches!(&error, StoreError::Cloud(error) if error.kind == Kind::NotFound) {
        let uri = uri(bucket, env.src.as_str());
        return Err(AttemptFailure::new(Verdict::Infra, false, NodeError::MissingInput { uri }).into());
    }
    let (verdict, is_transient) = classify(&error);
    let error = deployment::blame(node, bucket, error).await;
    // What is the deployment's fault is not held against the task for good.
    let is_transient = is_transient || !error.is_the_tasks_own();
    Err(AttemptFailure::new(verdict, is_transient, error).into())
}
