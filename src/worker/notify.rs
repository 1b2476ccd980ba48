//! Step 8: the check whether a mission is complete, and the right to send its notification.
//!
//! The row is read before the tally, and `Sending` is conditional on what was read (`backend/ledger/publish.rs`): a
//! mission that is opened in between is not announced. The publisher then writes the manifest and sends the
//! notification (`publish.rs`).

use std::time::Duration;

use super::completion::CompletionNotifier;
use super::publish::Publisher;
use super::retry::or_drained;
use super::{Node, NodeError, Step};
use crate::backend::ledger::Publication;
use crate::domain::ids::InstanceId;
use crate::domain::keys::digest_hex;
use crate::domain::mission::{Mission, Notified};

/// How often a mission's row and tally are read again because the mission was opened in between. Each time another
/// process has enlarged or redriven it in that moment, and takes care of its end.
const READS_MAX: u32 = 5;
/// The pause before they are read again.
const READ_PAUSE: Duration = Duration::from_millis(200);

impl CompletionNotifier {
    /// Sends the mission's notification, if the mission is complete and not yet announced. Returns whether it did.
    ///
    /// Every committer calls this after its own commits, so the last one reads the full count. Exactly one becomes the
    /// publisher; a publisher that died is replaced by the next caller that finds out that it is gone.
    ///
    /// `me` and `right` name the publisher: the same pair may publish again after its restart. `is_lost` says that the
    /// caller has seen the lease of the publisher that `mission` names unchanged for its whole length.
    ///
    /// # Errors
    /// [`NodeError`]; the next caller checks the mission again.
    pub async fn notify_if_complete(
        &self,
        me: &InstanceId,
        right: &str,
        mission: &Mission,
        is_lost: bool,
    ) -> Result<bool, NodeError> {
        let total = self.tally(mission).await?;
        if !mission.is_complete(total) {
            self.roll_up(mission, total).await?;
            return Ok(false);
        }
        let publication = Publication { by: me.clone(), token: digest_hex(&[me.as_str(), right], 32) };
        for read in 0..READS_MAX {
            if read > 0 {
                // Both arms may be dropped: neither holds anything.
                tokio::select! {
                    () = tokio::time::sleep(READ_PAUSE) => {}
                    () = self.stop.cancelled() => return Ok(false),
                }
            }
            let Some(fresh) = self.mission(&mission.id).await? else { return Ok(false) };
            // After the row: opening the mission from here on changes the row.
            let total = self.tally(&fresh).await?;
            if !fresh.is_complete(total) {
                self.roll_up(&fresh, total).await?;
                return Ok(false);
            }
            let is_lost = match &fresh.notified {
                Notified::Yes => {
                    self.roll_up(&fresh, total).await?;
                    return Ok(false);
                }
                Notified::No => false,
                Notified::Sending { token, .. } if *token == publication.token => false,
                Notified::Sending { by, .. } => {
                    let is_lost = is_lost && fresh.notified == mission.notified;
                    if !is_lost && !self.backend.machine.is_gone(by).await.unwrap_or(false) {
                        return Ok(false);
                    }
                    true
                }
            };
            let ledger = &self.backend.ledger;
            let begun = self.retry(|| ledger.begin_publication(&fresh, &publication, is_lost, total)).await;
            if begun.map_err(NodeError::cloud("becoming the mission's publisher"))? {
                return Publisher::new(self, &fresh, total, &publication).publish().await;
            }
        }
        Ok(false)
    }
}

/// Notifies people if the mission is complete, now that tasks of it have ended. `right` is that of
/// [`CompletionNotifier::notify_if_complete`]. During a drain this is left to others if a service is unavailable, or if
/// it takes too long: a sweep does it then, and takes over from a publisher that was interrupted.
pub(super) async fn notify_unless_drained(
    node: &Node,
    me: &InstanceId,
    right: &str,
    mission: &Mission,
) -> Result<(), NodeError> {
    let notifier = CompletionNotifier::for_node(node);
    let notified = tokio::select! {
        notified = node.step(Step::Notify, notifier.notify_if_complete(me, right, mission, false)) => notified,
        () = node.stopping.writes_are_over() => {
            tracing::warn!("whether mission {} is complete is left to others: the node drains", mission.id);
            return Ok(());
        }
    };
    or_drained(node, notified).map(drop)
}
