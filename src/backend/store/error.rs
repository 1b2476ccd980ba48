//! What can go wrong between S3 and the disk.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{free_bytes, is_no_room};
use crate::backend::error::CloudError;

/// What can go wrong between S3 and the disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// S3 failed or refused.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The disk has, or had, no room.
    #[error("{path} has no room: {need_bytes} bytes are needed (64 MiB of them to spare), {free_bytes} are free")]
    DiskFull {
        /// The folder that was to be written to.
        path: PathBuf,
        /// What was needed.
        need_bytes: u64,
        /// What was free.
        free_bytes: u64,
    },
    /// The object was replaced during the download, again and again.
    #[error("{uri} changed during the download, {tries} times")]
    Changed {
        /// The object.
        uri: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The disk failed.
    #[error("{doing} {path}")]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The object there is another task's, or another deployment's.
    #[error("{uri} belongs to {holder}, and {wanted_by} cannot replace it")]
    Taken {
        /// The object.
        uri: String,
        /// Whose it is.
        holder: String,
        /// Who was to put it.
        wanted_by: String,
    },
    /// The result is larger than it may be.
    #[error("{path}: {reason}")]
    TooLarge {
        /// The file or folder.
        path: PathBuf,
        /// How large it is, and what it may be.
        reason: String,
    },
    /// The result cannot be stored as it is: a name or a kind of file that has no place in S3.
    #[error("{path}: {reason}")]
    BadResult {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
