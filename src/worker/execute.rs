//! Step 4: run the workload, and interpret how it ended.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Attempt;
use super::checkpoint::Checkpoints;
use super::heartbeat::{Heartbeat, TimeCost};
use super::host::Host;
use super::outcome::{AttemptFailure, StopReason, of_disk};
use super::spot::{FINAL_WRITES_TIME, SpotWatcher, speed, upload_time};
use super::{Node, NodeError, checkpoint_size, log};
use crate::domain::verdict::Verdict;
use crate::workload::{Exit, Stops, Workload, WorkloadEnv, is_of_machine};

/// `EX_TEMPFAIL` of sysexits.h: try again.
const EXIT_TRY_AGAIN: i32 = 75;

impl Attempt {
    /// Runs the workload until it exits, the lease is lost, the node drains, or a Spot notice arrives; saves
    /// checkpoints on the way. Returns the workload's exit code, which is 0.
    pub(super) async fn execute(&mut self, workload: &Workload, env: &WorkloadEnv) -> Result<i32, StopReason> {
        let Self { host: Host { node, spot, .. }, heartbeat, checkpoints, fence, .. } = self;
        let heartbeat = &*heartbeat;
        let stops = Stops { hurry: node.stopping.hurry.clone(), ..Stops::default() };
        heartbeat.time_cost.send_modify(TimeCost::start);
        let run = workload.run(env, node.settings.bounds.clone(), &heartbeat.progress, &stops);
        let watch = async {
            // Only the first of them matters, and the run is waited for in any case.
            tokio::select! {
                () = heartbeat.lost.cancelled() => {}
                () = heartbeat.cancelled.cancelled() => {}
                () = node.stopping.drain.cancelled() => {
                    let grace = node.settings.bounds.grace.min(node.stopping.grace_max());
                    stops.grace.send_replace(Some(grace));
                }
                deadline = spot.wait_for_notice() => {
                    stops.grace.send_replace(Some(grace_under_notice(node, env, deadline).await));
                }
            }
            stops.stop.cancel();
            std::future::pending::<()>().await;
        };
        let logs = log::save_periodically(node, env, fence);
        let (report, saves) = (mirror(node, heartbeat), save_periodically(node, spot, checkpoints));
        // The run is the only arm that ends; a save that is dropped leaves the one before in the row.
        let ended = tokio::select! {
            ended = run => ended,
            () = watch => unreachable!("the watch never ends"),
            () = report => unreachable!("the mirror never ends"),
            () = saves => unreachable!("the saves never end"),
            () = logs => unreachable!("the logs never end"),
        };
        heartbeat.time_cost.send_modify(TimeCost::stop);
        if heartbeat.lost.is_cancelled() {
            return Err(StopReason::LeaseLost);
        }
        let early = match spot.deadline() {
            Some(deadline) => Some(StopReason::Interrupted(deadline)),
            None if heartbeat.cancelled.is_cancelled() => Some(StopReason::Cancelled),
            None => node.stopping.drain.is_cancelled().then_some(StopReason::Drain),
        };
        let disk = |source| NodeError::Disk { doing: "running the workload in", path: env.folder().to_owned(), source };
        let (ended, early) = match (ended, early) {
            (Ok(ended), early) => (ended, early),
            // A failure while the workload was being stopped is not the task's.
            (Err(_), Some(early)) => return Err(early),
            (Err(error), None) => return Err(of_disk(disk(error))),
        };
        judge(ended, early, node.settings.disk.is_full(env.folder()))
    }
}

/// Returns the workload's grace under a Spot notice: all the time there is, less what the save of a checkpoint and the
/// final writes need; a third of it at least.
async fn grace_under_notice(node: &Node, env: &WorkloadEnv, deadline: Instant) -> Duration {
    let budget = deadline.saturating_duration_since(Instant::now());
    let save_bytes = checkpoint_size::bytes_to_save(env, node.settings.sizes).await;
    let save = upload_time(save_bytes, speed(&node.backend.store));
    budget.saturating_sub(FINAL_WRITES_TIME + save).max(budget / 3)
}

/// Saves the checkpoint every few minutes, and once when EC2 recommends a rebalance. Never ends.
async fn save_periodically(node: &Node, spot: &SpotWatcher, checkpoints: &mut Option<Checkpoints>) {
    let mut is_recommended = false;
    loop {
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(node.settings.checkpoint_every) => {}
            () = spot.rebalance.cancelled(), if !is_recommended => is_recommended = true,
        }
        if let Some(checkpoints) = checkpoints {
            checkpoints.save_or_note(node).await;
        }
    }
}

