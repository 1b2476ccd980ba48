//! Uploads: results under the fence, and plain objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use aws_smithy_types::base64;
use crc_fast::{CrcAlgorithm, checksum};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{CloudError, Kind, PART_BYTES, PARTS_PARALLEL, Store, StoreError, uri};
use crate::backend::Ledger;
use crate::backend::ledger::Fence;

/// Names the attempt that put an object, so that a put whose answer was lost knows its own work again.
pub(super) const META_ATTEMPT: &str = "lighthpc-attempt";
/// Names the instance that put an object.
pub(super) const META_OWNER: &str = "lighthpc-owner";

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
    fence: Option<&'a Fence>,
}

impl Target<'_> {
    pub(super) fn uri(&self) -> String {
        uri(self.bucket, self.key)
    }

    pub(super) fn meta(&self) -> Option<std::collections::HashMap<String, String>> {
        let fence = self.fence?;
        Some(std::collections::HashMap::from([
            (META_ATTEMPT.to_owned(), fence.attempt.to_string()),
            (META_OWNER.to_owned(), fence.owner.to_string()),
        ]))
    }
}

impl Store {
    /// Puts a file as a task's result, under the fence.
    ///
    /// The lease is checked with a consistent read, then the put is conditional: on absence first, and after a refusal on
    /// the `ETag` of what stands there, once the lease is checked again. So the order of events can only be: our check
    /// held when nothing newer was there. What a dead attempt left is overwritten; what a newer attempt put is not.
    /// An object that carries this attempt's own mark is a put whose answer was lost, and counts as stored.
    ///
    /// # Errors
    /// [`StoreError`]; a lost lease is [`Put::LeaseLost`].
    pub async fn put_result(
        &self,
        ledger: &Ledger,
        fence: &Fence,
        bucket: &str,
        key: &str,
        file: &Path,
    ) -> Result<Put, StoreError> {
        let target = Target { bucket, key, fence: Some(fence) };
        let mut condition = Condition::Absent;
        let mut tries = 0;
        loop {
            if !ledger.holds(fence).await? {
                return Ok(Put::LeaseLost);
            }
            let error = match self.put_once(&target, file, &condition).await {
                Ok(stored) => return Ok(Put::Stored(stored)),
                Err(StoreError::Cloud(error)) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            let look_again =
                matches!(error.kind, Kind::Precondition | Kind::Conflict | Kind::NotFound) || error.is_ambiguous();
            if !look_again || tries >= PUT_TRIES_MAX {
                return Err(error.into());
            }
            condition = match self.head(bucket, key).await? {
                Some(object) => {
                    let mine = (fence.attempt.to_string(), fence.owner.to_string());
                    if object.put_by.as_ref() == Some(&mine) {
                        return Ok(Put::Stored(Stored { etag: object.etag, bytes: object.bytes }));
                    }
                    Condition::Matches(object.etag)
                }
                None => Condition::Absent,
            };
        }
    }

    /// Puts the files of a folder under `prefix`, each under the fence, up to eight at once.
    ///
    /// `files` maps keys below the prefix to files. Returns what was stored, by key.
    ///
    /// # Errors
    /// [`StoreError`] of the first file that failed; `Ok(None)` if the lease is lost.
    pub async fn put_results(
        &self,
        ledger: &Ledger,
        fence: &Fence,
        bucket: &str,
        prefix: &str,
        files: BTreeMap<String, PathBuf>,
    ) -> Result<Option<BTreeMap<String, Stored>>, StoreError> {
        let permits = Arc::new(Semaphore::new(PARTS_PARALLEL));
        let mut puts = JoinSet::new();
        for (name, file) in files {
            let (store, ledger, fence, permits) = (self.clone(), ledger.clone(), fence.clone(), permits.clone());
            let (bucket, key) = (bucket.to_owned(), format!("{prefix}{name}"));
            puts.spawn(async move {
                let _permit = permits.acquire_owned().await;
                (name, store.put_result(&ledger, &fence, &bucket, &key, &file).await)
            });
        }
        let mut stored = BTreeMap::new();
        while let Some(put) = puts.join_next().await {
            let (name, put) =
                put.map_err(|panic| StoreError::disk("uploading", Path::new(prefix), std::io::Error::other(panic)))?;
            match put? {
                Put::Stored(object) => stored.insert(name, object),
                Put::LeaseLost => return Ok(None),
            };
        }
        Ok(Some(stored))
    }

    /// Puts a file, whatever stands there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_file(&self, bucket: &str, key: &str, file: &Path) -> Result<Stored, StoreError> {
        self.put_once(&Target { bucket, key, fence: None }, file, &Condition::Any).await
    }

    /// Puts a few bytes, whatever stands there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_bytes(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Result<Stored, StoreError> {
        self.put_whole(&Target { bucket, key, fence: None }, bytes, &Condition::Any).await
    }

    async fn put_once(&self, target: &Target<'_>, file: &Path, condition: &Condition) -> Result<Stored, StoreError> {
        let disk = |doing, error| StoreError::disk(doing, file, error);
        let bytes = tokio::fs::metadata(file).await.map_err(|e| disk("looking at", e))?.len();
        if bytes > PART_BYTES {
            return self.put_parts(target, file, bytes, condition).await;
        }
        let body = tokio::fs::read(file).await.map_err(|e| disk("reading", e))?;
        self.put_whole(target, body, condition).await
    }

    async fn put_whole(&self, target: &Target<'_>, body: Vec<u8>, condition: &Condition) -> Result<Stored, StoreError> {
        let bytes = body.len() as u64;
        let metered = self.meter.begin(bytes);
        let put = self
            .client
            .put_object()
            .bucket(target.bucket)
            .key(target.key)
            .set_metadata(target.meta())
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .checksum_crc32(crc_base64(checksum(CRC, &body)))
            .body(ByteStream::from(body));
        let answer = condition.on_put(put).send().await.map_err(|e| CloudError::sdk("PutObject", target.uri(), e))?;
        metered.done();
        Ok(Stored { etag: answer.e_tag.unwrap_or_default(), bytes })
    }
}

pub(super) fn crc_base64(crc: u64) -> String {
    base64::encode(&crc.to_be_bytes()[4..])
}
