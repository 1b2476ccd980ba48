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
mod period;
mod placeholders;
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
pub use placeholders::{PlaceholderError, check_line, join};
pub use run::{Bounds, Exit, Stops};
pub use sandbox::Sandbox;
#[cfg(feature = "simulation")]
pub use scripted::{Script, ScriptRun};
pub use simulated::Simulation;
pub use unit_properties::{DEVICES_DEFAULT, Devices};

use std::ffi::OsString;
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
    /// Returns the program and its arguments, with the placeholders replaced.
    fn command_line(&self, env: &WorkloadEnv) -> Result<Vec<OsString>, PlaceholderError> {
        let variables = env.variables();
        match self {
            Self::Program(argv) => placeholders::in_arguments(argv, &variables),
            Self::Shell(line) => {
                let line = placeholders::in_line(line, &variables)?;
                Ok(vec!["/bin/sh".into(), "-c".into(), line.into()])
            }
            Self::Simulated(_) => Ok(Vec::new()),
            #[cfg(feature = "simulation")]
            Self::Scripted(_) => Ok(Vec::new()),
        }
    }

    /// Returns the program's name, for an error.
    fn program(&self) -> String {
        match self {
            Self::Program(argv) => argv.first().cloned().unwrap_or_default(),
            _ => "/bin/sh".to_owned(),
        }
    }

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
            Self::Program(_) | Self::Shell(_) => match self.command_line(env) {
                Ok(argv) => external::run(&argv, env, &bounds, progress, stops).await,
                Err(error) => Ok(Exit::NotStarted { program: self.program(), source: error.into() }),
            },
            Self::Simulated(simulation) => simulation.run(env, bounds, progress, &stops.stop).await,
            #[cfg(feature = "simulation")]
            Self::Scripted(script) => script.run(env, &bounds, progress, stops).await,
        }
    }
}
