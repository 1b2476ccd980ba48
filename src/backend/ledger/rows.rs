//! Rows as the scheduler and the reader see them: making, listing, and redriving.

use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};

use super::commit::{Cancelled, cancelled_by, tally_key, update};
use super::expression::Expression;
use super::item::{self, Row, text};
use super::mission::mission_key;
use super::{Item, Ledger, task_key};
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, shard_of};
use crate::domain::task::{State, Task};

/// What a new task's row holds: the first version's attributes, the mission, and the state.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The key.
    pub src: SrcId,
    /// The mission it counts for.
    pub mission: MissionId,
    /// The bucket of the input.
    pub bucket: String,
    /// Now, RFC 3339 UTC.
    pub now: String,
    /// What made the row.
    pub trigger: String,
}

/// What became of a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// The task is `pending` again and no longer counted as failed.
    Redriven,
    /// The task is not `failed` (any more).
    NotFailed,
}

impl Ledger {
    /// Makes a task's row; `false` if there is one already, which stays as it is.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn create_task(&self, new: &NewTask) -> Result<bool, CloudError> {
        let mut row = task_key(&new.src);
        for (name, value) in [
            (item::BUCKET, new.bucket.as_str()),
            (item::TIME_BOARDING, &new.now),
            (item::TRIG_TIME, &new.now),
            (item::TRIG_NAME, &new.trigger),
            (item::NUM_LOG, "1"),
            (item::MISSION, new.mission.as_str()),
            (item::STATE, State::Pending.as_str()),
        ] {
            row.insert(name.to_owned(), text(value));
        }
        self.put_new(&self.tables.tasks, item::SRC, row).await
    }

    /// Puts a row; `false` if there is one with its key already, which stays as it is.
    pub(super) async fn put_new(&self, table: &str, key: &str, row: Item) -> Result<bool, CloudError> {
        let put = self.client.put_item().table_name(table).set_item(Some(row));
        let put = put.condition_expression("attribute_not_exists(#k)").expression_attribute_names("#k", key);
        match put.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(PutItemError::is_conditional_check_failed_exception) => {
                Ok(false)
            }
            Err(error) => Err(CloudError::sdk("PutItem", format!("table {table}"), error)),
        }
    }

    /// Puts a failed task back to `pending` with fresh budgets, takes it out of the tally, and opens its mission again:
    /// one transaction.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn redrive(&self, task: &Task, mission: Option<&Mission>) -> Result<Redrive, CloudError> {
        let row = Expression::default()
            .set(item::STATE, text(State::Pending.as_str()))
            .remove(item::APP_FAILURES)
            .remove(item::INTERRUPTIONS)
            .when("{} = ?", item::STATE, Some(text(State::Failed.as_str())))
            .when("{} = ?", item::ATTEMPT, Some(item::number(task.attempt.0)));
        let mut items = vec![update(&self.tables.tasks, task_key(&task.src), &row)?];
        if let Some(mission) = mission {
            let time_cost_s = i64::try_from(task.time_cost_s).unwrap_or(i64::MAX);
            let tally = Expression::default()
                .add(item::TRANS_FAILED, -1)
                .add(item::TIME_COST, -time_cost_s)
                .add(item::TALLY_SEQ, 1);
            let key = tally_key(&mission.id, shard_of(&task.src, mission.tally_shards));
            items.push(update(&self.tables.missions, key, &tally)?);
            let open = Expression::default().set(item::NOTIFIED, text("No")).when(
                "attribute_exists({})",
                item::MISSION_KEY,
                None,
            );
            items.push(update(&self.tables.missions, mission_key(&mission.id), &open)?);
        }
        match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
            Ok(_) => Ok(Redrive::Redriven),
            Err(error) if cancelled_by(error.as_service_error()) == Some(Cancelled::Condition) => {
                Ok(Redrive::NotFailed)
            }
            Err(error) => Err(CloudError::sdk("TransactWriteItems", format!("task {}", task.src), error)),
        }
    }

    /// Hands every task of a mission (or every task, with `None`) to `each`, page by page, in no order.
    ///
    /// A consistent scan of the tasks table: it costs half a read unit per 4 kB of the *table*, so it is for the
    /// end of a mission and for people, never for a node's every step.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn each_task(&self, mission: Option<&MissionId>, mut each: impl FnMut(Task)) -> Result<(), CloudError> {
        let filter = mission.map(|id| ("#m = :m", item::MISSION, id.as_str()));
        self.scan(&self.tables.tasks, filter, |row| {
            if let Some(src) = Row(row).text(item::SRC).and_then(|src| SrcId::new(src).ok()) {
                each(Row(row).task(src));
            }
        })
        .await
    }

    /// Lists the missions, without their tally items.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn missions(&self) -> Result<Vec<Mission>, CloudError> {
        let mut missions = Vec::new();
        let filter = Some(("NOT contains(#m, :m)", item::MISSION_KEY, "#tally#"));
        self.scan(&self.tables.missions, filter, |row| {
            if let Some(id) = Row(row).text(item::MISSION_KEY).and_then(|id| MissionId::new(id).ok()) {
                missions.push(Row(row).mission(id));
            }
        })
        .await?;
        missions.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(missions)
    }

    async fn scan(
        &self,
        table: &str,
        filter: Option<(&str, &str, &str)>,
        mut each: impl FnMut(&Item),
    ) -> Result<(), CloudError> {
        let mut from: Option<Item> = None;
        loop {
            let mut scan = self.client.scan().table_name(table).consistent_read(true).set_exclusive_start_key(from);
            if let Some((expression, name, value)) = filter {
                scan = scan
                    .filter_expression(expression)
                    .expression_attribute_names("#m", name)
                    .expression_attribute_values(":m", AttributeValue::S(value.to_owned()));
            }
            let page = scan.send().await.map_err(|error| CloudError::sdk("Scan", format!("table {table}"), error))?;
            page.items().iter().for_each(&mut each);
            match page.last_evaluated_key {
                Some(key) if !key.is_empty() => from = Some(key),
                _ => return Ok(()),
            }
        }
    }

    /// Makes both tables, on demand, if they are not there.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn create_tables(&self) -> Result<(), CloudError> {
        self.create_table(&self.tables.tasks, item::SRC).await?;
        self.create_table(&self.tables.missions, item::MISSION_KEY).await
    }

    async fn create_table(&self, table: &str, key: &str) -> Result<(), CloudError> {
        let invalid = |error: aws_sdk_dynamodb::error::BuildError| {
            CloudError::new(Kind::Invalid, "CreateTable", table, error.to_string())
        };
        let definition = AttributeDefinition::builder()
            .attribute_name(key)
            .attribute_type(ScalarAttributeType::S)
            .build()
            .map_err(invalid)?;
        let schema =
            KeySchemaElement::builder().attribute_name(key).key_type(KeyType::Hash).build().map_err(invalid)?;
        let answer = self
            .client
            .create_table()
            .table_name(table)
            .attribute_definitions(definition)
            .key_schema(schema)
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await;
        match answer {
            Ok(_) => Ok(()),
            Err(error)
                if error.as_service_error().is_some_and(
                    aws_sdk_dynamodb::operation::create_table::CreateTableError::is_resource_in_use_exception,
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(CloudError::sdk("CreateTable", format!("table {table}"), error)),
        }
    }
}
