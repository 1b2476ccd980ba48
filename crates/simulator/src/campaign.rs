//! Runs many seeds, each in a process of its own.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::draw;
use crate::plan::Plan;
use crate::seed::{SeedResult, read_plan};
use crate::shrink;

/// The number of seeds from which a kind of fault or a rare state that never occurred is a failure.
const LONG_RUN: usize = 3_000;
/// Each fiftieth seed is run twice, to see that its trace is the same.
const TWICE_EVERY: usize = 50;
/// The most failing seeds that are made shorter: the others are only named.
const SHRUNK_MAX: usize = 5;

/// Each kind of fault and each rare state: in a long run, each must occur.
const SOMETIMES: &str = include_str!("../sometimes.txt");

/// What is run.
enum Job {
    Seed(u64),
    Plan(PathBuf),
}

impl Job {
    fn start(&self) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("the program's own path"));
        command.arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        match self {
            Self::Seed(seed) => command.arg("--seed").arg(seed.to_string()),
            Self::Plan(file) => command.arg("--plan").arg(file),
        };
        command.spawn().expect("the program starts")
    }

    fn name(&self) -> String {
        match self {
            Self::Seed(seed) => format!("seed {seed}"),
            Self::Plan(file) => file.display().to_string(),
        }
    }

    fn plan(&self) -> Plan {
        match self {
            Self::Seed(seed) => draw::plan(*seed),
            Self::Plan(file) => read_plan(file),
        }
    }
}

/// Runs the plans of a folder, then seeds, until a time is over. Returns 1 if a promise was broken.
pub(crate) fn run(
    plans: Option<&Path>,
    seeds: impl Iterator<Item = u64>,
    limit: Option<Duration>,
    is_brief: bool,
) -> ExitCode {
    let started = Instant::now();
    let is_over = || limit.is_some_and(|limit| started.elapsed() >= limit);
    let plans = plans.map(plans_in).unwrap_or_default();
    let mut jobs = plans.into_iter().map(Job::Plan).chain(seeds.map(Job::Seed).take_while(|_| !is_over()));
    let slots = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    let mut running: VecDeque<(Job, Child)> = VecDeque::new();
    loop {
        while running.len() < slots {
            let Some(job) = jobs.next() else { break };
            let child = job.start();
            running.push_back((job, child));
        }
        let Some((job, child)) = running.pop_front() else { break };
        let output = child.wait_with_output().expect("the program ends");
        match serde_json::from_slice::<SeedResult>(&output.stdout) {
            Ok(result) => {
                if let Some(first) = result.broken.first() {
                    println!("{}: {first}", job.name());
                    failed.push((job, Some(first.clone())));
                } else if results.len() % TWICE_EVERY == 0 && !has_same_trace(&job, &result) {
                    println!("{}: two runs have different traces", job.name());
                    failed.push((job, None));
                }
                results.push(result);
            }
            Err(error) => {
                let why = if output.status.code() == Some(3) {
                    "not over after 5 minutes".to_owned()
                } else {
                    error.to_string()
                };
                println!("{}: no result: {why}: {}", job.name(), output.status);
                failed.push((job, None));
            }
        }
    }
    let took = started.elapsed();
    if is_brief {
        return ExitCode::from(u8::from(!failed.is_empty()));
    }
    for (job, broken) in failed.iter().take(SHRUNK_MAX) {
        let Some(broken) = broken else { continue };
        let plan = job.plan();
        let (short, all) = shrink::shrink(&plan, &broken.checker);
        println!("{}:", job.name());
        shrink::print(&short, &plan, if all.is_empty() { std::slice::from_ref(broken) } else { &all });
    }
    let missing = summarize(&results, took, failed.len());
    if failed.is_empty() && missing == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Runs a job again, and returns whether the trace is the same.
fn has_same_trace(job: &Job, first: &SeedResult) -> bool {
    let output = job.start().wait_with_output().expect("the program ends");
    let again = serde_json::from_slice::<SeedResult>(&output.stdout);
    again.is_ok_and(|again| again.trace_hash == first.trace_hash)
}

fn plans_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files
}

/// Prints the counters and the total. Returns how many of the expected counters are zero in a long run.
fn summarize(results: &[SeedResult], took: Duration, failed: usize) -> usize {
    let mut seen: BTreeMap<&str, u64> =
        SOMETIMES.lines().filter(|line| !line.is_empty()).map(|line| (line, 0)).collect();
    for result in results {
        for (what, count) in &result.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    for (what, count) in &seen {
        println!("{count:>9}  {what}");
    }
    let missing: Vec<&str> = seen.iter().filter(|(_, count)| **count == 0).map(|(what, _)| *what).collect();
    let is_long = results.len() >= LONG_RUN;
    if is_long && !missing.is_empty() {
        println!("never seen in {} seeds: {}", results.len(), missing.join(", "));
    }
    let runs = seen.get("workload started").copied().unwrap_or(0);
    let hours = results.iter().map(|result| result.virtual_s).sum::<u64>() / 3600;
    let seconds = took.as_secs_f64();
    println!(
        "{} seeds, {runs} task runs, {hours} hours of virtual time in {seconds:.1} s; {failed} failed",
        results.len()
    );
    if is_long { missing.len() } else { 0 }
}
