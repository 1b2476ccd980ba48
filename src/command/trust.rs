//! Whether a local mission's folder may name the program that is run. Whoever may write to the folder chooses the
//! program, so it must be this user's own, as git demands of a repository.

use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::workload::objection_to_mission;

/// Stands for every folder, in `--trust-folder`.
const ANY: &str = "*";

/// Refuses a mission's folder that another user owns, or may write to, unless it is in `trusted`. A folder of root is
/// trusted; with sudo, so is one of the user who called it. What is not there yet is nobody's.
pub(super) fn check(dir: &Path, trusted: &[PathBuf]) -> Result<(), Failure> {
    // By its real name: a link to it says nothing of it.
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
        // A folder that cannot be looked at cannot be run in either; opening it says why.
        if let Ok(Some(why)) = objection_to_mission(&path, sudo_uid) {
            let shown = dir.display().to_string();
            return Err(Failure::usage(
                format!("{} {why}: whoever may write there chooses the program that would run", path.display()),
                format!(
                    "if you trust them, run it with --trust-folder={} (LIGHTHPC_TRUST_FOLDER), or make it yours alone: \
                     chown and chmod -R go-w",
                    shell_words::quote(&shown)
                ),
            ));
        }
    }
    Ok(())
}
