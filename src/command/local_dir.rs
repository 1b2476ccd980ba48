//! The folder of a local mission: the meaning of `--local [DIR]`, and the variables that it ignores.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::failure::Failure;
use crate::backend::{Backend, Tables, Wire, machine::PowerOff};
use crate::command::exit::ExitCode;
use local_cloud::{ACCESS_KEY, LocalCloud, OpenError, REGION, SECRET_KEY};

/// The folder of a local mission if none is given.
pub(super) const DEFAULT_DIR: &str = "lighthpc-local";

/// The variables that a local mission ignores: names in an account, which `scripts/deploy --exports` sets, and settings
/// of a node, which an image's environment file sets. Settings of the workload (`LIGHTHPC_EXEC`, `LIGHTHPC_SLOTS`,
/// `LIGHTHPC_TIME_LIMIT`, `LIGHTHPC_LEASE`, …) apply. Flags always apply, or are refused.
const IGNORED: [&str; 15] = [
    "LIGHTHPC_SRC_ID",
    "LIGHTHPC_MISSION",
    "LIGHTHPC_TASKS_TABLE",
    "LIGHTHPC_MISSIONS_TABLE",
    "LIGHTHPC_SOURCE_BUCKET",
    "LIGHTHPC_RESULT_BUCKET",
    "LIGHTHPC_TOPIC_ARN",
    "LIGHTHPC_WORK_DIR",
    "LIGHTHPC_MAX_LIFETIME",
    "LIGHTHPC_TERMINATE",
    "LIGHTHPC_NO_TERMINATE",
    "LIGHTHPC_POWER_OFF_COMMAND",
    "LIGHTHPC_LOG_GROUP",
    "LIGHTHPC_ISOLATION",
    "LIGHTHPC_DEVICES",
];

/// Returns whether a local mission ignores this variable.
pub(super) fn is_ignored(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| IGNORED.contains(&name))
}

/// Logs, at level `info`, which of the variables that are set are ignored. AWS variables never matter: the in-process
/// cloud has its own endpoint and credentials, and its client refuses every other host.
pub(super) fn note_ignored() {
    let is_meant = |name: &OsStr| is_ignored(name) || name.as_encoded_bytes().starts_with(b"AWS_ENDPOINT_URL");
    let mut names: Vec<String> = std::env::vars_os()
        .filter(|(name, value)| !value.is_empty() && is_meant(name))
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .collect();
    if !names.is_empty() {
        names.sort();
        tracing::info!("--local ignores these variables: {}", names.join(", "));
    }
}

/// Returns the arguments of lighthpc itself: those before `--`.
fn own_words(arguments: &[OsString]) -> impl Iterator<Item = &[u8]> {
    arguments.iter().skip(1).map(|word| word.as_encoded_bytes()).take_while(|word| *word != b"--")
}

/// Returns whether the arguments, which are not parsed yet, contain `--local`.
pub(super) fn is_local(arguments: &[OsString]) -> bool {
    own_words(arguments).any(|word| word == b"--local" || word.starts_with(b"--local="))
        || std::env::var_os("LIGHTHPC_LOCAL").is_some_and(|value| !value.is_empty())
}

/// Returns whether `--local` has no `=DIR`, so that the next argument can be a folder or something else.
pub(super) fn is_bare(arguments: &[OsString]) -> bool {
    own_words(arguments).any(|word| word == b"--local")
}

/// Separates DIR from the input files in `--local [DIR] FILE…`: a file after `--local` is the first input. With
/// `is_folder` (`--local=DIR`), the value is a folder, whatever its name.
pub(super) fn parse(local: &Path, is_folder: bool, files: &[PathBuf]) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    let default = PathBuf::from(DEFAULT_DIR);
    if is_folder {
        if local.exists() && !local.is_dir() {
            return Err(Failure::usage(
                format!("--local={} is not a folder", local.display()),
                "give a folder, and then the input files: --local=DIR FILE",
            ));
        }
        return Ok((local.to_owned(), files.to_vec()));
    }
    // `-` is the list of the input files.
    if local.is_file() || local == Path::new("-") {
        let files = std::iter::once(local.to_owned()).chain(files.iter().cloned()).collect();
        return Ok((default, files));
    }
    // The name of a new folder has no dot, or it ends with a slash. A mistyped input usually has an extension.
    let ends_in_slash = local.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !local.exists() && local.extension().is_some() && !ends_in_slash {
        let path = local.display();
        return Err(Failure::usage(
            format!("{path} is neither a file nor a folder"),
            format!("to create it as the mission's folder, write --local={path}"),
        ));
    }
    Ok((local.to_owned(), files.to_vec()))
}

