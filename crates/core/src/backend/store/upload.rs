//! Uploads: results with the fence, and other objects.

use std::time::Duration;

use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use aws_smithy_types::base64;
use crc_fast::checksum;

use super::body::{Body, explained, prepare};
use super::client::Store;
use super::error::StoreError;
use super::mark::{Mark, MarkedObject};
use super::object::{Object, uri};
use super::part::{OBJECT_BYTES_MAX, PART_BYTES};
use super::sums::CRC;
use crate::backend::Ledger;
use crate::backend::error::{CloudError, Kind};
use crate::backend::ledger::Fence;
use crate::backend::sdk::{CALL_TIMEOUT, timeouts};
use crate::domain::task::State;

/// The maximum number of tries of a conditional upload. Each refusal means that another attempt wrote in between, and
/// attempts are at least a lease apart.
const PUT_TRIES_MAX: u32 = 5;

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The `ETag` with quotes.
    pub etag: String,
    /// The size in bytes.
    pub bytes: u64,
}

/// The result of an upload with the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is stored.
    Stored(Stored),
    /// The lease is lost; this call replaced nothing.
    LeaseLost,
}

/// The attempt that uploads, and what it knows of its lease.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// The ledger with the task's row.
    pub ledger: &'a Ledger,
    /// The attempt.
    pub fence: &'a Fence,
    /// Whether a renewal was confirmed so recently that the lease cannot have expired.
    pub is_sure: bool,
}

/// The condition for writing an object.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Any,
    Absent,
    Matches(String),
}

impl Condition {
    fn on_put(&self, put: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        match self {
            Self::Any => put,
            Self::Absent => put.if_none_match("*"),
            Self::Matches(etag) => put.if_match(etag),
        }
    }

    pub(super) fn on_complete(
        &self,
        complete: CompleteMultipartUploadFluentBuilder,
    ) -> CompleteMultipartUploadFluentBuilder {
        match self {
            Self::Any => complete,
            Self::Absent => complete.if_none_match("*"),
            Self::Matches(etag) => complete.if_match(etag),
        }
    }
}

/// The place and the owner of an object.
#[derive(Clone, Debug)]
pub(super) struct Target<'a> {
    pub(super) bucket: &'a str,
    pub(super) key: &'a str,
    pub(super) mark: Option<&'a Mark>,
}

impl Target<'_> {
    pub(super) fn uri(&self) -> String {
        uri(self.bucket, self.key)
    }

    pub(super) fn meta(&self) -> Option<std::collections::HashMap<String, String>> {
        self.mark.map(Mark::metadata)
    }
}

