//! Checks the work folder: its owner, and who could write into it or replace it.
//!
//! It is opened component by component, and each component is checked. So another user of the machine can neither
//! choose where this process writes nor read its files. A link is followed only if root or this user created it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Stat, fstat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::groups::is_private;
use super::walk::FOLDER;

/// The maximum length of the path of a work folder. Linux allows 4,096 bytes, and a checkpoint's file needs up to 3,072
/// below it.
const PATH_BYTES_MAX: usize = 512;
/// The maximum number of links in a path; it is the kernel's limit.
const LINKS_MAX: u32 = 40;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// The reason why a folder is not used as a work folder.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// Another user has created it, or could have.
    #[error("{} {why}", path.display())]
    Unsafe {
        /// The folder, the link, or one of its parent folders.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    System {
        /// The folder, or one of its parent folders.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl From<GroundError> for io::Error {
    fn from(error: GroundError) -> Self {
        match error {
            // With its number, which identifies a full disk.
            GroundError::System { source, .. } => source,
            GroundError::Unsafe { .. } => Self::new(io::ErrorKind::PermissionDenied, error.to_string()),
        }
    }
}

/// Opens a work folder, and creates it (0700) and its missing parent folders.
///
/// # Errors
/// [`GroundError::Unsafe`] if the folder or a link in the path belongs to another user, if other users can write to the
/// folder, or if they can replace it or one of its parents; else the system's error.
pub(super) fn open(work_dir: &Path) -> Result<OwnedFd, GroundError> {
    let who = Who::this_process();
    let (folder, meta, path) = go(work_dir, &who, Trust::Checked, true)?;
    match who.objection_to_folder(&meta) {
        None => Ok(folder),
        Some(why) => Err(GroundError::Unsafe { path, why }),
    }
}

/// Opens a work folder that this process has already checked, or that is in a trusted folder. The mode is not checked,
/// because some file systems report any mode. A link of another user is not followed.
///
/// # Errors
/// [`GroundError::Unsafe`] if it, or a link in the path, belongs to another user now; else the system's error.
pub(super) fn open_checked(work_dir: &Path) -> Result<OwnedFd, GroundError> {
    go_trusted(work_dir, false)
}

/// Works like [`open_checked`], and creates the folder (0700) if it is missing.
///
/// # Errors
/// As [`open_checked`].
pub(super) fn make_checked(work_dir: &Path) -> Result<OwnedFd, GroundError> {
    go_trusted(work_dir, true)
}

fn go_trusted(work_dir: &Path, makes: bool) -> Result<OwnedFd, GroundError> {
    let who = Who::this_process();
    let (folder, meta, path) = go(work_dir, &who, Trust::Given, makes)?;
    if who.trusts(meta.st_uid) {
        return Ok(folder);
    }
    Err(GroundError::Unsafe { path, why: format!("belongs to user {}", meta.st_uid) })
}

/// Whether the parent folders are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Checked,
    Given,
}

/// Opens a folder component by component. With `makes`, creates missing ones.
fn go(work_dir: &Path, who: &Who, trust: Trust, makes: bool) -> Result<(OwnedFd, Stat, PathBuf), GroundError> {
    let path = std::path::absolute(work_dir).map_err(|source| system(work_dir, source))?;
    if trust == Trust::Checked && path.as_os_str().len() > PATH_BYTES_MAX {
        let why = format!("has a path of more than {PATH_BYTES_MAX} bytes");
        return Err(GroundError::Unsafe { path, why });
    }
    let mut way = Way { folder: root()?, path: PathBuf::from("/"), rest: parts_of(&path), links: 0, makes };
    loop {
        let meta = fstat(&way.folder).map_err(|error| system(&way.path, error))?;
        let Some(name) = way.rest.pop() else { return Ok((way.folder, meta, way.path)) };
        if trust == Trust::Checked
            && let Some(why) = who.objection_to_parent(&meta)
        {
            return Err(GroundError::Unsafe { path: way.path, why });
        }
        way.step(name, who)?;
    }
}

fn root() -> Result<OwnedFd, GroundError> {
    openat(CWD, "/", FOLDER, Mode::empty()).map_err(|error| system(Path::new("/"), error))
}

fn system(path: &Path, source: impl Into<io::Error>) -> GroundError {
    GroundError::System { path: path.to_owned(), source: source.into() }
}

/// Returns the components below the root, in reverse order.
fn parts_of(path: &Path) -> Vec<OsString> {
    let part = |component: Component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().rev().filter_map(part).collect()
}

/// The opened part of a path.
struct Way {
    folder: OwnedFd,
    /// The path of `folder`, for messages.
    path: PathBuf,
    /// The components that are not opened yet, in reverse order.
    rest: Vec<OsString>,
    links: u32,
    /// Whether missing folders are created.
    makes: bool,
}

