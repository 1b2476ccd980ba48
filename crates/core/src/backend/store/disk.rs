//! The free space of a file system.

use std::io;
use std::path::Path;

/// Returns the number of bytes that this process can write under `folder`.
///
/// # Errors
/// The system's error if the file system cannot be queried.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = lighthpc_runtime::disk(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns the size in bytes of the file system of `folder`.
///
/// # Errors
/// The system's error if the file system cannot be queried.
pub fn total_bytes(folder: &Path) -> io::Result<u64> {
    let stat = lighthpc_runtime::disk(folder)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Returns the number of files that this process can create under `folder`; `None` if the file system does not count
/// them.
///
/// # Errors
/// The system's error if the file system cannot be queried.
pub fn free_inodes(folder: &Path) -> io::Result<Option<u64>> {
    let stat = lighthpc_runtime::disk(folder)?;
    Ok((stat.f_files > 0).then_some(stat.f_favail))
}

/// Returns whether an error means missing space: bytes, inodes (both `ENOSPC`), or a quota for either.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
