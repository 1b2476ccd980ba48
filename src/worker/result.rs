//! Step 5: the result, from the workload's output to the bucket.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;
use tokio::task::JoinSet;

use super::outcome::{AttemptFailure, StopReason};
use super::pins::Pins;
use super::retry::retry_transient;
use super::{Node, NodeError};
use crate::backend::Backend;
use crate::backend::ledger::Fence;
use crate::backend::store::{Body, OBJECT_BYTES_MAX, Put, StoreError, Stored, uri};
use crate::domain::budget::SizeLimits;
use crate::domain::ids::KEY_BYTES_MAX;
use crate::domain::keys::{INDEX_NAME, result_key};
use crate::domain::verdict::Verdict;
use crate::workload::WorkloadEnv;
use crate::workload::tree::PinError;
use crate::workload::walk::{self, DEPTH_MAX, WalkError, open_top};

/// The most bytes of all names of a folder result: they are in memory twice, and once more in its index. A hundred
/// thousand names of 335 bytes.
const NAMES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the workload left in `LIGHTHPC_OUTPUT`.
#[derive(Debug, PartialEq, Eq)]
enum Output {
    Nothing,
    File(PathBuf),
    Files(BTreeMap<String, PathBuf>),
}

/// Files under way at once: many small ones are bound by round trips.
const FILES_PARALLEL: usize = 8;

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
    bucket: &str,
) -> Result<StoredResult, StopReason> {
    let key = result_key(&env.src);
    let limit = node.settings.lease;
    let output = retry_transient(limit, || find(env, node.settings.sizes)).await.map_err(failure)?;
    let upload = Upload {
        backend: node.backend.clone(),
        fence: fence.clone(),
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
            let error = NodeError::NoResult { output: env.output() };
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
struct Upload {
    backend: Backend,
    fence: Fence,
    bucket: String,
    pins: Pins,
    /// How long transient failures of one object are retried.
    limit: Duration,
}

impl Upload {
    /// Uploads the files of a folder result, eight at once. Returns what was stored, by name; `None` if the lease is
    /// lost.
    async fn put_files(
        &self,
        prefix: &str,
        files: BTreeMap<String, PathBuf>,
    ) -> Result<Option<BTreeMap<String, Stored>>, StoreError> {
        let (mut files, mut puts, mut stored) = (files.into_iter(), JoinSet::new(), BTreeMap::new());
        loop {
            // Made as earlier ones end: a folder may have a hundred thousand files.
            while puts.len() < FILES_PARALLEL
                && let Some((name, file)) = files.next()
            {
                let (upload, key) = (self.clone(), format!("{prefix}{name}"));
                puts.spawn(async move { (name, upload.put_file(&key, &file).await) });
            }
            // Losing the rest on an error is safe: without an index there is no result.
            let Some(put) = puts.join_next().await else { return Ok(Some(stored)) };
            let (name, put) = put.map_err(|panic| disk("uploading", Path::new(prefix), io::Error::other(panic)))?;
            match put? {
                Put::Stored(object) => stored.insert(name, object),
                Put::LeaseLost => return Ok(None),
            };
        }
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
            // By the name that people know.
            StoreError::Disk { doing, source, .. } => StoreError::Disk { doing, path: file.to_owned(), source },
            other => other,
        })?;
        if pin.has_changed().map_err(|error| disk("reading", file, error))? {
            return Err(changed());
        }
        Ok(put)
    }

    async fn put(&self, key: &str, body: Body<'_>) -> Result<Put, StoreError> {
        let Backend { store, ledger, .. } = &self.backend;
        let put = || store.put_result(ledger, &self.fence, &self.bucket, key, body.clone());
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

/// Says whose fault a failed upload is: the task's own if the result is not what S3, or this node, can take.
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

/// Returns whether a failed read of the result is the workload's doing: it took the right away, something of it still
/// changes its files, or the output is a link whose path no system takes.
fn is_the_workloads(error: &io::Error) -> bool {
    let is_odd_path = matches!(Errno::from_io_error(error), Some(Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR));
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof];
    is_odd_path || kinds.contains(&error.kind())
}

fn disk(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Disk { doing, path: path.to_owned(), source }
}

fn bad(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::BadResult { path: path.to_owned(), reason: reason.into() }
}

/// Returns how many bytes the result has, as far as it can be read.
pub(super) fn bytes(env: &WorkloadEnv) -> u64 {
    let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |meta| meta.len());
    match find_blocking(&env.output(), &env.workspace(), &result_key(&env.src), SizeLimits::default()) {
        Ok(Output::File(file)) => size(&file),
        Ok(Output::Files(files)) => sum(files.values().map(size)),
        Ok(Output::Nothing) | Err(_) => 0,
    }
}