impl Way {
    fn step(&mut self, name: OsString, who: &Who) -> Result<(), GroundError> {
        let path =
            if name == ".." { self.path.parent().unwrap_or(Path::new("/")).into() } else { self.path.join(&name) };
        let meta = match statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.makes => {
                // If two processes create it at the same time, both can open it.
                match mkdirat(&self.folder, &name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(system(&path, error)),
                }
                statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW)
            }
            found => found,
        };
        let meta = meta.map_err(|error| system(&path, error))?;
        if FileType::from_raw_mode(meta.st_mode) != FileType::Symlink {
            self.folder = openat(&self.folder, &name, FOLDER, Mode::empty()).map_err(|error| system(&path, error))?;
            self.path = path;
            return Ok(());
        }
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(system(&path, Errno::LOOP));
        }
        if !who.trusts(meta.st_uid) {
            let why = format!("is a link that user {} created", meta.st_uid);
            return Err(GroundError::Unsafe { path, why });
        }
        let target = readlinkat(&self.folder, &name, Vec::new()).map_err(|error| system(&path, error))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            (self.folder, self.path) = (root()?, PathBuf::from("/"));
        }
        self.rest.extend(parts_of(&target));
        Ok(())
    }
}

/// The users that this process trusts with its files.
#[derive(Debug)]
struct Who {
    uid: u32,
    /// In a user namespace without root: the id that stands for root and for all unknown users.
    unknown: Option<u32>,
}

impl Who {
    fn this_process() -> Self {
        // A process cannot change the mapping of its namespace once there is one. Source: user_namespaces(7).
        static UNKNOWN: OnceLock<Option<u32>> = OnceLock::new();
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let unknown = || {
            let overflow = || read("/proc/sys/kernel/overflowuid").trim().parse().ok();
            (!maps_root(&read("/proc/self/uid_map"))).then(overflow).flatten()
        };
        Self { uid: rustix::process::geteuid().as_raw(), unknown: *UNKNOWN.get_or_init(unknown) }
    }

    fn trusts(&self, uid: u32) -> bool {
        uid == 0 || uid == self.uid || Some(uid) == self.unknown
    }

    /// Returns why a folder cannot be a parent of the work folder, if so.
    fn objection_to_parent(&self, meta: &Stat) -> Option<String> {
        // Only root is protected from folders of other users or of groups, which are common for projects. Any other
        // user has a folder of their own there, or gets an error.
        if self.uid == 0 && !self.trusts(meta.st_uid) {
            return Some(format!("belongs to user {}, who can replace its content", meta.st_uid));
        }
        // In a sticky folder, only the owner of an entry can replace it.
        let is_groups = self.uid == 0 && meta.st_mode & GROUP_WRITES != 0 && meta.st_gid != 0;
        let is_open = meta.st_mode & STICKY == 0 && (meta.st_mode & OTHERS_WRITE != 0 || is_groups);
        is_open.then(|| "is writable by other users, who can replace its content".to_owned())
    }

    /// Returns why a folder cannot be the work folder, if so.
    fn objection_to_folder(&self, meta: &Stat) -> Option<String> {
        if meta.st_uid != self.uid {
            return Some(format!("belongs to user {}, but this process runs as user {}", meta.st_uid, self.uid));
        }
        let is_groups = meta.st_mode & GROUP_WRITES != 0 && !is_private(meta.st_gid, self.uid);
        (is_groups || meta.st_mode & OTHERS_WRITE != 0).then(|| "is writable by other users".to_owned())
    }
}

/// Returns whether the machine's root has an id in this namespace. A line is: first id inside, first id outside, count.
fn maps_root(uid_map: &str) -> bool {
    uid_map.is_empty() || uid_map.lines().any(|line| line.split_whitespace().nth(1) == Some("0"))
}

