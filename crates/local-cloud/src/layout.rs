//! The folder of a local cloud: its files, its owner, and its lock.
//!
//! ```text
//! DIR/source/…  DIR/results/…       the objects, under readable names (see `keys`)
//! DIR/.lighthpc/version             `1`; its folder marks DIR as ours
//! DIR/.lighthpc/lock                flock of the process that has the cloud open
//! DIR/.lighthpc/dynamo.sqlite       the tables
//! DIR/.lighthpc/uploads/ID/         parts of unfinished multipart uploads
//! DIR/.lighthpc/meta/ETAG.json      content type, metadata, and checksums of an object
//! DIR/.lighthpc/tmp/                incomplete bodies; emptied at open
//! DIR/.lighthpc/notifications.jsonl every message published
//! ```
//!
//! Must never write into a folder that is not empty and not marked as ours: it can be a home directory.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::names::{RESULT_BUCKET, SOURCE_BUCKET};

/// The layout that this program writes; any other is refused.
const VERSION: &str = "1";

/// The error of opening a local cloud.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another lighthpc process", dir.display())]
    InUse {
        /// The cloud's folder.
        dir: PathBuf,
    },
    /// The folder has files in it, but no `.lighthpc` folder, so it is not a local cloud.
    #[error("{} is not empty and is not a lighthpc folder", dir.display())]
    NotOurs {
        /// The requested folder.
        dir: PathBuf,
    },
    /// There is nothing to attach to.
    #[error("there is no lighthpc folder at {}", dir.display())]
    NotFound {
        /// The requested folder.
        dir: PathBuf,
    },
    /// The file system refused.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The content of a file cannot be used.
    #[error("{} cannot be read: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// How often, and with what pause, a folder is tried that is in use.
const LOCK_TRIES_MAX: u32 = 5;
const LOCK_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

/// The paths of one local cloud.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Creates or opens the folder and takes its lock, which is held while the returned file is open.
    pub(super) fn open(dir: &Path) -> Result<(Self, File), OpenError> {
        make_folder(dir)?;
        let layout = Self { dir: dir.canonicalize().map_err(OpenError::io(dir))? };
        if !layout.own().is_dir() && !is_empty(dir)? {
            return Err(OpenError::NotOurs { dir: layout.dir });
        }
        // Our mark goes first: a second process that finds the incomplete folder sees that it is ours.
        for folder in [layout.own(), layout.uploads(), layout.meta(), layout.tmp()] {
            make_folder(&folder)?;
        }
        let lock = layout.lock()?;
        layout.check_version(true)?;
        for bucket in [SOURCE_BUCKET, RESULT_BUCKET] {
            let folder = layout.dir.join(bucket);
            fs::create_dir_all(&folder).map_err(OpenError::io(&folder))?;
        }
        layout.empty_tmp()?;
        Ok((layout, lock))
    }

    /// Opens the folder for reading: nothing is created, locked, or removed.
    pub(super) fn attach(dir: &Path) -> Result<Self, OpenError> {
        // A folder that this user cannot access is not reported as missing.
        let refused = |path: &Path| fs::metadata(path).err().filter(|e| e.kind() == io::ErrorKind::PermissionDenied);
        if let Some(error) = refused(dir) {
            return Err(OpenError::io(dir)(error));
        }
        let Some(dir) = dir.canonicalize().ok().filter(|dir| dir.is_dir()) else {
            return Err(OpenError::NotFound { dir: dir.to_owned() });
        };
        let layout = Self { dir };
        for path in [layout.own(), layout.database()] {
            if let Some(error) = refused(&path) {
                return Err(OpenError::io(&path)(error));
            }
        }
        if !layout.own().is_dir() {
            let is_other = !is_empty(&layout.dir)?;
            let dir = layout.dir;
            return Err(if is_other { OpenError::NotOurs { dir } } else { OpenError::NotFound { dir } });
        }
        if !layout.database().is_file() {
            return Err(OpenError::NotFound { dir: layout.dir });
        }
        layout.check_version(false)?;
        Ok(layout)
    }

    /// Returns whether a process has the cloud open; `None`: this user may not see that.
    pub(super) fn is_in_use(&self) -> Option<bool> {
        let file = File::open(self.own().join("lock")).ok()?;
        match file.try_lock_shared() {
            Ok(()) => Some(false),
            Err(TryLockError::WouldBlock) => Some(true),
            Err(TryLockError::Error(_)) => None,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the folder of a bucket. The caller has checked the name by S3's rules, which exclude our own folder.
    pub(super) fn bucket(&self, bucket: &str) -> PathBuf {
        self.dir.join(bucket)
    }

    pub(super) fn database(&self) -> PathBuf {
        self.own().join("dynamo.sqlite")
    }

    pub(super) fn notifications(&self) -> PathBuf {
        self.own().join("notifications.jsonl")
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.own().join("uploads")
    }

    pub(super) fn meta(&self) -> PathBuf {
        self.own().join("meta")
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.own().join("tmp")
    }

    fn own(&self) -> PathBuf {
        self.dir.join(".lighthpc")
    }

    fn lock(&self) -> Result<File, OpenError> {
        let path = self.own().join("lock");
        let mut options = File::options();
        let file = own_file(options.create(true).truncate(false).write(true)).open(&path);
        let file = file.map_err(OpenError::io(&path))?;
        // Whoever looks whether the folder is in use holds the lock for a moment.
        let mut tries = 0;
        while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && tries < LOCK_TRIES_MAX {
            std::thread::sleep(LOCK_PAUSE);
            tries += 1;
        }
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { dir: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
        }
    }

    /// Refuses another layout. A folder without a version is being created; with `may_write`, by us.
    fn check_version(&self, may_write: bool) -> Result<(), OpenError> {
        let path = self.own().join("version");
        match fs::read_to_string(&path) {
            Ok(version) if version.trim() == VERSION => Ok(()),
            Ok(version) => Err(OpenError::State {
                path,
                reason: format!("it has layout {:?}, this program writes {VERSION:?}", version.trim()),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !may_write => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = own_file(File::options().create_new(true).write(true)).open(&path);
                let written = file.and_then(|mut file| writeln!(file, "{VERSION}"));
                written.map_err(OpenError::io(&path))
            }
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// Removes the incomplete bodies of a killed process. We hold the lock, so no other process is writing them.
    fn empty_tmp(&self) -> Result<(), OpenError> {
        let tmp = self.tmp();
        for entry in fs::read_dir(&tmp).map_err(OpenError::io(&tmp))? {
            let path = entry.map_err(OpenError::io(&tmp))?.path();
            fs::remove_file(&path).map_err(OpenError::io(&path))?;
        }
        Ok(())
    }
}

/// Makes a folder, with those above it, that nobody but this user may write to, whatever the umask: with 002 it would
/// be the group's too, and whoever may write there chooses the program that is run.
fn make_folder(folder: &Path) -> Result<(), OpenError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(OpenError::io(folder))
}

/// As [`make_folder`], for a file; what is a link is not followed.
pub(super) fn own_file(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.mode(0o644).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
}

fn is_empty(dir: &Path) -> Result<bool, OpenError> {
    Ok(fs::read_dir(dir).map_err(OpenError::io(dir))?.next().is_none())
}
