//! The environment of a workload: its variables, and the files that they name.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use super::peak::PeakMemory;
use super::{log, walk};
use crate::domain::ids::{AttemptNumber, MissionId, SrcId};
use crate::domain::keys::file_name;
use crate::domain::work::{Work, param_variable};

/// The folder and the environment variables of one attempt.
///
/// ```text
/// <work dir>/<16 digits of the SHA-256 of deployment and task>-<attempt>-<8 random digits>/
///   .lighthpc-attempt.json      the marker, which proves that the folder is lighthpc's
///   log.<segment>   notes       the node's
///   workload/                   the workload's; in a sandbox its user owns it, and sees nothing else of the work dir
///     input/<file name>   output   progress   checkpoint/   scratch/   tmp/ (in a sandbox)
/// ```
#[derive(Clone, Debug)]
pub struct WorkloadEnv {
    /// The task.
    pub src: SrcId,
    /// The mission, if the task has one.
    pub mission: Option<MissionId>,
    /// The attempt.
    pub attempt: AttemptNumber,
    /// Whether `checkpoint/` was restored from an earlier attempt.
    pub resumed: bool,
    /// The task's number and parameters.
    pub work: Work,
    /// The keys of the task's inputs.
    pub keys: Vec<String>,
    /// The most memory that the workload was seen to use.
    pub(super) peak: PeakMemory,
    folder: Folder,
}

impl WorkloadEnv {
    /// Creates the attempt's folder. Its name is unique for the deployment (the name of its tasks table), task, attempt
    /// and process. A lock shows other processes that it is in use, until the last clone is dropped.
    ///
    /// # Errors
    /// The system's error; then nothing remains on the disk.
    pub fn prepare(
        work_dir: &Path,
        deployment: &str,
        src: SrcId,
        mission: Option<MissionId>,
        attempt: AttemptNumber,
    ) -> io::Result<Self> {
        let folder = Folder::create(&std::path::absolute(work_dir)?, deployment, &src, attempt)?;
        let env = Self {
            keys: vec![src.as_str().to_owned()],
            src,
            mission,
            attempt,
            resumed: false,
            work: Work::default(),
            peak: PeakMemory::default(),
            folder,
        };
        let fill = || {
            for part in ["input", "checkpoint", "scratch"] {
                std::fs::create_dir_all(env.workspace().join(part))?;
            }
            std::fs::write(env.progress(), "")
        };
        match fill() {
            Ok(()) => Ok(env),
            Err(error) => {
                env.remove().ok();
                Err(error)
            }
        }
    }

    /// Removes the attempt's folder with its content, including read-only folders. May be repeated.
    ///
    /// # Errors
    /// The system's error; `PermissionDenied` if the folder does not have this attempt's marker.
    pub fn remove(&self) -> io::Result<()> {
        self.remove_unless(&CancellationToken::new())
    }

    /// Works like [`WorkloadEnv::remove`], until `stop` is cancelled. The rest then still has its marker.
    ///
    /// # Errors
    /// As [`WorkloadEnv::remove`]; `Interrupted` if it was stopped.
    pub fn remove_unless(&self, stop: &CancellationToken) -> io::Result<()> {
        self.folder.remove(stop)
    }

    /// Empties the checkpoint folder.
    ///
    /// # Errors
    /// As [`WorkloadEnv::remove`].
    pub fn empty_checkpoint(&self) -> io::Result<()> {
        self.folder.remove_part("workload/checkpoint")?;
        std::fs::create_dir(self.checkpoint())
    }

