//! What a run of a workload is given, and how it ends.

use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::sandbox::Sandbox;

/// The limits of a run.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The time limit; none by default.
    pub time_limit: Option<Duration>,
    /// The time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether the workload's output also goes to this process's standard error (the journal), up to 1 MiB.
    pub echo: bool,
    /// The sandbox of the workload. Without one, it is a child of this process with the same user and permissions.
    pub sandbox: Option<Sandbox>,
}

/// The ways to stop a run.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Cancelled to stop the workload: SIGTERM, grace, SIGKILL.
    pub stop: CancellationToken,
    /// Cancelled to shorten the grace.
    pub hurry: CancellationToken,
    /// The grace, if it differs from the settings': under a Spot notice, all the remaining time.
    pub grace: watch::Sender<Option<Duration>>,
}

/// The end of a workload.
#[derive(Debug)]
pub enum Exit {
    /// It exited with a code, or was killed by a signal.
    Exited {
        /// The exit code, if it exited.
        code: Option<i32>,
        /// The signal, if one killed it.
        signal: Option<i32>,
        /// Whether the kernel killed a process meanwhile because memory ran out.
        out_of_memory: bool,
    },
    /// The time limit passed; all its processes were killed.
    TimedOut,
    /// The stop token was cancelled; all its processes were killed.
    Stopped,
    /// It could not be started, after all retries.
    NotStarted {
        /// The program's name.
        program: String,
        /// The system's error.
        source: io::Error,
    },
}
