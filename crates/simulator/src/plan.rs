//! What a seed stands for: a mission, the settings of the deployment, and a list of faults.
//!
//! A fault can be left out without a change of the rest: everything else that is random is a function of the seed and of
//! a name. A plan can be stored as JSON, so that it keeps its meaning when the generator ([`super::draw`]) changes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::step::{Sender, Step};

/// The finalizer of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A generator of numbers from a seed and a name.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64, name: &str) -> Self {
        Self(name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number from `low` to `high`, both included.
    pub(crate) fn number(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// Returns whether something of a probability of `percent` happens.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let at = usize::try_from(self.next() % of.len() as u64).unwrap_or(0);
        of[at].clone()
    }

    /// Returns a time from `low` to `high`.
    pub(crate) fn time(&mut self, low: Duration, high: Duration) -> Duration {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.number(ms(low), ms(high)))
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// It never arrives, and the sender sees a broken connection.
    LoseRequest,
    /// It is applied, and the sender sees a broken connection.
    LoseAnswer,
    /// It is applied once more after a time.
    Repeat(Duration),
    /// It takes a time until it is applied.
    DelayRequest(Duration),
    /// It is applied, and the answer takes a time.
    DelayAnswer(Duration),
    /// The service refuses it, as one that is overloaded.
    Throttle,
    /// The service refuses it, as one for which the sender has no right.
    Refuse,
    /// The service fails, after it applied the request.
    FailAfter,
}

impl Fate {
    /// Returns its name in the counters.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::LoseRequest => "request lost",
            Self::LoseAnswer => "answer lost",
            Self::Repeat(_) => "request repeated",
            Self::DelayRequest(_) => "request delayed",
            Self::DelayAnswer(_) => "answer delayed",
            Self::Throttle => "request throttled",
            Self::Refuse => "request refused",
            Self::FailAfter => "request applied and failed",
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoseRequest => f.write_str("is lost"),
            Self::LoseAnswer => f.write_str("is applied, and its answer is lost"),
            Self::Repeat(after) => write!(f, "is applied again {} later", Time(*after)),
            Self::DelayRequest(by) => write!(f, "arrives {} late", Time(*by)),
            Self::DelayAnswer(by) => write!(f, "is applied, and its answer comes {} late", Time(*by)),
            Self::Throttle => f.write_str("is throttled"),
            Self::Refuse => f.write_str("is refused: no permission"),
            Self::FailAfter => f.write_str("is applied, and an internal error is answered"),
        }
    }
}

/// What a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Does {
    /// Ends with a code.
    Exit(i32),
    /// Never ends by itself.
    Hang,
    /// Ends without a result.
    NoResult,
    /// Finds the disk full.
    DiskFull,
    /// Does not react when it is asked to stop.
    Deaf,
}

impl Does {
    /// Returns its name in the counters.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Exit(75) => "workload asks for another attempt",
            Self::Exit(_) => "workload fails",
            Self::Hang => "workload hangs",
            Self::NoResult => "workload writes no result",
            Self::DiskFull => "workload finds a full disk",
            Self::Deaf => "workload does not stop",
        }
    }
}

/// What a person writes into a task's row by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Edit {
    /// The attempt's number as text.
    AttemptAsText,
    /// The heartbeat as text.
    BeatAsText,
    /// The state in upper case.
    UpperCase,
    /// A running task is `pending` again.
    PutBack,
    /// An entry of the index that no query finds.
    OddIndex,
    /// An attribute of their own.
    Note,
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Act {
    /// Two people submit the mission at the same moment.
    SubmitTwice,
    /// Submits more tasks.
    Enlarge(u64),
    /// Cancels the mission.
    Cancel,
    /// Redrives the failed tasks.
    Redrive,
    /// Puts an object below the mission's prefix.
    Upload,
    /// Edits the row of a task.
    Edit(u64, Edit),
}

impl Act {
    /// Returns its name in the counters.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SubmitTwice => "two people submit at once",
            Self::Enlarge(_) => "mission enlarged",
            Self::Cancel => "mission cancelled",
            Self::Redrive => "mission redriven",
            Self::Upload => "object uploaded",
            Self::Edit(_, Edit::AttemptAsText) => "edit: attempt as text",
            Self::Edit(_, Edit::BeatAsText) => "edit: beat as text",
            Self::Edit(_, Edit::UpperCase) => "edit: state in upper case",
            Self::Edit(_, Edit::PutBack) => "edit: running task made pending",
            Self::Edit(_, Edit::OddIndex) => "edit: odd entry of the index",
            Self::Edit(_, Edit::Note) => "edit: unknown attribute",
        }
    }
}

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Of {
    DynamoDb,
    S3,
    Ec2,
    Sns,
}

