//! The program as a person runs it: `run --local` and `status --local`, in processes of their own.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::lab::PATIENCE;

struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    fn new(inputs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for input in inputs {
            std::fs::write(dir.path().join(input), format!("input {input}\n")).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("program.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lighthpc"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") || name.to_string_lossy().starts_with("LIGHTHPC_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.run(&["status", "--local", "--json"]).stdout).unwrap()
    }

    fn lines(&self, file: &str) -> usize {
        std::fs::read_to_string(self.path(file)).unwrap_or_default().lines().count()
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} never happened");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, signal: &str) {
    Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RUN: [&str; 6] = ["run", "--local", "a.txt", "b.txt", "--", "./program.sh"];

#[test]
fn a_mission_is_done_once_and_announced_once() {
    let desk = Desk::new(&["a.txt", "b.txt"]);
    desk.program(r#"echo x >> runs; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#);

    let first = desk.run(&RUN);
    let again = desk.run(&RUN);

    assert_eq!((code(&first), code(&again)), (0, 0), "{}", stderr(&first));
    assert_eq!(desk.lines("runs"), 2);
    let result = std::fs::read_to_string(desk.path("lighthpc-local/results/rslt_a.txt")).unwrap();
    assert_eq!(result, "txt.a tupni\n");
    let (first, again) = (String::from_utf8(first.stdout).unwrap(), String::from_utf8(again.stdout).unwrap());
    assert!(first.contains("HPC mission local accomplished at "), "{first}");
    assert!(first.contains("2 tasks, 2 done, 0 failed"), "{first}");
    assert!(!again.contains("accomplished"), "{again}");
    let status = desk.status();
    assert_eq!((&status["transOK"], &status["notifyEmail"]), (&2.into(), &"Yes".into()));
}

#[test]
fn a_failed_task_shows_and_is_tried_again_once_mended() {
    let desk = Desk::new(&["a.txt", "b.txt"]);
    desk.program(
        r#"echo x >> runs; [ "$LIGHTHPC_SRC_ID" = a.txt ] || { echo no luck; exit 3; }; : > "$LIGHTHPC_OUTPUT""#,
    );
    let failed = desk.run(&RUN);
    assert_eq!(code(&failed), 20);
    assert!(
        stderr(&failed).contains("exited with code 3") && stderr(&failed).contains("no luck"),
        "{}",
        stderr(&failed)
    );

    desk.program(r#"echo x >> runs; : > "$LIGHTHPC_OUTPUT""#);
    let mended = desk.run(&RUN);

    assert_eq!(code(&mended), 0, "{}", stderr(&mended));
    assert_eq!(desk.lines("runs"), 3);
    assert_eq!(desk.status()["transFailed"], 0);
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let desk = Desk::new(&["a.txt", "b.txt"]);
    let wait = r#"echo "$LIGHTHPC_SRC_ID" >> runs
        while [ "$LIGHTHPC_SRC_ID" = b.txt ] && [ ! -e go ]; do sleep 0.05; done; : > "$LIGHTHPC_OUTPUT""#;
    desk.program(wait);
    let mut run = desk.start(&RUN);
    until("both tasks' start", || desk.lines("runs") == 2);
    until("the first result", || desk.status()["states"]["done"] == 1);

    run.kill().unwrap();
    assert_eq!(run.wait().unwrap().signal(), Some(9));
    std::fs::write(desk.path("go"), "").unwrap();
    let again = desk.run(&RUN);

    assert_eq!(code(&again), 0, "{}", stderr(&again));
    let runs = std::fs::read_to_string(desk.path("runs")).unwrap();
    assert_eq!(runs.lines().filter(|line| *line == "a.txt").count(), 1, "{runs}");
    let status = desk.status();
    assert_eq!((&status["transOK"], &status["notifyEmail"]), (&2.into(), &"Yes".into()));
}

#[test]
fn an_interrupted_run_hands_its_tasks_back_and_leaves_nothing_running() {
    for how in ["-INT", "-TERM", "-HUP"] {
        let desk = Desk::new(&["a.txt", "b.txt"]);
        desk.program(r"echo $$ >> pids; while :; do sleep 0.05; done");
        let mut run = desk.start(&RUN);
        until("both tasks' start", || desk.lines("pids") == 2);

        signal(&run, how);

        assert_eq!(run.wait().unwrap().code(), Some(130), "{how}");
        assert_eq!(desk.status()["states"]["pending"], 2, "{how}");
        for pid in std::fs::read_to_string(desk.path("pids")).unwrap().lines() {
            assert!(!Path::new("/proc").join(pid).exists(), "{how}: {pid} still runs");
        }
    }
}

#[test]
fn a_dry_run_talks_to_nobody_else() {
    let desk = Desk::new(&["a.txt", "b.txt"]);
    desk.program(":");
    let output = desk.command(&RUN).env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1").output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("AWS_ENDPOINT_URL_S3") && stderr(&output).contains("hint: "),
        "{}",
        stderr(&output)
    );
    assert!(!desk.path("lighthpc-local").exists());
}

#[test]
fn bad_words_are_named_and_nothing_is_made() {
    let desk = Desk::new(&["a.txt"]);
    for (arguments, says) in [
        (&["run", "--local", "none.txt", "--", "true"] as &[&str], "none.txt"),
        (&["run", "--local", "a.txt", "none.txt", "--", "true"], "none.txt"),
        (&["run", "--local", "a.txt", "--slots", "0", "--", "true"], "--slots"),
        (&["run", "--local", "a.txt", "--lease", "3", "--heartbeat", "2", "--", "true"], "--heartbeat"),
        (&["run", "--local", "a.txt", "--result-bucket", "mine", "--", "true"], "--result-bucket"),
        (&["run", "--local"], "no mission"),
        (&["status", "--local"], "lighthpc-local"),
        (&["run", "a.txt", "--", "true"], "--local"),
    ] {
        let output = desk.run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(desk.dir.path()).unwrap().count(), 1);
}

#[test]
fn another_program_is_refused_only_once_there_are_results() {
    let desk = Desk::new(&["a.txt"]);
    let mistyped = desk.run(&["run", "--local", "a.txt", "--", "./no-such-program"]);
    assert_eq!(code(&mistyped), 20);
    desk.program(r#": > "$LIGHTHPC_OUTPUT""#);
    assert_eq!(code(&desk.run(&["run", "--local", "a.txt", "--", "./program.sh"])), 0);
    let other = desk.run(&["run", "--local", "a.txt", "--", "true"]);
    assert_eq!(code(&other), 2);
    assert!(stderr(&other).contains("./program.sh"), "{}", stderr(&other));
}
