//! The machines that EC2 launches: their boots, their processes, and what becomes of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::machine::EndOrder;
use lighthpc::clock;
use lighthpc::domain::budget::{Limits, SizeLimits};
use lighthpc::worker::{self, DRAIN_LIMIT, Node, NodeSettings, Pricing, Report, Stopping};
use lighthpc::workload::{self, Bounds, Simulation, Workload};
use lighthpc_runtime::{Machine, on_machine};
use local_cloud::{RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::check;
use crate::events::Event;
use crate::plan::{Dice, Fault};
use crate::script::script;
use crate::settings::{HEARTBEAT, LEASE, NODE_LIFETIME};
use crate::step::Sender;
use crate::who::Who;
use crate::world::{World, spawn};

/// How long a node of a mission waits for a task.
pub(crate) const IDLE_MAX: Duration = Duration::from_mins(5);
/// systemd starts a crashed node twice again.
const STARTS_MAX: u32 = 3;
/// A task's time limit: longer than any workload that does not hang.
const TIME_LIMIT: Duration = Duration::from_hours(1);
/// The number of the process that runs now, and the order to drain it.
type Running = watch::Receiver<Option<Stopping>>;

/// Plays every instance that EC2 launches, until the process ends.
pub(crate) async fn play(world: Arc<World>, events: mpsc::UnboundedSender<Event>) {
    let mut launches = world.cloud.launches();
    let mut known = 0;
    let mut number = 0;
    loop {
        let instances = world.cloud.instances();
        for instance in instances.iter().skip(known).filter(|instance| !check::is_foreign(instance)) {
            check::machine_starts(&world, &instance.id, number);
            spawn(machine(Arc::clone(&world), number, instance.id.clone(), events.clone()));
            number += 1;
        }
        known = instances.len();
        if launches.changed().await.is_err() {
            return;
        }
    }
}

/// Plays one instance.
async fn machine(world: Arc<World>, number: u64, id: String, events: mpsc::UnboundedSender<Event>) {
    world.note(&format!("machine {number} is {id}"));
    let faults: Vec<Fault> = world.faults().filter(|_| world.is_hostile()).cloned().collect();
    let host = Arc::new(Machine::new(&id));
    if world.plan.mission.has_wrong_clocks {
        let mut dice = Dice::new(world.plan.seed, &format!("clock {number}"));
        host.set_clock(i64::try_from(dice.number(0, 57_600)).unwrap_or(0) - 28_800);
    }
    let (processes, running) = watch::channel(None);
    let is_gone = CancellationToken::new();
    let mut boot = Some(Dice::new(world.plan.seed, &format!("boot {number}")).time(BOOT.0, BOOT.1));
    let mut is_forgotten = false;
    for fault in faults {
        match fault {
            Fault::Boot { machine, takes } if machine == number => {
                world.saw(if takes.is_some() { "machine boots slowly" } else { "machine never boots" });
                boot = takes;
            }
            Fault::Forget { machine } if machine == number => is_forgotten = true,
            fault => {
                let (world, id, host, running) = (Arc::clone(&world), id.clone(), Arc::clone(&host), running.clone());
                spawn(async move { happen(&world, number, &id, &host, running, fault).await });
            }
        }
    }
    let (watched, gone, watched_id) = (Arc::clone(&world), is_gone.clone(), id.clone());
    spawn(async move {
        while watched.is_running(&watched_id) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        gone.cancel();
    });
    let life = async {
        let Some(boot) = boot else { return std::future::pending().await };
        tokio::time::sleep(boot).await;
        for start in 0..STARTS_MAX {
            if process(&world, number, start, &id, &host, &processes).await {
                break;
            }
            world.saw("process started again");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        // The unit switches the machine off, which terminates it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.cloud.reclaim_instance(&id);
    };
    tokio::select! {
        () = life => {}
        () = is_gone.cancelled() => {}
    }
    is_gone.cancelled().await;
    world.note(&format!("machine {number} is gone"));
    check::machine_ends(&world, &id);
    if is_forgotten {
        world.saw("terminated instance forgotten by EC2");
        world.cloud.show_instance(&id, false);
    }
    let _sent = events.send(Event::Instance { id: id.clone(), state: "shutting-down" });
    let _sent = events.send(Event::Instance { id, state: "terminated" });
}

/// How long a machine boots normally.
const BOOT: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(60));

impl World {
    pub(crate) fn is_running(&self, id: &str) -> bool {
        self.cloud.is_running(id)
    }
}

/// Lets a fault happen to a machine.
async fn happen(world: &World, number: u64, id: &str, host: &Machine, running: Running, fault: Fault) {
    let who = Who::Node { machine: number, start: 0 };
    let hit = |what: &str| {
        world.saw(what);
        world.note(&format!("machine {number}: {what}"));
        world.disturb(who, None);
    };
    match fault {
        Fault::Hide { machine, length } if machine == number => {
            hit("instance not shown by EC2");
            world.cloud.show_instance(id, false);
            tokio::time::sleep(length).await;
            world.cloud.show_instance(id, true);
        }
        Fault::Clock { machine, after, seconds } if machine == number => {
            tokio::time::sleep(after).await;
            hit("wall clock wrong");
            host.set_clock(seconds);
        }
        Fault::Reclaim { machine, after } if machine == number => {
            tokio::time::sleep(after).await;
            if world.is_running(id) {
                hit("reclaimed without a notice");
                world.cloud.reclaim_instance(id);
            }
        }
        Fault::Step { sender: Sender::Machine(machine), is_last: true, .. } if machine == number => {
            world.vanished(machine).cancelled().await;
            hit("vanishes after a request");
            world.cloud.reclaim_instance(id);
        }
        Fault::Notice { machine, after, lead } if machine == number => {
            tokio::time::sleep(after).await;
            if world.is_running(id) {
                hit("Spot notice");
                let time = clock::rfc3339(lighthpc_runtime::true_now() + lead);
                world.cloud.put_spot_notice(id, "terminate", &time);
                tokio::time::sleep(lead).await;
                world.cloud.reclaim_instance(id);
            }
        }
        Fault::Kill { machine, after } if machine == number => {
            tokio::time::sleep(after).await;
            hit("process killed");
            world.kill(who);
        }
        Fault::KillAtPoll { machine, poll } if machine == number => {
            host.stop_at(poll);
            host.stopped().await;
            hit("process killed at a point of waiting");
            world.kill(who);
        }
        Fault::Drain { machine, after } if machine == number => {
            tokio::time::sleep(after).await;
            let stopping = running.borrow().clone();
            if let Some(stopping) = stopping {
                hit("process got SIGTERM");
                stopping.drain_within(DRAIN_LIMIT);
            }
        }
        Fault::Freeze { machine, after, length } if machine == number => {
            tokio::time::sleep(after).await;
            hit("machine stands still");
            host.freeze();
            tokio::time::sleep(length).await;
            host.thaw();
            hit("machine goes on");
        }
        Fault::FullDisk { machine, after, length } if machine == number => {
            tokio::time::sleep(after).await;
            hit("disk full");
            host.set_disk_full(true);
            tokio::time::sleep(length).await;
            host.set_disk_full(false);
            hit("disk has room again");
        }
        _ => {}
    }
}

/// Runs a node's process; `false` if it was killed.
async fn process(
    world: &Arc<World>,
    number: u64,
    start: u32,
    id: &str,
    host: &Arc<Machine>,
    processes: &watch::Sender<Option<Stopping>>,
) -> bool {
    let who = Who::Node { machine: number, start };
    let kill = CancellationToken::new();
    world.set_kill(who, kill.clone());
    world.note(&format!("{who} starts"));
    let work_dir: PathBuf = world.dir.join(format!("work-{number}"));
    // The work folder is locked, and its name held, until the process is gone.
    let mission = &world.plan.mission;
    let mut settings = NodeSettings {
        src: None,
        mission: None,
        source_bucket: Some(SOURCE_BUCKET.to_owned()),
        result_bucket: Some(RESULT_BUCKET.to_owned()),
        topic_arn: Some(TOPIC_ARN.to_owned()),
        work_dir: work_dir.clone(),
        lease: LEASE,
        heartbeat: HEARTBEAT,
        checkpoint_every: Duration::from_mins(1),
        log_every: Duration::from_mins(1),
        slots: None,
        claim_ahead: mission.claim_ahead,
        left: Vec::new(),
        max_idle: IDLE_MAX,
        max_lifetime: Some(NODE_LIFETIME),
        end_order: EndOrder::IfNode,
        holds_work_dir: false,
        workload: Some(Workload::Scripted(script(world, who))),
        simulation: Simulation::default(),
        bounds: Bounds { time_limit: Some(TIME_LIMIT), grace: Duration::from_secs(10), echo: false, sandbox: None },
        limits: Limits { max_interruptions: mission.max_interruptions, ..Limits::default() },
        sizes: SizeLimits::default(),
        pricing: Pricing::Local,
        log: None,
        disk: Arc::default(),
        preflight: Arc::default(),
        report: tokio::sync::watch::Sender::new(Report::default()),
    };
    let stopping = Stopping::default();
    processes.send_replace(Some(stopping.clone()));
    let backend = world.backend(who, Some(id));
    let run = on_machine(host, async move {
        let (lock, left) = workload::lock_trusted_work_dir(&work_dir, "tblTrans2").unwrap_or_default();
        settings.pricing = Pricing::Ec2 { on_demand: BTreeMap::new(), billed_before: worker::billed_before(&work_dir) };
        (settings.left, settings.holds_work_dir) = (left, lock.is_some());
        worker::run(Node { backend, settings: Arc::new(settings), stopping }).await
    });
    let ended = tokio::select! {
        life = run => {
            let outcome = life.outcome.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
            world.note(&format!("{who} ends: {outcome:.200}"));
            true
        }
        () = kill.cancelled() => false,
    };
    processes.send_replace(None);
    ended
}
