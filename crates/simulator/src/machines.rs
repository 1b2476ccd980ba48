//! The machines that EC2 launches: their boots, their processes, and what becomes of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::machine::EndOrder;
use lighthpc::clock;
use lighthpc::domain::budget::{Limits, SizeLimits};
use lighthpc::worker::{self, Node, NodeSettings, Pricing, Report, Stopping};
use lighthpc::workload::{self, Bounds, Simulation, Workload};
use lighthpc_runtime::{Machine, on_machine};
use local_cloud::{RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::check::is_foreign;
use crate::operators::Event;
use crate::plan::{Dice, Fault};
use crate::script::script;
use crate::world::{Who, World};

/// The lease of nodes and schedulers.
pub(crate) const LEASE: Duration = Duration::from_secs(90);
/// systemd starts a crashed node twice again.
const STARTS_MAX: u32 = 3;
/// A task's time limit: longer than any workload that does not hang.
const TIME_LIMIT: Duration = Duration::from_mins(20);
const NODE_LIFETIME: Duration = Duration::from_hours(12);

/// Plays every instance that EC2 launches, until the process ends.
pub(crate) async fn play(world: Arc<World>, events: mpsc::UnboundedSender<Event>) {
    let mut launches = world.cloud.launches();
    let mut known = 0;
    loop {
        let instances = world.cloud.instances();
        for instance in instances.iter().skip(known).filter(|instance| !is_foreign(instance)) {
            let number = instances.iter().take_while(|other| other.id != instance.id).filter(|it| !is_foreign(it)).count();
            tokio::spawn(machine(Arc::clone(&world), number as u64, instance.id.clone(), events.clone()));
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
    let faults: Vec<Fault> = world.faults().cloned().filter(|_| world.is_hostile()).collect();
    let host = Arc::new(Machine::default());
    let is_gone = CancellationToken::new();
    let mut boot = Some(Dice::new(world.plan.seed, &format!("boot {number}")).time(15_000, 60_000));
    for fault in faults {
        match fault {
            Fault::Boot { machine, takes } if machine == number => {
                world.saw(if takes.is_some() { "slow boot" } else { "no boot" });
                boot = takes;
            }
            Fault::Clock { machine, seconds, is_ahead } if machine == number => {
                world.saw("wrong clock");
                host.set_clock(seconds, is_ahead);
            }
            fault => {
                let (world, id, host) = (Arc::clone(&world), id.clone(), Arc::clone(&host));
                tokio::spawn(async move { happen(&world, number, &id, &host, fault).await });
            }
        }
    }
    let (watched, gone, watched_id) = (Arc::clone(&world), is_gone.clone(), id.clone());
    tokio::spawn(async move {
        while watched.is_running(&watched_id) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        gone.cancel();
    });
    let life = async {
        let Some(boot) = boot else { return std::future::pending().await };
        tokio::time::sleep(boot).await;
        for start in 0..STARTS_MAX {
            if process(&world, number, start, &id, &host).await {
                break;
            }
            world.saw("restart of a process");
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
    let _sent = events.send(Event::Instance { id: id.clone(), state: "shutting-down" });
    let _sent = events.send(Event::Instance { id, state: "terminated" });
}

impl World {
    fn is_running(&self, id: &str) -> bool {
        self.cloud.instances().iter().any(|instance| instance.id == id && instance.state == "running")
    }
}

/// Lets a fault happen to a machine.
async fn happen(world: &World, number: u64, id: &str, host: &Machine, fault: Fault) {
    match fault {
        Fault::Hide { machine, length } if machine == number => {
            world.saw("hidden instance");
            world.cloud.show_instance(id, false);
            tokio::time::sleep(length).await;
            world.cloud.show_instance(id, true);
        }
        Fault::Reclaim { machine, after } if machine == number => {
            tokio::time::sleep(after).await;
            if world.is_running(id) {
                world.saw("reclaim without a notice");
                world.note(&format!("machine {number} is reclaimed"));
                world.cloud.reclaim_instance(id);
            }
        }
        Fault::Notice { machine, after, lead } if machine == number => {
            tokio::time::sleep(after).await;
            if world.is_running(id) {
                world.saw("Spot notice");
                world.note(&format!("machine {number} has a notice of {} s", lead.as_secs()));
                let time = clock::rfc3339(lighthpc_runtime::true_now() + lead);
                world.cloud.put_spot_notice(id, "terminate", &time);
                tokio::time::sleep(lead).await;
                world.cloud.reclaim_instance(id);
            }
        }
        Fault::Kill { machine, after } if machine == number => {
            tokio::time::sleep(after).await;
            world.saw("killed process");
            world.kill(Who::Node(number));
        }
        Fault::Freeze { machine, after, length } if machine == number => {
            tokio::time::sleep(after).await;
            world.saw("frozen machine");
            world.note(&format!("machine {number} stands still for {} s", length.as_secs()));
            host.freeze();
            tokio::time::sleep(length).await;
            host.thaw();
            world.note(&format!("machine {number} goes on"));
        }
        _ => {}
    }
}

/// Runs a node's process; `false` if it was killed.
async fn process(world: &Arc<World>, number: u64, start: u32, id: &str, host: &Arc<Machine>) -> bool {
    let who = Who::Node(number);
    let kill = CancellationToken::new();
    world.set_kill(who, kill.clone());
    world.note(&format!("{who} starts, {start}"));
    let work_dir: PathBuf = world.dir.join(format!("work-{number}"));
    let (lock, left) = workload::lock_trusted_work_dir(&work_dir, "tblTrans2").unwrap_or_default();
    let settings = NodeSettings {
        src: None,
        mission: None,
        source_bucket: Some(SOURCE_BUCKET.to_owned()),
        result_bucket: Some(RESULT_BUCKET.to_owned()),
        topic_arn: Some(TOPIC_ARN.to_owned()),
        work_dir,
        lease: LEASE,
        heartbeat: Duration::from_secs(20),
        checkpoint_every: Duration::from_mins(1),
        log_every: Duration::from_mins(1),
        slots: None,
        left,
        max_idle: Duration::from_mins(5),
        max_lifetime: Some(NODE_LIFETIME),
        end_order: EndOrder::IfNode,
        holds_work_dir: lock.is_some(),
        workload: Some(Workload::Scripted(script(world))),
        simulation: Simulation::default(),
        bounds: Bounds { time_limit: Some(TIME_LIMIT), grace: Duration::from_secs(10), echo: false, sandbox: None },
        limits: Limits::default(),
        sizes: SizeLimits::default(),
        pricing: Pricing::Ec2 { on_demand: std::collections::BTreeMap::new(), billed_before: Duration::ZERO },
        log: None,
        disk: Arc::default(),
        preflight: Arc::default(),
        report: tokio::sync::watch::Sender::new(Report::default()),
    };
    let node = Node { backend: world.backend(who, Some(id)), settings: Arc::new(settings), stopping: Stopping::default() };
    // Its own folder of attempts is locked until the process is gone.
    let run = on_machine(host, worker::run(node));
    let ended = tokio::select! {
        life = run => {
            let outcome = life.outcome.map_or_else(|error| error.to_string(), |outcome| format!("{outcome:?}"));
            world.note(&format!("{who} ends: {outcome:.120}"));
            true
        }
        () = kill.cancelled() => false,
    };
    drop(lock);
    ended
}
