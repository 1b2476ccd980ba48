//! Downloads: streamed to the disk; large objects in parallel ranges with one `ETag`.

use std::path::Path;

use aws_sdk_s3::types::ChecksumMode;
use crc_fast::{CrcAlgorithm, Digest};
use lighthpc_runtime::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, SeekFrom};

use super::client::Store;
use super::disk::free_bytes;
use super::error::StoreError;
use super::object::{Checksum, Object, uri};
use super::part::{PART_BYTES, PART_TRIES_MAX, PARTS_PARALLEL};
use super::sums::Sums;
use crate::backend::error::{CloudError, Kind};
use crate::backend::parallel::Parallel;
use crate::domain::backoff;

/// The maximum number of downloads of one object that changes meanwhile.
const OBJECT_TRIES_MAX: u32 = 3;
/// The space that must remain free beside the input, for the log and the workload's first writes.
pub const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// A finished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// The size in bytes.
    pub bytes: u64,
    /// The `ETag` of all ranges.
    pub etag: String,
}

/// A range of an object that is downloaded.
struct Range {
    bucket: String,
    key: String,
    etag: String,
    start: u64,
    bytes: u64,
    is_whole: bool,
}

/// The failure of a range.
enum RangeError {
    Changed,
    Store(StoreError),
}

impl Store {
    /// Downloads an object to `file`, which is created or replaced.
    ///
    /// Checks the free space first. Objects above 8 MiB are downloaded in parallel ranges with the same `ETag`; if the
    /// object is replaced meanwhile, the download starts again. Verifies the length and, if S3 stores one, the
    /// checksum.
    ///
    /// # Errors
    /// [`StoreError`]: `Cloud` with `NotFound` if the object does not exist, `DiskFull`, `Changed`, `Disk`. The caller
    /// removes the incomplete file.
    pub async fn download(&self, bucket: &str, key: &str, file: &Path) -> Result<Downloaded, StoreError> {
        for _ in 0..OBJECT_TRIES_MAX {
            let missing =
                || CloudError::new(Kind::NotFound, "HeadObject", uri(bucket, key), "the object does not exist");
            let object = self.head(bucket, key).await?.ok_or_else(missing)?;
            check_room(file, object.bytes)?;
            match self.download_once(bucket, key, file, &object).await {
                Ok(()) => return Ok(Downloaded { bytes: object.bytes, etag: object.etag }),
                Err(RangeError::Changed) => {
                    tracing::warn!("{} changed during the download: downloading it again", uri(bucket, key));
                }
                Err(RangeError::Store(error)) => return Err(error),
            }
        }
        Err(StoreError::Changed { uri: uri(bucket, key), tries: OBJECT_TRIES_MAX })
    }

    async fn download_once(&self, bucket: &str, key: &str, file: &Path, object: &Object) -> Result<(), RangeError> {
        let disk = |doing, error| RangeError::Store(StoreError::disk(doing, file, error));
        let target = File::create(file).await.map_err(|e| disk("creating", e))?;
        target.set_len(object.bytes).await.map_err(|e| disk("sizing", e))?;
        drop(target);

        let checksum = object.checksum.as_ref();
        let algorithm = checksum.map(Checksum::algorithm);
        let starts = (0..object.bytes).step_by(usize::try_from(PART_BYTES).unwrap_or(usize::MAX));
        let ranges = starts.map(|start| {
            let range = Range {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                etag: object.etag.clone(),
                start,
                bytes: PART_BYTES.min(object.bytes - start),
                is_whole: object.bytes <= PART_BYTES,
            };
            let (store, file) = (self.clone(), file.to_owned());
            async move {
                let crc = store.range(&range, &file, algorithm).await?;
                Ok::<_, RangeError>((range.start, range.bytes, crc))
            }
        });
        let (mut ranges, mut sums) = (Parallel::new(PARTS_PARALLEL, ranges), algorithm.map(Sums::new));
        // The rest may be dropped on an error: the file is downloaded again or removed.
        while let Some(part) = ranges.next().await {
            let (start, bytes, crc) = part.map_err(|panic| disk("downloading to", std::io::Error::other(panic)))??;
            if let Some(sums) = &mut sums {
                sums.add(start, bytes, crc);
            }
        }
        match (checksum, sums) {
            (Some(checksum), Some(sums)) if object.bytes > 0 => {
                verify(bucket, key, checksum, sums.total()).map_err(RangeError::Store)
            }
            _ => Ok(()),
        }
    }

