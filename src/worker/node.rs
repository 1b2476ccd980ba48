//! A node: its services, its settings, and how it is stopped; and what its steps have in common.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument;

use super::outcome::Outcome;
use super::{NodeError, NodeSettings, Step, Stopping};
use crate::backend::machine::{EndError, MachineEnd};
use crate::backend::{Backend, CloudError};
use crate::domain::mission::Mission;
use crate::domain::task::Task;

/// A node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    /// The services.
    pub backend: Backend,
    /// The settings.
    pub settings: Arc<NodeSettings>,
    /// Stops the node before its task ends.
    pub stopping: Stopping,
}

/// The end of a node's life.
#[derive(Debug)]
pub struct Life {
    /// How its task, or its mission, ended.
    pub outcome: Result<Outcome, NodeError>,
    /// How the termination of the machine ended.
    pub end: Result<MachineEnd, EndError>,
}

impl Node {
    /// Runs one step in a span of its own and logs how long it took.
    pub(super) async fn step<T, E: std::fmt::Display>(
        &self,
        step: Step,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.settings.report.send_modify(|report| report.step = step);
        let started = Instant::now();
        // On the heap: a step has futures of many kB in it, which would be moved with each call that wraps it.
        let result = Box::pin(work).instrument(tracing::info_span!("step", name = step.as_str())).await;
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &result {
            Ok(_) => tracing::info!(step = step.as_str(), duration_ms, "{} took {duration_ms} ms", step.as_str()),
            Err(error) => tracing::debug!(step = step.as_str(), duration_ms, "{} failed: {error}", step.as_str()),
        }
        result
    }

    /// Returns the bucket of results.
    ///
    /// # Errors
    /// [`NodeError::Setting`] if none is set.
    pub(super) fn result_bucket(&self) -> Result<&str, NodeError> {
        let hint = "set --result-bucket or LIGHTHPC_RESULT_BUCKET";
        self.settings.result_bucket.as_deref().ok_or(NodeError::Setting { what: "the result bucket", hint })
    }

    /// Reads the mission of a task's row; `None` if the task has none.
    ///
    /// # Errors
    /// [`CloudError`] if the table cannot be read.
    pub(super) async fn mission_of(&self, row: &Task) -> Result<Option<Mission>, CloudError> {
        let Some(id) = &row.mission else { return Ok(None) };
        let mission = self.backend.ledger.mission(id).await?;
        if mission.is_none() {
            tracing::warn!("mission {id} has no row: its tally is kept, but nobody can see its end");
        }
        Ok(Some(mission.unwrap_or_else(|| Mission::unknown(id.clone()))))
    }
}
