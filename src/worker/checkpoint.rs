//! Checkpoints: the workload's checkpoint folder survives its machine.
//!
//! A save uploads the files that changed, then the manifest that names all files, then writes the manifest's place to
//! the task's row, under the fence. Whatever fails in between, the row names the last complete save. The next attempt
//! restores it before the workload starts; after the commit all of them are removed.

use std::collections::BTreeMap;
use std::io;

use super::checkpoint_files::{FileDownload, FileUpload};
use super::checkpoint_size::{bytes_of, check_bytes};
use super::pins::Pins;
use super::retry::retry_transient;
use super::{Node, NodeError};
use crate::backend::error_chain;
use crate::backend::ledger::{Beat, Fence};
use crate::backend::parallel::Parallel;
use crate::backend::store::{files_parallel, uri};
use crate::clock;
use crate::domain::checkpoint::{Content, Entry, Manifest, Saved, earlier_folder, file_key, folder, save_folder};
use crate::workload::tree::{self, EntryKind};
use crate::workload::{Sandbox, WorkloadEnv};

/// The name of the file that lists a checkpoint's entries; last of a save.
const MANIFEST_NAME: &str = "_lighthpc_checkpoint.json";

/// The largest manifest of a checkpoint, in bytes: it is read into memory. 10,000 paths of 3,072 bytes are 30 MB, and
/// three times that if none of them is text.
const LIST_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// The checkpoints of one attempt.
#[derive(Debug)]
pub(super) struct Checkpoints {
    bucket: String,
    /// The name of the tasks table: deployments may share a bucket.
    deployment: String,
    fence: Fence,
    env: WorkloadEnv,
    newest: Manifest,
    newest_key: Option<String>,
    /// Objects that an earlier version saved, in a folder that other deployments may use too.
    earlier: Vec<String>,
    saves: u32,
    /// When the newest save was complete, RFC 3339 UTC.
    saved_at: Option<String>,
    /// Why the last save failed, if it did.
    unsaved: Option<String>,
}

/// The result of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    /// Saved, and the row names it.
    Saved,
    /// Nothing had changed.
    Unchanged,
    /// The lease is lost.
    LeaseLost,
}

impl Checkpoints {
    /// Restores the checkpoint that the row names, if any, into the env's folder. Returns whether there was one.
    ///
    /// If a checkpoint cannot be restored, that is only logged: the workload then starts from its beginning.
    ///
    /// # Errors
    /// [`NodeError`] if the disk has no room for it, or this machine cannot write it: another may, and a workload that
    /// began from its start would replace the checkpoint by less.
    pub(super) async fn restore(
        node: &Node,
        env: &WorkloadEnv,
        fence: &Fence,
        bucket: &str,
        named: Option<&str>,
    ) -> Result<(Self, bool), NodeError> {
        let mut checkpoints = Self {
            bucket: bucket.to_owned(),
            deployment: node.backend.ledger.tables().tasks.clone(),
            fence: fence.clone(),
            env: env.clone(),
            newest: Manifest::default(),
            newest_key: None,
            earlier: Vec::new(),
            saves: 0,
            saved_at: None,
            unsaved: None,
        };
        let Some(key) = named.and_then(|named| named.strip_prefix(&uri(bucket, ""))) else {
            return Ok((checkpoints, false));
        };
        checkpoints.note_earlier([key]);
        match checkpoints.fetch(node, key).await {
            Ok(manifest) => {
                tracing::info!(entries = manifest.entries.len(), "restored the checkpoint {key}");
                checkpoints.newest = manifest;
                checkpoints.newest_key = Some(key.to_owned());
                Ok((checkpoints, true))
            }
            Err(error) if error.is_machines_disk() => Err(error),
            Err(error) => {
                let cause = error_chain(&error);
                tracing::warn!(
                    "the checkpoint {key} could not be restored, the workload begins from its start: {cause}"
                );
                env.note(&format!("the checkpoint could not be restored, the workload began from its start: {cause}"));
                let emptied = env.clone();
                if let Err(error) = blocking(move || emptied.empty_checkpoint()).await {
                    tracing::warn!("the checkpoint folder could not be emptied: {error}");
                }
                Ok((checkpoints, false))
            }
        }
    }

    fn disk(&self) -> impl Fn(io::Error) -> NodeError + use<> {
        let path = self.env.checkpoint();
        move |source| NodeError::Disk { doing: "reading the checkpoint in", path: path.clone(), source }
    }

