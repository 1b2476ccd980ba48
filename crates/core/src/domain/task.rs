//! A task's row and its states.
//!
//! ```text
//!              claim                     commit
//!   pending ───────────► running ─────────────────────► done
//!      ▲  ▲               │ │  ▲
//!      │  └── release ────┘ │  └─ claim by another, once the lease expired (attempt + 1)
//!      │                    └── fail, out of budget ───► failed
//!      └──────────────────────── redrive ─────────────────┘
//! ```
//!
//! The arrows are conditional writes in `backend/ledger`; a row can take no other way.

use super::budget::CRASHES_MAX;
use super::ids::{AttemptNumber, InstanceId, MissionId, SrcId};
use super::lease::Lease;
use super::machine_info::MachineInfo;
use super::printable;
use super::request::Reserved;
use super::value::{Form, integer};
use super::verdict::{Budget, Verdict};
use super::work::Work;

/// A task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody holds it.
    Pending,
    /// An attempt holds it.
    Running,
    /// Its result is committed.
    Done,
    /// Out of budget; counted in the mission's `transFailed`.
    Failed,
    /// A word, or a type, that this version does not know: another version or a person wrote it. Nobody claims such a task,
    /// and a sweep reports it.
    Unknown,
}

impl State {
    /// Returns the word that is written in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }

    /// Reads a word of the table, whatever its case and the blanks around it: a person may have written it.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        let word = word.trim();
        let known = [Self::Pending, Self::Running, Self::Done, Self::Failed];
        known.into_iter().find(|state| state.as_str().eq_ignore_ascii_case(word))
    }

    /// Returns whether no attempt will change the row any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// The maximum length of a stored error, in characters.
pub const ERROR_CHARS_MAX: usize = 300;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    /// Why it ended.
    pub verdict: Verdict,
    /// The workload's exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that killed the workload, if one did.
    pub signal: Option<i32>,
    /// The most memory that the workload's processes used together, in bytes, if it was measured.
    pub peak_memory: Option<u64>,
    /// Why the attempt did not succeed: one sentence of at most [`ERROR_CHARS_MAX`] characters.
    pub error: Option<String>,
}

impl AttemptEnd {
    /// Makes the end of an attempt that succeeded.
    #[must_use]
    pub const fn ok() -> Self {
        Self { verdict: Verdict::Ok, exit_code: Some(0), signal: None, peak_memory: None, error: None }
    }

    /// Returns the end without its sentence, for a row that has no space for it.
    #[must_use]
    pub fn without_error(&self) -> Self {
        Self { error: None, ..self.clone() }
    }

    /// Makes the end of an attempt that did not succeed, and of which nothing else is known. The error becomes one line
    /// and is cut.
    #[must_use]
    pub fn of(verdict: Verdict, error: &str) -> Self {
        let line = printable::one_line(error);
        let error = match line.char_indices().nth(ERROR_CHARS_MAX - 1) {
            Some((at, last)) if at + last.len_utf8() < line.len() => format!("{}…", &line[..at]),
            _ => line,
        };
        Self { verdict, exit_code: None, signal: None, peak_memory: None, error: Some(error) }
    }
}

/// What happened during an attempt beside its end. Times are RFC 3339 UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// When the notice was seen that EC2 takes the instance back.
    pub spot_notice_at: Option<String>,
    /// When the attempt's newest checkpoint was complete.
    pub checkpoint_at: Option<String>,
}

/// One ended attempt, as `history` keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastAttempt {
    /// Which attempt.
    pub attempt: AttemptNumber,
    /// The instance that held it.
    pub instance: String,
    /// What is known of this instance.
    pub machine: MachineInfo,
    /// When it was claimed, RFC 3339 UTC, by the holder's clock; empty if nobody wrote it.
    pub started: String,
    /// When it ended, RFC 3339 UTC, by the writer's clock.
    pub ended: String,
    /// How it ended.
    pub end: AttemptEnd,
    /// What else happened.
    pub marks: Marks,
    /// Where its log is, if it was saved.
    pub log: Option<String>,
}

/// How many ended attempts `history` keeps: the newest ten, about 7 kB of the row's 400 kB.
pub const HISTORY_LEN_MAX: usize = 10;

/// The highest attempt that is counted on: up to 2^53, floating numbers are exact, which is what some other writers have.
const ATTEMPT_MAX: i64 = 1 << 53;

