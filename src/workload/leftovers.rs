//! What is left of a workload: processes that left its group, and those of a node that died.
//!
//! A process group is what a signal reaches; a daemonised descendant is in another. But every descendant inherits the
//! contract's variables, and `LIGHTHPC_SCRATCH` names the attempt's folder, so they are found by that. (One that
//! clears its environment is out of reach here; on the AMI, its unit's cgroup ends it.)

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::contract::SRC_NAME;
use crate::domain::ids::SrcId;

use rustix::process::{Pid, Signal, getpgid, kill_process};

/// How often `/proc` is gone through: a process may fork between the look and the signal.
const ROUNDS_MAX: u32 = 5;

/// Ends every process whose `LIGHTHPC_SCRATCH` is below `folder`, and returns how many there were; those of a process group
/// that was ended already, and may still be dying, are left out.
pub(super) fn end_below(folder: &Path, dying: Option<Pid>) -> usize {
    let mut ended = 0;
    for _ in 0..ROUNDS_MAX {
        let found = below(folder, dying);
        if found.is_empty() {
            break;
        }
        ended += found.len();
        for pid in found {
            // The only refusals are "no such process", and another user's, which is none of ours.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    ended
}

/// The name of the lock in a work folder.
const LOCK_NAME: &str = ".lock";

/// Takes a work folder for this process. If it is the only one there, removes what dead attempts left in it, and ends what
/// still runs of them: a node that was restarted finds its earlier workload at work. If another living process uses the
/// folder, nothing is removed, and `None` is returned; attempts have folders of their own. Returns also which tasks the dead
/// attempts were at.
///
/// # Errors
/// The system's.
pub fn take(work_dir: &Path) -> io::Result<(Option<File>, Vec<SrcId>)> {
    let work_dir = std::path::absolute(work_dir)?;
    std::fs::create_dir_all(&work_dir)?;
    let lock = File::options().create(true).truncate(false).write(true).open(work_dir.join(LOCK_NAME))?;
    match lock.try_lock() {
        Ok(()) => clear(&work_dir).map(|left| (Some(lock), left)),
        Err(TryLockError::WouldBlock) => Ok((None, Vec::new())),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn clear(work_dir: &Path) -> io::Result<Vec<SrcId>> {
    let is_ours = |entry: &std::fs::DirEntry| entry.file_name() != LOCK_NAME;
    let left: Vec<_> = std::fs::read_dir(work_dir)?.filter_map(Result::ok).filter(is_ours).collect();
    if left.is_empty() {
        return Ok(Vec::new());
    }
    let ended = end_below(work_dir, None);
    if ended > 0 {
        tracing::warn!(processes = ended, "the workload of an earlier attempt still ran, and was ended");
    }
    let mut srcs = Vec::new();
    for entry in left {
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            srcs.extend(std::fs::read_to_string(path.join(SRC_NAME)).ok().and_then(|src| SrcId::new(src).ok()));
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        // One that stays takes room, and must not keep the others, or their tasks, from being found.
        if let Err(error) = removed {
            tracing::warn!("{} is left behind: {error}", path.display());
        }
    }
    Ok(srcs)
}

fn below(folder: &Path, dying: Option<Pid>) -> Vec<Pid> {
    let mut prefix = b"LIGHTHPC_SCRATCH=".to_vec();
    prefix.extend_from_slice(folder.as_os_str().as_bytes());
    prefix.push(b'/');
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let is_below = |environment: Vec<u8>| environment.split(|&byte| byte == 0).any(|entry| entry.starts_with(&prefix));
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(is_below))
        .filter_map(Pid::from_raw)
        .filter(|&pid| dying.is_none() || getpgid(Some(pid)).ok() != dying)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_what_runs_below_the_folder_is_ended() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let sleeper = |folder: &Path| {
            let scratch = folder.join("attempt/scratch");
            std::fs::create_dir_all(&scratch).unwrap();
            Command::new("sleep").arg("60").env("LIGHTHPC_SCRATCH", scratch).spawn().unwrap()
        };
        let (mut our, mut their) = (sleeper(ours.path()), sleeper(theirs.path()));

        std::fs::write(ours.path().join("attempt").join(SRC_NAME), "in/a b").unwrap();

        let (lock, left) = take(ours.path()).unwrap();
        assert!(lock.is_some());
        assert_eq!(left, [SrcId::new("in/a b").unwrap()]);

        assert!(!our.wait().unwrap().success());
        assert!(their.try_wait().unwrap().is_none());
        their.kill().unwrap();
        their.wait().unwrap();
        assert!(!ours.path().join("attempt").exists());
        assert!(theirs.path().join("attempt").exists());
    }
}
