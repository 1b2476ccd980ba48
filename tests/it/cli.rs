//! The program as a person runs it: `run --local` and `status --local`, in processes of their own.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::test_cloud::PATIENCE;

pub(crate) struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    pub(crate) fn new(inputs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for input in inputs {
            std::fs::write(dir.path().join(input), format!("input {input}\n")).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn program(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.path("program.sh");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lighthpc"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") || name.to_string_lossy().starts_with("LIGHTHPC_") {
                command.env_remove(name);
            }
        }
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The summary of the only mission, with all its tasks.
    fn status(&self) -> serde_json::Value {
        let read =
            |arguments: &[&str]| -> serde_json::Value { serde_json::from_slice(&self.run(arguments).stdout).unwrap() };
        let mut status = read(&["status", "--local", "--json"]);
        let mission = status["mission"].as_str().unwrap();
        status["tasks"] = read(&["list", "--local", mission, "--json"])["tasks"].clone();
        status
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

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const RUN: [&str; 6] = ["run", "--local", "a.txt", "b.txt", "--", "./program.sh"];

#[test]
fn a_mission_is_done_once_and_announced_once() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(r#"echo x >> runs; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#);

    let first = project.run(&RUN);
    let again = project.run(&RUN);

    assert_eq!((code(&first), code(&again)), (0, 0), "{}", stderr(&first));
    assert_eq!(project.lines("runs"), 2);
    let result = std::fs::read_to_string(project.path("lighthpc-local/results/rslt_a.txt")).unwrap();
    assert_eq!(result, "txt.a tupni\n");
    let (first, again) = (String::from_utf8(first.stdout).unwrap(), String::from_utf8(again.stdout).unwrap());
    assert!(first.contains("HPC mission local accomplished at "), "{first}");
    assert!(first.contains("2 tasks, 2 done, 0 failed"), "{first}");
    assert!(!again.contains("accomplished"), "{again}");
    let status = project.status();
    assert_eq!((&status["transOK"], &status["notifyEmail"]), (&2.into(), &"Yes".into()));
}

#[test]
fn a_failed_task_shows_and_is_tried_again_once_fixed() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(
        r#"echo x >> runs; [ "$LIGHTHPC_SRC_ID" = a.txt ] || { echo no luck; exit 3; }; : > "$LIGHTHPC_OUTPUT""#,
    );
    let failed = project.run(&RUN);
    assert_eq!(code(&failed), 20);
    assert!(
        stderr(&failed).contains("exited with code 3") && stderr(&failed).contains("no luck"),
        "{}",
        stderr(&failed)
    );

    project.program(r#"echo x >> runs; : > "$LIGHTHPC_OUTPUT""#);
    let fixed = project.run(&RUN);

    assert_eq!(code(&fixed), 0, "{}", stderr(&fixed));
    assert_eq!(project.lines("runs"), 3);
    assert_eq!(project.status()["transFailed"], 0);
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let project = Project::new(&["a.txt", "b.txt"]);
    let wait = r#"echo "$LIGHTHPC_SRC_ID" >> runs
        while [ "$LIGHTHPC_SRC_ID" = b.txt ] && [ ! -e go ]; do sleep 0.05; done; : > "$LIGHTHPC_OUTPUT""#;
    project.program(wait);
    let mut run = project.start(&RUN);
    until("both tasks' start", || project.lines("runs") == 2);
    until("the first result", || project.status()["states"]["done"] == 1);

    run.kill().unwrap();
    assert_eq!(run.wait().unwrap().signal(), Some(9));
    std::fs::write(project.path("go"), "").unwrap();
    let again = project.run(&RUN);

    assert_eq!(code(&again), 0, "{}", stderr(&again));
    let runs = std::fs::read_to_string(project.path("runs")).unwrap();
    assert_eq!(runs.lines().filter(|line| *line == "a.txt").count(), 1, "{runs}");
    let status = project.status();
    assert_eq!((&status["transOK"], &status["notifyEmail"]), (&2.into(), &"Yes".into()));
}

#[test]
fn an_interrupted_run_hands_its_tasks_back_and_leaves_nothing_running() {
    for how in ["-INT", "-TERM", "-HUP"] {
        let project = Project::new(&["a.txt", "b.txt"]);
        project.program(r"echo $$ >> pids; while :; do sleep 0.05; done");
        let mut run = project.start(&RUN);
        until("both tasks' start", || project.lines("pids") == 2);

        signal(&run, how);

        assert_eq!(run.wait().unwrap().code(), Some(130), "{how}");
        assert_eq!(project.status()["states"]["pending"], 2, "{how}");
        for pid in std::fs::read_to_string(project.path("pids")).unwrap().lines() {
            assert!(!Path::new("/proc").join(pid).exists(), "{how}: {pid} still runs");
        }
    }
}

/// What `scripts/deploy --exports` sets, and what an image's environment file sets, is of an account or of a node.
#[test]
fn a_local_run_reads_no_variable_of_an_account_and_talks_to_nobody_else() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(r#": > "$LIGHTHPC_OUTPUT""#);
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", elsewhere.local_addr().unwrap());
    let around = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        for name in ["", "_S3", "_DYNAMODB", "_SNS", "_EC2"] {
            command.env(format!("AWS_ENDPOINT_URL{name}"), &endpoint);
        }
        command.env("AWS_ACCESS_KEY_ID", "AKIAX").env("AWS_SECRET_ACCESS_KEY", "x").env("AWS_REGION", "eu-west-1");
        for (name, value) in [
            ("TASKS_TABLE", "theirs"),
            ("MISSIONS_TABLE", "theirs"),
            ("SOURCE_BUCKET", "theirs"),
            ("RESULT_BUCKET", "theirs"),
            ("TOPIC_ARN", "no-arn"),
            ("LAUNCH_TEMPLATE", "lt-1"),
            ("MISSION", "theirs"),
            ("SRC_ID", "theirs"),
            ("WORK_DIR", "/nowhere"),
            ("ISOLATION", "unit"),
            ("NO_TERMINATE", "perhaps"),
            ("MAX_LIFETIME", "soon"),
        ] {
            command.env(format!("LIGHTHPC_{name}"), value);
        }
        command.env("LIGHTHPC_LOG", "info").output().unwrap()
    };

    let run = around(&RUN);
    let status = around(&["status", "--local", "--json"]);

    assert_eq!((code(&run), code(&status)), (0, 0), "{}{}", stderr(&run), stderr(&status));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["mission"], &status["transOK"]), (&"local".into(), &2.into()));
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody was called");
    let said = stderr(&run);
    assert_eq!(said.matches("--local ignores these variables").count(), 1, "{said}");
    assert!(said.contains("LIGHTHPC_RESULT_BUCKET") && said.contains("AWS_ENDPOINT_URL_S3"), "{said}");
    // A flag is refused, not ignored.
    let flag = around(&["run", "--local", "a.txt", "--topic-arn", "arn:aws:sns:::x", "--", "true"]);
    assert_eq!(code(&flag), 2, "{}", stderr(&flag));
}

