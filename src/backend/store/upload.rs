//! Uploads: results under the fence, and plain objects.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::base64;
use crc_fast::{CrcAlgorithm, checksum, checksum_combine};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
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
const CRC: CrcAlgorithm = CrcAlgorithm::Crc32IsoHdlc;
/// S3's limit of parts in one upload.
const PARTS_MAX: u64 = 10_000;
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
enum Condition {
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

    fn on_complete(&self, complete: CompleteMultipartUploadFluentBuilder) -> CompleteMultipartUploadFluentBuilder {
        match self {
            Self::Any => complete,
            Self::Absent => complete.if_none_match("*"),
            Self::Matches(etag) => complete.if_match(etag),
        }
    }
}

/// Where an object goes, and whose it is.
#[derive(Clone, Debug)]
struct Target<'a> {
    bucket: &'a str,
    key: &'a str,
    fence: Option<&'a Fence>,
}

impl Target<'_> {
    fn uri(&self) -> String {
        uri(self.bucket, self.key)
    }

    fn meta(&self) -> Option<std::collections::HashMap<String, String>> {
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

    /// Uploads in parts and completes on the condition; whatever fails, the upload is aborted, for its parts bill.
    async fn put_parts(
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
        let permits = Arc::new(Semaphore::new(PARTS_PARALLEL));
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

fn crc_base64(crc: u64) -> String {
    base64::encode(&crc.to_be_bytes()[4..])
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
