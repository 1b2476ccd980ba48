//! The workload: what a task is for, behind one small seam.
//!
//! ```text
//!            ┌── exits ─────────────────────────────► Exit::Exited
//!   start ───┼── time limit ── SIGTERM, grace, SIGKILL ──► Exit::TimedOut
//!            └── stop token ── SIGTERM, grace, SIGKILL ──► Exit::Stopped
//! ```
//!
//! This floor knows files, processes, and progress lines. It never sees AWS: the worker carries progress from here
//! to the ledger.

mod abandoned;
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
mod progress_file;
mod remover;
mod sandbox;
mod simulated;
pub mod tree;
mod unit_properties;
pub mod walk;

pub use abandoned::{Left, Removal};
pub use env::WorkloadEnv;
pub use ground::{GroundError, objection_to_mission};
pub use machine::{is_limit, is_of_machine, raise_descriptors};
pub use orphans::{WorkLock, lock_trusted_work_dir, lock_work_dir, try_folder};
pub use sandbox::Sandbox;
pub use simulated::Simulation;
pub use unit_properties::{DEVICES_DEFAULT, Devices};

use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::progress::Progress;

/// What runs for each task.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// A program and its arguments, started as they are.
    Program(Vec<String>),
    /// A command line for `/bin/sh -c`.
    Shell(String),
    /// The article's stand-in: steps of random length.
    Simulated(Simulation),
}

/// The bounds of a run.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The time limit; none by default.
    pub time_limit: Option<Duration>,
    /// The time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether the workload's output also goes to this process's standard error (the journal), up to 1 MiB.
    pub echo: bool,
    /// The sandbox around the workload; without one it is a child of this process, with its user and its rights.
    pub sandbox: Option<Sandbox>,
}

/// How a run is ended before its time.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Cancelled when the workload must end: SIGTERM, grace, SIGKILL.
    pub stop: CancellationToken,
    /// Cancelled when the grace is over early.
    pub hurry: CancellationToken,
    /// The grace, if it is another than the settings': under a Spot notice, all the time there is.
    pub grace: watch::Sender<Option<Duration>>,
}

/// How a workload ended.
#[derive(Debug)]
pub enum Exit {
    /// By itself: with a code, or by a signal.
    Exited {
        /// The exit code, if it exited.
        code: Option<i32>,
        /// The signal, if one ended it.
        signal: Option<i32>,
        /// Whether the kernel ended a process because memory ran out meanwhile.
        out_of_memory: bool,
    },
    /// The time limit passed; everything of it was ended.
    TimedOut,
    /// The stop token was cancelled; everything of it was ended.
    Stopped,
    /// It could not be started, however often it was tried.
    NotStarted {
        /// The program's name.
        program: String,
        /// The system's words.
        source: io::Error,
    },
}

impl Workload {
    /// Runs the workload to its end, or to the cancellation of `stops.stop`, and reports progress on the way.
    ///
    /// When this returns, nothing of the workload runs any more. Not cancel-safe: dropping the future
    /// ends the program but not its descendants, and behind a sandbox nothing; cancel `stops.stop` instead and wait.
    ///
    /// # Errors
    /// The system's, if the env's own files cannot be written.
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
        }
    }
}
