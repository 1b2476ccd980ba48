//! What lighthpc uses of its machine, and what a simulation replaces: the wall clock, files, threads for the disk, and
//! tasks.
//!
//! In the program these are tokio's and the standard library's own. With the feature `simulation` (`crates/simulator`),
//! all runs on one thread in virtual time: disk operations run where they are called, the wall clock follows tokio's
//! paused clock, and the tasks of a simulated machine can be frozen together.

#[cfg(not(feature = "simulation"))]
mod machine;
#[cfg(feature = "simulation")]
mod simulated;

#[cfg(not(feature = "simulation"))]
pub use machine::{File, blocking, disk, metadata, now, read, spawn, true_now, write};
#[cfg(feature = "simulation")]
pub use simulated::{
    File, Machine, MachineFuture, blocking, disk, elapsed, metadata, now, on_machine, read, spawn, start_clock,
    stop_clock, true_now, write,
};