#[test]
fn bad_words_are_named_and_nothing_is_made() {
    let project = Project::new(&["a.txt"]);
    for (arguments, says) in [
        (&["run", "--local", "none.txt", "--", "true"] as &[&str], "none.txt"),
        (&["run", "--local", "a.txt", "none.txt", "--", "true"], "none.txt"),
        (&["run", "--local", "a.txt", "--slots", "0", "--", "true"], "--slots"),
        (&["run", "--local", "a.txt", "--lease", "3", "--heartbeat", "2", "--", "true"], "--heartbeat"),
        (
            &["run", "--local", "a.txt", "--grace", "20", "--", "true"],
            "--grace 20s is more than a sixth of --lease 90s",
        ),
        (&["run", "--local", "a.txt", "--lease", "6", "--grace", "1.5", "--", "true"], "--grace"),
        (&["run", "--local=a.txt", "--", "true"], "a.txt is not a folder"),
        (&["status", "--local=nosuch"], "nosuch"),
        (&["run", "--local", "a.txt", "--result-bucket", "mine", "--", "true"], "--result-bucket"),
        (&["run", "--local"], "no mission"),
        (&["status", "--local"], "lighthpc-local"),
        (&["run", "a.txt", "--", "true"], "--local"),
    ] {
        let output = project.run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(project.dir.path()).unwrap().count(), 1);
}

