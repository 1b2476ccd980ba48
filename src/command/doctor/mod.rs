//! `lighthpc doctor`: what would go wrong, before it does. It changes nothing: rights are tried by dry runs, by conditions that
//! cannot hold, and by an upload that is aborted.
//!
//! On a node it looks at all of it, elsewhere at what a scheduler needs, and with `--bake` at what can be known of an image.

mod cloud;
mod machine;
mod wall;

use std::os::unix::process::CommandExt;
use std::path::Path;

use serde::Serialize;

use super::cli::DoctorArgs;
use super::{Failure, screen};
use crate::backend::CloudError;
use crate::command::exit::{self, Exit};

/// The settings of this machine's node. A person's shell does not have them, so they are read from here.
const ENV_FILE: &str = "/etc/lighthpc/lighthpc.env";
/// Set by the first process for the second, which has the file's settings.
const ENV_READ: &str = "LIGHTHPC_DOCTOR_ENV_READ";

/// How one look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Not looked at, for lack of a right that only a person needs.
    Skipped,
    Warning,
    Failure,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    said: String,
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, said: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, said: said.into(), mend: None }
    }

    fn warning(name: &'static str, said: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, said: said.into(), mend: Some(mend.into()) }
    }

    fn failure(name: &'static str, said: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Failure, said: said.into(), mend: Some(mend.into()) }
    }

    /// What cannot be looked at by whoever asks, and which right would show it.
    fn skipped(name: &'static str, right: &str) -> Self {
        let said = format!("not checked: needs {right}, which a node's role does not have");
        Self { name, status: Status::Skipped, said, mend: None }
    }

    /// What a call came to; of a failed one the mend is the hint that a node would give.
    fn of_call(name: &'static str, call: Result<String, CloudError>) -> Self {
        match call {
            Ok(said) => Self::ok(name, said),
            Err(error) => {
                let mend = exit::of_cloud(&error).1.unwrap_or_default();
                Self::failure(name, format!("{error}: {}", error.source), mend)
            }
        }
    }
}

pub(super) async fn run(args: Box<DoctorArgs>) -> Result<Exit, Failure> {
    if args.behind_the_wall {
        return wall::try_out();
    }
    if !args.bake {
        with_settings_of_the_node()?;
    }
    let mut checks = machine::look(&args).await;
    if !args.bake {
        checks.extend(cloud::look(&args).await?);
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failures, warnings) = (count(Status::Failure), count(Status::Warning));
    if args.json {
        let report = serde_json::json!({ "checks": checks, "failures": failures, "warnings": warnings });
        screen::json_to_stdout(&report);
    } else {
        screen::to_stdout(&text(&checks));
        screen::to_stdout(&format!("{} checks: {failures} failures, {warnings} warnings\n", checks.len()));
    }
    Ok(if failures == 0 { Exit::Ok } else { Exit::Unfit })
}

fn text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Skipped => "skipped",
            Status::Warning => "warning",
            Status::Failure => "FAILURE",
        };
        text.push_str(&format!("{status:<8} {:<width$}  {}\n", check.name, screen::plain(&check.said)));
        if let Some(mend) = &check.mend {
            text.push_str(&format!("{:<8} {:<width$}  mend: {}\n", "", "", screen::plain(mend)));
        }
    }
    text
}

/// Starts this program again with the settings of the node's env file, if there is one that can be read; what is set already
/// stays. Returns only if there is nothing to add.
fn with_settings_of_the_node() -> Result<(), Failure> {
    let Ok(file) = std::fs::read_to_string(ENV_FILE) else { return Ok(()) };
    if std::env::var_os(ENV_READ).is_some() {
        return Ok(());
    }
    let settings = settings_of(&file).filter(|(name, _)| std::env::var_os(name).is_none());
    let program = std::env::current_exe().map_err(|error| internal("finding this program", error))?;
    let error =
        std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(settings).env(ENV_READ, "1").exec();
    Err(internal("starting this program again", error))
}

fn internal(doing: &'static str, error: std::io::Error) -> Failure {
    Failure { exit: Exit::Internal, error: anyhow::Error::new(error).context(doing), hint: None }
}

/// Reads an env file as systemd does: a name and a value on each line, which may be quoted.
fn settings_of(file: &str) -> impl Iterator<Item = (&str, String)> {
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

/// Returns whether this machine was made a node by `scripts/provision`.
fn is_provisioned() -> bool {
    Path::new("/etc/systemd/system/lighthpc.service").exists()
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

    #[test]
    fn the_report_has_a_line_for_each_check_and_one_for_its_mend() {
        let checks = [Check::ok("disk", "9 GiB free"), Check::failure("hop limit", "3", "set it to 1")];

        assert_eq!(
            text(&checks),
            "ok       disk       9 GiB free\nFAILURE  hop limit  3\n                    mend: set it to 1\n"
        );
    }
}