impl Store {
    /// Uploads a file or bytes as a task's result, with the fence.
    ///
    /// The upload is conditional: first on absence and, after a refusal, on the `ETag` of the existing object. Before
    /// it replaces an object, the lease is checked by a consistent read. So the lease was held while no newer object
    /// existed. The object of a dead attempt is overwritten, that of a newer attempt is not.
    ///
    /// Before the upload on condition of absence, the lease is read only if the holder is not sure of it. A machine that
    /// stands still in this moment may upload after it lost the lease. That upload replaces nothing, no row names it,
    /// and the upload of the next attempt replaces it.
    ///
    /// An object of this same attempt means that an answer was lost. It counts as stored if its size and checksum
    /// match; otherwise it is overwritten. An object of another task is neither accepted nor overwritten, unless that
    /// task has failed. (Its redrive could write the same bytes with the same `ETag` between that check and the upload.
    /// Then the other's next upload is refused with an error.)
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if the object belongs to another task. A lost lease is [`Put::LeaseLost`].
    pub async fn put_result(
        &self,
        holder: Holder<'_>,
        bucket: &str,
        key: &str,
        body: impl Into<Body<'_>> + Send,
    ) -> Result<Put, StoreError> {
        let Holder { ledger, fence, mut is_sure } = holder;
        let body = body.into();
        let mark = Mark::of_attempt(ledger.tables(), fence);
        let target = Target { bucket, key, mark: Some(&mark) };
        let mut condition = Condition::Absent;
        let mut tries = 0;
        loop {
            if !std::mem::take(&mut is_sure) && !ledger.holds(fence).await? {
                return Ok(Put::LeaseLost);
            }
            let error = match self.put_once(&target, &body, &condition).await {
                Ok(stored) => return Ok(Put::Stored(stored)),
                Err(StoreError::Cloud(error)) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            if !asks_for_a_look(&error) || tries >= PUT_TRIES_MAX {
                return Err(error.into());
            }
            condition = match self.head(bucket, key).await? {
                Some(object) if object.found.is_of_attempt(&mark) && is_body(&object, &body).await? => {
                    return Ok(Put::Stored(Stored { etag: object.etag, bytes: object.bytes }));
                }
                Some(object) => {
                    if object.found.is_of_another(&mark) && !has_failed(ledger, &object.found).await? {
                        return Err(taken(&target, &mark, &object.found, &ledger.tables().tasks));
                    }
                    Condition::Matches(object.etag)
                }
                None => Condition::Absent,
            };
        }
    }

    /// Uploads a log, a manifest, or the list of a checkpoint. It replaces an object with the same mark or without a
    /// mark, never another owner's.
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if another owner's object exists.
    pub async fn put_own(
        &self,
        mark: &Mark,
        bucket: &str,
        key: &str,
        body: impl Into<Body<'_>> + Send,
    ) -> Result<Stored, StoreError> {
        let body = body.into();
        let target = Target { bucket, key, mark: Some(mark) };
        let mut condition = Condition::Absent;
        let mut tries = 0;
        loop {
            let error = match self.put_once(&target, &body, &condition).await {
                Ok(stored) => return Ok(stored),
                Err(StoreError::Cloud(error)) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            if !asks_for_a_look(&error) || tries >= PUT_TRIES_MAX {
                return Err(error.into());
            }
            condition = self.may_replace(&target, mark).await?;
        }
    }

    /// Returns the condition for replacing an existing object.
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if it belongs to another owner.
    pub(super) async fn may_replace(&self, target: &Target<'_>, mark: &Mark) -> Result<Condition, StoreError> {
        match self.head(target.bucket, target.key).await? {
            Some(object) if object.found.is_of_another(mark) => Err(taken(target, mark, &object.found, "")),
            Some(object) => Ok(Condition::Matches(object.etag)),
            None => Ok(Condition::Absent),
        }
    }

    /// Uploads a file, and replaces an existing object. A corrupt upload is repeated.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_file(
        &self,
        bucket: &str,
        key: &str,
        file: impl Into<Body<'_>> + Send,
    ) -> Result<Stored, StoreError> {
        self.put_any(bucket, key, &file.into()).await
    }

    /// Uploads bytes, and replaces an existing object. A corrupt upload is repeated.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_bytes(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<Stored, StoreError> {
        self.put_any(bucket, key, &bytes.into()).await
    }

    async fn put_any(&self, bucket: &str, key: &str, body: &Body<'_>) -> Result<Stored, StoreError> {
        let target = Target { bucket, key, mark: None };
        let mut tries = 0;
        loop {
            tries += 1;
            match self.put_once(&target, body, &Condition::Any).await {
                Err(StoreError::Cloud(error)) if error.kind == Kind::Corrupt && tries < PUT_TRIES_MAX => {
                    tracing::warn!(
                        "{} was corrupted during the upload, uploading it again: {}",
                        target.uri(),
                        error.source
                    );
                }
                other => return other,
            }
        }
    }

    async fn put_once(
        &self,
        target: &Target<'_>,
        body: &Body<'_>,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let bytes = body.bytes().await?;
        match body {
            Body::Bytes(content) => {
                let crc = checksum(CRC, content);
                self.put_whole(target, content.clone().into(), (bytes, crc), condition).await
            }
            Body::File(file, _) if bytes > OBJECT_BYTES_MAX => Err(StoreError::TooLarge {
                path: file.to_path_buf(),
                reason: format!("it has {bytes} bytes, more than S3's limit of {OBJECT_BYTES_MAX}"),
            }),
            Body::File(file, _) if bytes > PART_BYTES => self.put_parts(target, file, bytes, condition).await,
            Body::File(file, _) => {
                let _room = self.take_room(bytes).await;
                // Limited to the measured size: of a growing file, the beginning is uploaded.
                let (body, crc) = prepare(file, 0, bytes).await?;
                let sent = self.put_whole(target, body, (bytes, crc), condition).await;
                explained(sent, file, (0, bytes), crc).await
            }
        }
    }

