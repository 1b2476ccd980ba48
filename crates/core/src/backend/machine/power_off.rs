//! Powers a machine off, if EC2 does not terminate it.

use std::time::Duration;

use tokio::process::Command;

/// The way to power off this machine if EC2 does not terminate it. An [`EndProof`] is needed as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// Runs `systemctl poweroff`, but only if IMDS has its own link-local address. A replacement for IMDS means that
    /// this is a user's computer.
    OnEc2,
    /// Runs this command line with `sh -c`.
    By(String),
    /// Never powers off: the machine is not ours.
    Never,
}

/// The time limit of a power-off. It returns at once; a minute is for a system without free memory.
const POWER_OFF_TIMEOUT: Duration = Duration::from_mins(1);

/// The error of a machine that could not be terminated.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The power-off command could not be run, or failed.
    #[error("running `{command}`: {reason}")]
    PowerOff {
        /// The command line.
        command: String,
        /// The reason.
        reason: String,
    },
}

/// Returns whether the firmware identifies an EC2 instance. On Nitro the vendor is "Amazon EC2"; on Xen the UUID starts
/// with `ec2`. Source: EC2 user guide, "Detect whether a host is an EC2 instance".
pub(super) fn is_ec2() -> bool {
    let says = |file: &str, start: &str| {
        std::fs::read_to_string(file).is_ok_and(|text| text.trim().to_ascii_lowercase().starts_with(start))
    };
    says("/sys/devices/virtual/dmi/id/sys_vendor", "amazon ec2") || says("/sys/hypervisor/uuid", "ec2")
}

/// Runs the command that powers the machine off.
///
/// # Errors
/// [`EndError`].
pub(super) async fn power_off(command: &str) -> Result<(), EndError> {
    let failed = |reason: String| EndError::PowerOff { command: command.to_owned(), reason };
    let run = Command::new("/bin/sh").arg("-c").arg(command).kill_on_drop(true).status();
    match tokio::time::timeout(POWER_OFF_TIMEOUT, run).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(status.to_string())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not finished after {POWER_OFF_TIMEOUT:?}"))),
    }
}
