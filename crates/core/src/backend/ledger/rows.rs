//! Rows for schedulers and readers: creates, lists and redrives tasks.

use std::collections::HashMap;

use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, text};
use super::key::{Item, task_key};
use super::launch::as_seen;
use super::mission::{mission_key, opened};
use super::open::open_as;
use super::transaction::{TIME_MAX, Transacted, fresh_token, tally_key, update, with_time};
use super::work;
use crate::backend::{CloudError, Kind};
use crate::domain::ids::{MissionId, OWN, SrcId, TALLY};
use crate::domain::mission::{Mission, open_partition, shard_of};
use crate::domain::task::{State, Task};
use crate::domain::work::Work;

/// The values of a new task's row: the first version's attributes, the mission, and the state.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The key.
    pub src: SrcId,
    /// The mission, and its number of tally items and index partitions.
    pub mission: Option<(MissionId, u32)>,
    /// The bucket of the input; `None`: the task has no input, or names the buckets of its inputs.
    pub bucket: Option<String>,
    /// What the task works on.
    pub work: Work,
    /// The current time, RFC 3339 UTC.
    pub now: String,
    /// The time of the event that created the row; the current time if the event has none.
    pub trigger_time: String,
    /// The event or command that created the row.
    pub trigger: String,
}

/// The result of creating a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// The row was created.
    New,
    /// The row existed, and was not changed.
    There(Box<Task>),
}

/// The result of a redrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// The task is `pending` again, and not counted as failed any more.
    Redriven,
    /// The task is not `failed` (any more).
    NotFailed,
}

/// The maximum length of `numlog`: 100 duplicates.
const NUM_LOG_BYTES_MAX: usize = 200;