/// A task's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The key: the task's name.
    pub src: SrcId,
    /// The mission it counts for.
    pub mission: Option<MissionId>,
    /// The bucket of the input, as the scheduler wrote it.
    pub bucket: Option<String>,
    /// What it works on; what is wrong with the attributes that say so.
    pub work: Result<Work, String>,
    /// When the row was made: `timeBoarding`.
    pub made_at: Option<String>,
    /// The state.
    pub state: State,
    /// How often it was claimed.
    pub attempt: AttemptNumber,
    /// Heartbeats of the newest attempt.
    pub beat: u64,
    /// Names the claim that made the newest attempt.
    pub claim_token: Option<String>,
    /// The instance that holds, or last held, the attempt.
    pub instance: Option<InstanceId>,
    /// `strIndiProgress`, for people.
    pub progress: String,
    /// Milliseconds of workload time so far, over all attempts.
    pub time_cost_ms: u64,
    /// `s3://…` of the committed result.
    pub result: Option<String>,
    /// `ETag` of the committed result.
    pub result_etag: Option<String>,
    /// Size of the committed result in bytes.
    pub result_bytes: Option<u64>,
    /// `ETag` of the input that the committed result was made of.
    pub input_etag: Option<String>,
    /// Why the last attempt ended.
    pub verdict: Option<Verdict>,
    /// The workload's exit code in the last attempt.
    pub exit_code: Option<i64>,
    /// The signal that killed the workload in the last attempt.
    pub signal: Option<i64>,
    /// Why the last attempt did not succeed.
    pub error: Option<String>,
    /// `s3://…` of the newest complete checkpoint.
    pub checkpoint: Option<String>,
    /// Application failures so far.
    pub app_failures: u64,
    /// Interruptions so far.
    pub interruptions: u64,
    /// Crashes of nodes while the task ran alone on them.
    pub crashes: u64,
    /// Whether a node crashed that held the task: it runs alone on a node until it is done.
    pub is_suspect: bool,
    /// The newest ended attempts, oldest first.
    pub history: Vec<PastAttempt>,
    /// Since when it waits, or runs, RFC 3339 UTC, by the writer's clock.
    pub open_since: Option<String>,
    /// What was launched for it, by a scheduler.
    pub launch: Launch,
    /// Whether its mission was cancelled while it was held.
    pub cancelled: bool,
    /// The state that the index of open tasks has for it; `None` if the row is in no index.
    pub open_as: Option<State>,
    /// The attributes that conditions compare with, as they stand in the row; `None`: as this version writes them. A copy of a
    /// task whose state or attempt is changed must have `None`.
    pub seen: Option<Box<Seen>>,
}

/// Attributes of a task's row, in the form in which they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `missionID`.
    pub mission: Form,
    /// `state`.
    pub state: Form,
    /// `attempt`.
    pub attempt: Form,
    /// `beat`.
    pub beat: Form,
    /// `launchAtAttempt`.
    pub launch_at_attempt: Form,
    /// `launchTries`.
    pub launch_tries: Form,
    /// `openAs`.
    pub open_as: Form,
    /// `suspect`.
    pub suspect: Form,
}

/// How often a task has ended badly, by the budget that each ending is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `appFailures`.
    pub app_failures: u64,
    /// `interruptions`.
    pub interruptions: u64,
    /// The crash of the node that this ending is, if it is one.
    pub crash: Option<Crash>,
}

/// How a claim's token begins whose attempt runs alone on its node. A later claim, of whatever version, brings its own token;
/// those of other versions are hexadecimal.
pub const ALONE: &str = "alone-";

/// A crash of a node, as a task that it held counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// `crashes`, this one included if it counts.
    pub crashes: u64,
    /// Whether the task ran alone on the node: only then does it count.
    pub was_alone: bool,
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.was_alone {
            let times = if self.crashes == 1 { "once" } else { "again" };
            let count = self.crashes;
            write!(f, "its node crashed {times} while the task ran alone on it ({count} of {CRASHES_MAX} such crashes)")
        } else {
            f.write_str("its node crashed while the task ran beside others: it runs alone until it is done")
        }
    }
}

/// What a scheduler has launched for a task that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// The attempt that the row showed when a node was launched, or when the launch was reserved.
    pub at_attempt: Option<AttemptNumber>,
    /// Launches since the last claim.
    pub tries: u64,
    /// When the last one was reserved, RFC 3339 UTC, by the scheduler's clock.
    pub at: String,
    /// The instance, if EC2 gave one.
    pub instance: Option<String>,
    /// Instances that were launched since the last claim and are gone without one.
    pub lost: u64,
    /// The launch whose answer is not known yet.
    pub request: Option<Reserved>,
    /// Why there is none, or why the last one ended before it claimed.
    pub error: Option<String>,
    /// Not before this is the next try made, RFC 3339 UTC, by the scheduler's clock.
    pub after: Option<String>,
}

impl Launch {
    /// Returns whether a launch is reserved, or made, for the attempt that comes after `attempt`.
    #[must_use]
    pub fn is_for(&self, attempt: AttemptNumber) -> bool {
        self.at_attempt == Some(attempt)
    }
}

