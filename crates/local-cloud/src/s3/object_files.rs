//! The objects on disk: finds, opens, commits, and removes one, each as a single step under one lock.
//!
//! The lock covers a write's check and its rename, so exactly one of several conditional writers wins. Bytes arrive
//! outside it, in `tmp/`. An `ETag` consists of the file's inode, time, and size. It is opaque and new with every write
//! (each write has a unique time), and it changes when a person edits a linked file. Must never follow a symbolic link
//! to write, remove, or descend: its target is the user's file, which is only read.
//!
//! ```text
//! Staged (tmp/…) ── commit: check · stamp · meta · make room · rename ──► object ── remove ──► gone
//!        └── dropped: removed
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use s3s::dto::{ETag, ETagCondition};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::keys;
use super::super::layout::Layout;
use super::super::lock::locked;
use super::checksums::Checksums;

/// What S3 stores beside an object's bytes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) content_type: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    /// Of the whole object.
    pub(super) checksums: Checksums,
}

/// The properties of an object's file.
#[derive(Debug, Clone)]
pub(super) struct Stat {
    pub(super) etag: String,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
}

impl Stat {
    pub(super) fn from_metadata(file: &Metadata) -> Self {
        Self {
            etag: format!("{:x}-{:x}{:08x}-{:x}", file.ino(), file.mtime(), file.mtime_nsec(), file.len()),
            size: file.len(),
            modified: file.modified().unwrap_or(UNIX_EPOCH),
        }
    }

    pub(super) fn etag(&self) -> ETag {
        ETag::Strong(self.etag.clone())
    }
}

/// The `If-Match` and `If-None-Match` of a request.
#[derive(Debug, Default)]
pub(super) struct Condition {
    pub(super) if_match: Option<ETagCondition>,
    pub(super) if_none_match: Option<ETagCondition>,
}

impl Condition {
    fn check_write(&self, current: Option<&Stat>) -> S3Result {
        match (&self.if_match, current) {
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(wanted), Some(current)) if !is_same(wanted, current) => {
                return Err(s3_error!(PreconditionFailed));
            }
            _ => {}
        }
        match (&self.if_none_match, current) {
            // A write accepts only `*`: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html>.
            (Some(ETagCondition::ETag(_)), _) => Err(s3_error!(NotImplemented, "If-None-Match takes * only")),
            (Some(ETagCondition::Any), Some(_)) => Err(s3_error!(PreconditionFailed)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_read(&self, current: &Stat) -> S3Result {
        if self.if_match.as_ref().is_some_and(|wanted| !is_same(wanted, current)) {
            return Err(s3_error!(PreconditionFailed));
        }
        if self.if_none_match.as_ref().is_some_and(|seen| is_same(seen, current)) {
            return Err(s3_error!(NotModified));
        }
        Ok(())
    }
}

fn is_same(condition: &ETagCondition, current: &Stat) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == current.etag,
    }
}

/// A file in `tmp/` that becomes an object or a part, or is removed.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: File,
    path: PathBuf,
    is_kept: bool,
}

impl Staged {
    pub(super) fn new(layout: &Layout) -> S3Result<Self> {
        let path = layout.tmp().join(Uuid::new_v4().simple().to_string());
        let file = File::options().create_new(true).write(true).open(&path).map_err(|e| io_error("opening", &e))?;
        Ok(Self { file, path, is_kept: false })
    }

