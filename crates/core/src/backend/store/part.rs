//! Parts of objects: sizes, limits, and the name of a multipart upload.

/// The size of a part. With 8 MiB, the memory is small and a request takes longer than its latency. Objects up to this
/// size are transferred as one.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts that are transferred at the same time: 8 × about 90 MB/s, S3's rate per connection, fill a link of 5 Gbit/s.
pub(super) const PARTS_PARALLEL: usize = 8;
/// The maximum size of an object: 10,000 parts of 5 GiB, 48.8 TiB. Source: Amazon S3 user guide, "Amazon S3 multipart
/// upload limits". (Until December 2025 it was 5 TiB; a service with that limit returns `EntityTooLarge`.)
pub const OBJECT_BYTES_MAX: u64 = PARTS_MAX * 5 * 1024 * 1024 * 1024;
/// The maximum number of tries of one part, in addition to the SDK's retries: a body can fail after the answer started.
pub(super) const PART_TRIES_MAX: u32 = 4;
/// The maximum number of parts of an upload. Source: Amazon S3 user guide, "Amazon S3 multipart upload limits".
pub(super) const PARTS_MAX: u64 = 10_000;

/// A multipart upload.
#[derive(Clone, Debug)]
pub(super) struct MultipartUpload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) id: String,
}

impl MultipartUpload {
    /// Creates the name of an existing upload.
    pub(super) fn of(bucket: &str, key: &str, id: String) -> Self {
        Self { bucket: bucket.to_owned(), key: key.to_owned(), id }
    }

    /// Returns the upload id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}
