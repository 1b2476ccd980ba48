//! The instances of the local cloud, as EC2 and IMDS show them.
//!
//! They live in this process only. An instance of an earlier process over the same folder is `terminated`: that process
//! has exited, or this one would not have the folder's lock. An instance is `running` until it is stopped or
//! terminated; there is no state between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use super::lock::locked;

/// The current state of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id, `i-` and 17 hexadecimal digits.
    pub id: String,
    /// `running`, `stopped`, or `terminated`.
    pub state: String,
    /// Its tags, by key.
    pub tags: Vec<(String, String)>,
    /// The number of instances launched before it in this process.
    pub launched: u64,
    /// The number of `TerminateInstances` calls that named it.
    pub terminate_calls: u32,
}

/// The state of one instance.
#[derive(Debug, Clone, Default)]
pub(super) struct Machine {
    pub(super) tags: BTreeMap<String, String>,
    pub(super) is_running: bool,
    /// Whether an instance that is not running is stopped, not terminated.
    pub(super) is_stopped: bool,
    pub(super) launched: u64,
    pub(super) launched_at: Duration,
    pub(super) terminate_calls: u32,
    /// The spot notice: its action and its time.
    pub(super) notice: Option<(String, String)>,
    /// The time of the rebalance recommendation.
    pub(super) rebalance: Option<String>,
    /// Why its state changed: code and message.
    pub(super) reason: Option<(String, String)>,
    /// Whether EC2 does not show it (yet).
    pub(super) is_hidden: bool,
}

impl Machine {
    pub(super) fn state(&self) -> &'static str {
        match (self.is_running, self.is_stopped) {
            (true, _) => "running",
            (false, true) => "stopped",
            (false, false) => "terminated",
        }
    }
}

/// The call that first used a client token, and the instances that it launched.
type Launched = (BTreeMap<String, String>, Vec<String>);

/// The instances.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    machines: Mutex<BTreeMap<String, Machine>>,
    tokens: Mutex<BTreeMap<String, Launched>>,
    hides_tags: AtomicBool,
    /// Whether earlier processes had instances in the same folder.
    has_earlier: AtomicBool,
    /// The zones of subnets. A subnet that is missing here is in a zone of its own.
    zones: Mutex<BTreeMap<String, String>>,
    /// The instance types that the region offers; `None`: all.
    offered: Mutex<Option<BTreeSet<String>>>,
    /// The parameters of every call.
    requests: Mutex<Vec<BTreeMap<String, String>>>,
    /// How many instances were launched.
    launched: tokio::sync::watch::Sender<u64>,
    #[cfg(any(test, feature = "testing"))]
    hook: Mutex<Hook>,
}

/// What becomes of a launch.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchChange {
    /// How many instances of those that were asked for are not launched.
    pub fewer: usize,
    /// How many more are launched, and are not in the answer.
    pub more: usize,
}

/// Decides about the n-th launch (from 1).
#[cfg(any(test, feature = "testing"))]
pub type LaunchHook = std::sync::Arc<dyn Fn(u64) -> LaunchChange + Send + Sync>;

/// What decides about launches, and how many there were.
#[cfg(any(test, feature = "testing"))]
#[derive(Default)]
struct Hook {
    decide: Option<LaunchHook>,
    launches: u64,
}

#[cfg(any(test, feature = "testing"))]
impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("launches", &self.launches).finish_non_exhaustive()
    }
}

impl Fleet {
    pub(super) fn launch(&self, tags: impl IntoIterator<Item = (String, String)>) -> String {
        // 17 hexadecimal digits as EC2's; random, so that two processes over one folder never share one.
        let id = format!("i-0{:016x}", uuid::Uuid::new_v4().as_u64_pair().1);
        let mut machines = locked(&self.machines);
        let machine = Machine {
            tags: tags.into_iter().collect(),
            is_running: true,
            launched: machines.len() as u64,
            launched_at: lighthpc_runtime::true_now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            ..Machine::default()
        };
        machines.insert(id.clone(), machine);
        drop(machines);
        self.launched.send_modify(|count| *count += 1);
        id
    }

    /// Records that earlier processes had instances in the same folder, all terminated.
    pub(super) fn set_has_earlier(&self) {
        self.has_earlier.store(true, Ordering::SeqCst);
    }

