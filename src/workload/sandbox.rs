//! The sandbox of a workload: a transient systemd unit with its own user.
//!
//! ```text
//!   systemd-run --wait ──► lighthpc-task-<mark>.service ──► exit 0 ──► the unit is gone, and its cgroup with it
//!        (our child)            in lighthpc.slice           └─ else ──► failed, until its state was read and reset
//! ```
//!
//! In it there is no instance role (nftables and `IPAddressDeny`), no other process, and of the work folder only the
//! attempt's own part. The kernel limits its resources: it runs out of memory and of processes long before the node
//! does. All its processes are in its cgroup, and are killed with it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::Command;

use super::env::{WorkloadEnv, is_withheld};
use super::unit_properties::{BOUND, Devices, PROPERTIES, name_servers};

/// The system user of workloads in the first slot, which `scripts/provision` creates. The other slots have
/// `lighthpc-task-1` and so on, so that tasks of one node cannot read each other's files or signal each other's
/// processes.
const USER: &str = "lighthpc-task";
/// The maximum number of users that are searched; `scripts/provision` creates 256, more than an instance has cores for
/// tasks.
const USERS_MAX: u16 = 1024;
/// The slice of all workloads.
const SLICE: &str = "lighthpc.slice";

/// Returns the folder of a unit's cgroup.
pub(super) fn cgroup(unit: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(SLICE).join(unit)
}

/// The memory that workloads do not get, for the kernel, systemd, and the node: 256 MiB and 2 % of the machine's
/// memory. A minimal system with the node needs about 150 MiB, and the kernel's share grows with the machine.
const RESERVE_BYTES: u64 = 256 * 1024 * 1024;
const RESERVE_DIVISOR: u64 = 50;
/// The minimum memory of a workload on any machine.
const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// The settings of a workload's unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The users of the slots: user id and group id.
    users: Vec<(u32, u32)>,
    /// The slot of this sandbox's workloads.
    slot: u16,
    /// The memory limit of one workload, in bytes.
    pub memory_bytes: u64,
    /// Whether this process is `lighthpc.service`. The workload must not outlive it.
    pub is_bound: bool,
    /// The devices that workloads may use.
    pub devices: Devices,
}

