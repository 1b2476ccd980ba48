//! One task per input file on EC2 Spot instances: nothing lost, nothing counted twice, nothing left running.
//!
//! The floors, each of which imports only from floors below it (`scripts/check-floors`):
//! `command → scheduler → worker → {workload, backend} → domain`; `command` alone uses the crate `local-cloud`.

pub mod backend;
pub mod clock;
pub mod command;
pub mod domain;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod lambda;
pub mod logging;
pub mod render;
pub mod scheduler;
pub mod worker;
pub mod workload;

#[cfg(test)]
#[path = "../tests/it/names.rs"]
mod hostile_names;
