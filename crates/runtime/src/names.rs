//! The names that simulated processes hold.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::simulated::boot_id;

/// Each name, after the boot of its machine.
static HELD: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<(String, String)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that a simulated process holds.
#[derive(Debug)]
pub struct HeldName {
    name: (String, String),
}

impl Drop for HeldName {
    fn drop(&mut self) {
        held().remove(&self.name);
    }
}

/// Takes a name on the machine whose task runs, until the value is dropped.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if it is held.
pub fn hold_name(name: &str) -> io::Result<HeldName> {
    let name = (boot_id(), name.to_owned());
    if held().insert(name.clone()) { Ok(HeldName { name }) } else { Err(io::ErrorKind::AddrInUse.into()) }
}

/// Returns whether a name is held on the machine whose task runs.
#[must_use]
pub fn is_name_held(name: &str) -> bool {
    held().contains(&(boot_id(), name.to_owned()))
}