    /// Returns the attempt's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the workload's part of the attempt's folder.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.folder().join("workload")
    }

    /// Returns the folder of the downloaded inputs.
    #[must_use]
    pub fn input_dir(&self) -> PathBuf {
        self.workspace().join("input")
    }

    /// Returns the path of a downloaded input. It is inside the attempt's folder, whatever the key is.
    #[must_use]
    pub fn input_of(&self, key: &str) -> PathBuf {
        self.input_dir().join(file_name(key))
    }

    /// Returns the path of the downloaded input, if the task has exactly one.
    #[must_use]
    pub fn input(&self) -> Option<PathBuf> {
        match self.keys.as_slice() {
            [key] => Some(self.input_of(key)),
            _ => None,
        }
    }

    /// Returns the path of the workload's result: a file or a folder.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.workspace().join("output")
    }

    /// Returns the path of the progress file.
    #[must_use]
    pub fn progress(&self) -> PathBuf {
        self.workspace().join("progress")
    }

    /// Returns the folder whose files are kept after an interruption.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.workspace().join("checkpoint")
    }

    /// Returns the workload's private folder.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.workspace().join("scratch")
    }

    /// Returns the most memory that the workload's processes were seen to use together, in bytes; `None` if it ended
    /// before it was measured.
    #[must_use]
    pub fn peak_memory(&self) -> Option<u64> {
        self.peak.get()
    }

    /// Returns the folder for `/tmp` and `/var/tmp` in the sandbox.
    pub(super) fn temporary(&self) -> PathBuf {
        self.workspace().join("tmp")
    }

    /// Returns a name of this attempt that is valid for a unit or a file: letters, digits, and hyphens.
    pub(super) fn mark(&self) -> String {
        self.folder.name().to_owned()
    }

    /// Gives the workspace, with its content, to the workload's user. Follows no link. Files of that user keep their
    /// change time, by which a checkpoint detects changes.
    pub(super) fn hand_over(&self, uid: u32, gid: u32) -> io::Result<()> {
        std::fs::create_dir_all(self.temporary())?;
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let top = walk::open_top(&self.workspace())?;
        chownat(&top, "", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        // Any depth, because checkpoints of earlier versions had no limit, and the workload does not run yet.
        walk::each(&top, usize::MAX, |found| -> io::Result<()> {
            if (found.meta.st_uid, found.meta.st_gid) != (uid, gid) {
                chownat(found.parent, found.name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        })
    }

    /// Reads the current standard output and error of the workload: the beginning, a line about omitted bytes, and the
    /// end, at most 6 MiB. Lines that lighthpc added come last.
    ///
    /// # Errors
    /// The system's error.
    pub fn log(&self) -> io::Result<Vec<u8>> {
        log::read(self.folder())
    }

    /// Adds a line to the attempt's log for the user, up to a few KiB in total. It is lost if the disk is full.
    pub fn note(&self, line: &str) {
        log::note(self.folder(), line);
    }

    /// Returns the variables of the workload.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, OsString)> {
        let mission = self.mission.as_ref().map_or("", MissionId::as_str);
        let mut variables: Vec<(&str, OsString)> = vec![
            ("LIGHTHPC_SRC_ID", self.src.as_str().into()),
            ("LIGHTHPC_MISSION", mission.into()),
            ("LIGHTHPC_ATTEMPT", self.attempt.to_string().into()),
            ("LIGHTHPC_OUTPUT", self.output().into()),
            ("LIGHTHPC_PROGRESS", self.progress().into()),
            ("LIGHTHPC_CHECKPOINT_DIR", self.checkpoint().into()),
            ("LIGHTHPC_RESUMED", if self.resumed { "1" } else { "0" }.into()),
            ("LIGHTHPC_SCRATCH", self.scratch().into()),
        ];
        if !self.keys.is_empty() {
            variables.push(("LIGHTHPC_INPUT_DIR", self.input_dir().into()));
        }
        variables.extend(self.input().map(|input| ("LIGHTHPC_INPUT", input.into())));
        variables.extend(self.work.index.map(|index| ("LIGHTHPC_INDEX", index.to_string().into())));
        let params = self.work.params.iter().map(|(name, value)| (param_variable(name), value.into()));
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(params).collect()
    }
}

/// Returns whether a variable is hidden from the workload: AWS variables (credentials, endpoints), lighthpc's own
/// settings, and those that systemd gave to the node.
#[must_use]
pub(super) fn is_withheld(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.starts_with("AWS_") || name.starts_with("LIGHTHPC_") || SYSTEMD.contains(&name.as_str())
}

/// The variables that systemd sets for a service. Source: `systemd.exec(5)`, "Environment Variables Set or Propagated
/// by the Service Manager".
const SYSTEMD: [&str; 14] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "STATE_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leaves_the_attempts_folder() {
        let dir = tempfile::tempdir().unwrap();
        for key in ["../../etc/passwd", "/abs", "a/../../b", "..", "x/", "ü/文", &"n/".repeat(500)] {
            let env = WorkloadEnv::prepare(dir.path(), "t", SrcId::new(key).unwrap(), None, AttemptNumber(1)).unwrap();
            assert_eq!(env.input().unwrap().parent().unwrap(), env.input_dir());
            std::fs::write(env.input().unwrap(), "x").unwrap();
            env.remove().unwrap();
            env.remove().unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// Two nodes with different tables, or of two accounts whose tables have the same name, and the same key.
    #[test]
    fn two_contracts_for_one_key_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let prepare = |deployment| {
            WorkloadEnv::prepare(dir.path(), deployment, SrcId::new("a").unwrap(), None, AttemptNumber(1)).unwrap()
        };
        let all = [prepare("one"), prepare("one"), prepare("other")];
        for env in &all {
            std::fs::write(env.output(), env.mark()).unwrap();
        }
        for env in &all {
            assert_eq!(std::fs::read_to_string(env.output()).unwrap(), env.mark());
            env.remove().unwrap();
        }
    }

    #[test]
    fn a_checkpoint_folder_is_emptied_whatever_its_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let env = WorkloadEnv::prepare(dir.path(), "t", SrcId::new("a").unwrap(), None, AttemptNumber(1)).unwrap();
        std::fs::create_dir(env.checkpoint().join("a")).unwrap();
        std::fs::write(env.checkpoint().join("a/b"), "x").unwrap();
        let read_only = std::fs::Permissions::from_mode(0o555);
        std::fs::set_permissions(env.checkpoint().join("a"), read_only).unwrap();
        env.empty_checkpoint().unwrap();
        assert_eq!(std::fs::read_dir(env.checkpoint()).unwrap().count(), 0);
    }

    #[test]
    fn no_credential_reaches_the_workload() {
        for name in ["AWS_SECRET_ACCESS_KEY", "aws_session_token", "LIGHTHPC_EXEC", "NOTIFY_SOCKET"] {
            assert!(is_withheld(name), "{name}");
        }
        for name in ["PATH", "HOME", "LANG", "MY_AWS_NOTE"] {
            assert!(!is_withheld(name), "{name}");
        }
    }
}
