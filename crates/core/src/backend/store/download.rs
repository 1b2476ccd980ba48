//! Downloads: streamed to the disk; large objects in parallel ranges with one `ETag`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use tokio::time::Instant;

use super::client::Store;
use super::disk::free_bytes;
use super::error::StoreError;
use super::object::{Checksum, Object, read_get, uri};
use super::pace::Pace;
use super::part::{PART_BYTES, PART_TRIES_MAX, connections};
use super::sums::Sums;
use crate::backend::error::{CloudError, Kind};
use crate::backend::parallel::Parallel;
use crate::domain::backoff;

/// The maximum number of downloads of one object that changes meanwhile.
const OBJECT_TRIES_MAX: u32 = 3;
/// The space that must remain free beside the input, for the log and the workload's first writes.
pub const SPARE_BYTES: u64 = 64 * 1024 * 1024;
/// What arrives of a range is written in pieces of this size.
const WRITE_BYTES: usize = 512 * 1024;

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
    /// Whether it is the whole object.
    is_whole: bool,
}

/// The file that is downloaded to. All ranges write to it. The first write creates or replaces it: for a small object,
/// one call of the disk is enough.
#[derive(Clone)]
struct Target {
    path: PathBuf,
    bytes: u64,
    place: Arc<Mutex<Place>>,
}

/// Where a download writes.
#[derive(Debug, Default)]
enum Place {
    #[default]
    New,
    Open(Arc<File>),
    /// The download has ended. A write that begins later, on a thread that was busy, writes nothing: the path may be that
    /// of the next download.
    Closed,
}

/// Closes a target when the download ends.
struct Closing<'a>(&'a Target);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        *self.0.locked() = Place::Closed;
    }
}

impl Target {
    fn new(path: &Path, bytes: u64) -> Self {
        Self { path: path.to_owned(), bytes, place: Arc::default() }
    }

    /// Writes blocks from `at` on.
    async fn write(&self, blocks: Vec<Bytes>, mut at: u64) -> io::Result<()> {
        let target = self.clone();
        let write = move || {
            let file = target.open()?;
            for block in blocks {
                lighthpc_runtime::write_at(&file, &block, at)?;
                at += block.len() as u64;
            }
            Ok(())
        };
        lighthpc_runtime::blocking(write).await.map_err(io::Error::other).flatten()
    }