/// Returns why the program that a mission's folder contains is not trusted, if so: everyone who can write to the folder
/// can choose it. `path` itself is checked, of any type. A missing one is accepted.
///
/// # Errors
/// The system's error.
pub fn objection_to_mission(path: &Path, trusted_uid: Option<u32>) -> io::Result<Option<String>> {
    let meta = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(meta) => meta,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let who = Who::this_process();
    if !who.trusts(meta.st_uid) && Some(meta.st_uid) != trusted_uid {
        return Ok(Some(format!("belongs to user {}, but this process runs as user {}", meta.st_uid, who.uid)));
    }
    // The mode of a link has no meaning.
    let is_link = FileType::from_raw_mode(meta.st_mode) == FileType::Symlink;
    let is_private = |uid: u32| is_private(meta.st_gid, uid);
    let is_groups = !is_link && meta.st_mode & GROUP_WRITES != 0 && meta.st_gid != 0;
    let is_groups = is_groups && !is_private(who.uid) && !trusted_uid.is_some_and(is_private);
    let is_open = is_groups || !is_link && meta.st_mode & OTHERS_WRITE != 0;
    Ok(is_open.then(|| "is writable by other users".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refused(path: &Path) -> String {
        match open(path) {
            Err(GroundError::Unsafe { why, .. }) => why,
            other => panic!("{}: {other:?}", path.display()),
        }
    }

    #[test]
    fn a_new_folder_is_closed_to_others_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("a/b/work");
        open(&work).unwrap();
        open(&work).unwrap();
        for folder in [work.as_path(), work.parent().unwrap()] {
            assert_eq!(folder.metadata().unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_folder_that_others_may_write_to_or_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("parent/work");
        std::fs::create_dir_all(&work).unwrap();
        for (parent, own, is_good) in [
            (0o755, 0o755, true),
            (0o755, 0o777, false),
            (0o755, 0o1777, false),
            (0o777, 0o700, false),
            (0o1777, 0o700, true),
        ] {
            chmod(&work, own);
            chmod(work.parent().unwrap(), parent);
            assert_eq!(open(&work).is_ok(), is_good, "{parent:o} {own:o}");
        }
    }

    #[test]
    fn links_are_followed_if_they_are_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        symlink("disk", dir.path().join("relative")).unwrap();
        symlink(dir.path().join("relative"), dir.path().join("absolute")).unwrap();
        symlink("round", dir.path().join("round")).unwrap();
        open(&dir.path().join("absolute/work")).unwrap();
        assert!(dir.path().join("disk/work").is_dir());
        assert!(matches!(open(&dir.path().join("round/work")), Err(GroundError::System { .. })));
    }

    /// Another user comes first: with a folder, and with a link to one of this user's.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn what_another_user_made_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can make what is another user's");
        }
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o1777);
        let (theirs, link, secret) = (dir.path().join("theirs"), dir.path().join("link"), dir.path().join("secret"));
        std::fs::create_dir(&theirs).unwrap();
        std::fs::create_dir(&secret).unwrap();
        symlink(&secret, &link).unwrap();
        for path in [&theirs, &link] {
            std::os::unix::fs::lchown(path, Some(65_534), Some(65_534)).unwrap();
        }
        assert!(refused(&theirs).contains("65534"));
        assert!(refused(&theirs.join("below")).contains("65534"));
        assert!(refused(&link).contains("link"));
        assert!(refused(&link.join("below")).contains("link"));
        assert_eq!(std::fs::read_dir(&secret).unwrap().count() + std::fs::read_dir(&theirs).unwrap().count(), 0);
        std::fs::create_dir(dir.path().join("group")).unwrap();
        std::os::unix::fs::chown(dir.path().join("group"), Some(0), Some(65_534)).unwrap();
        chmod(&dir.path().join("group"), 0o770);
        assert!(refused(&dir.path().join("group")).contains("writable"));
        assert!(refused(&dir.path().join("group/work")).contains("writable"));
    }

    #[test]
    fn a_container_that_knows_no_root_trusts_what_stands_for_it() {
        assert!(maps_root("         0          0 4294967295\n") && !maps_root("1000 1000 1\n"));
        // As in a container that knows no user but this one: the system's folders are of an unknown user.
        let who = Who { uid: 1000, unknown: Some(65_534) };
        assert!(who.trusts(65_534) && !who.trusts(1001));
    }

    /// In a mission's folder that is another user's, and trusted, this process's work folder is still no link of that
    /// user's.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn a_trusted_folder_does_not_lead_elsewhere_by_a_link_of_its_owners() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can make what is another user's");
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("precious/work")).unwrap();
        std::fs::create_dir(at("own")).unwrap();
        symlink(at("precious/work"), at("own/work")).unwrap();
        symlink(at("precious"), at("above")).unwrap();
        open_checked(&at("own/work")).unwrap();
        open_checked(&at("above/work")).unwrap();
        make_checked(&at("own/new/work")).unwrap();
        assert!(open_checked(&at("own/none")).is_err() && !at("own/none").exists());
        for link in ["own/work", "above"] {
            std::os::unix::fs::lchown(at(link), Some(65_534), Some(65_534)).unwrap();
        }
        for path in ["own/work", "above/work", "above/new"] {
            let refused = [make_checked(&at(path)), open_checked(&at(path))];
            assert!(
                refused.iter().all(|opened| matches!(opened, Err(GroundError::Unsafe { .. }))),
                "{path}: {refused:?}"
            );
        }
        assert!(!at("precious/new").exists());
    }

    #[test]
    fn a_path_that_leaves_no_room_for_a_checkpoints_is_refused() {
        assert!(refused(Path::new(&format!("/tmp/{}", "n/".repeat(300)))).contains("512"));
    }
}
