//! What lighthpc uses of its machine, and what a simulation replaces: the wall clock, files, threads for the disk,
//! tasks, and what the kernel says about the machine.
//!
//! In the program these are tokio's and the standard library's own. With the feature `simulation` (`crates/simulator`),
//! all runs on one thread in virtual time: disk operations run where they are called, the wall clock follows tokio's
//! paused clock, and the tasks of a simulated machine can be frozen together.

#[cfg(not(feature = "simulation"))]
mod kernel;
#[cfg(not(feature = "simulation"))]
mod machine;
#[cfg(feature = "simulation")]
mod names;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub use kernel::{HeldName, boot_id, hold_name, host_name, is_name_held, uptime};
#[cfg(not(feature = "simulation"))]
pub use machine::{File, blocking, cores, disk, metadata, now, read, spawn, true_now, write, write_at};
#[cfg(feature = "simulation")]
pub use names::{HeldName, hold_name, is_name_held};
#[cfg(feature = "simulation")]
pub use simulated::{
    File, Machine, MachineFuture, blocking, boot_id, cores, disk, elapsed, host_name, metadata, now, on_machine, read,
    spawn, start_clock, stop_clock, true_now, uptime, write, write_at,
};
