//! The children of this process: the workloads, and what their descendants leave.
//!
//! This process is the subreaper of its descendants (`PR_SET_CHILD_SUBREAPER`): a process whose parent ends becomes its
//! child, whatever its process group, its session, and its environment are. So what a workload left is found among the
//! children, without a search of all processes of the machine.
//!
//! An orphan with `LIGHTHPC_SCRATCH` in its environment belongs to the attempt that this names. One without it could
//! belong to any workload that runs, so it is killed when none does.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpgid, getpgrp, getpid, kill_process, set_child_subreaper,
    waitid, waitpid,
};
use tokio::process::{Child, Command};

use super::processes::{self, AttemptFolder};

/// Whether this process is the subreaper.
static ADOPTS: AtomicBool = AtomicBool::new(false);
/// Locked for each start and each look at the children, so that a child is either an orphan or a leader here.
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// What is known of the children.
#[derive(Default)]
struct Known {
    /// The programs that run, which are waited for elsewhere.
    leaders: HashSet<Pid>,
    /// Orphans that did not end after SIGKILL: they wait for a disk. No later attempt waits for them again.
    unending: HashSet<Pid>,
}

impl Known {
    /// Waits for an orphan, if it has ended. Returns whether it is gone.
    fn reap(&mut self, orphan: Pid) -> bool {
        let is_gone = !matches!(waitpid(Some(orphan), WaitOptions::NOHANG), Ok(None));
        if is_gone {
            // From here on, another process may get its number.
            self.unending.remove(&orphan);
        }
        is_gone
    }
}

fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes this process the subreaper of its descendants, and returns whether it is. It is not if the kernel does not
/// list children, or if this process has children before its first workload: what they leave would come here, too.
///
/// Sources: prctl(2), proc_pid_task(5).
pub fn adopt_orphans() -> bool {
    if !ADOPTS.load(Ordering::SeqCst) && processes::adopted().is_some_and(|children| children.is_empty()) {
        ADOPTS.store(set_child_subreaper(Some(getpid())).is_ok(), Ordering::SeqCst);
    }
    ADOPTS.load(Ordering::SeqCst)
}

/// A program that runs, until the value is dropped.
#[derive(Debug)]
pub(super) struct Leader(Pid);

impl Leader {
    /// Returns the process group of the program: its own.
    pub(super) fn group(&self) -> Pid {
        self.0
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        known().leaders.remove(&self.0);
    }
}

/// Starts a program in a process group of its own.
///
/// # Errors
/// The system's error.
pub(super) fn start(command: &mut Command) -> io::Result<(Child, Option<Leader>)> {
    let mut known = known();
    let child = command.process_group(0).spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        known.leaders.insert(pid);
    }
    Ok((child, pid.map(Leader)))
}

/// How long the end of an attempt looks for orphans and waits for their ends. A process that does not end by then waits
/// for a disk.
const LOOKS_TIME: Duration = Duration::from_secs(2);
/// The pause between two checks whether a killed process has ended.
const WAIT: Duration = Duration::from_millis(2);

/// Kills what the workload of an attempt left, and returns the number of processes. Blocks. Processes of the group
/// `dying`, which was already killed, are not counted. Returns `None` if this process is not the subreaper, or if there
/// may be more.
///
/// Only children are killed: the kernel gives the number of a child to no other process before it is waited for. What
/// they leave comes here, and is killed next.
pub(super) fn end_orphans(attempt: &AttemptFolder, dying: Option<Pid>) -> Option<usize> {
    if !ADOPTS.load(Ordering::SeqCst) {
        return None;
    }
    let (mut ours, mut killed, mut dying_yet) = (HashSet::new(), HashSet::new(), Vec::new());
    let deadline = Instant::now() + LOOKS_TIME;
    while Instant::now() < deadline {
        let look = look(attempt, dying, &mut ours, &mut killed);
        if !look.has_reaped && look.dying.is_empty() {
            return Some(killed.len());
        }
        dying_yet = look.dying;
        loop {
            dying_yet.retain(|&child| !known().reap(child));
            if dying_yet.is_empty() || Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(WAIT);
        }
    }
    known().unending.extend(dying_yet);
    None
}