/// Adds sizes up. The workload may claim any: a few files of 7 EiB are more than 64 bits hold.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

async fn find(env: &WorkloadEnv, sizes: SizeLimits) -> Result<Output, StoreError> {
    let (output, folder, key) = (env.output(), env.workspace(), result_key(&env.src));
    let found = tokio::task::spawn_blocking(move || find_blocking(&output, &folder, &key, sizes)).await;
    found.map_err(|panic| disk("reading", &env.output(), io::Error::other(panic)))?
}

/// Looks at the output. The workload may have made it a link; it must still lead into the attempt's own folder, for the
/// node may read what the workload may not. `key` is the result's: S3 has to take it, and each file's below it. What is
/// larger than it may be is found here, before anything goes up.
fn find_blocking(output: &Path, folder: &Path, key: &str, sizes: SizeLimits) -> Result<Output, StoreError> {
    let real = match output.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Output::Nothing),
        Err(error) => return Err(disk("reading", output, error)),
    };
    let folder = folder.canonicalize().map_err(|e| disk("reading", folder, e))?;
    if !real.starts_with(&folder) {
        return Err(bad(output, format!("it leads to {}, outside the workload's folder", real.display())));
    }
    let meta = real.metadata().map_err(|e| disk("reading", &real, e))?;
    if meta.is_file() {
        check_bytes(output, meta.len(), sizes)?;
        check(&real, key, meta.len())?;
        return Ok(Output::File(real));
    }
    if !meta.is_dir() {
        return Err(bad(output, "it is neither a file nor a folder"));
    }
    let files = walk(&real, &format!("{key}/"), sizes.result_files)?;
    let names = files.keys().map(String::len).sum::<usize>();
    if names > NAMES_BYTES_MAX {
        let reason = format!("the names of its files have {names} bytes, more than {NAMES_BYTES_MAX} in all");
        return Err(StoreError::TooLarge { path: output.to_owned(), reason });
    }
    let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |meta| meta.len());
    check_bytes(output, sum(files.values().map(size)), sizes)?;
    if !files.is_empty() {
        check(&real, &format!("{key}/{INDEX_NAME}"), 0)?;
    }
    Ok(if files.is_empty() { Output::Nothing } else { Output::Files(files) })
}

/// Checks the size of the whole. A hole of a sparse file counts, for its zeros would go up.
fn check_bytes(output: &Path, bytes: u64, sizes: SizeLimits) -> Result<(), StoreError> {
    let most = sizes.result_bytes;
    if bytes <= most {
        return Ok(());
    }
    let reason = format!("the result has {bytes} bytes, holes included, more than the {most} of --max-result-bytes");
    Err(StoreError::TooLarge { path: output.to_owned(), reason })
}

