//! A cloud in this process. The AWS SDK's clients reach it through an `HttpClient` that never leaves the machine.
//!
//! `--local` and every test run on it. Its state is a folder that a person can read. `dynoxide` is the DynamoDB, `s3s`
//! speaks S3's protocol over plain files, and SNS, EC2, and IMDS are small stand-ins that record their requests.
//! The crate must never reach a network, and never write to a folder that is not its own (see `layout`).
//!
//! ```text
//! SDK client ─► Connector (faults) ─┬─ dynamodb.… ─► Dynamo ─► .lighthpc/dynamo.sqlite
//!                                   ├─ s3.…       ─► s3     ─► source/…  results/…
//!                                   ├─ sns.…      ─► Sns    ─► .lighthpc/notifications.jsonl
//!                                   ├─ ec2.…      ─► Fleet (this process)
//!                                   ├─ 169.254.…  ─► imds, as one instance sees it
//!                                   └─ any other host: refused
//! ```

mod connector;
mod dynamo;
mod ec2;
#[cfg(any(test, feature = "testing"))]
mod faults;
#[cfg(any(test, feature = "testing"))]
mod faulty;
mod filter;
mod fleet;
#[cfg(any(test, fuzzing, feature = "testing"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(any(test, feature = "testing"))]
mod gate;
mod imds;
mod keys;
mod layout;
mod lock;
mod names;
#[cfg(any(test, feature = "testing"))]
mod network;
mod query;
#[cfg(any(test, feature = "testing"))]
mod replies;
#[cfg(any(test, feature = "testing"))]
mod rights;
mod s3;
mod services;
mod snapshot;
mod sns;
#[cfg(any(test, feature = "testing"))]
mod testing;
mod tokens;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(any(test, feature = "testing"))]
use std::sync::Mutex;

use aws_smithy_runtime_api::client::http::SharedHttpClient;

#[cfg(any(test, feature = "testing"))]
pub use faults::{Fault, Faults, When};
pub use fleet::Instance;
#[cfg(any(test, feature = "testing"))]
pub use fleet::{LaunchChange, LaunchHook};
#[cfg(any(test, feature = "testing"))]
pub use gate::Gate;
pub use layout::OpenError;
pub use names::{ACCESS_KEY, REGION, RESULT_BUCKET, SECRET_KEY, SOURCE_BUCKET, TOPIC_ARN};
#[cfg(any(test, feature = "testing"))]
pub use network::{Answer, AnswerFuture, Call, Network};
pub use s3::ObjectState;
pub use services::Service;
pub use sns::Published;

use connector::Connector;
use dynamo::Dynamo;
use fleet::Fleet;
use layout::Layout;
use services::Services;
use sns::Sns;

/// A cloud in this process; a clone is the same cloud.
#[derive(Clone)]
pub struct LocalCloud {
    services: Arc<Services>,
}

impl LocalCloud {
    /// Opens the cloud in `dir`, or creates one there. It stays locked while the value, a clone, or one of its HTTP
    /// clients lives.
    ///
    /// # Errors
    /// `InUse`: another process has it open. `NotOurs`: the folder holds something else. `Io`, `State`: it cannot
    /// be read or written.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let (layout, lock) = Layout::open(dir)?;
        let (dynamo, sns) = (Dynamo::open(&layout)?, Sns::open(&layout)?);
        let cloud = Self::new(layout, Some(lock), dynamo, sns);
        cloud.services.fleet.set_has_earlier();
        Ok(cloud)
    }

    /// Opens an existing cloud for reading, even while another process has it open. Nothing in the folder is written,
    /// so it can be read-only or another user's. The tables are a copy as of this moment.
    ///
    /// A process that has the cloud open itself must not call this: closing a file that `SQLite` has locked would
    /// release its locks.
    ///
    /// # Errors
    /// `NotFound`: there is none. `NotOurs`: the folder holds something else. `Io`, `State`: it cannot be read.
    pub fn attach(dir: &Path) -> Result<Self, OpenError> {
        let layout = Layout::attach(dir)?;
        let (dynamo, sns) = (Dynamo::open_copy(&layout)?, Sns::attach(&layout)?);
        Ok(Self::new(layout, None, dynamo, sns))
    }

    /// Opens a cloud whose tables live as long as the value and whose objects are in `dir`. For tests.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn in_memory(dir: &Path) -> Result<Self, OpenError> {
        let (layout, lock) = Layout::open(dir)?;
        let sns = Sns::open(&layout)?;
        Ok(Self::new(layout, Some(lock), Dynamo::in_memory()?, sns))
    }

    fn new(layout: Layout, lock: Option<File>, dynamo: Dynamo, sns: Sns) -> Self {
        let objects = Arc::new(s3::ObjectFiles::new(layout.clone()));
        let s3 = s3::S3Local::new(Arc::clone(&objects)).endpoint();
        Self {
            services: Arc::new(Services {
                dynamo,
                s3,
                objects,
                sns,
                fleet: Fleet::default(),
                layout,
                #[cfg(any(test, feature = "testing"))]
                denied: Mutex::default(),
                _lock: lock,
            }),
        }
    }

    /// Returns the folder of the cloud, as an absolute path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.services.layout.dir()
    }

    /// Returns whether a process has the cloud of this folder open; `None`: this user may not see that.
    #[must_use]
    pub fn is_in_use(&self) -> Option<bool> {
        self.services.layout.is_in_use()
    }

    /// Registers a running instance with these tags. Returns its id, which is unique over all processes.
    pub fn launch(&self, tags: &[(&str, &str)]) -> String {
        self.services.fleet.launch(tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())))
    }

    /// Returns the HTTP client that `instance` has. `None`: a machine off EC2, where IMDS answers 404.
    #[must_use]
    pub fn http_client(&self, instance: Option<&str>) -> SharedHttpClient {
        SharedHttpClient::new(Connector::new(Arc::clone(&self.services), instance))
    }

    /// Returns every instance of this process, in the order of launch.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.services.fleet.instances()
    }

    /// Returns every message ever published in this cloud.
    #[must_use]
    pub fn published(&self) -> Vec<Published> {
        self.services.sns.published()
    }

    /// Creates an object that is a link to the user's file (an absolute path); nothing is copied. A later put or
    /// delete replaces or removes the link, never the file.
    ///
    /// # Errors
    /// The path is not a regular file, or the link cannot be created.
    pub fn link_object(&self, bucket: &str, key: &str, file: &Path) -> io::Result<()> {
        self.services.objects.link(bucket, key, file)
    }

    /// Compares an object with an earlier `ETag`. If the file is another one, compares the bytes, as long as
    /// `budget_bytes` lasts.
    #[must_use]
    pub fn compare_object(&self, bucket: &str, key: &str, etag: &str, budget_bytes: &mut u64) -> ObjectState {
        self.services.objects.compare(bucket, key, etag, budget_bytes)
    }

    /// Returns an object's `ETag`, without quotes. For a linked file, it changes with the file. `None`: no object.
    #[must_use]
    pub fn object_etag(&self, bucket: &str, key: &str) -> Option<String> {
        self.services.objects.etag(bucket, key)
    }

    /// Returns the path of an object's file; if there is none, the path that it would have.
    #[must_use]
    pub fn object_path(&self, bucket: &str, key: &str) -> PathBuf {
        self.services.objects.find_path(bucket, key)
    }
}

impl std::fmt::Debug for LocalCloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCloud").field("dir", &self.dir()).finish_non_exhaustive()
    }
}
