//! The commands that answer a user's questions: which tasks failed, why, where the results are; on a local mission.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cli::{Project, code, stderr};

/// Fails in four ways, and does the rest. Each task prints its name.
const PROGRAM: &str = r#"echo "this is $LIGHTHPC_SRC_ID"
case $LIGHTHPC_SRC_ID in
    *1.txt) exit 3 ;;
    *2.txt) kill -9 $$ ;;
    *3.txt) exit 0 ;;
    *4.txt) exit 42 ;;
    *5.txt) mkdir "$LIGHTHPC_OUTPUT" && mkdir "$LIGHTHPC_OUTPUT/d" && echo one > "$LIGHTHPC_OUTPUT/x" && echo two > "$LIGHTHPC_OUTPUT/d/y" ;;
    *) cat "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT" ;;
esac"#;

fn project() -> Project {
    let inputs: Vec<String> = (0..20).map(|n| format!("t{n:02}.txt")).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let project = Project::new(&inputs);
    project.program(PROGRAM);
    let run = [&["run", "--local", "--slots", "4"] as &[&str], &inputs, &["--", "./program.sh"]].concat();
    assert_eq!(code(&project.run(&run)), 20);
    project
}

fn out(project: &Project, arguments: &[&str]) -> String {
    let output = project.run(arguments);
    assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(project: &Project, arguments: &[&str]) -> Value {
    serde_json::from_str(&out(project, arguments)).unwrap()
}

#[test]
fn what_failed_and_why_is_found_by_commands_alone() {
    let project = project();
    // Which, and why, by reason.
    let status = json(&project, &["status", "--local", "--json"]);
    assert_eq!((&status["schema"], &status["isComplete"]), (&1.into(), &true.into()));
    assert_eq!(status["states"], serde_json::json!({ "pending": 0, "running": 0, "done": 12, "failed": 8 }));
    let reasons: BTreeMap<&str, u64> = status["failures"]["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["reason"].as_str().unwrap(), group["count"].as_u64().unwrap()))
        .collect();
    let expected = [
        ("the workload exited with code 0 but wrote no result to $LIGHTHPC_OUTPUT", 2),
        ("the workload exited with code 3", 2),
        ("the workload exited with code 42", 2),
        ("the workload was killed by signal 9 (SIGKILL)", 2),
    ];
    assert_eq!(reasons, BTreeMap::from(expected));
    let text = out(&project, &["status", "--local", "--failed"]);
    assert!(text.contains("complete, with failed tasks") && text.contains("100 %  20 of 20 tasks"), "{text}");
    assert!(text.contains("next: lighthpc explain --local local t01.txt"), "{text}");
    assert!((1..=4).all(|n| text.contains(&format!("t0{n}.txt")) && text.contains(&format!("t1{n}.txt"))), "{text}");

    // One of them.
    let page = out(&project, &["explain", "--local", "local", "t11.txt"]);
    for part in [
        "task t11.txt\n",
        "app-error: the workload exited with code 3",
        "what to do",
        "attempts\n    1  app-error",
        "this is t11.txt",
        "next: lighthpc redrive --local local t11.txt",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    let explained = json(&project, &["explain", "--local", "local", "t12.txt", "--json"]);
    assert_eq!((&explained["signal"], &explained["history"][0]["purchase"]), (&9.into(), &"local".into()));

    // The logs.
    assert_eq!(out(&project, &["logs", "--local", "local", "t04.txt"]), "this is t04.txt\n");
    assert_eq!(out(&project, &["logs", "--local", "local", "t04.txt", "--tail", "0"]), "");
    let logs = out(&project, &["logs", "--local", "local", "--failed"]);
    assert_eq!(logs.matches("==> ").count(), 8, "{logs}");

    // In scripts.
    let listed = json(&project, &["list", "--local", "local", "--failed", "--name", "t1*", "--json"]);
    let names: Vec<&str> =
        listed["tasks"].as_array().unwrap().iter().map(|task| task["srcFilename"].as_str().unwrap()).collect();
    assert_eq!(names, ["t11.txt", "t12.txt", "t13.txt", "t14.txt"]);
    let csv = out(&project, &["list", "--local", "local", "--verdict", "no-result", "--csv"]);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    assert!(csv.lines().nth(1).unwrap().starts_with("t03.txt,failed,1,no-result,"), "{csv}");
    let cut = project.run(&["list", "--local", "local", "--limit", "3"]);
    assert_eq!((String::from_utf8_lossy(&cut.stdout).lines().count(), stderr(&cut).contains("--limit")), (4, true));
}

#[test]
fn a_script_waits_and_learns_how_it_ended() {
    let project = project();
    let wait = project.run(&["wait", "--local", "local", "--on-end", "echo $LIGHTHPC_DONE $LIGHTHPC_FAILED > ended"]);
    assert_eq!(code(&wait), 20, "{}", stderr(&wait));
    assert!(stderr(&wait).contains("20 of 20 tasks ended, 8 failed"), "{}", stderr(&wait));
    assert_eq!(std::fs::read_to_string(project.path("ended")).unwrap(), "12 8\n");

    project.program("echo ok > \"$LIGHTHPC_OUTPUT\"");
    assert_eq!(code(&project.run(&["run", "--local", "--", "./program.sh"])), 0);
    assert_eq!(code(&project.run(&["wait", "--local", "local"])), 0);
}

#[test]
fn a_wait_ends_with_its_time_and_with_a_signal() {
    let project = Project::new(&["a.txt"]);
    project.program("sleep 600");
    let mut run = project.command(&["run", "--local", "a.txt", "--", "./program.sh"]).spawn().unwrap();
    let is_running = || {
        let status = project.run(&["status", "--local", "--json"]);
        serde_json::from_slice::<Value>(&status.stdout).is_ok_and(|status| status["states"]["running"] == 1)
    };
    let deadline = std::time::Instant::now() + crate::test_cloud::PATIENCE;
    while !is_running() {
        assert!(std::time::Instant::now() < deadline);
    }
    let wait = project.run(&["wait", "--local", "local", "--timeout", "0.5s"]);
    assert_eq!((code(&wait), stderr(&wait).contains("the mission goes on")), (32, true), "{}", stderr(&wait));
    let wait = project.command(&["wait", "--local", "local"]).spawn().unwrap();
    std::process::Command::new("kill").args(["-INT", &wait.id().to_string()]).status().unwrap();
    assert_eq!(wait.wait_with_output().unwrap().status.code().unwrap_or(130), 130);
    std::process::Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap();
    run.wait().unwrap();
}

#[test]
fn results_are_fetched_whole_and_once() {
    let project = project();
    let said = out(&project, &["fetch", "--local", "local", "--to", "got"]);
    // 10 files, and 2 folders of two.
    assert!(said.starts_with("14 files of 12 results: 14 fetched"), "{said}");
    assert!(said.contains("8 tasks without a result"), "{said}");
    assert_eq!(std::fs::read_to_string(project.path("got/t00.txt")).unwrap(), "input t00.txt\n");
    assert_eq!(std::fs::read_to_string(project.path("got/t05.txt/d/y")).unwrap(), "two\n");
    assert!(!project.path("got/t01.txt").exists(), "it failed");

    // A file that was cut or removed is fetched again, and nothing else.
    std::fs::write(project.path("got/t00.txt"), "cut").unwrap();
    std::fs::remove_file(project.path("got/t05.txt/x")).unwrap();
    let said = out(&project, &["fetch", "--local", "local", "--to", "got"]);
    assert!(said.contains("2 fetched") && said.contains("12 there already"), "{said}");
    assert_eq!(std::fs::read_to_string(project.path("got/t00.txt")).unwrap(), "input t00.txt\n");
    let said = out(&project, &["fetch", "--local", "local", "--to", "some", "--name", "t0?.txt"]);
    assert!(said.starts_with("7 files of 6 results"), "{said}");

    // A result that somebody has replaced is not the committed one.
    std::fs::remove_file(project.path("lighthpc-local/results/rslt_t06.txt")).unwrap();
    std::fs::write(project.path("lighthpc-local/results/rslt_t07.txt"), "other").unwrap();
    let output = project.run(&["fetch", "--local", "local", "--to", "again"]);
    assert_eq!(code(&output), 31, "{}", stderr(&output));
    assert!(stderr(&output).contains("rslt_t06.txt is missing"), "{}", stderr(&output));
    assert!(stderr(&output).contains("rslt_t07.txt is not the object that was committed"), "{}", stderr(&output));
    assert!(!project.path("again/t07.txt").exists() && project.path("again/t08.txt").exists());
    let left: Vec<_> =
        std::fs::read_dir(project.path("again")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
}

#[test]
fn a_local_mission_is_redriven_and_cancelled() {
    let project = project();
    let said = out(&project, &["redrive", "--local", "local", "--verdict", "no-result"]);
    let next = "next: lighthpc run --local\n";
    assert_eq!(said, format!("mission local: 2 tasks set to pending, 0 nodes launched\n{next}"));
    assert!(out(&project, &["status", "--local"]).ends_with("no run is active\nnext: lighthpc run --local\n"));
    let status = json(&project, &["status", "--local", "--json"]);
    assert_eq!((&status["states"]["pending"], &status["states"]["failed"]), (&2.into(), &6.into()));
    let page = out(&project, &["explain", "--local", "local", "t03.txt"]);
    assert!(page.contains("pending since") && page.contains("no-result"), "{page}");

    let said = out(&project, &["cancel", "--local", "local", "--wait", "1s"]);
    assert!(said.starts_with("mission local is cancelled: 2 tasks ended, 0 requested to stop"), "{said}");
    let listed = json(&project, &["list", "--local", "local", "--verdict", "cancelled", "--json"]);
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 2);
    assert_eq!(listed["tasks"][0]["error"], "the mission was cancelled");
    assert_eq!(code(&project.run(&["cancel", "--local=nowhere", "local"])), 2);
    assert!(!project.path("nowhere").exists());
}

#[test]
fn scripts_read_what_commands_did() {
    let project = project();
    let any = |arguments: &[&str], exit: i32| -> Value {
        let output = project.run(arguments);
        assert_eq!(code(&output), exit, "{arguments:?}: {}", stderr(&output));
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&read["schema"], &read["mission"]), (&1.into(), &"local".into()), "{arguments:?}");
        read
    };
    let waited = any(&["wait", "--local", "local", "--json"], 20);
    assert_eq!((&waited["isComplete"], &waited["transFailed"]), (&true.into(), &8.into()));
    let fetched = any(&["fetch", "--local", "local", "--to", "got", "--json"], 0);
    assert_eq!((&fetched["results"], &fetched["files"], &fetched["fetched"]), (&12.into(), &14.into(), &14.into()));
    assert_eq!((&fetched["there"], &fetched["missing"]), (&0.into(), &8.into()));
    let redriven = any(&["redrive", "--local", "local", "--json", "t01.txt", "t00.txt"], 2);
    assert_eq!((&redriven["putBack"], &redriven["skipped"][0]), (&1.into(), &"t00.txt".into()));
    let waited = any(&["wait", "--local", "local", "--json", "--timeout", "0.1s"], 32);
    assert_eq!((&waited["isComplete"], &waited["transFailed"]), (&false.into(), &7.into()));
    let cancelled = any(&["cancel", "--local", "local", "--wait", "1s", "--json"], 0);
    assert_eq!((&cancelled["ended"], &cancelled["isReinstated"]), (&1.into(), &false.into()));
}

#[test]
fn a_report_of_a_local_mission_is_one_file() {
    let project = project();
    let said = out(&project, &["report", "--local", "local"]);
    assert!(said.starts_with("local.html ("), "{said}");
    let page = std::fs::read_to_string(project.path("local.html")).unwrap();
    assert!(page.contains("12 of 20 tasks are done; complete, 8 failed."), "{page}");
    assert!(page.contains("<pre>this is t01.txt\n</pre>"), "the end of a log");
    // The publisher has stored the same beside the manifest, without the logs.
    assert!(project.path("lighthpc-local/results/manifests/local.html").exists());
    let trace: Value =
        serde_json::from_str(&out(&project, &["report", "--local", "local", "--format", "perfetto", "-o", "-"]))
            .unwrap();
    let attempts = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").count();
    assert_eq!(attempts, 20);
    let csv = out(&project, &["report", "--local", "local", "--format", "csv", "-o", "-"]);
    assert_eq!(csv.lines().count(), 21);
    assert_eq!(code(&project.run(&["report", "--local", "local", "-o", "no/such/folder.html"])), 2);
}