    /// Downloads one range with a few retries, and returns its checksum (0 if none is needed).
    async fn range(&self, range: &Range, file: &Path, algorithm: Option<CrcAlgorithm>) -> Result<u64, RangeError> {
        let mut tries = 0;
        loop {
            let error = match self.range_once(range, file, algorithm).await {
                Ok(crc) => return Ok(crc),
                Err(RangeError::Store(StoreError::Cloud(error))) => error,
                Err(other) => return Err(other),
            };
            tries += 1;
            if error.kind == Kind::Precondition {
                return Err(RangeError::Changed);
            }
            if !error.is_retryable() || tries >= PART_TRIES_MAX {
                return Err(RangeError::Store(error.into()));
            }
            tokio::time::sleep(backoff::delay(tries, rand::random())).await;
        }
    }

    async fn range_once(&self, range: &Range, file: &Path, algorithm: Option<CrcAlgorithm>) -> Result<u64, RangeError> {
        let name = || uri(&range.bucket, &range.key);
        let mut get = self.client.get_object().bucket(&range.bucket).key(&range.key).if_match(&range.etag);
        if range.is_whole {
            // The SDK verifies any checksum that S3 stores, but only for whole objects.
            get = get.checksum_mode(ChecksumMode::Enabled);
        } else {
            get = get.range(format!("bytes={}-{}", range.start, range.start + range.bytes - 1));
        }
        let answer = get.send().await.map_err(|e| RangeError::Store(CloudError::sdk("GetObject", name(), e).into()))?;

        let disk = |doing, error| RangeError::Store(StoreError::disk(doing, file, error));
        let mut target = File::options().write(true).open(file).await.map_err(|e| disk("opening", e))?;
        target.seek(SeekFrom::Start(range.start)).await.map_err(|e| disk("seeking in", e))?;
        let mut digest = algorithm.map(Digest::new);
        let mut body = answer.body;
        let mut received = 0_u64;
        let broken =
            |words: String| RangeError::Store(CloudError::new(Kind::Unreachable, "GetObject", name(), words).into());
        while let Some(chunk) = body.try_next().await.map_err(|e| broken(format!("the body was interrupted: {e}")))? {
            received += chunk.len() as u64;
            if received > range.bytes {
                return Err(broken(format!("received more than the requested {} bytes", range.bytes)));
            }
            if let Some(digest) = &mut digest {
                digest.update(&chunk);
            }
            target.write_all(&chunk).await.map_err(|e| disk("writing", e))?;
        }
        target.flush().await.map_err(|e| disk("writing", e))?;
        if received < range.bytes {
            return Err(broken(format!("received {received} of {} bytes", range.bytes)));
        }
        Ok(digest.map_or(0, |digest| digest.finalize()))
    }
}

fn check_room(file: &Path, bytes: u64) -> Result<(), StoreError> {
    let folder = file.parent().unwrap_or(file);
    let free = free_bytes(folder).map_err(|e| StoreError::disk("reading the free space of", folder, e))?;
    let need_bytes = bytes.saturating_add(SPARE_BYTES);
    if free < need_bytes {
        return Err(StoreError::DiskFull { path: folder.to_owned(), need_bytes, free_bytes: free });
    }
    Ok(())
}

/// Compares the checksum of all ranges with the one that S3 stores.
fn verify(bucket: &str, key: &str, checksum: &Checksum, crc: u64) -> Result<(), StoreError> {
    if checksum.is(crc) {
        return Ok(());
    }
    let words = format!("its {} is {}, but S3 stores {}", checksum.name, checksum.encode(crc), checksum.base64);
    Err(CloudError::new(Kind::Corrupt, "GetObject", uri(bucket, key), words).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_combine_to_the_whole_objects_checksum() {
        let all = b"123456789";
        for (name, check) in [("CRC-64/NVME", "rosUhgp5mIg="), ("CRC-32", "y/Q5Jg=="), ("CRC-32C", "4waSgw==")] {
            let checksum = Checksum { name, base64: check.to_owned() };
            let sum = |first: &[u8]| {
                let mut sums = Sums::new(checksum.algorithm());
                let crc = |bytes: &[u8]| crc_fast::checksum(checksum.algorithm(), bytes);
                sums.add(7, 2, crc(&all[7..]));
                sums.add(0, 4, crc(first));
                sums.add(4, 3, crc(&all[4..7]));
                sums.total()
            };

            verify("b", "k", &checksum, sum(&all[..4])).unwrap();

            assert!(verify("b", "k", &checksum, sum(b"1243")).is_err());
        }
    }
}
