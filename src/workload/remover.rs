//! Removing what is below a folder: by descriptors, so that no link is followed, whoever changes the names meanwhile.
//!
//! Whether the folder may be removed at all is for `folder.rs` to prove.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, StatxAttributes, StatxFlags, fstat, openat, renameat, statx, unlinkat};
use rustix::io::Errno;

/// Opens a folder by its name, whatever its mode, unless it is a link.
pub(super) fn open_folder(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// How many names of a folder are read at a time: an attempt may leave millions of files.
pub(super) const NAMES_AT_ONCE: usize = 4096;
/// The levels that are open at once. What lies deeper is moved up to the top first, so that neither the open files nor
/// the stack have to grow with it.
pub(super) const DEPTH_MAX: u32 = 64;
/// How often the top is gone through: as many levels as a disk could hold, and an end all the same.
const PASSES_MAX: u32 = 100_000;

/// Removes what is below one folder.
pub(super) struct Remover {
    top: OwnedFd,
    /// The file system, which is not left.
    device: u64,
    has_moved: bool,
    first_error: Option<io::Error>,
}

impl Remover {
    pub(super) fn new(folder: &OwnedFd) -> io::Result<Self> {
        let device = fstat(folder)?.st_dev;
        Ok(Self { top: readable(folder)?, device, has_moved: false, first_error: None })
    }

    /// Removes everything in the folder but `kept`.
    pub(super) fn empty(&mut self, kept: Option<&[u8]>) -> io::Result<()> {
        for _ in 0..PASSES_MAX {
            self.has_moved = false;
            let top = self.top.try_clone()?;
            self.pass(top.as_fd(), 0, kept);
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
                self.top = readable(&folder)?;
                self.empty(None)?;
                unlinkat(parent, name, AtFlags::REMOVEDIR)?;
            }
            Err(Errno::NOENT) => {}
            Err(_) => unlinkat(parent, name, AtFlags::empty())?,
        }
        Ok(())
    }

    fn pass(&mut self, folder: BorrowedFd<'_>, depth: u32, kept: Option<&[u8]>) {
        loop {
            let names = match names_of(folder, kept) {
                Ok(names) => names,
                Err(error) => return self.note(error),
            };
            let removed = names.iter().filter(|name| self.entry(folder, name, depth)).count();
            if removed == 0 || names.len() < NAMES_AT_ONCE {
                return;
            }
        }
    }

    /// Returns whether the entry is gone.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CString, depth: u32) -> bool {
        let unlinked = match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return true,
            // What says of a folder that it is one depends on the file system.
            Err(error) => error,
        };
        let removed = match open_folder(parent, name) {
            Ok(folder) => self.folder(parent, name, &folder, depth),
            Err(Errno::NOENT) => Ok(()),
            Err(_) => Err(unlinked),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => true,
            Err(error) => {
                self.note(error);
                false
            }
        }
    }

    fn folder(&mut self, parent: BorrowedFd<'_>, name: &CString, folder: &OwnedFd, depth: u32) -> Result<(), Errno> {
        if fstat(folder)?.st_dev != self.device || is_mount(folder) {
            // What is mounted here is not the attempt's.
            return Err(Errno::BUSY);
        }
        let inside = readable(folder)?;
        if depth == DEPTH_MAX {
            renameat(parent, name, &self.top, format!(".deep-{:016x}", rand::random::<u64>()))?;
            self.has_moved = true;
            return Ok(());
        }
        self.pass(inside.as_fd(), depth + 1, None);
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // What is in it has said why it stays.
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.first_error.is_some() => Ok(()),
            done => done,
        }
    }

    fn note(&mut self, error: Errno) {
        self.first_error.get_or_insert_with(|| error.into());
    }
}

/// Opens a folder for reading, and makes it writable if it is not: a workload may have made it read-only.
fn readable(folder: &OwnedFd) -> Result<OwnedFd, Errno> {
    let mode = fstat(folder)?.st_mode;
    if mode & 0o700 != 0o700 {
        // By the descriptor: whatever has that name by now is not touched. A refusal shows in what follows.
        let by_descriptor = format!("/proc/self/fd/{}", folder.as_raw_fd());
        std::fs::set_permissions(by_descriptor, std::fs::Permissions::from_mode(mode & 0o7777 | 0o700)).ok();
    }
    openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
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