impl Ledger {
    /// Creates a task's row, unless it exists.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn create_task(&self, new: &NewTask) -> Result<Made, CloudError> {
        let mut row = task_key(&new.src);
        let shard = new.mission.as_ref().map_or(0, |(_, shards)| shard_of(&new.src, *shards));
        let partition = open_partition(new.mission.as_ref().map(|(id, _)| id), shard);
        for (name, value) in [
            (item::TIME_BOARDING, new.now.as_str()),
            (item::TRIG_TIME, &new.trigger_time),
            (item::TRIG_NAME, &new.trigger),
            (item::NUM_LOG, "1"),
            (item::STATE, State::Pending.as_str()),
            (item::OPEN_IN, &partition),
            (item::OPEN_AS, &open_as(State::Pending, &new.now)),
        ] {
            row.insert(name.to_owned(), text(value));
        }
        if let Some(bucket) = &new.bucket {
            row.insert(item::BUCKET.to_owned(), text(bucket));
        }
        row.extend(work::attributes(&new.work));
        if let Some((mission, _)) = &new.mission {
            row.insert(item::MISSION.to_owned(), text(mission.as_str()));
        }
        let put = self.client.put_item().table_name(&self.tables.tasks).set_item(Some(row));
        let put = put.condition_expression("attribute_not_exists(#k)").expression_attribute_names("#k", item::SRC);
        let put = put.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let Err(error) = put.send().await else { return Ok(Made::New) };
        let there = match error.as_service_error() {
            Some(PutItemError::ConditionalCheckFailedException(refusal)) => match &refusal.item {
                Some(row) => Some(Row(row).task(new.src.clone())),
                // Some emulators do not return the row.
                None => self.task(&new.src).await?,
            },
            _ => return Err(CloudError::sdk("PutItem", format!("table {}", self.tables.tasks), error)),
        };
        let gone = || CloudError::new(Kind::Conflict, "PutItem", &self.tables.tasks, "the row existed and was deleted");
        there.map(|task| Made::There(Box::new(task))).ok_or_else(gone)
    }

    /// Records a repeated event in a task's row: `numlog` gets `+1`, as in the first version. Of simultaneous events
    /// one may be missing; the number is only informative.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_duplicate(&self, src: &SrcId) -> Result<(), CloudError> {
        let key = task_key(src);
        let row = self.client.get_item().table_name(&self.tables.tasks).set_key(Some(key.clone())).send().await;
        let row = row.map_err(|e| CloudError::sdk("GetItem", format!("table {}", self.tables.tasks), e))?;
        let old = row.item.as_ref().and_then(|row| Row(row).text(item::NUM_LOG)).unwrap_or_default();
        if old.len() >= NUM_LOG_BYTES_MAX {
            return Ok(());
        }
        let expression = Expression::default()
            .set(item::NUM_LOG, text(format!("{old}+1")))
            .when_any(vec![
                vec![("attribute_not_exists({})", item::NUM_LOG, None)],
                vec![("{} = ?", item::NUM_LOG, Some(text(&old)))],
            ])
            .when("attribute_exists({})", item::SRC, None);
        self.update_row(src, &expression).await.map(|_| ())
    }

    /// Updates a task's row, and returns the new row; `None` if the condition did not hold.
    pub(super) async fn update_row_to(&self, src: &SrcId, expression: &Expression) -> Result<Option<Task>, CloudError> {
        let answer = expression
            .on(self.client.update_item().table_name(&self.tables.tasks).set_key(Some(task_key(src))))
            .return_values(ReturnValue::AllNew)
            .send()
            .await;
        match answer {
            Ok(answer) => Ok(answer.attributes.map(|row| Row(&row).task(src.clone()))),
            Err(error)
                if matches!(error.as_service_error(), Some(UpdateItemError::ConditionalCheckFailedException(_))) =>
            {
                Ok(None)
            }
            Err(error) => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
        }
    }

    /// Updates a task's row; `false` if the condition did not hold.
    pub(super) async fn update_row(&self, src: &SrcId, expression: &Expression) -> Result<bool, CloudError> {
        let answer = expression
            .on(self.client.update_item().table_name(&self.tables.tasks).set_key(Some(task_key(src))))
            .send()
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(error)
                if matches!(error.as_service_error(), Some(UpdateItemError::ConditionalCheckFailedException(_))) =>
            {
                Ok(false)
            }
            Err(error) => Err(CloudError::sdk("UpdateItem", format!("table {}", self.tables.tasks), error)),
        }
    }

    /// Writes a new row; `false` if a row with its key exists, which is then not changed.
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

    /// Returns a failed task to `pending` with new budgets, subtracts it from the tally, and reopens its mission, in
    /// one transaction. The number of launches in its row stays, so that the next launch has another number.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn redrive(&self, task: &Task, mission: Option<&Mission>, now: &str) -> Result<Redrive, CloudError> {
        let shard = mission.map_or(0, |mission| shard_of(&task.src, mission.tally_shards));
        let row = Expression::default()
            .set(item::STATE, text(State::Pending.as_str()))
            .set(item::OPEN_IN, text(open_partition(task.mission.as_ref(), shard)))
            .set(item::OPEN_AS, text(open_as(State::Pending, now)))
            .remove(item::APP_FAILURES)
            .remove(item::INTERRUPTIONS)
            // A suspect task still runs alone.
            .remove(item::CRASHES)
            .remove(item::LAUNCH_AT_ATTEMPT)
            .remove(item::LAUNCHES_LOST)
            .remove(item::LAUNCH_REQUEST)
            .remove(item::LAUNCH_AFTER)
            .remove(item::CANCELLED);
        if task.state != State::Failed {
            return Ok(Redrive::NotFailed);
        }
        let row = as_seen(row, task);
        let mut items = vec![update(&self.tables.tasks, task_key(&task.src), &row)?];
        if let Some(mission) = mission {
            let time = i64::try_from(task.time_cost_ms).unwrap_or(TIME_MAX).min(TIME_MAX);
            let tally = with_time(Expression::default().add(item::TRANS_FAILED, -1).add(item::TALLY_SEQ, 1), -time);
            let key = tally_key(&mission.id, shard);
            items.push(update(&self.tables.missions, key, &tally)?);
            let open = opened(Expression::default(), mission);
            items.push(update(&self.tables.missions, mission_key(&mission.id), &open)?);
        }
        let shards = mission.map(|mission| (&mission.id, vec![shard]));
        let written = self.transact(&items, &fresh_token(), shards).await?;
        Ok(if written == Transacted::Written { Redrive::Redriven } else { Redrive::NotFailed })
    }

    /// Calls `each` for every task of a mission (with `None`, every task), page by page, in any order.
    ///
    /// A consistent scan of the tasks table. It costs half a read unit per 4 kB of the whole *table*. It is for the end
    /// of a mission and for user commands only.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn each_task(&self, mission: Option<&MissionId>, mut each: impl FnMut(Task)) -> Result<(), CloudError> {
        let mut after: Option<String> = None;
        loop {
            let (tasks, last) = self.task_page(mission, after.as_deref()).await?;
            tasks.into_iter().for_each(&mut each);
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Reads a page of a mission's tasks (with `None`, of all), in any but always the same order: those after a row's
    /// key. Also returns the key before the next page; `None` at the end. This key may be invalid as a task key, if
    /// another program wrote the row. A page is 1 MB of the *table*.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn task_page(
        &self,
        mission: Option<&MissionId>,
        after: Option<&str>,
    ) -> Result<(Vec<Task>, Option<String>), CloudError> {
        let mut scan = self.client.scan().table_name(&self.tables.tasks).consistent_read(true);
        scan = scan.set_exclusive_start_key(after.map(|after| Item::from([(item::SRC.to_owned(), text(after))])));
        if let Some(mission) = mission {
            scan = scan
                .filter_expression("#m = :m")
                .expression_attribute_names("#m", item::MISSION)
                .expression_attribute_values(":m", text(mission.as_str()));
        }
        let page = scan.send().await;
        let page = page.map_err(|error| CloudError::sdk("Scan", format!("table {}", self.tables.tasks), error))?;
        let src = |row: &Item| Row(row).text(item::SRC).and_then(|src| SrcId::new(src).ok());
        let tasks = page.items().iter().filter_map(|row| Some(Row(row).task(src(row)?))).collect();
        let last = page.last_evaluated_key.and_then(|key| Row(&key).text(item::SRC));
        Ok((tasks, last))
    }

    /// Lists the missions, without their tally items and without `results`, which may be 300 kB each. Warns of invalid
    /// rows.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn missions(&self) -> Result<Vec<Mission>, CloudError> {
        let mut missions = Vec::new();
        let odd = self.each_mission(|mission| missions.push(mission)).await?;
        for (key, what) in odd {
            tracing::warn!("invalid row {key} in table {}: {what}", self.tables.missions);
        }
        missions.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(missions)
    }

    /// Calls `each` for every mission, page by page, in any order, without `results`. Returns the keys of invalid
    /// missions, which have a `transNumber`, with the reason.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn each_mission(&self, mut each: impl FnMut(Mission)) -> Result<Vec<(String, String)>, CloudError> {
        let mut from: Option<Item> = None;
        let mut odd = Vec::new();
        loop {
            let scan = self
                .client
                .scan()
                .table_name(&self.tables.missions)
                .consistent_read(true)
                .set_exclusive_start_key(from)
                // Neither tally items nor the items of lighthpc itself.
                .filter_expression("attribute_exists(#n) OR NOT contains(#m, :tally) AND NOT begins_with(#m, :own)")
                .projection_expression(
                    item::MISSION_NAMES
                        .iter()
                        .enumerate()
                        .map(|(n, _)| format!("#p{n}"))
                        .collect::<Vec<_>>()
                        .join(", "),
                )
                .set_expression_attribute_names(Some(mission_names()))
                .expression_attribute_values(":tally", text(TALLY))
                .expression_attribute_values(":own", text(OWN));
            let page = scan.send().await.map_err(|error| self.missions_error("Scan", error))?;
            for row in page.items() {
                let Some(key) = Row(row).text(item::MISSION_KEY) else { continue };
                match MissionId::new(&key) {
                    Ok(id) => each(Row(row).mission(id)),
                    Err(error) => odd.push((key, format!("no task can belong to it: {error}"))),
                }
            }
            match page.last_evaluated_key {
                Some(key) if !key.is_empty() => from = Some(key),
                _ => return Ok(odd),
            }
        }
    }
}

/// Returns the names of a mission's attributes, for a projection, and those of the filter.
fn mission_names() -> HashMap<String, String> {
    let projected = item::MISSION_NAMES.iter().enumerate().map(|(n, name)| (format!("#p{n}"), (*name).to_owned()));
    let filtered = [("#m", item::MISSION_KEY), ("#n", item::TRANS_NUMBER)];
    projected.chain(filtered.map(|(place, name)| (place.to_owned(), name.to_owned()))).collect()
}
