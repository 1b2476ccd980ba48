//! Large objects go up in parts, completed on the same condition as a small one's put.

use std::path::Path;
use std::sync::PoisonError;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use crc_fast::{checksum, checksum_combine};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::task::JoinSet;

use super::upload::{CRC, Condition, Stored, Target, crc_base64};
use super::{CloudError, Kind, PART_BYTES, Store, StoreError, uri};

/// S3's limit of parts in one upload.
const PARTS_MAX: u64 = 10_000;

impl Store {
    /// Uploads in parts and completes on the condition; whatever fails, the upload is aborted, for its parts bill.
    pub(super) async fn put_parts(
        &self,
        target: &Target<'_>,
        file: &Path,
        bytes: u64,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
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
        let upload = Upload {
            bucket: target.bucket.to_owned(),
            key: target.key.to_owned(),
            id: created.upload_id.unwrap_or_default(),
        };
        let open = Open { store: self, upload: Some(upload.clone()) };
        let result = self.put_parts_of(target, &upload.id, file, bytes, condition).await;
        open.close();
        if result.is_err() {
            self.abort(&upload).await;
        }
        result
    }

    /// Begins an upload and aborts it: that shows the right to put, and to take back, and leaves nothing.
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

    /// Aborts the uploads whose future was dropped under way. May be called at any time, and again.
    pub async fn abort_dropped(&self) {
        let dropped = std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner));
        for upload in &dropped {
            self.abort(upload).await;
        }
    }

    async fn abort(&self, upload: &Upload) {
        let abort = self.client.abort_multipart_upload().bucket(&upload.bucket).key(&upload.key).upload_id(&upload.id);
        let Err(error) = abort.send().await else { return };
        let uri = uri(&upload.bucket, &upload.key);
        let error = CloudError::sdk("AbortMultipartUpload", &uri, error);
        // NotFound: a completion whose answer was lost.
        if error.kind != Kind::NotFound {
            tracing::warn!("the parts of {uri} stay until the bucket's lifecycle removes them: {}", error.source);
        }
    }

    async fn put_parts_of(
        &self,
        target: &Target<'_>,
        upload_id: &str,
        file: &Path,
        bytes: u64,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let part_bytes = part_bytes_for(bytes);
        let permits = self.parts.clone();
        let mut parts = JoinSet::new();
        for (index, start) in (0..bytes).step_by(usize::try_from(part_bytes).unwrap_or(usize::MAX)).enumerate() {
            let part = Part {
                bucket: target.bucket.to_owned(),
                key: target.key.to_owned(),
                upload_id: upload_id.to_owned(),
                number: i32::try_from(index + 1).unwrap_or(i32::MAX),
                start,
                bytes: part_bytes.min(bytes - start),
            };
            let (store, permits, file) = (self.clone(), permits.clone(), file.to_owned());
            parts.spawn(async move {
                let _permit = permits.acquire_owned().await;
                store.put_part(part, &file).await
            });
        }
        let mut done = Vec::new();
        while let Some(part) = parts.join_next().await {
            done.push(part.map_err(|panic| StoreError::disk("uploading", file, std::io::Error::other(panic)))??);
        }
        done.sort_by_key(|(part, _, _)| part.part_number());
        let crc = done
            .iter()
            .map(|&(_, crc, length)| (crc, length))
            .reduce(|(all, _), (crc, length)| (checksum_combine(CRC, all, crc, length), length))
            .map_or(0, |(crc, _)| crc);
        let list = done.into_iter().map(|(part, _, _)| part).collect();
        let complete = self
            .client
            .complete_multipart_upload()
            .bucket(target.bucket)
            .key(target.key)
            .upload_id(upload_id)
            .checksum_type(ChecksumType::FullObject)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(list)).build());
        let answer = condition
            .on_complete(complete)
            .send()
            .await
            .map_err(|e| CloudError::sdk("CompleteMultipartUpload", target.uri(), e))?;
        // Each part was checked when it went up; S3's sum over all of them says that they are in order.
        let (ours, theirs) = (crc_base64(crc), answer.checksum_crc32().filter(|sum| !sum.contains('-')));
        if theirs.is_some_and(|theirs| theirs != ours) {
            let words = format!("its CRC-32 is {}, not {ours}", theirs.unwrap_or_default());
            return Err(CloudError::new(Kind::Corrupt, "CompleteMultipartUpload", target.uri(), words).into());
        }
        Ok(Stored { etag: answer.e_tag.unwrap_or_default(), bytes })
    }

    async fn put_part(&self, part: Part, file: &Path) -> Result<(CompletedPart, u64, u64), StoreError> {
        let disk = |doing, error| StoreError::disk(doing, file, error);
        let mut source = File::open(file).await.map_err(|e| disk("opening", e))?;
        source.seek(SeekFrom::Start(part.start)).await.map_err(|e| disk("seeking in", e))?;
        let mut body = vec![0; usize::try_from(part.bytes).unwrap_or(usize::MAX)];
        source.read_exact(&mut body).await.map_err(|e| disk("reading", e))?;
        let crc = checksum(CRC, &body);
        let metered = self.meter.begin(part.bytes);
        let answer = self
            .client
            .upload_part()
            .bucket(&part.bucket)
            .key(&part.key)
            .upload_id(&part.upload_id)
            .part_number(part.number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_crc32(crc_base64(crc))
            .body(ByteStream::from(body))
            .send()
            .await
            .map_err(|e| CloudError::sdk("UploadPart", uri(&part.bucket, &part.key), e))?;
        metered.done();
        let completed = CompletedPart::builder()
            .part_number(part.number)
            .set_e_tag(answer.e_tag)
            .checksum_crc32(crc_base64(crc))
            .build();
        Ok((completed, crc, part.bytes))
    }
}

/// A multipart upload.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    bucket: String,
    key: String,
    id: String,
}

/// A multipart upload under way. Dropped before it is closed, it is noted, to be aborted: a drop cannot wait.
struct Open<'a> {
    store: &'a Store,
    upload: Option<Upload>,
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

/// One part of an upload.
struct Part {
    bucket: String,
    key: String,
    upload_id: String,
    number: i32,
    start: u64,
    bytes: u64,
}

/// Returns the size of the parts of an upload: 8 MiB, or as much more as 10,000 parts ask for.
fn part_bytes_for(bytes: u64) -> u64 {
    PART_BYTES.max(bytes.div_ceil(PARTS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_upload_has_more_than_ten_thousand_parts() {
        const TIB: u64 = 1 << 40;
        for bytes in [1, PART_BYTES, PART_BYTES * PARTS_MAX, PART_BYTES * PARTS_MAX + 1, 5 * TIB] {
            assert!(bytes.div_ceil(part_bytes_for(bytes)) <= PARTS_MAX, "{bytes}");
        }
        assert_eq!(part_bytes_for(PART_BYTES * PARTS_MAX), PART_BYTES);
    }
}
