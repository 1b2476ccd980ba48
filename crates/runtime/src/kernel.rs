//! What the kernel says about the machine, and names that processes hold on it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

/// A name that this process holds: a socket. The kernel releases it with the process.
pub use std::os::unix::net::UnixDatagram as HeldName;

/// A name is that of an abstract socket: all processes in one network namespace share the names, whatever their user,
/// root folder or work folder. Source: `unix(7)`.
fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// Takes a name on this machine, until the value is dropped or the process ends.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if a process holds it; or the system's.
pub fn hold_name(name: &str) -> io::Result<HeldName> {
    HeldName::bind_addr(&address(name)?)
}

/// Returns whether a living process holds a name on this machine.
#[must_use]
pub fn is_name_held(name: &str) -> bool {
    // A datagram socket does not wait: connecting succeeds if the name is bound, and fails otherwise.
    let connect = || HeldName::unbound()?.connect_addr(&address(name)?);
    connect().is_ok()
}

/// Returns the kernel's random id of this boot; empty if it is unknown. Source: `random(4)`.
#[must_use]
pub fn boot_id() -> String {
    static ID: OnceLock<String> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    ID.get_or_init(read).clone()
}

/// Returns the time since the machine's boot, by its monotonic clock. Source: `proc_uptime(5)`.
#[must_use]
pub fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}

/// Returns the name of this machine. Source: `uname(2)`.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
