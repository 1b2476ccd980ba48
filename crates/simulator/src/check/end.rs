//! Checks of the world at the end of a simulation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::Backend;
use lighthpc::domain::ids::MissionId;
use lighthpc::domain::mission::Notified;
use local_cloud::{RESULT_BUCKET, SOURCE_BUCKET};
use serde_json::Value;

use super::checker::Checker;
use super::cloud::{FOREIGN_BYTES, FOREIGN_KEY, is_foreign};
use super::rows::{MISSIONS, TASKS, number, text};
use crate::lock::locked;
use crate::plan::Fault;
use crate::tasks::MISSION;
use crate::tasks::{input_of, result_of};
use crate::who::Who;
use crate::world::World;

/// The most requests of a machine or caller that are not for a task: settings, prices, the mission's end.
const REQUESTS_BASE: u64 = 200;
/// The most requests for an attempt, or of a caller for a row, repeats included: a task has ten as a rule.
const REQUESTS_FOR_TASK: u64 = 60;
/// The most requests in a second besides, in the long run: heartbeats, looks at a lease, and what an outage repeats.
const REQUESTS_PER_S: f64 = 0.75;

/// Returns whether the mission has ended: all tasks, the notification, and every machine.
pub(crate) async fn has_ended(world: &Arc<World>, backend: &Backend) -> bool {
    let id = MissionId::new(MISSION).expect("a legal name");
    let Ok(Some(mission)) = backend.ledger.mission(&id).await else { return false };
    let Ok(sum) = backend.ledger.tally(&mission).await else { return false };
    // One that was cancelled before it had a task has no end, and no notification.
    let is_empty = mission.cancelled_at.is_some() && mission.trans_number == Some(0);
    let is_over = mission.is_complete(mission.total(sum)) && mission.notified == Notified::Yes;
    (is_over || is_empty)
        && world.cloud.instances().iter().all(|instance| instance.state != "running" || is_foreign(instance))
}

/// Checks the world at its end.
pub(crate) async fn at_end(world: &Arc<World>, backend: &Backend) {
    let (rows, mission) = {
        let known = locked(&world.known);
        let rows: BTreeMap<String, Value> =
            known.table(TASKS).map(|(src, row)| (src.to_owned(), row.clone())).collect();
        (rows, known.row(MISSIONS, MISSION))
    };
    check_count(world, &rows, &mission);
    for (src, row) in &rows {
        match text(row, "state") {
            "done" => check_result(world, backend, src, row).await,
            "failed" => check_verdict(world, src, row),
            // A task of no mission, from an upload before the mission existed, has its node too.
            state => world.broken(Checker::End, &format!("{src} is {state}")),
        }
    }
    check_notified(world, &mission);
    check_machines(world);
    check_objects(world, backend, &rows).await;
    check_requests(world, rows.len() as u64);
}

/// No machine and no caller makes more requests than its work needs.
fn check_requests(world: &World, rows: u64) {
    for (who, sent) in world.requests() {
        let tasks = match who {
            Who::Node { machine, .. } => {
                let known = locked(&world.known);
                let its = |by: &Who| matches!(by, Who::Node { machine: of, .. } if *of == machine);
                known.attempts.values().filter(|attempt| its(&attempt.by)).count() as u64
            }
            _ => rows,
        };
        let time = (sent.last.saturating_sub(sent.first)).mul_f64(REQUESTS_PER_S).as_secs();
        let most = REQUESTS_BASE + REQUESTS_FOR_TASK * tasks + time;
        if sent.count > most {
            let count = sent.count;
            world.broken(Checker::Requests, &format!("{who} made {count} requests, and its work needs {most}"));
        }
    }
}

fn check_count(world: &World, rows: &BTreeMap<String, Value>, mission: &Value) {
    let its = rows.values().filter(|row| text(row, "missionID") == MISSION).count() as u64;
    let count = number(mission, "transNumber");
    let known = locked(&world.known);
    let submitted = known.submitted.len() as u64;
    // An uploaded object is a task more than the mission's number, until the next submission counts the rows.
    if count < submitted || count > its {
        drop(known);
        let text = format!("the mission has {count} tasks, {submitted} were submitted, and there are {its} rows");
        return world.broken(Checker::Submission, &text);
    }
    let uploaded = known.uploaded.iter().filter(|_| !known.was_cancelled && world.plan.mission.uploads);
    let missing: Vec<String> =
        known.submitted.iter().chain(uploaded).filter(|src| !rows.contains_key(*src)).cloned().collect();
    drop(known);
    for src in missing {
        world.broken(Checker::Submission, &format!("{src} has no row"));
    }
}

async fn check_result(world: &Arc<World>, backend: &Backend, src: &str, row: &Value) {
    let key = text(row, "rsltFilename").trim_start_matches(&format!("s3://{RESULT_BUCKET}/")).to_owned();
    let named = text(row, "resultETag").trim_matches('"').to_owned();
    let index = if key.ends_with('/') { format!("{key}_lighthpc_index.json") } else { key.clone() };
    if world.cloud.object_etag(RESULT_BUCKET, &index).unwrap_or_default() != named {
        world.broken(Checker::Result, &format!("the result of {src} was replaced after its commit"));
    }
    for (name, bytes) in result_of(&world.plan.mission, src) {
        match backend.store.read(RESULT_BUCKET, &format!("{key}{name}")).await {
            Ok(read) if read == bytes.as_bytes() => {}
            Ok(read) => {
                let read = String::from_utf8_lossy(&read).into_owned();
                world.broken(Checker::Result, &format!("the result of {src} is not its own: {read:.80}"));
            }
            Err(error) => world.broken(Checker::Result, &format!("the result of {src} cannot be read: {error}")),
        }
    }
}

