//! Draws a plan from a seed.

use std::time::Duration;

use crate::plan::{Act, Dice, Does, Edit, Fate, Fault, MissionPlan, Of, Plan, When};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Draws the plan of a seed.
pub(crate) fn plan(seed: u64) -> Plan {
    let mut dice = Dice::new(seed, "plan");
    // Most missions are small: a short list of faults is enough for most races. Some are not.
    let tasks = if dice.chance(90) { dice.number(1, 8) } else { dice.number(9, 30) };
    let nodes = dice.chance(50).then(|| dice.number(1, 4));
    let slots = nodes.filter(|_| dice.chance(50)).map(|_| dice.number(1, 3));
    let mission = MissionPlan {
        tasks,
        nodes: nodes.and_then(|nodes| u32::try_from(nodes).ok()),
        slots: slots.and_then(|slots| u16::try_from(slots).ok()),
        uploads: dice.chance(30),
        takes: (ms(500), dice.pick(&[s(5), s(30), s(120), s(600), s(2400)])),
        has_checkpoints: dice.chance(40),
        has_folder: tasks > 1 && dice.chance(15),
        max_interruptions: dice.pick(&[1, 3, 20]),
        node_limit: dice.chance(15).then(|| dice.number(1, 3)),
    };
    let hostile = dice.time(s(600), s(5_400));
    let count = if dice.chance(5) { 0 } else { dice.number(1, 6 + 4 * tasks) };
    let drawn = (0..count).map(|n| fault(&mut Dice::new(seed, &format!("fault {n}")), &mission, hostile));
    // Stalls make the moments between a read and a write long: races need them.
    let stalls = (0..2).filter(|_| dice.chance(30)).collect::<Vec<_>>();
    let stalls = stalls.into_iter().map(|n| stalls_for(&mut Dice::new(seed, &format!("stalls {n}")), hostile));
    let faults = drawn.chain(stalls).collect();
    Plan { seed, mission, hostile, faults }
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

fn stalls_for(dice: &mut Dice, hostile: Duration) -> Fault {
    let service = dice.pick(&[Of::DynamoDb, Of::DynamoDb, Of::S3, Of::Ec2]);
    let from = dice.time(Duration::ZERO, hostile / 2);
    Fault::Stalls { service, from, length: hostile, percent: dice.number(1, 25), by: dice.time(s(1), s(100)) }
}

fn service(dice: &mut Dice) -> Of {
    dice.pick(&[Of::DynamoDb, Of::S3, Of::Ec2, Of::Sns])
}

/// Draws one fault. Times of machines are from their launch.
fn fault(dice: &mut Dice, mission: &MissionPlan, hostile: Duration) -> Fault {
    // A machine or two for each task, and some that are launched again.
    let machine = dice.number(0, mission.nodes.map_or(2 * mission.tasks, |nodes| 3 * u64::from(nodes)));
    // Most things happen to a machine while it works, and to a mission before it is over.
    let work = mission.takes.1 * u32::try_from(mission.nodes.map_or(2, |_| mission.tasks.min(8))).unwrap_or(2);
    let alive = (s(60) + work).min(hostile);
    let busy = if dice.chance(80) { (s(120) + 2 * work).min(hostile) } else { hostile };
    let after = dice.time(Duration::ZERO, alive);
    let at = dice.time(Duration::ZERO, busy);
    let soon = if dice.chance(50) { dice.time(Duration::ZERO, ms(500)) } else { dice.time(Duration::ZERO, s(30)) };
    let when = match dice.number(0, 3) {
        0 => When::AfterEnd(soon),
        1 => When::AfterTasks(dice.number(1, mission.tasks), soon),
        _ => When::At(at),
    };
    // Half of the faults of requests hit the first ones: the claim, or the launch.
    let request = if dice.chance(50) { dice.number(0, 25) } else { dice.number(0, 120) };
    let caller = dice.number(0, 30);
    match dice.number(0, 43) {
        0..=6 => Fault::NodeRequest { machine, request, fate: fate(dice) },
        7..=9 => Fault::CallerRequest { caller, request, fate: fate(dice) },
        10 => Fault::Outage { service: service(dice), from: at, length: dice.time(s(1), s(400)) },
        11 => {
            let (length, by) = (dice.time(s(10), s(1_200)), dice.time(ms(500), s(25)));
            Fault::Slow { service: service(dice), from: at, length, by }
        }
        12..=13 => Fault::Reclaim { machine, after },
        14..=15 => Fault::Notice { machine, after, lead: dice.time(Duration::ZERO, s(120)) },
        16 => Fault::Kill { machine, after },
        17..=18 => Fault::KillAtRequest { machine, request },
        19..=20 => Fault::KillAtPoll { machine, poll: dice.number(1, 2_000) },
        21 => Fault::Drain { machine, after },
        22..=23 => Fault::Freeze { machine, after, length: dice.time(s(1), s(600)) },
        24 => {
            let seconds = i64::try_from(dice.number(1, 30_000)).unwrap_or(1);
            Fault::Clock { machine, after, seconds: if dice.chance(50) { seconds } else { -seconds } }
        }
        25 => Fault::FullDisk { machine, after, length: dice.time(s(1), s(300)) },
        26 => {
            let takes = if dice.chance(30) { None } else { Some(dice.time(s(20), s(900))) };
            Fault::Boot { machine, takes }
        }
        27 => Fault::Hide { machine, length: dice.time(ms(500), s(240)) },
        28 => Fault::Forget { machine },
        29 => {
            let more = u64::from(dice.chance(40));
            Fault::Launch { launch: dice.number(1, 12), fewer: 1 - more, more }
        }
        30 => Fault::Lag { from: at, length: dice.time(s(1), s(600)), by: dice.time(ms(100), s(8)) },
        31 => Fault::Event { event: dice.number(0, 40), copies: dice.number(0, 2), delay: dice.time(ms(1), s(400)) },
        32..=33 => Fault::KillCaller { caller, request },
        34 => Fault::TwoSweeps { at },
        35..=37 => {
            Fault::Workload { task: dice.number(0, mission.tasks), attempt: dice.number(1, 3), does: does(dice) }
        }
        _ => Fault::Operator { when, act: act(dice, mission) },
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

fn act(dice: &mut Dice, mission: &MissionPlan) -> Act {
    match dice.number(0, 9) {
        0 => Act::SubmitTwice,
        1..=2 => Act::Enlarge(dice.number(1, 4)),
        3 => Act::Cancel,
        4..=6 => Act::Redrive,
        7 => Act::Upload,
        _ => {
            let edit = match dice.number(0, 5) {
                0 => Edit::AttemptAsText,
                1 => Edit::BeatAsText,
                2 => Edit::UpperCase,
                3 => Edit::PutBack,
                4 => Edit::OddIndex,
                _ => Edit::Note,
            };
            Act::Edit(dice.number(0, mission.tasks), edit)
        }
    }
}
