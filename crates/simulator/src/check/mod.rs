//! The checkers: each promise of docs/SEMANTICS.md that can be seen in the tables, the objects, and the machines.
//!
//! Most look at each request that is applied: what it changed, and whether its sender had the right to. Some look at the
//! end of the simulation.

mod cloud;
mod end;
mod known;
mod mission;
mod task;
mod workload;

use std::sync::Arc;

use lighthpc::domain::ids::SrcId;
use local_cloud::{Call, Service};
use serde_json::{Value, json};

pub(crate) use cloud::{is_foreign, machine_ends, machine_starts};
pub(crate) use end::{FOREIGN_BYTES, FOREIGN_KEY, at_end, has_ended};
pub(crate) use known::Known;
pub(crate) use workload::{ends as workload_ends, runs as workload_runs, starts as workload_starts};

use crate::world::{Who, World, locked};
use known::Change;

/// The mission of the simulation.
pub(crate) const MISSION: &str = "M";
/// The tables.
pub(crate) const TASKS: &str = "tblTrans2";
const MISSIONS: &str = "tblMission";

/// The checkers, in the order of docs/SIMULATION.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checker {
    /// A done task has one result, of its own bytes, that its row names and nobody changes.
    Result,
    /// A failed task has a verdict and an error, and something really failed.
    Verdict,
    /// The tally equals the rows, after each write.
    Tally,
    /// No attempt changes a row, or an object that a row names, after it lost its lease.
    Fence,
    /// Nobody takes a task, or the instance, from a holder whose lease is fresh.
    Lease,
    /// A holder that no fault hits renews its lease in time, up to the commit or release.
    Heartbeat,
    /// Attempts are numbered one after another.
    Attempt,
    /// The loss of an attempt is counted once.
    Interruptions,
    /// The index has the tasks that are not done, each in its state.
    Index,
    /// After the mission's cancellation no workload starts, and those that run stop.
    Cancel,
    /// A notification comes after the true end, at least once, and normally once.
    Notification,
    /// No task is forgotten: each submitted task has a row, and counts.
    Submission,
    /// Every mission ends.
    End,
    /// A task has one node at a time.
    OneNode,
    /// No instance runs for long after its last need.
    Billing,
    /// No upload, no checkpoint is left.
    Leftovers,
    /// No process makes more requests than its work needs.
    Requests,
    /// Nothing that is not ours is deleted, terminated, or overwritten.
    Foreign,
    /// Nothing panics.
    Panic,
}

impl Checker {
    /// Returns its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Verdict => "verdict",
            Self::Tally => "tally",
            Self::Fence => "fence",
            Self::Lease => "lease",
            Self::Heartbeat => "heartbeat",
            Self::Attempt => "attempt",
            Self::Interruptions => "interruptions",
            Self::Index => "index",
            Self::Cancel => "cancel",
            Self::Notification => "notification",
            Self::Submission => "submission",
            Self::End => "end",
            Self::OneNode => "one-node",
            Self::Billing => "billing",
            Self::Leftovers => "leftovers",
            Self::Requests => "requests",
            Self::Foreign => "foreign",
            Self::Panic => "panic",
        }
    }
}

/// Returns what a request is about, for the trace.
pub(crate) fn subject(call: &Call) -> String {
    match call.service {
        Service::S3 => call.parts.uri.path().to_owned(),
        Service::Dynamodb => {
            let Some(body) = serde_json::from_slice::<Value>(&call.body).ok() else { return String::new() };
            let keys = keys_of(&call.operation, &body);
            keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>().join(",")
        }
        _ => format!("{} bytes", call.body.len()),
    }
}

/// Returns the tables and keys that a request of DynamoDB names.
fn keys_of(operation: &str, body: &Value) -> Vec<(String, String)> {
    let key_of = |item: &Value| {
        let table = item["TableName"].as_str().unwrap_or_default().to_owned();
        let key = if item["Key"].is_null() { &item["Item"] } else { &item["Key"] };
        let name = ["srcFilename", "timePush"].iter().find_map(|name| key[name]["S"].as_str());
        name.map(|name| (table, name.to_owned()))
    };
    if operation == "TransactWriteItems" {
        let items = body["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let one = |item: &Value| item.as_object().and_then(|item| item.values().next()).and_then(key_of);
        return items.iter().filter_map(one).collect();
    }
    key_of(body).into_iter().collect()
}

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

/// Notes the tasks of a submission that succeeded.
pub(crate) fn submitted(world: &World, srcs: &[SrcId]) {
    locked(&world.known).submitted.extend(srcs.iter().map(ToString::to_string));
}

/// Notes an object that was uploaded: if the mission takes it now, it must become a task.
pub(crate) fn object_uploaded(world: &World, key: &str) {
    let mut known = locked(&world.known);
    let mission = known.row(MISSIONS, MISSION);
    if !mission.is_null() && text(&mission, "cancelledAt").is_empty() {
        known.uploaded.insert(key.to_owned());
    }
}

/// Checks what a request that was applied has changed.
pub(crate) async fn applied(world: &Arc<World>, who: Who, call: &Call, status: u16) {
    match call.service {
        Service::Dynamodb => {
            let writes = ["UpdateItem", "PutItem", "DeleteItem", "TransactWriteItems"];
            if status == 200 && writes.contains(&call.operation.as_str()) {
                let changes = changes(world, call).await;
                task::check(world, who, call, &changes);
                mission::check(world, who, &changes);
            }
        }
        Service::S3 => cloud::object_request(world, who, call, status),
        Service::Ec2 if status == 200 => cloud::instance_request(world, who, call),
        Service::Sns if status == 200 && call.operation == "Publish" => mission::published(world, who, call),
        _ => {}
    }
}

/// Reads the rows that a request may have changed, and returns those that it did.
async fn changes(world: &Arc<World>, call: &Call) -> Vec<Change> {
    let Some(body) = serde_json::from_slice::<Value>(&call.body).ok() else { return Vec::new() };
    let mut changes = Vec::new();
    for (table, key) in keys_of(&call.operation, &body) {
        let new = read(call, &table, &key).await;
        let mut known = locked(&world.known);
        let old = known.row(&table, &key);
        if new != old {
            known.rows.insert((table.clone(), key.clone()), new.clone());
            changes.push(Change { table, key, old, new });
        }
    }
    changes
}

async fn read(call: &Call, table: &str, key: &str) -> Value {
    let name = if table == TASKS { "srcFilename" } else { "timePush" };
    let ask = json!({ "TableName": table, "Key": { name: { "S": key } }, "ConsistentRead": true });
    let answer = call.ask_dynamodb("GetItem", ask.to_string()).await;
    let body = answer.ok().map(http::Response::into_body);
    let value = body.and_then(|body| serde_json::from_slice::<Value>(body.bytes()?).ok());
    value.map_or(Value::Null, |value| value["Item"].clone())
}
