//! One mission without faults, over models of the services' limits: how its time and price grow with its size.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lighthpc::domain::ids::MissionId;
use lighthpc::domain::mission::Notified;
use local_cloud::LocalCloud;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::limits::Limits;
use crate::lock::locked;
use crate::plan::{MissionPlan, Plan};
use crate::seed::new_dir;
use crate::tasks::MISSION;
use crate::who::Who;
use crate::world::{World, spawn};
use crate::{events, machines, operators, shims};

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    pub(crate) tasks: u64,
    /// 0: no node is launched, and the mission's tasks stay pending.
    pub(crate) nodes: u32,
    pub(crate) task_time: Duration,
    /// How long each request takes, if it is not as assumed for its service.
    pub(crate) request: Option<Duration>,
    /// As the node's setting.
    pub(crate) claim_ahead: Duration,
}

/// The buckets that are named in the report.
const HOT: usize = 6;
/// How often the end of the mission is looked for. It is the precision of the mission's time.
const LOOK: Duration = Duration::from_secs(1);
/// A mission that takes longer has a fault.
const TIME_MAX: Duration = Duration::from_hours(48);

/// Runs a mission, and prints its figures.
pub(crate) fn run(scale: Scale) -> ExitCode {
    let dir = new_dir();
    shims::seed(scale.tasks);
    let subscriber = tracing_subscriber::registry().with(Steps);
    tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let is_over = runtime.block_on(simulate(scale, dir.path().to_owned()));
    lighthpc_runtime::stop_clock();
    std::mem::forget(runtime);
    println!("memory of this process, the services included: {} MB", memory_max_mb());
    ExitCode::from(u8::from(!is_over))
}

async fn simulate(scale: Scale, dir: std::path::PathBuf) -> bool {
    lighthpc_runtime::start_clock();
    let cloud = LocalCloud::in_memory(&dir).expect("a folder of our own");
    let world = World::with_limits(plan(scale), cloud, dir, Limits::new(scale.tasks, scale.request));
    let observer = world.backend(Who::Observer, None);
    observer.ledger.create_tables().await.expect("tables");
    if scale.nodes > 0 {
        operators::put_inputs(&world, 0..scale.tasks).await;
    }
    let (events, delivered) = tokio::sync::mpsc::unbounded_channel();
    spawn(events::deliver(Arc::clone(&world), delivered));
    spawn(machines::play(Arc::clone(&world), events.clone()));
    println!("{} tasks of {:.1} s on {} nodes", scale.tasks, scale.task_time.as_secs_f64(), scale.nodes);

    let started = world.time();
    operators::submit(&world, 0..scale.tasks).await;
    section(&world, "submission", world.time().saturating_sub(started), scale.tasks);
    let before = world.time();
    let is_over = if scale.nodes == 0 {
        operators::sweep_once(&world).await;
        section(&world, "submission and one sweep", world.time().saturating_sub(before), scale.tasks);
        true
    } else {
        spawn(operators::sweep(Arc::clone(&world)));
        let is_over = wait(&world, &observer).await;
        section(&world, "all", world.time().saturating_sub(started), scale.tasks);
        report_work(&world, scale);
        is_over
    };
    report_steps();
    is_over
}

/// Waits until the mission is complete, and all have been notified.
async fn wait(world: &Arc<World>, observer: &lighthpc::backend::Backend) -> bool {
    let id = MissionId::new(MISSION).expect("a legal name");
    while world.time() < TIME_MAX {
        tokio::time::sleep(LOOK).await;
        let Ok(Some(mission)) = observer.ledger.mission(&id).await else { continue };
        if mission.notified == Notified::Yes {
            return true;
        }
    }
    println!("the mission is not complete after {} hours", TIME_MAX.as_secs() / 3600);
    false
}