/// One fault, or one thing that somebody does meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// The n-th request of the n-th machine.
    NodeRequest { machine: u64, request: u64, fate: Fate },
    /// The n-th request of the n-th invocation or command.
    CallerRequest { caller: u64, request: u64, fate: Fate },
    /// The n-th request of a sender that does this step. If it is its last, the machine vanishes, or the function is
    /// killed, as the request leaves.
    Step { sender: Sender, step: Step, nth: u64, fate: Fate, is_last: bool },
    /// A service answers nobody.
    Outage { service: Of, from: Duration, length: Duration },
    /// A service is slow.
    Slow { service: Of, from: Duration, length: Duration, by: Duration },
    /// Some requests to a service stall on their way, or their answers do.
    Stalls { service: Of, from: Duration, length: Duration, percent: u64, by: Duration },
    /// Some requests to a service are applied again, as by a client that gave up waiting and sent them twice.
    Repeats { service: Of, from: Duration, length: Duration, percent: u64, by: Duration },
    /// The machine vanishes a time after its launch, without a notice.
    Reclaim { machine: u64, after: Duration },
    /// EC2 takes the machine back, with a notice.
    Notice { machine: u64, after: Duration, lead: Duration },
    /// The process dies, and is started again.
    Kill { machine: u64, after: Duration },
    /// The process dies as it sends its n-th request.
    KillAtRequest { machine: u64, request: u64 },
    /// The process dies at its n-th point of waiting.
    KillAtPoll { machine: u64, poll: u64 },
    /// The process gets the signal to stop.
    Drain { machine: u64, after: Duration },
    /// The machine stands still.
    Freeze { machine: u64, after: Duration, length: Duration },
    /// The machine's wall clock becomes wrong.
    Clock { machine: u64, after: Duration, seconds: i64 },
    /// The machine's disk is full for a time.
    FullDisk { machine: u64, after: Duration, length: Duration },
    /// The machine boots slowly, or never.
    Boot { machine: u64, takes: Option<Duration> },
    /// EC2 does not show the machine for a time after its launch.
    Hide { machine: u64, length: Duration },
    /// EC2 forgets the machine as soon as it is terminated.
    Forget { machine: u64 },
    /// A launch gets fewer instances than it asked for, or one more.
    Launch { launch: u64, fewer: u64, more: u64 },
    /// The index of open tasks lags.
    Lag { from: Duration, length: Duration, by: Duration },
    /// An event comes twice, late, or not at all.
    Event { event: u64, copies: u64, delay: Duration },
    /// A function, or a command, is killed at its n-th request.
    KillCaller { caller: u64, request: u64 },
    /// Two sweeps run at once.
    TwoSweeps { at: Duration },
    /// The workload of a task does something else in an attempt.
    Workload { task: u64, attempt: u64, does: Does },
    /// Somebody does something.
    Operator { when: When, act: Act },
}

/// When somebody does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum When {
    /// At a time.
    At(Duration),
    /// A time after all tasks of the mission have ended for the first time.
    AfterEnd(Duration),
    /// A time after a number of tasks have ended.
    AfterTasks(u64, Duration),
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(at) => write!(f, "at {}", Time(*at)),
            Self::AfterEnd(after) => write!(f, "{} after the mission's end", Time(*after)),
            Self::AfterTasks(count, after) => write!(f, "{} after the end of {count} tasks", Time(*after)),
        }
    }
}

