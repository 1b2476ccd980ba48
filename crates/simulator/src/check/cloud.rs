//! Checks of requests to S3 and EC2, and of the lives of instances.

use std::time::Duration;

use local_cloud::{Call, Instance, RESULT_BUCKET, SOURCE_BUCKET};

use super::checker::Checker;
use super::known::MachineLife;
use super::rows::{TASKS, number, text};
use crate::lock::locked;
use crate::plan::{Fault, Of};
use crate::settings::LEASE;
use crate::who::Who;
use crate::world::World;

/// An object in the result bucket that is not lighthpc's.
pub(crate) const FOREIGN_KEY: &str = "rslt_of_somebody_else";
pub(crate) const FOREIGN_BYTES: &[u8] = b"not ours";
/// How long an instance may run after its last need: a boot that never ends (15 minutes), then three sweeps of five
/// minutes, of which one may fail, with a lease in between.
const BILLED_MAX: Duration = Duration::from_mins(35);

/// How long after a mission was reinstated its cancellation may still terminate an instance: the time between its last
/// read of the mission and the termination.
const REINSTATED_MAX: Duration = Duration::from_secs(60);
/// How long after a claim its instance may still be terminated because it had no task: the time between the sweep's last
/// read of the task and the termination, without the time of requests.
const DECISION_MAX: Duration = Duration::from_secs(2);

pub(crate) fn is_foreign(instance: &Instance) -> bool {
    instance.tags.iter().any(|(key, value)| key == "lighthpc" && value == "another")
}

/// An instance was launched.
pub(crate) fn machine_starts(world: &World, id: &str, number: u64) {
    let mut known = locked(&world.known);
    let new = MachineLife { number, needed: world.time(), launched_for: None };
    // Its launch may have been noted a moment before.
    known.machines.entry(id.to_owned()).or_insert(new).number = number;
}

/// An instance was terminated.
pub(crate) fn machine_ends(world: &World, id: &str) {
    let known = locked(&world.known);
    let Some(life) = known.machines.get(id).cloned() else { return };
    let is_of_mission = life.launched_for.is_none();
    let needed = if is_of_mission { life.needed.max(known.waited) } else { life.needed };
    drop(known);
    let idle = world.time().saturating_sub(needed);
    if idle > BILLED_MAX + faults_in(world) {
        let (number, idle) = (life.number, idle.as_secs());
        world.broken(Checker::Billing, &format!("machine {number} ran for {idle} s after its last need"));
    }
}

/// Returns by how much faults may delay the end of an instance: while EC2 or the tables do not answer, or it stands
/// still, or is not shown.
fn faults_in(world: &World) -> Duration {
    let lengths = world.faults().map(|fault| match fault {
        Fault::Outage { length, .. } | Fault::Slow { length, .. } | Fault::Freeze { length, .. } => *length,
        Fault::Hide { length, .. } => *length,
        Fault::Stalls { length, .. } => *length / 4,
        Fault::KillCaller { .. } | Fault::CallerRequest { .. } => Duration::from_mins(5),
        _ => Duration::ZERO,
    });
    lengths.sum()
}

/// Checks a request to EC2 that was applied.
pub(super) fn instance_request(world: &World, who: Who, call: &Call) {
    let form = String::from_utf8_lossy(&call.body).into_owned();
    match call.operation.as_str() {
        "TerminateInstances" => {
            for instance in world.cloud.instances() {
                if form.contains(&instance.id) {
                    check_termination(world, who, call, &instance);
                    // What it was doing stays half done, as after a kill.
                    let number = locked(&world.known).machines.get(&instance.id).map(|life| life.number);
                    if let (Some(machine), Who::Caller(_)) = (number, who) {
                        world.disturb(Who::Node { machine, start: 0 }, None);
                    }
                }
            }
        }
        "CreateFleet" => check_launch(world, who),
        _ => {}
    }
}

fn check_termination(world: &World, who: Who, call: &Call, instance: &Instance) {
    if is_foreign(instance) {
        world.broken(Checker::Foreign, &format!("{who} terminated the instance {} of somebody else", instance.id));
    }
    match who {
        Who::Node { .. } if call.instance.as_deref() != Some(&instance.id) => {
            world.broken(Checker::Foreign, &format!("{who} terminated {}, which is another machine", instance.id));
        }
        Who::Caller(_) => {
            // An instance without a task may claim one between the last read of its task and its termination.
            let decision = DECISION_MAX
                + 8 * world.plan.mission.latency
                + [Of::DynamoDb, Of::Ec2].into_iter().map(|service| world.slowness(service)).sum::<Duration>();
            let known = locked(&world.known);
            let held = known.table(TASKS).find(|(src, row)| {
                let attempt = known.attempts.get(&((*src).to_owned(), number(row, "attempt")));
                let age = |since| world.time().saturating_sub(since);
                text(row, "state") == "running"
                    && text(row, "execInstanceID") == instance.id
                    && attempt.is_some_and(|attempt| age(attempt.renewed) < LEASE && age(attempt.claimed) > decision)
            });
            let held = held.map(|(src, _)| src.to_owned());
            // A redrive may reinstate the mission while a cancellation ends: an instance that takes a task in this moment
            // is lost.
            let is_reinstated = known.reinstated.is_some_and(|at| world.time().saturating_sub(at) < REINSTATED_MAX);
            drop(known);
            if let Some(src) = held.filter(|_| !is_reinstated) {
                world.broken(Checker::Lease, &format!("{who} terminated {}, which holds {src}", instance.id));
            }
        }
        _ => {}
    }
}

