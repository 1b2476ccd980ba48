//! An attempt's folder: created with a marker that proves its origin, and removed only with that proof.
//!
//! The marker is a file with the deployment, the task, the attempt, the folder's name, and the folder's inode. A copied
//! folder has another inode, a renamed one has another name, and neither is removed. The process that uses the folder
//! holds a lock on the marker, so a folder is abandoned exactly if its marker can be locked.
//!
//! [`Proven::remove`] is the only function that removes a folder. It follows no link, and enters no other mount.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lighthpc_runtime::boot_id;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::ground;
use super::remover::{Remover, open_folder};
use crate::domain::ids::{AttemptNumber, SrcId};
use crate::domain::keys::digest_hex;

/// The name of the marker in an attempt's folder.
pub(super) const MARKER_NAME: &str = ".lighthpc-attempt.json";
/// The first field of every marker.
const MARKER_KIND: &str = "attempt folder";
/// The maximum size of a marker: a task's name of up to 1,024 bytes, which JSON may write as six each, and a few short
/// fields.
const MARKER_BYTES_MAX: u64 = 16 * 1024;
/// The maximum number of names that are tried. The probability that two folders get the same name is 1 in 2^32.
const NAMES_MAX: u32 = 8;

/// The content of a marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    lighthpc: String,
    /// The deployment: the name of its tasks table.
    pub(super) deployment: String,
    /// The task.
    pub(super) task: String,
    /// The attempt.
    pub(super) attempt: u64,
    /// The folder's name.
    pub(super) folder: String,
    /// The folder's inode.
    inode: u64,
    /// The boot in which the folder was created; empty in markers of earlier versions, and if the kernel does not
    /// report it.
    #[serde(default)]
    boot: String,
}

impl Marker {
    /// Returns whether the machine is certainly in the same boot as when the folder was created.
    pub(super) fn is_of_this_boot(&self) -> bool {
        !self.boot.is_empty() && self.boot == boot_id()
    }
}

/// A folder that this process created. Other processes see it as in use until the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    /// The work folder.
    parent: Arc<OwnedFd>,
    path: PathBuf,
    marker: Marker,
    _lock: Arc<File>,
}