/// A time in readable form.
pub(crate) struct Time(pub(crate) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeRequest { machine, request, fate } => write!(f, "request {request} of machine {machine} {fate}"),
            Self::CallerRequest { caller, request, fate } => write!(f, "request {request} of caller {caller} {fate}"),
            Self::Step { sender, step, nth, fate, is_last } => {
                write!(f, "{step} {nth} of {sender} {fate}{}", if *is_last { ", and is its last request" } else { "" })
            }
            Self::Outage { service, from, length } => {
                write!(f, "{service:?} answers nobody for {} from {}", Time(*length), Time(*from))
            }
            Self::Slow { service, from, length, by } => {
                write!(f, "{service:?} is up to {} slower for {} from {}", Time(*by), Time(*length), Time(*from))
            }
            Self::Stalls { service, from, length, percent, by } => {
                let (from, length, by) = (Time(*from), Time(*length), Time(*by));
                write!(f, "{percent} % of the requests to {service:?} stall for up to {by}, for {length} from {from}")
            }
            Self::Repeats { service, from, length, percent, by } => {
                let (from, length, by) = (Time(*from), Time(*length), Time(*by));
                write!(f, "{percent} % of the requests to {service:?} are applied again ")?;
                write!(f, "up to {by} later, for {length} from {from}")
            }
            Self::Reclaim { machine, after } => {
                write!(f, "machine {machine} vanishes {} after its launch", Time(*after))
            }
            Self::Notice { machine, after, lead } => {
                let (after, lead) = (Time(*after), Time(*lead));
                write!(f, "machine {machine} gets a Spot notice of {lead}, {after} after its launch")
            }
            Self::Kill { machine, after } => {
                write!(f, "the process of machine {machine} is killed {} after the launch", Time(*after))
            }
            Self::KillAtRequest { machine, request } => {
                write!(f, "the process of machine {machine} is killed at the machine's request {request}")
            }
            Self::KillAtPoll { machine, poll } => {
                write!(f, "the process of machine {machine} is killed when it waits for the {poll}th time")
            }
            Self::Drain { machine, after } => {
                write!(f, "the process of machine {machine} gets SIGTERM {} after the launch", Time(*after))
            }
            Self::Freeze { machine, after, length } => {
                let (after, length) = (Time(*after), Time(*length));
                write!(f, "machine {machine} stands still for {length}, {after} after its launch")
            }
            Self::Clock { machine, after, seconds } => {
                write!(f, "the clock of machine {machine} is {seconds} s ahead from {} on", Time(*after))
            }
            Self::FullDisk { machine, after, length } => {
                let (after, length) = (Time(*after), Time(*length));
                write!(f, "the disk of machine {machine} is full for {length}, {after} after its launch")
            }
            Self::Boot { machine, takes: Some(takes) } => write!(f, "machine {machine} boots in {}", Time(*takes)),
            Self::Boot { machine, takes: None } => write!(f, "machine {machine} never boots"),
            Self::Hide { machine, length } => {
                write!(f, "EC2 does not show machine {machine} for {} after its launch", Time(*length))
            }
            Self::Forget { machine } => write!(f, "EC2 forgets machine {machine} when it is terminated"),
            Self::Launch { launch, fewer, more } => {
                write!(f, "launch {launch} makes {fewer} instances fewer, and {more} that EC2 does not name")
            }
            Self::Lag { from, length, by } => {
                write!(f, "the index is {} old for {} from {}", Time(*by), Time(*length), Time(*from))
            }
            Self::Event { event, copies, delay } => {
                write!(f, "event {event} comes {copies} times, {} late", Time(*delay))
            }
            Self::KillCaller { caller, request } => write!(f, "caller {caller} is killed at its request {request}"),
            Self::TwoSweeps { at } => write!(f, "two sweeps begin at {}", Time(*at)),
            Self::Workload { task, attempt, does } => write!(f, "attempt {attempt} of task {task}: {}", does.name()),
            Self::Operator { when, act: act @ Act::Edit(task, _) } => {
                write!(f, "{when}: somebody edits task {task}: {}", act.name())
            }
            Self::Operator { when, act } => write!(f, "{when}: {}", act.name()),
        }
    }
}

/// The settings of a simulated mission and its deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MissionPlan {
    pub(crate) tasks: u64,
    /// Nodes that serve it; `None`: one per task.
    pub(crate) nodes: Option<u32>,
    pub(crate) slots: Option<u16>,
    /// Objects below its prefix become tasks.
    pub(crate) uploads: bool,
    /// How long a workload takes: at least, at most.
    pub(crate) takes: (Duration, Duration),
    /// Whether workloads save checkpoints.
    pub(crate) has_checkpoints: bool,
    /// Whether the first task's result is a folder, and the last task's result has the key of a file in it.
    pub(crate) has_folder: bool,
    /// Interruptions before a task is failed.
    pub(crate) max_interruptions: u64,
    /// The deployment's limit of nodes at a time.
    pub(crate) node_limit: Option<u64>,
    /// Whether people are notified of the first failure, and of a stall.
    pub(crate) notifies_early: bool,
    /// How often a sweep runs. A sweep may take longer.
    pub(crate) sweep_every: Duration,
    /// The most that a request, or its answer, is under way.
    pub(crate) latency: Duration,
    /// Whether each machine's wall clock is wrong by up to eight hours.
    pub(crate) has_wrong_clocks: bool,
    /// Whether each launch makes one instance more than it asks for, which EC2 does not name in its answer.
    #[serde(default)]
    pub(crate) has_spare_instances: bool,
    /// The longest workload during which a node claims the next task.
    #[serde(default)]
    pub(crate) claim_ahead: Duration,
    /// Whether one task of three has parameters and no object, and one has two objects.
    #[serde(default)]
    pub(crate) has_forms: bool,
}

impl MissionPlan {
    /// Returns how many workloads a node runs at a time.
    pub(crate) fn slots_of_a_node(&self) -> usize {
        self.slots.filter(|_| self.nodes.is_some()).unwrap_or(1).max(1).into()
    }
}

/// A seed's plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) mission: MissionPlan,
    /// How long faults happen.
    pub(crate) hostile: Duration,
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    /// Returns the plan with only the faults of these numbers.
    pub(crate) fn with(&self, numbers: &[usize]) -> Self {
        let faults = numbers.iter().filter_map(|&number| self.faults.get(number).cloned()).collect();
        Self { faults, ..self.clone() }
    }
}
