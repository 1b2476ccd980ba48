//! Runs lighthpc in virtual time against a hostile cloud, from a seed; see docs/SIMULATION.md.

mod check;
mod index;
mod machines;
mod network;
mod operators;
mod plan;
mod script;
mod shims;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use local_cloud::{LaunchChange, LocalCloud, RESULT_BUCKET};

use check::{FOREIGN_BYTES, FOREIGN_KEY};
use operators::{People, put_inputs};
use plan::{Fault, Plan};
use world::{Who, World};

/// How long a mission may take after the last fault.
const END_MAX: Duration = Duration::from_hours(24);

#[derive(Debug, Parser)]
#[command(about = "Run lighthpc in virtual time against a hostile cloud, from a seed")]
struct Arguments {
    /// Run one seed, and print its trace
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Run seeds A to B, each in a process of its own
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Run fresh seeds for so many minutes
    #[arg(long, value_name = "M")]
    minutes: Option<u64>,
    /// With --seed: keep only the faults with these numbers
    #[arg(long, value_name = "N,N", value_delimiter = ',', requires = "seed")]
    keep: Option<Vec<usize>>,
    /// With --seed: print only the result, as JSON
    #[arg(long, requires = "seed")]
    json: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range is needed, such as 1..100")?;
    let read = |part: &str| part.trim().parse::<u64>().map_err(|error| format!("{part}: {error}"));
    Ok((read(from)?, read(to.trim_start_matches('='))?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.seed, arguments.seeds, arguments.minutes) {
        (Some(seed), ..) => one(seed, arguments.keep.as_deref(), arguments.json),
        (None, Some((from, to)), _) => many((from..=to).map(Some), None),
        (None, None, minutes) => {
            let limit = Duration::from_secs(60 * minutes.unwrap_or(1));
            let first = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let first = u64::try_from(first.as_micros()).unwrap_or(0);
            many((0..).map(|n| Some(first + n)), Some(limit))
        }
    }
}

/// The result of one seed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct SeedResult {
    seed: u64,
    broken: Vec<String>,
    faults: usize,
    attempts: u64,
    seen: BTreeMap<String, u64>,
    trace_lines: usize,
    virtual_s: u64,
}

