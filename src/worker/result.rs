//! Step 5: upload the result, from the workload's output to the bucket.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::heartbeat::Hold;
use super::outcome::{AttemptFailure, StopReason};
use super::output::{Output, bad, disk, find, sum};
use super::pins::Pins;
use super::retry::retry_transient;
use super::{Node, NodeError};
use crate::backend::Backend;
use crate::backend::ledger::Fence;
use crate::backend::parallel::Parallel;
use crate::backend::store::{Body, Holder, Put, StoreError, Stored, files_parallel, uri};
use crate::domain::keys::{INDEX_NAME, result_key};
use crate::domain::verdict::Verdict;
use crate::workload::WorkloadEnv;
use crate::workload::tree::PinError;

/// A result in the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredResult {
    /// `s3://bucket/key`.
    pub(super) uri: String,
    pub(super) etag: String,
    pub(super) bytes: u64,
}

/// Uploads the workload's result under the fence.
///
/// A folder is uploaded file by file under `rslt_<src>/`; last comes an index of them, which is the result's `ETag` and
/// tells the attempt's own files from what a dead attempt may have left. The index is put from memory: the disk may be
/// full. What S3 would refuse is found before anything is uploaded.
pub(super) async fn upload(
    node: &Node,
    env: &WorkloadEnv,
    fence: &Fence,
    hold: &Hold,
    bucket: &str,
) -> Result<StoredResult, StopReason> {
    let key = result_key(&env.src);
    let limit = node.settings.lease;
    let output = retry_transient(limit, || find(env, node.settings.sizes)).await.map_err(failure)?;
    let upload = ResultUpload {
        backend: node.backend.clone(),
        fence: fence.clone(),
        hold: hold.clone(),
        bucket: bucket.to_owned(),
        pins: pins(node, env),
        limit,
    };
    match output {
        // A program that ignores its failed writes ends with 0.
        Output::Nothing if node.settings.disk.is_full(env.folder()) => {
            Err(AttemptFailure::new(Verdict::DiskFull, true, NodeError::WorkloadDiskFull).into())
        }
        Output::Nothing => {
            let error = NodeError::NoResult;
            Err(AttemptFailure { exit_code: Some(0), ..AttemptFailure::new(Verdict::NoResult, false, error) }.into())
        }
        Output::File(file) => {
            let put = upload.put_file(&key, &file).await.map_err(failure)?;
            let Put::Stored(Stored { etag, bytes }) = put else { return Err(StopReason::LeaseLost) };
            Ok(StoredResult { uri: uri(bucket, &key), etag, bytes })
        }
        Output::Files(files) => {
            let prefix = format!("{key}/");
            let Some(stored) = upload.put_files(&prefix, files).await.map_err(failure)? else {
                return Err(StopReason::LeaseLost);
            };
            let index = Body::Bytes(index_of(&stored, fence).into());
            let put = upload.put(&format!("{prefix}{INDEX_NAME}"), index).await.map_err(failure)?;
            let Put::Stored(Stored { etag, .. }) = put else { return Err(StopReason::LeaseLost) };
            let bytes = sum(stored.values().map(|file| file.bytes));
            Ok(StoredResult { uri: uri(bucket, &prefix), etag, bytes })
        }
    }
}

/// Returns how the files of a result are opened: below the workload's folder, through no link, and in a sandbox only
/// what is the workload's own. A process that nobody found may still change what is there.
fn pins(node: &Node, env: &WorkloadEnv) -> Pins {
    let root = env.workspace();
    // As the files' paths, which have no link in them.
    let root = root.canonicalize().unwrap_or(root);
    let owner = node.settings.bounds.sandbox.as_ref().map(|sandbox| sandbox.user().0);
    Pins::new(root, owner, node.settings.sizes.result_bytes)
}

/// An upload of a result's objects under the fence. A clone is of the same result.
#[derive(Clone)]
struct ResultUpload {
    backend: Backend,
    fence: Fence,
    hold: Hold,
    bucket: String,
    pins: Pins,
    /// How long transient failures of one object are retried.
    limit: Duration,
}

impl ResultUpload {
    /// Uploads the files of a folder result, some at the same time. Returns what was stored, by name; `None` if the lease
    /// is lost.
    async fn put_files(
        &self,
        prefix: &str,
        files: BTreeMap<String, PathBuf>,
    ) -> Result<Option<BTreeMap<String, Stored>>, StoreError> {
        let (upload, folder) = (self.clone(), prefix.to_owned());
        let puts = files.into_iter().map(move |(name, file)| {
            let (upload, key) = (upload.clone(), format!("{folder}{name}"));
            async move { (name, upload.put_file(&key, &file).await) }
        });
        let mut puts = Parallel::new(files_parallel(), puts);
        let mut stored = BTreeMap::new();
        // Losing the rest on an error is safe: without an index there is no result.
        while let Some(put) = puts.next().await {
            let (name, put) = put.map_err(|panic| disk("uploading", Path::new(prefix), io::Error::other(panic)))?;
            match put? {
                Put::Stored(object) => stored.insert(name, object),
                Put::LeaseLost => return Ok(None),
            };
        }
        Ok(Some(stored))
    }

