//! The content of an upload: a file, or bytes in memory.

use std::path::Path;

use aws_sdk_s3::primitives::{ByteStream, Length};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum};
use lighthpc_runtime::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};

use super::error::StoreError;
use super::part::PART_BYTES;

/// The size of a chunk when a file is read for its checksum, or streamed.
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
                checksum_of_section(file, 0, bytes, algorithm).await
            }
        }
    }
}

/// Prepares a section of a file for sending, with its checksum.
///
/// A section up to the usual part size is read into memory. A larger one is read twice, for its checksum and while it
/// is sent, so that the memory is bounded. If the file changes in between, S3 detects it by the checksum.
pub(super) async fn section(
    file: &Path,
    start: u64,
    bytes: u64,
    algorithm: CrcAlgorithm,
) -> Result<(ByteStream, u64), StoreError> {
    let disk = |doing, error| StoreError::disk(doing, file, error);
    if bytes > PART_BYTES {
        let crc = checksum_of_section(file, start, bytes, algorithm).await?;
        let stream = ByteStream::read_from().path(file).offset(start).length(Length::Exact(bytes));
        let stream = stream.buffer_size(CHUNK_BYTES).build().await;
        return Ok((stream.map_err(|e| disk("reading", cause_of(e)))?, crc));
    }
    let body = read_section(file, start, bytes).await?;
    let crc = checksum(algorithm, &body);
    Ok((ByteStream::from(body), crc))
}

/// Returns the system's own error with its number, which identifies a full disk or a busy machine.
fn cause_of(error: aws_sdk_s3::primitives::ByteStreamError) -> std::io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(number) = error.downcast_ref().and_then(std::io::Error::raw_os_error) {
            return std::io::Error::from_raw_os_error(number);
        }
        cause = error.source();
    }
    std::io::Error::other(error)
}

/// Reads a section of a file, at most [`PART_BYTES`], into memory.
pub(super) async fn read_section(file: &Path, start: u64, bytes: u64) -> Result<Bytes, StoreError> {
    let disk = |doing, error| StoreError::disk(doing, file, error);
    debug_assert!(bytes <= PART_BYTES, "a larger section is streamed");
    let mut source = File::open(file).await.map_err(|e| disk("opening", e))?;
    source.seek(SeekFrom::Start(start)).await.map_err(|e| disk("seeking in", e))?;
    let mut body = vec![0; usize::try_from(bytes.min(PART_BYTES)).unwrap_or(0)];
    source.read_exact(&mut body).await.map_err(|e| disk("reading", e))?;
    Ok(body.into())
}

async fn checksum_of_section(file: &Path, start: u64, bytes: u64, algorithm: CrcAlgorithm) -> Result<u64, StoreError> {
    let disk = |doing, error| StoreError::disk(doing, file, error);
    let mut source = File::open(file).await.map_err(|e| disk("opening", e))?;
    source.seek(SeekFrom::Start(start)).await.map_err(|e| disk("seeking in", e))?;
    let mut digest = Digest::new(algorithm);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let want = CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES));
        source.read_exact(&mut chunk[..want]).await.map_err(|e| disk("reading", e))?;
        digest.update(&chunk[..want]);
        left -= want as u64;
    }
    Ok(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::super::upload::CRC;
    use super::*;

    #[tokio::test]
    async fn a_large_section_is_streamed_and_has_the_same_bytes_and_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let bytes: Vec<u8> =
            (0..PART_BYTES + 1_000_003).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
        std::fs::write(&file, &bytes).unwrap();
        for (start, length) in [(0, 5), (7, PART_BYTES), (3, PART_BYTES + 1_000_000), (0, PART_BYTES + 1_000_003)] {
            let wanted = &bytes[usize::try_from(start).unwrap()..usize::try_from(start + length).unwrap()];
            let (stream, crc) = section(&file, start, length, CRC).await.unwrap();
            assert_eq!(crc, checksum(CRC, wanted), "{start} {length}");
            assert_eq!(stream.bytes().is_some(), length <= PART_BYTES, "in memory only if small");
            assert!(stream.collect().await.unwrap().to_vec() == wanted, "{start} {length}");
        }
        assert!(section(&file, 1, PART_BYTES + 1_000_003, CRC).await.is_err(), "a file that is too short");
    }
}
