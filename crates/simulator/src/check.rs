//! The checkers: each promise of docs/SEMANTICS.md that can be seen in the tables, the objects, and the machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::Backend;
use lighthpc::domain::ids::MissionId;
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::{State, Task};
use local_cloud::{Call, RESULT_BUCKET, Service};
use serde_json::{Value, json};

use crate::index::IndexChange;
use crate::script::result_of;
use crate::world::{Who, World, locked};

const TASKS: &str = "tblTrans2";

/// What is known of the rows from the writes so far.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) changes: Vec<IndexChange>,
    /// The results that were committed: task → key and `ETag`.
    committed: BTreeMap<String, (String, String)>,
    /// Notifications of a mission's end: when.
    pub(crate) notified: Vec<Duration>,
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
        let items = body["TransactItems"].as_array().cloned().unwrap_or_default();
        let one = |item: &Value| item.as_object().and_then(|item| item.values().next()).and_then(key_of);
        return items.iter().filter_map(one).collect();
    }
    key_of(body).into_iter().collect()
}

fn is_write(call: &Call) -> bool {
    call.service == Service::Dynamodb
        && matches!(call.operation.as_str(), "UpdateItem" | "PutItem" | "DeleteItem" | "TransactWriteItems")
}

/// Reads the rows that a request may change.
pub(crate) async fn before(call: &Call) -> Vec<(String, Value)> {
    if !is_write(call) {
        return Vec::new();
    }
    let Some(body) = serde_json::from_slice::<Value>(&call.body).ok() else { return Vec::new() };
    let mut rows = Vec::new();
    for (table, key) in keys_of(&call.operation, &body) {
        if table == TASKS {
            let row = row(call, &key).await;
            rows.push((key, row));
        }
    }
    rows
}

async fn row(call: &Call, key: &str) -> Value {
    let ask = json!({ "TableName": TASKS, "Key": { "srcFilename": { "S": key } }, "ConsistentRead": true });
    let answer = call.ask_dynamodb("GetItem", ask.to_string()).await;
    let body = answer.ok().map(http::Response::into_body);
    let value = body.and_then(|body| serde_json::from_slice::<Value>(body.bytes()?).ok());
    value.map_or(Value::Null, |value| value["Item"].clone())
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name]["S"].as_str().unwrap_or_default()
}

