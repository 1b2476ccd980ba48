//! Multipart uploads of large objects, completed on the same condition as a single upload.

use std::path::Path;
use std::sync::PoisonError;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};

use super::body::{explained, prepare};
use super::client::Store;
use super::error::StoreError;
use super::object::uri;
use super::part::{MultipartUpload, PART_BYTES, PARTS_MAX, connections};
use super::sums::{CRC, Sums};
use super::upload::{Condition, Stored, Target, completing, crc_base64, sending};
use crate::backend::error::{CloudError, Kind};
use crate::backend::parallel::Parallel;

impl Store {
    /// Uploads in parts, and completes on the condition. After any failure the upload is aborted, because its parts
    /// cost money.
    pub(super) async fn put_parts(
        &self,
        target: &Target<'_>,
        file: &Path,
        bytes: u64,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let upload = self.begin_upload(target).await?;
        let open = Open { store: self, upload: Some(upload.clone()) };
        let result = self.put_parts_of(target, &upload, file, bytes, condition).await;
        if result.is_ok() || self.abort(&upload).await {
            open.close();
        }
        result
    }

    /// Starts a multipart upload.
    pub(super) async fn begin_upload(&self, target: &Target<'_>) -> Result<MultipartUpload, CloudError> {
        let created = self
            .client
            .create_multipart_upload()
            .bucket(target.bucket)
            .key(target.key)
            .set_metadata(target.meta())
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_type(ChecksumType::FullObject)
            .send()
            .await
            .map_err(|e| CloudError::sdk("CreateMultipartUpload", target.uri(), e))?;
        let id = created.upload_id.unwrap_or_default();
        Ok(MultipartUpload { bucket: target.bucket.to_owned(), key: target.key.to_owned(), id })
    }

    /// Starts an upload and aborts it. This proves both permissions, and leaves nothing.
    ///
    /// # Errors
    /// [`CloudError`]: `NoBucket`, or `AccessDenied` with the operation.
    pub async fn may_put(&self, bucket: &str, key: &str) -> Result<(), CloudError> {
        let created = self.client.create_multipart_upload().bucket(bucket).key(key).send().await;
        let created = created.map_err(|e| CloudError::sdk("CreateMultipartUpload", uri(bucket, key), e))?;
        let id = created.upload_id.unwrap_or_default();
        let aborted = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(id).send().await;
        aborted.map(drop).map_err(|e| CloudError::sdk("AbortMultipartUpload", uri(bucket, key), e))
    }

    /// Starts an upload and aborts it. This proves the permission to upload. An abort that fails is repeated by
    /// [`Self::abort_dropped`].
    ///
    /// # Errors
    /// [`CloudError`]: `NoBucket`, or `AccessDenied` with the operation.
    pub async fn check_write(&self, bucket: &str, key: &str) -> Result<(), CloudError> {
        let upload = self.begin_upload(&Target { bucket, key, mark: None }).await?;
        self.abort_open(Open { store: self, upload: Some(upload) }).await;
        Ok(())
    }

