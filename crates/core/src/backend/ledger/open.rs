//! The index of open tasks: lists pending, running and failed tasks without reading those that are done.
//!
//! ```text
//!   index `open` of the tasks table, keys only, sparse: tasks that are done are not in it
//!     openIn  <mission>#<shard>              as many partitions as the mission has tally items
//!     openAs  pending#<time> | running#<time> | failed#<time>   so that the longest waiting comes first
//! ```
//!
//! An index is eventually consistent: it may list a task that was just claimed, or miss one that was just returned to
//! the queue. A task from the index is always claimed or read before anything else is done with it.

use std::collections::BTreeSet;

use aws_sdk_dynamodb::types::KeysAndAttributes;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, text};
use super::key::{Item, task_key};
use crate::backend::CloudError;
use crate::backend::Kind;
use crate::domain::backoff;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::open_partition;
use crate::domain::task::{State, Task};

/// The name of the index.
pub const INDEX: &str = "open";
/// The number of entries in a page: 1,000 keys are about 200 kB, or 25 read units.
pub const PAGE_LEN: usize = 1_000;

/// One partition of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition<'a> {
    /// The mission; `None`: tasks without a mission.
    pub mission: Option<&'a MissionId>,
    /// The shard, from 0.
    pub shard: u32,
}

/// An entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTask {
    /// The task.
    pub src: SrcId,
    /// The state and its start in the index: `pending#2026-02-03T04:05:06Z`.
    pub open_as: String,
}

impl OpenTask {
    /// Returns the time since when the task is in this state, RFC 3339 UTC, by the writer's clock.
    #[must_use]
    pub fn since(&self) -> &str {
        self.open_as.split_once('#').map_or("", |(_, since)| since)
    }
}

/// A page of the index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenPage {
    /// The entries.
    pub tasks: Vec<OpenTask>,
    /// Invalid keys, which are longer than an S3 key.
    pub odd: Vec<String>,
    /// Whether this is the last page.
    pub is_last: bool,
}

/// The maximum number of misplaced entries that are read of one range at a time: a page of rows.
const MISPLACED_MAX: i32 = 100;

/// The maximum number of keys of `BatchGetItem`. Source: DynamoDB API reference.
const BATCH_LEN_MAX: usize = 100;
/// The maximum number of reads of one batch that is throttled, or has unprocessed keys: pauses of about 10 s. Then the
/// call fails as throttled.
const BATCH_TRIES_MAX: u32 = 10;

/// Returns the value of `openAs` for a task in this state since `now`.
pub(super) fn open_as(state: State, now: &str) -> String {
    format!("{}#{now}", state.as_str())
}

/// Fails a task: it stays in the index, in a partition of the mission's.
pub(super) fn failed(expression: Expression, partition: &str, now: &str) -> Expression {
    expression
        .set(item::STATE, text(State::Failed.as_str()))
        .set_if_absent(item::OPEN_IN, text(partition))
        .set(item::OPEN_AS, text(open_as(State::Failed, now)))
}

/// Removes a task from the index.
pub(super) fn closed(expression: Expression) -> Expression {
    expression.remove(item::OPEN_IN).remove(item::OPEN_AS)
}

impl Ledger {
    /// Lists the tasks of one partition in one state, the oldest first: up to `limit` after `from`.
    ///
    /// # Errors
    /// [`CloudError`]; `Invalid` with the name of the index if the table does not have it.
    pub async fn open_page(
        &self,
        partition: Partition<'_>,
        state: State,
        limit: usize,
        from: Option<&OpenTask>,
    ) -> Result<OpenPage, CloudError> {
        let open_in = open_partition(partition.mission, partition.shard);
        let key = |task: &OpenTask| {
            let mut key = task_key(&task.src);
            key.insert(item::OPEN_IN.to_owned(), text(&open_in));
            key.insert(item::OPEN_AS.to_owned(), text(&task.open_as));
            key
        };
        let mut from = from.map(key);
        let (mut found, mut odd) = (Vec::new(), Vec::new());
        loop {
            let page = self
                .client
                .query()
                .table_name(&self.tables.tasks)
                .index_name(INDEX)
                .key_condition_expression("#in = :in AND begins_with(#as, :as)")
                .expression_attribute_names("#in", item::OPEN_IN)
                .expression_attribute_names("#as", item::OPEN_AS)
                .expression_attribute_values(":in", text(&open_in))
                .expression_attribute_values(":as", text(format!("{}#", state.as_str())))
                .set_limit(i32::try_from(limit - found.len()).ok())
                .set_exclusive_start_key(from)
                .send()
                .await
                .map_err(|error| CloudError::sdk("Query", format!("index {INDEX} of {}", self.tables.tasks), error))?;
            for entry in page.items() {
                let (Some(key), Some(open_as)) = (Row(entry).text(item::SRC), Row(entry).text(item::OPEN_AS)) else {
                    continue;
                };
                match SrcId::new(&key) {
                    Ok(src) => found.push(OpenTask { src, open_as }),
                    Err(_) => odd.push(key),
                }
            }
            match page.last_evaluated_key {
                Some(key) if !key.is_empty() && found.len() < limit => from = Some(key),
                Some(key) if !key.is_empty() => return Ok(OpenPage { tasks: found, odd, is_last: false }),
                _ => return Ok(OpenPage { tasks: found, odd, is_last: true }),
            }
        }
    }

