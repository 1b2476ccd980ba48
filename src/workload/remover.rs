//! Removes the content of a folder by descriptors, so that no link is followed, even if names change meanwhile.
//!
//! `folder.rs` proves whether the folder may be removed.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, Dir, Mode, StatxAttributes, StatxFlags, fstat, openat, renameat, statx, unlinkat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use tokio_util::sync::CancellationToken;

use super::walk::{FOLDER, readable};

/// Opens a folder by its name, whatever its mode, unless it is a link.
pub(super) fn open_folder(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(parent, name, FOLDER, Mode::empty())
}

/// The number of names of a folder that are read at a time: an attempt may leave millions of files.
pub(super) const NAMES_AT_ONCE: usize = 4096;
/// The maximum number of open levels. Deeper folders are moved to the top first, so that neither the open files nor the
/// stack grow with the depth.
pub(super) const DEPTH_MAX: usize = 64;
/// The maximum number of passes over the top folder: as many as a disk can have levels, but bounded.
const PASSES_MAX: u32 = 100_000;
/// The maximum number of reads of one folder: 400 million names, a bound against a process that creates names
/// continuously.
const READS_MAX: u32 = 100_000;

/// A folder that is being emptied.
struct Level {
    folder: OwnedFd,
    /// Its name in the parent folder.
    name: CString,
    /// Names that were read and not removed yet.
    names: std::vec::IntoIter<CString>,
    /// Whether it has more names than were read.
    is_cut: bool,
    /// The number of removed names.
    removed: usize,
    reads: u32,
}

impl Level {
    fn read(folder: OwnedFd, name: CString, kept: Option<&[u8]>) -> Result<Self, Errno> {
        let mut level = Self { folder, name, names: Vec::new().into_iter(), is_cut: false, removed: 0, reads: 0 };
        level.read_on(kept)?;
        Ok(level)
    }

    fn read_on(&mut self, kept: Option<&[u8]>) -> Result<(), Errno> {
        let names = names_of(self.folder.as_fd(), kept)?;
        (self.is_cut, self.removed, self.reads) = (names.len() == NAMES_AT_ONCE, 0, self.reads + 1);
        self.names = names.into_iter();
        Ok(())
    }
}

/// The result for an entry.
enum Entry {
    Gone,
    /// It is a folder, which must be emptied first.
    Folder(OwnedFd),
}

/// Removes the content of one folder.
pub(super) struct Remover {
    top: OwnedFd,
    /// The file system, which is not left.
    device: u64,
    has_moved: bool,
    /// Cancelled to stop; the rest then remains.
    stop: CancellationToken,
    first_error: Option<io::Error>,
}

impl Remover {
    pub(super) fn new(folder: &OwnedFd) -> io::Result<Self> {
        let device = fstat(folder)?.st_dev;
        let stop = CancellationToken::new();
        Ok(Self { top: writable(folder)?, device, has_moved: false, stop, first_error: None })
    }

    /// Makes it stop between two entries after `stop` is cancelled.
    pub(super) fn until(self, stop: &CancellationToken) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Removes the content of the folder except `kept`.
    pub(super) fn empty(&mut self, kept: Option<&[u8]>) -> io::Result<()> {
        for _ in 0..PASSES_MAX {
            self.has_moved = false;
            self.pass(kept)?;
            if !self.has_moved || self.first_error.is_some() {
                break;
            }
        }
        self.first_error.take().map_or(Ok(()), Err)
    }

    /// Removes one entry of `parent` with its content.
    pub(super) fn all_of(&mut self, parent: &OwnedFd, name: &str) -> io::Result<()> {
        match open_folder(parent, name) {
            Ok(folder) if fstat(&folder)?.st_dev != self.device || is_mount(&folder) => return Err(Errno::BUSY.into()),
            Ok(folder) => {
                self.top = writable(&folder)?;
                self.empty(None)?;
                unlinkat(parent, name, AtFlags::REMOVEDIR)?;
            }
            Err(Errno::NOENT) => {}
            Err(_) => unlinkat(parent, name, AtFlags::empty())?,
        }
        Ok(())
    }

