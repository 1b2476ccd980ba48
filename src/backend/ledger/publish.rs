//! Who tells the people: `notifyEmail: No → Sending → Yes`.

use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::item::{self, text};
use super::mission::counters;
use crate::backend::CloudError;
use crate::domain::ids::InstanceId;
use crate::domain::mission::{Mission, Notified, Tally};

const NOTIFY_TOKEN: &str = "notifyToken";

/// One publisher's right to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The instance that publishes.
    pub by: InstanceId,
    /// Names the publisher among all: the same after its restart, another for another task on the same instance.
    pub token: String,
}

impl Ledger {
    /// Tries to become the mission's one publisher: `No → Sending`. `dead` names a publisher that is known to be
    /// gone, whose place may be taken.
    ///
    /// May be repeated: whoever holds the publication gets it again.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another publishes, or it is done.
    pub async fn begin_publication(
        &self,
        mission: &Mission,
        publication: &Publication,
        dead: Option<&str>,
        total: Tally,
    ) -> Result<bool, CloudError> {
        let mut cases = vec![
            vec![("attribute_not_exists({})", item::NOTIFIED, None)],
            vec![("{} <> ?", item::NOTIFIED, Some(text("Sending"))), ("{} <> ?", item::NOTIFIED, Some(text("Yes")))],
            vec![
                ("{} = ?", item::NOTIFIED, Some(text("Sending"))),
                ("{} = ?", NOTIFY_TOKEN, Some(text(&publication.token))),
            ],
        ];
        if let Some(dead) = dead {
            cases.push(vec![
                ("{} = ?", item::NOTIFIED, Some(text("Sending"))),
                ("{} = ?", item::NOTIFY_BY, Some(text(dead))),
            ]);
        }
        // The counters go along: whatever becomes of the message, the row shows that the mission is over.
        let expression = counters(mission, total)
            .set_if_absent(item::TALLY_BASE, item::number(mission.tally_base))
            .set(item::NOTIFIED, text("Sending"))
            .set(item::NOTIFY_BY, text(publication.by.as_str()))
            .set(NOTIFY_TOKEN, text(&publication.token))
            .when("attribute_exists({})", item::MISSION_KEY, None)
            .when_any(cases);
        // It must not have grown since it was read.
        let expression = match mission.trans_number {
            Some(n) => expression.when_any(vec![
                vec![("{} = ?", item::TRANS_NUMBER, Some(item::number(n)))],
                vec![("{} = ?", item::TRANS_NUMBER, Some(text(n.to_string())))],
            ]),
            None => expression,
        };
        self.update_mission(&mission.id, &expression).await
    }

    /// Marks the mission as announced: `Sending → Yes`, with the final counters, the results, and the manifest.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the publication is not ours (any more).
    pub async fn end_publication(
        &self,
        mission: &Mission,
        publication: &Publication,
        total: Tally,
        results: &[String],
        manifest: &str,
        now: &str,
    ) -> Result<bool, CloudError> {
        let list = results.iter().map(text).collect();
        let expression = counters(mission, total)
            .set(item::NOTIFIED, text("Yes"))
            .set(item::NOTIFIED_AT, text(now))
            .set(item::RESULT_LIST, AttributeValue::L(list))
            .set(item::MANIFEST, text(manifest))
            .set_if_absent(item::TALLY_BASE, item::number(mission.tally_base))
            .when("{} = ?", item::NOTIFIED, Some(text("Sending")))
            .when("{} = ?", NOTIFY_TOKEN, Some(text(&publication.token)));
        if self.update_mission(&mission.id, &expression).await? {
            return Ok(true);
        }
        // The answer to an earlier try may have been lost: then the row already says so.
        let row = self.mission(&mission.id).await?;
        Ok(row.is_some_and(|row| row.notified == Notified::Yes))
    }
}