    /// Adds, as terminated, the instances that only an earlier process can have launched.
    pub(super) fn add_earlier(&self, ids: &[String]) {
        let is_ours = |id: &String| id.len() == 19 && id.starts_with("i-0");
        if self.has_earlier.load(Ordering::SeqCst) {
            let mut machines = locked(&self.machines);
            for id in ids.iter().filter(|id| is_ours(id)) {
                machines.entry(id.clone()).or_default();
            }
        }
    }

    /// Launches once for one client token, as EC2 does. `Err`: the token was used for another call.
    pub(super) fn launch_once(
        &self,
        token: Option<&str>,
        call: BTreeMap<String, String>,
        launch: impl FnOnce() -> Vec<String>,
    ) -> Result<Vec<String>, ()> {
        let Some(token) = token else { return Ok(launch()) };
        let mut tokens = locked(&self.tokens);
        if let Some((first, ids)) = tokens.get(token) {
            return if *first == call { Ok(ids.clone()) } else { Err(()) };
        }
        let ids = launch();
        tokens.insert(token.to_owned(), (call, ids.clone()));
        Ok(ids)
    }

    pub(super) fn machine(&self, id: &str) -> Option<Machine> {
        locked(&self.machines).get(id).cloned()
    }

    /// Returns the first unknown id.
    pub(super) fn first_unknown<'a>(&self, ids: &'a [String]) -> Option<&'a str> {
        let machines = locked(&self.machines);
        ids.iter().find(|id| machines.get(*id).is_none_or(|machine| machine.is_hidden)).map(String::as_str)
    }

    pub(super) fn all(&self) -> Vec<(String, Machine)> {
        let mut all: Vec<_> =
            locked(&self.machines).iter().map(|(id, machine)| (id.clone(), machine.clone())).collect();
        all.sort_by_key(|(_, machine)| machine.launched);
        all
    }

    pub(super) fn change<T>(&self, id: &str, change: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        locked(&self.machines).get_mut(id).map(change)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_running(&self, id: &str) -> bool {
        locked(&self.machines).get(id).is_some_and(|machine| machine.is_running)
    }

    pub(super) fn instances(&self) -> Vec<Instance> {
        let instance = |(id, machine): (String, Machine)| Instance {
            id,
            state: machine.state().to_owned(),
            tags: machine.tags.into_iter().collect(),
            launched: machine.launched,
            terminate_calls: machine.terminate_calls,
        };
        self.all().into_iter().map(instance).collect()
    }

    /// Returns the known subnets with their zones.
    pub(super) fn subnets(&self) -> BTreeMap<String, String> {
        locked(&self.zones).clone()
    }

    pub(super) fn offers(&self, instance_type: &str) -> bool {
        locked(&self.offered).as_ref().is_none_or(|offered| offered.contains(instance_type))
    }

    pub(super) fn record(&self, call: BTreeMap<String, String>) {
        locked(&self.requests).push(call);
    }

    pub(super) fn shows_tags_in_imds(&self) -> bool {
        !self.hides_tags.load(Ordering::SeqCst)
    }
}

/// Operations for tests.
#[cfg(any(test, feature = "testing"))]
impl Fleet {
    pub(super) fn launches(&self) -> tokio::sync::watch::Receiver<u64> {
        self.launched.subscribe()
    }

    pub(super) fn set_launch_hook(&self, hook: LaunchHook) {
        locked(&self.hook).decide = Some(hook);
    }

    /// Decides about the next launch.
    pub(super) fn next_launch(&self) -> LaunchChange {
        let mut hook = locked(&self.hook);
        hook.launches += 1;
        let number = hook.launches;
        hook.decide.as_ref().map(|decide| decide(number)).unwrap_or_default()
    }

    pub(super) fn age(&self, id: &str, by: Duration) {
        self.change(id, |machine| machine.launched_at = machine.launched_at.saturating_sub(by));
    }

    pub(super) fn requests(&self, action: &str) -> Vec<BTreeMap<String, String>> {
        let is_one = |call: &&BTreeMap<String, String>| call.get("Action").is_some_and(|name| name == action);
        locked(&self.requests).iter().filter(is_one).cloned().collect()
    }

    pub(super) fn set_tags_in_imds(&self, on: bool) {
        self.hides_tags.store(!on, Ordering::SeqCst);
    }

    pub(super) fn put_subnet(&self, id: &str, zone: &str) {
        locked(&self.zones).insert(id.to_owned(), zone.to_owned());
    }

    pub(super) fn offer(&self, types: &[&str]) {
        *locked(&self.offered) = Some(types.iter().map(|name| (*name).to_owned()).collect());
    }
}
