//! The services of one cloud and their state.

use std::fs::File;
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::Mutex;

use super::dynamo::Dynamo;
use super::fleet::Fleet;
use super::layout::Layout;
#[cfg(any(test, feature = "testing"))]
use super::rights::DeniedUpdates;
use super::s3;
use super::sns::Sns;

/// A service of the local cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// The tables.
    Dynamodb,
    /// The objects.
    S3,
    /// The notifications.
    Sns,
    /// The instances.
    Ec2,
    /// The metadata service of one instance.
    Imds,
}

/// The services that answer the calls of one cloud.
pub(super) struct Services {
    pub(super) dynamo: Dynamo,
    pub(super) s3: s3::Endpoint,
    pub(super) objects: Arc<s3::ObjectFiles>,
    pub(super) sns: Sns,
    pub(super) fleet: Fleet,
    pub(super) layout: Layout,
    /// Updates that instances are denied.
    #[cfg(any(test, feature = "testing"))]
    pub(super) denied: Mutex<Option<DeniedUpdates>>,
    /// Open for the lock on the folder.
    pub(super) _lock: Option<File>,
}
