//! A seed determines everything that happens, and stored plans break no promise.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the simulator starts")
}

fn simulate(arguments: &[&str]) -> Output {
    start(arguments).wait_with_output().expect("the simulator ends")
}

#[test]
fn two_runs_of_a_seed_have_one_trace_byte_by_byte() {
    for seed in ["1", "2", "3", "4"] {
        let first = simulate(&["--seed", seed]);
        let second = simulate(&["--seed", seed]);
        assert!(first.stdout.len() > 10_000, "the trace of seed {seed} is long");
        assert_eq!(first.stdout, second.stdout, "seed {seed}");
    }
}

/// They share the machine: its processors, its folder for temporary files.
#[test]
fn runs_of_a_seed_at_the_same_time_have_one_trace() {
    let runs: Vec<Child> = (0..8).map(|_| start(&["--seed", "5"])).collect();
    let mut traces = runs.into_iter().map(|run| run.wait_with_output().expect("the simulator ends").stdout);
    let first = traces.next().expect("eight runs");
    assert!(first.len() > 10_000, "the trace is long");
    for (number, trace) in traces.enumerate() {
        assert_eq!(first, trace, "run {number} and the first");
    }
}

#[test]
fn two_seeds_have_two_traces() {
    assert_ne!(simulate(&["--seed", "1"]).stdout, simulate(&["--seed", "2"]).stdout);
}

#[test]
fn the_plans_that_failed_once_break_no_promise() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans");
    for entry in std::fs::read_dir(folder).expect("the folder of plans") {
        let file = entry.expect("an entry").path();
        let output = simulate(&["--plan", file.to_str().expect("a plain name")]);
        assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stdout));
    }
}