impl Sandbox {
    /// Creates the sandbox of this machine: with the provisioned users, and all memory for workloads.
    ///
    /// # Errors
    /// The system's error; `NotFound` if the user does not exist.
    pub fn of_this_machine(devices: Devices) -> io::Result<Self> {
        let users = users_of(&std::fs::read_to_string("/etc/passwd")?);
        if users.is_empty() {
            let text = format!("the user {USER} does not exist: this machine is not provisioned");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let total = total_bytes(&memory).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
        let is_bound =
            std::fs::read_to_string("/proc/self/cgroup").is_ok_and(|groups| groups.contains("/lighthpc.service"));
        Ok(Self { users, slot: 0, memory_bytes: share(total), is_bound, devices })
    }

    /// Returns the workload's user and group.
    #[must_use]
    pub fn user(&self) -> (u32, u32) {
        self.users[usize::from(self.slot) % self.users.len()]
    }

    /// Returns the maximum number of parallel workloads, each with its own user.
    #[must_use]
    pub fn slots_max(&self) -> u16 {
        u16::try_from(self.users.len()).unwrap_or(u16::MAX)
    }

    /// Returns the sandbox of each of `slots` parallel workloads.
    #[must_use]
    pub fn shared(&self, slots: u16) -> Self {
        let memory_bytes = (self.memory_bytes / u64::from(slots.max(1))).max(MEMORY_BYTES_MIN);
        Self { memory_bytes, ..self.clone() }
    }

    /// Returns the sandbox of one slot. Below [`Self::slots_max`], no other slot has its user.
    #[must_use]
    pub fn of_slot(&self, slot: u16) -> Self {
        Self { slot, ..self.clone() }
    }

    /// Returns the properties of an attempt's unit, for `systemd-run -p`.
    fn properties(&self, env: &WorkloadEnv) -> Vec<String> {
        let mut all: Vec<String> = PROPERTIES
            .iter()
            .chain(if self.is_bound { BOUND } else { &[] })
            .map(|&property| property.to_owned())
            .collect();
        let (uid, gid) = self.user();
        all.extend([format!("User={uid}"), format!("Group={gid}"), format!("MemoryMax={}", self.memory_bytes)]);
        // Only the attempt's part of the work folder is visible.
        if let Some(work_dir) = env.folder().parent() {
            all.push(format!("TemporaryFileSystem={}:ro", work_dir.display()));
        }
        // Its temporary files are on the work folder's disk, and are removed with the attempt.
        let (workspace, temporary) = (env.workspace(), env.temporary());
        let (workspace, temporary) = (workspace.display(), temporary.display());
        all.push(format!("BindPaths={workspace} {temporary}:/tmp {temporary}:/var/tmp"));
        all.push(format!("WorkingDirectory={}", env.scratch().display()));
        all.extend(name_servers());
        all.extend(self.devices.properties());
        all
    }

    /// Returns the command that runs a program in the sandbox and exits with it, and the unit's name.
    pub(super) fn command(&self, argv: &[OsString], env: &WorkloadEnv) -> io::Result<(Command, String)> {
        let (program, arguments) =
            argv.split_first().ok_or_else(|| io::Error::other("the command line has no program"))?;
        let unit = format!("lighthpc-task-{}.service", env.mark());
        let mut command = Command::new("systemd-run");
        command.args(["--wait", "--pipe", "--quiet"]).arg(format!("--unit={unit}")).arg(format!("--slice={SLICE}"));
        for property in self.properties(env) {
            command.arg("-p").arg(property);
        }
        for (name, value) in variables(env) {
            // By name only, because every user can read a value on a command line.
            command.arg("--setenv").arg(&name).env(name, value);
        }
        // systemd replaces `$` variables, even if the program is a shell with variables of its own.
        command.arg("--").arg(program).args(arguments.iter().map(|argument| without_variables(argument)));
        Ok((command, unit))
    }
}

/// Returns an argument in which systemd finds no variable: `$$` stands for `$`.
fn without_variables(argument: &OsStr) -> OsString {
    let doubled = |byte: &u8| std::iter::repeat_n(*byte, if *byte == b'$' { 2 } else { 1 });
    OsString::from_vec(argument.as_bytes().iter().flat_map(doubled).collect())
}

/// Returns the node's environment as far as workloads may have it, the workload's variables, and a home folder.
fn variables(env: &WorkloadEnv) -> Vec<(OsString, OsString)> {
    let is_of_user = |name: &OsStr| ["HOME", "USER", "LOGNAME", "SHELL"].iter().any(|of_user| name == *of_user);
    let is_passed = |name: &OsString| !is_withheld(&name.to_string_lossy()) && !is_of_user(name);
    let inherited = std::env::vars_os().filter(|(name, _)| is_passed(name));
    let contract_s = env.variables().into_iter().map(|(name, value)| (OsString::from(name), value));
    let home = ("HOME".into(), env.scratch().into());
    inherited.chain(contract_s).chain([home]).collect()
}

/// Returns the users of the slots, in order, up to the first missing one.
fn users_of(users: &str) -> Vec<(u32, u32)> {
    let name = |slot: u16| if slot == 0 { USER.to_owned() } else { format!("{USER}-{slot}") };
    (0..USERS_MAX).map_while(|slot| ids_of(&name(slot), users)).collect()
}

fn ids_of(user: &str, users: &str) -> Option<(u32, u32)> {
    let mut fields = users.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':'))?.split(':').skip(1);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let kib: u64 =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))?.parse().ok()?;
    Some(kib * 1024)
}

const fn share(total: u64) -> u64 {
    let rest = total.saturating_sub(RESERVE_BYTES + total / RESERVE_DIVISOR);
    if rest < total / 2 { total / 2 } else { rest }
}

/// Sends a signal to all processes of the unit. A missing unit, which has finished or is still being created, is not an
/// error.
pub(super) async fn signal(unit: &str, signal: Signal) {
    let number = signal.as_raw();
    systemctl(&["kill", &format!("--signal={number}"), unit]).await;
}

/// The end of a unit, as systemd reports it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UnitEnd {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// The kernel killed it because memory ran out.
    OutOfMemory,
    /// systemd could not run the program: 203 of `systemd.exec(5)`, "Process Exit Codes".
    NotExecuted,
    /// systemd could not create its sandbox.
    NotMade(String),
}

/// The state of a unit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UnitState {
    /// It is being created, runs, or is being stopped.
    Running,
    /// It failed; systemd keeps it until it is reset.
    Failed(UnitEnd),
    /// It does not exist: it exited with 0 and was removed, or was never created.
    Gone,
    /// systemd does not answer.
    Unknown,
}