fn check_verdict(world: &World, src: &str, row: &Value) {
    let (verdict, error) = (text(row, "verdict"), text(row, "error"));
    if verdict.is_empty() || error.is_empty() {
        return world.broken(Checker::Verdict, &format!("{src} failed without a verdict or an error"));
    }
    let known = locked(&world.known);
    let failures = known.failures.get(src).copied().unwrap_or(0);
    let was_cancelled = known.was_cancelled;
    let launched = known.machines.values().filter(|life| life.launched_for.as_ref().is_some_and(|(of, ..)| of == src));
    let launched = launched.count();
    drop(known);
    let max = world.plan.mission.max_interruptions;
    let is_earned = match verdict {
        "cancelled" => was_cancelled || number(row, "interruptions") > max,
        "lost" | "spot-interrupted" => number(row, "interruptions") >= max,
        // Instances that ended before a claim, or failures of services and disks.
        "infra" => launched >= 5 || number(row, "appFailures") > 0 || world.faults().any(is_of_infrastructure),
        "app-error" | "timeout" | "no-result" | "oom" | "disk-full" => {
            failures > 0
                || number(row, "crashes") > 0
                || world.plan.mission.has_folder
                || number(row, "appFailures") > 0
        }
        _ => false,
    };
    if !is_earned {
        world.broken(
            Checker::Verdict,
            &format!("{src} failed as {verdict} ({error}), and nothing of the kind happened"),
        );
    }
}

/// Returns whether a fault can be the reason of a task's failure by something else than its program.
fn is_of_infrastructure(fault: &Fault) -> bool {
    !matches!(
        fault,
        Fault::Operator { .. }
            | Fault::Workload { .. }
            | Fault::Event { .. }
            | Fault::Lag { .. }
            | Fault::TwoSweeps { .. }
            | Fault::KillCaller { .. }
            | Fault::Clock { .. }
            | Fault::Launch { fewer: 0, .. }
    )
}

fn check_notified(world: &World, mission: &Value) {
    let known = locked(&world.known);
    let opened = number(mission, "opened");
    let is_notified = known.published.iter().any(|(_, _, of)| *of == opened);
    drop(known);
    let is_empty = number(mission, "transNumber") == 0 && !text(mission, "cancelledAt").is_empty();
    if !is_notified && !is_empty {
        world.broken(Checker::Notification, "nobody was notified of the last end");
    }
}

fn check_machines(world: &World) {
    for instance in world.cloud.instances() {
        if is_foreign(&instance) {
            if instance.state != "running" {
                world.broken(Checker::Foreign, &format!("the instance {} of somebody else ended", instance.id));
            }
        } else if instance.state == "running" {
            world.broken(Checker::Billing, &format!("the instance {} still runs: {:?}", instance.id, instance.tags));
        }
    }
}

async fn check_objects(world: &Arc<World>, backend: &Backend, rows: &BTreeMap<String, Value>) {
    match backend.store.read(RESULT_BUCKET, FOREIGN_KEY).await {
        Ok(bytes) if bytes == FOREIGN_BYTES => {}
        _ => world.broken(Checker::Foreign, "an object of somebody else was changed"),
    }
    for src in rows.keys() {
        match backend.store.read(SOURCE_BUCKET, src).await {
            Ok(bytes) if bytes == input_of(src).as_bytes() => {}
            _ => world.broken(Checker::Foreign, &format!("the input of {src} was changed")),
        }
    }
    check_leftovers(world, backend, rows).await;
}

/// What only a lifecycle rule removes: what a process that a fault hit has left.
async fn check_leftovers(world: &Arc<World>, backend: &Backend, rows: &BTreeMap<String, Value>) {
    let (uploads, holders) = {
        let known = locked(&world.known);
        (known.uploads.clone(), known.holders.clone())
    };
    for (key, who) in uploads {
        if !world.is_disturbed_since(who, Duration::ZERO) {
            world.broken(Checker::Leftovers, &format!("{who} left an upload of {key}"));
        }
    }
    let left = backend.store.list(RESULT_BUCKET, "checkpoints/").await.unwrap_or_default();
    let is_excused = |src: &String| {
        let holders = holders.get(src).into_iter().flatten();
        holders.into_iter().any(|who| world.is_disturbed_since(*who, Duration::ZERO))
    };
    let done = rows.iter().filter(|(_, row)| text(row, "state") == "done");
    // The folder of a checkpoint is a digest: it is enough to know that no fault hit any holder of a task.
    let is_all_done = done.clone().count() == rows.len();
    if is_all_done && !left.is_empty() && !rows.keys().any(is_excused) {
        world.broken(Checker::Leftovers, &format!("{} objects of checkpoints are left: {}", left.len(), left[0]));
    }
}
