//! The client of S3: reads metadata of objects, lists and deletes objects.

use std::sync::{Arc, Mutex};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::types::{
    ChecksumMode, Delete, EncodingType, ObjectIdentifier, ObjectStorageClass, OptionalObjectAttributes,
};
use percent_encoding::percent_decode_str;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::meter;
use super::object::{Object, read_head, uri};
use super::part::{MEMORY_BYTES_MAX, MultipartUpload, connections, files_parallel};
use crate::backend::error::{CloudError, Kind};
use crate::backend::sdk::Wire;

/// The memory of a connection that uploads, in blocks.
const CONNECTION_BLOCKS: usize = (MEMORY_BYTES_MAX / BLOCK_BYTES) as usize;
/// The size of a block, which is the minimum memory of an upload.
const BLOCK_BYTES: u64 = 64 * 1024;

/// The S3 client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) client: Client,
    pub(super) meter: Arc<meter::Meter>,
    /// The free memory of all files and parts that are uploaded, in blocks: 1 MiB for each connection, for all slots of
    /// a node together. The node needs it in addition to the memory limits of workloads.
    room: Arc<Semaphore>,
    /// The downloads that may begin.
    pub(super) downloads: Arc<Semaphore>,
    /// The free connections for the ranges of downloads, for all slots of a node together.
    pub(super) ranges: Arc<Semaphore>,
    /// Multipart uploads whose future was dropped. Their parts cost money until they are aborted.
    pub(super) dropped: Arc<Mutex<Vec<MultipartUpload>>>,
}

impl Store {
    /// Creates the client. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire) -> Self {
        let config = Builder::from(&wire.config)
            .retry_classifier(wire.renewal.clone())
            .force_path_style(wire.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            .response_checksum_validation(ResponseChecksumValidation::WhenSupported)
            .build();
        Self {
            client: Client::from_conf(config),
            meter: Arc::default(),
            room: Arc::new(Semaphore::new(connections() * CONNECTION_BLOCKS)),
            downloads: Arc::new(Semaphore::new(files_parallel())),
            ranges: Arc::new(Semaphore::new(connections())),
            dropped: Arc::default(),
        }
    }

    /// Waits for the memory of a file or part of this size in bytes. Dropping the value returns it. A streamed part
    /// counts like one in memory. Waiters are served in their order, so that none waits forever.
    pub(super) async fn take_room(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let blocks = bytes.min(MEMORY_BYTES_MAX).div_ceil(BLOCK_BYTES).max(1);
        // This fails only if the semaphore is closed, which never happens.
        self.room.acquire_many(u32::try_from(blocks).unwrap_or(1)).await.ok()
    }

    /// Returns the upload speed of this process in bytes per second; `None` if too little was uploaded.
    #[must_use]
    pub fn upload_speed(&self) -> Option<u64> {
        self.meter.speed()
    }

    /// Returns the number of bytes that this process uploaded.
    #[must_use]
    pub fn uploaded_bytes(&self) -> u64 {
        self.meter.total()
    }

