//! The failure of a command: its error, hint and exit code.

use std::fmt::Display;

use super::exit::{self, ExitCode};

/// A failure of a command.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: ExitCode,
    pub(super) error: anyhow::Error,
    pub(super) hint: Option<String>,
}

impl Failure {
    /// Creates a failure of the command line or of a setting.
    pub(super) fn usage(message: impl Display, hint: impl Into<String>) -> Self {
        Self { exit: ExitCode::Usage, error: anyhow::anyhow!("{message}"), hint: Some(hint.into()) }
    }
}

impl From<crate::backend::CloudError> for Failure {
    fn from(error: crate::backend::CloudError) -> Self {
        let (exit, hint) = exit::of_cloud(&error);
        Self { exit, error: error.into(), hint }
    }
}

impl From<crate::backend::store::StoreError> for Failure {
    fn from(error: crate::backend::store::StoreError) -> Self {
        let (exit, hint) = exit::of_store(&error);
        Self { exit, error: error.into(), hint }
    }
}

impl From<crate::worker::NodeError> for Failure {
    fn from(error: crate::worker::NodeError) -> Self {
        let (exit, hint) = exit::of_node(&error);
        Self { exit, error: error.into(), hint }
    }
}

impl From<crate::scheduler::SchedulerError> for Failure {
    fn from(error: crate::scheduler::SchedulerError) -> Self {
        let (exit, hint) = exit::of_scheduler(&error);
        Self { exit, error: error.into(), hint }
    }
}
