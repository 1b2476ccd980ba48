//! Orphans of a workload: processes that left its group, and the folders and processes of a dead node.
//!
//! A signal reaches a process group; a daemonised descendant is in another one. While this process runs, it finds such
//! descendants among its children (`children.rs`). Those that a killed process left belong to `init`. But every
//! descendant inherits the variables of the workload, and `LIGHTHPC_SCRATCH` contains the attempt's folder, which
//! identifies it, unless the descendant cleared its environment.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use lighthpc_runtime::boot_id;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::process::{Pid, Signal, getpgid, getpid, kill_process};

use super::abandoned::Left;
use super::children;
use super::folder::{self, Proven, Refusal};
use super::ground::{self, GroundError};
use super::processes::AttemptFolder;
use super::remover::open_folder;

/// The maximum number of passes over `/proc`: a process may fork between the listing and the signal.
const ROUNDS_MAX: u32 = 5;

/// Kills every process of the attempt with this folder, and returns their number. Processes of the group `dying`, which
/// was already killed, are omitted. Blocks.
pub(super) fn end_below(folder: &Path, dying: Option<Pid>) -> usize {
    let Some(attempt) = AttemptFolder::of(folder) else { return 0 };
    if let Some(ended) = children::end_orphans(&attempt, dying) {
        return ended;
    }
    end_everywhere(&attempt, dying)
}

/// Searches all processes of the machine.
fn end_everywhere(attempt: &AttemptFolder, dying: Option<Pid>) -> usize {
    let mut ended = 0;
    for _ in 0..ROUNDS_MAX {
        let found = everywhere(attempt, dying);
        if found.is_empty() {
            break;
        }
        ended += found.len();
        for pid in found {
            // The only errors are "no such process", and a process of another user, which is not ours.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    ended
}

/// The name of the lock in a work folder.
const LOCK_NAME: &str = ".lock";
/// The note of a process that was requested to stop: its name, its beginning, and the maximum number of bytes to read.
/// A boot id has 36 characters.
const NOTE_NAME: &str = ".lighthpc-drained";
const NOTE_START: &str = "lighthpc was asked to stop in boot ";
const NOTE_BYTES_MAX: u64 = 128;
/// The maximum number of folders in one warning.
const NAMED_MAX: usize = 5;

/// The lock of a work folder. Dropping it releases the lock.
#[derive(Debug)]
pub struct WorkLock {
    folder: OwnedFd,
    _lock: File,
}

impl WorkLock {
    /// Records that this process was requested to stop: if it does not finish, its remains do not count as a crash.
    ///
    /// # Errors
    /// The system's error.
    pub fn note_drain(&self) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut note = File::from(openat(&self.folder, NOTE_NAME, flags, Mode::RUSR | Mode::WUSR)?);
        note.write_all(format!("{NOTE_START}{}\n", boot_id()).as_bytes())
    }

    /// Returns whether the previous process was requested to stop in this boot, and removes its note. Other content
    /// with the note's name is not removed.
    fn take_note(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (mut note, boot) = (String::new(), boot_id());
        let opened = openat(&self.folder, NOTE_NAME, flags, Mode::empty()).map(File::from);
        let Ok(_) =
            opened.map_err(io::Error::from).and_then(|file| file.take(NOTE_BYTES_MAX).read_to_string(&mut note))
        else {
            return false;
        };
        let Some(noted) = note.strip_prefix(NOTE_START) else { return false };
        unlinkat(&self.folder, NOTE_NAME, AtFlags::empty()).ok();
        !boot.is_empty() && noted.trim() == boot
    }
}

/// Locks a work folder for this process. If it is the only process there, kills orphans of attempts whose process is
/// dead: a restarted node finds its earlier workload running. Returns the lock and those attempts. The caller removes
/// their folders ([`super::Removal`]), because that may take long.
///
/// Only folders with a valid lighthpc marker (see `folder.rs`) and a dead process are listed. If another living process
/// holds the lock, nothing is listed, and no lock is returned; each attempt has its own folder anyway.
///
/// # Errors
/// [`GroundError`]: the folder is not certainly this user's own, or a system call failed.
pub fn lock_work_dir(work_dir: &Path, deployment: &str) -> Result<(Option<WorkLock>, Vec<Left>), GroundError> {
    lock_opened(work_dir, ground::open(work_dir)?, deployment)
}

/// Works like [`lock_work_dir`], for a work folder in a trusted folder, whose parents are not checked.
///
/// # Errors
/// As [`lock_work_dir`].
pub fn lock_trusted_work_dir(work_dir: &Path, deployment: &str) -> Result<(Option<WorkLock>, Vec<Left>), GroundError> {
    lock_opened(work_dir, ground::make_checked(work_dir)?, deployment)
}

fn lock_opened(
    work_dir: &Path,
    folder: OwnedFd,
    deployment: &str,
) -> Result<(Option<WorkLock>, Vec<Left>), GroundError> {
    let system = |source: io::Error| GroundError::System { path: work_dir.to_owned(), source };
    let work_dir = std::path::absolute(work_dir).map_err(system)?;
    // An existing file with the lock's name is not followed, waited for, or written to.
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(&folder, LOCK_NAME, flags, Mode::RUSR | Mode::WUSR).map_err(|error| system(error.into()))?;
    let lock = File::from(lock);
    match lock.try_lock() {
        Ok(()) => {
            let lock = WorkLock { folder, _lock: lock };
            let was_drained = lock.take_note();
            list(&work_dir, deployment, was_drained).map(|left| (Some(lock), left)).map_err(system)
        }
        Err(TryLockError::WouldBlock) => Ok((None, Vec::new())),
        Err(TryLockError::Error(error)) => Err(system(error)),
    }
}

/// Checks whether attempts can have folders in a work folder: creates one with a file, and removes both.
///
/// # Errors
/// The system's error.
pub fn try_folder(work_dir: &Path) -> io::Result<()> {
    let parent = ground::make_checked(work_dir)?;
    let name = format!(".lighthpc-try-{:016x}", rand::random::<u64>());
    mkdirat(&parent, &name, Mode::RWXU)?;
    let folder = open_folder(&parent, &name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&folder, "file", flags, Mode::RUSR | Mode::WUSR).map(File::from).map_err(io::Error::from);
    let written = file.and_then(|mut file| file.write_all(b"lighthpc tries whether it can write here\n"));
    unlinkat(&folder, "file", AtFlags::empty()).ok();
    written.and(unlinkat(&parent, &name, AtFlags::REMOVEDIR).map_err(io::Error::from))
}

fn list(work_dir: &Path, deployment: &str, was_drained: bool) -> io::Result<Vec<Left>> {
    let mut left = Vec::new();
    let (mut earlier, mut kept) = (Vec::new(), Vec::new());
    // By name: otherwise the order of what follows depends on the file system.
    let mut entries: Vec<_> = std::fs::read_dir(work_dir)?.filter_map(Result::ok).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        // A link to a folder does not count.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        match folder::prove(work_dir, &name).and_then(Proven::abandoned) {
            Ok(Some(proven)) => {
                let ended = AttemptFolder::of(&entry.path()).map_or(0, |attempt| end_everywhere(&attempt, None));
                if ended > 0 {
                    tracing::warn!(
                        processes = ended,
                        "killed the workload of an earlier attempt, which was still running"
                    );
                }
                left.push(Left::of(work_dir, proven.marker, deployment, was_drained));
            }
            Ok(None) => tracing::debug!("{} is in use by another process", entry.path().display()),
            Err(Refusal::NoMarker) if is_of_an_earlier_version(&entry.path(), &name) => earlier.push(name),
            Err(Refusal::NoMarker) => {}
            Err(refusal @ Refusal::Foreign(_)) => kept.push(format!("{} ({refusal})", entry.path().display())),
            Err(Refusal::System(error)) => tracing::debug!("{} was skipped: {error}", entry.path().display()),
        }
    }
    if !kept.is_empty() {
        let named = kept.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        tracing::warn!(folders = kept.len(), "folders with a lighthpc marker were not removed: {named}");
    }
    if !earlier.is_empty() {
        let named: Vec<_> = earlier.iter().take(NAMED_MAX).map(|name| name.to_string_lossy()).collect();
        tracing::warn!(
            folders = earlier.len(),
            "{} contains folders of an earlier version of lighthpc, which have no marker and were not removed: {}; \
             remove them manually",
            work_dir.display(),
            named.join(", ")
        );
    }
    Ok(left)
}

