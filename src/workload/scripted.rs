//! A workload in the code of a simulation: child processes do not obey virtual time.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Bounds, Exit, Stops, WorkloadEnv};
use crate::domain::progress::Progress;

type Run = dyn Fn(ScriptRun) -> Pin<Box<dyn Future<Output = io::Result<Exit>> + Send>> + Send + Sync;

/// The code of a workload.
#[derive(Clone)]
pub struct Script(Arc<Run>);

/// What a workload is given.
#[derive(Clone, Debug)]
pub struct ScriptRun {
    /// Its folders and files.
    pub env: WorkloadEnv,
    /// Where its progress goes.
    pub progress: watch::Sender<Progress>,
    /// Cancelled when it is to stop.
    pub stop: CancellationToken,
    /// The time between the stop and its end by force.
    pub grace: Duration,
}

impl Script {
    /// Makes a workload of a function.
    pub fn new<F>(run: impl Fn(ScriptRun) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Exit>> + Send + 'static,
    {
        Self(Arc::new(move |given| Box::pin(run(given))))
    }

    /// Runs it within its time limit.
    pub(super) async fn run(
        &self,
        env: &WorkloadEnv,
        bounds: &Bounds,
        progress: &watch::Sender<Progress>,
        stops: &Stops,
    ) -> io::Result<Exit> {
        let grace = stops.grace.borrow().unwrap_or(bounds.grace);
        let given = ScriptRun { env: env.clone(), progress: progress.clone(), stop: stops.stop.clone(), grace };
        let limit = bounds.time_limit.unwrap_or(Duration::MAX);
        let forced = async {
            stops.stop.cancelled().await;
            let grace = *stops.grace.borrow();
            tokio::time::sleep(grace.unwrap_or(bounds.grace)).await;
        };
        tokio::select! {
            ended = (self.0)(given) => ended,
            () = tokio::time::sleep(limit) => Ok(Exit::TimedOut),
            () = forced => Ok(Exit::Stopped),
        }
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

impl PartialEq for Script {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
