//! Whether a task is retried after a failed attempt.

use super::verdict::{Budget, Verdict};

/// How often a task is retried, by kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Application failures in all, the last one included, before the task is failed. Default 3.
    pub max_attempts: u64,
    /// Interruptions before the task is failed. Default 20: a Spot pool that takes a machine back
    /// twenty times will not give the task its time.
    pub max_interruptions: u64,
    /// How often a final application failure (`app-error`, `no-result`, `oom`) is retried. Default 0.
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

/// A failed attempt, as the decision on a retry needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureClass {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether another attempt may succeed: exit 75 (`EX_TEMPFAIL`), a time-out, a fault around the workload.
    pub is_transient: bool,
    /// Whether a budget counts it: failures that other tasks of the machine have caused are not counted.
    pub is_counted: bool,
}

/// What to do with the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Back to `pending`.
    Release,
    /// `failed`, and counted in the mission's `transFailed`.
    Fail,
}

/// Decides what to do with a task, given the counts *before* this failure.
#[must_use]
pub fn decide(failure: FailureClass, app_failures: u64, interruptions: u64, limits: Limits) -> Disposition {
    let again = match failure.verdict.budget() {
        _ if !failure.is_counted => true,
        Budget::None => false,
        Budget::Interruption => interruptions < limits.max_interruptions,
        Budget::Application if failure.is_transient => app_failures + 1 < limits.max_attempts,
        Budget::Application => app_failures < limits.retry_app_errors,
    };
    if again { Disposition::Release } else { Disposition::Fail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(verdict: Verdict, is_transient: bool, app: u64, int: u64) -> Disposition {
        decide(FailureClass { verdict, is_transient, is_counted: true }, app, int, Limits::default())
    }

    #[test]
    fn an_application_error_is_final_unless_asked() {
        assert_eq!(next(Verdict::AppError, false, 0, 0), Disposition::Fail);
        let limits = Limits { retry_app_errors: 2, ..Limits::default() };
        let failure = FailureClass { verdict: Verdict::AppError, is_transient: false, is_counted: true };
        assert_eq!(decide(failure, 1, 0, limits), Disposition::Release);
        assert_eq!(decide(failure, 2, 0, limits), Disposition::Fail);
    }

    #[test]
    fn a_transient_failure_gets_three_attempts() {
        for verdict in [Verdict::AppError, Verdict::Timeout, Verdict::Infra] {
            assert_eq!(next(verdict, true, 0, 19), Disposition::Release);
            assert_eq!(next(verdict, true, 1, 0), Disposition::Release);
            assert_eq!(next(verdict, true, 2, 0), Disposition::Fail);
        }
    }

    #[test]
    fn what_no_budget_counts_is_always_handed_back() {
        for verdict in Verdict::ALL {
            for is_transient in [true, false] {
                let failure = FailureClass { verdict, is_transient, is_counted: false };
                assert_eq!(decide(failure, 99, 99, Limits::default()), Disposition::Release, "{verdict}");
            }
        }
    }

    #[test]
    fn interruptions_have_a_budget_of_their_own() {
        for verdict in [Verdict::SpotInterrupted, Verdict::Lost, Verdict::Cancelled] {
            assert_eq!(next(verdict, true, 99, 19), Disposition::Release);
            assert_eq!(next(verdict, true, 0, 20), Disposition::Fail);
        }
    }
}
