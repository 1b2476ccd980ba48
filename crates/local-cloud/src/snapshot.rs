//! A copy of the tables' files for a reader, taken without a lock or a write while another process can be writing.
//!
//! `SQLite` in WAL mode appends to `…-wal` and changes the main file only at checkpoints. A copy of the main file and
//! then of the log is consistent if there was no checkpoint and no restart of the log between the two: the main file's
//! size and times and the log's header must be the same before and after. If the last transaction was copied in part,
//! `SQLite` drops it by the checksums of the log.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layout::OpenError;

/// A checkpoint comes every 1,000 pages, and one finishes within a pause. 100 × 50 ms is 5 s in total.
const TRIES_MAX: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);
/// The resolution of file times is the kernel's tick, at most 10 ms: a second change within a tick leaves the same
/// time.
const TICK: Duration = Duration::from_millis(10);
/// Source: SQLite, "Database File Format", section 4.1, "WAL File Format".
const WAL_HEADER_BYTES: u64 = 32;

/// A copy in a temporary folder of this user, removed when the value is dropped.
#[derive(Debug)]
pub(super) struct Snapshot {
    dir: PathBuf,
}

impl Snapshot {
    /// Copies a database as of one moment.
    pub(super) fn take(database: &Path) -> Result<Self, OpenError> {
        let dir = std::env::temp_dir().join(format!("lighthpc-copy-{}", uuid::Uuid::new_v4()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(OpenError::io(&dir))?;
        let snapshot = Self { dir };
        for _ in 0..TRIES_MAX {
            if snapshot.copy(database)? {
                return Ok(snapshot);
            }
            std::thread::sleep(PAUSE);
        }
        let reason = "it changes faster than it can be copied: try again".to_owned();
        Err(OpenError::State { path: database.to_owned(), reason })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("dynamo.sqlite")
    }

    /// Copies both files; `false`: they do not belong together.
    fn copy(&self, database: &Path) -> Result<bool, OpenError> {
        let log = log_path(database);
        let before = fingerprint(database, &log)?;
        copy(database, &self.database())?;
        let log_copy = log_path(&self.database());
        if before.log.is_none() {
            remove(&log_copy)?;
        } else if !copy(&log, &log_copy)? {
            return Ok(false);
        }
        // A time in the future is from another clock, or was set by hand.
        let is_settled = before.modified.elapsed().map_or(true, |age| age > TICK);
        Ok(is_settled && before == fingerprint(database, &log)?)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // A copy that cannot be removed stays in the system's folder for temporary files.
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// The properties that a checkpoint or a restart of the log changes.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    inode: u64,
    bytes: u64,
    modified: std::time::SystemTime,
    changed: (i64, i64),
    log: Option<Vec<u8>>,
}

fn fingerprint(database: &Path, log: &Path) -> Result<Fingerprint, OpenError> {
    let found = fs::metadata(database).map_err(OpenError::io(database))?;
    let header = match File::open(log) {
        Ok(file) => {
            let mut header = Vec::new();
            file.take(WAL_HEADER_BYTES).read_to_end(&mut header).map_err(OpenError::io(log))?;
            Some(header)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(OpenError::Io { path: log.to_owned(), source }),
    };
    Ok(Fingerprint {
        inode: found.ino(),
        bytes: found.len(),
        modified: found.modified().map_err(OpenError::io(database))?,
        changed: (found.ctime(), found.ctime_nsec()),
        log: header,
    })
}

/// Copies a file; `false`: it does not exist.
fn copy(from: &Path, to: &Path) -> Result<bool, OpenError> {
    // The copy of a read-only file would be read-only, and the engine opens files to write.
    remove(to)?;
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(OpenError::Io { path: from.to_owned(), source }),
    };
    let mut copy = File::create_new(to).map_err(OpenError::io(to))?;
    io::copy(&mut source, &mut copy).map_err(OpenError::io(to))?;
    Ok(true)
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

fn log_path(database: &Path) -> PathBuf {
    let mut path = OsString::from(database);
    path.push("-wal");
    PathBuf::from(path)
}