    /// Reads an object's metadata; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CloudError`]; `NoBucket` if the bucket does not exist. (Without `s3:ListBucket`, S3 returns 403 for a missing
    /// key.)
    pub async fn head(&self, bucket: &str, key: &str) -> Result<Option<Object>, CloudError> {
        let answer = self
            .client
            .head_object()
            .bucket(bucket)
            .key(key)
            .checksum_mode(ChecksumMode::Enabled)
            .send()
            .await
            .map_err(|error| CloudError::sdk("HeadObject", uri(bucket, key), error));
        match answer {
            Ok(head) => Ok(Some(read_head(&head))),
            Err(error) if error.kind == Kind::NotFound => {
                // The scope of a missing bucket depends on the operation: here, one object.
                self.check_bucket(bucket).await.map_err(|error| CloudError { operation: "HeadObject", ..error })?;
                Ok(None)
            }
            Err(error) if error.is_without_words() && !error.is_retryable() => {
                Err(self.reason(bucket, key, error).await)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the reason for a refused HEAD request, whose answer has no message. The GET request reads at most one
    /// byte.
    async fn reason(&self, bucket: &str, key: &str, refusal: CloudError) -> CloudError {
        let Err(error) = self.get(bucket, key, Some("bytes=0-0".to_owned())).await else { return refusal };
        if error.kind == Kind::NotFound || error.is_without_words() { refusal } else { error }
    }

    /// Reads a whole object into memory: for logs, which have at most 6 MiB, and indexes.
    ///
    /// # Errors
    /// [`CloudError`]; `NotFound` if the object does not exist.
    pub async fn read(&self, bucket: &str, key: &str) -> Result<Vec<u8>, CloudError> {
        self.read_part(bucket, key, None).await
    }

    /// Reads the last bytes of an object into memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_tail(&self, bucket: &str, key: &str, bytes: u64) -> Result<Vec<u8>, CloudError> {
        match self.read_part(bucket, key, Some(format!("bytes=-{bytes}"))).await {
            // An empty object has no range (`InvalidRange`).
            Err(error) if error.kind == Kind::Invalid => self.read(bucket, key).await,
            read => read,
        }
    }

    async fn read_part(&self, bucket: &str, key: &str, range: Option<String>) -> Result<Vec<u8>, CloudError> {
        let failed = |words: String| CloudError::new(Kind::Unreachable, "GetObject", uri(bucket, key), words);
        let answer = self.get(bucket, key, range).await?;
        let body = answer.body.collect().await.map_err(|error| failed(error.to_string()))?;
        Ok(body.into_bytes().to_vec())
    }

    /// Requests an object, or a range of it. The body is read later.
    pub(super) async fn get(
        &self,
        bucket: &str,
        key: &str,
        range: Option<String>,
    ) -> Result<GetObjectOutput, CloudError> {
        self.get_matching(bucket, key, range, None).await
    }

    /// Requests an object, or a range of it, if it has this `ETag`.
    pub(super) async fn get_matching(
        &self,
        bucket: &str,
        key: &str,
        range: Option<String>,
        etag: Option<&str>,
    ) -> Result<GetObjectOutput, CloudError> {
        // The SDK verifies any checksum that S3 stores, but only for whole objects.
        let mode = range.is_none().then_some(ChecksumMode::Enabled);
        let get = self.client.get_object().bucket(bucket).key(key).set_checksum_mode(mode);
        let get = get.set_range(range).set_if_match(etag.map(ToOwned::to_owned));
        get.send().await.map_err(|error| CloudError::sdk("GetObject", uri(bucket, key), error))
    }

    /// Lists the keys that start with `prefix`.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, CloudError> {
        Ok(self.list_objects(bucket, prefix).await?.into_iter().map(|object| object.key).collect())
    }

    /// Lists the objects whose keys start with `prefix`, and whether each is readable without a restore.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn list_objects(&self, bucket: &str, prefix: &str) -> Result<Vec<Listed>, CloudError> {
        let list = self.client.list_objects_v2().bucket(bucket).prefix(prefix);
        let list = list.optional_object_attributes(OptionalObjectAttributes::RestoreStatus);
        // XML cannot contain most control characters, but keys can.
        let list = list.encoding_type(EncodingType::Url);
        let mut pages = list.into_paginator().send();
        let mut objects = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| CloudError::sdk("ListObjectsV2", uri(bucket, prefix), e))?;
            let is_encoded = page.encoding_type() == Some(&EncodingType::Url);
            let key = |key: &str| if is_encoded { decode_key(key) } else { key.to_owned() };
            objects.extend(
                page.contents()
                    .iter()
                    .filter_map(|object| Some(Listed { key: key(object.key()?), is_archived: is_archived(object) })),
            );
        }
        Ok(objects)
    }

    /// Deletes objects: one request per 1,000, and one per key that XML cannot contain. May be repeated.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn delete(&self, bucket: &str, keys: &[String]) -> Result<(), CloudError> {
        let (plain, odd): (Vec<_>, Vec<_>) = keys.iter().partition(|key| !key.contains(is_no_xml));
        for key in odd {
            let answer = self.client.delete_object().bucket(bucket).key(key).send().await;
            answer.map_err(|e| CloudError::sdk("DeleteObject", uri(bucket, key), e))?;
        }
        for keys in plain.chunks(1000) {
            let objects = keys.iter().filter_map(|key| ObjectIdentifier::builder().key(*key).build().ok()).collect();
            let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build();
            let delete = delete.map_err(|e| CloudError::new(Kind::Invalid, "DeleteObjects", bucket, e.to_string()))?;
            let answer = self.client.delete_objects().bucket(bucket).delete(delete).send().await;
            answer.map_err(|e| CloudError::sdk("DeleteObjects", format!("bucket {bucket}"), e))?;
        }
        Ok(())
    }

    /// Checks that a bucket exists. The HEAD request of an object returns 404 for a missing bucket and for a missing
    /// key.
    ///
    /// # Errors
    /// [`CloudError`]; `NoBucket` if it does not exist.
    pub async fn check_bucket(&self, bucket: &str) -> Result<(), CloudError> {
        let resource = || format!("bucket {bucket}");
        let Err(error) = self.client.head_bucket().bucket(bucket).send().await else { return Ok(()) };
        let mut error = CloudError::sdk("HeadBucket", resource(), error);
        if error.kind == Kind::Invalid && error.is_without_words() {
            // For expired credentials, and for some buckets in another region, a HEAD request returns 400 without a
            // reason. A listing returns the reason.
            let list = self.client.list_objects_v2().bucket(bucket).max_keys(1).send().await;
            let Err(reason) = list else { return Ok(()) };
            error = CloudError::sdk("ListObjectsV2", resource(), reason);
        }
        match error.kind {
            Kind::NotFound => {
                Err(CloudError::new(Kind::NoBucket, "HeadBucket", resource(), "the bucket does not exist"))
            }
            // A role that may read objects but not list the bucket is sufficient.
            Kind::AccessDenied => Ok(()),
            _ => Err(error),
        }
    }
}

/// An object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// Whether it is archived and not restored, so that a read is refused (`InvalidObjectState`). The listing does not
    /// show this for objects in Intelligent-Tiering.
    pub is_archived: bool,
}

/// Returns whether XML cannot contain a character, or could change it: control characters.
/// Source: <https://www.w3.org/TR/xml/#charsets>.
fn is_no_xml(character: char) -> bool {
    character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}')
}

/// Decodes a key of a listing with `encoding-type=url`: percent-encoded, with `+` for a space.
fn decode_key(key: &str) -> String {
    percent_decode_str(&key.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn is_archived(object: &aws_sdk_s3::types::Object) -> bool {
    // A restored object keeps its storage class; the readable copy has an expiry date.
    let is_restored = object.restore_status().is_some_and(|status| status.restore_expiry_date().is_some());
    matches!(object.storage_class(), Some(ObjectStorageClass::Glacier | ObjectStorageClass::DeepArchive))
        && !is_restored
}
