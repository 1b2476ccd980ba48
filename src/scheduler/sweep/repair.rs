//! The repairs of a sweep.

use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::Snapshot;
use super::{Sweep, What, tally_of};
use crate::backend::fleet::ManagedInstance;
use crate::backend::ledger::GivenUp;
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::machine_info::MachineInfo;
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{AttemptEnd, Marks, PastAttempt, Task};
use crate::domain::verdict::Verdict;
use crate::scheduler::SchedulerError;
use crate::scheduler::launch::{LaunchResult, waited_since};
use crate::scheduler::rounds::Lack;

/// The number of instances that may terminate without claiming an attempt before the task fails. Each costs a boot, and
/// an image that cannot boot fails every time.
const LAUNCHES_LOST_MAX: u64 = 5;

/// The time limit for launches for tasks in one half of a sweep, at two per second. A sweep must finish within the 15
/// minutes of a Lambda function: 2 + 2 + 2 minutes for the first half, 2 + 2 for the second, and a lease in between.
/// The last launch of each half can take 2.5 minutes more if EC2 does not answer. The next sweep continues, also if
/// this one is killed.
const LAUNCHES_TIME_MAX: Duration = Duration::from_mins(2);
/// The maximum number of tasks that one sweep launches nodes for: [`LAUNCHES_TIME_MAX`] at two per second. The rows are
/// kept in memory: 240 are about 700 kB.
pub(super) const WANTED_MAX: usize = 240;

/// How long after a mission's cancellation sweeps scan the table for its tasks, to end it: a dozen sweeps. A row that
/// cannot be understood would keep it open, and a scan costs money. `cancel` scans whenever it is repeated.
const SETTLED_FOR: Duration = Duration::from_hours(1);

