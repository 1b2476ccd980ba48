//! The JSON form of rows and summaries, for the commands and the HTTP interface. docs/stability.md promises the names.

use serde_json::{Value, json};

use crate::domain::machine_info::{MicroUsd, PurchaseOption};
use crate::domain::mission::{Mission, Tally};
use crate::domain::policy::BidMode;
use crate::domain::task::{PastAttempt, Task};
use crate::domain::verdict::Verdict;
use crate::domain::work::{Inputs, ObjectName};
use crate::summary::{Reasons, Summary};

/// The number of the JSON format. It rises if a field is removed or changes its meaning; a new field does not raise it.
pub const SCHEMA: u32 = 1;

/// Returns a mission as `status --json` and the HTTP interface print it. `timeCost` is the sum, in seconds, of all
/// ended attempts.
#[must_use]
pub fn mission_json(mission: &Mission, total: Tally) -> Value {
    let policy = mission.policy.as_ref().ok();
    json!({
        "mission": mission.id.as_str(),
        "transNumber": mission.trans_number,
        "transOK": total.ok,
        "transFailed": total.failed,
        "timeCost": total.time_cost_s(),
        "timeCostMs": total.time_cost_ms,
        "notifyEmail": mission.notified.as_str(),
        "notifiedTo": mission.notified_to,
        "exec": mission.exec,
        "name": mission.name,
        "nodes": mission.nodes,
        "slots": mission.slots,
        "uploads": if mission.accepts_uploads { "yes" } else { "no" },
        "notifyOn": mission.notify_on.words(),
        "bidMode": policy.as_ref().and_then(|policy| policy.bid_mode).map(BidMode::as_str),
        "cancelledAt": mission.cancelled_at,
    })
}

/// Returns a summary: the mission's fields, and what is going on.
#[must_use]
pub fn summary_json(summary: &Summary) -> Value {
    let Summary { mission, total, running, pending, .. } = summary;
    let mut value = mission_json(mission, *total);
    value["schema"] = json!(SCHEMA);
    value["isComplete"] = json!(summary.is_complete());
    value["states"] = json!({ "pending": pending, "running": running, "done": total.ok, "failed": total.failed });
    value["instances"] = json!(summary.nodes.map(|nodes| json!({ "spot": nodes.spot, "onDemand": nodes.on_demand })));
    value["tasksPerMinute"] = json!(summary.rate_per_min());
    value["secondsLeft"] = json!(summary.time_left().map(|left| left.as_secs()));
    value["costUSD"] = json!(total.cost.usd());
    value["costInAllUSD"] = json!(summary.cost_in_all().map(MicroUsd::usd));
    value["nodeSeconds"] = json!(total.node_s);
    value["unpricedSeconds"] = json!(total.unpriced_s);
    value["failures"] = reasons_json(&summary.failures);
    value["waits"] = reasons_json(&summary.waits);
    value
}

fn reasons_json(reasons: &Reasons) -> Value {
    let groups: Vec<Value> = reasons
        .groups
        .iter()
        .map(|group| {
            json!({
                "verdict": group.verdict, "reason": group.reason, "count": group.count,
                "example": group.example.as_str(),
            })
        })
        .collect();
    json!({ "total": reasons.total, "read": reasons.read, "groups": groups })
}

/// Returns a task's row.
#[must_use]
pub fn task_json(task: &Task) -> Value {
    let work = task.work.as_ref().ok();
    json!({
        "srcFilename": task.src.as_str(),
        "state": task.state.as_str(),
        "since": task.open_since,
        "strIndiProgress": task.progress,
        "timeCost": task.time_cost_s(),
        "timeCostMs": task.time_cost_ms,
        "attempt": task.attempt.0,
        "execInstanceID": task.instance.as_ref().map(ToString::to_string),
        "verdict": task.verdict.map(Verdict::as_str),
        "error": task.error,
        "exitCode": task.exit_code,
        "signal": task.signal,
        "rsltFilename": task.result,
        "resultETag": task.result_etag,
        "resultBytes": task.result_bytes,
        "inputETag": task.input_etag,
        "sourceKey": work.and_then(|work| match &work.inputs {
            Inputs::Key(key) => Some(key),
            _ => None,
        }),
        "sources": work.and_then(|work| match &work.inputs {
            Inputs::Several(sources) => Some(sources.iter().map(ObjectName::uri).collect::<Vec<_>>()),
            _ => None,
        }),
        "index": work.and_then(|work| work.index),
        "params": work.map(|work| &work.params),
        "appFailures": task.app_failures,
        "interruptions": task.interruptions,
        "crashes": task.crashes,
        "suspect": task.is_suspect,
        "checkpoint": task.checkpoint,
        "launchInstanceID": task.launch.instance,
        "launchError": task.launch.error,
        "launchAfter": task.launch.after,
        "history": task.history.iter().map(past_json).collect::<Vec<_>>(),
    })
}

/// Returns an ended attempt.
#[must_use]
pub fn past_json(past: &PastAttempt) -> Value {
    json!({
        "attempt": past.attempt.0,
        "instance": past.instance,
        "type": past.machine.instance_type,
        "zone": past.machine.zone,
        "purchase": past.machine.purchase.map(PurchaseOption::as_str),
        "usdPerHour": past.machine.usd_per_hour.map(MicroUsd::usd),
        "started": past.started,
        "ended": past.ended,
        "verdict": past.end.verdict.as_str(),
        "exitCode": past.end.exit_code,
        "signal": past.end.signal,
        "peakMemory": past.end.peak_memory,
        "error": past.end.error,
        "log": past.log,
    })
}
