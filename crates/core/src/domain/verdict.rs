//! Why an attempt ended.

use std::fmt;

/// Why an attempt ended: the value of `verdict` in the tasks table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The result is committed.
    Ok,
    /// The workload ended with a code that is not 0, or by a signal of its own making.
    AppError,
    /// The kernel killed the workload because memory ran out.
    Oom,
    /// The attempt's time limit passed.
    Timeout,
    /// The workload ended well but wrote no result.
    NoResult,
    /// The disk is full.
    DiskFull,
    /// EC2 took the Spot instance back.
    SpotInterrupted,
    /// The attempt ended without a report: its machine or its lease was gone.
    Lost,
    /// A person or a signal stopped the attempt.
    Cancelled,
    /// Something around the workload failed: input, network, permissions.
    Infra,
}

/// Which of the two budgets an ended attempt is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Neither: the attempt succeeded.
    None,
    /// `appFailures`, bounded by `--max-attempts`.
    Application,
    /// `interruptions`, bounded by `--max-interruptions`.
    Interruption,
}

impl Verdict {
    /// Every verdict, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::AppError,
        Self::Oom,
        Self::Timeout,
        Self::NoResult,
        Self::DiskFull,
        Self::SpotInterrupted,
        Self::Lost,
        Self::Cancelled,
        Self::Infra,
    ];

    /// Returns the word that is written in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::AppError => "app-error",
            Self::Oom => "oom",
            Self::Timeout => "timeout",
            Self::NoResult => "no-result",
            Self::DiskFull => "disk-full",
            Self::SpotInterrupted => "spot-interrupted",
            Self::Lost => "lost",
            Self::Cancelled => "cancelled",
            Self::Infra => "infra",
        }
    }

    /// Reads a word of the table; `None` for a word this version does not know.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.as_str() == word)
    }

    /// Returns the budget that an attempt with this verdict is counted in.
    #[must_use]
    pub const fn budget(self) -> Budget {
        match self {
            Self::Ok => Budget::None,
            Self::AppError | Self::Oom | Self::Timeout | Self::NoResult | Self::DiskFull | Self::Infra => {
                Budget::Application
            }
            Self::SpotInterrupted | Self::Lost | Self::Cancelled => Budget::Interruption,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_reads_back() {
        for verdict in Verdict::ALL {
            assert_eq!(Verdict::parse(verdict.as_str()), Some(verdict));
        }
        assert_eq!(Verdict::parse("no such word"), None);
    }
}
