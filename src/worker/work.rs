//! Steps 3 to 5: download the input, run the workload, and upload the result.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ahead::{Ended, Running, Slot};
use super::attempt::Attempt;
use super::checkpoint::Checkpoints;
use super::error::classify;
use super::host::Host;
use super::outcome::{AttemptFailure, StopReason, infra, of_disk};
use super::output::output_bytes;
use super::result::{self, StoredResult};
use super::retry::retry_transient;
use super::spot::{FINAL_WRITES_TIME, SpotWatcher, speed, upload_time};
use super::{Node, NodeError, Step, checkpoint_size, deployment};
use crate::backend::Kind;
use crate::backend::parallel::Parallel;
use crate::backend::store::{StoreError, files_parallel};
use crate::domain::verdict::Verdict;
use crate::domain::work::ObjectName;
use crate::workload::{Workload, WorkloadEnv};

impl Attempt {
    /// Downloads the input, runs the workload, and uploads the result. Each step ends early if the lease is lost; all
    /// but the upload also if the node drains.
    pub(super) async fn work(&mut self) -> Result<StoredResult, StopReason> {
        let Host { node, spot, .. } = self.host.clone();
        let bucket = node.result_bucket().map_err(infra)?;
        let inputs = self.inputs()?;
        let env = self.prepare(&inputs).await?;

        // None needs another, and all are round trips.
        let mission = async {
            let recent = &self.host.recent_mission;
            let mission = retry_transient(node.settings.lease, || recent.of(&node, &self.row)).await;
            mission.map_err(|error| infra(NodeError::cloud("reading the mission")(error)))
        };
        let lost_log = async { Ok(self.find_lost_log().await) };
        let fetch = Box::pin(async { tokio::try_join!(mission, download(&node, inputs, &env), lost_log) });
        let (mission, input, lost_log) = self.until_stopped(node.step(Step::Download, fetch)).await?;
        (self.mission, self.lost_log) = (mission, lost_log);
        self.input_etag = input;
        if let Some(mission) = &self.mission {
            self.host.instance.note_mission(mission);
        }
        if self.mission.as_ref().is_some_and(|mission| mission.cancelled_at.is_some()) {
            return Err(StopReason::Cancelled);
        }
        let named = self.row.checkpoint.clone();
        let restore = Checkpoints::restore(&node, &env, &self.fence, bucket, named.as_deref());
        let restore = Box::pin(async { restore.await.map_err(of_disk) });
        let (checkpoints, is_resumed) = self.until_stopped(restore).await?;
        self.checkpoints = Some(checkpoints);
        let mut resumed = (*env).clone();
        resumed.resumed = is_resumed;
        let env = Arc::new(resumed);

        self.is_ahead |= self.host.slot.as_ref().is_some_and(Slot::has_another_task);
        let running =
            self.until_stopped(unless(&self.heartbeat.cancelled, StopReason::Cancelled, self.place())).await?;
        self.has_started = true;
        let ended = node.step(Step::Execute, self.execute(&self.workload(), &env)).await;
        // The next workload runs while this result goes up.
        if let Some(running) = running {
            running.end(match &ended {
                Ok(_) => Ended::Succeeded,
                Err(StopReason::Failed(failure)) if failure.is_the_nodes() => Ended::NodeAtFault,
                Err(_) => Ended::Failed,
            });
        }
        self.exit_code = Some(ended?);
        let upload =
            Box::pin(node.step(Step::Upload, result::upload(&node, &env, &self.fence, &self.heartbeat.hold, bucket)));
        let upload = unless(&self.heartbeat.lost, StopReason::LeaseLost, upload);
        let uploaded = unless_noticed(&spot, give_up_upload_at(&node, &env), upload);
        // A finished result is worth the time that there is. An upload may be dropped: its parts are aborted later.
        tokio::select! {
            uploaded = uploaded => uploaded,
            () = node.stopping.uploads_are_over() => Err(StopReason::Drain),
        }
    }