/// What a look at the children found.
#[derive(Default)]
struct Look {
    /// Whether a child had ended: what it left came after the list was read.
    has_reaped: bool,
    /// Children that were killed and have not ended yet.
    dying: Vec<Pid>,
}

/// Looks at the children once, and kills those of the attempt. `ours` are processes that such children started.
fn look(attempt: &AttemptFolder, dying: Option<Pid>, ours: &mut HashSet<Pid>, killed: &mut HashSet<Pid>) -> Look {
    // In this order: a program that the list has is among the leaders by now.
    let mut orphans = adopted();
    let running = known().leaders.clone();
    orphans.retain(|child| !running.contains(child));
    for &child in &orphans {
        // Without the lock: the kernel may let this wait for the process.
        let tree = processes::tree(child);
        // What a process starts is its attempt's, also if it clears its environment.
        if tree.iter().any(|&pid| ours.contains(&pid) || attempt.owns(pid)) {
            ours.extend(tree);
        }
    }

    let mut look = Look::default();
    let mut known = known();
    let is_alone = known.leaders.is_empty();
    for child in orphans {
        if known.leaders.contains(&child) {
            continue;
        }
        if known.reap(child) {
            look.has_reaped = true;
        } else if known.unending.contains(&child) {
            // It has got its SIGKILL.
        } else if dying.is_some() && getpgid(Some(child)).ok() == dying {
            look.dying.push(child);
        } else if is_alone || ours.contains(&child) {
            match kill_process(child, Signal::KILL) {
                Ok(()) => {
                    killed.insert(child);
                    look.dying.push(child);
                }
                // Of another user: the system ends it, or a person.
                Err(error) => tracing::debug!("process {child:?}, which a workload left, cannot be killed: {error}"),
            }
        }
    }
    look
}

/// Removes the orphans that have ended from the kernel's list of processes: a workload that runs for days may leave
/// thousands.
pub(super) fn reap() {
    if !ADOPTS.load(Ordering::SeqCst) {
        return;
    }
    // One system call if there is none.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    if !matches!(waitid(WaitId::All, ended), Ok(Some(_))) {
        return;
    }
    let children = adopted();
    // If the lock is held, the next call does it.
    let Ok(mut known) = KNOWN.try_lock() else { return };
    for child in children {
        if !known.leaders.contains(&child) {
            known.reap(child);
        }
    }
}

/// Returns the children, except helpers of this process: they are in its group, and their callers wait for them.
fn adopted() -> Vec<Pid> {
    let own = getpgrp();
    let mut children = processes::adopted().unwrap_or_default();
    children.retain(|pid| getpgid(Some(*pid)) != Ok(own));
    children
}

/// Held by each test that runs a workload: where tests share a process, they share its children.
#[cfg(test)]
pub(super) static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[cfg(test)]
mod tests {
    use super::super::run::{Bounds, Exit, Stops};
    use super::super::{Workload, WorkloadEnv};
    use super::*;
    use crate::domain::ids::{AttemptNumber, SrcId};
    use crate::domain::progress::Progress;
    use rustix::process::test_kill_process;
    use std::path::Path;
    use tokio::sync::watch;

    const BOUNDS: Bounds = Bounds { time_limit: None, grace: Duration::from_secs(1), echo: false, sandbox: None };
    /// A process in a session and a group of its own, without the workload's variables.
    const HIDDEN: &str = "env -i $(command -v setsid) $(command -v sh) -c \"echo \\$\\$ > $LIGHTHPC_SCRATCH/pid; \
                          exec $(command -v sleep) 300\" & until [ -s $LIGHTHPC_SCRATCH/pid ]; do sleep 0.01; done";
    const MARKED: &str = "setsid sh -c 'echo $$ > $LIGHTHPC_SCRATCH/pid; exec sleep 300' & \
                          until [ -s $LIGHTHPC_SCRATCH/pid ]; do sleep 0.01; done";