fn plan(scale: Scale) -> Plan {
    let mission = MissionPlan {
        tasks: scale.tasks,
        nodes: Some(scale.nodes.max(1)),
        slots: None,
        uploads: false,
        takes: (scale.task_time, scale.task_time),
        has_checkpoints: false,
        has_folder: false,
        max_interruptions: 20,
        node_limit: (scale.nodes == 0).then_some(0),
        notifies_early: false,
        // As the stack does.
        sweep_every: Duration::from_mins(5),
        latency: Duration::ZERO,
        has_wrong_clocks: false,
        has_spare_instances: false,
        claim_ahead: scale.claim_ahead,
        has_forms: false,
    };
    Plan { seed: scale.tasks, mission, hostile: Duration::ZERO, faults: Vec::new() }
}

/// Prints what was consumed so far.
fn section(world: &World, name: &str, time: Duration, tasks: u64) {
    let limits = world.limits.as_ref().expect("limits");
    let consumed = limits.consumed();
    #[expect(clippy::cast_precision_loss, reason = "at most some millions")]
    let tasks = tasks as f64;
    println!("\n{name}: {:.1} s of virtual time, {:.0} tasks a second", time.as_secs_f64(), tasks / time.as_secs_f64());
    println!(
        "  a task: {:.2} write units, {:.2} read units, {:.2} S3 writes, {:.2} S3 reads; a million tasks: {:.2} USD",
        consumed.write_units / tasks,
        consumed.read_units / tasks,
        consumed.s3_writes / tasks,
        consumed.s3_reads / tasks,
        1e6 * consumed.usd() / tasks,
    );
    for (name, operation) in &consumed.operations {
        println!("  {:>9} requests, {:>7} throttled: {name}", operation.requests, operation.throttled);
    }
    for (name, used, throttled) in limits.hottest(HOT) {
        println!("  {used:>9.0} units or requests, {throttled:>7} throttled: {name}");
    }
}

/// Prints how much of the nodes' time was the workload's.
fn report_work(world: &World, scale: Scale) {
    let spans: Vec<(Duration, Duration)> = locked(&world.work).values().copied().collect();
    let seconds = |(first, last): (Duration, Duration)| last.saturating_sub(first).as_secs_f64();
    let first = spans.iter().map(|(first, _)| *first).min().unwrap_or_default();
    let last = spans.iter().map(|(_, last)| *last).max().unwrap_or_default();
    let time = seconds((first, last));
    // A node that boots later, or ends earlier, is not slow.
    let served: f64 = spans.iter().map(|span| seconds(*span)).sum();
    #[expect(clippy::cast_precision_loss, reason = "at most some millions")]
    let (tasks, nodes) = (scale.tasks as f64, f64::from(scale.nodes));
    let work = 100.0 * tasks * scale.task_time.as_secs_f64();
    let rate = tasks / time;
    println!("\nfrom the first workload's start to the end of the last: {time:.1} s, {rate:.1} tasks a second");
    println!("workloads: {:.1} % of the nodes' time", work / (nodes * time));
    println!("workloads: {:.1} % of the time from each node's first to its last", work / served);
}

/// The durations of each step of a node, in milliseconds.
static STEPS: Mutex<BTreeMap<String, Vec<u64>>> = Mutex::new(BTreeMap::new());

fn report_steps() {
    println!("\nsteps of the nodes, in ms: median, 99 %, longest");
    for (step, times) in locked(&STEPS).iter_mut() {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("  {step:<12} {:>6} {:>6} {:>6}  ({} times)", at(50), at(99), at(100), times.len());
    }
}

/// Collects the durations that the program logs.
struct Steps;

#[derive(Default)]
struct Step {
    name: String,
    duration_ms: Option<u64>,
}

impl Visit for Step {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "duration_ms" {
            self.duration_ms = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "step" {
            value.clone_into(&mut self.name);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber> Layer<S> for Steps {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut step = Step::default();
        event.record(&mut step);
        if let Some(duration_ms) = step.duration_ms {
            locked(&STEPS).entry(step.name).or_default().push(duration_ms);
        }
    }
}

/// Returns the most memory that this process had. Source: `proc_pid_status(5)`.
fn memory_max_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}
