//! Draws a plan from a seed.
//!
//! Each seed has some kinds of faults only, and many of each: a race often needs two kinds at once, which would rarely
//! meet among all kinds. Source: Groce and others, "Swarm testing", 2012.

use std::time::Duration;

use crate::plan::{Act, Dice, Does, Edit, Fate, Fault, MissionPlan, Of, Plan, When};
use crate::step::{Sender, Step};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The kinds of faults. The commonest stand here more than once.
const KINDS: [Kind; 32] = [
    Kind::NodeRequest,
    Kind::NodeRequest,
    Kind::NodeRequest,
    Kind::CallerRequest,
    Kind::CallerRequest,
    Kind::Outage,
    Kind::Slow,
    Kind::Stalls,
    Kind::Stalls,
    Kind::Repeats,
    Kind::Repeats,
    Kind::Reclaim,
    Kind::Reclaim,
    Kind::Notice,
    Kind::Kill,
    Kind::KillAtRequest,
    Kind::KillAtPoll,
    Kind::Drain,
    Kind::Freeze,
    Kind::Freeze,
    Kind::Clock,
    Kind::FullDisk,
    Kind::Boot,
    Kind::Visibility,
    Kind::Launch,
    Kind::Lag,
    Kind::Event,
    Kind::KillCaller,
    Kind::TwoSweeps,
    Kind::Workload,
    Kind::Workload,
    Kind::Edit,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NodeRequest,
    CallerRequest,
    Outage,
    Slow,
    Stalls,
    Repeats,
    Reclaim,
    Notice,
    Kill,
    KillAtRequest,
    KillAtPoll,
    Drain,
    Freeze,
    Clock,
    FullDisk,
    Boot,
    Visibility,
    Launch,
    Lag,
    Event,
    KillCaller,
    TwoSweeps,
    Workload,
    Edit,
}

/// Draws the plan of a seed.
pub(crate) fn plan(seed: u64) -> Plan {
    let mut dice = Dice::new(seed, "plan");
    // Most missions are small: a short list of faults is enough for most races. Some are not. In a long one, nodes are
    // between two tasks often, at an age at which an idle node is terminated.
    let is_long = dice.chance(5);
    let tasks = match dice.number(1, 100) {
        _ if is_long => dice.number(30, 60),
        ..=90 => dice.number(1, 8),
        _ => dice.number(9, 30),
    };
    let nodes = (is_long || dice.chance(50)).then(|| dice.number(1, if is_long { 2 } else { 4 }));
    let slots = nodes.filter(|_| dice.chance(50)).map(|_| dice.number(1, 3));
    let takes = match dice.pick(&[s(5), s(30), s(120), s(120), s(600), s(2400)]) {
        _ if is_long => (s(20), s(60)),
        most => (ms(500), most),
    };
    // Sweeps that overlap by far, in missions that are over soon: they are most of the requests.
    let often = if !is_long && takes.1 <= s(120) { s(12) } else { s(40) };
    let has_spare_instances = dice.chance(25);
    let mission = MissionPlan {
        tasks,
        nodes: nodes.and_then(|nodes| u32::try_from(nodes).ok()),
        slots: slots.and_then(|slots| u16::try_from(slots).ok()),
        uploads: dice.chance(30),
        takes,
        has_checkpoints: dice.chance(40),
        has_folder: tasks > 1 && dice.chance(15),
        max_interruptions: dice.pick(&[1, 3, 20]),
        node_limit: dice.chance(15).then(|| dice.number(1, 3)),
        notifies_early: dice.chance(30),
        sweep_every: if is_long { often } else { dice.pick(&[s(300), s(300), s(90), often]) },
        latency: dice.pick(&if is_long { [ms(500), s(3), s(3), s(3)] } else { [ms(30), ms(30), ms(500), s(3)] }),
        // A spare instance looks at the lease of another one.
        has_wrong_clocks: dice.chance(if has_spare_instances { 70 } else { 40 }),
        has_spare_instances,
        // Longer than nodes have it, so that most missions claim ahead.
        claim_ahead: if dice.chance(80) { s(200) } else { Duration::ZERO },
        has_forms: Dice::new(seed, "forms").chance(30),
    };
    // A mission is busy for some minutes; faults after that concern its end.
    let rounds = mission.nodes.map_or(2, |nodes| 1 + u32::try_from(tasks).unwrap_or(1) / nodes);
    let busy = s(90) + mission.takes.1 * rounds.min(if is_long { 30 } else { 8 });
    let hostile = dice.time(busy + s(300), busy + s(3_000));
    let kinds: Vec<Kind> = match dice.number(0, 3) {
        0 => KINDS.to_vec(),
        _ => (0..dice.number(2, 7)).map(|_| dice.pick(&KINDS)).collect(),
    };
    let count = if dice.chance(4) { 0 } else { dice.number(1, 6 + 4 * tasks) };
    let draw = |n: u64| fault(&mut Dice::new(seed, &format!("fault {n}")), &kinds, &mission, busy, hostile);
    let mut faults: Vec<Fault> = (0..count).map(draw).collect();
    if mission.has_spare_instances {
        faults.extend((0..tasks.min(3)).flat_map(|n| takeover(&mut Dice::new(seed, &format!("takeover {n}")), n)));
        // Otherwise the event of the loss is first.
        faults.extend((0..12).map(|event| Fault::Event { event, copies: 0, delay: Duration::ZERO }));
    }
    if count > 0 {
        let dice = &mut Dice::new(seed, "steps");
        match dice.number(0, 9) {
            0..=2 => {
                let steps = dice.number(1, 2 + tasks);
                faults.extend((0..steps).map(|n| step(&mut Dice::new(seed, &format!("step {n}")), &mission)));
            }
            3..=5 => faults.extend((0..dice.number(1, 3)).map(|machine| last_request(dice, machine))),
            6 => faults.extend(late_publication(dice)),
            7 => faults.extend(late_uploads(dice)),
            8 => faults.extend(stale_sweeps(dice, &mission)),
            _ => {}
        }
    }
    // People act in two of three missions.
    let acts = if dice.chance(66) { dice.number(1, 5) } else { 0 };
    for n in 0..acts {
        let dice = &mut Dice::new(seed, &format!("act {n}"));
        faults.push(Fault::Operator { when: when(dice, &mission, busy), act: act(dice) });
    }
    Plan { seed, mission, hostile, faults }
}

