//! The workload's contract: the environment it gets, and the files behind it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::log;
use crate::domain::ids::{Attempt, MissionId, SrcId};
use crate::domain::keys::{digest_hex, file_name};

/// One attempt's folder, and what the workload is told of it.
///
/// ```text
/// <work dir>/<16 digits of the key's SHA-256>-<attempt>/
///   src   log.<segment>         the node's
///   workload/                   the workload's; behind the wall its user owns it, and sees nothing else of the work dir
///     input/<file name>   output   progress   checkpoint/   scratch/
/// ```
#[derive(Clone, Debug)]
pub struct Contract {
    /// The task.
    pub src: SrcId,
    /// The mission, if the task has one.
    pub mission: Option<MissionId>,
    /// The attempt.
    pub attempt: Attempt,
    /// Whether `checkpoint/` was restored from an earlier attempt.
    pub resumed: bool,
    folder: PathBuf,
}

impl Contract {
    /// Makes the attempt's folder, anew if there is one.
    ///
    /// # Errors
    /// The system's.
    pub fn prepare(work_dir: &Path, src: SrcId, mission: Option<MissionId>, attempt: Attempt) -> io::Result<Self> {
        let work_dir = std::path::absolute(work_dir)?;
        let folder = work_dir.join(format!("{}-{attempt}", digest_hex(&[src.as_str()], 16)));
        let contract = Self { src, mission, attempt, resumed: false, folder };
        contract.remove()?;
        for part in ["input", "checkpoint", "scratch"] {
            std::fs::create_dir_all(contract.workspace().join(part))?;
        }
        std::fs::write(contract.progress(), "")?;
        std::fs::write(contract.folder.join(SRC_NAME), contract.src.as_str())?;
        Ok(contract)
    }

    /// Removes the attempt's folder with everything in it. May be called twice.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns the attempt's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the part of the attempt's folder that is the workload's.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.folder.join("workload")
    }

    /// Returns where the input is downloaded to. Whatever the key is, this is inside the attempt's folder.
    #[must_use]
    pub fn input(&self) -> PathBuf {
        self.workspace().join("input").join(file_name(self.src.as_str()))
    }

    /// Returns where the workload writes its result: a file, or a folder.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.workspace().join("output")
    }

    /// Returns the file that the workload appends its progress to.
    #[must_use]
    pub fn progress(&self) -> PathBuf {
        self.workspace().join("progress")
    }

    /// Returns the folder whose files survive an interruption.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.workspace().join("checkpoint")
    }

    /// Returns the workload's private folder.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.workspace().join("scratch")
    }

    /// Returns a name for this attempt that is good for a unit or a file: letters, digits, and hyphens.
    pub(super) fn mark(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Gives the workspace, with all that is in it, to the workload's own user. No link is followed.
    pub(super) fn hand_over(&self, uid: u32, gid: u32) -> io::Result<()> {
        let mut left = vec![self.workspace()];
        while let Some(path) = left.pop() {
            if path.symlink_metadata()?.is_dir() {
                for entry in std::fs::read_dir(&path)? {
                    left.push(entry?.path());
                }
            }
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Reads what the workload has written to its standard output and error so far: the beginning, a line about what was
    /// dropped, and the end, 6 MiB at the most.
    ///
    /// # Errors
    /// The system's.
    pub fn log(&self) -> io::Result<Vec<u8>> {
        log::read(&self.folder)
    }

    /// Returns the variables that the workload gets.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mission = self.mission.as_ref().map_or("", MissionId::as_str);
        vec![
            ("LIGHTHPC_SRC_ID", self.src.as_str().into()),
            ("LIGHTHPC_MISSION", mission.into()),
            ("LIGHTHPC_ATTEMPT", self.attempt.to_string().into()),
            ("LIGHTHPC_INPUT", self.input().into()),
            ("LIGHTHPC_OUTPUT", self.output().into()),
            ("LIGHTHPC_PROGRESS", self.progress().into()),
            ("LIGHTHPC_CHECKPOINT_DIR", self.checkpoint().into()),
            ("LIGHTHPC_RESUMED", if self.resumed { "1" } else { "0" }.into()),
            ("LIGHTHPC_SCRATCH", self.scratch().into()),
        ]
    }
}

/// The file of an attempt's folder that names the task, for the process that finds the folder after this one has died.
pub(super) const SRC_NAME: &str = "src";

/// Returns whether a variable of ours is kept from the workload: AWS's (credentials, endpoints), lighthpc's own
/// settings, and the handles that systemd gave to the daemon.
#[must_use]
pub(super) fn is_withheld(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    name.starts_with("AWS_") || name.starts_with("LIGHTHPC_") || SYSTEMD.contains(&name.as_str())
}

/// What systemd tells a service of itself. Source: `systemd.exec(5)`, "Environment Variables Set or Propagated by the Service
/// Manager".
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
            let contract = Contract::prepare(dir.path(), SrcId::new(key).unwrap(), None, Attempt(1)).unwrap();
            assert_eq!(contract.input().parent().unwrap(), contract.workspace().join("input"));
            std::fs::write(contract.input(), "x").unwrap();
            contract.remove().unwrap();
            contract.remove().unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
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
