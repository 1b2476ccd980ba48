//! Rows as the checkers read them.

use serde_json::Value;

use crate::lock::locked;
pub(crate) use crate::requests::{MISSIONS, TASKS};
use crate::world::World;

/// Returns a text attribute of a row; empty if there is none.
pub(crate) fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name]["S"].as_str().unwrap_or_default()
}

/// Returns a number of a row, also one that somebody wrote as text; 0 if there is none.
pub(crate) fn number(row: &Value, name: &str) -> u64 {
    let value = &row[name];
    value["N"].as_str().or_else(|| value["S"].as_str()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Returns a task's row as it is; null if there is none.
pub(crate) fn task_row(world: &World, src: &str) -> Value {
    locked(&world.known).row(TASKS, src)
}
