//! The settings of nodes and schedulers that checkers know.

use std::time::Duration;

/// The lease of nodes and schedulers.
pub(crate) const LEASE: Duration = Duration::from_secs(90);
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(20);
/// How old a node gets before it drains.
pub(crate) const NODE_LIFETIME: Duration = Duration::from_hours(12);