impl Sweep<'_> {
    /// Records whether a mission with a sent notification still has open tasks.
    pub(super) async fn close(&mut self, mission: &Mission) {
        let counts = self.counts.get(&mission.id);
        let is_open = counts.is_some_and(|counts| counts.running > 0 || counts.claimable > 0);
        if mission.notified != Notified::Yes || !is_open && counts.is_some_and(|counts| counts.is_cut) {
            return;
        }
        let noted = match (is_open, &mission.closed_at) {
            (true, Some(_)) => self.scheduler.note_late(&mission.id).await,
            (false, None) => {
                let noted = self.scheduler.backend.ledger.close_mission(mission, &clock::now_rfc3339()).await;
                noted.map_err(SchedulerError::cloud("recording whether a mission is closed"))
            }
            (true, None) | (false, Some(_)) => Ok(()),
        };
        if let Err(error) = noted {
            self.note_failure(mission.id.as_str(), &error);
        }
    }

    /// Ends a cancelled mission that is not complete, and has no task in the index that is open.
    pub(super) async fn settle(&mut self, mission: &Mission) {
        let since = mission.cancelled_at.as_deref().and_then(clock::since);
        if since.is_none_or(|since| since > SETTLED_FOR) || mission.notified != Notified::No {
            return;
        }
        let is_open = self
            .counts
            .get(&mission.id)
            .is_some_and(|counts| counts.running > 0 || counts.claimable > 0 || counts.is_cut);
        if is_open {
            return;
        }
        match self.scheduler.settle(&mission.id).await {
            Ok(Some(settled)) => self.announce(&settled, false).await,
            Ok(None) => {}
            Err(error) => self.note_failure(mission.id.as_str(), &error),
        }
    }

    /// Adds a task to those that need a node. Above [`WANTED_MAX`], the next sweep handles it: the row is pending.
    pub(super) fn want(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        if self.wanted.len() >= WANTED_MAX {
            return;
        }
        self.wanted.push((task.clone(), mission.cloned(), reason.to_owned()));
    }

    /// Launches nodes for the tasks that want one.
    pub(super) async fn launch_wanted(&mut self) {
        let until = Instant::now() + LAUNCHES_TIME_MAX;
        let wanted = std::mem::take(&mut self.wanted);
        let total = wanted.len();
        for (number, (task, mission, reason)) in wanted.into_iter().enumerate() {
            if Instant::now() >= until || self.stop.is_cancelled() {
                tracing::warn!("{} of {total} launches are postponed to the next sweep", total - number);
                return;
            }
            self.launch(&task, mission.as_ref(), &reason).await;
        }
    }

    pub(super) async fn terminate_idle(&mut self, world: &Snapshot) {
        let idle = world.idle(&self.holders);
        let is_idle =
            |ours: &&ManagedInstance| idle.contains_key(&ours.id) && self.unconfirmed.idle.contains_key(&ours.id);
        let instances: Vec<ManagedInstance> = world.instances.iter().filter(is_idle).cloned().collect();
        let ended = self.scheduler.backend.fleet.terminate(&instances).await;
        match ended.map_err(SchedulerError::cloud("terminating instances")) {
            Ok(()) => {
                for ours in &instances {
                    self.find(What::Ended, &ours.id, idle[&ours.id]);
                }
            }
            Err(error) => {
                let ids: Vec<&str> = instances.iter().map(|ours| ours.id.as_str()).collect();
                self.note_failure(&ids.join(", "), &error);
            }
        }
    }

    /// Releases a task whose holder was lost, within its budget, and requests a node. In a cancelled
    /// mission the task fails.
    pub(super) async fn put_back(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        let Some(lease) = task.lease() else { return };
        if Instant::now() >= self.put_back_until || self.stop.is_cancelled() {
            self.left += 1;
            return;
        }
        let now = clock::now_rfc3339();
        let bucket = self.scheduler.settings.result_bucket.as_deref();
        let past = PastAttempt {
            attempt: task.attempt,
            instance: lease.owner.to_string(),
            started: task.open_since.clone().unwrap_or_default(),
            ended: now.clone(),
            machine: MachineInfo::default(),
            end: AttemptEnd::of(Verdict::Lost, reason),
            marks: Marks::default(),
            log: crate::worker::log::find_lost(&self.scheduler.backend, bucket, &task.src, task.attempt).await,
        };
        if mission.is_some_and(|mission| mission.cancelled_at.is_some()) {
            let reason = format!("its mission is cancelled; {reason}");
            return self.fail(task, mission, Verdict::Cancelled, Some(past), &reason).await;
        }
        if task.interruptions >= self.scheduler.settings.limits.max_interruptions {
            let reason = format!("{reason}, and it was interrupted {} times before", task.interruptions);
            return self.fail(task, mission, Verdict::Lost, Some(past), &reason).await;
        }
        let expired = self.scheduler.backend.ledger.expire(task, past, &now).await;
        match expired.map_err(SchedulerError::cloud("releasing a task")) {
            Ok(Some(pending)) => {
                self.find(What::PutBack, task.src.as_str(), reason);
                if mission.is_none_or(|mission| mission.nodes.is_none()) {
                    self.want(&pending, mission, "it is pending again");
                }
            }
            // The holder renewed the lease after all.
            Ok(None) => {}
            Err(error) => self.note_failure(task.src.as_str(), &error),
        }
    }

    async fn launch(&mut self, task: &Task, mission: Option<&Mission>, reason: &str) {
        if task.launch.is_for(task.attempt) && task.launch.lost + 1 >= LAUNCHES_LOST_MAX {
            let reason =
                format!("{LAUNCHES_LOST_MAX} instances for it terminated before they claimed it; the last: {reason}");
            if let Err(error) = self.scheduler.note_held(task, &reason).await {
                self.note_failure(task.src.as_str(), &error);
            }
            return self.fail(task, mission, Verdict::Infra, None, &reason).await;
        }
        if !self.may_launch || self.refused.contains(&task.mission) {
            return;
        }
        if let Some(why) = self.held.clone() {
            // The row gets the reason. The next sweep checks the capacity again.
            if let Err(error) = self.scheduler.note_held(task, &why).await {
                self.note_failure(task.src.as_str(), &error);
            }
            return;
        }
        match self.scheduler.launch_after(task, mission, Some(reason)).await {
            Ok(LaunchResult::Launched(instance)) => {
                self.find(What::Launched, task.src.as_str(), &format!("{reason}: {instance}"));
            }
            Ok(LaunchResult::Waits(why)) => self.find(What::NoNode, task.src.as_str(), &why),
            Ok(LaunchResult::Held(why)) => {
                self.find(What::NoNode, task.src.as_str(), &why);
                self.held = Some(why);
            }
            Ok(LaunchResult::NotNeeded) => {}
            Err(error) => {
                self.refuse(task.mission.clone(), &error);
                self.note_failure(task.src.as_str(), &error);
            }
        }
    }

    /// Remembers refusals of EC2 that would repeat during this sweep.
    fn refuse(&mut self, mission: Option<MissionId>, error: &SchedulerError) {
        if error.is_of_every_launch() {
            self.may_launch = false;
        } else if !error.is_transient() {
            self.refused.insert(mission);
        }
    }

    /// Launches the nodes that a mission lacks.
    pub(super) async fn serve(&mut self, world: &Snapshot, mission: &Mission) {
        if mission.nodes.is_none() || mission.cancelled_at.is_some() || !self.may_launch {
            return;
        }
        let Some(counts) = self.counts.get(&mission.id).filter(|counts| counts.claimable > 0) else { return };
        let (claimable, open) = (counts.claimable, counts.claimable + counts.running);
        let longest = waited_since(counts.since.as_deref());
        let lost = world.odd_end(&mission.id);
        if let Some(lost) = &lost {
            tracing::warn!(mission = %mission.id, "mission {}: {lost}", mission.id);
        }
        let lack = Lack { open, waited: longest, lost: lost.as_deref() };
        match self.scheduler.launch_missing(mission, lack, &world.instances).await {
            Ok(launched) => {
                for instance in &launched.instances {
                    let reason = format!("at least {claimable} tasks of mission {} wait", mission.id);
                    let reason = lost.iter().fold(reason, |reason, lost| format!("{reason}; {lost}"));
                    self.find(What::Launched, instance, &reason);
                }
                if !launched.shortfall.is_empty() {
                    self.find(What::NoNode, mission.id.as_str(), &launched.shortfall.join("; "));
                }
            }
            Err(error) => {
                self.refuse(Some(mission.id.clone()), &error);
                self.note_failure(mission.id.as_str(), &error);
            }
        }
    }

    /// Sends the notification of a complete mission if nobody has. If its publisher may be alive, leaves it to the
    /// second pass.
    pub(super) async fn announce(&mut self, mission: &Mission, is_lost: bool) {
        match self.scheduler.announce(mission, is_lost).await {
            Ok(true) => self.find(What::Announced, mission.id.as_str(), "all its tasks are finished"),
            Ok(false) if !is_lost && matches!(mission.notified, Notified::Sending { .. }) => {
                self.unconfirmed.publishers.insert(mission.id.clone(), mission.notified.clone());
            }
            Ok(false) => {}
            Err(error) => self.note_failure(mission.id.as_str(), &error),
        }
    }

    pub(super) async fn fail(
        &mut self,
        task: &Task,
        mission: Option<&Mission>,
        verdict: Verdict,
        past: Option<PastAttempt>,
        reason: &str,
    ) {
        let mission = tally_of(task, mission);
        let given_up = GivenUp {
            end: AttemptEnd::of(verdict, reason),
            is_for_cancel: verdict == Verdict::Cancelled,
            now: clock::now_rfc3339(),
        };
        let one = [(task.clone(), past)];
        let failed = self.scheduler.backend.ledger.fail(&one, mission.as_ref(), &given_up).await;
        match failed.map_err(SchedulerError::cloud("failing a task")) {
            Ok(failed) if failed.tasks.is_empty() => {}
            Ok(_) => {
                self.find(What::Failed, task.src.as_str(), reason);
                if let Some(mission) = &mission {
                    self.announce(mission, false).await;
                }
            }
            Err(error) => self.note_failure(task.src.as_str(), &error),
        }
    }
}
