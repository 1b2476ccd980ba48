//! The check whether a local mission's folder is trusted. Everybody who can write to the folder can choose the program
//! that runs, so this user must own it, as git requires for a repository.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::workload::objection_to_mission;

/// The value of `--trust-folder` that trusts every folder.
const ANY: &str = "*";

/// Refuses a mission's folder that another user owns or can write to, unless it is in `trusted`. A folder of root is
/// trusted; with sudo, so is one of the calling user. A folder that does not exist is accepted.
pub(super) fn check(dir: &Path, trusted: &[PathBuf]) -> Result<(), Failure> {
    // Resolved, because the owner of a link does not matter.
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let is_it = |folder: &PathBuf| folder == Path::new(ANY) || folder.canonicalize().is_ok_and(|folder| folder == dir);
    if trusted.iter().any(is_it) {
        return Ok(());
    }
    let sudo_uid = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    let sudo_uid = sudo_uid.filter(|_| rustix::process::geteuid().is_root());
    let own = dir.join(".lighthpc");
    let inside = std::fs::read_dir(&own).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    for path in [dir.clone(), own.clone()].into_iter().chain(inside) {
        // If the folder cannot be read, opening it later reports why.
        if let Ok(Some(why)) = objection_to_mission(&path, sudo_uid) {
            let shown = dir.display().to_string();
            return Err(Failure::usage(
                format!("{} {why}: its writers can choose the program that would run", path.display()),
                format!(
                    "if you trust them, add --trust-folder={} (LIGHTHPC_TRUST_FOLDER); or make the folder private: \
                     chown and chmod -R go-w",
                    shell_words::quote(&shown)
                ),
            ));
        }
    }
    Ok(())
}