    fn move_to(mut self, place: &Path) -> S3Result {
        fs::rename(&self.path, place).map_err(|e| io_error("renaming into place", &e))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_kept {
            // A file that cannot be removed now is removed when the cloud is opened next.
            fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

/// The objects of all buckets.
#[derive(Debug)]
pub(crate) struct ObjectFiles {
    pub(super) layout: Layout,
    /// Locked for every read and change. The value is the time last set on a file, in nanoseconds.
    stamp: Mutex<u64>,
}

impl ObjectFiles {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, stamp: Mutex::new(0) }
    }

    /// Returns the folder of a bucket that exists.
    pub(super) fn bucket(&self, bucket: &str) -> S3Result<PathBuf> {
        let root = self.layout.bucket(bucket);
        if is_folder(&root) { Ok(root) } else { Err(s3_error!(NoSuchBucket)) }
    }

    /// Opens an object for reading. A rename over it does not change the open version.
    pub(super) fn open(&self, bucket: &str, key: &str) -> S3Result<(File, Stat)> {
        let root = self.bucket(bucket)?;
        let _guard = locked(&self.stamp);
        let place = locate(&root, key).ok_or_else(|| s3_error!(NoSuchKey))?;
        let opened = require_file(&place).and_then(|()| File::open(&place)).and_then(|f| Ok((f.metadata()?, f)));
        match opened {
            Ok((found, file)) => Ok((file, Stat::from_metadata(&found))),
            // A link to a missing file is a missing object.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(s3_error!(NoSuchKey)),
            Err(e) => Err(io_error("opening the object", &e)),
        }
    }

    pub(super) fn meta(&self, etag: &str) -> Meta {
        let text = fs::read(self.meta_path(etag)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Moves a staged file to an object's path if the condition holds, and returns the new `ETag`.
    ///
    /// `recheck` is called under the lock, before anything is changed.
    pub(super) fn commit(
        &self,
        (bucket, key): (&str, &str),
        staged: Staged,
        condition: &Condition,
        meta: &Meta,
        recheck: impl FnOnce() -> S3Result,
    ) -> S3Result<ETag> {
        let root = self.bucket(bucket)?;
        let mut stamp = locked(&self.stamp);
        recheck()?;
        let current = stat(&root, key)?;
        condition.check_write(current.as_ref())?;
        let etag = next_stamp(&mut stamp, &staged)?;
        let text = serde_json::to_vec(meta).map_err(S3Error::internal_error)?;
        fs::write(self.meta_path(&etag), text).map_err(|e| io_error("writing the metadata", &e))?;
        let place = make_room(&root, key).map_err(|e| io_error("making room", &e))?;
        staged.move_to(&place)?;
        if let Some(old) = current {
            self.remove_meta(&old.etag);
        }
        Ok(ETag::Strong(etag))
    }

    /// Moves a staged file to a path that is not an object's, and returns its `ETag`.
    pub(super) fn store(&self, staged: Staged, place: &Path) -> S3Result<ETag> {
        let mut stamp = locked(&self.stamp);
        let etag = next_stamp(&mut stamp, &staged)?;
        staged.move_to(place)?;
        Ok(ETag::Strong(etag))
    }

    /// Removes an object, if it exists, and the folders that are then empty.
    pub(super) fn remove(&self, bucket: &str, key: &str) -> S3Result {
        let root = self.bucket(bucket)?;
        let _guard = locked(&self.stamp);
        let Some(place) = locate(&root, key) else { return Ok(()) };
        let etag = fs::symlink_metadata(&place).map(|found| Stat::from_metadata(&found).etag);
        fs::remove_file(&place).map_err(|e| io_error("removing the object", &e))?;
        if let Ok(etag) = etag {
            self.remove_meta(&etag);
        }
        for folder in place.ancestors().skip(1).take_while(|folder| *folder != root) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Creates an object that is a link to the user's file.
    pub(crate) fn link(&self, bucket: &str, key: &str, file: &Path) -> io::Result<()> {
        if !file.is_absolute() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a linked file needs an absolute path"));
        }
        require_file(file)?;
        if key.is_empty() || key.len() > 1024 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a key has 1 to 1,024 bytes"));
        }
        let root = self.layout.bucket(bucket);
        let _guard = locked(&self.stamp);
        let staged = self.layout.tmp().join(Uuid::new_v4().simple().to_string());
        std::os::unix::fs::symlink(file, &staged)?;
        make_room(&root, key)
            .and_then(|place| fs::rename(&staged, place))
            .inspect_err(|_| fs::remove_file(&staged).unwrap_or_default())
    }

    /// Returns the path of an object's file; if there is none, the path that it would have.
    pub(crate) fn find_path(&self, bucket: &str, key: &str) -> PathBuf {
        let root = self.layout.bucket(bucket);
        let _guard = locked(&self.stamp);
        locate(&root, key).unwrap_or_else(|| root.join(keys::path_of(key)))
    }

    /// Runs `act` while no object changes.
    pub(super) fn with_lock<T>(&self, act: impl FnOnce() -> T) -> T {
        let _guard = locked(&self.stamp);
        act()
    }

    fn meta_path(&self, etag: &str) -> PathBuf {
        self.layout.meta().join(format!("{etag}.json"))
    }

    fn remove_meta(&self, etag: &str) {
        // A linked file has none, and one that cannot be removed has the name of an ETag that is never used again.
        fs::remove_file(self.meta_path(etag)).unwrap_or_default();
    }
}

/// Converts an error of the file system to one of S3.
pub(super) fn io_error(doing: &str, error: &io::Error) -> S3Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => S3ErrorCode::AccessDenied,
        io::ErrorKind::StorageFull => {
            let mut full = S3Error::with_message(S3ErrorCode::Custom("InsufficientStorage".into()), error.to_string());
            full.set_status_code(http::StatusCode::BAD_REQUEST);
            return full;
        }
        _ => S3ErrorCode::InternalError,
    };
    S3Error::with_message(code, format!("{doing}: {error}"))
}

