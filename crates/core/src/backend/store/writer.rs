//! Writes an object while its content is created, without a file, such as a manifest of 100,000 tasks.

use std::sync::PoisonError;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::CompletedPart;
use bytes::Bytes;
use crc_fast::{checksum, checksum_combine};
use tokio::time::Instant;

use super::body::Body;
use super::client::Store;
use super::error::StoreError;
use super::mark::Mark;
use super::multipart::Whole;
use super::part::PART_BYTES;
use super::part::{MultipartUpload, PARTS_MAX};
use super::sums::CRC;
use super::upload::{Condition, Stored, Target, asks_for_a_look, crc_base64};
use crate::backend::error::{CloudError, Kind, error_chain};
use crate::domain::backoff;
use crate::domain::mission::ManifestPart;

/// The maximum number of tries to finish an object. Each refusal means that another process wrote in between.
const FINISH_TRIES_MAX: u32 = 5;

/// An object that is being written. At most one part of 8 MiB is in memory.
///
/// Content of one part is a single `PutObject`; more is uploaded in parts, one after the other. Nothing is visible
/// before [`PutWriter::finish`]. If the writer is dropped or fails before, its parts are aborted
/// ([`Store::abort_dropped`]).
#[derive(Debug)]
pub struct PutWriter {
    store: Store,
    bucket: String,
    key: String,
    mark: Mark,
    patience: Duration,
    buffer: Vec<u8>,
    upload: Option<MultipartUpload>,
    parts: Vec<ManifestPart>,
    /// Whether the parts remain if it is not finished.
    is_left: bool,
}

/// The minimum size of a part that is not the last. Source: Amazon S3 user guide, "Amazon S3 multipart upload limits".
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

impl Store {
    /// Starts an object with this mark. Sends no requests.
    ///
    /// It will replace an object with the same mark or without a mark, never another owner's. Each call with a
    /// transient failure is retried for up to `patience`.
    #[must_use]
    pub fn writer(&self, bucket: &str, key: &str, mark: Mark, patience: Duration) -> PutWriter {
        PutWriter {
            store: self.clone(),
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            mark,
            patience,
            buffer: Vec::new(),
            upload: None,
            parts: Vec::new(),
            is_left: false,
        }
    }
}

