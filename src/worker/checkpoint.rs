//! Checkpoints: what a workload keeps in its checkpoint folder survives its machine.
//!
//! A save puts the files that changed, then the manifest that names all of them, then the manifest's place into the
//! task's row, under the fence. Whatever breaks in between, the row names the last complete one. The next attempt
//! restores it before the workload starts; after the commit all of them are removed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::{Node, NodeError};
use crate::backend::ledger::{Beat, Fence};
use crate::backend::store::uri;
use crate::domain::checkpoint::{Manifest, Saved, folder, save_folder};
use crate::workload::Contract;

/// The name of the file that lists a checkpoint's files; last of a save.
const MANIFEST_NAME: &str = "_lighthpc_checkpoint.json";
/// The most files of a checkpoint: a save under a Spot notice has two minutes.
const FILES_MAX: usize = 10_000;

/// The checkpoints of one attempt.
#[derive(Debug)]
pub(super) struct Checkpoints {
    bucket: String,
    fence: Fence,
    dir: PathBuf,
    newest: Manifest,
    newest_key: Option<String>,
    saves: u32,
}

/// What became of a save.
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
    /// Restores the checkpoint that the row names, if any, into the contract's folder. Returns whether there was one.
    ///
    /// A checkpoint that cannot be restored is worth a warning: the workload then begins anew.
    pub(super) async fn restore(
        node: &Node,
        contract: &Contract,
        fence: &Fence,
        bucket: &str,
        named: Option<&str>,
    ) -> (Self, bool) {
        let dir = contract.checkpoint();
        let mut checkpoints = Self {
            bucket: bucket.to_owned(),
            fence: fence.clone(),
            dir,
            newest: Manifest::default(),
            newest_key: None,
            saves: 0,
        };
        let Some(key) = named.and_then(|named| named.strip_prefix(&uri(bucket, ""))) else {
            return (checkpoints, false);
        };
        match checkpoints.fetch(node, contract, key).await {
            Ok(manifest) => {
                tracing::info!(files = manifest.files.len(), "restored the checkpoint {key}");
                checkpoints.newest = manifest;
                checkpoints.newest_key = Some(key.to_owned());
                (checkpoints, true)
            }
            Err(error) => {
                tracing::warn!("the checkpoint {key} could not be restored, the workload begins anew: {error}");
                let emptied = std::fs::remove_dir_all(contract.checkpoint());
                if let Err(error) = emptied.and_then(|()| std::fs::create_dir_all(contract.checkpoint())) {
                    tracing::warn!("the checkpoint folder could not be emptied: {error}");
                }
                (checkpoints, false)
            }
        }
    }

    async fn fetch(&self, node: &Node, contract: &Contract, key: &str) -> Result<Manifest, NodeError> {
        let store = &node.backend.store;
        let fetched = |source| NodeError::Store { doing: "fetching the checkpoint", source };
        let list = contract.folder().join("checkpoint-manifest");
        store.download(&self.bucket, key, &list).await.map_err(fetched)?;
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint in", path: self.dir.clone(), source };
        let text = std::fs::read(&list).map_err(disk)?;
        let mut manifest: Manifest = serde_json::from_slice(&text).map_err(|e| disk(e.into()))?;
        for (name, saved) in &mut manifest.files {
            let path = inside(&self.dir, name).ok_or_else(|| disk(io::Error::other("a name leads out of it")))?;
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(disk)?;
            }
            let done = store.download(&self.bucket, &saved.key, &path).await.map_err(fetched)?;
            if done.bytes != saved.bytes {
                return Err(disk(io::Error::other(format!("{name} has {} bytes, not {}", done.bytes, saved.bytes))));
            }
            saved.changed_ns = look(&path).map_err(disk)?.1;
        }
        Ok(manifest)
    }

    /// Returns how many bytes a save of everything would put now.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        list(&self.dir).map_or(0, |files| files.values().map(|(bytes, _)| bytes).sum())
    }

    /// Saves what changed since the last save.
    ///
    /// A file that changes while it goes up makes the save void: the next one has it. May be dropped at any point: the
    /// row then names the save before.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is lost by one but this save.
    pub(super) async fn save(&mut self, node: &Node) -> Result<Save, NodeError> {
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint in", path: self.dir.clone(), source };
        let found = list(&self.dir).map_err(disk)?;
        let is_same = |(name, &(bytes, changed_ns)): (&String, &(u64, u128))| {
            self.newest.files.get(name).is_some_and(|old| old.bytes == bytes && old.changed_ns == changed_ns)
        };
        if found.len() == self.newest.files.len() && found.iter().all(is_same) {
            return Ok(Save::Unchanged);
        }
        self.saves += 1;
        let prefix = save_folder(&self.fence.src, self.fence.attempt, self.saves);
        let mut manifest = Manifest::default();
        for (name, (bytes, changed_ns)) in found {
            let kept = self.newest.files.get(&name).filter(|old| old.bytes == bytes && old.changed_ns == changed_ns);
            let saved = match kept {
                Some(kept) => kept.clone(),
                None => self.put(node, &format!("{prefix}{name}"), &self.dir.join(&name), (bytes, changed_ns)).await?,
            };
            manifest.files.insert(name, saved);
        }
        let key = format!("{prefix}{MANIFEST_NAME}");
        let text = serde_json::to_vec(&manifest).map_err(|e| disk(e.into()))?;
        let put = node.backend.store.put_bytes(&self.bucket, &key, text).await;
        put.map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        let named = node.backend.ledger.name_checkpoint(&self.fence, &uri(&self.bucket, &key)).await;
        if named.map_err(NodeError::cloud("naming the checkpoint"))? == Beat::Lost {
            return Ok(Save::LeaseLost);
        }
        tracing::info!(files = manifest.files.len(), "saved the checkpoint {key}");
        let mut surplus = self.newest.keys_not_in(&manifest);
        surplus.extend(self.newest_key.replace(key));
        self.newest = manifest;
        self.forget(node, surplus).await;
        Ok(Save::Saved)
    }

    async fn put(&self, node: &Node, key: &str, file: &Path, seen: (u64, u128)) -> Result<Saved, NodeError> {
        let put = node.backend.store.put_file(&self.bucket, key, file).await;
        put.map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint", path: file.to_owned(), source };
        if look(file).map_err(disk)? != seen {
            return Err(disk(io::Error::other(
                "the file changed while it was saved: write to another name, then rename",
            )));
        }
        Ok(Saved { key: key.to_owned(), bytes: seen.0, changed_ns: seen.1 })
    }

    /// Removes what no checkpoint needs. What stays is found by the bucket's lifecycle, so a failure is only said.
    async fn forget(&self, node: &Node, keys: Vec<String>) {
        if let Err(error) = node.backend.store.delete(&self.bucket, &keys).await {
            tracing::warn!("{} objects of old checkpoints stay: {error}: {}", keys.len(), error.source);
        }
    }

    /// Removes the task's checkpoints; for a task whose end is committed.
    pub(super) async fn remove(&self, node: &Node) {
        // A first attempt that saved nothing has left nothing; an earlier one may have, torn and named by no row.
        if self.newest_key.is_none() && self.saves == 0 && self.fence.attempt.0 == 1 {
            return;
        }
        match node.backend.store.list(&self.bucket, &folder(&self.fence.src)).await {
            Ok(keys) => self.forget(node, keys).await,
            Err(error) => tracing::warn!("old checkpoints stay: {error}: {}", error.source),
        }
    }
}

/// Files below a folder, with size and time of change.
fn list(dir: &Path) -> io::Result<BTreeMap<String, (u64, u128)>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(dir.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push((path, format!("{name}/")));
            } else if kind.is_file() {
                found.insert(name, look(&path)?);
            }
            if found.len() > FILES_MAX {
                return Err(io::Error::other(format!("more than {FILES_MAX} files: pack them")));
            }
        }
    }
    Ok(found)
}

fn look(path: &Path) -> io::Result<(u64, u128)> {
    let meta = path.symlink_metadata()?;
    let changed = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((meta.len(), changed.as_nanos()))
}

/// A name of a manifest as a path below the folder; `None` if it leads out of it.
fn inside(dir: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (is_plain && !name.is_empty()).then(|| dir.join(name))
}
