//! Why a scheduler could not do what it was asked to.

use crate::backend::{CloudError, Kind};
use crate::domain::ids::IdError;
use crate::domain::policy::PolicyError;
use crate::worker::NodeError;

/// Why a scheduler could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// A service failed or refused.
    #[error("{doing}")]
    Cloud {
        /// The step, as a gerund phrase.
        doing: &'static str,
        /// What the service said.
        source: CloudError,
    },
    /// The mission's policy cannot be read or is incomplete.
    #[error("the policy of mission {mission}")]
    Policy {
        /// The mission.
        mission: String,
        /// What is wrong.
        source: PolicyError,
    },
    /// There is no such mission.
    #[error("there is no mission {0}")]
    NoMission(String),
    /// Nothing to launch from.
    #[error("no launch template is set")]
    NoTemplate,
    /// The mission was made otherwise.
    #[error("mission {mission} exists, and {what}")]
    OtherMission {
        /// The mission.
        mission: String,
        /// What differs.
        what: String,
    },
    /// A task of another mission, or one that ran in none.
    #[error("{src} is a task of {theirs} already")]
    OtherTask {
        /// The task.
        src: String,
        /// That mission, or none.
        theirs: String,
    },
    /// A name is not a legal one.
    #[error("a name that cannot be used")]
    BadName(#[from] IdError),
    /// The mission's end could not be announced.
    #[error("announcing mission {mission}")]
    Announce {
        /// The mission.
        mission: String,
        /// Why not.
        source: NodeError,
    },
}

impl SchedulerError {
    /// Wraps a service's failure.
    pub(super) fn cloud(doing: &'static str) -> impl FnOnce(CloudError) -> Self {
        move |source| Self::Cloud { doing, source }
    }

    /// Returns whether the same may succeed later.
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
            | Self::BadName(_) => false,
        }
    }

    /// Returns whether EC2 refuses to launch at all, whatever the task: there is no use in trying the next.
    #[must_use]
    pub fn is_of_every_launch(&self) -> bool {
        match self {
            Self::NoTemplate => true,
            Self::Cloud { source, .. } => match source.kind {
                Kind::AccessDenied | Kind::NoCredentials | Kind::WrongRegion => true,
                // The template is everybody's; types, subnets, and prices are a mission's.
                Kind::Refused => source.source.to_string().contains("LaunchTemplate"),
                _ => false,
            },
            _ => false,
        }
    }
}