    async fn fetch(&mut self, node: &Node, key: &str) -> Result<Manifest, NodeError> {
        let (disk, dir) = (self.disk(), self.env.checkpoint());
        let get =
            FileDownload { store: node.backend.store.clone(), bucket: self.bucket.clone(), limit: node.settings.lease };
        let list = self.env.folder().join("checkpoint-manifest");
        // The row may name any object: a large one is not a manifest, and is not downloaded.
        let head = retry_transient(get.limit, || get.store.head(&self.bucket, key)).await;
        let head = head.map_err(NodeError::cloud("looking at the checkpoint"))?;
        if let Some(bytes) = head.map(|list| list.bytes).filter(|&bytes| bytes > LIST_BYTES_MAX) {
            let refusal = format!("its list has {bytes} bytes, more than the {LIST_BYTES_MAX} that one may have");
            return Err(disk(io::Error::other(refusal)));
        }
        get.file(key, &list).await?;
        let text = lighthpc_runtime::read(&list).await.map_err(&disk)?;
        let manifest = Manifest::from_json(&text).map_err(|error| disk(io::Error::other(error)))?;
        self.note_earlier(manifest.keys());

        let (made, root) = (manifest.clone(), dir.clone());
        blocking(move || tree::make_folders(&root, &made)).await.map_err(&disk)?;
        let files: Vec<_> = manifest
            .entries
            .iter()
            .filter_map(|(name, entry)| match &entry.content {
                Content::File(saved) => Some((tree::path_below(&dir, name), saved.clone())),
                Content::Folder | Content::Link(_) => None,
            })
            .collect();
        let gets = files.into_iter().map(move |(path, saved)| {
            let get = get.clone();
            async move {
                let bytes = get.file(&saved.key, &path).await?;
                Ok::<_, NodeError>((bytes == saved.bytes).then_some(()).ok_or(path))
            }
        });
        let mut gets = Parallel::new(files_parallel(), gets);
        while let Some(got) = gets.next().await {
            let got = got.map_err(|panic| disk(io::Error::other(panic)))??;
            got.map_err(|path| disk(io::Error::other(format!("{} is not as long as it was", path.display()))))?;
        }
        let owner = node.settings.bounds.sandbox.as_ref().map(Sandbox::user);
        let complete = move || {
            let mut manifest = manifest;
            tree::complete(&dir, &mut manifest, owner).map(|()| manifest)
        };
        blocking(complete).await.map_err(disk)
    }

    /// Saves what changed since the last save. Logs a failure once per cause: in the node's log, and in the task's.
    /// Returns whether the row names a save of the current state.
    pub(super) async fn save_or_note(&mut self, node: &Node) -> bool {
        match self.save(node).await {
            Ok(Save::Saved | Save::Unchanged) => {
                self.unsaved = None;
                true
            }
            Ok(Save::LeaseLost) => false,
            Err(error) => {
                let cause = error_chain(&error);
                if self.unsaved.as_ref() != Some(&cause) {
                    tracing::warn!("the checkpoint was not saved: {cause}");
                    self.env.note(&format!("the checkpoint was not saved: {cause}"));
                    self.unsaved = Some(cause);
                }
                false
            }
        }
    }

    /// Returns when this attempt's newest save was complete, RFC 3339 UTC.
    pub(super) fn saved_at(&self) -> Option<&str> {
        self.saved_at.as_deref()
    }

    /// Returns why the last save failed, if it did.
    pub(super) fn unsaved(&self) -> Option<&str> {
        self.unsaved.as_deref()
    }

    /// Saves what changed since the last save.
    ///
    /// A file that is written to while it is uploaded makes the save void: the next save has it. A file that is
    /// replaced by a rename is saved as it was. May be dropped at any point: the row then names the save before.
    ///
    /// # Errors
    /// [`NodeError`]; only this save is lost.
    pub(super) async fn save(&mut self, node: &Node) -> Result<Save, NodeError> {
        let (disk, dir, sizes) = (self.disk(), self.env.checkpoint(), node.settings.sizes);
        let found = blocking(move || {
            let found = tree::walk(&dir, sizes.checkpoint_files)?;
            check_bytes(&dir, bytes_of(&found), sizes)?;
            Ok(found)
        });
        let found = found.await.map_err(&disk)?;
        if found.len() == self.newest.entries.len() && found.iter().all(|(name, seen)| self.kept(name, seen).is_some())
        {
            return Ok(Save::Unchanged);
        }
        self.saves += 1;
        let prefix = save_folder(&self.deployment, &self.fence.src, self.fence.attempt, self.saves);
        let (mut manifest, mut changed, mut spare) = (Manifest::default(), Vec::new(), sizes.checkpoint_bytes);
        for (name, seen) in found {
            let entry = match (self.kept(&name, &seen), seen) {
                (Some(entry), _) => entry.clone(),
                (None, EntryKind::Folder { mode }) => Entry { content: Content::Folder, mode: Some(mode) },
                (None, EntryKind::Link { target }) => Entry { content: Content::Link(target), mode: None },
                (None, EntryKind::File { bytes, stamp, mode }) => match self.saved(&name) {
                    // An earlier version kept no modes.
                    Some(saved) if (saved.bytes, saved.stamp) == (bytes, stamp) => {
                        Entry { content: Content::File(saved.clone()), mode: Some(mode) }
                    }
                    _ => {
                        changed.push(name);
                        continue;
                    }
                },
            };
            if let Content::File(saved) = &entry.content {
                spare = spare.saturating_sub(saved.bytes);
            }
            manifest.entries.insert(name, entry);
        }
        manifest.entries.extend(self.put_all(node, &prefix, changed, spare).await?);

        let key = format!("{prefix}{MANIFEST_NAME}");
        let text = manifest.to_json().map_err(|error| disk(io::Error::other(error)))?;
        if text.len() as u64 > LIST_BYTES_MAX {
            let refusal = format!("its list would have {} bytes, more than {LIST_BYTES_MAX}", text.len());
            return Err(disk(io::Error::other(refusal)));
        }
        let put = node.backend.store.put_bytes(&self.bucket, &key, text).await;
        put.map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        let named = node.backend.ledger.name_checkpoint(&self.fence, &uri(&self.bucket, &key)).await;
        if named.map_err(NodeError::cloud("naming the checkpoint"))? != Beat::Renewed {
            return Ok(Save::LeaseLost);
        }
        tracing::info!(entries = manifest.entries.len(), "saved the checkpoint {key}");
        self.saved_at = Some(clock::now_rfc3339());
        let mut surplus = self.newest.keys_not_in(&manifest);
        surplus.extend(self.newest_key.replace(key));
        self.newest = manifest;
        self.forget(node, surplus).await;
        Ok(Save::Saved)
    }