/// Reads the state of a unit from systemd. This queues no job: while the node is being stopped, a job would wait for
/// the node.
pub(super) async fn state(unit: &str) -> UnitState {
    read_state(&systemctl(&["show", "--property=LoadState,ActiveState,Result,ExecMainCode,ExecMainStatus", unit]).await)
}

/// Resets a failed unit, so that systemd removes it.
pub(super) async fn forget(unit: &str) {
    systemctl(&["reset-failed", unit]).await;
}

/// The value of `ExecMainCode` for an exit: `CLD_EXITED` of `waitid(2)`. 2 and 3 are signals. 0 means that the program
/// was never started, because `ExecStartPre=` tests the sandbox before.
const EXITED: &str = "1";
const EXEC_FAILED: i32 = 203;

fn read_state(shown: &str) -> UnitState {
    let field = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let status: i32 = field("ExecMainStatus").and_then(|status| status.parse().ok()).unwrap_or(0);
    match (field("LoadState"), field("ActiveState")) {
        (None, _) | (_, None) => UnitState::Unknown,
        (Some("loaded"), Some("failed")) => UnitState::Failed(match (field("Result"), field("ExecMainCode")) {
            (Some("oom-kill"), _) => UnitEnd::OutOfMemory,
            (_, Some(EXITED)) if status == EXEC_FAILED => UnitEnd::NotExecuted,
            (Some("exit-code"), Some(EXITED)) => UnitEnd::Code(status),
            (_, Some("2" | "3")) => UnitEnd::Signal(status),
            (result, _) => UnitEnd::NotMade(format!(
                "systemd could not create the workload's unit ({}); see the journal for the reason",
                result.unwrap_or("no result")
            )),
        }),
        (_, Some("inactive")) => UnitState::Gone,
        _ => UnitState::Running,
    }
}