    /// Returns the file, which has its size from the beginning. Blocks.
    fn open(&self) -> io::Result<Arc<File>> {
        let mut place = self.locked();
        match &*place {
            Place::Open(file) => Ok(file.clone()),
            Place::Closed => Err(io::Error::other("the download has ended")),
            Place::New => {
                // A new file, not the old one emptied: a write of an earlier try may still go on, and must not reach it.
                match std::fs::remove_file(&self.path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let file = Arc::new(File::create_new(&self.path)?);
                file.set_len(self.bytes)?;
                *place = Place::Open(file.clone());
                Ok(file)
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The failure of a range.
enum RangeError {
    Changed,
    Store(StoreError),
}

impl Store {
    /// Downloads an object to `file`, which is created or replaced.
    ///
    /// One request brings the size, the `ETag`, the checksum, and an object of up to 8 MiB. Of a larger one it brings the
    /// first 8 MiB; the rest is downloaded in parallel ranges with the same `ETag`. If the object is replaced meanwhile,
    /// the download starts again. Checks the free space before it writes, and verifies the length and, if S3 stores one,
    /// the checksum.
    ///
    /// # Errors
    /// [`StoreError`]: `Cloud` with `NotFound` if the object does not exist, `DiskFull`, `Changed`, `Disk`. The caller
    /// removes the incomplete file.
    pub async fn download(&self, bucket: &str, key: &str, file: &Path) -> Result<Downloaded, StoreError> {
        // For all slots together. (This fails only if the semaphore is closed.)
        let _begun = self.downloads.acquire().await.ok();
        for _ in 0..OBJECT_TRIES_MAX {
            let answer = self.get(bucket, key, None).await?;
            if answer.content_length().is_none() {
                // Without it, an object that ends early would not be noticed.
                let words = "the answer has no Content-Length";
                return Err(CloudError::new(Kind::Corrupt, "GetObject", uri(bucket, key), words).into());
            }
            let object = read_get(&answer);
            check_room(file, object.bytes)?;
            match self.download_once(bucket, key, file, &object, answer.body).await {
                Ok(()) => return Ok(Downloaded { bytes: object.bytes, etag: object.etag }),
                Err(RangeError::Changed) => {
                    tracing::warn!("{} changed during the download: downloading it again", uri(bucket, key));
                }
                Err(RangeError::Store(error)) => return Err(error),
            }
        }
        Err(StoreError::Changed { uri: uri(bucket, key), tries: OBJECT_TRIES_MAX })
    }

    /// Downloads the object whose beginning, or all, is in `body`.
    async fn download_once(
        &self,
        bucket: &str,
        key: &str,
        file: &Path,
        object: &Object,
        body: ByteStream,
    ) -> Result<(), RangeError> {
        let disk = |doing| move |error| RangeError::Store(StoreError::disk(doing, file, error));
        let target = Target::new(file, object.bytes);
        let _closing = Closing(&target);
        if object.bytes == 0 {
            target.write(Vec::new(), 0).await.map_err(disk("creating"))?;
        }

        let checksum = object.checksum.as_ref();
        let algorithm = checksum.map(Checksum::algorithm);
        let starts = (0..object.bytes).step_by(usize::try_from(PART_BYTES).unwrap_or(usize::MAX));
        let mut first = Some(body);
        let pace = Arc::new(Pace::default());
        let ranges = starts.map(|start| {
            let range = Range {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                etag: object.etag.clone(),
                start,
                bytes: PART_BYTES.min(object.bytes - start),
                is_whole: object.bytes <= PART_BYTES,
            };
            let (store, target, body, pace) = (self.clone(), target.clone(), first.take(), Arc::clone(&pace));
            async move {
                // The first range has its connection already. (This fails only if the semaphore is closed.)
                let _connection = if body.is_some() { None } else { store.ranges.acquire().await.ok() };
                let crc = store.range(&range, &target, algorithm, body, &pace).await?;
                Ok::<_, RangeError>((range.start, range.bytes, crc))
            }
        });
        let (mut ranges, mut sums) = (Parallel::new(connections(), ranges), algorithm.map(Sums::new));
        // The rest may be dropped on an error: the file is downloaded again or removed.
        while let Some(part) = ranges.next().await {
            let (start, bytes, crc) = part.map_err(io::Error::other).map_err(disk("downloading to"))??;
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

    /// Downloads one range with a few retries, and returns its checksum (0 if none is needed). The first try reads
    /// `body`, if there is one: an answer that begins where the range does. If it is slow, the range is requested again,
    /// once.
    async fn range(
        &self,
        range: &Range,
        target: &Target,
        algorithm: Option<CrcAlgorithm>,
        mut body: Option<ByteStream>,
        pace: &Pace,
    ) -> Result<u64, RangeError> {
        let mut tries = 0;
        let mut pace = Some(pace);
        loop {
            let error = match self.range_once(range, target, algorithm, body.take(), pace).await {
                Ok(Some(crc)) => return Ok(crc),
                Ok(None) => {
                    let (start, uri) = (range.start, uri(&range.bucket, &range.key));
                    tracing::debug!("the range of {uri} from byte {start} is slow: requesting it again");
                    pace = None;
                    continue;
                }
                Err(RangeError::Store(StoreError::Cloud(error))) => error,
                Err(other) => return Err(other),
            };
            pace = None;
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

    /// Downloads one range, and returns its checksum; `None` if it is slow.
    async fn range_once(
        &self,
        range: &Range,
        target: &Target,
        algorithm: Option<CrcAlgorithm>,
        body: Option<ByteStream>,
        pace: Option<&Pace>,
    ) -> Result<Option<u64>, RangeError> {
        let started = Instant::now();
        // It is looked at where nothing is written: a write that goes on could replace that of the next try.
        let mut slow = pin!(async {
            match pace {
                Some(pace) => pace.slow(started).await,
                None => std::future::pending().await,
            }
        });
        let Range { bucket, key, etag, start, bytes, is_whole } = range;
        // The answer to the request of the whole object, of which this range is the beginning.
        let is_longer = body.is_some() && !is_whole;
        let mut body = if let Some(body) = body {
            body
        } else {
            let part = (!is_whole).then(|| format!("bytes={start}-{}", start + bytes - 1));
            let answer = tokio::select! {
                answer = self.get_matching(bucket, key, part, Some(etag)) => answer,
                () = &mut slow => return Ok(None),
            };
            answer.map_err(|error| RangeError::Store(error.into()))?.body
        };
        let broken = |words: String| {
            RangeError::Store(CloudError::new(Kind::Unreachable, "GetObject", uri(bucket, key), words).into())
        };
        let mut digest = algorithm.map(Digest::new);
        let disk = |error| RangeError::Store(StoreError::disk("writing", &target.path, error));
        let mut writer = RangeWriter { target, at: *start, blocks: Vec::new(), held: 0 };
        let mut received = 0_u64;
        // A body is read to its end, because the SDK compares checksums there.
        loop {
            let next = tokio::select! {
                biased;
                next = body.try_next() => next,
                () = &mut slow => return Ok(None),
            };
            let next = next.map_err(|error| broken(format!("the body was interrupted: {error}")))?;
            let Some(mut block) = next else { break };
            let left = usize::try_from(bytes - received).unwrap_or(usize::MAX);
            if block.len() > left && !is_longer {
                return Err(broken(format!("received more than the requested {bytes} bytes")));
            }
            block.truncate(left);
            received += block.len() as u64;
            if let Some(digest) = &mut digest {
                digest.update(&block);
            }
            writer.add(block).await.map_err(disk)?;
            if is_longer && received == *bytes {
                break;
            }
        }
        writer.flush().await.map_err(disk)?;
        if received < *bytes {
            return Err(broken(format!("received {received} of {bytes} bytes")));
        }
        if let Some(pace) = pace {
            pace.finished(started.elapsed());
        }
        Ok(Some(digest.map_or(0, |digest| digest.finalize())))
    }
}

/// Writes the blocks of a range at their place, some together, so that few threads are asked.
struct RangeWriter<'a> {
    target: &'a Target,
    at: u64,
    blocks: Vec<Bytes>,
    held: usize,
}

impl RangeWriter<'_> {
    async fn add(&mut self, block: Bytes) -> io::Result<()> {
        self.held += block.len();
        self.blocks.push(block);
        if self.held >= WRITE_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> io::Result<()> {
        let (blocks, at) = (std::mem::take(&mut self.blocks), self.at);
        self.at += self.held as u64;
        self.held = 0;
        self.target.write(blocks, at).await
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

    /// A range of a try that was given up may still be writing when the next try begins.
    #[tokio::test]
    async fn a_late_write_of_a_download_that_was_given_up_does_not_reach_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("input");
        let (first, next) = (Target::new(&path, 3), Target::new(&path, 3));
        let block = |text: &'static str| vec![Bytes::from_static(text.as_bytes())];
        first.write(block("old"), 0).await.unwrap();
        let writing = first.open().unwrap();
        drop(Closing(&first));

        next.write(block("new"), 0).await.unwrap();
        lighthpc_runtime::write_at(&writing, b"old", 0).unwrap();

        assert!(first.write(block("old"), 0).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

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