/// Draws the loss of the n-th task's instance before its spare one has booted, which then takes the task over.
fn takeover(dice: &mut Dice, n: u64) -> [Fault; 2] {
    let after = dice.time(s(30), s(150));
    let boot = Fault::Boot { machine: 2 * n + 1, takes: Some(dice.time(after, after + s(150))) };
    [boot, Fault::Reclaim { machine: 2 * n, after }]
}

/// Draws the fault of a step. Half of them hold a request back until somebody else may have done the same: a lease and a
/// boot later.
fn step(dice: &mut Dice, mission: &MissionPlan) -> Fault {
    let machine = dice.number(0, mission.nodes.map_or(2 * mission.tasks, |nodes| 2 * u64::from(nodes)));
    let sender = if dice.chance(75) { Sender::Machine(machine) } else { Sender::Callers };
    let (step, most) = dice.pick(&[
        (Step::Commit, 1),
        (Step::Commit, 3),
        (Step::Object, 2),
        (Step::Task, 1),
        (Step::Task, 6),
        (Step::Mission, 3),
        (Step::Tally, 3),
        (Step::Message, 1),
    ]);
    let fate = match dice.number(0, 3) {
        0..=1 => Fate::DelayRequest(dice.time(s(60), s(600))),
        2 => Fate::DelayAnswer(dice.time(s(20), s(200))),
        _ => fate(dice),
    };
    Fault::Step { sender, step, nth: dice.number(0, most), fate, is_last: dice.chance(40) }
}

/// Draws a request that decides, that is the last of its machine, and that arrives when another machine has taken over.
fn last_request(dice: &mut Dice, machine: u64) -> Fault {
    let step = dice.pick(&[Step::Commit, Step::Commit, Step::Task, Step::Object, Step::Mission]);
    let nth = if step == Step::Task { dice.number(0, 4) } else { dice.number(0, 1) };
    let fate = Fate::DelayRequest(dice.time(s(100), s(800)));
    Fault::Step { sender: Sender::Machine(machine), step, nth, fate, is_last: true }
}