/// Checks what S3 takes: a key of 1,024 bytes, an object of 48.8 TiB.
fn check(path: &Path, key: &str, bytes: u64) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX {
        let reason = format!("its key in S3 would have {} bytes, more than {KEY_BYTES_MAX}: {key}", key.len());
        return Err(bad(path, reason));
    }
    if bytes > OBJECT_BYTES_MAX {
        let reason = format!("it has {bytes} bytes, more than the {OBJECT_BYTES_MAX} that S3 takes");
        return Err(StoreError::TooLarge { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Finds the files of a result folder. `prefix` is what their keys begin with.
fn walk(folder: &Path, prefix: &str, files_max: usize) -> Result<BTreeMap<String, PathBuf>, StoreError> {
    let top = open_top(folder).map_err(|error| disk("reading", folder, error.into()))?;
    let too_many = |what: &str| {
        let reason = format!("the result has more than the {files_max} {what} of --max-result-files");
        StoreError::TooLarge { path: folder.to_owned(), reason }
    };
    let (mut files, mut folders) = (BTreeMap::new(), 0);
    let walked = walk::each(&top, DEPTH_MAX, |found| -> Result<(), Halt> {
        let kind = found.kind();
        if kind == FileType::Directory {
            // A folder is nothing in S3, and takes the time of the walk.
            folders += 1;
            return if folders > files_max { Err(too_many("folders").into()) } else { Ok(()) };
        }
        let path = folder.join(OsStr::from_bytes(found.path));
        let name =
            String::from_utf8(found.path.to_vec()).map_err(|_| bad(&path, "its name is not UTF-8, as S3 keys are"))?;
        if name == INDEX_NAME {
            return Err(bad(&path, "this name is taken: lighthpc writes its own index there").into());
        }
        if kind != FileType::RegularFile {
            let reason = "it is neither a file nor a folder (links in a result folder are not followed)";
            return Err(bad(&path, reason).into());
        }
        check(&path, &format!("{prefix}{name}"), u64::try_from(found.meta.st_size).unwrap_or(0))?;
        files.insert(name, path);
        if files.len() > files_max {
            return Err(too_many("files").into());
        }
        Ok(())
    });
    match walked {
        Ok(()) => Ok(files),
        Err(Halt::Refused(error)) => Err(error),
        Err(Halt::Walk(WalkError::System { path, source })) => Err(disk("reading", &folder.join(path), source)),
        Err(Halt::Walk(error)) => Err(bad(folder, error.to_string())),
    }
}

/// Why the walk over a result folder ends early.
enum Halt {
    Walk(WalkError),
    Refused(StoreError),
}

impl From<WalkError> for Halt {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn env() -> (tempfile::TempDir, WorkloadEnv) {
        let dir = tempfile::tempdir().unwrap();
        let src = crate::domain::ids::SrcId::new("a").unwrap();
        let env = WorkloadEnv::prepare(dir.path(), "t", src, None, crate::domain::ids::Attempt(1)).unwrap();
        (dir, env)
    }

    #[test]
    fn no_output_and_an_empty_folder_are_no_result() {
        let (_dir, env) = env();
        assert_eq!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap(),
            Output::Nothing
        );
        std::fs::create_dir(env.output()).unwrap();
        assert_eq!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap(),
            Output::Nothing
        );
    }

    #[test]
    fn a_link_may_only_lead_into_the_attempts_folder() {
        let (_dir, env) = env();
        symlink("/etc/hostname", env.output()).unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Err(StoreError::BadResult { .. })
        ));

        std::fs::remove_file(env.output()).unwrap();
        let real = env.scratch().join("out");
        std::fs::write(&real, "x").unwrap();
        symlink(&real, env.output()).unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Ok(Output::File(_))
        ));
    }

    #[test]
    fn a_folder_is_all_its_files() {
        let (_dir, env) = env();
        std::fs::create_dir_all(env.output().join("b/c")).unwrap();
        std::fs::write(env.output().join("a.txt"), "1").unwrap();
        std::fs::write(env.output().join("b/c/ü d"), "2").unwrap();
        let Output::Files(files) =
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap()
        else {
            panic!()
        };
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.txt", "b/c/ü d"]);

        std::fs::write(env.output().join(INDEX_NAME), "x").unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Err(StoreError::BadResult { .. })
        ));
    }

    /// What the machine lacks, or cannot read, is not the result's fault; and what only lacks now is tried again.
    #[test]
    fn a_file_that_this_machine_cannot_open_hands_the_task_back() {
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
