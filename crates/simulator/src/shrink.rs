//! Makes a failing plan's list of faults as short as possible, by delta debugging.
//!
//! Source: Zeller, Hildebrandt, "Simplifying and isolating failure-inducing input", 2002 (the algorithm ddmin).

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};

use crate::plan::Plan;
use crate::seed::SeedResult;
use crate::world::Broken;

/// The most runs for one plan: a run takes some tenths of a second.
const RUNS_MAX: u32 = 400;

/// Runs a plan in a process of its own. `None`: it did not end properly.
pub(crate) fn run_plan(plan: &Plan) -> Option<SeedResult> {
    let mut file = tempfile::NamedTempFile::new().ok()?;
    file.write_all(serde_json::to_string(plan).ok()?.as_bytes()).ok()?;
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.arg("--json").arg("--plan").arg(file.path()).stdin(Stdio::null());
    serde_json::from_slice(&command.output().ok()?.stdout).ok()
}

/// Returns the plan with the shortest list of faults that breaks the same promise, and what is broken then.
pub(crate) fn shrink(plan: &Plan, checker: &str) -> (Plan, Vec<Broken>) {
    let mut runs = 0;
    let mut broken = Vec::new();
    let mut fails = |numbers: &[usize]| {
        runs += 1;
        let result = (runs <= RUNS_MAX).then(|| run_plan(&plan.with(numbers))).flatten();
        let is_same = result.as_ref().is_some_and(|result| result.broken.iter().any(|one| one.checker == checker));
        if let Some(result) = result.filter(|_| is_same) {
            broken = result.broken;
        }
        is_same
    };
    let mut kept: Vec<usize> = (0..plan.faults.len()).collect();
    let mut parts = 2;
    while kept.len() > 1 {
        let length = kept.len().div_ceil(parts);
        let without = (0..kept.len()).step_by(length).map(|from| {
            let to = (from + length).min(kept.len());
            [&kept[..from], &kept[to..]].concat()
        });
        let shorter = without.into_iter().find(|rest| fails(rest));
        match shorter {
            Some(rest) => {
                kept = rest;
                parts = (parts - 1).max(2);
            }
            None if parts >= kept.len() => break,
            None => parts = (2 * parts).min(kept.len()),
        }
    }
    if kept.len() == 1 && fails(&[]) {
        kept.clear();
    }
    (plan.with(&kept), broken)
}

/// Prints the shortest list of faults that still breaks the first promise that a plan breaks.
pub(crate) fn report(plan: &Plan) -> ExitCode {
    let Some(first) = run_plan(plan).and_then(|result| result.broken.into_iter().next()) else {
        println!("seed {} breaks no promise", plan.seed);
        return ExitCode::SUCCESS;
    };
    let (short, broken) = shrink(plan, &first.checker);
    print(&short, plan, if broken.is_empty() { std::slice::from_ref(&first) } else { &broken });
    ExitCode::from(1)
}

/// Prints a short plan as readable lines, and its JSON.
pub(crate) fn print(short: &Plan, whole: &Plan, broken: &[Broken]) {
    for broken in broken {
        println!("  BROKEN {broken}");
    }
    let mission = &short.mission;
    let nodes = mission.nodes.map_or_else(|| "a node for each task".to_owned(), |nodes| format!("{nodes} nodes"));
    println!(
        "  a mission of {} tasks, {nodes}; {} of {} faults:",
        mission.tasks,
        short.faults.len(),
        whole.faults.len()
    );
    for fault in &short.faults {
        println!("    {fault}");
    }
    println!("  plan: {}", serde_json::to_string(short).expect("plain data"));
}