/// Checks that systemd can find a program: a path, or a name in `PATH`.
pub(super) fn check_program(program: &OsStr) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let is_program =
        |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if program.as_bytes().contains(&b'/') {
        let path = Path::new(program);
        path.metadata()?;
        return if is_program(path) { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let found = std::env::split_paths(&path).any(|folder| is_program(&folder.join(program)));
    if found { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Runs `systemctl` and returns its output. An error shows in the next query.
async fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(SYSTEMCTL_TIMEOUT, output).await {
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(Err(error)) => {
            tracing::warn!("systemctl {}: {error}", arguments.join(" "));
            String::new()
        }
        Err(_) => {
            tracing::warn!("systemctl {} did not answer within {SYSTEMCTL_TIMEOUT:?}", arguments.join(" "));
            String::new()
        }
    }
}

/// The time limit of systemctl. It takes tens of milliseconds, and may take seconds on an overloaded machine.
const SYSTEMCTL_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_state_is_read_as_systemd_says_it() {
        let of = |load: &str, active: &str, result: &str, code: u8, status: u8| {
            read_state(&format!(
                "Result={result}\nExecMainCode={code}\nExecMainStatus={status}\nLoadState={load}\nActiveState={active}\n"
            ))
        };
        let failed = |result, code, status| of("loaded", "failed", result, code, status);
        assert_eq!(failed("exit-code", 1, 3), UnitState::Failed(UnitEnd::Code(3)));
        assert_eq!(failed("exit-code", 1, 226), UnitState::Failed(UnitEnd::Code(226)), "the workload's own");
        assert_eq!(failed("signal", 2, 15), UnitState::Failed(UnitEnd::Signal(15)));
        assert_eq!(failed("core-dump", 3, 11), UnitState::Failed(UnitEnd::Signal(11)));
        assert_eq!(failed("oom-kill", 2, 9), UnitState::Failed(UnitEnd::OutOfMemory));
        assert_eq!(failed("exit-code", 1, 203), UnitState::Failed(UnitEnd::NotExecuted));
        assert!(matches!(failed("exit-code", 0, 0), UnitState::Failed(UnitEnd::NotMade(_))), "its surroundings");
        assert!(matches!(failed("resources", 0, 0), UnitState::Failed(UnitEnd::NotMade(_))));
        // A unit that runs has the result of one that went well.
        for active in ["activating", "active", "deactivating"] {
            assert_eq!(of("loaded", active, "success", 0, 0), UnitState::Running);
        }
        assert_eq!(of("not-found", "inactive", "success", 0, 0), UnitState::Gone);
        assert_eq!(of("loaded", "inactive", "success", 1, 0), UnitState::Gone);
        assert_eq!(read_state(""), UnitState::Unknown);
    }

    #[test]
    fn a_program_is_found_as_systemd_finds_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("program");
        std::fs::write(&file, "").unwrap();
        let kind = |program: &str| check_program(OsStr::new(program)).map_err(|error| error.kind());

        assert_eq!(kind("sh"), Ok(()));
        assert_eq!(kind("no-such-program"), Err(io::ErrorKind::NotFound));
        assert_eq!(kind("/no/such/program"), Err(io::ErrorKind::NotFound));
        assert_eq!(kind(dir.path().to_str().unwrap()), Err(io::ErrorKind::PermissionDenied), "a folder");
        assert_eq!(kind(file.to_str().unwrap()), Err(io::ErrorKind::PermissionDenied), "not executable");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(kind(file.to_str().unwrap()), Ok(()));
    }

    #[test]
    fn a_reserve_is_kept_from_the_workload() {
        let gib = 1024 * 1024 * 1024;
        assert_eq!(share(gib), gib - gib / 50 - RESERVE_BYTES);
        assert_eq!(share(400 * 1024 * 1024), 200 * 1024 * 1024);
        assert_eq!(total_bytes("MemTotal:        1000 kB\nMemFree: 3 kB\n"), Some(1_024_000));
        let sandbox = Sandbox { memory_bytes: 4 * gib, ..sandbox(1) };
        assert_eq!(sandbox.shared(4).memory_bytes, gib);
        assert_eq!(sandbox.shared(1000).memory_bytes, MEMORY_BYTES_MIN);
    }

    fn sandbox(users: u32) -> Sandbox {
        let users = (0..users).map(|n| (60_600 + n, 990)).collect();
        Sandbox { users, slot: 0, memory_bytes: 1 << 30, is_bound: true, devices: Devices::default() }
    }

    #[test]
    fn the_workloads_users_are_found_by_their_whole_names() {
        let users = "root:x:0:0::/:/bin/sh\nlighthpc-tasks:x:7:7::/:\nlighthpc-task:x:990:985::/:/usr/sbin/nologin\n\
                     lighthpc-task-2:x:602:985::/:\nlighthpc-task-1:x:601:985::/:\nlighthpc-task-4:x:604:985::/:\n";
        assert_eq!(users_of(users), [(990, 985), (601, 985), (602, 985)]);
        assert_eq!(users_of("nobody:x:1:1::/:\n"), []);
    }

    #[test]
    fn no_two_slots_have_one_user() {
        let sandbox = sandbox(4).shared(4);
        let users: std::collections::BTreeSet<_> =
            (0..sandbox.slots_max()).map(|slot| sandbox.of_slot(slot).user()).collect();
        assert_eq!(users.len(), 4);
    }

    /// What the score of 2.5 or less leaves is listed in `docs/SEMANTICS.md`, each with its reason.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn the_units_exposure_is_at_most_2_5() {
        let dir = tempfile::tempdir().unwrap();
        let src = crate::domain::ids::SrcId::new("a").unwrap();
        let env = WorkloadEnv::prepare(dir.path(), "t", src, None, crate::domain::ids::AttemptNumber(1)).unwrap();
        for devices in ["none", "/dev/null,/dev/zero"] {
            let properties = Sandbox { devices: devices.parse().unwrap(), ..sandbox(1) }.properties(&env);
            let (of_unit, of_service): (Vec<_>, Vec<_>) =
                properties.into_iter().partition(|property| BOUND.contains(&property.as_str()));
            let text = format!(
                "[Unit]\n{}\n[Service]\nExecStart=/bin/true\n{}\n",
                of_unit.join("\n"),
                of_service.join("\n").replace("CollectMode=inactive\n", "")
            );
            let file = dir.path().join("lighthpc-task-test.service");
            std::fs::write(&file, text).unwrap();
            let arguments = ["security", "--offline=true", "--threshold=25", "--no-pager"];
            let analyzed = std::process::Command::new("systemd-analyze").args(arguments).arg(&file).output();
            let Ok(output) = analyzed else { return eprintln!("skipped: there is no systemd-analyze here") };
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{said}");
            assert!(!said.contains("gnoring") && !said.contains("Unknown"), "{said}");
        }
    }
}
