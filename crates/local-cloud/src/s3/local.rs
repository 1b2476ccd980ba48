//! The value that has S3's operations, and the helpers that they share.

use std::sync::Arc;

use s3s::dto::Metadata;
use s3s::{S3Error, S3Response, S3Result};

use super::checksums::Checksums;
use super::object_files::{Meta, ObjectFiles};

/// Bodies of up to this size are read and written where the request is: that takes less time than the switch to a
/// blocking thread and back.
pub(super) const SMALL_BYTES: u64 = 64 * 1024;

/// S3's operations over the [`ObjectFiles`].
#[derive(Clone)]
pub(crate) struct S3Local {
    pub(super) objects: Arc<ObjectFiles>,
}

impl S3Local {
    pub(crate) fn new(objects: Arc<ObjectFiles>) -> Self {
        Self { objects }
    }

    /// Runs disk operations on a blocking thread. Once started, they run to completion.
    pub(super) async fn run_blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&ObjectFiles) -> S3Result<T> + Send + 'static,
    ) -> S3Result<T> {
        let objects = Arc::clone(&self.objects);
        lighthpc_runtime::blocking(move || act(&objects)).await.map_err(S3Error::internal_error)?
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the last line of every operation")]
pub(super) fn answer<T>(output: T) -> S3Result<S3Response<T>> {
    Ok(S3Response::new(output))
}

pub(super) fn new_meta(content_type: Option<String>, metadata: Option<Metadata>, checksums: Checksums) -> Meta {
    Meta { content_type, metadata: metadata.unwrap_or_default().into_iter().collect(), checksums }
}
