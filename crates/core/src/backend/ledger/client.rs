//! The client of DynamoDB, and the fence of an attempt.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;

use super::item::Row;
use super::key::task_key;
use crate::backend::{CloudError, Tables, Wire};
use crate::domain::ids::{AttemptNumber, InstanceId, SrcId};
use crate::domain::task::Task;

/// The identity of a holder, which its writes must prove: its task and its attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The task.
    pub src: SrcId,
    /// The attempt that holds it.
    pub attempt: AttemptNumber,
    /// The instance that holds it.
    pub owner: InstanceId,
}

/// The client of the two tables. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(super) client: Client,
    pub(super) tables: Tables,
}

impl Ledger {
    /// Creates the client. Sends no requests.
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

    /// Reads a task's row consistently; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CloudError`]; `NoTable` or `TableKey` if the table is missing or has another key.
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
