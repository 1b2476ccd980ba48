//! The simulated world: the cloud, the plan, what happened so far, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use local_cloud::LocalCloud;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::check::{Checker, Known};
use crate::limits::Limits;
use crate::lock::locked;
use crate::plan::{Dice, Fault, Of, Plan};
use crate::step::{Sender, Step};
use crate::who::Who;

/// The requests of a machine or caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) count: u64,
    pub(crate) first: Duration,
    pub(crate) last: Duration,
}

/// A broken promise: the checker that found it, and what it found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Broken {
    pub(crate) checker: String,
    pub(crate) what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker, self.what)
    }
}

/// The simulated world.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) cloud: LocalCloud,
    pub(crate) dir: PathBuf,
    /// What the checkers know.
    pub(crate) known: Mutex<Known>,
    /// Requests are applied one after another, so that a checker sees what each of them changed.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Requests so far, by machine and caller.
    requests: Mutex<BTreeMap<Who, Sent>>,
    /// Requests so far, by what they do.
    steps: Mutex<BTreeMap<(Sender, Step), u64>>,
    /// Cancelled when the fault of a step lets a machine vanish.
    vanished: Mutex<BTreeMap<u64, CancellationToken>>,
    /// What ends a process or a command.
    kills: Mutex<BTreeMap<Who, CancellationToken>>,
    /// When a fault last hit a machine or a caller: each service's requests, and the machine itself.
    disturbed: Mutex<BTreeMap<(Who, Option<Of>), Duration>>,
    callers: AtomicU64,
    trace: Mutex<Vec<String>>,
    broken: Mutex<Vec<Broken>>,
    /// How often each kind of thing happened.
    seen: Mutex<BTreeMap<String, u64>>,
    started: Instant,
    /// Cancelled at the end of the time of faults.
    pub(crate) calm: CancellationToken,
    /// With it, requests have no faults, and no checker looks at them.
    pub(crate) limits: Option<Limits>,
    /// When the first workload of each process started, and its last one ended.
    pub(crate) work: Mutex<BTreeMap<Who, (Duration, Duration)>>,
    /// How many tasks have ended, and whether all have.
    pub(crate) ends: watch::Sender<(u64, bool)>,
}

/// Starts something that lives as long as the simulation.
#[expect(clippy::disallowed_methods, reason = "nobody waits for it: the process ends with the simulation")]
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

