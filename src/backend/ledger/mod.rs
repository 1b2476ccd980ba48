//! DynamoDB: the tasks table, the missions table, and every expression on them.
//!
//! No other module knows an attribute's name. Each write that belongs to an attempt carries the fence
//! `state = running AND attempt = mine` ([`expression::Expression::fence`]); a refused condition is a result, not an
//! error, and brings the row along (`ReturnValuesOnConditionCheckFailure`), so nothing is read twice.
//!
//! The SDK repeats a call whose answer was lost. Each write here says what a repeat finds and why that is right.

mod claim;
mod commit;
mod cursor;
mod expression;
mod item;
mod launch;
mod mission;
mod nodes;
mod open;
mod preflight;
mod publish;
mod renew;
mod request;
mod reserve;
mod rows;
mod settings;
mod tables;

pub use claim::{Claim, Claimant};
pub use commit::{Commit, Completion, Finish};
pub use cursor::Cursor;
pub use item::Row;
pub use launch::Failed;
pub use mission::NewMission;
pub use nodes::{NodeCount, Shown, StoredLimits, Ticket, hour_of};
pub use open::{INDEX, OpenPage, OpenTask, PAGE_LEN, Partition};
pub use preflight::TableKind;
pub use publish::{Announcement, Publication};
pub use renew::{Beat, Release};
pub use reserve::Note;
pub use rows::{Made, NewTask, Redrive};
pub use settings::SETTINGS;

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{CloudError, Tables, Wire};
use crate::domain::ids::{Attempt, InstanceId, SrcId};
use crate::domain::task::Task;

/// What a holder must show to write: its task and its attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The task.
    pub src: SrcId,
    /// The attempt that holds it.
    pub attempt: Attempt,
    /// The instance that holds it.
    pub owner: InstanceId,
}

/// The two tables. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    client: Client,
    tables: Tables,
}

impl Ledger {
    /// Makes the client. Sends nothing.
    #[must_use]
    pub fn new(wire: &Wire, tables: Tables) -> Self {
        let config = Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build();
        Self { client: Client::from_conf(config), tables }
    }

    /// Returns the tables' names.
    #[must_use]
    pub const fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Reads a task's row consistently; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError`]; `NoTable` and `TableKey` if the table is not the expected one.
    pub async fn task(&self, src: &SrcId) -> Result<Option<Task>, CloudError> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.tables.tasks)
            .set_key(Some(task_key(src)))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| CloudError::sdk("GetItem", format!("table {}", self.tables.tasks), error))?;
        Ok(answer.item.map(|item| Row(&item).task(src.clone())))
    }

    /// Checks with a consistent read that the attempt still holds its task.
    ///
    /// # Errors
    /// [`CloudError`] if the table cannot be read.
    pub async fn holds(&self, fence: &Fence) -> Result<bool, CloudError> {
        let task = self.task(&fence.src).await?;
        Ok(task.and_then(|task| task.lease()).is_some_and(|lease| lease.attempt == fence.attempt))
    }
}

type Item = HashMap<String, AttributeValue>;

fn task_key(src: &SrcId) -> Item {
    HashMap::from([(item::SRC.to_owned(), AttributeValue::S(src.as_str().to_owned()))])
}