/// Returns the flag that names a folder, for a command that is proposed to the user.
pub(super) fn flag(dir: &Path) -> String {
    if dir.as_os_str() == DEFAULT_DIR {
        " --local".to_owned()
    } else {
        format!(" --local={}", crate::domain::printable::shell(&dir.display().to_string()))
    }
}

/// Returns the services of a local cloud, as the given instance sees them, or as a caller outside the instances does.
pub(super) fn backend(cloud: &LocalCloud, instance: Option<&str>) -> Backend {
    let wire = Wire::plugged(cloud.http_client(instance), REGION, ACCESS_KEY, SECRET_KEY);
    Backend::new(&wire, Tables::default(), PowerOff::Never)
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let (exit, hint) = match &error {
            OpenError::InUse { .. } => {
                (ExitCode::Usage, "wait until the other lighthpc has finished, or use another folder with --local=DIR")
            }
            OpenError::NotOurs { .. } => (ExitCode::Usage, "use an empty or a new folder with --local=DIR"),
            OpenError::NotFound { .. } => (ExitCode::Usage, "set --local=DIR to the folder of a local mission"),
            OpenError::Io { source, .. } if is_of_the_path(source) => {
                (ExitCode::Usage, "give another folder with --local=DIR, or correct its permissions")
            }
            OpenError::Io { .. } => (ExitCode::Internal, "check the disk"),
            OpenError::State { .. } => (
                ExitCode::Internal,
                "restore the folder from a copy, or use a new one with --local=DIR; the files in results/ are not \
                 affected",
            ),
        };
        Self { exit, error: error.into(), hint: Some(hint.to_owned()) }
    }
}

/// Returns whether the folder that was named is the cause, and not the disk.
fn is_of_the_path(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    let kinds = [
        ErrorKind::NotFound,
        ErrorKind::PermissionDenied,
        ErrorKind::NotADirectory,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::InvalidFilename,
    ];
    kinds.contains(&error.kind())
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

        let bare = |local: &Path| parse(local, false, &files).unwrap();
        assert_eq!(bare(Path::new(DEFAULT_DIR)), (DEFAULT_DIR.into(), vec![two.clone()]));
        assert_eq!(bare(&one), (DEFAULT_DIR.into(), vec![one.clone(), two.clone()]));
        assert_eq!(bare(dir.path()), (dir.path().into(), vec![two.clone()]));
        assert_eq!(bare(&dir.path().join("new")), (dir.path().join("new"), vec![two.clone()]));
    }

    #[test]
    fn what_is_named_by_an_equals_sign_is_a_folder_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("1.fa");
        std::fs::write(&file, "").unwrap();
        let new = dir.path().join("new.fa");

        assert_eq!(parse(&new, true, &[]).unwrap(), (new, vec![]));
        assert!(parse(&file, true, &[]).is_err());
    }

    #[test]
    fn a_command_line_is_local_by_its_own_words_only() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (line, local, bare) in [
            ("lighthpc run --local a.fa -- x", true, true),
            ("lighthpc run --local=d a.fa", true, false),
            ("lighthpc run a.fa -- x --local", false, false),
            ("--local run", false, false),
        ] {
            let words = words(line);
            assert_eq!((is_local(&words), is_bare(&words)), (local, bare), "{line}");
        }
    }

    #[test]
    fn a_mistyped_file_is_not_taken_for_a_folder() {
        assert!(parse(Path::new("no-such-file.fa"), false, &["x".into()]).is_err());
        assert!(parse(Path::new("new.d/"), false, &["x".into()]).is_ok());
    }
}
