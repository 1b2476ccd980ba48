//! The errors of a scheduler.

use crate::backend::{CloudError, Kind};
use crate::domain::ids::IdError;
use crate::domain::policy::PolicyError;
use crate::worker::NodeError;

/// An error of a scheduler.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// A call to a service failed or was refused.
    #[error("{doing}")]
    Cloud {
        /// The step, as a gerund phrase.
        doing: &'static str,
        /// The error of the service.
        source: CloudError,
    },
    /// The mission's policy is invalid or incomplete.
    #[error("the policy of mission {mission}")]
    Policy {
        /// The mission.
        mission: String,
        /// The reason.
        source: PolicyError,
    },
    /// The mission does not exist.
    #[error("there is no mission {0}")]
    NoMission(String),
    /// No launch template is set.
    #[error("no launch template is set")]
    NoTemplate,
    /// The mission exists with other settings.
    #[error("mission {mission} exists, and {what}")]
    OtherMission {
        /// The mission.
        mission: String,
        /// The difference.
        what: String,
    },
    /// The input already is a task of another mission, or of none.
    #[error("{src} already is a task of {theirs}")]
    OtherTask {
        /// The task.
        src: String,
        /// The other mission, if any.
        theirs: String,
    },
    /// A task of this name exists, and works on something else.
    #[error("task {src} exists, and {what}")]
    OtherWork {
        /// The task.
        src: String,
        /// The difference.
        what: String,
    },
    /// An id is invalid.
    #[error("invalid id")]
    BadName(#[from] IdError),
    /// The notification of the completed mission could not be sent.
    #[error("sending the notification of mission {mission}")]
    Announce {
        /// The mission.
        mission: String,
        /// The reason.
        source: NodeError,
    },
}

impl SchedulerError {
    /// Returns a function that wraps a service's error.
    pub(super) fn cloud(doing: &'static str) -> impl FnOnce(CloudError) -> Self {
        move |source| Self::Cloud { doing, source }
    }

    /// Returns whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Cloud { source, .. } => source.is_retryable(),
            Self::Announce { source, .. } => matches!(source, NodeError::Cloud { source, .. } if source.is_retryable()),
            Self::Policy { .. }
            | Self::NoMission(_)
            | Self::NoTemplate
            | Self::OtherMission { .. }
            | Self::OtherTask { .. }
            | Self::OtherWork { .. }
            | Self::BadName(_) => false,
        }
    }

    /// Returns whether EC2 would refuse every launch, not only this task's.
    #[must_use]
    pub fn is_of_every_launch(&self) -> bool {
        match self {
            Self::NoTemplate => true,
            Self::Cloud { source, .. } => match source.kind {
                Kind::AccessDenied | Kind::NoCredentials | Kind::WrongRegion => true,
                // All launches share the template; types, subnets and prices belong to a mission.
                Kind::Refused => source.source.to_string().contains("LaunchTemplate"),
                _ => false,
            },
            _ => false,
        }
    }
}
