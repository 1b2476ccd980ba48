//! The slots of the processes on one instance: who may use the instance's id as its own name, and whether another
//! process still needs the machine.

use std::io;
use std::sync::PoisonError;
use std::time::Duration;

use lighthpc_runtime::{hold_name, is_name_held};

use super::client::Machine;

/// The maximum number of processes on one machine that have a slot; others have none. The check of a slot is one system
/// call.
const PLACES: u32 = 16;

/// Returns the name of a slot, which a process holds on the machine.
fn place(instance: &str, number: u32) -> String {
    format!("lighthpc/{instance}/{number}")
}

/// Returns whether a living process holds a slot on this instance.
#[must_use]
pub fn has_process(instance: &str) -> bool {
    (0..PLACES).any(|number| is_name_held(&place(instance, number)))
}

/// The number of checks of a taken slot, and the pause between them. A child that was just forked holds a copy of its
/// parent's sockets for some milliseconds, until it executes its program.
pub(super) const PLACE_LOOKS: u32 = 10;
const PLACE_PAUSE: Duration = Duration::from_millis(20);

/// Returns whether a process holds a slot on this instance in all of the checks.
pub(super) async fn has_process_for(instance: &str, looks: u32) -> bool {
    for look in 0..looks {
        if look > 0 {
            tokio::time::sleep(PLACE_PAUSE).await;
        }
        if !has_process(instance) {
            return false;
        }
    }
    true
}

impl Machine {
    /// Takes a slot among the processes of this instance, until the machine is terminated. Returns whether it is the
    /// first slot. At most one living process has it, and may use the instance's id as its own name. With
    /// `may_be_first`, this process tries to get it.
    pub fn take_place(&self, instance: &str, may_be_first: bool) -> bool {
        for number in u32::from(!may_be_first)..PLACES {
            match hold_name(&place(instance, number)) {
                Ok(name) => {
                    *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
                    return number == 0;
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    tracing::warn!("taking a process slot on instance {instance} failed: {error}");
                    return false;
                }
            }
        }
        false
    }
}
