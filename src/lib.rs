//! Runs one task per input file on EC2 Spot instances: no task is lost, none is counted twice, no instance is left
//! running.
//!
//! Layers; each imports only from the layers below it (`scripts/check-floors`): `{command, lambda} → scheduler → worker
//! → {workload, backend} → domain`. The crate `lighthpc-core` has the lowest, and only `command` uses the crate
//! `local-cloud`.

pub use lighthpc_core::{backend, clock, domain};

pub mod command;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod lambda;
pub mod logging;
pub mod render;
pub mod report;
pub mod scheduler;
pub mod summary;
pub mod worker;
pub mod workload;

#[cfg(test)]
#[path = "../tests/it/names.rs"]
mod hostile_names;