    /// Aborts the uploads whose future was dropped, or whose abort failed before. May be called at any time, repeated,
    /// and dropped: what is not aborted is tried again by the next call.
    pub async fn abort_dropped(&self) {
        let dropped = std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner));
        let open: Vec<_> = dropped.into_iter().map(|upload| Open { store: self, upload: Some(upload) }).collect();
        for upload in open {
            self.abort_open(upload).await;
        }
    }

    async fn abort_open(&self, open: Open<'_>) {
        if let Some(upload) = &open.upload
            && self.abort(upload).await
        {
            open.close();
        }
    }

    /// Aborts an upload. Returns whether no retry is needed; a permanent refusal needs none.
    pub(super) async fn abort(&self, upload: &MultipartUpload) -> bool {
        let abort = self.client.abort_multipart_upload().bucket(&upload.bucket).key(&upload.key).upload_id(&upload.id);
        let Err(error) = abort.send().await else { return true };
        let uri = uri(&upload.bucket, &upload.key);
        let error = CloudError::sdk("AbortMultipartUpload", &uri, error);
        // NotFound: the upload was completed, and the answer was lost.
        if error.kind != Kind::NotFound {
            tracing::warn!("the parts of {uri} remain until the bucket's lifecycle removes them: {}", error.source);
        }
        !error.is_retryable() || error.kind == Kind::NotFound
    }

    async fn put_parts_of(
        &self,
        target: &Target<'_>,
        upload: &MultipartUpload,
        file: &Path,
        bytes: u64,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let part_bytes = part_bytes_for(bytes);
        let starts = (0..bytes).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX)).zip(1..);
        let parts = starts.map(|(start, number)| {
            let (store, upload, file) = (self.clone(), upload.clone(), file.to_owned());
            let section = (start, part_bytes.min(bytes - start));
            async move { store.put_section(&upload, number, &file, section).await }
        });
        let (mut parts, mut done, mut sums) = (Parallel::new(connections(), parts), Vec::new(), Sums::new(CRC));
        while let Some(part) = parts.next().await {
            let part = part.map_err(|panic| StoreError::disk("uploading", file, std::io::Error::other(panic)))??;
            sums.add(part.start, part.bytes, part.crc);
            done.push(part.completed);
        }
        done.sort_by_key(CompletedPart::part_number);
        let whole = Whole { parts: done, crc: sums.total(), bytes };
        self.complete(target, upload, whole, condition).await
    }

    /// Completes an upload on the condition.
    ///
    /// Each part was verified on its upload. S3's checksum of the whole object, in its answer, proves the order of the
    /// parts. (S3 would compare a checksum in the request, but emulators take that for the checksum of the request
    /// body.)
    pub(super) async fn complete(
        &self,
        target: &Target<'_>,
        upload: &MultipartUpload,
        whole: Whole,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let ours = crc_base64(whole.crc);
        let complete = self
            .client
            .complete_multipart_upload()
            .bucket(&upload.bucket)
            .key(&upload.key)
            .upload_id(&upload.id)
            .checksum_type(ChecksumType::FullObject)
            .set_mpu_object_size(i64::try_from(whole.bytes).ok())
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(whole.parts)).build());
        let complete = condition.on_complete(complete).customize().config_override(completing());
        let answer = complete.send().await;
        let answer = answer.map_err(|e| CloudError::sdk("CompleteMultipartUpload", target.uri(), e))?;
        let theirs = answer.checksum_crc32().filter(|sum| !sum.contains('-'));
        if theirs.is_some_and(|theirs| theirs != ours) {
            let words = format!("its CRC-32 is {}, not {ours}", theirs.unwrap_or_default());
            return Err(CloudError::new(Kind::Corrupt, "CompleteMultipartUpload", target.uri(), words).into());
        }
        Ok(Stored { etag: answer.e_tag.unwrap_or_default(), bytes: whole.bytes })
    }

    /// Uploads a section of a file as a part.
    async fn put_section(
        &self,
        upload: &MultipartUpload,
        number: i32,
        file: &Path,
        (start, bytes): (u64, u64),
    ) -> Result<Part, StoreError> {
        let _room = self.take_room(bytes).await;
        let (body, crc) = prepare(file, start, bytes).await?;
        let sent = self.put_part(upload, number, body, (bytes, crc)).await.map_err(StoreError::from);
        let completed = explained(sent, file, (start, bytes), crc).await?;
        Ok(Part { completed, start, bytes, crc })
    }

    /// Uploads one part.
    pub(super) async fn put_part(
        &self,
        upload: &MultipartUpload,
        number: i32,
        body: ByteStream,
        (bytes, crc): (u64, u64),
    ) -> Result<CompletedPart, CloudError> {
        let metered = self.meter.begin(bytes);
        let answer = self
            .client
            .upload_part()
            .bucket(&upload.bucket)
            .key(&upload.key)
            .upload_id(&upload.id)
            .part_number(number)
            .content_length(i64::try_from(bytes).unwrap_or(i64::MAX))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_crc32(crc_base64(crc))
            .body(body)
            .customize()
            .config_override(sending(bytes))
            .send()
            .await
            .map_err(|e| CloudError::sdk("UploadPart", uri(&upload.bucket, &upload.key), e))?;
        metered.done();
        let completed = CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag);
        Ok(completed.checksum_crc32(crc_base64(crc)).build())
    }
}

/// A multipart upload that is not closed. If it is dropped, it is recorded for a later abort, because a drop cannot
/// wait.
struct Open<'a> {
    store: &'a Store,
    upload: Option<MultipartUpload>,
}

impl Open<'_> {
    fn close(mut self) {
        self.upload = None;
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut dropped = self.store.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.extend(self.upload.take());
    }
}

/// An uploaded part.
struct Part {
    completed: CompletedPart,
    start: u64,
    bytes: u64,
    crc: u64,
}

/// All parts of an upload, and the expected object.
pub(super) struct Whole {
    pub(super) parts: Vec<CompletedPart>,
    pub(super) crc: u64,
    pub(super) bytes: u64,
}

/// Returns the part size of an upload: 8 MiB, or more if 10,000 parts would be too few.
fn part_bytes_for(bytes: u64) -> u64 {
    PART_BYTES.max(bytes.div_ceil(PARTS_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::part::OBJECT_BYTES_MAX;
    use super::*;

    #[test]
    fn no_upload_has_more_than_ten_thousand_parts() {
        const TIB: u64 = 1 << 40;
        for bytes in [1, PART_BYTES, PART_BYTES * PARTS_MAX, PART_BYTES * PARTS_MAX + 1, 5 * TIB, OBJECT_BYTES_MAX] {
            assert!(bytes.div_ceil(part_bytes_for(bytes)) <= PARTS_MAX, "{bytes}");
            assert!(part_bytes_for(bytes) <= 5 << 30, "{bytes}");
        }
        assert_eq!(part_bytes_for(PART_BYTES * PARTS_MAX), PART_BYTES);
    }
}
