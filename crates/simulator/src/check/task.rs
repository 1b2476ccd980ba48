//! Checks of each change of a task's row.

use std::time::Duration;

use local_cloud::{Call, RESULT_BUCKET};
use serde_json::Value;

use super::checker::Checker;
use super::known::{Attempt, Change, IndexChange};
use super::rows::{TASKS, number, text};
use crate::lock::locked;
use crate::plan::Of;
use crate::settings::{HEARTBEAT, LEASE, NODE_LIFETIME};
use crate::tasks::MISSION;
use crate::who::Who;
use crate::world::World;

/// The longest time between two renewals of a holder that no fault hits: the period, its jitter of 10 %, and requests.
const RENEWAL_MAX: Duration = Duration::from_secs(HEARTBEAT.as_secs() * 11 / 10 + 3);
/// How old a mission's row may be when a node reads there that the mission is not cancelled.
const MISSION_AGE_MAX: Duration = Duration::from_secs(5);
/// What only the holder, or who ends its attempt, changes.
const HELD: [&str; 10] = [
    "state",
    "attempt",
    "beat",
    "verdict",
    "rsltFilename",
    "resultETag",
    "history",
    "execInstanceID",
    "checkpoint",
    "strIndiProgress",
];

/// Checks the changes of one request.
pub(super) fn check(world: &World, who: Who, call: &Call, changes: &[Change]) {
    for change in changes.iter().filter(|change| change.table == TASKS) {
        note_index(world, change);
        if who == Who::Hand {
            locked(&world.known).edited.insert(change.key.clone());
            continue;
        }
        count(world, change);
        check_attempt(world, who, change);
        check_done(world, who, change);
        let is_claim = number(&change.new, "attempt") == number(&change.old, "attempt") + 1;
        if is_claim {
            check_claim(world, who, call, change);
        } else {
            check_holder(world, who, change);
        }
        check_interruptions(world, who, change);
        check_index(world, who, change);
        note_needs(world, change);
    }
}

fn state(row: &Value) -> String {
    text(row, "state").to_lowercase()
}

/// Counts the rare states.
fn count(world: &World, Change { key, old, new, .. }: &Change) {
    let verdict = text(new, "verdict");
    match (state(old).as_str(), state(new).as_str()) {
        ("running", "done") => world.saw("task done"),
        ("running", "pending") => {
            world.saw(&format!("task released: {verdict}"));
            if verdict == "cancelled" && number(new, "interruptions") == number(old, "interruptions") {
                world.saw("task handed back before its workload");
            }
        }
        ("running" | "pending", "failed") => world.saw(&format!("task failed: {verdict}")),
        ("failed", "pending") => {
            world.saw("task redriven");
            *locked(&world.known).redrives.entry(key.clone()).or_default() += 1;
        }
        ("running", "running") if number(new, "attempt") > number(old, "attempt") => {
            let is_own = text(new, "execInstanceID") == text(old, "execInstanceID");
            world.saw(if is_own { "task taken up again after a restart" } else { "task taken over" });
        }
        _ => {}
    }
    if old["suspect"].is_null() && !new["suspect"].is_null() {
        world.saw("task suspected of a crash");
    }
    if number(new, "launchesLost") > number(old, "launchesLost") {
        world.saw("instance ended before it claimed");
    }
    if old["cancelled"].is_null() && !new["cancelled"].is_null() {
        world.saw("holder asked to stop");
    }
}

fn check_attempt(world: &World, who: Who, Change { key, old, new, .. }: &Change) {
    let (was, is) = (number(old, "attempt"), number(new, "attempt"));
    if is < was || is > was + 1 {
        world.broken(Checker::Attempt, &format!("{who} changed the attempt of {key} from {was} to {is}"));
    }
}

