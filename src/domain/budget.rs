//! Whether a task whose attempt ended badly is tried again.

use super::verdict::{Budget, Verdict};

/// How often a task is tried again, by kind of ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Application failures in all, the last one included, before the task is failed. Default 3.
    pub max_attempts: u64,
    /// Interruptions before the task is failed. Default 20: a Spot pool that takes a machine back
    /// twenty times will not give the task its time.
    pub max_interruptions: u64,
    /// How often a final application failure (`app-error`, `no-result`, `oom`) is tried again. Default 0.
    pub retry_app_errors: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_attempts: 3, max_interruptions: 20, retry_app_errors: 0 }
    }
}

/// How often a node may crash while a task runs alone on it; the last of these crashes fails the task. Once may be the
/// machine's doing, and three times in a row, each on its own, is hardly chance.
pub const CRASHES_MAX: u64 = 3;

/// How large what a task stores may be. A hole of a sparse file counts: S3 stores it as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimits {
    /// The bytes of a result. Default 1 TiB: half an hour at the 5 Gbit/s of eight connections, and 23 USD a month.
    pub result_bytes: u64,
    /// The files of a folder result. Default 100,000: a commit waits for all of them, and each is a request or more.
    pub result_files: usize,
    /// The bytes of a checkpoint. Default 256 GiB: seven minutes at 5 Gbit/s, when a save is begun every five.
    pub checkpoint_bytes: u64,
    /// The files, folders, and links of a checkpoint. Default 10,000: a save under a Spot notice has two minutes.
    pub checkpoint_files: usize,
}

impl Default for SizeLimits {
    fn default() -> Self {
        Self { result_bytes: 1 << 40, result_files: 100_000, checkpoint_bytes: 256 << 30, checkpoint_files: 10_000 }
    }
}

/// How an attempt ended, as far as trying again is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the same again may succeed: exit 75 (`EX_TEMPFAIL`), a time-out, a fault around the workload.
    pub may_pass: bool,
    /// Whether a budget counts it: not what other tasks of the machine have done.
    pub is_counted: bool,
}

/// What becomes of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Back to `pending`.
    Release,
    /// `failed`, and counted in the mission's `transFailed`.
    Fail,
}

/// Decides what becomes of a task, given the counts *before* this ending.
#[must_use]
pub fn decide(ending: Ending, app_failures: u64, interruptions: u64, limits: Limits) -> Next {
    let again = match ending.verdict.budget() {
        _ if !ending.is_counted => true,
        Budget::None => false,
        Budget::Interruption => interruptions < limits.max_interruptions,
        Budget::Application if ending.may_pass => app_failures + 1 < limits.max_attempts,
        Budget::Application => app_failures < limits.retry_app_errors,
    };
    if again { Next::Release } else { Next::Fail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(verdict: Verdict, may_pass: bool, app: u64, int: u64) -> Next {
        decide(Ending { verdict, may_pass, is_counted: true }, app, int, Limits::default())
    }

    #[test]
    fn an_application_error_is_final_unless_asked() {
        assert_eq!(next(Verdict::AppError, false, 0, 0), Next::Fail);
        let limits = Limits { retry_app_errors: 2, ..Limits::default() };
        let ending = Ending { verdict: Verdict::AppError, may_pass: false, is_counted: true };
        assert_eq!(decide(ending, 1, 0, limits), Next::Release);
        assert_eq!(decide(ending, 2, 0, limits), Next::Fail);
    }

    #[test]
    fn a_failure_that_may_pass_gets_three_attempts() {
        for verdict in [Verdict::AppError, Verdict::Timeout, Verdict::Infra] {
            assert_eq!(next(verdict, true, 0, 19), Next::Release);
            assert_eq!(next(verdict, true, 1, 0), Next::Release);
            assert_eq!(next(verdict, true, 2, 0), Next::Fail);
        }
    }

    #[test]
    fn what_no_budget_counts_is_always_handed_back() {
        for verdict in Verdict::ALL {
            for may_pass in [true, false] {
                let ending = Ending { verdict, may_pass, is_counted: false };
                assert_eq!(decide(ending, 99, 99, Limits::default()), Next::Release, "{verdict}");
            }
        }
    }

    #[test]
    fn interruptions_have_a_budget_of_their_own() {
        for verdict in [Verdict::SpotInterrupted, Verdict::Lost, Verdict::Cancelled] {
            assert_eq!(next(verdict, true, 99, 19), Next::Release);
            assert_eq!(next(verdict, true, 0, 20), Next::Fail);
        }
    }
}