    /// Counts the open tasks of a mission, or without one, in one state. Stops at `most`.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn count_open(
        &self,
        mission: Option<&MissionId>,
        shards: u32,
        state: State,
        most: u64,
    ) -> Result<u64, CloudError> {
        let mut count = 0;
        for shard in 0..shards.max(1) {
            let mut from = None;
            loop {
                let page = self.open_page(Partition { mission, shard }, state, PAGE_LEN, from.as_ref()).await?;
                count += page.tasks.len() as u64;
                if count >= most {
                    return Ok(most);
                }
                if page.is_last {
                    break;
                }
                from = page.tasks.last().cloned();
            }
        }
        Ok(count)
    }

    /// Lists all open tasks of a mission, or without one, in one state. All of them are in memory, so only for small
    /// numbers.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn open_tasks(
        &self,
        mission: Option<&MissionId>,
        shards: u32,
        state: State,
    ) -> Result<Vec<SrcId>, CloudError> {
        let mut found = Vec::new();
        for shard in 0..shards.max(1) {
            let page = self.open_page(Partition { mission, shard }, state, usize::MAX, None).await?;
            found.extend(page.tasks.into_iter().map(|task| task.src));
        }
        Ok(found)
    }

    /// Lists entries of one partition that are on no page, because another program wrote an `openAs` that is neither a
    /// pending nor a running nor a failed task's. Up to [`MISPLACED_MAX`] of each of four ranges; more are found after these are
    /// corrected.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn misplaced(&self, partition: Partition<'_>) -> Result<Vec<SrcId>, CloudError> {
        let open_in = open_partition(partition.mission, partition.shard);
        // `"` is the character before `#`, and `$` the one after it.
        let ranges = [
            ("\0", "failed\"\u{10ffff}"),
            ("failed$", "pending\"\u{10ffff}"),
            ("pending$", "running\"\u{10ffff}"),
            ("running$", "\u{10ffff}"),
        ];
        let [first, second, third, fourth] = ranges.map(|(from, to)| {
            self.client
                .query()
                .table_name(&self.tables.tasks)
                .index_name(INDEX)
                .key_condition_expression("#in = :in AND #as BETWEEN :from AND :to")
                .expression_attribute_names("#in", item::OPEN_IN)
                .expression_attribute_names("#as", item::OPEN_AS)
                .expression_attribute_values(":in", text(&open_in))
                .expression_attribute_values(":from", text(from))
                .expression_attribute_values(":to", text(to))
                .limit(MISPLACED_MAX)
                .send()
        });
        let pages = tokio::try_join!(first, second, third, fourth);
        let (first, second, third, fourth) = pages
            .map_err(|error| CloudError::sdk("Query", format!("index {INDEX} of {}", self.tables.tasks), error))?;
        let entries = [first.items(), second.items(), third.items(), fourth.items()].concat();
        Ok(entries.iter().filter_map(|entry| SrcId::new(Row(entry).text(item::SRC)?).ok()).collect())
    }

    /// Reads rows consistently, in any order. Missing rows are omitted, and duplicate keys are read once.
    ///
    /// # Errors
    /// [`CloudError`]; `Throttled` if DynamoDB throttles, or leaves keys unprocessed, for about 10 s.
    pub async fn tasks(&self, srcs: &[SrcId]) -> Result<Vec<Task>, CloudError> {
        // BatchGetItem refuses duplicate keys, and an index may list a task in two states.
        let srcs: BTreeSet<&SrcId> = srcs.iter().collect();
        let srcs: Vec<&SrcId> = srcs.into_iter().collect();
        let mut tasks = Vec::with_capacity(srcs.len());
        for batch in srcs.chunks(BATCH_LEN_MAX) {
            let keys = batch.iter().map(|src| task_key(src)).collect();
            for row in self.batch_get(&self.tables.tasks, keys).await? {
                if let Some(src) = Row(&row).text(item::SRC).and_then(|src| SrcId::new(src).ok()) {
                    tasks.push(Row(&row).task(src));
                }
            }
        }
        Ok(tasks)
    }

    /// Reads up to 100 items consistently.
    pub(super) async fn batch_get(&self, table: &str, mut keys: Vec<Item>) -> Result<Vec<Item>, CloudError> {
        let resource = || format!("table {table}");
        let mut rows = Vec::new();
        for tries in 1..=BATCH_TRIES_MAX {
            let wanted = KeysAndAttributes::builder().set_keys(Some(keys.clone())).consistent_read(true).build();
            let wanted =
                wanted.map_err(|e| CloudError::new(Kind::Invalid, "BatchGetItem", resource(), e.to_string()))?;
            let answer = self.client.batch_get_item().request_items(table, wanted).send().await;
            match answer.map_err(|error| CloudError::sdk("BatchGetItem", resource(), error)) {
                Ok(answer) => {
                    rows.extend(answer.responses.unwrap_or_default().into_values().flatten());
                    match answer.unprocessed_keys.unwrap_or_default().remove(table) {
                        None => return Ok(rows),
                        Some(rest) => keys = rest.keys,
                    }
                }
                Err(error) if error.kind == Kind::Throttled && tries < BATCH_TRIES_MAX => {}
                Err(error) => return Err(error),
            }
            tokio::time::sleep(backoff::delay(tries, rand::random())).await;
        }
        Err(CloudError::new(Kind::Throttled, "BatchGetItem", resource(), "keys remain unprocessed"))
    }
}
