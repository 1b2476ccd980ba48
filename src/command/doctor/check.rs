//! A check of the doctor's report, and functions that the checks share.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Command;

use crate::backend::{CloudError, error_chain};
use crate::command::exit;
use crate::command::exit::ExitCode;
use crate::command::failure::Failure;

/// The settings of this machine's node. They are read from this file, because a user's shell does not have them.
pub(super) const ENV_FILE: &str = "/etc/lighthpc/lighthpc.env";
/// The time limit of a program that a check runs. It takes at most a second; a machine that boots may be slower.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// Not checked, because the role lacks a permission that a node does not need.
    Skipped,
    Warning,
    Failure,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) said: String,
    pub(super) fix: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, said: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, said: said.into(), fix: None }
    }

    pub(super) fn warning(name: &'static str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, said: said.into(), fix: Some(fix.into()) }
    }

    pub(super) fn failure(name: &'static str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Failure, said: said.into(), fix: Some(fix.into()) }
    }

    /// Creates a check that could not be made, and names the permission that it needs.
    pub(super) fn skipped(name: &'static str, right: &str) -> Self {
        let said = format!("not checked: this needs {right}, a permission that a node's role does not have");
        Self { name, status: Status::Skipped, said, fix: None }
    }

    /// Converts the result of a call. The fix for a failure is the hint that a node would print.
    pub(super) fn of_call(name: &'static str, call: Result<String, CloudError>) -> Self {
        match call {
            Ok(said) => Self::ok(name, said),
            Err(error) => {
                let fix = exit::of_cloud(&error).1.unwrap_or_default();
                Self::failure(name, error_chain(&error), fix)
            }
        }
    }
}

pub(super) fn internal(doing: &'static str, error: std::io::Error) -> Failure {
    Failure { exit: ExitCode::Internal, error: anyhow::Error::new(error).context(doing), hint: None }
}

/// Parses an env file as systemd does: one name and value per line, with optional quotes.
pub(super) fn settings_of(file: &str) -> impl Iterator<Item = (&str, String)> {
    file.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])).filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.trim();
        let unquoted = match shell_words::split(value) {
            Ok(mut words) if words.len() == 1 && value.starts_with(['"', '\'']) => words.remove(0),
            _ => value.to_owned(),
        };
        Some((name.trim(), unquoted))
    })
}

/// Returns whether `scripts/provision` made this machine a node.
pub(super) fn is_provisioned() -> bool {
    Path::new("/etc/systemd/system/lighthpc.service").exists()
}

/// Runs a system program, and returns its output; as an error if it failed.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let (is_success, said) = ask(program, arguments).await?;
    if is_success { Ok(said) } else { Err(said) }
}

/// Runs a system program, and returns whether it succeeded, and its output. An error explains why it could not run.
pub(super) async fn ask(program: &str, arguments: &[&str]) -> Result<(bool, String), String> {
    let command = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(COMMAND_TIMEOUT, command).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Err(_) => return Err(format!("{program} did not finish within {COMMAND_TIMEOUT:?}")),
    };
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_env_file_is_read_as_systemd_reads_it() {
        let file = "# a remark\nAWS_REGION=eu-west-1\n  LIGHTHPC_EXEC=\"echo \\\"a\\\" b\"\nLIGHTHPC_SLOTS=\n; x=y\nnothing\n\
                    LIGHTHPC_MISSION='M 1'\nPLAIN=a b\n";

        let read: Vec<_> = settings_of(file).collect();

        let expected = [
            ("AWS_REGION", "eu-west-1"),
            ("LIGHTHPC_EXEC", "echo \"a\" b"),
            ("LIGHTHPC_SLOTS", ""),
            ("LIGHTHPC_MISSION", "M 1"),
            ("PLAIN", "a b"),
        ];
        assert_eq!(read, expected.map(|(name, value)| (name, value.to_owned())));
    }

    #[tokio::test]
    async fn a_program_that_fails_is_distinguished_from_one_that_cannot_be_run() {
        assert_eq!(ask("sh", &["-c", "echo a; echo b >&2; exit 3"]).await, Ok((false, "a\nb\n".to_owned())));
        assert_eq!(run("sh", &["-c", "echo a; exit 3"]).await, Err("a\n".to_owned()));
        assert_eq!(run("sh", &["-c", "echo a"]).await, Ok("a\n".to_owned()));
        assert!(ask("no-such-program", &[]).await.is_err_and(|why| why.starts_with("no-such-program: ")));
    }
}