/// Copies the workload's progress to the node's report. Never ends.
async fn mirror(node: &Node, heartbeat: &Heartbeat) {
    let mut progress = heartbeat.progress.subscribe();
    loop {
        let now = *progress.borrow_and_update();
        node.settings.report.send_modify(|report| report.progress = now);
        if progress.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Returns a signal's number and name. Source: signal(7); the numbers are those of x86 and ARM.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL: an illegal instruction",
        6 => "SIGABRT: it aborted itself",
        7 => "SIGBUS: a memory or disk error",
        8 => "SIGFPE: an arithmetic error",
        9 => "SIGKILL",
        11 => "SIGSEGV: an invalid memory access",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU: its limit of CPU time",
        25 => "SIGXFSZ: its limit of file size",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// Interprets how a workload ended. `early` is why it was stopped, if it was; `is_full` says whether the disk is full.
fn judge(ended: Exit, early: Option<StopReason>, is_full: bool) -> Result<i32, StopReason> {
    let failed = |how: String, exit_code, signal, is_transient| {
        let failure = AttemptFailure::new(Verdict::AppError, is_transient, NodeError::WorkloadFailed { how });
        Err(AttemptFailure { exit_code, signal, ..failure }.into())
    };
    match (ended, early) {
        (Exit::Exited { code: Some(0), .. }, _) => Ok(0),
        (Exit::Stopped, early) => Err(early.unwrap_or(StopReason::Drain)),
        // A shutdown's signal reaches the workload too, perhaps before it reaches us.
        (Exit::Exited { signal: Some(_), .. }, Some(early)) => Err(early),
        (Exit::Exited { .. }, _) if is_full => {
            Err(AttemptFailure::new(Verdict::DiskFull, true, NodeError::WorkloadDiskFull).into())
        }
        (Exit::Exited { code: Some(code), .. }, _) if code == EXIT_TRY_AGAIN => {
            failed(format!("exited with code {code} (try again)"), Some(code), None, true)
        }
        (Exit::Exited { code, signal, out_of_memory: true }, _) => {
            let failure = AttemptFailure::new(Verdict::Oom, false, NodeError::OutOfMemory);
            Err(AttemptFailure { exit_code: code, signal, ..failure }.into())
        }
        (Exit::Exited { code: Some(code), .. }, _) => {
            failed(format!("exited with code {code}"), Some(code), None, false)
        }
        (Exit::Exited { signal, .. }, _) => {
            failed(format!("was killed by {}", signal_name(signal.unwrap_or(0))), None, signal, false)
        }
        (Exit::TimedOut, _) => Err(AttemptFailure::new(Verdict::Timeout, true, NodeError::TimeLimit).into()),
        (Exit::NotStarted { program, source }, early) => {
            let is_machines = is_of_machine(&source);
            if let (true, Some(early)) = (is_machines, early) {
                return Err(early);
            }
            let verdict = if is_machines { Verdict::Infra } else { Verdict::AppError };
            Err(AttemptFailure::new(verdict, is_machines, NodeError::NotStarted { program, source }).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(ended: Exit, is_full: bool) -> (Verdict, bool) {
        match judge(ended, None, is_full) {
            Err(StopReason::Failed(failure)) => (failure.class.verdict, failure.class.is_transient),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_start_that_the_machine_refuses_is_not_the_tasks_failure() {
        let not_started =
            |code| Exit::NotStarted { program: "p".to_owned(), source: std::io::Error::from_raw_os_error(code) };
        // Linux: EAGAIN, ENOMEM, ENFILE, EMFILE, ETXTBSY, EINTR, EIO.
        for code in [11, 12, 23, 24, 26, 4, 5] {
            assert_eq!(verdict_of(not_started(code), false), (Verdict::Infra, true), "{code}");
        }
        // ENOENT, E2BIG, ENOEXEC, EACCES.
        for code in [2, 7, 8, 13] {
            assert_eq!(verdict_of(not_started(code), false), (Verdict::AppError, false), "{code}");
        }
        let drained = judge(not_started(11), Some(StopReason::Drain), false);
        assert!(matches!(drained, Err(StopReason::Drain)), "{drained:?}");
    }

    #[test]
    fn bytes_quota_and_inodes_are_one_verdict() {
        // ENOSPC, for bytes and inodes alike, and EDQUOT.
        for (code, verdict) in [(28, Verdict::DiskFull), (122, Verdict::DiskFull), (5, Verdict::Infra)] {
            let source = std::io::Error::from_raw_os_error(code);
            let stop = of_disk(NodeError::Disk { doing: "writing", path: "/".into(), source });
            assert!(matches!(stop, StopReason::Failed(failure) if failure.class.verdict == verdict), "{code}");
        }
        let failed = Exit::Exited { code: Some(1), signal: None, out_of_memory: false };
        assert_eq!(verdict_of(failed, true).0, Verdict::DiskFull);
        let again = Exit::Exited { code: Some(EXIT_TRY_AGAIN), signal: None, out_of_memory: false };
        assert_eq!(verdict_of(again, true).0, Verdict::DiskFull);
    }
}