    /// Waits for `work`, unless the lease is lost, the node drains, or a Spot notice arrives first. `work` must be safe
    /// to drop.
    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T, StopReason>>) -> Result<T, StopReason> {
        let work = unless(&self.host.node.stopping.drain, StopReason::Drain, work);
        let work = unless(&self.heartbeat.lost, StopReason::LeaseLost, work);
        unless_noticed(&self.host.spot, at_once, work).await
    }

    /// Waits for the place of the workload. Safe to drop.
    async fn place(&self) -> Result<Option<Running>, StopReason> {
        match &self.host.slot {
            Some(slot) => slot.run().await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the objects that the task works on.
    fn inputs(&self) -> Result<Vec<ObjectName>, StopReason> {
        let work = self
            .row
            .work
            .as_ref()
            .map_err(|what| AttemptFailure::new(Verdict::Infra, false, NodeError::OddRow { what: what.clone() }))?;
        let bucket = self.row.bucket.clone().or_else(|| self.host.node.settings.source_bucket.clone());
        if bucket.is_none() && work.needs_bucket() {
            let hint = "set --source-bucket or LIGHTHPC_SOURCE_BUCKET, or bucketname in the task's row";
            return Err(infra(NodeError::Setting { what: "the source bucket", hint }));
        }
        Ok(work.objects(&self.row.src, &bucket.unwrap_or_default()))
    }

    /// Makes the attempt's folder.
    async fn prepare(&mut self, inputs: &[ObjectName]) -> Result<Arc<WorkloadEnv>, StopReason> {
        let node = &self.host.node;
        let (work_dir, fence) = (node.settings.work_dir.clone(), self.fence.clone());
        let (mission, deployment) = (self.row.mission.clone(), node.backend.ledger.tables().tasks.clone());
        let make = move || WorkloadEnv::prepare(&work_dir, &deployment, fence.src, mission, fence.attempt);
        let made = lighthpc_runtime::blocking(make).await.map_err(std::io::Error::other).flatten();
        let disk = |source| NodeError::Disk {
            doing: "making the attempt's folder in",
            path: node.settings.work_dir.clone(),
            source,
        };
        let mut env = made.map_err(|error| of_disk(disk(error)))?;
        env.keys = inputs.iter().map(|input| input.key.clone()).collect();
        env.work = self.row.work.clone().unwrap_or_default();
        let env = Arc::new(env);
        self.place = Some(node.settings.disk.enter(env.folder()));
        self.env = Some(env.clone());
        Ok(env)
    }

    /// Returns the workload: the node's own setting, else the mission's, else the simulated one.
    fn workload(&self) -> Workload {
        let settings = &self.host.node.settings;
        let of_mission = || self.mission.as_ref().and_then(|mission| mission.exec.clone()).map(Workload::Shell);
        let chosen = settings.workload.clone().or_else(of_mission);
        chosen.unwrap_or_else(|| Workload::Simulated(settings.simulation.clone()))
    }
}

/// Downloads the inputs, several at a time. Returns the `ETag` of the input, if there is exactly one.
async fn download(node: &Node, inputs: Vec<ObjectName>, env: &WorkloadEnv) -> Result<Option<String>, StopReason> {
    if let [input] = inputs.as_slice() {
        return download_one(node.clone(), input.clone(), env.input_of(&input.key)).await.map(Some);
    }
    let downloads = inputs.into_iter().map(|input| {
        let file = env.input_of(&input.key);
        download_one(node.clone(), input, file)
    });
    let mut downloads = Parallel::new(files_parallel(), downloads);
    while let Some(downloaded) = downloads.next().await {
        downloaded.map_err(|panic| infra(NodeError::Panicked(panic.to_string()))).flatten()?;
    }
    Ok(None)
}

/// Downloads an input to a file, and returns its `ETag`.
async fn download_one(node: Node, input: ObjectName, file: PathBuf) -> Result<String, StopReason> {
    let ObjectName { bucket, key } = &input;
    let download = || node.backend.store.download(bucket, key, &file);
    let error = match retry_transient(node.settings.lease, download).await {
        Ok(downloaded) => {
            node.settings.preflight.note_read();
            return Ok(downloaded.etag);
        }
        Err(error) => error,
    };
    // S3 is consistent: what is not there now will not be there on the next try.
    if matches!(&error, StoreError::Cloud(error) if error.kind == Kind::NotFound) {
        return Err(AttemptFailure::new(Verdict::Infra, false, NodeError::MissingInput { uri: input.uri() }).into());
    }
    let (verdict, is_transient) = classify(&error);
    let error = deployment::attribute_refusal(&node, bucket, error).await;
    // A fault of the deployment does not fail the task permanently.
    let is_transient = is_transient || !error.is_the_tasks_own();
    Err(AttemptFailure::new(verdict, is_transient, error).into())
}

/// Returns when an upload is given up, as a function of a Spot notice's deadline.
///
/// A result is worth more than a checkpoint, so it may use all the time except that of the final writes. But if the
/// rest of it does not fit at the measured speed, and there is a checkpoint to save, it is given up at once.
fn give_up_upload_at(
    node: &Node,
    env: &Arc<WorkloadEnv>,
) -> impl Fn(Instant) -> Pin<Box<dyn Future<Output = Instant> + Send>> {
    let (store, env, sizes) = (node.backend.store.clone(), env.clone(), node.settings.sizes);
    let before = store.uploaded_bytes();
    move |deadline| {
        let (store, env) = (store.clone(), env.clone());
        Box::pin(async move {
            let found = env.clone();
            let bytes = lighthpc_runtime::blocking(move || output_bytes(&found)).await.unwrap_or(0);
            let has_checkpoint = checkpoint_size::bytes_to_save(&env, sizes).await > 0;
            let now = Instant::now();
            let last = deadline.checked_sub(FINAL_WRITES_TIME).unwrap_or(now);
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

/// Waits for `work`. After a Spot notice, waits only until the instant that `give_up_at` returns for its deadline.
/// `work` must be safe to drop.
async fn unless_noticed<T, F: Future<Output = Instant>>(
    spot: &SpotWatcher,
    give_up_at: impl Fn(Instant) -> F,
    work: impl Future<Output = Result<T, StopReason>>,
) -> Result<T, StopReason> {
    let notice = async {
        let deadline = spot.wait_for_notice().await;
        tokio::time::sleep_until(give_up_at(deadline).await).await;
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
