//! The checks of the machine: disk space, the sandbox, the systemd units.

use std::path::Path;

use super::super::cli::DoctorArgs;
use super::check::{Check, ENV_FILE, ask, is_provisioned, run, settings_of};
use super::sandbox;
use crate::backend::store::{free_bytes, free_inodes};

/// Less free space than this is a failure.
const FREE_BYTES_FAILURE: u64 = 256 * 1024 * 1024;
const FREE_BYTES_WARNING: u64 = 2 * 1024 * 1024 * 1024;
/// Fewer free inodes than this is a warning. An attempt's folder has 15 entries; a workload creates more.
const FREE_INODES_WARNING: u64 = 1000;
const MIB: u64 = 1024 * 1024;
const UNITS: [&str; 2] = ["lighthpc.service", "lighthpc-deadline.timer"];
const UNIT_FILES: [&str; 4] =
    ["lighthpc.service", "lighthpc-deadline.service", "lighthpc-deadline.timer", "lighthpc.slice"];

pub(super) async fn look(args: &DoctorArgs) -> Vec<Check> {
    let mut checks = vec![disk(&args.work_dir)];
    if is_provisioned() {
        checks.push(env_file());
        checks.push(enabled(args.bake).await);
        checks.push(verified().await);
        checks.push(sandbox::look(&args.work_dir, args.bake).await);
    } else if args.bake {
        let fix = "run scripts/provision on it";
        checks.push(Check::failure("unit", "this machine is not provisioned: lighthpc.service is missing", fix));
    }
    checks
}

fn disk(work_dir: &Path) -> Check {
    let name = "disk";
    let there = work_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let fix = "free space, use a larger volume, or set another folder with LIGHTHPC_WORK_DIR";
    if let Ok(Some(files)) = free_inodes(there)
        && files < FREE_INODES_WARNING
    {
        return Check::warning(name, format!("{files} free inodes in {} (`df -i`)", there.display()), fix);
    }
    match free_bytes(there) {
        Ok(free) => {
            let said = format!("{} MiB free in {}", free / MIB, there.display());
            match free {
                free if free < FREE_BYTES_FAILURE => Check::failure(name, said, fix),
                free if free < FREE_BYTES_WARNING => Check::warning(name, said, fix),
                _ => Check::ok(name, said),
            }
        }
        Err(error) => Check::failure(name, format!("{}: {error}", there.display()), fix),
    }
}

fn env_file() -> Check {
    let name = "settings";
    match std::fs::read_to_string(ENV_FILE) {
        Ok(file) => match settings_of(&file).filter(|(_, value)| !value.is_empty()).count() {
            0 => Check::ok(
                name,
                format!("{ENV_FILE} sets nothing; the user data or the mission's row must set the node's variables"),
            ),
            count => Check::ok(name, format!("{ENV_FILE} sets {count} variables")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::warning(
            name,
            format!("{ENV_FILE} cannot be read: permission denied"),
            "run doctor as root; the node also runs as root",
        ),
        Err(error) => Check::warning(name, format!("{ENV_FILE}: {error}"), "run scripts/provision again"),
    }
}

async fn enabled(is_baking: bool) -> Check {
    let name = "unit";
    let fix = "systemctl enable --now lighthpc-deadline.timer; systemctl enable lighthpc.service";
    for unit in UNITS {
        match run("systemctl", &["is-enabled", unit]).await {
            Ok(said) if said.trim() == "enabled" => {}
            Ok(said) | Err(said) => {
                return Check::failure(name, format!("{unit} is not enabled: {}", said.trim()), fix);
            }
        }
    }
    // While an image is built, the timer is not started yet; in a chroot, it cannot be.
    if !is_baking && let Err(said) = run("systemctl", &["is-active", UNITS[1]]).await {
        return Check::failure(name, format!("{} is not active: {}", UNITS[1], said.trim()), fix);
    }
    Check::ok(name, format!("{} enabled", UNITS.join(" and ")))
}

/// Checks the unit files. `systemd-analyze verify` reports problems on standard error, and exits with 0 for an unknown
/// key.
async fn verified() -> Check {
    let name = "unit files";
    let fix = "run scripts/provision again; an override is in /etc/systemd/system/lighthpc*.d";
    let files: Vec<String> = UNIT_FILES.iter().map(|unit| format!("/etc/systemd/system/{unit}")).collect();
    let mut arguments = vec!["verify", "--man=no"];
    arguments.extend(files.iter().map(String::as_str));
    match ask("systemd-analyze", &arguments).await {
        Ok((_, said)) => {
            // It also reports problems of other units that ours refer to; those belong to the system.
            let ours: Vec<&str> = said.lines().filter(|line| line.contains("lighthpc")).collect();
            if ours.is_empty() {
                Check::ok(name, "systemd-analyze verify reports no problems")
            } else {
                Check::failure(name, ours.join("; "), fix)
            }
        }
        Err(why) => {
            Check::warning(name, format!("not checked: {why}"), "install systemd-analyze, which is a part of systemd")
        }
    }
}
