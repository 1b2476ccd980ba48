//! A seed determines everything that happens, and stored plans break no promise.

use std::path::PathBuf;
use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulator")).args(arguments).output().expect("the simulator runs")
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
