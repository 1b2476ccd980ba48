//! The checkers: each promise of docs/SEMANTICS.md that can be seen in the tables, the objects, and the machines.
//!
//! Most look at each request that is applied: what it changed, and whether its sender had the right to. Some look at the
//! end of the simulation.

mod checker;
mod cloud;
mod end;
mod known;
mod mission;
mod rows;
mod task;
mod workload;

use std::sync::Arc;

use lighthpc::domain::ids::SrcId;
use local_cloud::{Call, Service};
use serde_json::{Value, json};

use crate::tasks::MISSION;
pub(crate) use checker::Checker;
pub(crate) use cloud::{FOREIGN_BYTES, FOREIGN_KEY, is_foreign, machine_ends, machine_starts};
pub(crate) use end::{at_end, has_ended};
pub(crate) use known::Known;
use rows::MISSIONS;
pub(crate) use rows::{TASKS, number, task_row, text};
pub(crate) use workload::{ends as workload_ends, runs as workload_runs, starts as workload_starts};

use crate::lock::locked;
use crate::who::Who;
use crate::world::World;
use known::Change;

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
