//! `lighthpc lambda`: starts the AWS Lambda function.

use std::ffi::OsString;
use std::path::Path;

use super::exit::ExitCode;
use super::failure::Failure;
use super::flags::SchedulerArgs;
use super::scheduling;
use crate::lambda;

/// The variable that contains the address of Lambda's runtime interface. Source: Lambda developer guide, "Using the
/// Lambda runtime API".
const RUNTIME: &str = "AWS_LAMBDA_RUNTIME_API";

/// Returns whether Lambda started the program: as `bootstrap`, without arguments.
pub(super) fn is_bootstrap(arguments: &[OsString]) -> bool {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    arguments.len() == 1 && name.is_some_and(|name| name == "bootstrap") && std::env::var_os(RUNTIME).is_some()
}

pub(super) async fn run(args: SchedulerArgs) -> Result<ExitCode, Failure> {
    if std::env::var_os(RUNTIME).is_none() {
        let message = format!("this is not a Lambda function: {RUNTIME} is not set");
        return Err(Failure::usage(
            message,
            "deploy the function with scripts/deploy; elsewhere use `lighthpc submit` and `lighthpc sweep`",
        ));
    }
    let ended = lambda::serve(scheduling::scheduler(&args).await?).await;
    ended.map_err(|error| Failure { exit: ExitCode::Internal, error: anyhow::anyhow!(error), hint: None })?;
    Ok(ExitCode::Ok)
}
