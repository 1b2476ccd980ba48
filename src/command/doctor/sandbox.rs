//! The check of the sandbox: runs this program as a workload, which reports what it can reach.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::super::screen;
use super::check::{Check, ENV_FILE, internal, run};
use crate::command::exit::ExitCode;
use crate::command::failure::Failure;
use crate::domain::ids::{AttemptNumber, SrcId};
use crate::domain::progress::Progress;
use crate::workload::Devices;
use crate::workload::{Bounds, Exit, Sandbox, Stops, Workload, WorkloadEnv};

/// The instance metadata service. Source: EC2 user guide, "Access instance metadata".
const IMDS: [&str; 2] = ["169.254.169.254:80", "[fd00:ec2::254]:80"];
/// The time limit of a connection. A refusal arrives at once; no answer is a pass, too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of the whole check: two connections that time out, and the start of the unit.
const TRY_TIMEOUT: Duration = Duration::from_mins(1);
/// The nftables rules that are loaded before a node starts.
const RULES: &str = "/usr/local/lib/lighthpc/sandbox.nft";

const NAME: &str = "sandbox";
const FIX: &str = "run scripts/provision again, and check `journalctl -u 'lighthpc-task-*'`";

pub(super) async fn look(work_dir: &Path, is_baking: bool) -> Check {
    let sandbox = match Sandbox::of_this_machine(Devices::default()) {
        Ok(sandbox) => sandbox,
        Err(error) => return Check::failure(NAME, error.to_string(), "run scripts/provision again"),
    };
    if !rustix::process::geteuid().is_root() {
        return Check::warning(NAME, "not checked: this needs root", "run doctor as root");
    }
    if let Err(said) = run("nft", &["--check", "--file", RULES]).await {
        return Check::failure(NAME, format!("{RULES} cannot be loaded: {}", said.trim().replace('\n', "; ")), FIX);
    }
    if !Path::new("/run/systemd/system").exists() {
        return Check::ok(
            NAME,
            "the user exists and the rules can be loaded; the sandbox itself is checked on a running machine",
        );
    }
    // The unit sets `unit`; only the env file can override it.
    if std::env::var("LIGHTHPC_ISOLATION").is_ok_and(|isolation| isolation == "process") {
        let fix = format!("remove LIGHTHPC_ISOLATION=process from {ENV_FILE}");
        return Check::failure(NAME, "workloads of this node run without a sandbox", fix);
    }
    // The node's service loads the rules when it starts.
    let is_loaded = run("nft", &["list", "table", "inet", "lighthpc"]).await.is_ok();
    let runs = run("systemctl", &["is-active", "lighthpc.service"]).await.is_ok();
    if runs && !is_loaded && !is_baking {
        return Check::failure(NAME, "the node runs, but the nftables rules are not loaded", FIX);
    }
    match from_inside(sandbox.clone(), work_dir).await {
        Ok(open) if open.is_empty() => {
            let memory_mib = sandbox.memory_bytes / 1024 / 1024;
            Check::ok(
                NAME,
                format!(
                    "a workload cannot reach the role, settings or other processes; memory limit: {memory_mib} MiB"
                ),
            )
        }
        Ok(open) => Check::failure(NAME, format!("a workload can: {open}"), FIX),
        Err(said) => Check::failure(NAME, format!("the test workload failed: {said}"), FIX),
    }
}

/// Runs this program as a workload, and returns the list of forbidden actions that succeeded.
async fn from_inside(sandbox: Sandbox, work_dir: &Path) -> Result<String, String> {
    let said = |error: std::io::Error| error.to_string();
    let program = std::env::current_exe().map_err(said)?.display().to_string();
    let src = SrcId::new("~doctor").map_err(|error| error.to_string())?;
    let env = WorkloadEnv::prepare(work_dir, "~doctor", src, None, AttemptNumber(0)).map_err(said)?;
    let workload = Workload::Program(["doctor", "--inside-sandbox"].iter().fold(vec![program], |mut all, word| {
        all.push((*word).to_owned());
        all
    }));
    let bounds =
        Bounds { time_limit: Some(TRY_TIMEOUT), grace: Duration::from_secs(1), echo: false, sandbox: Some(sandbox) };
    let progress = watch::Sender::new(Progress::default());
    let ended = workload.run(&env, bounds, &progress, &Stops::default()).await;
    let output = std::fs::read_to_string(env.output());
    let log = env.log().unwrap_or_default();
    env.remove().map_err(said)?;
    match ended.map_err(said)? {
        Exit::Exited { code: Some(0), .. } => output.map_err(said),
        other => Err(format!("{other:?} {}", String::from_utf8_lossy(&log).trim().replace('\n', "; "))),
    }
}

/// Runs inside the sandbox: tries actions that a workload must not be able to do, and writes those that succeeded to
/// its output.
pub(super) fn try_out() -> Result<ExitCode, Failure> {
    let mut open = Vec::new();
    if rustix::process::geteuid().is_root() {
        open.push("run as root".to_owned());
    }
    for address in IMDS {
        let address: SocketAddr = address.parse().expect("a constant address is valid");
        if TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok() {
            open.push(format!("connect to {address}, the instance's role"));
        }
    }
    let is_aws = |(name, _): &(std::ffi::OsString, _)| name.to_string_lossy().starts_with("AWS_");
    if std::env::vars_os().any(|variable| is_aws(&variable)) {
        open.push("read AWS_* variables".to_owned());
    }
    for file in [ENV_FILE, "/etc/shadow", "/proc/1/environ"] {
        if std::fs::read(file).is_ok() {
            open.push(format!("read {file}"));
        }
    }
    if std::fs::File::create("/usr/local/bin/lighthpc-doctor").is_ok() {
        open.push("write to /usr/local/bin".to_owned());
    }
    let own = std::env::var_os("LIGHTHPC_SCRATCH").map(std::path::PathBuf::from);
    let attempts = own.as_deref().and_then(|scratch| scratch.ancestors().nth(3));
    if attempts.and_then(|folder| std::fs::read_dir(folder).ok()).is_some_and(|found| found.count() > 1) {
        open.push("see other attempts' folders".to_owned());
    }
    let Some(output) = std::env::var_os("LIGHTHPC_OUTPUT") else {
        screen::to_stdout(&format!("{}\n", open.join(", ")));
        return Ok(ExitCode::Ok);
    };
    std::fs::write(output, open.join(", ")).map_err(|error| internal("writing what could be done", error))?;
    Ok(ExitCode::Ok)
}
