//! Removing what is below a folder: by descriptors, so that no link is followed, whoever changes the names meanwhile.
//!
//! Whether the folder may be removed at all is for `folder.rs` to prove.

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

/// How many names of a folder are read at a time: an attempt may leave millions of files.
pub(super) const NAMES_AT_ONCE: usize = 4096;
/// The levels that are open at once. What lies deeper is moved up to the top first, so that neither the open files nor
/// the stack have to grow with it.
pub(super) const DEPTH_MAX: usize = 64;
/// How often the top is gone through: as many levels as a disk could hold, and an end all the same.
const PASSES_MAX: u32 = 100_000;
/// How often the names of one folder are read: 400 million names, and an end if somebody makes new ones all the time.
const READS_MAX: u32 = 100_000;

/// A folder that is being emptied.
struct Level {
    folder: OwnedFd,
    /// Its name in the folder above.
    name: CString,
    /// Names that were read and are still to be removed.
    names: std::vec::IntoIter<CString>,
    /// Whether it has more names than were read.
    is_cut: bool,
    /// How many of the names are gone.
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

/// What became of an entry.
enum Entry {
    Gone,
    /// It is a folder, and has to be emptied first.
    Folder(OwnedFd),
}

/// Removes what is below one folder.
pub(super) struct Remover {
    top: OwnedFd,
    /// The file system, which is not left.
    device: u64,
    has_moved: bool,
    /// Cancelled when it is to stop, with what is left left.
    stop: CancellationToken,
    first_error: Option<io::Error>,
}

impl Remover {
    pub(super) fn new(folder: &OwnedFd) -> io::Result<Self> {
        let device = fstat(folder)?.st_dev;
        let stop = CancellationToken::new();
        Ok(Self { top: writable(folder)?, device, has_moved: false, stop, first_error: None })
    }

    /// Makes it stop between two entries once `stop` is cancelled.
    pub(super) fn until(self, stop: &CancellationToken) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Removes everything in the folder but `kept`.
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

    /// Removes one entry of `parent` with everything in it.
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

    /// Goes through the top once, without recursion: the levels that are open are a list.
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
                // What is in it has said why it stays.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.first_error.is_some() => {}
                Err(error) => self.note(error),
            }
        }
        Ok(())
    }

    /// Removes an entry, or opens it for its own entries to be removed first.
    fn entry(&mut self, parent: &Level, name: &CString, depth: usize) -> Result<Entry, Errno> {
        let unlinked = match unlinkat(&parent.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Entry::Gone),
            // What says of a folder that it is one depends on the file system.
            Err(error) => error,
        };
        let folder = match open_folder(&parent.folder, name) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Entry::Gone),
            Err(_) => return Err(unlinked),
        };
        if fstat(&folder)?.st_dev != self.device || is_mount(&folder) {
            // What is mounted here is not the attempt's.
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

/// Opens a folder for reading, and makes it writable if it is not: a workload may have made it read-only.
fn writable(folder: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mode = fstat(folder)?.st_mode;
    if mode & 0o700 != 0o700 {
        // By the descriptor: whatever has that name by now is not touched. A refusal shows in what follows.
        let by_descriptor = format!("/proc/self/fd/{}", folder.as_raw_fd());
        std::fs::set_permissions(by_descriptor, std::fs::Permissions::from_mode(mode & 0o7777 | 0o700)).ok();
    }
    readable(folder)
}

/// Returns whether something is mounted here, also if it is of the same file system. A kernel before 5.8 does not say;
/// then the device has to.
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
