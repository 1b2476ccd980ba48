//! Where a local mission is kept: what `--local [DIR]` means.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::backend::{Backend, Tables, Wire, machine::PowerOff};
use crate::exit::Exit;
use crate::local::{ACCESS_KEY, LocalCloud, OpenError, REGION, SECRET_KEY};

/// Where a local mission is kept if no folder is named.
pub(super) const DEFAULT_DIR: &str = "lighthpc-local";

/// Reads `--local [DIR] FILE…`, where DIR may be left out: a file after `--local` is the first input, not a folder.
pub(super) fn split(local: &Path, files: &[PathBuf]) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    let default = PathBuf::from(DEFAULT_DIR);
    if local.is_file() {
        let files = std::iter::once(local.to_owned()).chain(files.iter().cloned()).collect();
        return Ok((default, files));
    }
    // A new folder has no dot in its name, or a slash at its end; a mistyped input usually has an extension.
    let ends_in_slash = local.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !local.exists() && local.extension().is_some() && !ends_in_slash {
        let path = local.display();
        return Err(Failure::usage(
            format!("{path} is neither a file nor a folder"),
            format!("if it is to be the mission's new folder, write --local={path}/"),
        ));
    }
    Ok((local.to_owned(), files.to_vec()))
}

/// Refuses to go on where the surroundings name an endpoint: a dry run never talks to anything but itself.
pub(super) fn refuse_endpoints() -> Result<(), Failure> {
    let endpoint = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .find(|(name, value)| name.starts_with("AWS_ENDPOINT_URL") && !value.is_empty());
    match endpoint {
        None => Ok(()),
        Some((name, value)) => Err(Failure::usage(
            format!("--local uses no endpoint but its own, and {name} is set to {}", value.to_string_lossy()),
            format!("unset {name}, or leave --local away to use that endpoint"),
        )),
    }
}

/// Makes the services of a local cloud, as an instance of it sees them, or as seen from a desk.
pub(super) fn backend(cloud: &LocalCloud, instance: Option<&str>) -> Backend {
    let wire = Wire::plugged(cloud.wire(instance), REGION, ACCESS_KEY, SECRET_KEY);
    Backend::new(&wire, Tables::default(), PowerOff::Never)
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let (exit, hint) = match &error {
            OpenError::InUse { .. } => {
                (Exit::Usage, "wait for the other lighthpc, or name another folder with --local=DIR")
            }
            OpenError::NotOurs { .. } => (Exit::Usage, "name an empty or a new folder with --local=DIR"),
            OpenError::NotFound { .. } => (Exit::Usage, "name the folder of a local mission with --local=DIR"),
            OpenError::Io { .. } | OpenError::State { .. } => {
                (Exit::Internal, "look at the folder's permissions and the disk")
            }
        };
        Self { exit, error: error.into(), hint: Some(hint.to_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_may_be_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("1.fa"), dir.path().join("2.fa"));
        std::fs::write(&one, "").unwrap();
        let files = [two.clone()];

        assert_eq!(split(Path::new(DEFAULT_DIR), &files).unwrap(), (DEFAULT_DIR.into(), vec![two.clone()]));
        assert_eq!(split(&one, &files).unwrap(), (DEFAULT_DIR.into(), vec![one.clone(), two.clone()]));
        assert_eq!(split(dir.path(), &files).unwrap(), (dir.path().into(), vec![two.clone()]));
        assert_eq!(split(&dir.path().join("new"), &files).unwrap(), (dir.path().join("new"), vec![two.clone()]));
    }

    #[test]
    fn a_mistyped_file_is_not_taken_for_a_folder() {
        assert!(split(Path::new("no-such-file.fa"), &["x".into()]).is_err());
        assert!(split(Path::new("new.d/"), &["x".into()]).is_ok());
    }
}
