//! Errors of transfers between S3 and the disk.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{free_bytes, is_no_room};
use crate::backend::error::CloudError;

/// An error of a transfer between S3 and the disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A call to S3 failed or was refused.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The disk has too little free space.
    #[error(
        "{path} has too little space: {need_bytes} bytes are needed (with a reserve of 64 MiB), {free_bytes} are free"
    )]
    DiskFull {
        /// The target folder.
        path: PathBuf,
        /// The required bytes.
        need_bytes: u64,
        /// The free bytes.
        free_bytes: u64,
    },
    /// The object was replaced during each of the downloads.
    #[error("{uri} changed during the download, {tries} times")]
    Changed {
        /// The object.
        uri: String,
        /// The number of downloads.
        tries: u32,
    },
    /// A file operation failed.
    #[error("{doing} {path}")]
    Disk {
        /// The operation, as a gerund phrase.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The existing object belongs to another task or another deployment.
    #[error("{uri} belongs to {holder} and cannot be replaced by {wanted_by}")]
    Taken {
        /// The object.
        uri: String,
        /// Its owner.
        holder: String,
        /// The task or mission that tried to write it.
        wanted_by: String,
    },
    /// The result is larger than the limit.
    #[error("{path}: {reason}")]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// The size and the limit.
        reason: String,
    },
    /// S3 cannot store the result: a name or a type of file is not supported.
    #[error("{path}: {reason}")]
    BadResult {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

impl StoreError {
    pub(super) fn disk(doing: &'static str, path: &Path, source: io::Error) -> Self {
        if is_no_room(&source) {
            let folder = path.parent().unwrap_or(path).to_path_buf();
            let free_bytes = free_bytes(&folder).unwrap_or(0);
            return Self::DiskFull { path: folder, need_bytes: free_bytes + 1, free_bytes };
        }
        Self::Disk { doing, path: path.to_path_buf(), source }
    }
}