impl Folder {
    /// Creates a folder with a unique name, and its marker.
    pub(super) fn create(work_dir: &Path, deployment: &str, src: &SrcId, attempt: AttemptNumber) -> io::Result<Self> {
        let parent = ground::make_checked(work_dir)?;
        let digest = digest_hex(&[deployment, src.as_str()], 16);
        let mut tries = 0;
        let (name, path) = loop {
            let name = format!("{digest}-{attempt}-{:08x}", rand::random::<u32>());
            let path = work_dir.join(&name);
            // Accessible to this user only, whatever the umask, because inputs and results are private.
            match mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) => break (name, path),
                Err(Errno::EXIST) if tries < NAMES_MAX => tries += 1,
                Err(error) => return Err(error.into()),
            }
        };
        let marked = mark(&parent, name.clone(), deployment, src, attempt);
        let (marker, lock) = marked.inspect_err(|_| {
            // This call created both. Without a complete marker, no other function could remove them.
            if let Ok(folder) = open_folder(&parent, &name) {
                unlinkat(folder, MARKER_NAME, AtFlags::empty()).ok();
            }
            unlinkat(&parent, &name, AtFlags::REMOVEDIR).ok();
        })?;
        Ok(Self { parent: Arc::new(parent), path, marker, _lock: Arc::new(lock) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder's name: letters, digits, and hyphens.
    pub(super) fn name(&self) -> &str {
        &self.marker.folder
    }

    /// Removes the folder. May be repeated.
    ///
    /// # Errors
    /// The system's error; `PermissionDenied` if it is not this attempt's folder.
    pub(super) fn remove(&self, stop: &CancellationToken) -> io::Result<()> {
        match self.prove() {
            Ok(Some(proven)) => proven.remove(stop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the entry `part` of the folder, if it exists.
    ///
    /// # Errors
    /// As [`Folder::remove`].
    pub(super) fn remove_part(&self, part: &str) -> io::Result<()> {
        match self.prove()? {
            Some(proven) => proven.remove_part(part),
            None => Ok(()),
        }
    }

    fn prove(&self) -> io::Result<Option<Proven>> {
        let proven = match prove_in(self.parent.try_clone()?, OsStr::new(self.name())) {
            Ok(proven) => proven,
            Err(Refusal::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(refusal) => return Err(refused(&self.path, &refusal.to_string())),
        };
        // This process holds the lock, and the random part of the name makes the marker unique.
        if proven.marker == self.marker { Ok(Some(proven)) } else { Err(refused(&self.path, OTHER_MARKER)) }
    }
}

const OTHER_MARKER: &str = "its marker belongs to another attempt";

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{} was not removed: {why}", path.display()))
}

fn mark(
    parent: &OwnedFd,
    folder: String,
    deployment: &str,
    src: &SrcId,
    attempt: AttemptNumber,
) -> io::Result<(Marker, File)> {
    let handle = open_folder(parent, &folder)?;
    let inode = fstat(&handle)?.st_ino;
    let marker = Marker {
        lighthpc: MARKER_KIND.to_owned(),
        deployment: deployment.to_owned(),
        task: src.as_str().to_owned(),
        attempt: attempt.0,
        folder,
        inode,
        boot: boot_id(),
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&handle, MARKER_NAME, flags, Mode::RUSR | Mode::WUSR)?);
    // Locked before it has content: a process that reads it now finds an invalid marker, and releases it at once.
    // On a file system without locks, other processes cannot lock it either.
    if let Err(error) = file.lock() {
        tracing::warn!(
            "{} cannot be locked, so other processes cannot detect when it is abandoned: {error}",
            marker.folder
        );
    }
    file.write_all(&serde_json::to_vec(&marker)?)?;
    Ok((marker, file))
}

/// The reason why a folder is not certainly ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It has no marker.
    #[error("it has no lighthpc marker")]
    NoMarker,
    /// lighthpc did not write the marker for this folder.
    #[error("{0}")]
    Foreign(&'static str),
    /// The system refused.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// A folder with a marker that proves that lighthpc created it.
#[derive(Debug)]
pub(super) struct Proven {
    parent: OwnedFd,
    name: OsString,
    folder: OwnedFd,
    file: File,
    pub(super) marker: Marker,
}

/// Reads the marker of a direct subfolder of `work_dir`.
pub(super) fn prove(work_dir: &Path, name: &OsStr) -> Result<Proven, Refusal> {
    prove_in(ground::open_checked(work_dir).map_err(io::Error::from)?, name)
}

fn prove_in(parent: OwnedFd, name: &OsStr) -> Result<Proven, Refusal> {
    let folder = open_folder(&parent, name)?;
    // Does not wait for a FIFO, and does not follow a link. Opened for writing, because NFS needs that for a lock
    // (flock(2)).
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&folder, MARKER_NAME, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Err(Refusal::NoMarker),
        Err(Errno::LOOP) => return Err(Refusal::Foreign("its marker is a link")),
        Err(error) => return Err(error.into()),
    };
    let (of_folder, of_file) = (fstat(&folder)?, fstat(&file)?);
    if FileType::from_raw_mode(of_file.st_mode) != FileType::RegularFile {
        return Err(Refusal::Foreign("its marker is not a file"));
    }
    let user = rustix::process::geteuid().as_raw();
    if of_folder.st_uid != user || of_file.st_uid != user {
        return Err(Refusal::Foreign("it belongs to another user"));
    }
    let mut text = Vec::new();
    (&file).take(MARKER_BYTES_MAX).read_to_end(&mut text)?;
    let marker: Marker = serde_json::from_slice(&text).map_err(|_| Refusal::Foreign("its marker is invalid"))?;
    if marker.lighthpc != MARKER_KIND {
        return Err(Refusal::Foreign("its marker is of another kind"));
    }
    if marker.folder.as_bytes() != name.as_bytes() {
        return Err(Refusal::Foreign("its marker has the name of another folder: it was copied or renamed"));
    }
    Ok(Proven { parent, name: name.to_owned(), folder, file, marker })
}

impl Proven {
    /// Returns the folder if its process is dead; `None` if the process is alive.
    ///
    /// # Errors
    /// [`Refusal`], also for a copy, whose inode differs from the marker's.
    pub(super) fn abandoned(self) -> Result<Option<Self>, Refusal> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{} was not removed, because it may be in use: {error}", self.name.display());
                return Err(error.into());
            }
        }
        if fstat(&self.folder)?.st_ino != self.marker.inode {
            return Err(Refusal::Foreign("it is a copy of the folder in its marker"));
        }
        Ok(Some(self))
    }

    /// Removes the folder with its content, and the marker last, so that the next process that finds the marker can
    /// retry.
    ///
    /// # Errors
    /// The first error of the system; everything else was removed. `Interrupted` if it was stopped.
    pub(super) fn remove(self, stop: &CancellationToken) -> io::Result<()> {
        self.empty(stop)?;
        match unlinkat(&self.folder, MARKER_NAME, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                self.mark_again();
                Err(error.into())
            }
        }
    }

    /// Removes the content of the folder, except the marker.
    ///
    /// # Errors
    /// As [`Proven::remove`].
    pub(super) fn empty(&self, stop: &CancellationToken) -> io::Result<()> {
        Remover::new(&self.folder)?.until(stop).empty(Some(MARKER_NAME.as_bytes()))
    }

    /// Writes the marker again, because a process that was not found added files meanwhile.
    fn mark_again(&self) {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let text = serde_json::to_vec(&self.marker).unwrap_or_default();
        let file = openat(&self.folder, MARKER_NAME, flags, Mode::RUSR | Mode::WUSR).map(File::from);
        if let Err(error) = file.map_err(io::Error::from).and_then(|mut file| file.write_all(&text)) {
            tracing::warn!("the folder {} remains without its marker: {error}", self.name.display());
        }
    }

    fn remove_part(&self, part: &str) -> io::Result<()> {
        let mut parent = self.folder.try_clone()?;
        let mut names = part.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Remover::new(&self.folder)?.all_of(&parent, name);
            }
            parent = match open_folder(&parent, name) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::remover::{DEPTH_MAX, NAMES_AT_ONCE};
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn create(work_dir: &Path) -> Folder {
        Folder::create(work_dir, "table", &SrcId::new("in/a b").unwrap(), AttemptNumber(3)).unwrap()
    }

    /// NFS refuses a lock on a file that is open for reading only.
    #[test]
    fn a_marker_is_opened_so_that_any_file_system_locks_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = create(dir.path());
        let proven = prove(dir.path(), OsStr::new(folder.name())).unwrap();
        assert!(rustix::fs::fcntl_getfl(&proven.file).unwrap().contains(OFlags::RDWR));
    }

    #[test]
    fn no_two_folders_of_one_attempt_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (create(dir.path()), create(dir.path()));
        assert_ne!(one.path(), other.path());
        one.remove(&CancellationToken::new()).unwrap();
        assert!(other.path().exists());
        assert!(
            other.name().len() < 64 && other.name().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }

    #[test]
    fn a_folder_without_its_own_marker_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = create(dir.path());
        let (marker, kept) = (folder.path().join(MARKER_NAME), folder.path().join("precious"));
        std::fs::write(&kept, "x").unwrap();
        let text = std::fs::read_to_string(&marker).unwrap();

        let refuses = |what: &str| {
            let error = folder.remove(&CancellationToken::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}");
            assert!(folder.remove_part("precious").is_err(), "{what}");
            assert!(kept.exists(), "{what}");
            std::fs::remove_file(&marker).ok();
        };
        std::fs::remove_file(&marker).unwrap();
        refuses("no marker");
        std::fs::write(&marker, "").unwrap();
        refuses("an empty marker");
        std::fs::write(&marker, text.replace("in/a b", "in/c")).unwrap();
        refuses("another task's marker");
        std::fs::write(dir.path().join("elsewhere"), &text).unwrap();
        symlink(dir.path().join("elsewhere"), &marker).unwrap();
        refuses("a link for a marker");
        rustix::fs::mkfifoat(rustix::fs::CWD, &marker, Mode::RUSR).unwrap();
        refuses("a FIFO for a marker");

        std::fs::write(&marker, text).unwrap();
        folder.remove(&CancellationToken::new()).unwrap();
        folder.remove(&CancellationToken::new()).unwrap();
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = create(dir.path());
        let moved = dir.path().join("moved");
        std::fs::rename(folder.path(), &moved).unwrap();
        symlink(&moved, folder.path()).unwrap();
        assert!(folder.remove(&CancellationToken::new()).is_err());
        assert!(moved.join(MARKER_NAME).exists());
    }

    #[test]
    fn nothing_outside_is_touched_and_read_only_folders_go_too() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        std::fs::write(precious.join("file"), "x").unwrap();
        std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o555)).unwrap();

        let folder = create(&dir.path().join("work"));
        let deep = folder.path().join("a/b/c");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "x").unwrap();
        symlink(&precious, deep.join("link")).unwrap();
        symlink(precious.join("file"), folder.path().join("link")).unwrap();
        for (path, mode) in [("a/b/c", 0o000), ("a/b", 0o555), ("a", 0o111)] {
            std::fs::set_permissions(folder.path().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        folder.remove(&CancellationToken::new()).unwrap();

        assert!(!folder.path().exists());
        assert!(precious.join("file").exists());
        assert_eq!(precious.metadata().unwrap().permissions().mode() & 0o777, 0o555);
    }

    /// The test above again, as a user to whom modes mean something.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn an_ordinary_user_removes_read_only_folders_too() {
        if !rustix::process::geteuid().is_root() {
            return; // Then the test above has shown it.
        }
        let (program, test) = (
            std::env::current_exe().unwrap(),
            "workload::folder::tests::nothing_outside_is_touched_and_read_only_folders_go_too",
        );
        let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let output = std::process::Command::new("setpriv").args(user).arg(&program).args([test, "--exact"]).output();
        let Ok(output) = output else { return eprintln!("skipped: there is no setpriv here") };
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() && !said.contains("running 1 test") {
            return eprintln!("skipped: another user cannot run the tests here");
        }
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn what_is_mounted_below_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, folder) = (dir.path().join("outside"), create(&dir.path().join("work")));
        let inside = folder.path().join("workload/scratch/mounted");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::write(folder.path().join("workload/scratch/other"), "x").unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            std::process::Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
        };
        // Of the same file system: the device's number does not tell.
        if !run("mount", &[Path::new("--bind"), &outside, &inside]) {
            return eprintln!("skipped: nothing can be mounted here");
        }
        let removed = folder.remove(&CancellationToken::new());
        let is_there = outside.join("precious").exists();
        assert!(run("umount", &[&inside]));
        assert!(removed.is_err() && is_there);
        assert!(!folder.path().join("workload/scratch/other").exists(), "what can be removed is gone");
        assert!(folder.path().join(MARKER_NAME).exists(), "the next process knows the folder");
        folder.remove(&CancellationToken::new()).unwrap();
        assert!(outside.join("precious").exists() && !folder.path().exists());
    }

    #[test]
    fn however_deep_and_however_many() {
        let dir = tempfile::tempdir().unwrap();
        let folder = create(dir.path());
        let mut at = openat(rustix::fs::CWD, folder.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH_MAX * 5 {
            rustix::fs::mkdirat(&at, "a-level-of-a-tree-that-is-too-deep-for-a-path", Mode::RWXU).unwrap();
            at = open_folder(&at, "a-level-of-a-tree-that-is-too-deep-for-a-path").unwrap();
        }
        let many = folder.path().join("many");
        std::fs::create_dir(&many).unwrap();
        for n in 0..=(NAMES_AT_ONCE * 2) {
            std::fs::write(many.join(n.to_string()), "").unwrap();
        }
        folder.remove_part("many").unwrap();
        assert!(!many.exists() && folder.path().exists());
        folder.remove(&CancellationToken::new()).unwrap();
        assert!(!folder.path().exists());
    }
}
