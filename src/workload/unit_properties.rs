//! The properties of a workload's unit that do not depend on the attempt, and the devices.
//!
//! `docs/SEMANTICS.md` explains each of them, and the remaining gaps. An image can add exceptions in a drop-in:
//! `/etc/systemd/system/lighthpc-task-.service.d/*.conf` applies to every workload's unit.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The properties of every workload's unit.
pub(super) const PROPERTIES: &[&str] = &[
    // With this type, a signal is never a success, so that an incomplete result is never taken for a complete one.
    "Type=oneshot",
    "CollectMode=inactive",
    // Tests the sandbox before the program starts. Then an exit code from 200 to 245 is the program's, and not
    // systemd's.
    "ExecStartPre=/bin/true",
    // The node sends SIGTERM itself. When systemd stops the unit, the grace is over.
    "KillSignal=SIGKILL",
    "OOMPolicy=kill",
    "OOMScoreAdjust=500",
    "MemorySwapMax=0",
    "TasksMax=25%",
    "LimitCORE=0",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    // Netlink: programs list network interfaces with it (getaddrinfo, MPI, RDMA).
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "LockPersonality=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "ProtectProc=invisible",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelLogs=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "PrivateIPC=yes",
    "PrivateMounts=yes",
    // /dev contains null, zero, full, random, urandom, tty, ptmx, and the devices that are bound into it.
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "KeyringMode=private",
    "RemoveIPC=yes",
    // /run contains only what is bound back: no socket of systemd, D-Bus, the journal, or another daemon.
    "TemporaryFileSystem=/dev/shm:mode=1777 /run:ro,mode=0755",
    "InaccessiblePaths=-/etc/lighthpc -/var/lib/cloud",
    "UMask=0077",
    // The second protection of the role. nftables is the first, and refuses at once.
    "IPAddressDeny=169.254.169.254 169.254.170.2 169.254.170.23 fd00:ec2::254 fd00:ec2::23",
    "SystemCallArchitectures=native",
    // In addition to a service's calls: those of debuggers and profilers, which reach only the workload's own
    // processes, memory protection keys (V8), and a program's own sandbox. Without io_uring and the kernel's keyrings:
    // programs have alternatives, and both have had many vulnerabilities.
    "SystemCallFilter=@system-service @pkey ptrace perf_event_open process_madvise seccomp landlock_create_ruleset \
     landlock_add_rule landlock_restrict_self",
    "SystemCallFilter=~@keyring io_uring_setup io_uring_enter io_uring_register",
    // A program that tries a call and continues without it also does so here.
    "SystemCallErrorNumber=EPERM",
];

/// The dependency of a workload on the node's service: it stops with it, and at power-off the node stops first and
/// releases its task.
pub(super) const BOUND: &[&str] = &["BindsTo=lighthpc.service", "Before=lighthpc.service"];

/// The default devices of workloads: GPUs of NVIDIA and AMD, AWS accelerators, and the network adapters for MPI. A
/// machine has few or none of them.
pub const DEVICES_DEFAULT: &str = "/dev/nvidia*,/dev/dri,/dev/kfd,/dev/neuron*,/dev/infiniband";
/// The maximum number of device nodes of one unit: a machine with 16 GPUs and 32 adapters has about 100.
const NODES_MAX: usize = 512;

/// The devices that workloads may use: paths below `/dev` of devices or folders of devices. A `*` at the end stands for
/// any rest of the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices(Vec<String>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "none");
        let check = |name: &str| {
            let below = name.strip_prefix("/dev/").unwrap_or_default();
            let stem = below.strip_suffix('*').unwrap_or(below);
            let is_named = stem.split('/').all(|part| !matches!(part, "" | "." | ".."));
            if is_named && stem.bytes().all(is_plain) {
                return Ok(name.to_owned());
            }
            Err(format!("{name:?} is not a device: use a path below /dev, such as /dev/dri or /dev/nvidia*, or none"))
        };
        names.map(check).collect::<Result<_, _>>().map(Self)
    }
}

/// Returns whether a character of a device's name has no special meaning for systemd.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'_' | b'-' | b'.')
}

impl Devices {
    /// Returns the properties that give a unit the currently existing devices.
    pub(super) fn properties(&self) -> Vec<String> {
        let (mut places, mut nodes) = (Vec::new(), Vec::new());
        for place in self.0.iter().flat_map(|name| places_of(name)) {
            let inside = std::fs::read_dir(&place).into_iter().flatten().filter_map(Result::ok);
            let found: Vec<PathBuf> =
                inside.map(|entry| entry.path()).chain([place.clone()]).filter(|path| is_node(path)).collect();
            if !found.is_empty() {
                places.push(format!("BindPaths={}", place.display()));
                nodes.extend(found.iter().map(|node| format!("DeviceAllow={} rw", node.display())));
            }
        }
        nodes.truncate(NODES_MAX);
        places.extend(nodes);
        places
    }
}

/// Returns the existing paths for a name or a pattern.
fn places_of(name: &str) -> Vec<PathBuf> {
    let Some(stem) = name.strip_suffix('*') else { return vec![PathBuf::from(name)] };
    let (folder, start) = stem.rsplit_once('/').unwrap_or_default();
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let is_meant =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(start));
    let mut places: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_meant).collect();
    places.sort();
    places
}

/// Returns whether a path is a device, and not a link to one.
fn is_node(path: &Path) -> bool {
    let is_device = |meta: std::fs::Metadata| meta.file_type().is_char_device() || meta.file_type().is_block_device();
    path.to_str().is_some_and(|path| path.bytes().all(is_plain)) && path.symlink_metadata().is_ok_and(is_device)
}

/// Returns the property that binds the file of name servers back if `/etc/resolv.conf` is a link into `/run`, which is
/// replaced.
pub(super) fn name_servers() -> Option<String> {
    let file = Path::new("/etc/resolv.conf").canonicalize().ok()?;
    let is_plain = file.to_str().is_some_and(|path| path.bytes().all(is_plain));
    (is_plain && file.starts_with("/run")).then(|| format!("BindReadOnlyPaths=-{}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_paths_below_dev() {
        for good in
            ["none", "", "/dev/nvidia*,/dev/dri", " /dev/kfd , ", DEVICES_DEFAULT, "/dev/nvidia-caps/nvidia-cap1"]
        {
            assert!(good.parse::<Devices>().is_ok(), "{good}");
        }
        for bad in [
            "/dev/*",
            "/dev",
            "/dev/",
            "dri",
            "/etc/shadow",
            "/dev/../etc/shadow",
            "/dev/a*b",
            "/dev/a b",
            "/dev/a:b",
            "/dev/%n",
            "/dev//x",
            "/dev/a\n/dev/b",
            "/dev/./*",
        ] {
            assert!(bad.parse::<Devices>().is_err(), "{bad}");
        }
        assert_eq!("none".parse::<Devices>().unwrap().properties(), Vec::<String>::new());
    }

    #[test]
    fn a_unit_gets_the_devices_that_are_there() {
        let devices: Devices = "/dev/nul*,/dev/null,/dev/no-such-device,/dev/fd".parse().unwrap();
        let properties = devices.properties();
        assert_eq!(properties.iter().filter(|property| *property == "BindPaths=/dev/null").count(), 2);
        assert!(properties.contains(&"DeviceAllow=/dev/null rw".to_owned()), "{properties:?}");
        assert!(!properties.iter().any(|property| property.contains("no-such") || property.contains("/dev/fd")));
    }
}
