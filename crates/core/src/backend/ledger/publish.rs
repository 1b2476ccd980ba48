//! The publication of a complete mission: `notifyEmail: No → Sending → Yes`.
//!
//! ```text
//!   read `opened` ─► read the tally: complete ─► Sending, on condition of that `opened` (one winner)
//!        ▲                                          │ renews `notifyBeat` while it writes the manifest
//!        └── refused: read both again               ▼
//!                       results and manifest into the row ─► the message ─► Yes, on condition of its own token
//! ```
//!
//! Each write that reopens a mission (enlarge, redrive, reinstate) increments `opened` and sets `No`. A publisher that
//! read the tally before is refused, and one that has started cannot set `Yes`. Everything that enlarges the row is
//! written before the message. The last write only makes the row smaller, so the row's size cannot prevent it.

use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, number, text};
use super::mission::counters;
use super::mission_row::manifest_progress_value;
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{InstanceId, MissionId};
use crate::domain::mission::{ManifestProgress, Mission, Notified, Tally};
use crate::domain::value::Form;

/// The right of one publisher to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The instance of the publisher.
    pub by: InstanceId,
    /// The token of the publisher: the same after its restart, and different for another task on the same instance.
    pub token: String,
}

impl Ledger {
    /// Tries to become the mission's only publisher: `No → Sending`, on condition that the mission was not reopened
    /// since `mission` was read. `is_lost`: the publisher in `mission` is gone, and can be replaced if it has not
    /// renewed its lease since.
    ///
    /// May be repeated: the holder of the publication gets it again.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another publisher holds it, if it is done, or if the mission was reopened: read
    /// it again.
    pub async fn begin_publication(
        &self,
        mission: &Mission,
        publication: &Publication,
        is_lost: bool,
        total: Tally,
    ) -> Result<bool, CloudError> {
        let seen = mission.seen.clone().unwrap_or_default();
        let sending = || ("{} = ?", item::NOTIFIED, Some(text("Sending")));
        let cases = vec![
            vec![("attribute_not_exists({})", item::NOTIFIED, None)],
            vec![("{} <> ?", item::NOTIFIED, Some(text("Sending"))), ("{} <> ?", item::NOTIFIED, Some(text("Yes")))],
            vec![sending(), ("{} = ?", item::NOTIFY_TOKEN, Some(text(&publication.token)))],
        ];
        // The counters are written here, so that the row shows the complete mission even if the message fails.
        let expression = counters(mission, total)
            .set_if_absent(item::TALLY_BASE, number(mission.tally_base))
            .set(item::NOTIFIED, text("Sending"))
            .set(item::NOTIFY_BY, text(publication.by.as_str()))
            .set(item::NOTIFY_TOKEN, text(&publication.token))
            .set(item::NOTIFY_BEAT, number(0))
            .when("attribute_exists({})", item::MISSION_KEY, None)
            .if_unchanged(item::OPENED, &seen.opened)
            .if_unchanged(item::TRANS_NUMBER, &seen.trans_number);
        let expression = if is_lost {
            expression
                .when("{} = ?", item::NOTIFIED, Some(text("Sending")))
                .if_unchanged(item::NOTIFY_TOKEN, &seen.notify_token)
                .if_unchanged(item::NOTIFY_BEAT, &seen.notify_beat)
        } else {
            expression.when_any(cases)
        };
        self.update_mission(&mission.id, &expression).await
    }

    /// Renews the publisher's lease, and records the progress of the manifest.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if this publisher lost the publication.
    pub async fn renew_publication(
        &self,
        id: &MissionId,
        publication: &Publication,
        progress: Option<&ManifestProgress>,
    ) -> Result<bool, CloudError> {
        let expression = own(Expression::default().add(item::NOTIFY_BEAT, 1), publication);
        let Some(progress) = progress else { return self.update_mission(id, &expression).await };
        let noted = expression.clone().set(item::MANIFEST_PROGRESS, manifest_progress_value(progress));
        match self.update_mission(id, &noted).await {
            // The row has no space for it: a successor starts the manifest again.
            Err(error) if error.kind == Kind::Invalid => self.update_mission(id, &expression).await,
            renewed => renewed,
        }
    }

    /// Writes the result of the mission: the counters, the results, the manifest, and the notified topic. If the row
    /// has no space for all results, only the manifest is written.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if this publisher lost the publication.
    pub async fn prepare_publication(
        &self,
        mission: &Mission,
        publication: &Publication,
        total: Tally,
        announcement: &Announcement<'_>,
    ) -> Result<bool, CloudError> {
        let Announcement { results, manifest, to, now } = announcement;
        let list = |results: &[String]| AttributeValue::L(results.iter().map(text).collect());
        let expression = own(counters(mission, total), publication)
            .set(item::NOTIFIED_AT, text(*now))
            .set(item::MANIFEST, text(*manifest))
            .set(item::NOTIFIED_TO, text(*to))
            .set_if_absent(item::TALLY_BASE, number(mission.tally_base));
        let whole = expression.clone().set(item::RESULT_LIST, list(results));
        match self.update_mission(&mission.id, &whole).await {
            Err(error) if error.kind == Kind::Invalid => {
                tracing::warn!(
                    "mission {}: its row has no space for the results ({}); the manifest lists them",
                    mission.id,
                    error.source
                );
            }
            written => return written,
        }
        match self.update_mission(&mission.id, &expression).await {
            Err(error) if error.kind == Kind::Invalid => {
                tracing::warn!(
                    "mission {}: its row has no space for the name of the manifest ({})",
                    mission.id,
                    error.source
                );
                self.update_mission(&mission.id, &own(Expression::default().add(item::NOTIFY_BEAT, 1), publication))
                    .await
            }
            written => written,
        }
    }

    /// Removes the progress of the manifest, so that the next publisher starts it again.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn forget_manifest(&self, id: &MissionId, publication: &Publication) -> Result<(), CloudError> {
        let expression = own(Expression::default().remove(item::MANIFEST_PROGRESS), publication);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Marks the mission as notified: `Sending → Yes`. The row only becomes smaller.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if this publisher lost the publication.
    pub async fn end_publication(&self, id: &MissionId, publication: &Publication) -> Result<bool, CloudError> {
        let expression = own(Expression::default().set(item::NOTIFIED, text("Yes")), publication)
            .remove(item::MANIFEST_PROGRESS)
            .remove(item::NOTIFY_BEAT);
        if self.update_mission(id, &expression).await? {
            return Ok(true);
        }
        // The answer to an earlier attempt may have been lost: then the row already has the value.
        let row = self.mission(id).await?;
        let is_own = |row: &Mission| {
            row.seen.as_ref().is_some_and(|seen| seen.notify_token == Form::Text(publication.token.clone()))
        };
        Ok(row.is_some_and(|row| row.notified == Notified::Yes && is_own(&row)))
    }
}

/// The values of a mission's row about its publication.
#[derive(Clone, Copy, Debug)]
pub struct Announcement<'a> {
    /// The value of `rsltList`.
    pub results: &'a [String],
    /// `s3://…` of the manifest.
    pub manifest: &'a str,
    /// The notified topic, or `none`.
    pub to: &'a str,
    /// The current time, RFC 3339 UTC.
    pub now: &'a str,
}

/// Requires that this publisher holds the publication.
fn own(expression: Expression, publication: &Publication) -> Expression {
    expression.when("{} = ?", item::NOTIFIED, Some(text("Sending"))).when(
        "{} = ?",
        item::NOTIFY_TOKEN,
        Some(text(&publication.token)),
    )
}
