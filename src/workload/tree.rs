//! The checkpoint folder on this machine's disk: what is in it, and how it is made again.
//!
//! The workload may change the folder at any moment, and the node may read what the workload may not. So everything is
//! reached from the folder's own descriptor, and no link is followed. Links of a restored checkpoint are made after all
//! files, so that no file is written through one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;

use super::walk::{self, DEPTH_MAX, Found, shortened};
use crate::domain::checkpoint::{Content, MODE_KEPT, Manifest, Stamp, encode, parents};

/// The longest path below the folder, in bytes. Linux allows 4,096 in all, and the folder's own path differs between
/// machines.
const PATH_BYTES_MAX: usize = 3072;

/// What is at a place of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File {
        /// Its size in bytes.
        bytes: u64,
        /// Its state.
        stamp: Stamp,
        /// Its permissions.
        mode: u32,
    },
    /// A folder with these permissions.
    Folder {
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link with this target.
    Link {
        /// The target as it is.
        target: Vec<u8>,
    },
}

/// Returns everything below a folder, by its path. What is gone by the time it is looked at was a temporary name.
///
/// # Errors
/// The system's; and of what has no place in a checkpoint: a socket, a FIFO, a device, a path that is too long, folders
/// that lie too deep, and more entries than a save has time for. The error names it.
pub fn walk(root: &Path, entries_max: usize) -> io::Result<BTreeMap<Vec<u8>, EntryKind>> {
    let mut found = BTreeMap::new();
    walk::each(&walk::open_top(root)?, DEPTH_MAX, |at: Found<'_>| -> io::Result<()> {
        if let Some(seen) = look_at(at)? {
            found.insert(at.path.to_vec(), seen);
        }
        if found.len() > entries_max {
            return Err(io::Error::other(format!(
                "it holds more than the {entries_max} files, folders, and links of --max-checkpoint-files: pack them"
            )));
        }
        Ok(())
    })?;
    Ok(found)
}

fn look_at(at: Found<'_>) -> io::Result<Option<EntryKind>> {
    let Found { parent: folder, name, path, meta } = at;
    if path.len() > PATH_BYTES_MAX {
        return Err(io::Error::other(format!("{} is a path of more than {PATH_BYTES_MAX} bytes", shortened(path))));
    }
    let refuse = |what: &str| Err(io::Error::other(format!("{} {what}", encode(path))));
    let mode = meta.st_mode & MODE_KEPT;
    let what = match at.kind() {
        FileType::RegularFile => {
            let bytes = u64::try_from(meta.st_size).unwrap_or(0);
            let (modified, changed) = ((meta.st_mtime, meta.st_mtime_nsec), (meta.st_ctime, meta.st_ctime_nsec));
            let in_i64 = |(seconds, nanoseconds)| (seconds, i64::try_from(nanoseconds).unwrap_or(0));
            let stamp = Stamp { inode: meta.st_ino, modified: in_i64(modified), changed: in_i64(changed) };
            return Ok(Some(EntryKind::File { bytes, stamp, mode }));
        }
        FileType::Directory => return Ok(Some(EntryKind::Folder { mode })),
        FileType::Symlink => {
            return match readlinkat(folder, name, Vec::new()) {
                Ok(target) => Ok(Some(EntryKind::Link { target: target.into_bytes() })),
                // It was replaced by something else just now; the next save has that.
                Err(Errno::NOENT | Errno::INVAL) => Ok(None),
                Err(error) => refuse(&format!("cannot be read: {error}")),
            };
        }
        FileType::Socket => "is a socket",
        FileType::Fifo => "is a FIFO",
        FileType::BlockDevice | FileType::CharacterDevice => "is a device",
        FileType::Unknown => "is of an unknown kind",
    };
    refuse(&format!("{what}, and a checkpoint holds files, folders, and links: keep it in LIGHTHPC_SCRATCH"))
}

/// A file of the folder that stays as it is named here, whatever the workload does to its name.
#[derive(Debug)]
pub struct Pinned {
    file: File,
}

/// Why a file could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The workload made something else of it.
    #[error("{path} {what}")]
    NoFile {
        /// The path below the folder, as text.
        path: String,
        /// What is the matter with it.
        what: &'static str,
    },
    /// The system refused: this may be the machine's doing, and the number says so.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<Errno> for PinError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl From<PinError> for io::Error {
    fn from(error: PinError) -> Self {
        match error {
            PinError::System(source) => source,
            PinError::NoFile { .. } => Self::other(error.to_string()),
        }
    }
}