    /// Runs a workload, and returns the process that it left.
    async fn left_by(dir: &Path, script: &str) -> (Pid, WorkloadEnv) {
        let env = WorkloadEnv::prepare(dir, "t", SrcId::new("a").unwrap(), None, AttemptNumber(1)).unwrap();
        let progress = watch::Sender::new(Progress::default());
        let ended = Workload::Shell(script.to_owned()).run(&env, BOUNDS, &progress, &Stops::default()).await.unwrap();
        assert!(matches!(ended, Exit::Exited { code: Some(0), .. }), "{ended:?}");
        let pid = std::fs::read_to_string(env.scratch().join("pid")).unwrap();
        (Pid::from_raw(pid.trim().parse().unwrap()).unwrap(), env)
    }

    /// Also true for a process that has ended, and that nobody has waited for.
    fn is_there(pid: Pid) -> bool {
        test_kill_process(pid).is_ok()
    }

    #[tokio::test]
    async fn a_process_that_left_its_group_and_cleared_its_environment_does_not_outlive_the_attempt() {
        let _alone = ALONE.lock().await;
        assert!(adopt_orphans());
        let dir = tempfile::tempdir().unwrap();
        for script in [HIDDEN, MARKED, &format!("({HIDDEN}) &\nwait"), &format!("setsid sh -c '{HIDDEN}'")] {
            let (pid, _env) = left_by(dir.path(), script).await;
            assert!(!is_there(pid), "{script}");
        }
    }

    #[tokio::test]
    async fn beside_another_workload_only_ones_own_processes_are_ended() {
        let _alone = ALONE.lock().await;
        assert!(adopt_orphans());
        let dir = tempfile::tempdir().unwrap();
        let (mut other, leader) = start(Command::new("sleep").arg("300")).unwrap();
        let (marked, _env) = left_by(dir.path(), MARKED).await;
        assert!(!is_there(marked));
        let (hidden, env) = left_by(dir.path(), HIDDEN).await;
        assert!(is_there(hidden), "it could be the other workload's");

        other.kill().await.unwrap();
        drop(leader);
        assert_eq!(end_orphans(&AttemptFolder::of(env.folder()).unwrap(), None), Some(1));
        assert!(!is_there(hidden));
    }

    #[tokio::test]
    async fn a_process_that_did_not_end_after_sigkill_is_not_waited_for_again() {
        let _alone = ALONE.lock().await;
        assert!(adopt_orphans());
        let dir = tempfile::tempdir().unwrap();
        let (mut other, leader) = start(Command::new("sleep").arg("300")).unwrap();
        let (hidden, env) = left_by(dir.path(), HIDDEN).await;
        other.kill().await.unwrap();
        drop(leader);
        known().unending.insert(hidden);
        let folder = AttemptFolder::of(env.folder()).unwrap();
        assert_eq!(end_orphans(&folder, None), Some(0));

        // Its number is forgotten with it.
        kill_process(hidden, Signal::KILL).unwrap();
        while is_there(hidden) {
            assert_eq!(end_orphans(&folder, None), Some(0));
        }
        assert!(known().unending.is_empty());
    }

    #[tokio::test]
    async fn orphans_that_have_ended_are_removed_while_the_workload_runs() {
        let _alone = ALONE.lock().await;
        assert!(adopt_orphans());
        let mut command = Command::new("sh");
        let (mut workload, _leader) = start(command.args(["-c", "(sleep 0 &); exec sleep 300"])).unwrap();
        while processes::adopted().unwrap().is_empty() {
            tokio::time::sleep(WAIT).await;
        }
        while !processes::adopted().unwrap().is_empty() {
            reap();
            tokio::time::sleep(WAIT).await;
        }
        assert!(workload.try_wait().unwrap().is_none(), "the workload is not waited for here");
        workload.kill().await.unwrap();
    }

    #[tokio::test]
    async fn a_helper_of_this_process_is_left_alone() {
        let _alone = ALONE.lock().await;
        assert!(adopt_orphans());
        let dir = tempfile::tempdir().unwrap();
        // An orphan of this process's own group.
        let helper = Command::new("sh").args(["-c", "sleep 300 > /dev/null 2>&1 & echo $!"]).output().await.unwrap();
        let helper = String::from_utf8(helper.stdout).unwrap().trim().parse().unwrap();
        let helper = Pid::from_raw(helper).unwrap();
        left_by(dir.path(), MARKED).await;
        assert!(is_there(helper));
        kill_process(helper, Signal::KILL).unwrap();
    }
}
