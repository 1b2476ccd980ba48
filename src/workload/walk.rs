//! Walks a folder that a workload may change at any time.
//!
//! Every folder is reached from the top folder's descriptor, level by level, and no link is followed: a name that is
//! replaced by a link gives an error. There is no recursion and no path for the system, so neither the stack nor
//! `PATH_MAX` limits the depth, but [`DEPTH_MAX`] does.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

use crate::domain::checkpoint::encode;

/// The maximum number of folder levels in a result or a checkpoint. Programs create some tens. Each folder is opened
/// from the top, so 100,000 folders at this depth cost 20 million system calls, about 20 s.
pub const DEPTH_MAX: usize = 200;

/// The reason why a walk stopped.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A system call failed.
    #[error("{path}: {source}")]
    System {
        /// The path below the top folder, as text.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// There are too many levels of folders.
    #[error("it has more than {max} levels of folders, at {path}: pack them")]
    TooDeep {
        /// The beginning of the path below the top folder, as text.
        path: String,
        /// The maximum number of levels.
        max: usize,
    },
    /// A folder was replaced by another entry.
    #[error("{path} was replaced while it was read")]
    Replaced {
        /// The path below the top folder, as text.
        path: String,
    },
}

impl WalkError {
    /// Creates an error of the system at a path below the top folder.
    pub fn system(path: &[u8], source: impl Into<io::Error>) -> Self {
        Self::System { path: encode(path), source: source.into() }
    }
}

impl From<WalkError> for io::Error {
    fn from(error: WalkError) -> Self {
        let kind = match &error {
            WalkError::System { source, .. } => source.kind(),
            WalkError::TooDeep { .. } | WalkError::Replaced { .. } => io::ErrorKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

/// An entry that a walk found.
#[derive(Clone, Copy)]
pub struct Found<'a> {
    /// The folder that contains it.
    pub parent: &'a OwnedFd,
    /// Its name there.
    pub name: &'a CStr,
    /// Its path below the top folder: any bytes.
    pub path: &'a [u8],
    /// Its metadata. For a link, those of the link.
    pub meta: &'a Stat,
}

impl Found<'_> {
    /// Returns its file type.
    #[must_use]
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.meta.st_mode)
    }
}

/// Opens the folder at `path`, which must not be a link, for [`each`].
///
/// # Errors
/// The system's error.
pub fn open_top(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, FOLDER, Mode::empty())
}

pub(super) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a folder below `top`, level by level, so that no link is followed at any depth.
pub(super) fn open_below(top: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut folder = rustix::io::fcntl_dupfd_cloexec(top, 0)?;
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        folder = openat(&folder, name, FOLDER, Mode::empty())?;
    }
    Ok(folder)
}

/// Opens a folder, given by a descriptor, for reading its entries.
pub(super) fn readable(folder: impl AsFd) -> Result<OwnedFd, Errno> {
    openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls `see` for each entry below `top`, for a folder before its content. Entries that disappear meanwhile are
/// omitted.
///
/// # Errors
/// [`WalkError`], converted to the caller's type, and the errors of `see`.
pub fn each<E: From<WalkError>>(
    top: &OwnedFd,
    depth_max: usize,
    mut see: impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut folders: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
    while let Some((path, depth)) = folders.pop() {
        let folder = match open_below(top, &path).and_then(readable) {
            Ok(folder) => folder,
            Err(Errno::NOENT) if depth > 0 => continue,
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(WalkError::Replaced { path: encode(&path) }.into()),
            Err(error) => return Err(WalkError::system(&path, error).into()),
        };
        for entry in Dir::read_from(&folder).map_err(|error| WalkError::system(&path, error))? {
            let entry = entry.map_err(|error| WalkError::system(&path, error))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let below = if depth == 0 { name.to_bytes().to_vec() } else { [&path, name.to_bytes()].join(&b'/') };
            let meta = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(meta) => meta,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(WalkError::system(&below, error).into()),
            };
            let found = Found { parent: &folder, name, path: &below, meta: &meta };
            see(found)?;
            if found.kind() == FileType::Directory {
                if depth == depth_max {
                    return Err(WalkError::TooDeep { path: shortened(&below), max: depth_max }.into());
                }
                folders.push((below, depth + 1));
            }
        }
    }
    Ok(())
}

/// The maximum length of a path in an error message: an error is one line in a task's row.
const SHOWN_BYTES_MAX: usize = 80;

/// Returns the beginning of a path as text.
pub(super) fn shortened(path: &[u8]) -> String {
    if path.len() <= SHOWN_BYTES_MAX { encode(path) } else { format!("{}…", encode(&path[..SHOWN_BYTES_MAX])) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Makes a chain of folders, which no path of the system could name, with a file in the innermost.
    pub(in crate::workload) fn chain(top: &Path, name: &str, levels: usize) {
        let mut at = open_top(top).unwrap();
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
            at = openat(&at, name, FOLDER, Mode::empty()).unwrap();
        }
        openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    }

    fn count(top: &Path, depth_max: usize) -> Result<usize, WalkError> {
        let mut count = 0;
        each(&open_top(top).unwrap(), depth_max, |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    #[test]
    fn a_path_that_is_longer_than_any_system_takes_is_walked() {
        let dir = tempfile::tempdir().unwrap();
        chain(dir.path(), &"n".repeat(200), DEPTH_MAX);
        assert_eq!(count(dir.path(), DEPTH_MAX).unwrap(), DEPTH_MAX + 1);
        assert!(matches!(count(dir.path(), DEPTH_MAX - 1), Err(WalkError::TooDeep { .. })));
    }

    #[test]
    fn however_deep_the_walk_ends_with_a_short_text() {
        // In memory where that can be: a disk takes its time for so many folders.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        chain(&inside, "\u{1b}[31m", 20_000);
        let error = count(&inside, DEPTH_MAX).unwrap_err().to_string();
        assert!(error.len() < 300 && error.contains("200 levels") && !error.contains('\u{1b}'), "{error}");
        super::super::remover::Remover::new(&open_top(&inside).unwrap()).unwrap().empty(None).unwrap();
    }

    #[test]
    fn links_are_seen_and_not_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "").unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        symlink(".", dir.path().join("round")).unwrap();
        assert_eq!(count(dir.path(), DEPTH_MAX).unwrap(), 2);
        let link = dir.path().join("link");
        assert!(open_top(&link).is_err());
    }

    /// A folder that becomes a link between the look and the opening, again and again.
    #[test]
    fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "").unwrap();
        let (place, aside) = (dir.path().join("place"), dir.path().join("aside"));
        std::fs::create_dir(&place).unwrap();
        symlink(outside.path(), &aside).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &place, CWD, &aside, flags).unwrap();
                }
            });
            let top = open_top(dir.path()).unwrap();
            for _ in 0..2000 {
                let seen = each(&top, DEPTH_MAX, |found| {
                    assert!(!found.path.ends_with(b"secret"), "it was led outside");
                    Ok::<_, WalkError>(())
                });
                assert!(matches!(seen, Ok(()) | Err(WalkError::Replaced { .. })), "{seen:?}");
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
