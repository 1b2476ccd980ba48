//! The errors that people meet first, word for word: a change of a text is a change of a snapshot.
//!
//! `UPDATE_EXPECT=1 cargo nextest run --release errors::` writes the snapshot again.

use std::fmt::Write as _;

use expect_test::expect_file;

use crate::cli::Project;

/// Command lines, each run in the folder that the ones before it left. `a.txt` and `b.txt` are inputs.
const COMMANDS: [&[&str]; 26] = [
    // Inputs and programs.
    &["run", "--local"],
    &["run", "--local", "missing.txt", "--", "./program.sh"],
    &["run", "--local", "folder", "--", "./program.sh"],
    &["run", "a.txt", "--", "./program.sh"],
    &["run", "--local=own", "a.txt", "--", "./no-such-program"],
    &["run", "--local=other", "a.txt", "--", "no-such-program"],
    &["run", "--local=one", "a.txt", "--", "./program.sh"],
    &["run", "--local=one", "a.txt", "--", "./program.sh", "again"],
    &["run", "--local=folder", "a.txt", "--", "./program.sh"],
    &["run", "--local=a.txt", "b.txt", "--", "./program.sh"],
    // Workloads.
    &["run", "--local=fails", "a.txt", "--exec", "exit 3"],
    &["run", "--local=unknown", "a.txt", "--exec", "nonesuch"],
    &["run", "--local=nothing", "a.txt", "--exec", "true"],
    &["run", "--local=slow", "--time-limit", "0.1", "--max-attempts", "1", "a.txt", "--exec", "sleep 20"],
    // Settings.
    &["run", "--local=s", "--heartbeat", "60", "--lease", "90", "a.txt"],
    &["run", "--local=s", "--source-bucket", "mine", "a.txt"],
    &["run", "--local=s", "--lease", "soon", "a.txt"],
    &["run", "--local=s", "--slots", "0", "a.txt"],
    // Other commands.
    &["status", "--local=none"],
    &["status", "--local=one", "M2"],
    &["submit", "--source-bucket", "in", "--result-bucket", "in", "a.txt"],
    &["submit", "a.txt"],
    &["submit", "--source-bucket", "in", "-", "s3://in/x/"],
    &["submit", "--source-bucket", "in", "--topic-arn", "mine", "a.txt"],
    &["submit", "--source-bucket", "in", "--bid-mode", "cheap", "a.txt"],
    &["lambda"],
];

#[test]
fn the_errors_that_people_meet_are_reviewed() {
    let project = Project::new(&["a.txt", "b.txt"]);
    project.program(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#);
    std::fs::create_dir(project.path("folder")).unwrap();
    std::fs::write(project.path("folder/file"), "").unwrap();
    let own = project.path("").canonicalize().unwrap().display().to_string();

    let mut text = String::new();
    for arguments in COMMANDS {
        let output = project.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).replace(own.trim_end_matches('/'), "DIR");
        let errors: String = errors.lines().map(|line| format!("{}\n", without_chance(line))).collect();
        let words = shell_words::join(arguments);
        write!(text, "$ lighthpc {words}\n{errors}exit code {}\n\n", output.status.code().unwrap()).unwrap();
    }

    expect_file!["snapshots/errors.txt"].assert_eq(&text);
}

/// Replaces what differs between two runs: a task's times, and the name of an attempt's folder.
fn without_chance(line: &str) -> String {
    let is_task = line.starts_with("[1/1]");
    let number = |part: &str| part.strip_suffix(" ms").or_else(|| part.strip_suffix(" s")).map(str::parse::<f64>);
    let is_time = |part: &str| number(part).is_some_and(|number| number.is_ok());
    let parts = line.split("  ").map(|part| if is_task && is_time(part) { "TIME" } else { part });
    let line = parts.collect::<Vec<_>>().join("  ");
    match line.split_once("/.lighthpc/work/").and_then(|(head, rest)| Some((head, rest.split_once('/')?.1))) {
        Some((head, rest)) => format!("{head}/.lighthpc/work/ATTEMPT/{rest}"),
        None => line,
    }
}
