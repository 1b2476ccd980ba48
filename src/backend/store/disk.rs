//! The room of a file system.

use std::io;
use std::path::Path;

/// Returns how many bytes this process may still write under `folder`.
///
/// # Errors
/// The system's, if the folder cannot be asked.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Returns how many bytes the file system of `folder` has in all.
///
/// # Errors
/// The system's, if the folder cannot be asked.
pub fn total_bytes(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Returns how many files this process may still make under `folder`; `None` if the file system does not count them.
///
/// # Errors
/// The system's, if the folder cannot be asked.
pub fn free_inodes(folder: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok((stat.f_files > 0).then_some(stat.f_favail))
}

/// Returns whether a file could not be made or written for lack of room: bytes, inodes (both `ENOSPC`), or a quota of
/// either.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