#[test]
fn another_program_is_refused_only_once_there_are_results() {
    let project = Project::new(&["a.txt"]);
    let mistyped = project.run(&["run", "--local", "a.txt", "--", "./no-such-program"]);
    assert_eq!(code(&mistyped), 20);
    project.program(r#": > "$LIGHTHPC_OUTPUT""#);
    assert_eq!(code(&project.run(&["run", "--local", "a.txt", "--", "./program.sh"])), 0);
    let other = project.run(&["run", "--local", "a.txt", "--", "true"]);
    assert_eq!(code(&other), 2);
    assert!(stderr(&other).contains("./program.sh"), "{}", stderr(&other));
}

/// A shorter lease than the default has heartbeats, and a grace, that fit it.
#[test]
fn a_short_lease_alone_is_no_mistake() {
    let project = Project::new(&["a.txt"]);
    let output = project.run(&["run", "--local", "a.txt", "--lease", "12", "--exec", r#": > "$LIGHTHPC_OUTPUT""#]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
}

/// Runs the two tasks, then lets `change` do what people do to a folder, and runs again: its exit code, its standard
/// error.
fn run_again_after(program: &str, change: impl FnOnce(&Project)) -> (i32, String, Project) {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(program);
    let first = project.run(&RUN);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    assert!(!stderr(&first).contains("WARN"), "{}", stderr(&first));
    change(&project);
    let again = project.run(&RUN);
    (code(&again), stderr(&again), project)
}

const COPY: &str = r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#;
const FOLDER: &str =
    r#"mkdir -p "$LIGHTHPC_OUTPUT/x" && cd "$LIGHTHPC_OUTPUT" && cp "$LIGHTHPC_INPUT" x/one; echo 2 > two"#;

#[test]
fn a_result_that_is_not_there_or_is_another_is_never_silently_done() {
    type Change = fn(&Path);
    let result = "lighthpc-local/results/rslt_a.txt";
    let cases: [(&str, &str, &str, Change); 8] = [
        (COPY, "", "is missing", |path| std::fs::remove_file(path).unwrap()),
        (COPY, "", "differs from the result", |path| std::fs::write(path, "longer than it was before").unwrap()),
        // As long as before, and with its old time.
        (COPY, "", "differs from the result", |path| {
            let time = path.metadata().unwrap().modified().unwrap();
            std::fs::write(path, "INPUT a.txt\n").unwrap();
            std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            let copy = path.with_extension("copy");
            std::fs::copy(path, &copy).unwrap();
            std::fs::rename(copy, path).unwrap();
        }),
        (FOLDER, "", "is missing", |path| std::fs::remove_dir_all(path).unwrap()),
        (FOLDER, "x/one", "is missing", |path| std::fs::remove_file(path).unwrap()),
        (FOLDER, "two", "differs from the result", |path| std::fs::write(path, "3\n").unwrap()),
        (FOLDER, "_lighthpc_index.json", "differs from the result", |path| std::fs::write(path, "{}").unwrap()),
        (FOLDER, "two", "is missing", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    for (number, (program, file, says, change)) in cases.into_iter().enumerate() {
        let path = if file.is_empty() { result.to_owned() } else { format!("{result}/{file}") };
        let (code, said, project) = run_again_after(program, |project| change(&project.path(&path)));
        assert_eq!(code, 31, "case {number}: {said}");
        assert_eq!(said.matches(says).count(), 1, "case {number}: {said}");
        assert!(said.contains("rslt_a.txt") && !said.contains("rslt_b.txt"), "case {number}: {said}");
        let status = project.run(&["status", "--local"]);
        assert!(stderr(&status).contains(says), "case {number}: {}", stderr(&status));
    }
}

#[test]
fn a_result_that_was_only_touched_or_copied_is_still_one() {
    let (touched, said, project) = run_again_after(COPY, |project| {
        let result = project.path("lighthpc-local/results/rslt_a.txt");
        let file = std::fs::File::options().write(true).open(result).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(9)).unwrap();
    });
    assert_eq!(touched, 0, "{said}");
    assert!(!said.contains("WARN"), "{said}");

    // The whole folder on another disk: other inodes, other times, the same bytes.
    let copied = Command::new("cp").arg("-r").args(["lighthpc-local", "copy"]).current_dir(project.dir.path()).status();
    assert!(copied.unwrap().success());
    let status = project.run(&["status", "--local=copy"]);
    assert_eq!((code(&status), stderr(&status).contains("WARN")), (0, false), "{}", stderr(&status));
}

#[test]
fn an_input_that_was_changed_after_its_result_is_warned_of() {
    let age = |path: &Path, seconds: u64| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    };
    let changes: [&dyn Fn(&Path); 4] = [
        &|path| std::fs::write(path, "another input").unwrap(),
        // By a file with an older time, as `cp -p` and `tar` make them.
        &|path| {
            std::fs::write(path, "INPUT a.txt\n").unwrap();
            age(path, 1_000_000_000);
        },
        &|path| age(path, 4_000_000_000),
        // By a rename of a file with the same size and time.
        &|path| {
            let other = path.with_extension("other");
            std::fs::write(&other, "INPUT a.txt\n").unwrap();
            let time = path.metadata().unwrap().modified().unwrap();
            std::fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
            std::fs::rename(other, path).unwrap();
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (code, said, project) = run_again_after(COPY, |project| change(&project.path("a.txt")));
        assert_eq!(code, 0, "case {number}: {said}");
        assert_eq!(said.matches("a.txt was changed or replaced").count(), 1, "case {number}: {said}");
        assert!(!said.contains("b.txt was changed"), "case {number}: {said}");
        assert!(
            stderr(&project.run(&["status", "--local"])).contains("a.txt was changed or replaced"),
            "case {number}"
        );
    }
    // A finished task needs its input no more. (After a bare `--local`, the first word must be a file that is there.)
    let (code, said, project) = run_again_after(COPY, |project| std::fs::remove_file(project.path("b.txt")).unwrap());
    assert_eq!((code, said.matches("b.txt is missing").count()), (0, 1), "{said}");
    assert!(!stderr(&project.run(&["run", "--local"])).contains("b.txt"), "nobody has named it");
}

#[test]
fn an_input_that_is_replaced_while_its_workload_runs_is_warned_of_at_once() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(
        r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"
        [ "$LIGHTHPC_SRC_ID" = b.txt ] || { echo another >new && touch -d 2001-01-01 new && mv new a.txt; }"#,
    );
    let output = project.run(&RUN);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("a.txt was changed or replaced").count(), 1, "{}", stderr(&output));
    assert_eq!(std::fs::read_to_string(project.path("lighthpc-local/results/rslt_a.txt")).unwrap(), "input a.txt\n");
}

/// Every file below a folder, with what a write would change.
fn listing(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, meta.len(), meta.modified().unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn status_of_a_local_mission_writes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(COPY);
    assert_eq!(code(&project.run(&RUN)), 0);
    let folder = project.path("lighthpc-local");
    for (path, ..) in listing(&folder).iter().filter(|(path, ..)| !path.is_symlink()) {
        let mode = path.metadata().unwrap().permissions().mode() & 0o555;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let before = listing(&folder);

    let status = project.status();

    assert_eq!(status["transOK"], 2);
    assert_eq!(listing(&folder), before);
    for (path, meta, _) in &before {
        if path.is_dir() {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
                .unwrap_or_else(|e| panic!("{meta}: {e}"));
        }
    }
}

#[test]
fn status_shows_what_a_killed_run_left_and_what_a_live_one_does() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(r#"echo x >> runs; while [ ! -e go ]; do sleep 0.05; done; : > "$LIGHTHPC_OUTPUT""#);
    let mut run = project.start(&RUN);
    until("both tasks' start", || project.lines("runs") == 2);
    assert_eq!(project.status()["states"]["running"], 2, "beside the run");
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(project.status()["states"]["running"], 2, "after it was killed");
    std::fs::write(project.path("go"), "").unwrap();
    assert_eq!(code(&project.run(&RUN)), 0);
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_a_closed_pipe_is_none() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(COPY);
    assert_eq!(code(&project.run(&RUN)), 0);
    for arguments in [
        &["status", "--local"] as &[&str],
        &["status", "--local", "--json"],
        &["list", "--local", "local"],
        &["list", "--local", "local", "--json"],
        &["list", "--local", "local", "--csv"],
        &["explain", "--local", "local", "a.txt"],
        &RUN,
        &["--help"],
        &["--version"],
        &["run", "--help"],
        &["doctor", "--bake", "--json"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = project.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let expected = if arguments[0] == "doctor" { 27 } else { 41 };
        assert_eq!(code(&output), expected, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("standard output could not be written"), "{}", stderr(&output));

        // The reading end is closed before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = project.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(matches!(code(&output), 0 | 27), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("standard output"), "{}", stderr(&output));
    }
}

#[test]
fn an_unknown_mission_has_one_exit_code() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(COPY);
    assert_eq!(code(&project.run(&["run", "--local", "--mission", "M9"])), 17);
    assert!(!project.path("lighthpc-local").exists());
    assert_eq!(code(&project.run(&RUN)), 0);
    for arguments in [
        &["status", "--local", "M9"] as &[&str],
        &["status", "M9", "--local"],
        &["status", "--local=lighthpc-local", "M9"],
        &["run", "--local", "--mission", "M9"],
        &["list", "--local", "M9"],
        &["explain", "--local", "M9", "a.txt"],
        &["explain", "--local", "local", "M9"],
        &["logs", "--local", "M9", "a.txt"],
        &["wait", "--local", "M9"],
        &["fetch", "--local", "M9", "--to", "x"],
    ] {
        let output = project.run(arguments);
        assert_eq!(code(&output), 17, "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("M9") && stderr(&output).contains("hint: "), "{}", stderr(&output));
    }
    // A folder that was named is never a mission, though there is one of that name.
    assert_eq!(code(&project.run(&["status", "--local", "local"])), 0);
    assert_eq!(code(&project.run(&["status", "--local=local"])), 2);
    assert_eq!(code(&project.run(&["status", "--local=a.txt"])), 2, "a file");
    let by_variable = project.command(&["status"]).env("LIGHTHPC_LOCAL", "local").output().unwrap();
    assert_eq!(code(&by_variable), 2);
}

/// Names, a workload's output, and messages of others reach the terminal as text.
#[test]
fn nothing_of_others_acts_on_the_terminal() {
    const EVIL: &str = "\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\r\n.txt";
    let project = Project::new(&[EVIL, "b.txt"]);
    project.program(
        r#"printf 'x\033]0;title\007\302\2332J\342\200\256\rback\ttab\n'
        [ "$LIGHTHPC_SRC_ID" = b.txt ] && exit 3; : > "$LIGHTHPC_OUTPUT""#,
    );
    let evil_option = format!("--{EVIL}");
    let outputs: Vec<Output> = [
        &["run", "--local", EVIL, "b.txt", "--", "./program.sh"] as &[&str],
        &["list", "--local", "local"],
        &["list", "--local", "local", "--json"],
        &["status", "--local"],
        &["status", "--local", "--failed"],
        &["explain", "--local", "local", "b.txt"],
        &["logs", "--local", "local", "b.txt"],
        &["logs", "--local", "local", "--failed"],
        &["wait", "--local", "local"],
        &["fetch", "--local", "local", "--to", "fetched"],
        &["status", "--local", EVIL],
        &["run", "--local=other", "no\u{1b}[2Jsuch.txt", "--", "true"],
        &["run", "--local=other", &evil_option],
        &["run", "--local", EVIL, "--", EVIL],
        &["--log-format", "json", "status", "--local", EVIL],
    ]
    .map(|arguments| project.run(arguments))
    .into();

    for output in &outputs {
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8(text.clone()).unwrap();
            let bad = text.chars().find(|c| *c != '\n' && lighthpc::domain::printable::is_unsafe(*c));
            assert_eq!(bad, None, "{text:?}");
        }
    }
    let (run, status) = (stderr(&outputs[0]), String::from_utf8_lossy(&outputs[1].stdout).into_owned());
    assert!(run.contains("\\u{1b}]0;title") && run.contains("\\u{1b}[2J"), "{run}");
    assert!(status.contains("\\u{202e}"), "{status}");
    let json: serde_json::Value = serde_json::from_slice(&outputs[2].stdout).unwrap();
    let tasks = json["tasks"].as_array().unwrap();
    assert!(tasks.iter().any(|task| task["srcFilename"] == EVIL), "{tasks:?}");
}

/// A node of many slots has more files open than the usual limit, which it may raise; its workloads keep that limit.
#[test]
fn the_limit_of_open_files_is_raised_for_the_node_and_not_for_its_workloads() {
    let names: Vec<String> = (0..16).map(|n| format!("{n}.txt")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let project = Project::new(&names);
    // The node sets it when the program runs already.
    project.program(
        r#"n=0; until [ "$(ulimit -Sn)" = 72 ] || [ $n -ge 200 ]; do n=$((n + 1)); sleep 0.02; done
        ulimit -Sn >> limits; mkdir "$LIGHTHPC_OUTPUT"; cd "$LIGHTHPC_OUTPUT"
        n=0; while [ $n -lt 60 ]; do echo $n > $n; n=$((n + 1)); done"#,
    );
    let lighthpc = env!("CARGO_BIN_EXE_lighthpc");
    let limited = |limits: &str, more: &[&str]| {
        let line = format!(r#"{limits}; exec '{lighthpc}' "$@""#);
        let all = [&["-c", &line, "sh", "run", "--local"], more, &["--slots", "16", "--", "./program.sh"]].concat();
        Command::new("sh").args(all).current_dir(project.dir.path()).stdin(Stdio::null()).output().unwrap()
    };
    let output = limited("ulimit -Sn 72", &names);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let limits = std::fs::read_to_string(project.path("limits")).unwrap();
    assert!(limits.lines().count() == 16 && limits.lines().all(|limit| limit == "72"), "{limits}");
}

/// A failure that hands its task back is not shown as one that ended it.
#[test]
fn a_task_that_waits_after_a_failure_is_not_called_failed() {
    let project = Project::new(&["a.txt"]);
    project.program(r#"rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#);
    let run = ["run", "--local", "a.txt", "--", "./program.sh"];
    // It is just being written, for as long as a start is tried.
    let writer = std::fs::File::options().append(true).open(project.path("program.sh")).unwrap();
    let waits = project.run(&run);
    drop(writer);
    let words = stderr(&waits);
    assert!(words.contains("waits  a.txt") && !words.contains("failed a.txt"), "{words}");
    assert!(words.contains("hint: to run the remaining tasks: lighthpc run --local"), "{words}");
    assert!(String::from_utf8_lossy(&waits.stdout).contains("0 failed, 1 not finished"), "{waits:?}");
    assert_eq!(code(&project.run(&run)), 0);
}
