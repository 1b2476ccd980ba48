//! Runs lighthpc in virtual time against a hostile cloud, from a seed; see docs/SIMULATION.md.

mod callers;
mod campaign;
mod check;
mod draw;
mod edits;
mod events;
mod index;
mod limits;
mod lock;
mod log;
mod machines;
mod network;
mod operators;
mod plan;
mod requests;
mod scale;
mod script;
mod seed;
mod settings;
mod shims;
mod shrink;
mod step;
mod tasks;
mod who;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

#[derive(Debug, Parser)]
#[command(name = "simulate", about = "Run lighthpc in virtual time against a hostile cloud, from a seed")]
struct Arguments {
    /// Run one seed, and print its faults and its trace
    #[arg(long, conflicts_with_all = ["seeds", "minutes", "plan"])]
    seed: Option<u64>,
    /// Run seeds A to B, each in a process of its own
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Run the fixed seeds, then fresh ones, until M minutes are over
    #[arg(long, value_name = "M", conflicts_with = "seeds")]
    minutes: Option<f64>,
    /// Run the plan in a file, and print its trace
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "minutes"])]
    plan: Option<PathBuf>,
    /// Run all plans in a folder: failures that were found earlier
    #[arg(long, value_name = "FOLDER")]
    plans: Option<PathBuf>,
    /// Name the seeds that fail, and nothing more
    #[arg(long)]
    brief: bool,
    /// With --seed or --plan: print the shortest list of faults that still fails
    #[arg(long)]
    shrink: bool,
    /// Run one mission of TASKS tasks, without faults, over models of the services' limits
    #[arg(long, value_name = "TASKS", conflicts_with_all = ["seed", "seeds", "minutes", "plan"])]
    scale: Option<u64>,
    /// With --scale: the nodes; 0: none, and one sweep over the pending tasks
    #[arg(long, default_value_t = 100, requires = "scale")]
    nodes: u32,
    /// With --scale: how long a task takes, in seconds
    #[arg(long, default_value_t = 10.0, requires = "scale")]
    task_time: f64,
    /// With --scale: how long each request takes, in seconds (default: as assumed for each service)
    #[arg(long, requires = "scale")]
    request_time: Option<f64>,
    /// With --scale: as the node's setting, in seconds
    #[arg(long, default_value_t = 30.0, requires = "scale")]
    claim_ahead: f64,
    /// With --seed or --plan: print only the result, as JSON
    #[arg(long)]
    json: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range is needed, such as 1..100")?;
    let read = |part: &str| part.trim().parse::<u64>().map_err(|error| format!("{part}: {error}"));
    Ok((read(from)?, read(to.trim_start_matches('='))?))
}

/// Seeds that each run by time begins with.
const FIXED: u64 = 60;

/// Returns a seed that no earlier run had.
#[expect(clippy::disallowed_methods, reason = "the time of the run, not of a simulation")]
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(0)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(tasks) = arguments.scale {
        return scale::run(scale::Scale {
            tasks,
            nodes: arguments.nodes,
            task_time: Duration::from_secs_f64(arguments.task_time),
            request: arguments.request_time.map(Duration::from_secs_f64),
            claim_ahead: Duration::from_secs_f64(arguments.claim_ahead),
        });
    }
    let plan = match (&arguments.plan, arguments.seed) {
        (Some(file), _) => Some(seed::read_plan(file)),
        (None, Some(seed)) => Some(draw::plan(seed)),
        (None, None) => None,
    };
    match plan {
        Some(plan) if arguments.shrink => shrink::report(&plan),
        Some(plan) => seed::run(plan, arguments.json),
        None => {
            let (from, to) = arguments.seeds.unwrap_or_else(|| (fresh_seed(), u64::MAX));
            let limit = match arguments.seeds {
                Some(_) => None,
                None => Some(Duration::from_secs_f64(60.0 * arguments.minutes.unwrap_or(1.0))),
            };
            // A part of each run is the same, so that a failure there is a change of the program.
            let fixed = 1..if limit.is_some() { FIXED + 1 } else { 1 };
            campaign::run(arguments.plans.as_deref(), fixed.chain(from..=to), limit, arguments.brief)
        }
    }
}
