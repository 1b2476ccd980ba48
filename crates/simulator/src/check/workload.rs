//! Checks of workloads that start and run.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::workload::Exit;

use super::checker::Checker;
use super::rows::{task_row, text};
use crate::lock::locked;
use crate::plan::Fault;
use crate::tasks::MISSION;
use crate::who::Who;
use crate::world::World;

/// How long a workload may run after the mission's cancellation if no fault hits its machine: a command that asks for it
/// may die, and then the next sweep asks; a holder that does not answer loses its lease first. The next sweep comes
/// within five minutes, and needs another five at most.
const STOPS_WITHIN: Duration = Duration::from_mins(15);
/// The same if no fault hits who cancels, either: the command finds the task in one of its first passes, its holder reads
/// the request at its next heartbeat, and the workload has 10 seconds to stop.
const STOPS_SOON: Duration = Duration::from_secs(60);
/// The requests of the command and of the holder until then.
const STOP_REQUESTS: u32 = 20;

/// A workload that runs, until it is dropped: at its time limit, nobody waits for its end.
pub(crate) struct Running {
    world: Arc<World>,
    who: Who,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(running) = locked(&self.world.known).workloads.get_mut(&self.who) {
            *running = running.saturating_sub(1);
        }
    }
}

/// A workload starts.
pub(crate) fn starts(world: &Arc<World>, who: Who, src: &str, attempt: u64) -> Running {
    world.saw("workload started");
    let mut known = locked(&world.known);
    let running = known.workloads.entry(who).or_default();
    *running += 1;
    let (running, slots) = (*running, world.plan.mission.slots_of_a_node());
    if running > slots {
        world.broken(Checker::Slots, &format!("{who} started workload {running} at a time, and has {slots} slots"));
    }
    let is_of_cancelled = known.attempts.get(&(src.to_owned(), attempt)).is_some_and(|claim| claim.is_of_cancelled);
    let is_cancelled = is_of_cancelled && known.cancelled.is_some();
    drop(known);
    if is_cancelled {
        world.broken(
            Checker::Cancel,
            &format!("{who} started attempt {attempt} of {src}, claimed after the cancellation"),
        );
    }
    Running { world: Arc::clone(world), who }
}

/// A workload runs on.
pub(crate) fn runs(world: &World, who: Who, src: &str, attempt: u64) {
    let Some((since, by)) = locked(&world.known).cancelled else { return };
    let age = world.time().saturating_sub(since);
    let is_of_mission = text(&task_row(world, src), "missionID") == MISSION;
    let is_delayed = world.is_disturbed_since(by, since) || world.faults().any(|f| matches!(f, Fault::Lag { .. }));
    let longest = if is_delayed { STOPS_WITHIN } else { STOPS_SOON + STOP_REQUESTS * world.plan.mission.latency };
    if is_of_mission && age > longest && !world.is_disturbed_since(who, since) {
        let age = age.as_secs();
        world.broken(Checker::Cancel, &format!("attempt {attempt} of {src} runs {age} s after the cancellation"));
    }
}

/// A workload ended.
pub(crate) fn ends(world: &World, src: &str, exit: &std::io::Result<Exit>) {
    let is_success = matches!(exit, Ok(Exit::Exited { code: Some(0), .. }));
    if !is_success {
        *locked(&world.known).failures.entry(src.to_owned()).or_default() += 1;
    }
}
