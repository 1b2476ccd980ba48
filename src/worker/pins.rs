//! Files of a workload that are uploaded: each has a descriptor of its own, and the size that it had when it was
//! opened.
//!
//! The workload, or a process that it left, may change a file at any moment. Never more than that size is uploaded, and
//! of all files together never more than the limit of the pins: a walk that found less may be out of date.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::retry::{Retryable, retry_transient};
use crate::backend::store::Body;
use crate::domain::checkpoint::Stamp;
use crate::workload::is_limit;
use crate::workload::tree::{self, PinError, Pinned};

/// The most files that this process has open for uploads, in all slots: a descriptor each, and one more for each
/// connection that sends. At 20 ms a put, 64 at once are 3,200 puts a second; S3 takes 3,500 below one prefix.
const OPEN_MAX: usize = 64;
/// Of the process, as its limit of open files is.
static OPEN: Semaphore = Semaphore::const_new(OPEN_MAX);

/// Opens the files below one folder, and counts how many bytes they may still have in all. A clone shares the count.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    /// In a sandbox, the workload's user: only what is its own is opened.
    owner: Option<u32>,
    spare_bytes: Arc<AtomicU64>,
}

/// A pinned file.
#[derive(Debug)]
pub(super) struct Pin {
    pinned: Pinned,
    path: PathBuf,
    /// Its size when it was pinned.
    pub(super) bytes: u64,
    pub(super) stamp: Stamp,
    pub(super) mode: u32,
    _place: Option<SemaphorePermit<'static>>,
}

impl Retryable for PinError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::System(error) if is_limit(error))
    }
}

impl Pins {
    pub(super) fn new(root: PathBuf, owner: Option<u32>, spare_bytes: u64) -> Self {
        Self { root, owner, spare_bytes: Arc::new(spare_bytes.into()) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Opens the file at a path below the folder; `None` if it is gone. A limit of the machine is retried for as long
    /// as `limit`.
    pub(super) async fn open(&self, path: &[u8], limit: Duration) -> Result<Option<Pin>, PinError> {
        retry_transient(limit, || self.open_once(path.to_vec())).await
    }

    async fn open_once(&self, path: Vec<u8>) -> Result<Option<Pin>, PinError> {
        // It fails only if it is closed, and nothing closes it.
        let place = OPEN.acquire().await.ok();
        let (root, owner) = (self.root.clone(), self.owner);
        let pinned = lighthpc_runtime::blocking(move || tree::pin(&root, &path, owner)).await;
        let Some(pinned) = pinned.map_err(io::Error::other)?? else { return Ok(None) };
        let (bytes, stamp, mode) = pinned.read_state()?;
        Ok(Some(Pin { path: pinned.path(), pinned, bytes, stamp, mode, _place: place }))
    }

    /// Takes a file's bytes from what all may have; `false` if there is not so much left.
    pub(super) fn take_bytes(&self, pin: &Pin) -> bool {
        self.spare_bytes.fetch_update(Relaxed, Relaxed, |spare| spare.checked_sub(pin.bytes)).is_ok()
    }
}

impl Pin {
    /// Returns the file as it is to go up: as many bytes as it had.
    pub(super) fn body(&self) -> Body<'_> {
        Body::File(&self.path, Some(self.bytes))
    }

    /// Returns whether the file was written to since it was pinned. A rename over its name changes its inode's state
    /// too; its bytes are the same.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn has_changed(&self) -> io::Result<bool> {
        let (bytes, stamp, _) = self.pinned.read_state()?;
        Ok((bytes, stamp.modified) != (self.bytes, self.stamp.modified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_files_are_open_at_once_than_the_bound_and_a_place_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "12345").unwrap();
        let pins = Pins::new(dir.path().to_owned(), None, u64::MAX);
        let open = || pins.open(b"file", Duration::ZERO);
        let mut held = Vec::new();
        for _ in 0..OPEN_MAX {
            held.push(open().await.unwrap().unwrap());
        }
        let (mut next, now) = (std::pin::pin!(open()), std::task::Context::from_waker(std::task::Waker::noop()));
        let mut now = now;
        assert!(next.as_mut().poll(&mut now).is_pending(), "it waits for a place");
        held.pop();
        assert_eq!(next.await.unwrap().unwrap().bytes, 5);
        assert!(pins.open(b"none", Duration::ZERO).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn all_together_have_no_more_bytes_than_they_may() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::new(dir.path().to_owned(), None, 10);
        let pin = async |bytes: usize| {
            std::fs::write(dir.path().join("file"), vec![0; bytes]).unwrap();
            pins.open(b"file", Duration::ZERO).await.unwrap().unwrap()
        };
        assert!(pins.clone().take_bytes(&pin(6).await));
        assert!(!pins.take_bytes(&pin(5).await));
        assert!(pins.take_bytes(&pin(4).await) && pins.take_bytes(&pin(0).await));
        let pin = pin(1).await;
        assert!(!pins.take_bytes(&pin) && !pin.has_changed().unwrap());
        std::fs::write(dir.path().join("file"), "it grows").unwrap();
        assert!(pin.has_changed().unwrap());
        assert!(matches!(pin.body(), Body::File(_, Some(1))));
    }
}
