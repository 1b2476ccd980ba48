//! The disk that the tasks of one process share: which task fills it, and when the next task may start.
//!
//! A task is to blame if it was alone, or if its own folder holds more than two thirds of what all folders hold; then a
//! budget counts its failure. (Of two tasks with the same need, one holds a little more than half.) Otherwise the
//! attempt is released, and nothing counts it, however often. So that this ends, no task starts while others run and
//! there is no free space; and if no task holds that much, half as many run from then on. A task that fills the disk
//! alone is counted.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::store::{SPARE_BYTES, free_bytes, free_inodes};
use crate::workload::walk::{self, DEPTH_MAX, WalkError};

/// A workload that failed with less free space than this on its disk failed because of that: a write of any size does.
const FULL_BYTES: u64 = 1024 * 1024;
/// The same for files: it may have removed the last ones that it made.
const FULL_FILES: u64 = 8;
/// How long after the disk was found full a failure of another task is attributed to that: a program that could not
/// write takes some time to exit, and by then the folder that filled the disk may have been removed.
const FULL_LASTS: Duration = Duration::from_mins(1);
/// The most entries of a folder that are counted, about 2 s: a folder with so many holds most, as a rule.
const ENTRIES_MAX: u64 = 1_000_000;

/// How much of a disk is held, or free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    files: u64,
}

impl Amount {
    const FULL: Self = Self { bytes: FULL_BYTES, files: FULL_FILES };

    const fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), files: self.files.saturating_add(other.files) }
    }

    fn max(self, other: Self) -> Self {
        Self { bytes: self.bytes.max(other.bytes), files: self.files.max(other.files) }
    }

    const fn fits(self, free: Self) -> bool {
        self.bytes <= free.bytes && self.files <= free.files
    }

    /// Returns what is free on a folder's disk. What cannot be determined counts as free.
    fn free(work_dir: &Path) -> Self {
        Self {
            bytes: free_bytes(work_dir).unwrap_or(u64::MAX),
            files: free_inodes(work_dir).ok().flatten().unwrap_or(u64::MAX),
        }
    }

    /// Returns what is below a folder, as far as it can be read.
    fn held(folder: &Path) -> Self {
        enum Halt {
            Enough,
            Walk,
        }
        impl From<WalkError> for Halt {
            fn from(_: WalkError) -> Self {
                Self::Walk
            }
        }
        let mut held = Self::default();
        let Ok(top) = walk::open_top(folder) else { return held };
        let walked = walk::each(&top, DEPTH_MAX, |found| {
            // Blocks of 512 bytes, whatever the file system's: a hole takes no room.
            let bytes = u64::try_from(found.meta.st_blocks).unwrap_or(0).saturating_mul(512);
            held = held.plus(Self { bytes, files: 1 });
            if held.files < ENTRIES_MAX { Ok(()) } else { Err(Halt::Enough) }
        });
        if matches!(walked, Err(Halt::Walk)) {
            tracing::debug!("{} was counted in part", folder.display());
        }
        held
    }
}

/// What is known of the disk. The slots of a process share one.
#[derive(Debug, Default)]
pub struct Disk(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The folders of the attempts under way, and since when.
    folders: BTreeMap<PathBuf, Instant>,
    /// Tasks that have started; some have no folder yet.
    begun: usize,
    /// The most tasks at the same time, after a higher number was too many.
    most: Option<usize>,
    /// The free space that is required before another task starts beside those that run.
    needed: Amount,
    full: Option<Full>,
}

/// The disk, when it was last found full.
#[derive(Clone, Copy, Debug)]
struct Full {
    at: Instant,
    /// What all attempts held.
    held: Amount,
    /// Whether it was files that were lacking.
    of_files: bool,
}

/// A task that has started, for as long as this is kept.
#[derive(Debug)]
pub struct Begun(Arc<Disk>);

