//! The flags that select tasks of a mission.

use clap::Args;

use super::failure::Failure;
use crate::domain::task::State;
use crate::domain::verdict::Verdict;
use crate::summary::Selection;

/// Which tasks to show.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(super) struct FilterArgs {
    /// Only failed tasks; several of these flags may be given
    #[arg(long, help_heading = "Tasks")]
    pub(super) failed: bool,
    /// Only running tasks
    #[arg(long, help_heading = "Tasks")]
    pub(super) running: bool,
    /// Only pending tasks
    #[arg(long, help_heading = "Tasks")]
    pub(super) pending: bool,
    /// Only tasks that are done
    #[arg(long, help_heading = "Tasks")]
    pub(super) done: bool,
    /// Only tasks whose last attempt ended with this verdict, such as app-error or oom
    #[arg(long, value_name = "VERDICT", value_parser = verdict, help_heading = "Tasks")]
    pub(super) verdict: Option<Verdict>,
    /// Only tasks whose name matches, such as 'M001/sample*.txt'
    #[arg(long, value_name = "PATTERN", help_heading = "Tasks")]
    pub(super) name: Option<String>,
    /// Show at most N tasks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Tasks")]
    pub(super) limit: Option<u32>,
}

impl FilterArgs {
    /// Returns whether tasks are asked for at all.
    pub(super) const fn is_set(&self) -> bool {
        self.failed
            || self.running
            || self.pending
            || self.done
            || self.verdict.is_some()
            || self.name.is_some()
            || self.limit.is_some()
    }

    /// Returns what is selected; at most `limit` tasks if no other limit is given.
    pub(super) fn selection(&self, limit: Option<usize>) -> Selection {
        let flags = [
            (self.failed, State::Failed),
            (self.running, State::Running),
            (self.pending, State::Pending),
            (self.done, State::Done),
        ];
        Selection {
            states: flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, state)| state).collect(),
            verdict: self.verdict,
            name: self.name.clone(),
            limit: self.limit.and_then(|limit| usize::try_from(limit).ok()).or(limit),
        }
    }
}

/// Parses a verdict.
pub(super) fn verdict(word: &str) -> Result<Verdict, String> {
    Verdict::parse(word).ok_or_else(|| {
        let words: Vec<&str> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
        format!("use one of {}", words.join(", "))
    })
}

/// Parses a verdict of a command that reports failures itself.
pub(super) fn verdict_of(word: &str) -> Result<Verdict, Failure> {
    verdict(word).map_err(|hint| Failure::usage(format!("{word:?} is not a verdict"), hint))
}