/// Opens a file of the folder; `None` if it is gone. With an owner, only that user's file is opened: the workload might
/// have made a link where the walk had seen a file.
///
/// # Errors
/// [`PinError`].
pub fn pin(root: &Path, path: &[u8], owner: Option<u32>) -> Result<Option<Pinned>, PinError> {
    let no_file = |what| PinError::NoFile { path: encode(path), what };
    let top = walk::open_top(root)?;
    let parent = parents(path).next().unwrap_or_default();
    let name = OsStr::from_bytes(&path[if parent.is_empty() { 0 } else { parent.len() + 1 }..]);
    // A FIFO in its place must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match walk::open_below(&top, parent).and_then(|folder| openat(folder, name, flags, Mode::empty())) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        // A socket, or a device without a driver, gives the last two.
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::NODEV) => {
            return Err(no_file("was replaced by something else while it was saved"));
        }
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || owner.is_some_and(|owner| meta.uid() != owner) {
        return Err(no_file("is no file of the workload's"));
    }
    Ok(Some(Pinned { file }))
}

impl Pinned {
    /// Returns a path by which this process reads the file, as long as this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns the file's size, its state, and its permissions.
    ///
    /// # Errors
    /// The system's.
    pub fn read_state(&self) -> io::Result<(u64, Stamp, u32)> {
        let meta = self.file.metadata()?;
        Ok((meta.len(), stamp(&meta), meta.mode() & MODE_KEPT))
    }
}

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    Stamp { inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()), changed: (meta.ctime(), meta.ctime_nsec()) }
}

/// Returns where an entry of a checkpoint is below the folder. A list that was read has no name that leads out of it.
#[must_use]
pub fn path_below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// Makes the folders of a checkpoint, for its files to be put into.
///
/// # Errors
/// The system's.
pub fn make_folders(root: &Path, manifest: &Manifest) -> io::Result<()> {
    for (path, entry) in &manifest.entries {
        let folder = if entry.content == Content::Folder { Some(path.as_slice()) } else { parents(path).next() };
        if let Some(folder) = folder {
            std::fs::create_dir_all(path_below(root, folder))?;
        }
    }
    Ok(())
}

