//! The folders of dead processes: listed at the start, and removed later in the background.
//!
//! A folder is kept only until it is removed. No other process removes it meanwhile, because the process that listed it
//! holds the work folder's lock for its lifetime.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::folder::{self, Marker, Proven, Refusal};
use crate::domain::ids::{AttemptNumber, SrcId};

/// The attempt's folder of a dead process on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The task; `None` if it belongs to another deployment.
    pub src: Option<SrcId>,
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Whether the process crashed: the machine is still in the same boot, and the process was not requested to stop.
    pub is_crash: bool,
    folder: Option<Abandoned>,
}

/// A folder of a dead process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Abandoned {
    work_dir: PathBuf,
    marker: Marker,
}

impl Left {
    /// Creates a value without a folder.
    #[must_use]
    pub const fn without_folder(src: SrcId, attempt: AttemptNumber, is_crash: bool) -> Self {
        Self { src: Some(src), attempt, is_crash, folder: None }
    }

    pub(super) fn of(work_dir: &Path, marker: Marker, deployment: &str, was_drained: bool) -> Self {
        let src = if marker.deployment == deployment { SrcId::new(&marker.task).ok() } else { None };
        let is_crash = marker.is_of_this_boot() && !was_drained;
        let attempt = AttemptNumber(marker.attempt);
        Self { src, attempt, is_crash, folder: Some(Abandoned { work_dir: work_dir.to_owned(), marker }) }
    }

    fn path(&self) -> Option<PathBuf> {
        self.folder.as_ref().map(|folder| folder.work_dir.join(&folder.marker.folder))
    }

    fn proven(&self) -> io::Result<Option<Proven>> {
        let Some(Abandoned { work_dir, marker }) = &self.folder else { return Ok(None) };
        match folder::prove(work_dir, OsStr::new(&marker.folder)).and_then(Proven::abandoned) {
            Ok(proven) => Ok(proven.filter(|proven| proven.marker == *marker)),
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(refusal) => Err(io::Error::other(refusal.to_string())),
        }
    }

    pub(super) fn remove(&self, keeps_marker: bool, stop: &CancellationToken) -> io::Result<()> {
        match self.proven()? {
            Some(proven) if keeps_marker => proven.empty(stop),
            Some(proven) => proven.remove(stop),
            None => Ok(()),
        }
    }
}

/// The time that the first attempt waits for the removal, so that a disk that a crashed attempt filled has space again.
/// It is enough for several million files.
const HEAD_START: Duration = Duration::from_secs(30);
/// The time that the node waits at its end for the rest.
const END_TIMEOUT: Duration = Duration::from_mins(1);

/// The removal of abandoned folders, on its own thread. Dropping it stops it; the next process finds the remaining
/// folders.
#[derive(Debug)]
pub struct Removal {
    thread: JoinSet<()>,
    drain: CancellationToken,
    stop: DropGuard,
}

impl Removal {
    /// Starts the removal. The markers of `unsettled` folders remain. It stops at a drain.
    #[must_use]
    pub fn start(settled: Vec<Left>, unsettled: Vec<Left>, drain: &CancellationToken) -> Self {
        let stop = drain.child_token();
        let mut thread = JoinSet::new();
        if !settled.is_empty() || !unsettled.is_empty() {
            let stop = stop.clone();
            let remove = move || {
                let all = settled.iter().map(|left| (left, false)).chain(unsettled.iter().map(|left| (left, true)));
                for (left, keeps_marker) in all {
                    if stop.is_cancelled() {
                        return;
                    }
                    // A folder that cannot be removed takes disk space, but must not prevent the removal of others.
                    if let (Err(error), Some(path)) = (left.remove(keeps_marker, &stop), left.path()) {
                        tracing::warn!("removing {} failed: {error}", path.display());
                    }
                }
            };
            let removed = async move { lighthpc_runtime::blocking(remove).await.unwrap_or_default() };
            lighthpc_runtime::spawn(&mut thread, removed);
        }
        Self { thread, drain: drain.clone(), stop: stop.drop_guard() }
    }

    /// Waits for the removal for half a minute at most.
    pub async fn head_start(&mut self) {
        self.wait(HEAD_START).await;
    }

    /// Waits for the end of the removal for a minute at most; then stops it.
    pub async fn end(mut self) {
        if !self.wait(END_TIMEOUT).await {
            tracing::warn!("the folders of an earlier process are not completely removed; the next process continues");
        }
        drop(self.stop);
    }

