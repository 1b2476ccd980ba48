//! Checks of the mission's row, its tally, and its notification.

use local_cloud::Call;
use serde_json::Value;

use super::checker::Checker;
use super::known::{Change, Known};
use super::rows::{MISSIONS, TASKS, number, text};
use crate::lock::locked;
use crate::tasks::MISSION;
use crate::who::Who;
use crate::world::World;

/// Checks the changes of one request.
pub(super) fn check(world: &World, who: Who, changes: &[Change]) {
    check_tally(world, who, changes);
    for change in changes.iter().filter(|change| change.table == MISSIONS && change.key == MISSION) {
        let Change { old, new, .. } = change;
        let mut known = locked(&world.known);
        if text(old, "cancelledAt").is_empty() != text(new, "cancelledAt").is_empty() {
            known.cancelled = (!text(new, "cancelledAt").is_empty()).then(|| (world.time(), who));
            known.was_cancelled |= known.cancelled.is_some();
            if known.cancelled.is_none() {
                known.reinstated = Some(world.time());
            }
            drop(known);
            world.saw(if text(new, "cancelledAt").is_empty() {
                "mission reinstated"
            } else {
                "mission marked as cancelled"
            });
        } else {
            drop(known);
        }
        if number(new, "opened") > number(old, "opened") && number(old, "opened") > 0 {
            world.saw("mission opened again");
        }
        check_announcement(world, who, change);
    }
}

/// The tally changes with the rows: both in one request.
fn check_tally(world: &World, who: Who, changes: &[Change]) {
    let is_in = |row: &Value, state: &str| text(row, "missionID") == MISSION && text(row, "state") == state;
    let mut rows = [0_i64; 2];
    let mut tally = [0_i64; 2];
    let difference = |old: u64, new: u64| i64::try_from(new).unwrap_or(0) - i64::try_from(old).unwrap_or(0);
    for Change { table, key, old, new } in changes {
        if table == TASKS {
            for (sum, state) in rows.iter_mut().zip(["done", "failed"]) {
                *sum += i64::from(is_in(new, state)) - i64::from(is_in(old, state));
            }
        } else if key.starts_with(&format!("{MISSION}#tally#")) {
            for (sum, name) in tally.iter_mut().zip(["transOK", "transFailed"]) {
                *sum += difference(number(old, name), number(new, name));
            }
        }
    }
    if changes.iter().any(|change| change.table == TASKS) {
        let (ended, all) = ended(&locked(&world.known));
        world.ends.send_replace((ended, all > 0 && ended >= all));
    }
    if rows != tally {
        let ([done, failed], [ok, not]) = (rows, tally);
        world.broken(
            Checker::Tally,
            &format!("{who} changed {done:+} done and {failed:+} failed tasks, and counted {ok:+} and {not:+}"),
        );
    }
}

/// Returns the tasks of the mission that are done or failed, and its number of tasks.
fn ended(known: &Known) -> (u64, u64) {
    let is_over = |row: &Value| text(row, "missionID") == MISSION && matches!(text(row, "state"), "done" | "failed");
    let ended = known.table(TASKS).filter(|(_, row)| is_over(row)).count() as u64;
    (ended, number(&known.row(MISSIONS, MISSION), "transNumber"))
}

/// Nobody begins, or ends, to announce a mission before its true end.
fn check_announcement(world: &World, who: Who, Change { old, new, .. }: &Change) {
    let notified = text(new, "notifyEmail");
    let is_step = old["notifyEmail"] != new["notifyEmail"] || old["notifyToken"] != new["notifyToken"];
    if !is_step || !matches!(notified, "Sending" | "Yes") {
        return;
    }
    if notified == "Sending" {
        locked(&world.known).publishers.insert(who.place(), (number(new, "opened"), world.time()));
    }
    if text(old, "notifyEmail") == "Sending" && notified == "Sending" {
        world.saw("publisher replaced");
    }
    let (ended, all) = ended(&locked(&world.known));
    if ended < all {
        world.broken(
            Checker::Notification,
            &format!("{who} set the notification to {notified} when {ended} of {all} tasks had ended"),
        );
    }
}

/// Checks a notification that SNS accepted.
pub(super) fn published(world: &World, who: Who, call: &Call) {
    let form = String::from_utf8_lossy(&call.body).replace('+', " ");
    let form = percent_encoding::percent_decode_str(&form).decode_utf8_lossy();
    if form.contains(": tasks fail") || form.contains(" has stalled") {
        return world.saw("early notification");
    }
    world.saw("notification");
    let mut known = locked(&world.known);
    // The end that it began to announce: the mission may have been opened since.
    let (opened, begun) = known.publishers.get(&who.place()).copied().unwrap_or_default();
    let before = known.published.iter().rev().find(|(_, _, of)| *of == opened).copied();
    known.published.push((world.time(), who, opened));
    drop(known);
    let Some((at, by, _)) = before else { return };
    world.saw("second notification of one end");
    // The windows of docs/SEMANTICS.md: the publisher died, lost an answer, or seemed to be gone.
    if !world.is_disturbed_since(by, std::time::Duration::ZERO) && !world.is_disturbed_since(who, at.min(begun)) {
        world.broken(Checker::Notification, &format!("{by} and {who} announced the same end, and no fault hit them"));
    }
}
