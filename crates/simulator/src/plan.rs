//! What a seed stands for: the missions, and the list of faults. A fault can be left out without a change of the rest:
//! everything else that is random is a function of the seed and of a name.

use std::fmt;
use std::time::Duration;

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

    /// Returns a time from `low` to `high` milliseconds.
    pub(crate) fn time(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.number(low, high))
    }
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
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
    /// The service fails, after it applied the request.
    FailAfter,
}

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Submits the mission once more, at the same moment as another one.
    SubmitTwice,
    /// Submits more tasks.
    Enlarge(u64),
    /// Cancels the mission.
    Cancel,
    /// Redrives the failed tasks.
    Redrive,
    /// Puts an object below the mission's prefix.
    Upload,
}

/// One fault, or one thing that somebody does meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The n-th request of the n-th process on the n-th machine.
    NodeWire { machine: u64, request: u64, wire: Wire },
    /// The n-th request of the n-th invocation or command.
    OtherWire { caller: u64, request: u64, wire: Wire },
    /// A service answers nobody.
    Outage { service: &'static str, from: Duration, length: Duration },
    /// The machine vanishes a time after its launch, without a notice.
    Reclaim { machine: u64, after: Duration },
    /// EC2 takes the machine back, with a notice.
    Notice { machine: u64, after: Duration, lead: Duration },
    /// The process dies, and is started again.
    Kill { machine: u64, after: Duration },
    /// The process dies just before its n-th request is applied, or just after.
    KillAtRequest { machine: u64, request: u64 },
    /// The machine stands still.
    Freeze { machine: u64, after: Duration, length: Duration },
    /// The machine's wall clock is wrong.
    Clock { machine: u64, seconds: u64, is_ahead: bool },
    /// The machine boots slowly, or never.
    Boot { machine: u64, takes: Option<Duration> },
    /// EC2 does not show the machine for a time.
    Hide { machine: u64, length: Duration },
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
    Operator { at: Duration, act: Act },
}

/// What a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Ends with a code.
    Exit(i32),
    /// Never ends by itself.
    Hang,
    /// Ends without a result.
    NoResult,
    /// Finds the disk full.
    DiskFull,
    /// Does not hear that it is to stop.
    Deaf,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The settings of a simulated mission.
#[derive(Clone, Debug)]
pub(crate) struct MissionPlan {
    pub(crate) tasks: u64,
    /// Nodes that serve it; `None`: one per task.
    pub(crate) nodes: Option<u32>,
    pub(crate) slots: Option<u16>,
    /// Objects below its prefix become tasks.
    pub(crate) uploads: bool,
    /// How long a workload takes.
    pub(crate) takes: (u64, u64),
    pub(crate) has_checkpoints: bool,
}

/// A seed's plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) mission: MissionPlan,
    /// How long faults happen.
    pub(crate) hostile: Duration,
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    /// Draws a plan.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "plan");
        let tasks = dice.number(1, 8);
        let nodes = dice.chance(50).then(|| u32::try_from(dice.number(1, 3)).unwrap_or(1));
        let slots = nodes.filter(|_| dice.chance(50)).map(|_| u16::try_from(dice.number(1, 3)).unwrap_or(1));
        let longest = dice.pick(&[5_000, 30_000, 120_000, 600_000]);
        let mission = MissionPlan {
            tasks,
            nodes,
            slots,
            uploads: dice.chance(30),
            takes: (500, longest),
            has_checkpoints: dice.chance(40),
        };
        let hostile = Duration::from_secs(dice.number(600, 5_400));
        let count = dice.number(0, 3 + 3 * tasks);
        let faults = (0..count).map(|n| fault(&mut Dice::new(seed, &format!("fault {n}")), &mission, hostile)).collect();
        Self { seed, mission, hostile, faults }
    }

    /// Keeps only the faults with these numbers.
    pub(crate) fn keep(&mut self, numbers: &[usize]) {
        let mut number = 0;
        self.faults.retain(|_| {
            number += 1;
            numbers.contains(&(number - 1))
        });
    }
}

fn wire(dice: &mut Dice) -> Wire {
    match dice.number(0, 6) {
        0 => Wire::LoseRequest,
        1 => Wire::LoseAnswer,
        2 => Wire::Repeat(dice.time(10, 240_000)),
        3 => Wire::DelayRequest(dice.time(100, 150_000)),
        4 => Wire::DelayAnswer(dice.time(100, 150_000)),
        5 => Wire::Throttle,
        _ => Wire::FailAfter,
    }
}

fn fault(dice: &mut Dice, mission: &MissionPlan, hostile: Duration) -> Fault {
    let machine = dice.number(0, 2 * mission.tasks);
    let hostile_ms = u64::try_from(hostile.as_millis()).unwrap_or(0);
    // Most things happen to a machine while it works.
    let alive_ms = 60_000 + 2 * mission.takes.1;
    match dice.number(0, 25) {
        0..=4 => Fault::NodeWire { machine, request: dice.number(0, 60), wire: wire(dice) },
        5..=6 => Fault::OtherWire { caller: dice.number(0, 30), request: dice.number(0, 40), wire: wire(dice) },
        7 => Fault::Outage {
            service: dice.pick(&["dynamodb", "s3", "ec2", "sns"]),
            from: dice.time(0, hostile_ms),
            length: dice.time(1_000, 400_000),
        },
        8 => Fault::Reclaim { machine, after: dice.time(0, alive_ms) },
        9..=10 => Fault::Notice { machine, after: dice.time(0, alive_ms), lead: dice.time(0, 120_000) },
        11 => Fault::Kill { machine, after: dice.time(0, alive_ms) },
        12..=13 => Fault::KillAtRequest { machine, request: dice.number(0, 60) },
        14 => Fault::Freeze { machine, after: dice.time(0, alive_ms), length: dice.time(1_000, 600_000) },
        15 => Fault::Clock { machine, seconds: dice.number(1, 30_000), is_ahead: dice.chance(50) },
        16 => Fault::Boot {
            machine,
            takes: if dice.chance(30) { None } else { Some(dice.time(20_000, 900_000)) },
        },
        17 => Fault::Hide { machine, length: dice.time(500, 240_000) },
        18 => {
            let more = u64::from(dice.chance(40));
            Fault::Launch { launch: dice.number(1, 12), fewer: 1 - more, more }
        }
        19 => Fault::Lag { from: dice.time(0, hostile_ms), length: dice.time(1_000, 600_000), by: dice.time(100, 8_000) },
        20 => Fault::Event { event: dice.number(0, 40), copies: dice.number(0, 2), delay: dice.time(0, 400_000) },
        21 => Fault::KillCaller { caller: dice.number(0, 30), request: dice.number(0, 40) },
        22 => Fault::TwoSweeps { at: dice.time(0, hostile_ms) },
        23..=24 => Fault::Workload {
            task: dice.number(0, mission.tasks),
            attempt: dice.number(1, 3),
            does: match dice.number(0, 6) {
                0 => Does::Exit(1),
                1..=2 => Does::Exit(75),
                3 => Does::Hang,
                4 => Does::NoResult,
                5 => Does::DiskFull,
                _ => Does::Deaf,
            },
        },
        _ => Fault::Operator {
            at: dice.time(0, hostile_ms),
            act: match dice.number(0, 5) {
                0 => Act::SubmitTwice,
                1 => Act::Enlarge(dice.number(1, 4)),
                2 => Act::Cancel,
                3..=4 => Act::Redrive,
                _ => Act::Upload,
            },
        },
    }
}