fn check_done(world: &World, who: Who, Change { key, old, new, .. }: &Change) {
    if state(old) == "done" {
        let result = ["state", "resultETag", "rsltFilename", "attempt"];
        if let Some(name) = result.into_iter().find(|name| old[name] != new[name]) {
            world.broken(Checker::Result, &format!("{who} changed {name} of {key}, which is done"));
        }
    } else if state(new) == "done" {
        let result = text(new, "rsltFilename").trim_start_matches(&format!("s3://{RESULT_BUCKET}/")).to_owned();
        let etag = text(new, "resultETag").trim_matches('"').to_owned();
        locked(&world.known).results.insert(result, (key.clone(), etag));
    }
}

/// Checks that nobody loses a fresh lease.
fn check_lease(world: &World, who: Who, what: &str, Change { key, old, .. }: &Change) {
    let owner = text(old, "execInstanceID");
    let known = locked(&world.known);
    let renewed = known.attempts.get(&(key.clone(), number(old, "attempt"))).map(|attempt| attempt.renewed);
    drop(known);
    let age = renewed.map(|renewed| world.time().saturating_sub(renewed));
    if age.is_some_and(|age| age < LEASE) && world.is_running(owner) {
        let age = age.unwrap_or_default().as_secs_f64();
        world.broken(
            Checker::Lease,
            &format!("{who} {what} {key}, whose holder {owner} runs and renewed its lease {age:.1} s ago"),
        );
    }
}

fn check_claim(world: &World, who: Who, call: &Call, change: &Change) {
    let Change { key, old, new, .. } = change;
    let owner = text(new, "execInstanceID");
    if state(new) != "running" {
        world.broken(Checker::Fence, &format!("{who} raised the attempt of {key} without a claim"));
    }
    if call.instance.as_deref() != Some(owner) {
        world.broken(Checker::Fence, &format!("{who} claimed {key} for {owner}"));
    }
    if state(old) == "running" && text(old, "execInstanceID") != owner {
        check_lease(world, who, "took over", change);
    }
    if matches!(state(old).as_str(), "done" | "failed") {
        world.broken(Checker::Fence, &format!("{who} claimed {key}, which is {}", state(old)));
    }
    let mut known = locked(&world.known);
    let is_held = |row: &Value| state(row) == "running" && text(row, "execInstanceID") == owner;
    if known.table(TASKS).filter(|(src, row)| src != key && is_held(row)).count()
        >= world.plan.mission.slots_of_a_node()
    {
        world.saw("task claimed ahead");
    }
    let is_cancelled = known.cancelled.is_some_and(|(at, _)| world.time() >= at + MISSION_AGE_MAX);
    let attempt = Attempt {
        by: who,
        claimed: world.time(),
        renewed: world.time(),
        is_counted: false,
        is_of_cancelled: is_cancelled && text(new, "missionID") == MISSION,
    };
    known.attempts.insert((key.clone(), number(new, "attempt")), attempt);
    known.holders.entry(key.clone()).or_default().insert(who);
}

/// Checks a change that is no claim: the sender must hold the task, or may end the attempt of somebody who is gone.
fn check_holder(world: &World, who: Who, change: &Change) {
    let Change { key, old, new, .. } = change;
    let changed: Vec<&str> = HELD.into_iter().filter(|name| old[name] != new[name]).collect();
    if changed.is_empty() || old.is_null() {
        return;
    }
    let number_of = number(old, "attempt");
    let holder = locked(&world.known).attempts.get(&(key.clone(), number_of)).cloned();
    match who {
        Who::Node { machine, start } => {
            let holds = holder.as_ref().is_some_and(|holder| match holder.by {
                // A later process of the machine ends the attempts that an earlier one left.
                Who::Node { machine: of, start: begun } => of == machine && start >= begun,
                _ => false,
            });
            if !holds || state(old) != "running" {
                let changed = changed.join(", ");
                let held = holder.as_ref().map_or_else(|| "nobody".to_owned(), |holder| holder.by.to_string());
                world.broken(
                    Checker::Fence,
                    &format!("{who} changed {changed} of {key}, which is {} and held by {held}", state(old)),
                );
            }
            let is_renewal = ["beat", "state"].into_iter().any(|name| changed.contains(&name));
            if let Some(holder) = holder.filter(|_| is_renewal) {
                check_renewal(world, who, key, &holder);
                if let Some(attempt) = locked(&world.known).attempts.get_mut(&(key.clone(), number_of)) {
                    attempt.renewed = world.time();
                }
            }
        }
        Who::Caller(_) if state(old) == "running" => {
            let ended = if state(new) == "running" { "changed" } else { "ended the attempt of" };
            check_lease(world, who, ended, change);
        }
        Who::Caller(_) | Who::Hand | Who::Observer => {}
    }
}

