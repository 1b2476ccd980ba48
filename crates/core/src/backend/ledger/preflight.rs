//! Checks whether the tables exist, have the expected keys, and can be read and written. Changes nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::DateTime;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::date_time::Format;

use super::item::{self, text};
use super::open::Partition;
use super::{INDEX, Ledger};
use crate::backend::CloudError;
use crate::backend::Kind;

/// The key for the checks. No object or mission has it. It does not start with `~`, because a node's role may not
/// update such items.
const NOBODY: &str = "#doctor";

impl Ledger {
    /// Makes the checks of [`Self::may_update`], and reads a batch of missing rows.
    ///
    /// # Errors
    /// As [`Self::may_update`].
    pub async fn may_work_at(&self, table: TableKind) -> Result<(), CloudError> {
        self.may_update(table).await?;
        let (name, key) = self.table(table);
        self.batch_get(name, vec![super::key::Item::from([(key.to_owned(), text(NOBODY))])]).await.map(drop)
    }

    /// Reads a missing row, and tries an update whose condition is always false. An empty answer and a refused
    /// condition prove both permissions and the table's key.
    ///
    /// # Errors
    /// [`CloudError`]: `NoTable`, `TableKey`, or `AccessDenied` with the operation.
    pub async fn may_update(&self, table: TableKind) -> Result<(), CloudError> {
        let (name, key) = self.table(table);
        let resource = format!("table {name}");
        let get = self.client.get_item().table_name(name).key(key, text(NOBODY)).consistent_read(true).send().await;
        get.map_err(|e| CloudError::sdk("GetItem", &resource, e))?;
        let update = self.client.update_item().table_name(name).key(key, text(NOBODY));
        let update = update
            .update_expression("REMOVE #none")
            .condition_expression("attribute_exists(#key) AND attribute_not_exists(#key)")
            .expression_attribute_names("#none", NOBODY)
            .expression_attribute_names("#key", key);
        match update.send().await.map_err(|e| CloudError::sdk("UpdateItem", &resource, e)) {
            Err(error) if error.kind != Kind::Precondition => Err(error),
            _ => Ok(()),
        }
    }

    fn table(&self, table: TableKind) -> (&str, &'static str) {
        match table {
            TableKind::Tasks => (&self.tables.tasks, item::SRC),
            TableKind::Missions => (&self.tables.missions, item::MISSION_KEY),
        }
    }

    /// Reads a page of the index of open tasks for a mission that does not exist.
    ///
    /// # Errors
    /// [`CloudError`]; `Invalid` if the table does not have the index.
    pub async fn has_index(&self) -> Result<&'static str, CloudError> {
        // If such a mission exists, one entry of it is read.
        let nobody = crate::domain::ids::MissionId::new("lighthpc doctor").expect("a constant name is valid");
        let partition = Partition { mission: Some(&nobody), shard: 0 };
        self.open_page(partition, crate::domain::task::State::Pending, 1, None).await?;
        Ok(INDEX)
    }

    /// Reads the service's time from the `Date` of an answer; `None` if it has none.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn time(&self) -> Result<Option<SystemTime>, CloudError> {
        let date = DateOfAnswer::default();
        let get = self.client.get_item().table_name(&self.tables.tasks).key(item::SRC, text(NOBODY));
        let answer = get.customize().interceptor(date.clone()).send().await;
        let seen = date.seen();
        match answer {
            // A refusal also has a `Date`.
            Err(error) if seen.is_none() => {
                Err(CloudError::sdk("GetItem", format!("table {}", self.tables.tasks), error))
            }
            _ => Ok(seen),
        }
    }
}

/// One of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// The tasks table.
    Tasks,
    /// The missions table.
    Missions,
}

/// Keeps the `Date` of the last answer.
#[derive(Clone, Debug, Default)]
pub(super) struct DateOfAnswer(Arc<Mutex<Option<SystemTime>>>);

impl DateOfAnswer {
    /// Returns the `Date`, if an answer had one.
    pub(super) fn seen(&self) -> Option<SystemTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for DateOfAnswer {
    fn name(&self) -> &'static str {
        "DateOfAnswer"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date.and_then(|date| SystemTime::try_from(date).ok());
        Ok(())
    }
}
