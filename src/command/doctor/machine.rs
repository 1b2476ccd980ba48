//! What a node needs of its machine: room on the disk, the wall, the units.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::super::cli::DoctorArgs;
use super::{Check, ENV_FILE, is_provisioned, wall};
use crate::backend::store::{free_bytes, free_inodes};

/// Less than this fits no input worth a machine.
const FREE_BYTES_FAILURE: u64 = 256 * 1024 * 1024;
const FREE_BYTES_WARNING: u64 = 2 * 1024 * 1024 * 1024;
/// An attempt's own folder is 15 entries; a workload makes more.
const FREE_INODES_WARNING: u64 = 1000;
const MIB: u64 = 1024 * 1024;
/// What is run here takes a second at the most; a machine that is busy booting may take longer.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

const UNITS: [&str; 2] = ["lighthpc.service", "lighthpc-deadline.timer"];
const UNIT_FILES: [&str; 4] =
    ["lighthpc.service", "lighthpc-deadline.service", "lighthpc-deadline.timer", "lighthpc.slice"];

pub(super) async fn look(args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![disk(&args.work_dir)];
    if is_provisioned() {
        checks.push(env_file());
        checks.push(enabled(args.bake).await);
        checks.push(verified().await);
        checks.push(wall::look(&args.work_dir, args.bake).await);
    } else if args.bake {
        let mend = "run scripts/provision on it";
        checks.push(Check::failure("unit", "this machine is not provisioned: it has no lighthpc.service", mend));
    }
    checks
}

fn disk(work_dir: &Path) -> Check {
    let name = "disk";
    let there = work_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let mend = "make room, take a larger volume, or name another folder with LIGHTHPC_WORK_DIR";
    if let Ok(Some(files)) = free_inodes(there)
        && files < FREE_INODES_WARNING
    {
        return Check::warning(name, format!("room for {files} files in {} (`df -i`)", there.display()), mend);
    }
    match free_bytes(there) {
        Ok(free) => {
            let said = format!("{} MiB free in {}", free / MIB, there.display());
            match free {
                free if free < FREE_BYTES_FAILURE => Check::failure(name, said, mend),
                free if free < FREE_BYTES_WARNING => Check::warning(name, said, mend),
                _ => Check::ok(name, said),
            }
        }
        Err(error) => Check::failure(name, format!("{}: {error}", there.display()), mend),
    }
}

fn env_file() -> Check {
    let name = "settings";
    match std::fs::read_to_string(ENV_FILE) {
        Ok(file) => match super::settings_of(&file).filter(|(_, value)| !value.is_empty()).count() {
            0 => Check::ok(name, format!("{ENV_FILE} sets nothing: user data, or the mission's row, has to")),
            count => Check::ok(name, format!("{ENV_FILE} sets {count} variables")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Check::warning(name, format!("{ENV_FILE} may not be read"), "run this as root, as the node does")
        }
        Err(error) => Check::warning(name, format!("{ENV_FILE}: {error}"), "run scripts/provision again"),
    }
}

async fn enabled(is_baking: bool) -> Check {
    let name = "unit";
    let mend = "systemctl enable --now lighthpc-deadline.timer; systemctl enable lighthpc.service";
    for unit in UNITS {
        match run("systemctl", &["is-enabled", unit]).await {
            Ok(said) if said.trim() == "enabled" => {}
            Ok(said) | Err(said) => {
                return Check::failure(name, format!("{unit} is not enabled: {}", said.trim()), mend);
            }
        }
    }
    // On a machine that is baked nothing is started yet, and in a chroot nothing can be.
    if !is_baking && let Err(said) = run("systemctl", &["is-active", UNITS[1]]).await {
        return Check::failure(name, format!("{} is not active: {}", UNITS[1], said.trim()), mend);
    }
    Check::ok(name, format!("{} enabled", UNITS.join(" and ")))
}

/// `systemd-analyze verify` says what it dislikes on standard error, and ends with 0 for an unknown key.
async fn verified() -> Check {
    let name = "unit files";
    let mend = "run scripts/provision again; an override is in /etc/systemd/system/lighthpc*.d";
    let files: Vec<String> = UNIT_FILES.iter().map(|unit| format!("/etc/systemd/system/{unit}")).collect();
    let mut arguments = vec!["verify", "--man=no"];
    arguments.extend(files.iter().map(String::as_str));
    match ask("systemd-analyze", &arguments).await {
        Ok((_, said)) => {
            // It speaks of every unit that ours refer to; those are the system's.
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("lighthpc")).collect();
            if ours.is_empty() {
                Check::ok(name, "systemd-analyze verify has nothing to say of them")
            } else {
                Check::failure(name, ours.join("; "), mend)
            }
        }
        Err(why) => Check::warning(name, format!("not looked at: {why}"), "systemd-analyze is a part of systemd"),
    }
}

/// Runs a program of the system, and returns all it said; as an error if it failed.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let (is_success, said) = ask(program, arguments).await?;
    if is_success { Ok(said) } else { Err(said) }
}

/// Runs a program of the system, and returns whether it succeeded, and all it said; an error says why it could not be run.
async fn ask(program: &str, arguments: &[&str]) -> Result<(bool, String), String> {
    let command = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(COMMAND_TIMEOUT, command).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Err(_) => return Err(format!("{program} did not end within {COMMAND_TIMEOUT:?}")),
    };
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_is_told_from_one_that_cannot_be_run() {
        assert_eq!(ask("sh", &["-c", "echo a; echo b >&2; exit 3"]).await, Ok((false, "a\nb\n".to_owned())));
        assert_eq!(run("sh", &["-c", "echo a; exit 3"]).await, Err("a\n".to_owned()));
        assert_eq!(run("sh", &["-c", "echo a"]).await, Ok("a\n".to_owned()));
        assert!(ask("no-such-program", &[]).await.is_err_and(|why| why.starts_with("no-such-program: ")));
    }
}
