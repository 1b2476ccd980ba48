//! The cursor of the sweeps: the place where a sweep reached its time limit, and the next one continues.

use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::Item;
use super::{Ledger, OpenTask};
use crate::backend::CloudError;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::value::Form;

/// A place in the pending tasks where a sweep stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The number of moves. A write is conditional on it.
    pub moved: u64,
    /// That number as stored in the item.
    pub seen: Form,
    /// The mission; `None`: tasks without a mission.
    pub mission: Option<MissionId>,
    /// The shard.
    pub shard: u32,
    /// The last task that was checked; `None`: none of this partition.
    pub after: Option<OpenTask>,
}

const MOVED: &str = "moved";
const SHARD: &str = "shard";

impl Ledger {
    /// Reads the cursor. If it does not exist or is invalid, a sweep starts at the beginning.
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
            // Another value is no place among pending tasks, and DynamoDB refuses it as a start key.
            after: src.zip(row.text(item::OPEN_AS).filter(|open_as| open_as.starts_with("pending#"))).map(place),
            seen: row.form(MOVED),
        })
    }

    /// Moves the cursor, on condition that it has not moved since it was read. Of two concurrent sweeps one moves it;
    /// the tasks of the other are checked again.
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

/// The key of the cursor's item in the missions table. A new mission's id cannot start with `~`, so no mission has it.
const NAME: &str = "~sweep";

fn key() -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(NAME))])
}
