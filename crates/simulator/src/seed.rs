//! Runs one plan.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use local_cloud::{LaunchChange, LocalCloud, RESULT_BUCKET};
use tokio::time::Instant;

use crate::check::{self, Checker, FOREIGN_BYTES, FOREIGN_KEY};
use crate::lock::locked;
use crate::operators::{self, put_inputs};
use crate::plan::{Fault, Plan};
use crate::who::Who;
use crate::world::{Broken, World, spawn};
use crate::{events, log, machines, shims};

/// How long a mission may take after the last fault: a task that never ends by itself needs an hour for each of its three
/// attempts, a launch is tried again after at most half an hour, and each step may wait for a sweep.
const END_MAX: Duration = Duration::from_hours(12);
/// How long everything must have ended until a simulation is over.
const QUIET: Duration = Duration::from_mins(6);

/// How long a plan may take in real time: they take a second as a rule. A loop without a pause never ends.
const REAL_TIME_MAX: Duration = Duration::from_mins(5);

/// The result of one plan.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct SeedResult {
    pub(crate) seed: u64,
    pub(crate) broken: Vec<Broken>,
    pub(crate) faults: usize,
    /// How often each kind of fault, and each rare state, was seen.
    pub(crate) seen: BTreeMap<String, u64>,
    pub(crate) trace_lines: usize,
    /// A hash of the trace: two runs of a plan have the same.
    pub(crate) trace_hash: u64,
    pub(crate) virtual_s: u64,
}

/// Reads a plan from a file.
pub(crate) fn read_plan(file: &Path) -> Plan {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a plan in this process, and prints its result.
pub(crate) fn run(plan: Plan, is_json: bool) -> ExitCode {
    // Before the seed is set: its name is not of the seed, so that runs of one seed at the same time have one folder each.
    let dir = new_dir();
    shims::seed(plan.seed);
    if !is_json {
        log::collect();
        println!("seed {}: {:?}", plan.seed, plan.mission);
        for (number, fault) in plan.faults.iter().enumerate() {
            println!("fault {number}: {fault}");
        }
    }
    let path = dir.path().to_owned();
    std::thread::spawn(move || end_if_endless(&path));
    std::panic::set_hook(Box::new(|panic| locked(&PANICS).push(panic.to_string())));
    let (seed, faults) = (plan.seed, plan.faults.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let (world, virtual_s) = runtime.block_on(simulate(plan, dir.path().to_owned()));
    lighthpc_runtime::stop_clock();
    // No destructor: it has tasks that never end.
    std::mem::forget(runtime);
    for panic in std::mem::take(&mut *locked(&PANICS)) {
        world.broken(Checker::Panic, &panic);
    }
    let (broken, trace, seen) = world.result();
    let mut hasher = std::hash::DefaultHasher::new();
    let name = dir.path().display().to_string();
    trace.iter().for_each(|line| line.replace(&name, "DIR").hash(&mut hasher));
    let trace_hash = hasher.finish();
    let result = SeedResult { seed, broken, faults, seen, trace_lines: trace.len(), trace_hash, virtual_s };
    if is_json {
        println!("{}", serde_json::to_string(&result).expect("plain data"));
    } else {
        let dir = dir.path().display().to_string();
        for line in &trace {
            println!("{}", line.replace(&dir, "DIR"));
        }
        for (what, count) in &result.seen {
            println!("seen {count:>4} × {what}");
        }
        for broken in &result.broken {
            println!("BROKEN {broken}");
        }
    }
    ExitCode::from(u8::from(!result.broken.is_empty()))
}

#[expect(clippy::disallowed_methods, reason = "the main thread is in a loop without an end")]
fn end_if_endless(dir: &Path) {
    std::thread::sleep(REAL_TIME_MAX);
    eprintln!("not over after {} s", REAL_TIME_MAX.as_secs());
    std::fs::remove_dir_all(dir).ok();
    std::process::exit(3);
}

/// Creates a folder, in memory if the machine has such a file system.
pub(crate) fn new_dir() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("lighthpc-simulation-").tempdir_in(parent).expect("a folder")
}

async fn simulate(plan: Plan, dir: PathBuf) -> (Arc<World>, u64) {
    lighthpc_runtime::start_clock();
    let (tasks, hostile) = (plan.mission.tasks, plan.hostile);
    let cloud = LocalCloud::in_memory(&dir).expect("a folder of our own");
    let world = World::new(plan, cloud, dir);
    change_launches(&world);
    let observer = world.backend(Who::Observer, None);
    observer.ledger.create_tables().await.expect("tables");
    observer.store.put_bytes(RESULT_BUCKET, FOREIGN_KEY, FOREIGN_BYTES.to_vec()).await.expect("an object");
    world.cloud.launch(&[("lighthpc", "another"), ("srcID", "M/task-0")]);
    put_inputs(&world, 0..tasks).await;

    let (events, delivered) = tokio::sync::mpsc::unbounded_channel();
    spawn(events::deliver(Arc::clone(&world), delivered));
    spawn(machines::play(Arc::clone(&world), events.clone()));
    spawn(operators::sweep(Arc::clone(&world)));
    spawn(operators::act(Arc::clone(&world), events));
    operators::submit(&world, 0..tasks).await;

    tokio::time::sleep(hostile.saturating_sub(world.time())).await;
    world.note("no more faults");
    world.calm.cancel();
    let started = Instant::now();
    // Several times in a row: a late upload or redrive may open the mission again.
    let mut quiet = 0;
    while quiet < 3 {
        tokio::time::sleep(QUIET).await;
        quiet = if check::has_ended(&world, &observer).await { quiet + 1 } else { 0 };
        if started.elapsed() > END_MAX {
            world.broken(Checker::End, "the mission, or a machine, has not ended 12 hours after the last fault");
            break;
        }
    }
    check::at_end(&world, &observer).await;
    let time = world.time().as_secs();
    (world, time)
}

/// Lets EC2 launch fewer instances than asked for, or more.
fn change_launches(world: &Arc<World>) {
    let hooked = Arc::clone(world);
    world.cloud.set_launch_hook(Arc::new(move |number| {
        let change = hooked.faults().filter(|_| hooked.is_hostile()).find_map(|fault| match fault {
            Fault::Launch { launch, fewer, more } if *launch == number => {
                let number = |n: u64| usize::try_from(n).unwrap_or(0);
                Some(LaunchChange { fewer: number(*fewer), more: number(*more) })
            }
            _ => None,
        });
        let spare = hooked.is_hostile() && hooked.plan.mission.has_spare_instances;
        let change = change.or(spare.then_some(LaunchChange { fewer: 0, more: 1 }));
        if let Some(change) = change {
            hooked.saw(if change.more > 0 { "launch of one more" } else { "launch of fewer" });
        }
        change.unwrap_or_default()
    }));
}