impl Task {
    /// Makes what is known of a task that nobody has claimed yet.
    #[must_use]
    pub fn new(src: SrcId, mission: Option<MissionId>) -> Self {
        Self {
            src,
            mission,
            bucket: None,
            work: Ok(Work::default()),
            made_at: None,
            state: State::Pending,
            attempt: AttemptNumber(0),
            beat: 0,
            claim_token: None,
            instance: None,
            progress: String::new(),
            time_cost_ms: 0,
            result: None,
            result_etag: None,
            result_bytes: None,
            input_etag: None,
            verdict: None,
            exit_code: None,
            signal: None,
            error: None,
            checkpoint: None,
            app_failures: 0,
            interruptions: 0,
            crashes: 0,
            is_suspect: false,
            history: Vec::new(),
            open_since: None,
            launch: Launch::default(),
            cancelled: false,
            open_as: None,
            seen: None,
        }
    }

    /// Returns the workload time in whole seconds, rounded: `timeCost`.
    #[must_use]
    pub const fn time_cost_s(&self) -> u64 {
        self.time_cost_ms.saturating_add(500) / 1000
    }

    /// Returns the counts with one more attempt that ended with `verdict`. A lost attempt is counted by whoever takes it over.
    #[must_use]
    pub fn counts_after(&self, verdict: Verdict) -> Counts {
        let one = |budget| u64::from(verdict.budget() == budget && verdict != Verdict::Lost);
        Counts {
            app_failures: self.app_failures.saturating_add(one(Budget::Application)),
            interruptions: self.interruptions.saturating_add(one(Budget::Interruption)),
            crash: None,
        }
    }

    /// Returns the counts after a crash of the node that holds the task. No other budget counts it.
    #[must_use]
    pub fn counts_after_crash(&self) -> Counts {
        let was_alone = self.claim_token.as_ref().is_some_and(|token| token.starts_with(ALONE));
        let crashes = self.crashes.saturating_add(u64::from(was_alone));
        Counts {
            app_failures: self.app_failures,
            interruptions: self.interruptions,
            crash: Some(Crash { crashes, was_alone }),
        }
    }

    /// Returns why nobody may claim the row, although it has not ended: a mission, a state, or an attempt that cannot be
    /// understood. An attempt that is not certain cannot be a fencing token.
    #[must_use]
    pub fn oddity(&self) -> Option<String> {
        let seen = self.seen.as_ref()?;
        if self.mission.is_none() && seen.mission != Form::Absent && !self.state.is_final() {
            // It would be done, and counted nowhere.
            return Some(format!("its missionID is {}, which is no mission's id", seen.mission.shown()));
        }
        if self.state == State::Unknown {
            let state = seen.state.shown();
            return Some(format!("its state is {state}, which is none of pending, running, done, failed"));
        }
        let is_readable = match &seen.attempt {
            Form::Absent => true,
            Form::Number(text) | Form::Text(text) => integer(text).is_some_and(|n| (0..ATTEMPT_MAX).contains(&n)),
            Form::Other(_) => false,
        };
        let attempt = || format!("its attempt is {}, which is no whole number from 0 to 2^53", seen.attempt.shown());
        (!is_readable && !self.state.is_final()).then(attempt)
    }

    /// Returns whether the index of open tasks has the row in another state than the row itself.
    #[must_use]
    pub fn is_leftover(&self) -> bool {
        self.state != State::Unknown && self.open_as.is_some_and(|open_as| open_as != self.state)
    }

    /// Returns the lease, if an attempt holds the task. A row that was edited by hand may not say whose it is.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let unknown = || InstanceId::new("nobody").expect("a constant name is legal");
        let owner = self.instance.clone().unwrap_or_else(unknown);
        (self.state == State::Running).then_some(Lease { owner, attempt: self.attempt, beat: self.beat })
    }

    /// Returns the history with one more attempt at its end, the oldest dropped beyond ten.
    #[must_use]
    pub fn history_with(&self, past: PastAttempt) -> Vec<PastAttempt> {
        let mut history = self.history.clone();
        history.push(past);
        let surplus = history.len().saturating_sub(HISTORY_LEN_MAX);
        history.split_off(surplus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_crash_of_a_node_that_ran_the_task_alone_counts() {
        let mut task = Task::new(SrcId::new("a").unwrap(), None);
        (task.interruptions, task.app_failures, task.crashes) = (3, 1, 1);
        let crash = |token: Option<&str>| {
            let claim_token = token.map(str::to_owned);
            let counts = Task { claim_token, ..task.clone() }.counts_after_crash();
            assert_eq!((counts.interruptions, counts.app_failures), (3, 1));
            counts.crash.unwrap()
        };
        assert_eq!(crash(Some("alone-0a")), Crash { crashes: 2, was_alone: true });
        for token in [None, Some(""), Some("0a"), Some("Alone-0a"), Some("0a alone-")] {
            assert_eq!(crash(token), Crash { crashes: 1, was_alone: false });
        }
    }

    #[test]
    fn states_read_back_and_only_two_are_final() {
        for state in [State::Pending, State::Running, State::Done, State::Failed] {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse(" Done\n"), Some(State::Done));
        assert_eq!((State::parse("finished"), State::parse("unknown")), (None, None));
        assert!(State::Done.is_final() && State::Failed.is_final());
        assert!(!State::Pending.is_final() && !State::Running.is_final());
    }
}
