//! `lighthpc doctor`: finds problems before a mission does.
//!
//! It changes nothing, except that `--send-test-notification` publishes a message: permissions are tested by dry runs, by conditions that are always false, and by an upload that
//! is aborted. On a node it makes all checks, elsewhere those for a scheduler, and with `--bake` those for an image.

mod check;
mod cloud;
mod machine;
mod sandbox;

use std::os::unix::process::CommandExt;

use check::{Check, ENV_FILE, Status, internal, settings_of};

use super::cli::DoctorArgs;
use super::failure::Failure;
use super::screen;
use crate::command::exit::ExitCode;

/// Set for the second process, which has the settings of the file.
const ENV_READ: &str = "LIGHTHPC_DOCTOR_ENV_READ";

pub(super) async fn run(args: Box<DoctorArgs>) -> Result<ExitCode, Failure> {
    if args.inside_sandbox {
        return sandbox::try_out();
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
        let counted = |number: usize, noun| screen::count(number as u64, noun);
        let (all, failures, warnings) =
            (counted(checks.len(), "check"), counted(failures, "failure"), counted(warnings, "warning"));
        screen::to_stdout(&format!("{all}: {failures}, {warnings}\n"));
    }
    Ok(if failures == 0 { ExitCode::Ok } else { ExitCode::Unfit })
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
        if let Some(fix) = &check.fix {
            text.push_str(&format!("{:<8} {:<width$}  fix: {}\n", "", "", screen::plain(fix)));
        }
    }
    text
}

/// Starts this program again with the settings of the node's env file, if the file is readable. Variables that are
/// already set keep their values. Returns only if there is nothing to add.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_a_line_for_each_check_and_one_for_its_fix() {
        let checks = [Check::ok("disk", "9 GiB free"), Check::failure("hop limit", "3", "set it to 1")];

        assert_eq!(
            text(&checks),
            "ok       disk       9 GiB free\nFAILURE  hop limit  3\n                    fix: set it to 1\n"
        );
    }
}
