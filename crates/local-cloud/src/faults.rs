//! Injected faults, a journal of the calls, and hooks at a chosen call, all for tests.
//!
//! A rule names a service, an operation (`UpdateItem`, `PutObject`, an IMDS path; `*` for any), and the calls that it
//! matches, which the rule counts from its creation. All delays, hooks, and gates act. Of several faults that decide
//! the answer, the oldest acts. A fault changes whether a request or its answer arrives, never what the service does.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::gate::Gate;
use super::lock::locked;
use super::services::Service;

/// The matching calls on which a rule acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The n-th, counted from 1.
    Nth(u32),
    /// The first n.
    First(u32),
    /// All but the first n.
    After(u32),
    /// Every one.
    Always,
}

impl When {
    fn covers(self, seen: u32) -> bool {
        match self {
            Self::Nth(n) => seen == n,
            Self::First(n) => seen <= n,
            Self::After(n) => seen > n,
            Self::Always => true,
        }
    }
}

/// An injected fault.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The connection breaks before the request is applied.
    FailBefore,
    /// The request is applied, then the connection breaks: the answer is lost.
    FailAfter,
    /// The request is applied twice; the second answer is returned.
    Repeat,
    /// The request is delayed, then applied.
    Delay(Duration),
    /// Not applied; this status and error code are answered.
    Status(u16, &'static str),
    /// Applied; then this status and error code are answered in place of the answer.
    StatusAfter(u16, &'static str),
    /// Not applied; this status and exactly this body are answered.
    Raw(u16, String),
    /// Not applied, never answered.
    Hang,
    /// Applied; the answer's body breaks off after this many bytes.
    CutBody(u64),
}

type Callback = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone)]
enum Effect {
    Fault(Fault),
    Before(Callback),
    After(Callback),
    HoldBefore(Gate),
    HoldAfter(Gate),
}

struct Rule {
    service: Service,
    operation: String,
    when: When,
    seen: u32,
    effect: Effect,
}

#[derive(Default)]
struct FaultState {
    rules: Vec<Rule>,
    calls: Vec<(Service, String)>,
}

/// The rules and the journal of one or several HTTP clients; a clone is the same list.
#[derive(Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<FaultState>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = locked(&self.state);
        f.debug_struct("Faults").field("rules", &state.rules.len()).field("calls", &state.calls.len()).finish()
    }
}

impl Faults {
    /// Creates an empty list, which only keeps the journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault.
    pub fn add(&self, service: Service, operation: &str, when: When, fault: Fault) -> &Self {
        self.push(service, operation, when, Effect::Fault(fault))
    }

    /// Calls `act` when the n-th such call (from 1) has arrived, before it is applied.
    pub fn before(&self, service: Service, operation: &str, n: u32, act: impl Fn() + Send + Sync + 'static) -> &Self {
        self.push(service, operation, When::Nth(n), Effect::Before(Arc::new(act)))
    }

    /// Calls `act` when the n-th such call (from 1) has been applied, before it is answered.
    pub fn after(&self, service: Service, operation: &str, n: u32, act: impl Fn() + Send + Sync + 'static) -> &Self {
        self.push(service, operation, When::Nth(n), Effect::After(Arc::new(act)))
    }

    /// Holds such calls before they are applied, until the gate is opened.
    #[must_use]
    pub fn hold_before(&self, service: Service, operation: &str, when: When) -> Gate {
        let gate = Gate::new();
        self.push(service, operation, when, Effect::HoldBefore(gate.clone()));
        gate
    }

    /// Holds the answers of such calls, which have been applied, until the gate is opened.
    #[must_use]
    pub fn hold_after(&self, service: Service, operation: &str, when: When) -> Gate {
        let gate = Gate::new();
        self.push(service, operation, when, Effect::HoldAfter(gate.clone()));
        gate
    }

    /// Removes every rule; the journal stays.
    pub fn clear(&self) {
        locked(&self.state).rules.clear();
    }

    /// Returns every call in the order of arrival, including those that were never applied.
    #[must_use]
    pub fn calls(&self) -> Vec<(Service, String)> {
        locked(&self.state).calls.clone()
    }

    /// Counts the calls of one operation (`*`: of the service).
    #[must_use]
    pub fn count(&self, service: Service, operation: &str) -> usize {
        let is_one = |call: &&(Service, String)| call.0 == service && (operation == "*" || call.1 == operation);
        locked(&self.state).calls.iter().filter(is_one).count()
    }

    fn push(&self, service: Service, operation: &str, when: When, effect: Effect) -> &Self {
        let rule = Rule { service, operation: operation.to_owned(), when, seen: 0, effect };
        locked(&self.state).rules.push(rule);
        self
    }

    /// Records a call that has arrived and returns what the rules do to it.
    pub(super) fn record(&self, service: Service, operation: &str) -> CallPlan {
        let mut state = locked(&self.state);
        state.calls.push((service, operation.to_owned()));
        let mut plan = CallPlan::default();
        for rule in &mut state.rules {
            if rule.service != service || (rule.operation != "*" && rule.operation != operation) {
                continue;
            }
            rule.seen += 1;
            if !rule.when.covers(rule.seen) {
                continue;
            }
            match rule.effect.clone() {
                Effect::Fault(Fault::Delay(time)) => plan.before.push(CallStep::Wait(time)),
                Effect::Fault(fault) => plan.fault = plan.fault.take().or(Some(fault)),
                Effect::Before(act) => plan.before.push(CallStep::Call(act)),
                Effect::After(act) => plan.after.push(CallStep::Call(act)),
                Effect::HoldBefore(gate) => plan.before.push(CallStep::Hold(gate)),
                Effect::HoldAfter(gate) => plan.after.push(CallStep::Hold(gate)),
            }
        }
        plan
    }
}

/// What the rules do to one call.
#[derive(Default)]
pub(super) struct CallPlan {
    before: Vec<CallStep>,
    pub(super) fault: Option<Fault>,
    after: Vec<CallStep>,
}

enum CallStep {
    Wait(Duration),
    Call(Callback),
    Hold(Gate),
}

impl CallPlan {
    pub(super) async fn before(&mut self) {
        run(std::mem::take(&mut self.before)).await;
    }

    pub(super) async fn after(&mut self) {
        run(std::mem::take(&mut self.after)).await;
    }
}

async fn run(steps: Vec<CallStep>) {
    for step in steps {
        match step {
            CallStep::Wait(time) => tokio::time::sleep(time).await,
            CallStep::Call(act) => act(),
            CallStep::Hold(gate) => gate.wait_until_open().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_counts_its_own_calls() {
        let faults = Faults::new();
        faults.add(Service::S3, "PutObject", When::Nth(2), Fault::FailBefore);
        faults.add(Service::S3, "*", When::First(1), Fault::Hang);

        let met: Vec<_> = ["HeadObject", "PutObject", "PutObject", "PutObject"]
            .map(|operation| faults.record(Service::S3, operation).fault)
            .into();

        assert_eq!(met, [Some(Fault::Hang), None, Some(Fault::FailBefore), None]);
        assert_eq!(faults.record(Service::Sns, "PutObject").fault, None);
        assert_eq!(faults.count(Service::S3, "PutObject"), 3);
        assert_eq!(faults.count(Service::S3, "*"), 4);
    }

    #[test]
    fn the_first_of_two_faults_wins() {
        let faults = Faults::new();
        faults.add(Service::Ec2, "X", When::Always, Fault::FailAfter);
        faults.add(Service::Ec2, "X", When::Always, Fault::Repeat);

        assert_eq!(faults.record(Service::Ec2, "X").fault, Some(Fault::FailAfter));
    }
}