/// The place of an attempt's folder, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Place {
    disk: Arc<Disk>,
    folder: PathBuf,
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a task, if there is free space for one more in this work folder. The only task always starts: nothing
    /// else of this process could free space for it.
    pub fn begin(self: &Arc<Self>, work_dir: &Path) -> Option<Begun> {
        let free = Amount::free(work_dir);
        let mut state = self.state();
        // An input is fetched only if so much stays free.
        let least = Amount { bytes: SPARE_BYTES, ..Amount::FULL };
        let has_room = least.max(state.needed).fits(free);
        if has_room {
            state.needed = Amount::default();
        }
        if state.begun > 0 && (!has_room || state.most.is_some_and(|most| state.begun >= most)) {
            return None;
        }
        state.begun += 1;
        Some(Begun(self.clone()))
    }

    /// Notes an attempt's folder.
    pub(super) fn enter(self: &Arc<Self>, folder: &Path) -> Place {
        self.state().folders.insert(folder.to_owned(), Instant::now());
        Place { disk: self.clone(), folder: folder.to_owned() }
    }

    /// Returns whether the disk is full, in bytes or in files, or was full a moment ago while this attempt ran.
    pub(super) fn is_full(&self, folder: &Path) -> bool {
        !Amount::FULL.fits(Amount::free(folder)) || self.recent(folder).is_some()
    }

    fn recent(&self, folder: &Path) -> Option<Full> {
        let state = self.state();
        let since = state.folders.get(folder)?;
        state.full.filter(|full| full.at >= *since && full.at.elapsed() < FULL_LASTS)
    }

    /// Returns whether the task itself has filled the disk. `folder` is its attempt's, and `wanted` is the number of
    /// further bytes that it could not get. Takes the time of a walk through all attempts' folders.
    pub(super) async fn is_to_blame(self: &Arc<Self>, folder: &Path, wanted: u64) -> bool {
        let (disk, folder) = (self.clone(), folder.to_owned());
        let blamed = lighthpc_runtime::blocking(move || disk.blame(&folder, wanted)).await;
        // If this cannot be determined, the task is to blame, so that it is counted.
        blamed.map_err(io::Error::other).unwrap_or(true)
    }

    fn blame(&self, folder: &Path, wanted: u64) -> bool {
        let recent = self.recent(folder);
        let others: Vec<PathBuf> = self.state().folders.keys().filter(|other| *other != folder).cloned().collect();
        let of_files = recent.map_or_else(|| Amount::free(folder).files < FULL_FILES, |full| full.of_files);
        let own = Amount::held(folder).plus(Amount { bytes: wanted, files: 0 });
        let others: Vec<Amount> = others.iter().map(|other| Amount::held(other)).collect();
        let all = others.iter().fold(own, |all, other| all.plus(*other));
        let all = recent.map_or(all, |full| all.max(full.held));
        let holds_most = |held: Amount| {
            if of_files { held.files > all.files / 3 * 2 } else { held.bytes > all.bytes / 3 * 2 }
        };
        let is_own = (others.is_empty() && recent.is_none()) || holds_most(own);

        let mut state = self.state();
        if !is_own {
            state.needed = state.needed.max(own.plus(Amount::FULL));
            if recent.is_none() && !others.iter().any(|other| holds_most(*other)) {
                let most = others.len().div_ceil(2).max(1);
                state.most = Some(state.most.map_or(most, |before| before.min(most)));
                tracing::warn!(
                    most,
                    "the disk is too small for so many tasks: no more than {most} at a time from now on"
                );
            }
        }
        state.full = Some(Full { at: Instant::now(), held: all, of_files });
        is_own
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.state().begun -= 1;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.disk.state().folders.remove(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shared {
        dir: tempfile::TempDir,
        disk: Arc<Disk>,
    }

    impl Shared {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap(), disk: Arc::default() }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// An attempt whose folder has a file of so many KiB.
        fn attempt(&self, name: &str, kib: usize) -> Place {
            std::fs::create_dir(self.at(name)).unwrap();
            std::fs::write(self.at(name).join("file"), vec![1; kib * 1024]).unwrap();
            self.disk.enter(&self.at(name))
        }

        fn begin(&self) -> Option<Begun> {
            self.disk.begin(self.dir.path())
        }
    }

    #[tokio::test]
    async fn whoever_is_alone_or_holds_most_is_to_blame() {
        let shared = Shared::new();
        let blamed = async |name: &str, wanted| shared.disk.is_to_blame(&shared.at(name), wanted).await;
        let hog = shared.attempt("hog", 1000);
        assert!(blamed("hog", 0).await && shared.begin().is_some(), "it is alone");
        let (_one, _two) = (shared.attempt("one", 100), shared.attempt("two", 100));
        assert!(!blamed("one", 0).await);
        assert!(blamed("hog", 0).await);
        assert!(blamed("two", 1 << 30).await, "what it could not have counts as its own");
        // The one that was to blame is gone.
        drop(hog);
        std::fs::remove_dir_all(shared.at("hog")).unwrap();
        assert!(!blamed("one", 0).await && shared.disk.is_full(&shared.at("one")));
        // One that came later has not met it.
        let _late = shared.attempt("late", 1);
        assert!(!shared.disk.is_full(&shared.at("late")));
        assert!(shared.disk.state().most.is_none(), "there was one to blame");
    }

    #[tokio::test]
    async fn where_nobody_is_to_blame_half_as_many_run_until_one_is_alone() {
        let shared = Shared::new();
        let mut places: Vec<_> = (0..6).map(|n| shared.attempt(&n.to_string(), 100)).collect();
        let blamed = async |name: &str| shared.disk.is_to_blame(&shared.at(name), 0).await;
        assert!(!blamed("0").await && !blamed("1").await, "the second is of the same event");
        let mut begun: Vec<_> = std::iter::from_fn(|| shared.begin()).take(9).collect();
        assert_eq!(begun.len(), 3);
        begun.pop();
        assert!(shared.begin().is_some() && begun.len() == 2, "as one ends, one begins");
        places.clear();
        let _places = [shared.attempt("a", 100), shared.attempt("b", 100)];
        assert!(!blamed("a").await);
        begun.clear();
        assert_eq!(std::iter::from_fn(|| shared.begin()).take(9).collect::<Vec<_>>().len(), 1);
    }

    #[tokio::test]
    async fn no_task_begins_beside_another_before_there_is_the_room_that_was_lacking() {
        let shared = Shared::new();
        let _places = [shared.attempt("hog", 1000), shared.attempt("small", 10)];
        assert!(!shared.disk.is_to_blame(&shared.at("small"), 0).await);
        shared.disk.state().needed.bytes = u64::MAX;
        let first = shared.begin().expect("it would be the only one");
        assert!(shared.begin().is_none());
        assert!(shared.begin().is_none());
        drop(first);
        let _first = shared.begin().unwrap();
        shared.disk.state().needed.bytes = 1;
        assert!(shared.begin().is_some() && shared.disk.state().needed == Amount::default());
    }
}
