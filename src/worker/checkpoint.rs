//! Checkpoints: what a workload keeps in its checkpoint folder survives its machine.
//!
//! A save puts the files that changed, then the manifest that names all of them, then the manifest's place into the
//! task's row, under the fence. Whatever breaks in between, the row names the last complete one. The next attempt
//! restores it before the workload starts; after the commit all of them are removed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::error::words;
use super::insist::insist;
use super::{Node, NodeError};
use crate::backend::ledger::{Beat, Fence};
use crate::backend::store::{Store, uri};
use crate::domain::checkpoint::{Manifest, Saved, folder, save_folder};
use crate::workload::Contract;

/// The name of the file that lists a checkpoint's files; last of a save.
const MANIFEST_NAME: &str = "_lighthpc_checkpoint.json";
/// The most files of a checkpoint: a save under a Spot notice has two minutes.
const FILES_MAX: usize = 10_000;
/// Files under way at once, up and down: many small ones are bound by round trips.
const FILES_PARALLEL: usize = 8;

/// The checkpoints of one attempt.
#[derive(Debug)]
pub(super) struct Checkpoints {
    bucket: String,
    fence: Fence,
    dir: PathBuf,
    /// Where links to the files are made while they go up.
    staging: PathBuf,
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
            staging: contract.folder().join("saving"),
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
                tracing::warn!(
                    "the checkpoint {key} could not be restored, the workload begins anew: {}",
                    words(&error)
                );
                let emptied = std::fs::remove_dir_all(contract.checkpoint());
                if let Err(error) = emptied.and_then(|()| std::fs::create_dir_all(contract.checkpoint())) {
                    tracing::warn!("the checkpoint folder could not be emptied: {error}");
                }
                (checkpoints, false)
            }
        }
    }

    async fn fetch(&self, node: &Node, contract: &Contract, key: &str) -> Result<Manifest, NodeError> {
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint in", path: self.dir.clone(), source };
        let get = Get { store: node.backend.store.clone(), bucket: self.bucket.clone(), limit: node.settings.lease };
        let list = contract.folder().join("checkpoint-manifest");
        get.file(key, &list).await?;
        let text = std::fs::read(&list).map_err(disk)?;
        let mut manifest: Manifest = serde_json::from_slice(&text).map_err(|e| disk(e.into()))?;

        let permits = Arc::new(Semaphore::new(FILES_PARALLEL));
        let mut gets = JoinSet::new();
        for (name, saved) in manifest.files.clone() {
            let path = inside(&self.dir, &name).ok_or_else(|| disk(io::Error::other("a name leads out of it")))?;
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(disk)?;
            }
            let (get, permits) = (get.clone(), permits.clone());
            gets.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let bytes = get.file(&saved.key, &path).await?;
                let seen = look(&path).ok().filter(|_| bytes == saved.bytes);
                Ok::<_, NodeError>((name, seen))
            });
        }
        while let Some(got) = gets.join_next().await {
            let (name, seen) = got.map_err(|panic| disk(io::Error::other(panic)))??;
            let cut = || disk(io::Error::other(format!("{name} is not as long as it was")));
            let saved = manifest.files.get_mut(&name).expect("each file is of the manifest");
            saved.changed_ns = seen.ok_or_else(cut)?.1;
        }
        Ok(manifest)
    }

    /// Saves what changed since the last save.
    ///
    /// A file that is written to while it goes up makes the save void: the next one has it. One that is replaced by a
    /// rename goes up as it was. May be dropped at any point: the row then names the save before.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is lost by one but this save.
    pub(super) async fn save(&mut self, node: &Node) -> Result<Save, NodeError> {
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint in", path: self.dir.clone(), source };
        let found = list(&self.dir).map_err(disk)?;
        let is_kept = |name: &String, &(bytes, changed_ns): &(u64, u128)| {
            self.newest.files.get(name).is_some_and(|old| old.bytes == bytes && old.changed_ns == changed_ns)
        };
        if found.len() == self.newest.files.len() && found.iter().all(|(name, seen)| is_kept(name, seen)) {
            return Ok(Save::Unchanged);
        }
        self.saves += 1;
        let prefix = save_folder(&self.fence.src, self.fence.attempt, self.saves);
        let (kept, changed): (BTreeMap<_, _>, BTreeMap<_, _>) =
            found.into_iter().partition(|(name, seen)| is_kept(name, seen));
        let kept = kept.into_keys().map(|name| (name.clone(), self.newest.files[&name].clone()));
        let mut manifest = Manifest { files: kept.collect() };
        manifest.files.extend(self.put_all(node, &prefix, changed.into_keys()).await?);

        let key = format!("{prefix}{MANIFEST_NAME}");
        let text = serde_json::to_vec(&manifest).map_err(|e| disk(e.into()))?;
        let put = node.backend.store.put_bytes(&self.bucket, &key, text).await;
        put.map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        let named = node.backend.ledger.name_checkpoint(&self.fence, &uri(&self.bucket, &key)).await;
        if named.map_err(NodeError::cloud("naming the checkpoint"))? != Beat::Renewed {
            return Ok(Save::LeaseLost);
        }
        tracing::info!(files = manifest.files.len(), "saved the checkpoint {key}");
        let mut surplus = self.newest.keys_not_in(&manifest);
        surplus.extend(self.newest_key.replace(key));
        self.newest = manifest;
        self.forget(node, surplus).await;
        Ok(Save::Saved)
    }

    /// Puts the files that changed, each by a link of its own, so that a workload may rename a new one into its place
    /// meanwhile. One that is gone by now is left out.
    async fn put_all(
        &self,
        node: &Node,
        prefix: &str,
        names: impl Iterator<Item = String>,
    ) -> Result<BTreeMap<String, Saved>, NodeError> {
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint in", path: self.dir.clone(), source };
        // What an earlier save left that was dropped.
        std::fs::remove_dir_all(&self.staging).or_else(not_found).map_err(disk)?;
        std::fs::create_dir_all(&self.staging).map_err(disk)?;
        let permits = Arc::new(Semaphore::new(FILES_PARALLEL));
        let mut puts = JoinSet::new();
        for (n, name) in names.enumerate() {
            let put = Put {
                store: node.backend.store.clone(),
                bucket: self.bucket.clone(),
                key: format!("{prefix}{name}"),
                file: self.dir.join(&name),
                link: self.staging.join(n.to_string()),
                owner: node.settings.bounds.wall.map(|wall| wall.uid),
            };
            let permits = permits.clone();
            puts.spawn(async move {
                let _permit = permits.acquire_owned().await;
                put.run().await.map(|saved| Some((name, saved?)))
            });
        }
        let mut saved = BTreeMap::new();
        while let Some(put) = puts.join_next().await {
            saved.extend(put.map_err(|panic| disk(io::Error::other(panic)))??);
        }
        Ok(saved)
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

/// How files come down.
#[derive(Clone)]
struct Get {
    store: Store,
    bucket: String,
    limit: std::time::Duration,
}

impl Get {
    /// Fetches one file, through an outage if need be: without it the work of hours begins anew. Returns its size.
    async fn file(&self, key: &str, file: &Path) -> Result<u64, NodeError> {
        let done = insist(self.limit, || self.store.download(&self.bucket, key, file)).await;
        let done = done.map_err(|source| NodeError::Store { doing: "fetching the checkpoint", source });
        done.map(|done| done.bytes)
    }
}

/// One file on its way up.
struct Put {
    store: Store,
    bucket: String,
    key: String,
    file: PathBuf,
    link: PathBuf,
    /// Behind a wall, the workload's user: only what is its own is saved. It might have put a link where the list had seen
    /// a file, and the node may read what the workload may not.
    owner: Option<u32>,
}

impl Put {
    /// Puts the file as it is now; `None` if it is gone.
    async fn run(self) -> Result<Option<Saved>, NodeError> {
        let disk = |source| NodeError::Disk { doing: "reading the checkpoint", path: self.file.clone(), source };
        let Some(source) = pin(&self.file, &self.link, self.owner).map_err(disk)? else { return Ok(None) };
        let (bytes, changed_ns) = look(source).map_err(disk)?;
        let put = self.store.put_file(&self.bucket, &self.key, source).await;
        put.map_err(|source| NodeError::Store { doing: "saving the checkpoint", source })?;
        if look(source).map_err(disk)? != (bytes, changed_ns) {
            return Err(disk(io::Error::other(
                "the file changed while it was saved: write to another name, then rename",
            )));
        }
        std::fs::remove_file(&self.link).or_else(not_found).map_err(disk)?;
        Ok(Some(Saved { key: self.key, bytes, changed_ns }))
    }
}

/// Links the file as it is now to `link`, so that it can be read whatever the workload does to its name, and returns that;
/// `None` if it is gone.
///
/// # Errors
/// The system's, and if it is no file, or not the owner's.
fn pin<'a>(file: &'a Path, link: &'a Path, owner: Option<u32>) -> io::Result<Option<&'a Path>> {
    let source = match std::fs::hard_link(file, link) {
        Ok(()) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // A file system without links.
        Err(_) if owner.is_none() => file,
        Err(error) => return Err(error),
    };
    let meta = source.symlink_metadata()?;
    if !meta.is_file() || owner.is_some_and(|owner| meta.uid() != owner) {
        return Err(io::Error::other("it is no file of the workload's"));
    }
    Ok(Some(source))
}

fn not_found(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Returns how many bytes a save of everything would put now.
pub(super) fn bytes_on_disk(dir: &Path) -> u64 {
    list(dir).map_or(0, |files| files.values().map(|(bytes, _)| bytes).sum())
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
            } else if kind.is_file()
                // One that is gone by now was a temporary name.
                && let Ok(seen) = look(&path)
            {
                found.insert(name, seen);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_the_workloads_own_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        symlink(path("file"), path("link")).unwrap();
        let own = path("file").metadata().unwrap().uid();

        assert_eq!(pin(&path("file"), &path("1"), Some(own)).unwrap(), Some(path("1").as_path()));
        assert!(pin(&path("file"), &path("2"), Some(own + 1)).is_err(), "another user's");
        assert!(pin(&path("link"), &path("3"), Some(own)).is_err(), "a link");
        assert!(pin(dir.path(), &path("4"), Some(own)).is_err(), "a folder");
        assert!(pin(&path("none"), &path("5"), Some(own)).unwrap().is_none());
    }
}
