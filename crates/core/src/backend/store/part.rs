//! Parts of objects: sizes, limits, and the name of a multipart upload.

/// The size of a part. With 8 MiB, the memory is small and a request takes longer than its latency. Objects up to this
/// size are transferred as one.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// The content of an upload up to this size is read into memory. Larger content is read while it is sent, and takes as
/// much memory: two chunks, and what the HTTP client has not sent yet.
pub(super) const MEMORY_BYTES_MAX: u64 = 1024 * 1024;
/// The least and the most connections of [`connections`]. AWS's own transfer manager has the same least.
const CONNECTIONS: (usize, usize) = (8, 128);

/// Returns the number of parts and files that are transferred at the same time: one for each core, and at least 8.
///
/// A connection to S3 carries about 90 MB/s, or 0.7 Gbit/s, and AWS's transfer manager counts with 0.4 Gbit/s. An
/// instance has 0.4 to 1.6 Gbit/s of network for each core (Amazon EC2 instance types, "Network specifications"); EC2
/// does not tell the instance its figure.
#[must_use]
pub fn connections() -> usize {
    lighthpc_runtime::cores().clamp(CONNECTIONS.0, CONNECTIONS.1)
}
/// The maximum size of an object: 10,000 parts of 5 GiB, 48.8 TiB. Source: Amazon S3 user guide, "Amazon S3 multipart
/// upload limits". (Until December 2025 it was 5 TiB; a service with that limit returns `EntityTooLarge`.)
pub const OBJECT_BYTES_MAX: u64 = PARTS_MAX * 5 * 1024 * 1024 * 1024;
/// The maximum number of tries of one part, in addition to the SDK's retries: a body can fail after the answer started.
pub(super) const PART_TRIES_MAX: u32 = 4;
/// The maximum number of parts of an upload. Source: Amazon S3 user guide, "Amazon S3 multipart upload limits".
pub(super) const PARTS_MAX: u64 = 10_000;

/// Returns the number of files that are transferred at the same time. A small file takes the time of a request, in which
/// its connection carries next to nothing. The parts of what is larger than one wait for [`connections`].
#[must_use]
pub fn files_parallel() -> usize {
    4 * connections()
}

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
