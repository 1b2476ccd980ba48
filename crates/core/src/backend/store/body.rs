//! The content of an upload: a file, or bytes in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum};
use http_body::{Body as HttpBody, Frame, SizeHint};
use rustix::buffer::spare_capacity;

use super::error::StoreError;
use super::part::MEMORY_BYTES_MAX;
use super::sums::CRC;
use crate::backend::error::Kind;

/// The size of a chunk when a file is read for its checksum, or while it is sent.
const CHUNK_BYTES: usize = 256 * 1024;

/// The content of an object that is put.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// A file of any size: the whole file, or its first bytes. A file that became shorter is refused.
    File(&'a Path, Option<u64>),
    /// Bytes in memory; cheap to clone.
    Bytes(Bytes),
}

impl From<Vec<u8>> for Body<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl<'a> From<&'a Path> for Body<'a> {
    fn from(file: &'a Path) -> Self {
        Self::File(file, None)
    }
}

impl<'a> From<&'a std::path::PathBuf> for Body<'a> {
    fn from(file: &'a std::path::PathBuf) -> Self {
        Self::File(file, None)
    }
}

impl Body<'_> {
    /// Returns the size in bytes.
    pub(super) async fn bytes(&self) -> Result<u64, StoreError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(_, Some(bytes)) => Ok(*bytes),
            Self::File(file, None) => {
                let meta = lighthpc_runtime::metadata(file)
                    .await
                    .map_err(|e| StoreError::disk("reading the metadata of", file, e))?;
                Ok(meta.len())
            }
        }
    }

    /// Returns the checksum of the whole content. A file is read in chunks.
    pub(super) async fn checksum(&self, algorithm: CrcAlgorithm) -> Result<u64, StoreError> {
        match self {
            Self::Bytes(bytes) => Ok(checksum(algorithm, bytes)),
            Self::File(file, _) => {
                let bytes = self.bytes().await?;
                with_file(file, move |file| checksum_at(&file, 0, bytes, algorithm)).await
            }
        }
    }
}

/// Prepares a section of a file for sending: its content, and its checksum.
///
/// Content up to [`MEMORY_BYTES_MAX`] is read into memory. Larger content is read twice, for its checksum and while it is
/// sent, so that the memory is bounded; the second time it comes from the page cache. If it changes in between, S3 detects
/// it by the checksum. Both reads are of one open file: one that takes its place later has no effect.
pub(super) async fn prepare(path: &Path, start: u64, bytes: u64) -> Result<(ByteStream, u64), StoreError> {
    let prepared = with_file(path, move |file| {
        if bytes <= MEMORY_BYTES_MAX {
            let body = read_at(&file, start, bytes)?;
            let crc = checksum(CRC, &body);
            return Ok((ByteStream::from(body), crc));
        }
        let crc = checksum_at(&file, start, bytes, CRC)?;
        let section = Section { file: Arc::new(file), at: start, end: start + bytes };
        let body = move || SdkBody::from_body_1_x(SectionBody { section: section.clone(), chunk: Mutex::default() });
        Ok((ByteStream::new(SdkBody::retryable(body)), crc))
    });
    prepared.await
}

/// Explains why S3 found sent content corrupt: if the section's checksum is not `crc` any more, the file was written to
/// meanwhile, and no repetition helps.
pub(super) async fn explained<T>(
    sent: Result<T, StoreError>,
    path: &Path,
    (start, bytes): (u64, u64),
    crc: u64,
) -> Result<T, StoreError> {
    let Err(StoreError::Cloud(error)) = sent else { return sent };
    if error.kind == Kind::Corrupt {
        let now = with_file(path, move |file| checksum_at(&file, start, bytes, CRC)).await;
        if now.ok() != Some(crc) {
            let reason = "it was written to while it was uploaded".to_owned();
            return Err(StoreError::BadResult { path: path.to_owned(), reason });
        }
    }
    Err(error.into())
}

/// Opens a file for reading, and calls `act` with it, where it may block.
async fn with_file<T: Send + 'static>(
    path: &Path,
    act: impl FnOnce(File) -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    let file = path.to_owned();
    let act = move || File::open(file).and_then(act);
    let acted = lighthpc_runtime::blocking(act).await.map_err(io::Error::other).flatten();
    acted.map_err(|error| StoreError::disk("reading", path, error))
}