impl World {
    pub(crate) fn new(plan: Plan, cloud: LocalCloud, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self::with(plan, cloud, dir, None))
    }

    /// Makes a world for figures, in which nothing is checked.
    pub(crate) fn with_limits(plan: Plan, cloud: LocalCloud, dir: PathBuf, limits: Limits) -> Arc<Self> {
        Arc::new(Self::with(plan, cloud, dir, Some(limits)))
    }

    fn with(plan: Plan, cloud: LocalCloud, dir: PathBuf, limits: Option<Limits>) -> Self {
        Self {
            plan,
            cloud,
            dir,
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            requests: Mutex::default(),
            steps: Mutex::default(),
            vanished: Mutex::default(),
            kills: Mutex::default(),
            disturbed: Mutex::default(),
            callers: AtomicU64::new(0),
            trace: Mutex::default(),
            broken: Mutex::default(),
            seen: Mutex::default(),
            started: Instant::now(),
            calm: CancellationToken::new(),
            limits,
            work: Mutex::default(),
            ends: watch::Sender::new((0, false)),
        }
    }

    /// Returns the time since the start.
    pub(crate) fn time(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a line to the trace.
    pub(crate) fn note(&self, line: &str) {
        if self.limits.is_some() {
            return;
        }
        let timed = |at: Duration, text: &str| format!("{:>6}.{:03} {text}", at.as_secs(), at.subsec_millis());
        let mut trace = locked(&self.trace);
        trace.extend(crate::log::take().iter().map(|(at, text)| timed(*at, &format!("  | {text}"))));
        trace.push(timed(self.time(), line));
    }

    /// Notes a broken promise.
    pub(crate) fn broken(&self, checker: Checker, what: &str) {
        self.note(&format!("BROKEN {}: {what}", checker.name()));
        locked(&self.broken).push(Broken { checker: checker.name().to_owned(), what: what.to_owned() });
    }

    /// Counts that something happened.
    pub(crate) fn saw(&self, what: &str) {
        *locked(&self.seen).entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn result(&self) -> (Vec<Broken>, Vec<String>, BTreeMap<String, u64>) {
        (locked(&self.broken).clone(), locked(&self.trace).clone(), locked(&self.seen).clone())
    }

    /// Returns whether faults still happen.
    pub(crate) fn is_hostile(&self) -> bool {
        !self.calm.is_cancelled()
    }

    /// Returns the faults.
    pub(crate) fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.plan.faults.iter()
    }

    /// Counts a request of a machine or caller, and returns its number, from 0.
    pub(crate) fn next_request(&self, who: Who) -> u64 {
        let now = self.time();
        let mut requests = locked(&self.requests);
        let sent = requests.entry(who.place()).or_insert(Sent { count: 0, first: now, last: now });
        sent.count += 1;
        sent.last = now;
        sent.count - 1
    }

    /// Counts a request that does a step, and returns its number, from 0.
    pub(crate) fn next_step(&self, sender: Sender, step: Step) -> u64 {
        let mut steps = locked(&self.steps);
        let count = steps.entry((sender, step)).or_default();
        *count += 1;
        *count - 1
    }

    /// Returns what is cancelled when a machine must vanish.
    pub(crate) fn vanished(&self, machine: u64) -> CancellationToken {
        locked(&self.vanished).entry(machine).or_default().clone()
    }

    pub(crate) fn requests(&self) -> BTreeMap<Who, Sent> {
        locked(&self.requests).clone()
    }

    /// Registers what ends a process or a command.
    pub(crate) fn set_kill(&self, who: Who, kill: CancellationToken) {
        locked(&self.kills).insert(who.place(), kill);
    }

    pub(crate) fn kill(&self, who: Who) {
        if let Some(kill) = locked(&self.kills).get(&who.place()) {
            self.note(&format!("{} is killed", who.place()));
            self.disturb(who, None);
            kill.cancel();
        }
    }

    /// Notes that a fault hits a request of a machine or caller to a service now, or the machine itself.
    pub(crate) fn disturb(&self, who: Who, service: Option<Of>) {
        locked(&self.disturbed).insert((who.place(), service), self.time());
    }

    /// Returns whether a fault may have hit a machine or a caller since a time: one of its own, or of any service.
    pub(crate) fn is_disturbed_since(&self, who: Who, since: Duration) -> bool {
        [Of::DynamoDb, Of::S3, Of::Ec2, Of::Sns].into_iter().any(|service| self.is_cut_off_since(who, service, since))
    }

    /// Returns whether a fault may have hit a machine or a caller, or its requests to a service, since a time.
    pub(crate) fn is_cut_off_since(&self, who: Who, service: Of, since: Duration) -> bool {
        let now = self.time();
        let disturbed = locked(&self.disturbed);
        let is_hit = [None, Some(service)]
            .into_iter()
            .any(|service| disturbed.get(&(who.place(), service)).is_some_and(|at| *at >= since));
        drop(disturbed);
        is_hit
            || self.faults().any(|fault| match fault {
                Fault::Outage { service: of, from, length } => {
                    *of == service && *from <= now && *from + *length + OUTAGE_ENDS >= since
                }
                Fault::Slow { service: of, from, length, by } | Fault::Stalls { service: of, from, length, by, .. } => {
                    *of == service && *from <= now && *from + *length + *by >= since
                }
                _ => false,
            })
    }

    /// Returns how long a request to a service takes longer now, at the most.
    pub(crate) fn slowness(&self, service: Of) -> Duration {
        let now = self.time();
        let slow = self.faults().filter(|_| self.is_hostile()).filter_map(|fault| match fault {
            Fault::Slow { service: of, from, length, by }
                if *of == service && now >= *from && now < *from + *length =>
            {
                Some(*by)
            }
            _ => None,
        });
        slow.max().unwrap_or_default()
    }

    /// Draws for how long a request stalls on its way, and its answer.
    pub(crate) fn stall(&self, service: Of, dice: &mut Dice) -> (Duration, Duration) {
        let now = self.time();
        for fault in self.faults().filter(|_| self.is_hostile()) {
            match fault {
                Fault::Stalls { service: of, from, length, percent, by }
                    if *of == service && now >= *from && now < *from + *length && dice.chance(*percent) =>
                {
                    self.saw("request stalled");
                    let time = dice.time(Duration::ZERO, *by);
                    return if dice.chance(50) { (time, Duration::ZERO) } else { (Duration::ZERO, time) };
                }
                _ => {}
            }
        }
        (Duration::ZERO, Duration::ZERO)
    }

    /// Draws how long after a request it is applied again.
    pub(crate) fn repeat(&self, service: Of, dice: &mut Dice) -> Option<Duration> {
        let now = self.time();
        self.faults().filter(|_| self.is_hostile()).find_map(|fault| match fault {
            Fault::Repeats { service: of, from, length, percent, by }
                if *of == service && now >= *from && now < *from + *length && dice.chance(*percent) =>
            {
                Some(dice.time(Duration::ZERO, *by))
            }
            _ => None,
        })
    }

    /// Returns whether a service answers nobody now.
    pub(crate) fn is_out(&self, service: Of) -> bool {
        let now = self.time();
        self.is_hostile()
            && self.faults().any(|fault| match fault {
                Fault::Outage { service: out, from, length } => {
                    *out == service && now >= *from && now < *from + *length
                }
                _ => false,
            })
    }

    pub(crate) fn next_caller(&self) -> Who {
        Who::Caller(self.callers.fetch_add(1, Ordering::SeqCst))
    }
}

/// A request that hangs in an outage ends this much after it.
const OUTAGE_ENDS: Duration = Duration::from_secs(30);