fn one(seed: u64, keep: Option<&[usize]>, is_json: bool) -> ExitCode {
    shims::seed(seed);
    let mut plan = Plan::new(seed);
    if let Some(keep) = keep {
        plan.keep(keep);
    }
    let faults = plan.faults.clone();
    let dir = tempfile::Builder::new().prefix("lighthpc-simulation-").tempdir_in(memory_dir()).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let (world, virtual_s) = runtime.expect("a runtime").block_on(simulate(plan, dir.path().to_owned()));
    let (broken, trace, seen) = world.result();
    if !is_json {
        for (number, fault) in faults.iter().enumerate() {
            println!("fault {number}: {fault}");
        }
        for line in &trace {
            println!("{line}");
        }
        for promise in &broken {
            println!("BROKEN: {promise}");
        }
    }
    let attempts = seen.get("commit").copied().unwrap_or(0);
    let result = SeedResult { seed, faults: faults.len(), attempts, seen, trace_lines: trace.len(), virtual_s, broken };
    println!("{}", serde_json::to_string(&result).expect("plain data"));
    if result.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Returns a folder in memory, if the machine has one.
fn memory_dir() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

async fn simulate(plan: Plan, dir: PathBuf) -> (Arc<World>, u64) {
    lighthpc_runtime::start_clock();
    let (tasks, hostile) = (plan.mission.tasks, plan.hostile);
    let cloud = LocalCloud::in_memory(&dir).expect("a folder of our own");
    let launches: Vec<(u64, LaunchChange)> = plan
        .faults
        .iter()
        .filter_map(|fault| match fault {
            Fault::Launch { launch, fewer, more } => {
                let number = |n: u64| usize::try_from(n).unwrap_or(0);
                Some((*launch, LaunchChange { fewer: number(*fewer), more: number(*more) }))
            }
            _ => None,
        })
        .collect();
    let world = World::new(plan, cloud, dir);
    let hooked = Arc::clone(&world);
    world.cloud.set_launch_hook(Arc::new(move |number| {
        let change = launches.iter().find(|(at, _)| *at == number && hooked.is_hostile());
        if change.is_some() {
            hooked.saw("launch of fewer or more");
        }
        change.map(|(_, change)| *change).unwrap_or_default()
    }));
    let observer = world.backend(Who::Observer, None);
    observer.ledger.create_tables().await.expect("tables");
    observer.store.put_bytes(RESULT_BUCKET, FOREIGN_KEY, FOREIGN_BYTES.to_vec()).await.expect("an object");
    world.cloud.launch(&[("lighthpc", "another"), ("srcID", "M/task-0")]);
    put_inputs(&world, 0..tasks).await;

    let (events, delivered) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(operators::deliver(Arc::clone(&world), delivered));
    tokio::spawn(machines::play(Arc::clone(&world), events.clone()));
    tokio::spawn(operators::sweep(Arc::clone(&world)));
    let people = Arc::new(People::default());
    tokio::spawn(Arc::clone(&people).act(Arc::clone(&world), events));
    people.submit(&world, 0..tasks).await;

    let calm = tokio::time::Instant::now() + hostile.saturating_sub(world.time());
    tokio::time::sleep_until(calm).await;
    world.note("no more faults");
    world.calm.cancel();
    let started = tokio::time::Instant::now();
    // Twice in a row: a late upload or redrive may open it again.
    let mut quiet = 0;
    while quiet < 3 {
        tokio::time::sleep(Duration::from_mins(6)).await;
        quiet = if check::has_ended(&world, &observer).await { quiet + 1 } else { 0 };
        if started.elapsed() > END_MAX {
            world.broken("the mission, or a machine, has not ended a day after the last fault");
            break;
        }
    }
    check::at_end(&world, &observer, people.submitted.load(Ordering::SeqCst)).await;
    let time = world.time().as_secs();
    (world, time)
}

/// Runs seeds, each in a process of its own, two at a time.
fn many(seeds: impl Iterator<Item = Option<u64>>, limit: Option<Duration>) -> ExitCode {
    let program = std::env::current_exe().expect("the program's own path");
    let (started, mut results) = (Instant::now(), Vec::new());
    let (mut failed, mut seen) = (Vec::new(), BTreeMap::<String, u64>::new());
    let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut running = std::collections::VecDeque::new();
    let mut seeds = seeds.flatten().take_while(|_| limit.is_none_or(|limit| started.elapsed() < limit));
    loop {
        while running.len() < jobs {
            let Some(seed) = seeds.next() else { break };
            let mut command = Command::new(&program);
            command.args(["--json", "--seed", &seed.to_string()]).stdout(std::process::Stdio::piped());
            running.push_back((seed, command.spawn().expect("the program starts")));
        }
        let Some((seed, child)) = running.pop_front() else { break };
        let output = child.wait_with_output().expect("the program ends");
        let read = serde_json::from_slice::<SeedResult>(&output.stdout);
        match read {
            Ok(result) => {
                for (what, count) in &result.seen {
                    *seen.entry(what.clone()).or_default() += count;
                }
                if !result.broken.is_empty() {
                    println!("seed {seed}: {}", result.broken.join("; "));
                    failed.push(seed);
                }
                results.push(result);
            }
            Err(error) => {
                println!("seed {seed}: no result: {error}: {}", output.status);
                failed.push(seed);
            }
        }
    }
    let commits: u64 = results.iter().map(|result| result.attempts).sum();
    let virtual_h: u64 = results.iter().map(|result| result.virtual_s).sum::<u64>() / 3600;
    let took = started.elapsed().as_secs_f64();
    for (what, count) in &seen {
        println!("{count:>9}  {what}");
    }
    println!(
        "{} seeds, {commits} commits, {virtual_h} hours of virtual time, in {took:.1} s: {} failed",
        results.len(),
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