impl PutWriter {
    /// Adds bytes. Uploads each full part.
    ///
    /// # Errors
    /// [`StoreError`]; the object then cannot be finished.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        let part_bytes = usize::try_from(PART_BYTES).unwrap_or(usize::MAX);
        while !bytes.is_empty() {
            // A full part is kept until the next byte, because `finish` sends the last part.
            if self.buffer.len() == part_bytes {
                self.send_part().await?;
            }
            let taken = bytes.len().min(part_bytes - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Continues an object for which an earlier writer stored some parts. Must be called before the first write.
    pub fn resume(&mut self, upload_id: String, parts: &[ManifestPart]) {
        self.upload = Some(MultipartUpload::of(&self.bucket, &self.key, upload_id));
        self.parts = parts.to_vec();
        self.is_left = true;
    }

    /// Uploads the bytes in memory as a part, if they are enough. Returns the upload and its parts for
    /// [`Self::resume`]; `None` if there are too few bytes, or nothing has changed.
    ///
    /// After this call, dropping the writer keeps the parts: another writer may continue, or the bucket's lifecycle
    /// removes them.
    ///
    /// # Errors
    /// [`StoreError`]; the object then cannot be finished.
    pub async fn store_part(&mut self) -> Result<Option<(String, Vec<ManifestPart>)>, StoreError> {
        if self.buffer.len() < PART_BYTES_MIN {
            return Ok(None);
        }
        self.send_part().await?;
        self.is_left = true;
        let upload = self.upload.as_ref().expect("a part was sent");
        Ok(Some((upload.id().to_owned(), self.parts.clone())))
    }

    /// Makes the object visible.
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if another owner's object exists.
    pub async fn finish(mut self) -> Result<Stored, StoreError> {
        if self.upload.is_none() {
            let body = Bytes::from(std::mem::take(&mut self.buffer));
            let put = || self.store.put_own(&self.mark, &self.bucket, &self.key, Body::Bytes(body.clone()));
            return retry_transient(self.patience, put).await;
        }
        if !self.buffer.is_empty() {
            self.send_part().await?;
        }
        // Read first, because S3 may not accept a second completion after a refused one. A role that may not read gets
        // a refusal instead.
        let mut condition = match self.may_replace().await {
            Err(StoreError::Cloud(error)) if error.kind == Kind::AccessDenied => Condition::Absent,
            other => other?,
        };
        let mut tries = 0;
        loop {
            let error = match retry_transient(self.patience, || self.complete(&condition)).await {
                Ok(stored) => {
                    self.upload = None;
                    return Ok(stored);
                }
                Err(StoreError::Cloud(error)) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            if !asks_for_a_look(&error) || tries >= FINISH_TRIES_MAX {
                return Err(error.into());
            }
            // After a completion with a lost answer, the object exists and the upload does not.
            if let Some(stored) = self.find_finished().await? {
                self.upload = None;
                return Ok(stored);
            }
            if error.kind == Kind::NotFound {
                return Err(error.into());
            }
            condition = self.may_replace().await?;
        }
    }

    async fn send_part(&mut self) -> Result<(), StoreError> {
        let target = Target { bucket: &self.bucket, key: &self.key, mark: Some(&self.mark) };
        if self.upload.is_none() {
            let begin = || async { Ok(self.store.begin_upload(&target).await?) };
            self.upload = Some(retry_transient(self.patience, begin).await?);
        }
        if self.parts.len() as u64 >= PARTS_MAX {
            let words = format!("more than {PARTS_MAX} parts of {PART_BYTES} bytes");
            return Err(CloudError::new(Kind::Invalid, "UploadPart", target.uri(), words).into());
        }
        let body = Bytes::from(std::mem::take(&mut self.buffer));
        let (bytes, crc) = (body.len() as u64, checksum(CRC, &body));
        let number = i32::try_from(self.parts.len() + 1).unwrap_or(i32::MAX);
        let upload = self.upload.as_ref().expect("it was begun above");
        let put = || async {
            let body = ByteStream::from(body.clone());
            Ok(self.store.put_part(upload, number, body, (bytes, crc)).await?)
        };
        let part = retry_transient(self.patience, put).await?;
        self.parts.push(ManifestPart { etag: part.e_tag.unwrap_or_default(), crc, bytes });
        Ok(())
    }

    async fn complete(&self, condition: &Condition) -> Result<Stored, StoreError> {
        let target = Target { bucket: &self.bucket, key: &self.key, mark: Some(&self.mark) };
        let upload = self.upload.as_ref().expect("an object in parts was begun");
        let numbered = (1..).zip(&self.parts);
        let parts = numbered.map(|(number, part)| {
            CompletedPart::builder().part_number(number).e_tag(&part.etag).checksum_crc32(crc_base64(part.crc)).build()
        });
        let (crc, bytes) = self.sum();
        let whole = Whole { parts: parts.collect(), crc, bytes };
        self.store.complete(&target, upload, whole, condition).await
    }

    /// Returns the CRC-32 and the size of all parts.
    fn sum(&self) -> (u64, u64) {
        let parts = self.parts.iter().map(|part| (part.crc, part.bytes));
        let sum = parts.reduce(|(all, length), (crc, bytes)| (checksum_combine(CRC, all, crc, bytes), length + bytes));
        sum.unwrap_or((0, 0))
    }

    async fn may_replace(&self) -> Result<Condition, StoreError> {
        let target = Target { bucket: &self.bucket, key: &self.key, mark: Some(&self.mark) };
        retry_transient(self.patience, || self.store.may_replace(&target, &self.mark)).await
    }

    /// Returns the object if it is the one of this writer: same mark, size and checksum.
    async fn find_finished(&self) -> Result<Option<Stored>, StoreError> {
        let head = || async { Ok(self.store.head(&self.bucket, &self.key).await?) };
        let Some(object) = retry_transient(self.patience, head).await? else { return Ok(None) };
        let (crc, bytes) = self.sum();
        // A service may store no checksum. Then the upload is gone, and an object with our mark and size exists.
        let is_sum = object.checksum.as_ref().is_none_or(|sum| sum.algorithm() == CRC && sum.is(crc));
        let is_ours = !object.found.is_of_another(&self.mark) && object.bytes == bytes && is_sum;
        Ok(is_ours.then_some(Stored { etag: object.etag, bytes: object.bytes }))
    }
}

impl Drop for PutWriter {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let mut dropped = self.store.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        dropped.extend(self.upload.take());
    }
}

/// Retries a call while its failure is transient, until `limit`. Makes at least one retry.
async fn retry_transient<T, F>(limit: Duration, call: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let started = Instant::now();
    let mut tries = 0;
    loop {
        let error = match call().await {
            // The caller handles refused conditions.
            Err(StoreError::Cloud(error))
                if error.is_retryable() && !matches!(error.kind, Kind::Precondition | Kind::NotFound) =>
            {
                error
            }
            other => return other,
        };
        tries += 1;
        if tries > 1 && started.elapsed() >= limit {
            return Err(error.into());
        }
        tracing::warn!("retrying: {}", error_chain(&error));
        tokio::time::sleep(backoff::delay(tries + 2, rand::random())).await;
    }
}