    async fn put_whole(
        &self,
        target: &Target<'_>,
        body: ByteStream,
        (bytes, crc): (u64, u64),
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let crc = crc_base64(crc);
        let metered = self.meter.begin(bytes);
        let put = self
            .client
            .put_object()
            .bucket(target.bucket)
            .key(target.key)
            .set_metadata(target.meta())
            .content_length(i64::try_from(bytes).unwrap_or(i64::MAX))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_crc32(&crc)
            .body(body);
        let put = condition.on_put(put).customize().config_override(sending(bytes));
        let answer = put.send().await.map_err(|e| CloudError::sdk("PutObject", target.uri(), e))?;
        metered.done();
        // S3 has verified it, unless a proxy removed the header.
        if let Some(stored) = answer.checksum_crc32.filter(|stored| *stored != crc) {
            let words = format!("S3 stored the CRC-32 {stored}, but the bytes have {crc}");
            return Err(CloudError::new(Kind::Corrupt, "PutObject", target.uri(), words).into());
        }
        Ok(Stored { etag: answer.e_tag.unwrap_or_default(), bytes })
    }
}

/// Returns whether the result of a failed conditional upload is unknown, so that the existing object must be read.
pub(super) fn asks_for_a_look(error: &CloudError) -> bool {
    matches!(error.kind, Kind::Precondition | Kind::Conflict | Kind::NotFound | Kind::Corrupt) || error.is_ambiguous()
}

/// Returns whether the object has the content of the body, by size and by the checksum of the whole object. Without a
/// checksum the answer is no.
async fn is_body(object: &Object, body: &Body<'_>) -> Result<bool, StoreError> {
    let Some(checksum) = &object.checksum else { return Ok(false) };
    if body.bytes().await? != object.bytes {
        return Ok(false);
    }
    Ok(checksum.is(body.checksum(checksum.algorithm()).await?))
}

/// Returns whether the object's task is in this table and has failed. Then its object is not a result.
async fn has_failed(ledger: &Ledger, found: &MarkedObject) -> Result<bool, CloudError> {
    let Some(src) = found.task_of(&ledger.tables().tasks) else { return Ok(false) };
    Ok(ledger.task(&src).await?.is_some_and(|task| task.state == State::Failed))
}

fn taken(target: &Target<'_>, mark: &Mark, found: &MarkedObject, table: &str) -> StoreError {
    StoreError::Taken { uri: target.uri(), holder: found.holder(table), wanted_by: mark.holder() }
}

/// The minimum speed of a connection while a body is sent, in bytes per second. Eight connections are 2 Mbit/s.
const SENDING_BYTES_PER_S: u64 = 32 * 1024;
/// The time limit of a `CompleteMultipartUpload`. S3 usually sends the head of its answer, and then spaces while it
/// combines the parts, which takes "several minutes" for 10,000 parts (S3's API reference).
const COMPLETING_TIMEOUT: Duration = Duration::from_mins(10);

/// Returns the settings of a call that sends `bytes`: the usual time limit plus the time for the body. A part of 8 MiB
/// has 276 s. A dead connection is detected earlier: the SDK stops a call whose body makes no progress.
pub(super) fn sending(bytes: u64) -> aws_sdk_s3::config::Builder {
    let limit = CALL_TIMEOUT + Duration::from_secs(bytes / SENDING_BYTES_PER_S);
    aws_sdk_s3::Config::builder().timeout_config(timeouts(limit))
}

/// Returns the settings of a `CompleteMultipartUpload`.
pub(super) fn completing() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::Config::builder().timeout_config(timeouts(COMPLETING_TIMEOUT))
}

pub(super) fn crc_base64(crc: u64) -> String {
    base64::encode(&crc.to_be_bytes()[4..])
}
