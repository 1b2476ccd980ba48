//! The sweeps' cursor: where a sweep that could not look at everything stopped, so that the next one goes on from there.

use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::Item;
use super::{Ledger, OpenTask};
use crate::backend::CloudError;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::value::Form;

/// Where a sweep stopped among the tasks that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// How often the cursor was moved: it is only moved from where it was read.
    pub moved: u64,
    /// That number as it stands in the item.
    pub seen: Form,
    /// The mission; `None`: the tasks of no mission.
    pub mission: Option<MissionId>,
    /// The shard.
    pub shard: u32,
    /// The last task that was looked at; `None`: none of this partition.
    pub after: Option<OpenTask>,
}

const MOVED: &str = "moved";
const SHARD: &str = "shard";

impl Ledger {
    /// Reads the cursor; a sweep begins at the beginning if there is none, or if it cannot be read.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn cursor(&self) -> Result<Cursor, CloudError> {
        let get = self.client.get_item().table_name(&self.tables.missions).set_key(Some(key())).consistent_read(true);
        let row = get.send().await.map_err(|error| self.missions_error("GetItem", error))?.item.unwrap_or_default();
        let row = Row(&row);
        let place = |(src, open_as)| OpenTask { src, open_as };
        let src = row.text(item::SRC).and_then(|src| SrcId::new(src).ok());
        Ok(Cursor {
            moved: row.number(MOVED).unwrap_or(0),
            mission: row.text(item::MISSION).and_then(|id| MissionId::new(id).ok()),
            shard: row.number(SHARD).and_then(|shard| u32::try_from(shard).ok()).unwrap_or(0),
            // Another word would be no place in what waits, and DynamoDB refuses to begin there.
            after: src.zip(row.text(item::OPEN_AS).filter(|open_as| open_as.starts_with("pending#"))).map(place),
            seen: row.form(MOVED),
        })
    }

    /// Moves the cursor, on condition that nobody has since it was read. Of two sweeps at once one moves it; what the other
    /// looked at is looked at again.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another sweep has moved it.
    pub async fn move_cursor(&self, to: &Cursor) -> Result<bool, CloudError> {
        let mut expression =
            Expression::default().set(MOVED, number(to.moved.saturating_add(1))).set(SHARD, number(to.shard.into()));
        expression = match &to.mission {
            Some(mission) => expression.set(item::MISSION, text(mission.as_str())),
            None => expression.remove(item::MISSION),
        };
        expression = match &to.after {
            Some(task) => expression.set(item::SRC, text(task.src.as_str())).set(item::OPEN_AS, text(&task.open_as)),
            None => expression.remove(item::SRC).remove(item::OPEN_AS),
        };
        let expression = expression.if_unchanged(MOVED, &to.seen);
        self.update_item(NAME, &expression).await
    }
}

/// The key of the cursor's item in the missions table. No mission can have it: an id that is given may not begin with `~`.
const NAME: &str = "~sweep";

fn key() -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(NAME))])
}