    async fn wait(&mut self, limit: Duration) -> bool {
        // All arms may be dropped: the thread continues until it is stopped. The first is first, so that a drain does
        // not hide that nothing is left to remove.
        tokio::select! {
            biased;
            ended = async { while self.thread.join_next().await.is_some() {} } => { let () = ended; true }
            () = tokio::time::sleep(limit) => false,
            () = self.drain.cancelled() => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::{Folder, MARKER_NAME};
    use super::super::orphans::lock_work_dir;
    use super::*;

    fn abandoned(work_dir: &Path, deployment: &str, src: &str) -> PathBuf {
        let folder = Folder::create(work_dir, deployment, &SrcId::new(src).unwrap(), AttemptNumber(1)).unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        folder.path().to_owned()
    }

    /// The start waits for no removal, and a process that dies before the removal loses nothing.
    #[tokio::test]
    async fn a_listing_removes_nothing_and_a_removal_that_is_stopped_leaves_the_markers() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [abandoned(dir.path(), "t", "a"), abandoned(dir.path(), "other", "b")];
        let are_there = || folders.iter().all(|folder| folder.join(MARKER_NAME).exists());
        for _ in 0..2 {
            let (_lock, left) = lock_work_dir(dir.path(), "t").unwrap();
            assert_eq!(left.len(), 2);
            assert!(folders.iter().all(|folder| folder.join("file").exists()));
        }
        let (_lock, left) = lock_work_dir(dir.path(), "t").unwrap();
        let drain = CancellationToken::new();
        drain.cancel();
        for left in &left {
            let stopped = left.remove(false, &drain).unwrap_err();
            assert_eq!(stopped.kind(), io::ErrorKind::Interrupted, "{stopped}");
        }
        Removal::start(left.clone(), Vec::new(), &drain).end().await;
        assert!(are_there());

        let mut removal = Removal::start(left, Vec::new(), &CancellationToken::new());
        removal.head_start().await;
        assert!(folders.iter().all(|folder| !folder.exists()));
        removal.end().await;
    }

    #[tokio::test]
    async fn what_is_not_settled_is_emptied_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = abandoned(dir.path(), "t", "a");
        let (lock, left) = lock_work_dir(dir.path(), "t").unwrap();
        Removal::start(Vec::new(), left.clone(), &CancellationToken::new()).end().await;
        assert!(!folder.join("file").exists() && folder.join(MARKER_NAME).exists());
        drop(lock);
        assert_eq!(lock_work_dir(dir.path(), "t").unwrap().1, left);
    }

    /// What a person put in the place of a folder that was listed is not removed.
    #[test]
    fn a_folder_that_is_another_by_now_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = abandoned(dir.path(), "t", "a");
        let (_lock, left) = lock_work_dir(dir.path(), "t").unwrap();
        std::fs::rename(&folder, dir.path().join("moved")).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("precious"), "x").unwrap();
        assert!(left[0].remove(false, &CancellationToken::new()).is_err());
        assert!(folder.join("precious").exists() && dir.path().join("moved/file").exists());
        std::fs::remove_dir_all(&folder).unwrap();
        left[0].remove(false, &CancellationToken::new()).unwrap();
    }

    /// A process that was asked to stop, and killed before it had, has not crashed: nobody counts that against its
    /// tasks.
    #[test]
    fn a_drain_that_is_killed_is_no_crash() {
        let dir = tempfile::tempdir().unwrap();
        abandoned(dir.path(), "t", "a");
        let is_crash = || lock_work_dir(dir.path(), "t").unwrap().1[0].is_crash;
        assert!(is_crash());
        lock_work_dir(dir.path(), "t").unwrap().0.unwrap().note_drain().unwrap();
        assert!(!is_crash());
        assert!(is_crash(), "a note is of one process");
        // Of another boot, and a file of somebody else's.
        let note = dir.path().join(".lighthpc-drained");
        std::fs::write(&note, "lighthpc was asked to stop in boot 0").unwrap();
        assert!(is_crash() && !note.exists());
        std::fs::write(&note, "mine").unwrap();
        assert!(is_crash());
        assert!(lock_work_dir(dir.path(), "t").unwrap().0.unwrap().note_drain().is_err());
        assert_eq!(std::fs::read_to_string(&note).unwrap(), "mine");
    }
}