/// Draws a publication that is held back while somebody enlarges the mission.
fn late_publication(dice: &mut Dice) -> Vec<Fault> {
    let by = (s(2), s(60));
    let mut faults: Vec<Fault> = (0..3)
        .flat_map(|machine| (0..2).map(move |nth| (machine, nth)))
        .map(|(machine, nth)| {
            let (step, fate) = if dice.chance(50) {
                (Step::Mission, Fate::DelayRequest(dice.time(by.0, by.1)))
            } else {
                (Step::Tally, Fate::DelayAnswer(dice.time(by.0, by.1)))
            };
            Fault::Step { sender: Sender::Machine(machine), step, nth, fate, is_last: false }
        })
        .collect();
    let when = When::AfterEnd(dice.time(Duration::ZERO, s(10)));
    faults.push(Fault::Operator { when, act: Act::Enlarge(dice.number(1, 3)) });
    faults
}

/// Draws uploads that take longer than a lease.
fn late_uploads(dice: &mut Dice) -> Vec<Fault> {
    (0..dice.number(2, 6))
        .map(|n| {
            let by = dice.time(s(60), s(300));
            let fate = if dice.chance(50) { Fate::DelayRequest(by) } else { Fate::DelayAnswer(by) };
            let sender = Sender::Machine(dice.number(0, 3));
            Fault::Step { sender, step: Step::Object, nth: n / 3, fate, is_last: false }
        })
        .collect()
}

/// Draws machines that are lost, or stand still until their leases end, and decisions about them that arrive when somebody
/// else has decided, and another attempt runs.
fn stale_sweeps(dice: &mut Dice, mission: &MissionPlan) -> Vec<Fault> {
    let lost = |machine| {
        // While its workload runs.
        let after = dice.time(s(40), s(90) + mission.takes.1 / 2);
        let is_reclaimed = dice.chance(70);
        let length = dice.time(s(100), s(400));
        if is_reclaimed { Fault::Reclaim { machine, after } } else { Fault::Freeze { machine, after, length } }
    };
    let mut faults: Vec<Fault> = (0..mission.tasks.min(4)).map(lost).collect();
    // Each second one: the next sweep, or the event of the loss, decides in between.
    faults.extend((0..4).map(|n| Fault::Step {
        sender: Sender::Callers,
        step: Step::Release,
        nth: 2 * n,
        fate: Fate::DelayRequest(dice.time(s(40), s(300))),
        is_last: false,
    }));
    faults
}

fn fate(dice: &mut Dice) -> Fate {
    match dice.number(0, 16) {
        0..=2 => Fate::LoseRequest,
        3..=5 => Fate::LoseAnswer,
        6..=7 => Fate::Repeat(dice.time(ms(10), s(240))),
        8..=10 => Fate::DelayRequest(dice.time(ms(100), s(150))),
        11..=12 => Fate::DelayAnswer(dice.time(ms(100), s(150))),
        13 => Fate::Throttle,
        14 => Fate::Refuse,
        _ => Fate::FailAfter,
    }
}