/// Returns whether a folder is from a version without markers. Its name had 16 hexadecimal digits and the attempt, and
/// it contained a file `src`.
fn is_of_an_earlier_version(path: &Path, name: &OsStr) -> bool {
    let is_named = name.to_str().and_then(|name| name.split_once('-')).is_some_and(|(digest, attempt)| {
        digest.len() == 16
            && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !attempt.is_empty()
            && attempt.bytes().all(|byte| byte.is_ascii_digit())
    });
    is_named && path.join("src").symlink_metadata().is_ok_and(|meta| meta.is_file())
}

fn everywhere(attempt: &AttemptFolder, dying: Option<Pid>) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|&pid| pid != getpid() && attempt.owns(pid))
        .filter(|&pid| dying.is_none() || getpgid(Some(pid)).ok() != dying)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::folder::{Folder, MARKER_NAME};
    use super::*;
    use crate::domain::ids::{AttemptNumber, SrcId};
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::{Child, Command};
    use tokio_util::sync::CancellationToken;

    /// Takes the work folder, and removes what was left. Returns the lock, and whose attempts those were.
    fn lock_work_dir(work_dir: &Path, deployment: &str) -> io::Result<(Option<WorkLock>, Vec<String>)> {
        let (lock, left) = super::lock_work_dir(work_dir, deployment).map_err(io::Error::other)?;
        assert!(left.iter().all(|left| left.is_crash && left.attempt == AttemptNumber(1)));
        let tasks = left.iter().filter_map(|left| Some(left.src.as_ref()?.to_string())).collect();
        for left in &left {
            left.remove(false, &CancellationToken::new()).unwrap();
        }
        Ok((lock, tasks))
    }

    /// The folder of an attempt whose process has died.
    fn abandoned(work_dir: &Path, deployment: &str, src: &str) -> PathBuf {
        let folder = Folder::create(work_dir, deployment, &SrcId::new(src).unwrap(), AttemptNumber(1)).unwrap();
        folder.path().to_owned()
    }

    fn sleeper(folder: &Path) -> Child {
        let scratch = folder.join("workload/scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        Command::new("sleep").arg("60").env("LIGHTHPC_SCRATCH", scratch).spawn().unwrap()
    }

    #[test]
    fn only_what_runs_below_an_abandoned_folder_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let ours = abandoned(dir.path(), "table", "in/a b");
        let unmarked = dir.path().join("unmarked");
        let namesake = dir.path().join("elsewhere").join(ours.file_name().unwrap());
        let (mut our, mut others) = (sleeper(&ours), [sleeper(&unmarked), sleeper(&namesake)]);

        let (lock, left) = lock_work_dir(dir.path(), "table").unwrap();
        assert!(lock.is_some());
        assert_eq!(left, ["in/a b"]);

        assert!(!our.wait().unwrap().success());
        for other in &mut others {
            assert!(other.try_wait().unwrap().is_none());
            other.kill().unwrap();
            other.wait().unwrap();
        }
        assert!(!ours.exists());
        assert!(unmarked.join("workload/scratch").exists() && namesake.join("workload/scratch").exists());
    }

    /// A work folder may be somebody's home: what lighthpc did not make stays as it is.
    #[test]
    fn nothing_but_marked_folders_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        let ours = abandoned(&work, "table", "a");
        let elsewhere = abandoned(&dir.path().join("elsewhere"), "table", "b");
        let live = Folder::create(&work, "table", &SrcId::new("live").unwrap(), AttemptNumber(1)).unwrap();

        let path = |name: &str| work.join(name);
        std::fs::write(path("thesis.tex"), "x").unwrap();
        std::fs::write(path(MARKER_NAME), "x").unwrap();
        std::fs::create_dir_all(path("photos/2020")).unwrap();
        std::fs::create_dir(path("0123456789abcdef-1")).unwrap();
        std::fs::write(path("0123456789abcdef-1").join("src"), "earlier").unwrap();
        symlink(&elsewhere, path(elsewhere.file_name().unwrap().to_str().unwrap())).unwrap();
        symlink(&elsewhere, path("link")).unwrap();
        // Copied by a person: to another name, and to the same name in another work folder.
        let copy = |from: &Path, to: &Path| {
            assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
        };
        copy(&ours, &path("my-copy"));
        let other = dir.path().join("other");
        copy(&work, &other);
        let moved = dir.path().join("moved");
        std::fs::create_dir(&moved).unwrap();
        std::fs::rename(&elsewhere, moved.join("kept")).unwrap();

        assert_eq!(lock_work_dir(&work, "table").unwrap().1, ["a"]);
        let mut found: Vec<_> = std::fs::read_dir(&work)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| *name != live.name() && !name.contains("-1-"))
            .collect();
        found.sort();
        let stays = [MARKER_NAME, ".lock", "0123456789abcdef-1", "link", "my-copy", "photos", "thesis.tex"];
        let mut stays = stays.map(str::to_owned);
        stays.sort();
        assert_eq!(found, stays);
        assert!(!ours.exists() && live.path().exists() && path("photos/2020").exists());

        let before = std::fs::read_dir(&other).unwrap().count();
        assert!(lock_work_dir(&other, "table").unwrap().1.is_empty());
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), before + 1, "the lock alone is new");
        assert!(lock_work_dir(&moved, "table").unwrap().1.is_empty());
        assert!(moved.join("kept").join(MARKER_NAME).exists());
    }

    #[test]
    fn a_living_process_keeps_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        // The second process, which did not get the lock, works here while the first one ends and a third one starts.
        let second = Folder::create(dir.path(), "table", &SrcId::new("a").unwrap(), AttemptNumber(1)).unwrap();
        let (third, left) = lock_work_dir(dir.path(), "table").unwrap();
        assert!(third.is_some() && left.is_empty());
        assert!(second.path().exists());
        assert!(lock_work_dir(dir.path(), "table").unwrap().0.is_none(), "the lock is taken");
        drop((second, third));
        assert_eq!(lock_work_dir(dir.path(), "table").unwrap().1.len(), 1);
    }

    #[test]
    fn tasks_of_another_deployment_are_not_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = abandoned(dir.path(), "their-table", "a");
        let ours = abandoned(dir.path(), "table", "b");
        assert_eq!(lock_work_dir(dir.path(), "table").unwrap().1, ["b"]);
        assert!(!theirs.exists() && !ours.exists(), "both processes have died");
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        symlink(&precious, dir.path().join(LOCK_NAME)).unwrap();
        assert!(lock_work_dir(dir.path(), "table").is_err());
        assert!(!precious.exists());
    }
}