/// Sets a time on the staged file that no other file of this process has, and returns its `ETag`. The file system's
/// clock has a resolution of milliseconds and inodes are reused at once, so two writes could have the same `ETag`.
fn next_stamp(last: &mut u64, staged: &Staged) -> S3Result<String> {
    let stamped = (|| {
        let written = staged.file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = u64::try_from(written.as_nanos()).unwrap_or(u64::MAX - 1).max(*last + 1);
        staged.file.set_modified(UNIX_EPOCH + Duration::from_nanos(nanos))?;
        *last = nanos;
        staged.file.metadata()
    })();
    stamped.map(|found| Stat::from_metadata(&found).etag).map_err(|e| io_error("stamping", &e))
}

pub(super) fn stat(root: &Path, key: &str) -> S3Result<Option<Stat>> {
    let Some(place) = locate(root, key) else { return Ok(None) };
    match fs::metadata(&place) {
        Ok(found) => Ok(found.is_file().then(|| Stat::from_metadata(&found))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("reading the object's state", &e)),
    }
}

/// Finds the object's file or link under either of its names. A folder that is a link is not followed.
pub(super) fn locate(root: &Path, key: &str) -> Option<PathBuf> {
    let natural = keys::path_of(key);
    let mut folder = root.to_owned();
    for name in natural.parent()?.components() {
        folder.push(name);
        if !is_folder(&folder) {
            return None;
        }
    }
    let natural = root.join(natural);
    let is_there = |place: &Path| fs::symlink_metadata(place).is_ok_and(|found| !found.is_dir());
    if is_there(&natural) {
        return Some(natural);
    }
    Some(keys::aside(&natural)).filter(|place| is_there(place))
}

/// Creates the folders of an object's path, moves aside a file that has the name of one, and returns the path.
fn make_room(root: &Path, key: &str) -> io::Result<PathBuf> {
    let natural = keys::path_of(key);
    let mut folder = root.to_owned();
    for name in natural.parent().into_iter().flat_map(Path::components) {
        folder.push(name);
        match fs::symlink_metadata(&folder) {
            Ok(found) if found.is_dir() => continue,
            Ok(_) => {
                let aside = keys::aside(&folder);
                if fs::symlink_metadata(&aside).is_ok() {
                    let text = format!("{} and {} are both there", folder.display(), aside.display());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                fs::rename(&folder, aside)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        fs::create_dir(&folder)?;
    }
    let natural = root.join(natural);
    let aside = keys::aside(&natural);
    // Once moved aside, it stays: a commit is one rename, and after a crash two files would be two versions.
    let stays_aside = is_folder(&natural) || fs::symlink_metadata(&aside).is_ok();
    Ok(if stays_aside { aside } else { natural })
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Refuses anything but a regular file: opening a pipe would wait for its writer.
fn require_file(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a file", path.display())))
}
