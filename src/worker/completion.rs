//! What the check for a mission's end needs: services, places, and how long transient failures are retried.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::retry::retry_transient_unless;
use super::{Node, NodeError};
use crate::backend::{Backend, CloudError};
use crate::domain::ids::MissionId;
use crate::domain::mission::{Mission, Tally};

/// Checks whether a mission is complete, and sends its one notification.
#[derive(Clone, Debug)]
pub struct CompletionNotifier {
    /// The services.
    pub backend: Backend,
    /// The bucket of manifests.
    pub result_bucket: Option<String>,
    /// The topic.
    pub topic_arn: Option<String>,
    /// How long transient failures are retried, and how long a publisher's lease lasts.
    pub patience: Duration,
    /// Cancelled when transient failures must not be retried any more.
    pub stop: CancellationToken,
}

impl CompletionNotifier {
    pub(super) fn for_node(node: &Node) -> Self {
        let settings = &node.settings;
        Self {
            backend: node.backend.clone(),
            result_bucket: settings.result_bucket.clone(),
            topic_arn: settings.topic_arn.clone(),
            patience: settings.lease,
            stop: node.stopping.drain.clone(),
        }
    }

    /// Retries transient failures of a call, until [`CompletionNotifier::stop`].
    pub(super) async fn retry<T, F>(&self, call: impl FnMut() -> F) -> Result<T, CloudError>
    where
        F: Future<Output = Result<T, CloudError>>,
    {
        retry_transient_unless(&self.stop, self.patience, call).await
    }

    /// Reads the mission's row.
    pub(super) async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, NodeError> {
        let read = self.retry(|| self.backend.ledger.mission(id)).await;
        read.map_err(NodeError::cloud("reading the mission"))
    }

    /// Adds the mission's tally up.
    pub(super) async fn tally(&self, mission: &Mission) -> Result<Tally, NodeError> {
        let sum = self.retry(|| self.backend.ledger.tally(mission)).await;
        Ok(mission.total(sum.map_err(NodeError::cloud("reading the tally"))?))
    }

    /// Writes the sum of the tally to the mission's row, if that is due.
    pub(super) async fn roll_up(&self, mission: &Mission, total: Tally) -> Result<(), NodeError> {
        if !mission.wants_roll_up(total) {
            return Ok(());
        }
        let rolled = self.retry(|| self.backend.ledger.roll_up(mission, total)).await;
        rolled.map_err(NodeError::cloud("rolling the tally up"))
    }
}