/// Draws one fault. Times of machines are from their launch.
fn fault(dice: &mut Dice, kinds: &[Kind], mission: &MissionPlan, busy: Duration, hostile: Duration) -> Fault {
    // A machine or two for each task, and some that are launched again.
    let machine = dice.number(0, mission.nodes.map_or(2 * mission.tasks, |nodes| 3 * u64::from(nodes)));
    // Most things happen to a machine while it works, and to a mission before it is over.
    let alive = mission.nodes.map_or(s(60) + mission.takes.1, |_| busy);
    let after = dice.time(Duration::ZERO, alive);
    let latest = if dice.chance(80) { busy } else { hostile };
    let at = dice.time(Duration::ZERO, latest);
    // Half of the faults of requests hit the first ones: the claim, or the launch.
    let request = if dice.chance(50) { dice.number(0, 25) } else { dice.number(0, 120) };
    let caller = dice.number(0, 30);
    let service = dice.pick(&[Of::DynamoDb, Of::DynamoDb, Of::S3, Of::Ec2, Of::Sns]);
    match dice.pick(kinds) {
        Kind::NodeRequest => Fault::NodeRequest { machine, request, fate: fate(dice) },
        Kind::CallerRequest => Fault::CallerRequest { caller, request, fate: fate(dice) },
        Kind::Outage => Fault::Outage { service, from: at, length: dice.time(s(1), s(400)) },
        Kind::Slow => {
            let slowest = if dice.chance(30) { s(60) } else { s(20) };
            Fault::Slow { service, from: at, length: dice.time(s(10), s(1_800)), by: dice.time(ms(500), slowest) }
        }
        Kind::Stalls => {
            let (length, by) = (dice.time(s(60), s(2_400)), dice.time(s(1), s(100)));
            Fault::Stalls { service, from: at, length, percent: dice.number(2, 30), by }
        }
        Kind::Repeats => {
            let (length, by) = (dice.time(s(60), s(2_400)), dice.time(ms(10), s(240)));
            Fault::Repeats { service, from: at, length, percent: dice.number(2, 50), by }
        }
        Kind::Reclaim => Fault::Reclaim { machine, after },
        Kind::Notice => Fault::Notice { machine, after, lead: dice.time(Duration::ZERO, s(120)) },
        Kind::Kill => Fault::Kill { machine, after },
        Kind::KillAtRequest => Fault::KillAtRequest { machine, request },
        Kind::KillAtPoll => Fault::KillAtPoll { machine, poll: dice.number(1, 3_000) },
        Kind::Drain => Fault::Drain { machine, after },
        Kind::Freeze => {
            // Half of them end when others begin to act: about a lease later.
            let lengths = if dice.chance(50) { (s(1), s(600)) } else { (s(60), s(200)) };
            Fault::Freeze { machine, after, length: dice.time(lengths.0, lengths.1) }
        }
        Kind::Clock => {
            let seconds = i64::try_from(dice.number(1, 30_000)).unwrap_or(1);
            Fault::Clock { machine, after, seconds: if dice.chance(50) { seconds } else { -seconds } }
        }
        Kind::FullDisk => Fault::FullDisk { machine, after, length: dice.time(s(1), s(300)) },
        Kind::Boot => {
            let takes = if dice.chance(30) { None } else { Some(dice.time(s(20), s(900))) };
            Fault::Boot { machine, takes }
        }
        Kind::Visibility if dice.chance(30) => Fault::Forget { machine },
        Kind::Visibility => Fault::Hide { machine, length: dice.time(ms(500), s(240)) },
        Kind::Launch => {
            let more = u64::from(dice.chance(60));
            Fault::Launch { launch: dice.number(1, mission.tasks + 3), fewer: 1 - more, more }
        }
        Kind::Lag => Fault::Lag { from: at, length: dice.time(s(1), s(600)), by: dice.time(ms(100), s(8)) },
        Kind::Event => {
            Fault::Event { event: dice.number(0, 40), copies: dice.number(0, 2), delay: dice.time(ms(1), s(400)) }
        }
        Kind::KillCaller => Fault::KillCaller { caller, request },
        Kind::TwoSweeps => Fault::TwoSweeps { at },
        Kind::Workload => {
            Fault::Workload { task: dice.number(0, mission.tasks), attempt: dice.number(1, 3), does: does(dice) }
        }
        Kind::Edit => {
            let act = Act::Edit(dice.number(0, mission.tasks), edit(dice));
            Fault::Operator { when: when(dice, mission, busy), act }
        }
    }
}

/// Draws when a person acts: half of the time at a moment at which something ends.
fn when(dice: &mut Dice, mission: &MissionPlan, busy: Duration) -> When {
    let soon = if dice.chance(50) { dice.time(Duration::ZERO, ms(800)) } else { dice.time(Duration::ZERO, s(30)) };
    match dice.number(0, 3) {
        0 => When::AfterEnd(soon),
        1 => When::AfterTasks(dice.number(1, mission.tasks), soon),
        _ => When::At(dice.time(Duration::ZERO, busy)),
    }
}

fn does(dice: &mut Dice) -> Does {
    match dice.number(0, 8) {
        0..=1 => Does::Exit(1),
        2..=3 => Does::Exit(75),
        4 => Does::Hang,
        5 => Does::NoResult,
        6 => Does::DiskFull,
        _ => Does::Deaf,
    }
}

fn act(dice: &mut Dice) -> Act {
    match dice.number(0, 7) {
        0 => Act::SubmitTwice,
        1..=2 => Act::Enlarge(dice.number(1, 4)),
        3 => Act::Cancel,
        4..=6 => Act::Redrive,
        _ => Act::Upload,
    }
}

fn edit(dice: &mut Dice) -> Edit {
    dice.pick(&[Edit::AttemptAsText, Edit::BeatAsText, Edit::UpperCase, Edit::PutBack, Edit::OddIndex, Edit::Note])
}
