//! The simulated world: the cloud, the plan, what happened so far, and what is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lighthpc::backend::machine::PowerOff;
use lighthpc::backend::{Backend, Tables, Wire};
use local_cloud::{ACCESS_KEY, LocalCloud, REGION, SECRET_KEY};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::check::Rows;
use crate::network::SimulatedNetwork;
use crate::plan::{Fault, Plan};

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A process of a machine.
    Node(u64),
    /// An invocation of the function, or a command.
    Caller(u64),
    /// The simulator itself: no faults.
    Observer,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(machine) => write!(f, "node-{machine}"),
            Self::Caller(number) => write!(f, "caller-{number}"),
            Self::Observer => f.write_str("observer"),
        }
    }
}

/// The simulated world.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) cloud: LocalCloud,
    pub(crate) dir: PathBuf,
    pub(crate) rows: Mutex<Rows>,
    /// Requests so far, by sender.
    requests: Mutex<BTreeMap<Who, u64>>,
    /// What ends a process or a command.
    kills: Mutex<BTreeMap<Who, CancellationToken>>,
    callers: AtomicU64,
    trace: Mutex<Vec<String>>,
    broken: Mutex<Vec<String>>,
    /// How often each kind of thing happened.
    seen: Mutex<BTreeMap<String, u64>>,
    started: Instant,
    /// Cancelled at the end of the time of faults.
    pub(crate) calm: CancellationToken,
    /// When an operator last changed the missions.
    operated_at: Mutex<Option<Instant>>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(plan: Plan, cloud: LocalCloud, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            plan,
            cloud,
            dir,
            rows: Mutex::default(),
            requests: Mutex::default(),
            kills: Mutex::default(),
            callers: AtomicU64::new(0),
            trace: Mutex::default(),
            broken: Mutex::default(),
            seen: Mutex::default(),
            started: Instant::now(),
            calm: CancellationToken::new(),
            operated_at: Mutex::default(),
        })
    }

    /// Returns the time since the start.
    pub(crate) fn time(&self) -> Duration {
        self.started.elapsed()
    }

    /// Adds a line to the trace.
    pub(crate) fn note(&self, line: &str) {
        let now = self.time();
        locked(&self.trace).push(format!("{:>10}.{:03} {line}", now.as_secs(), now.subsec_millis()));
    }

    /// Notes a broken promise.
    pub(crate) fn broken(&self, promise: &str) {
        self.note(&format!("BROKEN: {promise}"));
        locked(&self.broken).push(promise.to_owned());
    }

    /// Counts that something happened.
    pub(crate) fn saw(&self, what: &str) {
        *locked(&self.seen).entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn result(&self) -> (Vec<String>, Vec<String>, BTreeMap<String, u64>) {
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

    /// Counts a request, and returns its number, from 0.
    pub(crate) fn next_request(&self, who: Who) -> u64 {
        let mut requests = locked(&self.requests);
        let count = requests.entry(who).or_default();
        *count += 1;
        *count - 1
    }

    pub(crate) fn requests(&self) -> BTreeMap<Who, u64> {
        locked(&self.requests).clone()
    }

    /// Registers what ends a process or a command.
    pub(crate) fn set_kill(&self, who: Who, kill: CancellationToken) {
        locked(&self.kills).insert(who, kill);
    }

    pub(crate) fn kill(&self, who: Who) {
        if let Some(kill) = locked(&self.kills).get(&who) {
            self.note(&format!("{who} is killed"));
            kill.cancel();
        }
    }

    pub(crate) fn next_caller(&self) -> Who {
        Who::Caller(self.callers.fetch_add(1, Ordering::SeqCst))
    }

    /// Notes that an operator changes missions.
    pub(crate) fn operates(&self) {
        *locked(&self.operated_at) = Some(Instant::now());
    }

    /// Returns whether an operator has changed missions within a time.
    pub(crate) fn has_operated_within(&self, time: Duration) -> bool {
        locked(&self.operated_at).is_some_and(|at| at.elapsed() < time)
    }

    /// Makes the services of a sender.
    pub(crate) fn backend(self: &Arc<Self>, who: Who, instance: Option<&str>) -> Backend {
        let http = match who {
            Who::Observer => self.cloud.http_client(None),
            _ => self.cloud.http_client_via(instance, Arc::new(SimulatedNetwork::new(Arc::clone(self), who))),
        };
        Backend::new(&Wire::plugged(http, REGION, ACCESS_KEY, SECRET_KEY), Tables::default(), PowerOff::Never)
    }
}