    /// Returns the entry of the newest checkpoint, if what is there is still the same.
    fn kept(&self, name: &[u8], seen: &EntryKind) -> Option<&Entry> {
        let entry = self.newest.entries.get(name)?;
        let is_same = match (&entry.content, seen) {
            (Content::File(saved), EntryKind::File { bytes, stamp, mode }) => {
                (saved.bytes, saved.stamp, entry.mode) == (*bytes, *stamp, Some(*mode))
            }
            (Content::Folder, EntryKind::Folder { mode }) => entry.mode == Some(*mode),
            (Content::Link(old), EntryKind::Link { target }) => old == target,
            _ => false,
        };
        is_same.then_some(entry)
    }

    fn saved(&self, name: &[u8]) -> Option<&Saved> {
        match &self.newest.entries.get(name)?.content {
            Content::File(saved) => Some(saved),
            Content::Folder | Content::Link(_) => None,
        }
    }

    /// Uploads the files that changed, each by a descriptor of its own, so that a workload may rename a new one into
    /// its place meanwhile. A file that is gone by now is omitted. They may have `spare` bytes in all: they may have
    /// grown.
    async fn put_all(
        &self,
        node: &Node,
        prefix: &str,
        names: Vec<Vec<u8>>,
        spare: u64,
    ) -> Result<BTreeMap<Vec<u8>, Entry>, NodeError> {
        let owner = node.settings.bounds.sandbox.as_ref().map(|sandbox| sandbox.user().0);
        let pins = Pins::new(self.env.checkpoint(), owner, spare);
        let (store, bucket, limit) = (node.backend.store.clone(), self.bucket.clone(), node.settings.lease);
        let prefix = prefix.to_owned();
        let puts = names.into_iter().enumerate().map(move |(n, name)| {
            let (store, bucket, pins) = (store.clone(), bucket.clone(), pins.clone());
            let put = FileUpload { store, bucket, key: file_key(&prefix, n), pins, name: name.clone(), limit };
            async move { put.run().await.map(|entry| Some((name, entry?))) }
        });
        let mut puts = Parallel::new(files_parallel(), puts);
        let mut saved = BTreeMap::new();
        while let Some(put) = puts.next().await {
            saved.extend(put.map_err(|panic| self.disk()(io::Error::other(panic)))??);
        }
        Ok(saved)
    }

    /// Removes objects that no checkpoint needs, if they are certainly this task's. The bucket's lifecycle removes what
    /// stays, so a failure is only logged.
    async fn forget(&self, node: &Node, mut keys: Vec<String>) {
        let own = folder(&self.deployment, &self.fence.src);
        keys.retain(|key| key.starts_with(&own) || self.earlier.contains(key));
        if let Err(error) = node.backend.store.delete(&self.bucket, &keys).await {
            tracing::warn!("{} objects of old checkpoints stay: {}", keys.len(), error_chain(&error));
        }
    }

    /// Remembers which of these objects an earlier version of lighthpc saved for this task.
    fn note_earlier<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) {
        let earlier = earlier_folder(&self.fence.src);
        self.earlier.extend(keys.into_iter().filter(|key| key.starts_with(&earlier)).map(ToOwned::to_owned));
    }

    /// Removes the task's checkpoints; for a task whose end is committed.
    pub(super) async fn remove(&self, node: &Node) {
        // A first attempt that saved nothing has left nothing; an earlier one may have, torn and named by no row.
        if self.newest_key.is_none() && self.saves == 0 && self.fence.attempt.0 == 1 {
            return;
        }
        match node.backend.store.list(&self.bucket, &folder(&self.deployment, &self.fence.src)).await {
            Ok(mut keys) => {
                keys.extend(self.earlier.iter().cloned());
                self.forget(node, keys).await;
            }
            Err(error) => tracing::warn!("old checkpoints stay: {}", error_chain(&error)),
        }
    }
}

/// Runs a function that waits for the disk, off this thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    lighthpc_runtime::blocking(work).await.map_err(io::Error::other).flatten()
}