/// Notes what new instances were launched for, and checks that none was there.
fn check_launch(world: &World, who: Who) {
    let instances = world.cloud.instances();
    let is_hidden = |number: u64| {
        world.faults().any(|fault| matches!(fault, Fault::Hide { machine, .. } if *machine == number))
            || world.plan.mission.has_spare_instances
            || world.faults().any(|fault| matches!(fault, Fault::Launch { more, .. } if *more > 0))
    };
    for instance in &instances {
        let tag = |name: &str| instance.tags.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let mut known = locked(&world.known);
        let is_new = known.machines.get(&instance.id).is_none_or(|life| life.launched_for.is_none());
        let Some(src) = tag("srcID").filter(|_| is_new && !is_foreign(instance)) else { continue };
        let attempt = number(&known.row(TASKS, &src), "attempt");
        let launched_for = (src.clone(), attempt, known.redrives.get(&src).copied().unwrap_or(0));
        let others = known.machines.iter().filter(|(id, life)| {
            **id != instance.id
                && life.launched_for.as_ref() == Some(&launched_for)
                && !is_hidden(life.number)
                && world.is_running(id)
        });
        let other = others.map(|(_, life)| life.number).next();
        // The machine is played a moment after the answer.
        let life = known.machines.entry(instance.id.clone()).or_insert_with(|| MachineLife {
            number: 0,
            needed: world.time(),
            launched_for: None,
        });
        life.launched_for = Some(launched_for);
        drop(known);
        if let Some(other) = other {
            world.broken(
                Checker::OneNode,
                &format!("{who} launched {} for {src}, for which machine {other} runs", instance.id),
            );
        }
    }
}

/// Checks a request to S3 that was applied.
pub(super) fn object_request(world: &World, who: Who, call: &Call, status: u16) {
    let path = percent_encoding::percent_decode_str(call.parts.uri.path()).decode_utf8_lossy().into_owned();
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let writes = ["PutObject", "CompleteMultipartUpload", "DeleteObject", "DeleteObjects", "CopyObject"];
    let is_write = writes.contains(&call.operation.as_str()) && (200..300).contains(&status);
    if is_write && bucket == SOURCE_BUCKET {
        world.broken(Checker::Foreign, &format!("{who} changed the source bucket: {} {key}", call.operation));
    }
    if is_write && key == FOREIGN_KEY {
        world.broken(Checker::Foreign, &format!("{who} changed {key}, which is not ours"));
    }
    note_upload(world, who, call, key, status);
    if !is_write || bucket != RESULT_BUCKET {
        return;
    }
    let deleted = String::from_utf8_lossy(&call.body).into_owned();
    let known = locked(&world.known);
    let touched: Vec<(String, String, String)> = if call.operation == "DeleteObjects" {
        let named = known.results.iter().filter(|(result, _)| deleted.contains(&format!("<Key>{result}</Key>")));
        named.map(|(result, (src, etag))| (result.clone(), src.clone(), etag.clone())).collect()
    } else {
        known.results.get(key).map(|(src, etag)| (key.to_owned(), src.clone(), etag.clone())).into_iter().collect()
    };
    drop(known);
    for (result, src, etag) in touched {
        if world.cloud.object_etag(RESULT_BUCKET, &result).as_deref() != Some(&etag) {
            world.broken(Checker::Fence, &format!("{who} changed the committed result of {src}: {}", call.operation));
        }
    }
}

/// Notes uploads in parts that begin and end.
fn note_upload(world: &World, who: Who, call: &Call, key: &str, status: u16) {
    let uploads = &mut locked(&world.known).uploads;
    match call.operation.as_str() {
        "CreateMultipartUpload" if status == 200 => uploads.push((key.to_owned(), who)),
        "CompleteMultipartUpload" | "AbortMultipartUpload" if (200..300).contains(&status) => {
            // Its own, or that of an earlier publisher.
            let own = uploads.iter().position(|(of, by)| of == key && *by == who);
            if let Some(at) = own.or_else(|| uploads.iter().position(|(of, _)| of == key)) {
                uploads.remove(at);
            }
        }
        _ => {}
    }
}
