//! Uploads: results under the fence, and plain objects.

use std::time::Duration;

use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use aws_smithy_types::base64;
use crc_fast::{CrcAlgorithm, checksum};

use super::body::{Body, read_section};
use super::client::Store;
use super::error::StoreError;
use super::mark::{Mark, MarkedObject};
use super::object::{Object, uri};
use super::part::{OBJECT_BYTES_MAX, PART_BYTES};
use crate::backend::Ledger;
use crate::backend::error::{CloudError, Kind};
use crate::backend::ledger::Fence;
use crate::backend::sdk::{CALL_TIMEOUT, timeouts};
use crate::domain::task::State;

/// The checksum of every upload: CRC-32, the SDK's own default, which S3 keeps over the whole object and can put together
/// from parts.
pub(super) const CRC: CrcAlgorithm = CrcAlgorithm::Crc32IsoHdlc;
/// How often a conditional put is tried: each refusal means that another attempt wrote in between, and
/// attempts are a lease apart.
const PUT_TRIES_MAX: u32 = 5;

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its `ETag`, quotes included.
    pub etag: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// What became of a put under the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there.
    Stored(Stored),
    /// The lease is lost; nothing of ours replaced anything.
    LeaseLost,
}

/// On which condition an object may be written.
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

/// Where an object goes, and whose it is.
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
    /// Puts a file, or bytes, as a task's result, under the fence.
    ///
    /// The lease is checked with a consistent read, then the put is conditional: on absence first, and after a refusal
    /// on the `ETag` of what stands there, once the lease is checked again. So the order of events can only be: our
    /// check held when nothing newer was there. What a dead attempt left is overwritten; what a newer attempt put is
    /// not. An object of this very attempt is a put whose answer was lost. It counts as stored if its size and its
    /// checksum are the body's; else it is overwritten. An object of another task is neither adopted nor overwritten,
    /// unless that task has failed. (Its redrive could write the same bytes, so the same `ETag`, between that look and
    /// the put: then the other's next put is refused, and says so.)
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if the object is another task's. A lost lease is [`Put::LeaseLost`].
    pub async fn put_result(
        &self,
        ledger: &Ledger,
        fence: &Fence,
        bucket: &str,
        key: &str,
        body: impl Into<Body<'_>> + Send,
    ) -> Result<Put, StoreError> {
        let body = body.into();
        let mark = Mark::of_attempt(ledger.tables(), fence);
        let target = Target { bucket, key, mark: Some(&mark) };
        let mut condition = Condition::Absent;
        let mut tries = 0;
        loop {
            if !ledger.holds(fence).await? {
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

    /// Puts a log, a manifest, or a checkpoint's list: it replaces what bears the same mark, or none, and never what is
    /// another's.
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if another's object stands there.
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

    /// Returns the condition on which what stands there may be replaced.
    ///
    /// # Errors
    /// [`StoreError`]; `Taken` if it is another's.
    pub(super) async fn may_replace(&self, target: &Target<'_>, mark: &Mark) -> Result<Condition, StoreError> {
        match self.head(target.bucket, target.key).await? {
            Some(object) if object.found.is_of_another(mark) => Err(taken(target, mark, &object.found, "")),
            Some(object) => Ok(Condition::Matches(object.etag)),
            None => Ok(Condition::Absent),
        }
    }

    /// Puts a file, whatever stands there. One that arrived corrupt is put again.
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

    /// Puts a few bytes, whatever stands there. Bytes that arrived corrupt are put again.
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
                    tracing::warn!("{} arrived corrupt and is put again: {}", target.uri(), error.source);
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
            Body::Bytes(bytes) => self.put_whole(target, bytes.clone(), condition).await,
            Body::File(file, _) if bytes > OBJECT_BYTES_MAX => Err(StoreError::TooLarge {
                path: file.to_path_buf(),
                reason: format!("it has {bytes} bytes, more than the {OBJECT_BYTES_MAX} that S3 takes"),
            }),
            Body::File(file, _) if bytes > PART_BYTES => self.put_parts(target, file, bytes, condition).await,
            Body::File(file, _) => {
                let _room = self.take_room(bytes).await;
                // No more than it had: a file that grows must not fill the memory.
                let body = read_section(file, 0, bytes).await?;
                self.put_whole(target, body, condition).await
            }
        }
    }

    pub(super) async fn put_whole(
        &self,
        target: &Target<'_>,
        body: bytes::Bytes,
        condition: &Condition,
    ) -> Result<Stored, StoreError> {
        let (bytes, crc) = (body.len() as u64, crc_base64(checksum(CRC, &body)));
        let metered = self.meter.begin(bytes);
        let put = self
            .client
            .put_object()
            .bucket(target.bucket)
            .key(target.key)
            .set_metadata(target.meta())
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_crc32(&crc)
            .body(ByteStream::from(body));
        let put = condition.on_put(put).customize().config_override(sending(bytes));
        let answer = put.send().await.map_err(|e| CloudError::sdk("PutObject", target.uri(), e))?;
        metered.done();
        // S3 has checked it, unless something between removed the header.
        if let Some(stored) = answer.checksum_crc32.filter(|stored| *stored != crc) {
            let words = format!("it was stored with the CRC-32 {stored}, and the bytes have {crc}");
            return Err(CloudError::new(Kind::Corrupt, "PutObject", target.uri(), words).into());
        }
        Ok(Stored { etag: answer.e_tag.unwrap_or_default(), bytes })
    }
}

/// Returns whether a failed conditional put says nothing yet: what stands there does.
pub(super) fn asks_for_a_look(error: &CloudError) -> bool {
    matches!(error.kind, Kind::Precondition | Kind::Conflict | Kind::NotFound | Kind::Corrupt) || error.is_ambiguous()
}

/// Returns whether the object's bytes are the body's: by size and by the checksum of the whole object. Without a
/// checksum nobody can say so.
async fn is_body(object: &Object, body: &Body<'_>) -> Result<bool, StoreError> {
    let Some(checksum) = &object.checksum else { return Ok(false) };
    if body.bytes().await? != object.bytes {
        return Ok(false);
    }
    Ok(checksum.is(body.checksum(checksum.algorithm()).await?))
}

/// Returns whether the object's task is known in this table and has failed: then what it left is no result.
async fn has_failed(ledger: &Ledger, found: &MarkedObject) -> Result<bool, CloudError> {
    let Some(src) = found.task_of(&ledger.tables().tasks) else { return Ok(false) };
    Ok(ledger.task(&src).await?.is_some_and(|task| task.state == State::Failed))
}

fn taken(target: &Target<'_>, mark: &Mark, found: &MarkedObject, table: &str) -> StoreError {
    StoreError::Taken { uri: target.uri(), holder: found.holder(table), wanted_by: mark.holder() }
}

/// The slowest connection that is borne while a body is sent, in bytes per second. Eight of them are 2 Mbit/s.
const SENDING_BYTES_PER_S: u64 = 32 * 1024;
/// S3 answers a `CompleteMultipartUpload` with the head of its answer, as a rule, and then with spaces while it puts
/// the parts together, which takes "several minutes" of 10,000 parts (S3's API reference). The end of that is waited
/// for.
const COMPLETING_TIMEOUT: Duration = Duration::from_mins(10);

/// Returns the settings of a call with so many bytes to send: the time for the body beside the usual one. A part of 8
/// MiB has 276 s. That the connection is dead is found earlier: the SDK ends a call whose body stands still.
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
