//! Lists processes by their parents, and finds those of an attempt, from `/proc`.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, getpid};

/// The most processes of a tree that are looked at: a sample of its memory takes some ms then.
const PROCESSES_MAX: usize = 512;
/// The most threads of a process whose children are looked up.
const THREADS_MAX: usize = 64;

/// Returns the processes that this process has adopted, and the children of its first thread; `None` if the kernel does
/// not list them. The kernel gives orphans to the first thread that runs, which here is that of `main`.
///
/// Sources: `proc_pid_task(5)`; `find_new_reaper` in the kernel's `kernel/exit.c`.
pub(super) fn adopted() -> Option<Vec<Pid>> {
    let own = getpid().as_raw_nonzero();
    Some(ids(&std::fs::read_to_string(format!("/proc/self/task/{own}/children")).ok()?))
}

/// Returns a process and its descendants.
pub(super) fn tree(root: Pid) -> Vec<Pid> {
    let mut found = vec![root];
    let mut seen = 0;
    while seen < found.len() && found.len() < PROCESSES_MAX {
        found.extend(children(found[seen]));
        seen += 1;
    }
    found.truncate(PROCESSES_MAX);
    found
}

/// Returns the children of a process. Each thread has its own list.
fn children(process: Pid) -> Vec<Pid> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())) else { return Vec::new() };
    let lists = threads
        .take(THREADS_MAX)
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists.flat_map(|list| ids(&list)).collect()
}

fn ids(list: &str) -> Vec<Pid> {
    list.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect()
}

/// The identity of an attempt's folder, which its processes have in their environment.
#[derive(Debug)]
pub(super) struct AttemptFolder {
    name: OsString,
    device: u64,
    inode: u64,
}

impl AttemptFolder {
    /// Returns the identity of a folder; `None` if it cannot be read.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        let meta = folder.symlink_metadata().ok()?;
        Some(Self { name: folder.file_name()?.to_owned(), device: meta.dev(), inode: meta.ino() })
    }

    /// Returns whether a process has this folder in its environment.
    pub(super) fn owns(&self, process: Pid) -> bool {
        scratch_of(process).is_some_and(|scratch| is_below(Path::new(&scratch), self))
    }
}

fn scratch_of(process: Pid) -> Option<OsString> {
    let environment = std::fs::read(format!("/proc/{}/environ", process.as_raw_nonzero())).ok()?;
    let value = environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(b"LIGHTHPC_SCRATCH="))?;
    Some(OsStr::from_bytes(value).to_owned())
}

/// Returns whether a path goes through this same folder, by any name of the work folder. Another folder may have the
/// same name. Only paths with the name are resolved, because a process may have set the variable to any value.
fn is_below(scratch: &Path, attempt: &AttemptFolder) -> bool {
    let is_it = |meta: Metadata| meta.is_dir() && (meta.dev(), meta.ino()) == (attempt.device, attempt.inode);
    scratch.is_absolute()
        && scratch
            .ancestors()
            .skip(1)
            .filter(|path| path.file_name() == Some(&attempt.name))
            .any(|path| path.symlink_metadata().is_ok_and(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_has_the_children_of_children() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 100 & wait"]).spawn().unwrap();
        let root = Pid::from_child(&child);
        let found = loop {
            let found = tree(root);
            if found.len() > 1 {
                break found;
            }
        };
        assert_eq!(found[0], root);
        assert!(tree(getpid()).contains(&root));
        for pid in found {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        child.wait().unwrap();
        assert_eq!(tree(root), [root], "it has none any more");
    }
}
