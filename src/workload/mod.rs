//! The workload: the program of a task, behind one small interface.
//!
//! ```text
//!            ┌── exits ─────────────────────────────► Exit::Exited
//!   start ───┼── time limit ── SIGTERM, grace, SIGKILL ──► Exit::TimedOut
//!            └── stop token ── SIGTERM, grace, SIGKILL ──► Exit::Stopped
//! ```
//!
//! This layer uses files, processes, and progress lines only, and no AWS service. The worker writes the progress to the
//! ledger.

mod abandoned;
mod children;
mod env;
mod external;
mod folder;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod ground;
mod groups;
mod log;
mod machine;
mod memory;
mod orphans;
mod peak;
mod processes;
mod progress_file;
mod remover;
mod run;
mod sandbox;
#[cfg(feature = "simulation")]
mod scripted;
mod simulated;
pub mod tree;
mod unit_properties;
pub mod walk;

pub use abandoned::{Left, Removal};
pub use children::adopt_orphans;
pub use env::WorkloadEnv;
pub use ground::{GroundError, objection_to_mission};
pub use machine::{is_limit, is_of_machine, raise_descriptors};
pub use orphans::{WorkLock, lock_trusted_work_dir, lock_work_dir, try_folder};
pub use run::{Bounds, Exit, Stops};
pub use sandbox::Sandbox;
#[cfg(feature = "simulation")]
pub use scripted::{Script, ScriptRun};
pub use simulated::Simulation;
pub use unit_properties::{DEVICES_DEFAULT, Devices};

use std::io;

use tokio::sync::watch;

use crate::domain::progress::Progress;

/// The program of each task.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// A program and its arguments, without a shell.
    Program(Vec<String>),
    /// A command line for `/bin/sh -c`.
    Shell(String),
    /// The article's simulated workload: steps of random length.
    Simulated(Simulation),
    /// Code of a simulation.
    #[cfg(feature = "simulation")]
    Scripted(Script),
}

impl Workload {
    /// Runs the workload until it exits or `stops.stop` is cancelled, and reports its progress.
    ///
    /// When this returns, no process of the workload runs any more. Not cancel-safe: dropping the future kills the
    /// program but not its descendants, and in a sandbox nothing. Cancel `stops.stop` instead, and wait.
    ///
    /// # Errors
    /// The system's error, if the files of the environment cannot be written.
    pub async fn run(
        &self,
        env: &WorkloadEnv,
        bounds: Bounds,
        progress: &watch::Sender<Progress>,
        stops: &Stops,
    ) -> io::Result<Exit> {
        match self {
            Self::Program(argv) => external::run(argv, env, &bounds, progress, stops).await,
            Self::Shell(line) => {
                let argv = ["/bin/sh".to_owned(), "-c".to_owned(), line.clone()];
                external::run(&argv, env, &bounds, progress, stops).await
            }
            Self::Simulated(simulation) => simulation.run(env, bounds, progress, &stops.stop).await,
            #[cfg(feature = "simulation")]
            Self::Scripted(script) => script.run(env, &bounds, progress, stops).await,
        }
    }
}