/// Reads `bytes` bytes from `at` on. Blocks.
fn read_at(file: &File, at: u64, bytes: u64) -> io::Result<Bytes> {
    let mut read = Vec::with_capacity(usize::try_from(bytes).map_err(io::Error::other)?);
    while (read.len() as u64) < bytes {
        let from = at + read.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut read), from) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The vector may have had more room.
    read.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(read.into())
}

/// Returns the checksum of `bytes` bytes from `at` on. Blocks.
fn checksum_at(file: &File, mut at: u64, bytes: u64, algorithm: CrcAlgorithm) -> io::Result<u64> {
    let (mut digest, mut chunk) = (Digest::new(algorithm), vec![0; CHUNK_BYTES]);
    let end = at + bytes;
    while at < end {
        let piece = &mut chunk[..usize::try_from(end - at).unwrap_or(usize::MAX).min(CHUNK_BYTES)];
        file.read_exact_at(piece, at)?;
        digest.update(piece);
        at += piece.len() as u64;
    }
    Ok(digest.finalize())
}

/// A section of an open file.
#[derive(Clone, Debug)]
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

type Reading = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

/// The body of a request: a section that is read chunk by chunk as it is sent.
struct SectionBody {
    /// What has not been read.
    section: Section,
    /// The chunk that is being read. (A mutex, because a body must be `Sync`; nothing locks it.)
    chunk: Mutex<Option<Reading>>,
}

impl HttpBody for SectionBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let section = &mut this.section;
        if section.at >= section.end {
            return Poll::Ready(None);
        }
        let chunk = this.chunk.get_mut().unwrap_or_else(PoisonError::into_inner);
        let reading = chunk.get_or_insert_with(|| {
            let (file, at) = (Arc::clone(&section.file), section.at);
            let bytes = (section.end - at).min(CHUNK_BYTES as u64);
            let read = lighthpc_runtime::blocking(move || read_at(&file, at, bytes));
            Box::pin(async { read.await.map_err(io::Error::other).flatten() })
        });
        let read = ready!(reading.as_mut().poll(cx));
        *chunk = None;
        let read = read.inspect(|bytes| section.at += bytes.len() as u64);
        Poll::Ready(Some(read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.section.at >= self.section.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.section.end - self.section.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn content_of_every_size_has_its_bytes_and_its_checksum_also_at_the_second_try() {
        const MAX: u64 = MEMORY_BYTES_MAX;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let bytes: Vec<u8> = (0..3 * MAX + 3).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
        std::fs::write(&file, &bytes).unwrap();
        for (start, length) in [(0, 0), (0, 5), (7, MAX), (3, MAX + 1), (1, 2 * MAX + 7), (0, 3 * MAX + 3)] {
            let wanted = &bytes[usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap()];
            let (stream, crc) = prepare(&file, start, length).await.unwrap();
            assert_eq!(crc, checksum(CRC, wanted), "{start} {length}");
            assert_eq!(stream.bytes().is_some(), length <= MAX, "in memory only if small");
            assert_eq!(stream.size_hint().1, Some(length), "{start} {length}");
            let again = stream.into_inner().try_clone().expect("a request can be sent again");
            assert!(ByteStream::new(again).collect().await.unwrap().to_vec() == wanted, "{start} {length}");
        }
        assert!(prepare(&file, 1, 3 * MAX + 3).await.is_err(), "a file that is too short");
    }

    #[tokio::test]
    async fn a_file_that_becomes_shorter_or_is_replaced_while_it_is_sent() {
        const BYTES: u64 = 2 * MEMORY_BYTES_MAX;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, vec![1; usize::try_from(BYTES).unwrap()]).unwrap();

        let (stream, _) = prepare(&file, 0, BYTES).await.unwrap();
        std::fs::rename(&file, dir.path().join("old")).unwrap();
        std::fs::write(&file, "another").unwrap();
        assert!(stream.collect().await.unwrap().to_vec().iter().all(|&byte| byte == 1));

        let old = dir.path().join("old");
        let (stream, _) = prepare(&old, 0, BYTES).await.unwrap();
        File::options().write(true).open(&old).unwrap().set_len(BYTES - 1).unwrap();
        assert!(stream.collect().await.is_err());
    }
}