    /// Uploads a file of the result. A file that grows, shrinks, or is written to meanwhile is refused.
    async fn put_file(&self, key: &str, file: &Path) -> Result<Put, StoreError> {
        let changed = || bad(file, "something of the workload still wrote to it while it was uploaded");
        let below =
            file.strip_prefix(self.pins.root()).map_err(|error| disk("opening", file, io::Error::other(error)))?;
        let pin = self.pins.open(below.as_os_str().as_bytes(), self.limit).await;
        let pin = pin.map_err(|error| of_pin(file, error))?.ok_or_else(changed)?;
        if !self.pins.take_bytes(&pin) {
            return Err(changed());
        }
        let put = self.put(key, pin.body()).await.map_err(|error| match error {
            // By the path that the user knows.
            StoreError::Disk { doing, source, .. } => StoreError::Disk { doing, path: file.to_owned(), source },
            StoreError::BadResult { .. } => changed(),
            other => other,
        })?;
        if pin.has_changed().map_err(|error| disk("reading", file, error))? {
            return Err(changed());
        }
        Ok(put)
    }

    async fn put(&self, key: &str, body: Body<'_>) -> Result<Put, StoreError> {
        let Backend { store, ledger, .. } = &self.backend;
        let put = || {
            let holder = Holder { ledger, fence: &self.fence, is_sure: self.hold.is_sure() };
            store.put_result(holder, &self.bucket, key, body.clone())
        };
        retry_transient(self.limit, put).await
    }
}

fn of_pin(file: &Path, error: PinError) -> StoreError {
    match error {
        PinError::NoFile { .. } => bad(file, error.to_string()),
        PinError::System(source) => disk("opening", file, source),
    }
}

/// Writes the index. By hand, file by file: a tree of a hundred thousand files would be in memory once more.
fn index_of(stored: &BTreeMap<String, Stored>, fence: &Fence) -> String {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let src = text(fence.src.as_str());
    let mut index = format!("{{\"srcFilename\":{src},\"attempt\":{},\"files\":{{", fence.attempt.0);
    for (n, (name, file)) in stored.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        index.push_str(&format!("{comma}{}:{{\"bytes\":{},\"etag\":{}}}", text(name), file.bytes, text(&file.etag)));
    }
    index.push_str("}}");
    index
}

/// Classifies a failed upload: it is the task's own failure if the result is not what S3, or this node, can take.
fn failure(error: StoreError) -> AttemptFailure {
    let error = match error {
        StoreError::Disk { path, source, .. } if is_the_workloads(&source) => {
            bad(&path, format!("it cannot be read: {source}"))
        }
        other => other,
    };
    let (verdict, is_transient) = super::error::classify(&error);
    AttemptFailure::new(verdict, is_transient, NodeError::Store { doing: "uploading the result", source: error })
}

/// Returns whether the workload caused a failed read of the result: it removed the right to read, a process of it still
/// changes the files, or the output is a link with an invalid path.
fn is_the_workloads(error: &io::Error) -> bool {
    let is_odd_path = matches!(Errno::from_io_error(error), Some(Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR));
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
    is_odd_path || kinds.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the machine lacks, or cannot read, is not the result's fault; and what only lacks now is tried again.
    #[test]
    fn a_file_that_this_machine_cannot_open_releases_the_task() {
        use crate::worker::retry::Retryable;
        let ends = |error| {
            let class = failure(of_pin(Path::new("/output"), error)).class;
            (class.verdict, class.is_transient)
        };
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR, Errno::IO, Errno::STALE] {
            let error = || PinError::System(errno.into());
            assert_eq!(error().is_transient(), !matches!(errno, Errno::IO | Errno::STALE), "{errno:?}");
            assert_eq!(of_pin(Path::new("/output"), error()).is_transient(), error().is_transient(), "{errno:?}");
            assert_eq!(ends(error()), (Verdict::Infra, true), "{errno:?}");
        }
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::PERM, Errno::NAMETOOLONG] {
            assert_eq!(ends(PinError::System(errno.into())), (Verdict::AppError, false), "{errno:?}");
        }
        let no_file = PinError::NoFile { path: "output".to_owned(), what: "is a socket" };
        assert_eq!((no_file.is_transient(), ends(no_file)), (false, (Verdict::AppError, false)));
    }
}