/// Completes a checkpoint whose files are in place: links, owners, and permissions, the innermost first. The files'
/// states go into the list, so that the next save knows what has changed since.
///
/// # Errors
/// The system's.
pub fn complete(root: &Path, manifest: &mut Manifest, owner: Option<(u32, u32)>) -> io::Result<()> {
    for (path, entry) in &manifest.entries {
        if let Content::Link(target) = &entry.content {
            symlink(OsStr::from_bytes(target), path_below(root, path))?;
        }
    }
    for (path, entry) in manifest.entries.iter_mut().rev() {
        let path = path_below(root, path);
        if let Some((uid, gid)) = owner {
            lchown(&path, Some(uid), Some(gid))?;
        }
        if let (Some(mode), Content::File(_) | Content::Folder) = (entry.mode, &entry.content) {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
        if let Content::File(saved) = &mut entry.content {
            saved.stamp = stamp(&path.symlink_metadata()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::checkpoint::{Entry, Saved};

    fn mode_of(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Saves a folder and restores it elsewhere, with the disk for a bucket.
    fn carry_over(from: &Path, to: &Path) -> Manifest {
        let entry = |(path, seen): (Vec<u8>, EntryKind)| {
            let (content, mode) = match seen {
                EntryKind::File { bytes, stamp, mode } => {
                    (Content::File(Saved { key: encode(&path), bytes, stamp }), Some(mode))
                }
                EntryKind::Folder { mode } => (Content::Folder, Some(mode)),
                EntryKind::Link { target } => (Content::Link(target), None),
            };
            (path, Entry { content, mode })
        };
        let manifest = Manifest { entries: walk(from, 100).unwrap().into_iter().map(entry).collect() };
        let mut manifest = Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
        make_folders(to, &manifest).unwrap();
        for (path, entry) in &manifest.entries {
            if matches!(entry.content, Content::File(_)) {
                let pinned = pin(from, path, None).unwrap().unwrap();
                std::fs::write(path_below(to, path), std::fs::read(pinned.path()).unwrap()).unwrap();
            }
        }
        complete(to, &mut manifest, None).unwrap();
        manifest
    }

    #[test]
    fn links_empty_folders_modes_and_odd_names_are_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &[u8]| path_below(from.path(), name);
        std::fs::create_dir_all(at(b"empty/deeper")).unwrap();
        std::fs::create_dir(at(b"read-only")).unwrap();
        for (name, mode) in [
            (b"run.sh".as_slice(), 0o755),
            (b"secret", 0o600),
            (b"read-only/file", 0o444),
            (b"not\xff\xfetext", 0o644),
            (b"_lighthpc_checkpoint.json", 0o644),
            (b"100%\n\x1b", 0o640),
        ] {
            std::fs::write(at(name), name).unwrap();
            set_mode(&at(name), mode);
        }
        set_mode(&at(b"read-only"), 0o555);
        set_mode(&at(b"empty"), 0o750);
        for (name, target) in
            [("link", "run.sh"), ("dangling", "nowhere"), ("absolute", "/etc/passwd"), ("to-folder", "empty")]
        {
            symlink(target, from.path().join(name)).unwrap();
        }
        symlink(OsStr::from_bytes(b"\xff%41"), from.path().join("odd-target")).unwrap();

        carry_over(from.path(), to.path());

        let strip = |seen: EntryKind| match seen {
            EntryKind::File { bytes, mode, .. } => EntryKind::File { bytes, stamp: Stamp::default(), mode },
            other => other,
        };
        let all = |dir: &Path| {
            walk(dir, 100).unwrap().into_iter().map(|(path, seen)| (path, strip(seen))).collect::<Vec<_>>()
        };
        assert_eq!(all(from.path()), all(to.path()));
        assert_eq!(all(to.path()).len(), 14);
        assert_eq!(std::fs::read(path_below(to.path(), b"not\xff\xfetext")).unwrap(), b"not\xff\xfetext");
        assert_eq!(std::fs::read_link(to.path().join("odd-target")).unwrap().as_os_str().as_bytes(), b"\xff%41");
        assert_eq!(mode_of(&to.path().join("read-only")), 0o555);
    }

    #[test]
    fn what_was_restored_is_unchanged() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("a")).unwrap();
        std::fs::write(from.path().join("a/b"), "x").unwrap();
        set_mode(&from.path().join("a/b"), 0o600);
        let manifest = carry_over(from.path(), to.path());
        let Content::File(saved) = &manifest.entries[b"a/b".as_slice()].content else { panic!() };
        let EntryKind::File { bytes, stamp, .. } = walk(to.path(), 100).unwrap()[b"a/b".as_slice()].clone() else {
            panic!()
        };
        assert_eq!((saved.bytes, saved.stamp), (bytes, stamp));
    }

    /// A file that has the same size and time is another all the same.
    #[test]
    fn a_change_is_seen_whatever_the_size_and_the_time_say() {
        let dir = tempfile::tempdir().unwrap();
        let (path, next) = (dir.path().join("file"), dir.path().join("next"));
        std::fs::write(&path, "one").unwrap();
        let time = path.metadata().unwrap().modified().unwrap();
        let before = walk(dir.path(), 100).unwrap();

        std::fs::write(&next, "two").unwrap();
        File::options().write(true).open(&next).unwrap().set_modified(time).unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_ne!(walk(dir.path(), 100).unwrap(), before);
    }

    #[test]
    fn what_cannot_be_saved_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |what: &str| {
            let error = walk(dir.path(), 100).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("a/odd"), "{error}");
            std::fs::remove_file(dir.path().join("a/odd")).unwrap();
        };
        std::fs::create_dir(dir.path().join("a")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("a/odd"), Mode::RWXU).unwrap();
        refused("FIFO");
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("a/odd")).unwrap();
        refused("socket");
        assert_eq!(walk(dir.path(), 100).unwrap().len(), 1);
    }

    #[test]
    fn no_link_is_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), dir.path().join("folder")).unwrap();
        symlink(outside.path().join("secret"), dir.path().join("file")).unwrap();
        assert!(walk(dir.path(), 100).unwrap().values().all(|seen| matches!(seen, EntryKind::Link { .. })));
        assert!(pin(dir.path(), b"folder/secret", None).is_err());
        assert!(pin(dir.path(), b"file", None).is_err());
    }

    #[test]
    fn only_what_is_the_workloads_own_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let own = dir.path().join("file").metadata().unwrap().uid();
        assert!(pin(dir.path(), b"file", Some(own)).unwrap().is_some());
        assert!(pin(dir.path(), b"file", Some(own + 1)).is_err(), "another user's");
        assert!(pin(dir.path(), b"none", Some(own)).unwrap().is_none());
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(pin(dir.path(), b"folder", Some(own)).is_err(), "a folder");
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(matches!(pin(dir.path(), b"socket", Some(own)), Err(PinError::NoFile { .. })), "a socket");
        // The system's own refusals keep their number: most are the machine's.
        let Err(PinError::System(error)) = pin(dir.path(), &[b'n'; 300], Some(own)) else { panic!() };
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NAMETOOLONG));
    }

    #[test]
    fn a_pinned_file_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "old").unwrap();
        let pinned = pin(dir.path(), b"file", None).unwrap().unwrap();
        std::fs::write(dir.path().join("next"), "new").unwrap();
        std::fs::rename(dir.path().join("next"), &path).unwrap();
        assert_eq!(std::fs::read_to_string(pinned.path()).unwrap(), "old");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(std::fs::read_to_string(pinned.path()).unwrap(), "old");
    }
}
