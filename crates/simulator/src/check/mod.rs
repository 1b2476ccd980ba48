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
use crate::requests::{Item, items};
use crate::who::Who;
use crate::world::World;
use known::Change;

/// Returns what a request is about, for the trace.
pub(crate) fn subject(call: &Call) -> String {
    match call.service {
        Service::S3 => call.parts.uri.path().to_owned(),
        Service::Dynamodb => {
            let Some(body) = serde_json::from_slice::<Value>(&call.body).ok() else { return String::new() };
            items(&body).into_iter().map(|item| item.key).collect::<Vec<_>>().join(",")
        }
        _ => format!("{} bytes", call.body.len()),
    }
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
    for Item { table, key, .. } in items(&body) {
        let (table, key) = (table.to_owned(), key.to_owned());
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