fn check_renewal(world: &World, who: Who, key: &str, holder: &Attempt) {
    let age = world.time().saturating_sub(holder.renewed);
    // A little before the last renewal: its answer was under way when a fault began.
    let since = holder.renewed.saturating_sub(Duration::from_secs(5));
    // Four ways: a renewal that a cancellation refuses and its answer, and the next renewal, whose answer is not counted.
    let longest = RENEWAL_MAX + 4 * world.plan.mission.latency;
    if age > longest && !world.is_cut_off_since(who, Of::DynamoDb, since) {
        let age = age.as_secs_f64();
        world.broken(Checker::Heartbeat, &format!("{who} renewed its lease of {key} after {age:.1} s"));
    }
}

fn check_interruptions(world: &World, who: Who, Change { key, old, new, .. }: &Change) {
    let (was, is) = (number(old, "interruptions"), number(new, "interruptions"));
    if is <= was {
        return;
    }
    let lost = number(old, "attempt");
    let is_own = matches!(who, Who::Node { .. }) && state(new) == "pending";
    if is_own && !world.is_disturbed_since(who, Duration::ZERO) && world.time() < NODE_LIFETIME {
        world.broken(
            Checker::Interruptions,
            &format!("{who} counted an interruption of {key}, and nothing interrupted it"),
        );
    }
    let mut known = locked(&world.known);
    let is_again = known.attempts.get_mut(&(key.clone(), lost)).is_some_and(|attempt| {
        let was_counted = attempt.is_counted;
        attempt.is_counted = true;
        was_counted
    });
    drop(known);
    if is_again || is > was + 1 {
        world.broken(
            Checker::Interruptions,
            &format!("{who} counted the loss of attempt {lost} of {key} again: {was} became {is}"),
        );
    }
}

fn check_index(world: &World, who: Who, Change { key, new, .. }: &Change) {
    let (open_in, open_as) = (text(new, "openIn"), text(new, "openAs"));
    let state = state(new);
    let is_right = match state.as_str() {
        "done" => open_in.is_empty() && open_as.is_empty(),
        "failed" => open_as.is_empty() || open_as.starts_with("failed#"),
        _ => !open_in.is_empty() && open_as.starts_with(&format!("{state}#")),
    };
    if is_right {
        locked(&world.known).edited.remove(key);
    } else if !locked(&world.known).edited.contains(key) {
        world.broken(
            Checker::Index,
            &format!("{who} left {key} in the index as {open_as:?} of {open_in:?}, and its state is {state}"),
        );
    }
}

/// Notes which instances are needed.
fn note_needs(world: &World, Change { old, new, .. }: &Change) {
    let now = world.time();
    let mut known = locked(&world.known);
    for row in [old, new] {
        match state(row).as_str() {
            "running" => {
                if let Some(machine) = known.machines.get_mut(text(row, "execInstanceID")) {
                    machine.needed = now;
                }
            }
            "pending" => known.waited = now,
            _ => {}
        }
    }
}

fn note_index(world: &World, Change { key, old, new, .. }: &Change) {
    let entry = |row: &Value| {
        let (at, order) = (text(row, "openIn").to_owned(), text(row, "openAs").to_owned());
        (!at.is_empty()).then_some((at, order))
    };
    if entry(old) != entry(new) {
        let change = IndexChange { at: world.time(), src: key.clone(), before: entry(old), after: entry(new) };
        locked(&world.known).index.push(change);
    }
}
