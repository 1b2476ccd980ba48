//! The checkpoint folder on this machine's disk: lists its content, and restores it.
//!
//! The workload may change the folder at any time, and the node may read files that the workload may not. So all
//! entries are reached from the folder's own descriptor, and no link is followed. Links of a restored checkpoint are
//! created after all files, so that no file is written through a link.

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

/// The maximum length of a path below the folder, in bytes. Linux allows 4,096 in total, and the folder's own path
/// differs between machines.
const PATH_BYTES_MAX: usize = 3072;

/// The type of an entry of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File {
        /// The size in bytes.
        bytes: u64,
        /// The state, which changes with the content.
        stamp: Stamp,
        /// The permissions.
        mode: u32,
    },
    /// A folder with these permissions.
    Folder {
        /// The permissions.
        mode: u32,
    },
    /// A symbolic link with this target.
    Link {
        /// The target, unchanged.
        target: Vec<u8>,
    },
}

/// Returns all entries below a folder by path. Entries that disappear meanwhile are omitted; they were temporary.
///
/// # Errors
/// The system's error. Also an error that names an entry that a checkpoint cannot contain: a socket, a FIFO, a device,
/// a path that is too long, a folder that is too deep, or too many entries.
pub fn walk(root: &Path, entries_max: usize) -> io::Result<BTreeMap<Vec<u8>, EntryKind>> {
    let mut found = BTreeMap::new();
    walk::each(&walk::open_top(root)?, DEPTH_MAX, |at: Found<'_>| -> io::Result<()> {
        if let Some(seen) = kind_at(at)? {
            found.insert(at.path.to_vec(), seen);
        }
        if found.len() > entries_max {
            return Err(io::Error::other(format!(
                "it contains more than {entries_max} files, folders and links (--max-checkpoint-files): pack them"
            )));
        }
        Ok(())
    })?;
    Ok(found)
}

fn kind_at(at: Found<'_>) -> io::Result<Option<EntryKind>> {
    let Found { parent: folder, name, path, meta } = at;
    if path.len() > PATH_BYTES_MAX {
        return Err(io::Error::other(format!("{} has a path of more than {PATH_BYTES_MAX} bytes", shortened(path))));
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
                // It was just replaced. The next save contains the new entry.
                Err(Errno::NOENT | Errno::INVAL) => Ok(None),
                Err(error) => refuse(&format!("cannot be read: {error}")),
            };
        }
        FileType::Socket => "is a socket",
        FileType::Fifo => "is a FIFO",
        FileType::BlockDevice | FileType::CharacterDevice => "is a device",
        FileType::Unknown => "has an unknown type",
    };
    refuse(&format!("{what}, but a checkpoint can contain only files, folders and links: keep it in LIGHTHPC_SCRATCH"))
}

/// An opened file of the folder. Changes of its name do not affect it.
#[derive(Debug)]
pub struct Pinned {
    file: File,
}

/// The reason why a file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The workload replaced it.
    #[error("{path} {what}")]
    NoFile {
        /// The path below the folder, as text.
        path: String,
        /// The reason.
        what: &'static str,
    },
    /// A system call failed. The number shows whether the machine is the cause.
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

/// Opens a file of the folder; `None` if it does not exist. With an owner, only that user's file is opened: the
/// workload might have replaced a listed file by a link.
///
/// # Errors
/// [`PinError`].
pub fn pin(root: &Path, path: &[u8], owner: Option<u32>) -> Result<Option<Pinned>, PinError> {
    let no_file = |what| PinError::NoFile { path: encode(path), what };
    let top = walk::open_top(root)?;
    let parent = parents(path).next().unwrap_or_default();
    let name = OsStr::from_bytes(&path[if parent.is_empty() { 0 } else { parent.len() + 1 }..]);
    // Does not wait for a FIFO in its place.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match walk::open_below(&top, parent).and_then(|folder| openat(folder, name, flags, Mode::empty())) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        // The last two errors are for a socket, and for a device without a driver.
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::NODEV) => {
            return Err(no_file("was replaced while it was saved"));
        }
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() || owner.is_some_and(|owner| meta.uid() != owner) {
        return Err(no_file("is not a file of the workload"));
    }
    Ok(Some(Pinned { file }))
}

impl Pinned {
    /// Returns a path by which this process can read the file while this value exists.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Returns the file's size, state, and permissions.
    ///
    /// # Errors
    /// The system's error.
    pub fn read_state(&self) -> io::Result<(u64, Stamp, u32)> {
        let meta = self.file.metadata()?;
        Ok((meta.len(), stamp(&meta), meta.mode() & MODE_KEPT))
    }
}

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    Stamp { inode: meta.ino(), modified: (meta.mtime(), meta.mtime_nsec()), changed: (meta.ctime(), meta.ctime_nsec()) }
}

/// Returns the path of a checkpoint's entry below the folder. A parsed list contains no path that leaves it.
#[must_use]
pub fn path_below(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// Creates the folders of a checkpoint for its files.
///
/// # Errors
/// The system's error.
pub fn make_folders(root: &Path, manifest: &Manifest) -> io::Result<()> {
    for (path, entry) in &manifest.entries {
        let folder = if entry.content == Content::Folder { Some(path.as_slice()) } else { parents(path).next() };
        if let Some(folder) = folder {
            std::fs::create_dir_all(path_below(root, folder))?;
        }
    }
    Ok(())
}

/// Completes a checkpoint whose files are restored: links, owners, and permissions, the innermost first. Records the
/// state of the files in the list, so that the next save detects changes.
///
/// # Errors
/// The system's error.
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
