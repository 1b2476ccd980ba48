//! Files of a checkpoint, from the bucket to the disk and back.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::NodeError;
use super::pins::Pins;
use super::retry::retry_transient;
use crate::backend::store::{Store, StoreError};
use crate::domain::checkpoint::{Content, Entry, Saved};
use crate::workload::tree;

/// Downloads files of a checkpoint.
#[derive(Clone)]
pub(super) struct FileDownload {
    pub(super) store: Store,
    pub(super) bucket: String,
    /// How long transient failures of one file are retried.
    pub(super) limit: Duration,
}

impl FileDownload {
    /// Downloads one file and returns its size. Waits through an outage: without the file, the work of hours starts
    /// again.
    pub(super) async fn file(&self, key: &str, file: &Path) -> Result<u64, NodeError> {
        let done = retry_transient(self.limit, || self.store.download(&self.bucket, key, file)).await;
        let done = done.map_err(|source| NodeError::Store { doing: "fetching the checkpoint", source });
        done.map(|done| done.bytes)
    }
}

/// The upload of one file of a checkpoint.
pub(super) struct FileUpload {
    pub(super) store: Store,
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) pins: Pins,
    pub(super) name: Vec<u8>,
    pub(super) limit: Duration,
}

impl FileUpload {
    /// Uploads the file as it is now; `None` if it is gone.
    pub(super) async fn run(self) -> Result<Option<Entry>, NodeError> {
        let path = tree::path_below(self.pins.root(), &self.name);
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint", path: path.clone(), source };
        let refuse = |refusal| Err(disk(io::Error::other(refusal)));
        let pin = self.pins.open(&self.name, self.limit).await.map_err(|error| disk(error.into()))?;
        let Some(pin) = pin else { return Ok(None) };
        if !self.pins.take_bytes(&pin) {
            return refuse("the checkpoint grew beyond --max-checkpoint-bytes while it was saved");
        }
        let put = self.store.put_file(&self.bucket, &self.key, pin.body()).await;
        if matches!(put, Err(StoreError::BadResult { .. })) || pin.has_changed().map_err(disk)? {
            return refuse("the file changed while it was saved: write to another name, then rename");
        }
        put.map_err(|source| match source {
            // By the path that the user knows.
            StoreError::Disk { doing, source, .. } => StoreError::Disk { doing, path: path.clone(), source },
            other => other,
        })
        .map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        let saved = Saved { key: self.key, bytes: pin.bytes, stamp: pin.stamp };
        Ok(Some(Entry { content: Content::File(saved), mode: Some(pin.mode) }))
    }
}
