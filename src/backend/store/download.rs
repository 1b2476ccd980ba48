//! Downloads: streamed to disk, large ones in parallel ranges that are pinned to one `ETag`.

use std::path::Path;

use aws_sdk_s3::types::ChecksumMode;
use crc_fast::{CrcAlgorithm, Digest};
use tokio::fs::File;
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

/// How often a download starts over because the object was replaced meanwhile.
const OBJECT_TRIES_MAX: u32 = 3;
/// Room that is left free beside the input, for the log and the workload's first writes.
pub const SPARE_BYTES: u64 = 64 * 1024 * 1024;

/// A finished download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Its size in bytes.
    pub bytes: u64,
    /// The `ETag` all its ranges were pinned to.
    pub etag: String,
}

/// One range of an object under way.
struct Range {
    bucket: String,
    key: String,
    etag: String,
    start: u64,
    bytes: u64,
    is_whole: bool,
}

/// Why a range did not arrive.
enum RangeError {
    Changed,
    Store(StoreError),
}

impl Store {
    /// Downloads an object to `file`, which is made or replaced.
    ///
    /// Free space is checked first. Objects above 8 MiB come in parallel ranges, all of one `ETag`; if the object is
    /// replaced meanwhile, the download starts over. Length and, where S3 keeps one, checksum are verified.
    ///
    /// # Errors
    /// [`StoreError`]: `Cloud` with `NotFound` if there is no such object, `DiskFull`, `Changed`, `Disk`. What has been
    /// written is left to the caller, whose folder it is.
    pub async fn download(&self, bucket: &str, key: &str, file: &Path) -> Result<Downloaded, StoreError> {
        for _ in 0..OBJECT_TRIES_MAX {
            let missing = || CloudError::new(Kind::NotFound, "HeadObject", uri(bucket, key), "there is no such object");
            let object = self.head(bucket, key).await?.ok_or_else(missing)?;
            check_room(file, object.bytes)?;
            match self.download_once(bucket, key, file, &object).await {
                Ok(()) => return Ok(Downloaded { bytes: object.bytes, etag: object.etag }),
                Err(RangeError::Changed) => {
                    tracing::warn!("{} changed during the download: starting over", uri(bucket, key));
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
        // Losing the rest on an error is safe: the file is started over or thrown away.
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

    /// Fetches one range, with a few tries, and returns its checksum (0 if none is wanted).
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
            // The SDK verifies any checksum S3 keeps, of whole objects only.
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
        while let Some(chunk) = body.try_next().await.map_err(|e| broken(format!("the body broke off: {e}")))? {
            received += chunk.len() as u64;
            if received > range.bytes {
                return Err(broken(format!("more than the {} bytes asked for arrived", range.bytes)));
            }
            if let Some(digest) = &mut digest {
                digest.update(&chunk);
            }
            target.write_all(&chunk).await.map_err(|e| disk("writing", e))?;
        }
        target.flush().await.map_err(|e| disk("writing", e))?;
        if received < range.bytes {
            return Err(broken(format!("{received} of {} bytes arrived", range.bytes)));
        }
        Ok(digest.map_or(0, |digest| digest.finalize()))
    }
}

fn check_room(file: &Path, bytes: u64) -> Result<(), StoreError> {
    let folder = file.parent().unwrap_or(file);
    let free = free_bytes(folder).map_err(|e| StoreError::disk("asking the free space of", folder, e))?;
    let need_bytes = bytes.saturating_add(SPARE_BYTES);
    if free < need_bytes {
        return Err(StoreError::DiskFull { path: folder.to_owned(), need_bytes, free_bytes: free });
    }
    Ok(())
}

/// Compares the checksum of all ranges with S3's.
fn verify(bucket: &str, key: &str, checksum: &Checksum, crc: u64) -> Result<(), StoreError> {
    if checksum.is(crc) {
        return Ok(());
    }
    let words = format!("its {} is {}, not the {} that S3 keeps", checksum.name, checksum.encode(crc), checksum.base64);
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