    /// Makes one pass over the top folder, without recursion: the open levels are a list.
    fn pass(&mut self, kept: Option<&[u8]>) -> Result<(), Errno> {
        let top = fcntl_dupfd_cloexec(&self.top, 0)?;
        let mut levels = vec![Level::read(top, CString::default(), kept)?];
        while let Some(depth) = levels.len().checked_sub(1) {
            if self.stop.is_cancelled() {
                return Err(Errno::INTR);
            }
            let level = &mut levels[depth];
            if let Some(name) = level.names.next() {
                match self.entry(level, &name, depth) {
                    Ok(Entry::Gone) => level.removed += 1,
                    Ok(Entry::Folder(folder)) => match Level::read(folder, name, None) {
                        Ok(below) => levels.push(below),
                        Err(error) => self.note(error),
                    },
                    Err(error) => self.note(error),
                }
                continue;
            }
            if level.is_cut && level.removed > 0 && level.reads < READS_MAX {
                level.read_on(kept.filter(|_| depth == 0))?;
                continue;
            }
            let Some(done) = levels.pop() else { break };
            let Some(parent) = levels.last_mut() else { break };
            match unlinkat(&parent.folder, &done.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => parent.removed += 1,
                // The error of its content was recorded before.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.first_error.is_some() => {}
                Err(error) => self.note(error),
            }
        }
        Ok(())
    }

    /// Removes an entry, or opens it if it is a folder, which must be emptied first.
    fn entry(&mut self, parent: &Level, name: &CString, depth: usize) -> Result<Entry, Errno> {
        let unlinked = match unlinkat(&parent.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Entry::Gone),
            // The error for a folder depends on the file system.
            Err(error) => error,
        };
        // Many folders are empty. A mount point is not removed: EBUSY.
        if matches!(unlinkat(&parent.folder, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT)) {
            return Ok(Entry::Gone);
        }
        let folder = match open_folder(&parent.folder, name) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Entry::Gone),
            Err(_) => return Err(unlinked),
        };
        if fstat(&folder)?.st_dev != self.device || is_mount(&folder) {
            // A mounted file system does not belong to the attempt.
            return Err(Errno::BUSY);
        }
        let inside = writable(&folder)?;
        if depth == DEPTH_MAX {
            renameat(&parent.folder, name, &self.top, format!(".deep-{:016x}", rand::random::<u64>()))?;
            self.has_moved = true;
            return Ok(Entry::Gone);
        }
        Ok(Entry::Folder(inside))
    }

    fn note(&mut self, error: Errno) {
        self.first_error.get_or_insert_with(|| error.into());
    }
}

/// Opens a folder for reading, and makes it writable if needed: a workload may have made it read-only.
fn writable(folder: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mode = fstat(folder)?.st_mode;
    if mode & 0o700 != 0o700 {
        // By the descriptor, because another entry may have the name now. An error shows in the next calls.
        let by_descriptor = format!("/proc/self/fd/{}", folder.as_raw_fd());
        std::fs::set_permissions(by_descriptor, std::fs::Permissions::from_mode(mode & 0o7777 | 0o700)).ok();
    }
    readable(folder)
}

/// Returns whether the folder is a mount point, also of the same file system. Kernels before 5.8 do not report it; then
/// the device decides.
fn is_mount(folder: &OwnedFd) -> bool {
    let seen = statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE);
    seen.is_ok_and(|seen| seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn names_of(folder: BorrowedFd<'_>, kept: Option<&[u8]>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") && Some(name.as_bytes()) != kept {
            names.push(name);
        }
        if names.len() == NAMES_AT_ONCE {
            break;
        }
    }
    Ok(names)
}