fn number(row: &Value, name: &str) -> u64 {
    row[name]["N"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Checks what a request changed.
pub(crate) async fn after(world: &Arc<World>, who: Who, call: &Call, before: Vec<(String, Value)>, status: u16) {
    for (key, old) in before {
        let new = row(call, &key).await;
        if new == old {
            continue;
        }
        check_row(world, who, call, &key, &old, &new);
        let entry = |row: &Value| {
            let (at, order) = (text(row, "openIn").to_owned(), text(row, "openAs").to_owned());
            (!at.is_empty()).then_some((at, order))
        };
        if entry(&old) != entry(&new) {
            let change = IndexChange { at: world.time(), src: key, before: entry(&old), after: entry(&new) };
            locked(&world.rows).changes.push(change);
        }
    }
    if call.service == Service::Sns && call.operation == "Publish" && status == 200 {
        check_notification(world, call).await;
    }
}

fn check_row(world: &World, who: Who, call: &Call, key: &str, old: &Value, new: &Value) {
    let (was, is) = (text(old, "state"), text(new, "state"));
    if number(new, "attempt") < number(old, "attempt") {
        world.broken(&format!("{who} set the attempt of {key} back"));
    }
    if was == "done" && (is != "done" || text(old, "resultETag") != text(new, "resultETag")) {
        world.broken(&format!("{who} changed the task {key}, which is done"));
    }
    if is == "done" && was != "done" {
        world.saw("commit");
        let result = text(new, "rsltFilename").trim_start_matches(&format!("s3://{RESULT_BUCKET}/")).to_owned();
        let etag = text(new, "resultETag").to_owned();
        locked(&world.rows).committed.insert(key.to_owned(), (result, etag));
    }
    if let Who::Node(_) = who {
        let me = call.instance.as_deref().unwrap_or_default();
        let held = text(old, "execInstanceID") == me;
        let claims = number(new, "attempt") == number(old, "attempt") + 1 && text(new, "execInstanceID") == me;
        let lease = ["state", "attempt", "beat", "verdict", "rsltFilename", "history", "execInstanceID"];
        let changed: Vec<&str> = lease.into_iter().filter(|name| old[name] != new[name]).collect();
        if !held && !claims && !changed.is_empty() {
            world.broken(&format!("{who} changed {} of {key}, which {} holds", changed.join(", "), text(old, "execInstanceID")));
        }
        if claims && was == "running" {
            world.saw("takeover");
        }
    }
    if is == "pending" && was == "running" {
        world.saw(&format!("release {}", text(new, "verdict")));
    }
    if is == "failed" && was != "failed" {
        world.saw(&format!("failed {}", text(new, "verdict")));
    }
    if is == "pending" && was == "failed" {
        world.saw("redrive");
    }
}

/// The notification of the end comes after the true end.
async fn check_notification(world: &Arc<World>, call: &Call) {
    let form = String::from_utf8_lossy(&call.body).into_owned();
    if form.contains("tasks+fail") || form.contains("has+stalled") {
        return;
    }
    world.saw("notification");
    locked(&world.rows).notified.push(world.time());
    let ask = json!({ "TableName": TASKS, "ConsistentRead": true });
    let answer = call.ask_dynamodb("Scan", ask.to_string()).await;
    let body = answer.ok().map(http::Response::into_body);
    let value = body.and_then(|body| serde_json::from_slice::<Value>(body.bytes()?).ok()).unwrap_or_default();
    let open = value["Items"].as_array().into_iter().flatten();
    let open: Vec<&str> = open
        .filter(|row| text(row, "missionID") == MISSION && !matches!(text(row, "state"), "done" | "failed"))
        .map(|row| text(row, "srcFilename"))
        .collect();
    // Whoever enlarges or redrives it in the same moment opens it again.
    if !open.is_empty() && !world.has_operated_within(OPENED_MEANWHILE) {
        world.broken(&format!("the end was announced while {} is not ended", open.join(", ")));
    }
}

/// The mission of the simulation.
pub(crate) const MISSION: &str = "M";
/// How long a notification may be under way while the mission is opened again: a publication lasts at most a lease,
/// and the requests of whoever opens it are delayed by minutes.
const OPENED_MEANWHILE: Duration = Duration::from_mins(15);

/// Returns whether the mission has ended: all tasks, the notification, and every machine.
pub(crate) async fn has_ended(world: &Arc<World>, backend: &Backend) -> bool {
    let id = MissionId::new(MISSION).expect("a legal name");
    let Ok(Some(mission)) = backend.ledger.mission(&id).await else { return false };
    let Ok(sum) = backend.ledger.tally(&mission).await else { return false };
    mission.is_complete(mission.total(sum))
        && mission.notified == Notified::Yes
        && world.cloud.instances().iter().all(|instance| instance.state != "running" || is_foreign(instance))
}

pub(crate) fn is_foreign(instance: &local_cloud::Instance) -> bool {
    instance.tags.iter().any(|(key, value)| key == "lighthpc" && value == "another")
}

/// Checks the world at its end.
pub(crate) async fn at_end(world: &Arc<World>, backend: &Backend, submitted: u64) {
    let id = MissionId::new(MISSION).expect("a legal name");
    let Ok(Some(mission)) = backend.ledger.mission(&id).await else {
        return world.broken("the mission has no row");
    };
    let mut tasks: Vec<Task> = Vec::new();
    let read = backend.ledger.each_task(None, |task| tasks.push(task)).await;
    let Ok(sum) = backend.ledger.tally(&mission).await else { return world.broken("the tally cannot be read") };
    let total = mission.total(sum);
    if read.is_err() {
        world.broken("the rows cannot be read");
    }
    tasks.retain(|task| task.mission.as_ref() == Some(&id));
    let count = |state: State| tasks.iter().filter(|task| task.state == state).count() as u64;
    if (total.ok, total.failed) != (count(State::Done), count(State::Failed)) {
        let (done, failed) = (count(State::Done), count(State::Failed));
        world.broken(&format!("the tally says {} done and {} failed, the rows {done} and {failed}", total.ok, total.failed));
    }
    if (tasks.len() as u64) < submitted {
        world.broken(&format!("{submitted} tasks were submitted, and {} have a row", tasks.len()));
    }
    if mission.trans_number != Some(tasks.len() as u64) {
        world.broken(&format!("transNumber is {:?}, and there are {} rows", mission.trans_number, tasks.len()));
    }
    for task in &tasks {
        check_task(world, backend, task).await;
    }
    if locked(&world.rows).notified.is_empty() {
        world.broken("nobody was notified");
    }
    for instance in world.cloud.instances() {
        if is_foreign(&instance) {
            if instance.state != "running" {
                world.broken(&format!("the instance {} of somebody else was ended", instance.id));
            }
        } else if instance.state == "running" {
            world.broken(&format!("the instance {} still runs: {:?}", instance.id, instance.tags));
        }
    }
    match backend.store.read(RESULT_BUCKET, FOREIGN_KEY).await {
        Ok(bytes) if bytes == FOREIGN_BYTES => {}
        _ => world.broken("an object of somebody else was changed"),
    }
    for (who, count) in world.requests() {
        if count > REQUESTS_MAX {
            world.broken(&format!("{who} made {count} requests"));
        }
    }
}

/// An object in the result bucket that is not lighthpc's.
pub(crate) const FOREIGN_KEY: &str = "rslt_of_somebody_else";
pub(crate) const FOREIGN_BYTES: &[u8] = b"not ours";
/// The most requests of one process or command in a simulation of some hours: a heartbeat each 20 s, a Spot notice each
/// 5 s, and some dozens for each task.
const REQUESTS_MAX: u64 = 20_000;

async fn check_task(world: &Arc<World>, backend: &Backend, task: &Task) {
    let src = task.src.as_str();
    match task.state {
        State::Done => {
            let Some(uri) = &task.result else { return world.broken(&format!("{src} is done and has no result")) };
            let key = uri.trim_start_matches(&format!("s3://{RESULT_BUCKET}/"));
            match backend.store.read(RESULT_BUCKET, key).await {
                Ok(bytes) if bytes == result_of(src).into_bytes() => {}
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    world.broken(&format!("the result of {src} is not its own: {text:.60}"));
                }
                Err(error) => world.broken(&format!("the result of {src} cannot be read: {error}")),
            }
            let etag = world.cloud.object_etag(RESULT_BUCKET, key).unwrap_or_default();
            let named = task.result_etag.as_deref().unwrap_or_default().trim_matches('"').to_owned();
            if etag != named {
                world.broken(&format!("the result of {src} was replaced after its commit"));
            }
        }
        State::Failed if task.verdict.is_none() || task.error.is_none() => {
            world.broken(&format!("{src} failed without a verdict or an error"));
        }
        State::Failed => {}
        state => world.broken(&format!("{src} is {}", state.as_str())),
    }
}
