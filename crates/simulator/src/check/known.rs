//! What the checkers know of the world: the rows as they are, and who did what when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::who::Who;

/// A row that a request changed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) table: String,
    pub(super) key: String,
    pub(super) old: Value,
    pub(super) new: Value,
}

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    /// The process that claimed it.
    pub(super) by: Who,
    /// When it claimed the task.
    pub(super) claimed: Duration,
    /// When its lease was last renewed.
    pub(super) renewed: Duration,
    /// Whether its loss was counted.
    pub(super) is_counted: bool,
    /// Whether it was claimed when all must have known that the mission is cancelled.
    pub(super) is_of_cancelled: bool,
}

/// One instance.
#[derive(Clone, Debug)]
pub(super) struct MachineLife {
    pub(super) number: u64,
    /// When it was last needed: launched, holding a task, or when a task of its mission waited.
    pub(super) needed: Duration,
    /// The task that it was launched for, and its attempt and redrives then.
    pub(super) launched_for: Option<(String, u64, u64)>,
}

/// One change of a task's entry in the index.
#[derive(Clone, Debug)]
pub(crate) struct IndexChange {
    /// When the row was written.
    pub(crate) at: Duration,
    pub(crate) src: String,
    /// Partition and sort key, before and after.
    pub(crate) before: Option<(String, String)>,
    pub(crate) after: Option<(String, String)>,
}

/// What the checkers know.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The rows by table and key.
    pub(super) rows: BTreeMap<(String, String), Value>,
    /// The changes of the index, oldest first.
    pub(crate) index: Vec<IndexChange>,
    /// The attempts by task and number.
    pub(super) attempts: BTreeMap<(String, u64), Attempt>,
    /// The committed results: key → task and `ETag`.
    pub(super) results: BTreeMap<String, (String, String)>,
    /// The instances by id.
    pub(super) machines: BTreeMap<String, MachineLife>,
    /// When a task last waited.
    pub(super) waited: Duration,
    /// Since when the mission is cancelled, and by whom.
    pub(super) cancelled: Option<(Duration, Who)>,
    /// When it was last reinstated.
    pub(super) reinstated: Option<Duration>,
    /// Whether it ever was.
    pub(super) was_cancelled: bool,
    /// For which value of `opened` each publisher began, and when.
    pub(super) publishers: BTreeMap<Who, (u64, Duration)>,
    /// The notifications of the end: when, by whom, and for which value of `opened`.
    pub(super) published: Vec<(Duration, Who, u64)>,
    /// The tasks whose workload ended without success, and how often.
    pub(super) failures: BTreeMap<String, u64>,
    /// The workloads that run in each process.
    pub(super) workloads: BTreeMap<Who, usize>,
    /// How often each task was redriven: a redrive launches again, whatever an earlier launch becomes.
    pub(super) redrives: BTreeMap<String, u64>,
    /// Tasks that were submitted.
    pub(super) submitted: BTreeSet<String>,
    /// Objects that must become tasks.
    pub(super) uploaded: BTreeSet<String>,
    /// Rows that somebody edited by hand, until lighthpc corrected their entries of the index.
    pub(super) edited: BTreeSet<String>,
    /// Uploads in parts that were begun and not ended: key and who.
    pub(super) uploads: Vec<(String, Who)>,
    /// The machines that held each task.
    pub(super) holders: BTreeMap<String, BTreeSet<Who>>,
}

impl Known {
    /// Returns a row as it is; null if there is none.
    pub(super) fn row(&self, table: &str, key: &str) -> Value {
        self.rows.get(&(table.to_owned(), key.to_owned())).cloned().unwrap_or_default()
    }

    /// Returns the rows of a table.
    pub(super) fn table<'a>(&'a self, table: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let rows = self.rows.iter().filter(move |((of, _), _)| of == table);
        rows.map(|((_, key), row)| (key.as_str(), row))
    }
}
