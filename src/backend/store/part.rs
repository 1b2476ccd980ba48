//! Parts of objects: sizes, bounds, and the name of a multipart upload.

/// The bytes of one part, up and down. 8 MiB keeps a part's memory small and its request longer than its round trip;
/// objects up to this size go in one piece.
pub(super) const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Parts under way at once: 8 × about 90 MB/s, S3's rate per connection, fill a 5 Gbit/s link.
pub(super) const PARTS_PARALLEL: usize = 8;
/// The largest object: 10,000 parts of 5 GiB, 48.8 TiB. Source: Amazon S3 user guide, "Amazon S3 multipart upload
/// limits". (It was 5 TiB until December 2025; a service that still has that limit says `EntityTooLarge`.)
pub const OBJECT_BYTES_MAX: u64 = PARTS_MAX * 5 * 1024 * 1024 * 1024;
/// How often one part is tried, the SDK's own retries aside: a body may break after the answer began.
pub(super) const PART_TRIES_MAX: u32 = 4;
/// S3's limit of parts in one upload. Source: Amazon S3 user guide, "Amazon S3 multipart upload limits".
pub(super) const PARTS_MAX: u64 = 10_000;

/// A multipart upload.
#[derive(Clone, Debug)]
pub(super) struct MultipartUpload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) id: String,
}

impl MultipartUpload {
    /// Names an upload that is there.
    pub(super) fn of(bucket: &str, key: &str, id: String) -> Self {
        Self { bucket: bucket.to_owned(), key: key.to_owned(), id }
    }

    /// Returns its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}
