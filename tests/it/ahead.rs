//! Slots whose second lane hides the time of requests.

use std::path::Path;
use std::time::Duration;

use lighthpc::domain::task::{State, Task};
use lighthpc::worker::{Life, Outcome};
use local_cloud::Service::S3;
use local_cloud::{Faults, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, TestNode, until};

const TASKS: usize = 12;

async fn cloud() -> TestCloud {
    let cloud = TestCloud::new().await;
    let names: Vec<String> = (0..TASKS).map(|n| format!("task-{n}")).collect();
    cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    cloud
}

fn node(cloud: &TestCloud, faults: Faults, line: &str) -> TestNode {
    let instance = cloud.local.launch(&[("missionID", "M"), ("lighthpc", "tblTrans2")]);
    let mut node = cloud.node_on(instance, faults);
    node.settings.slots = Some(1);
    node.shell(line)
}

/// Returns a workload that fails if another one runs, and notes its task; from the `calm`th on it does `then`, too.
fn line(folder: &Path, calm: usize, then: &str) -> String {
    let folder = folder.display();
    format!(
        r#"mkdir '{folder}/running' || exit 9
        : > '{folder}/'"$LIGHTHPC_SRC_ID"
        [ $(ls '{folder}' | grep -c task) -lt {calm} ] || {{ {then}; }}
        rmdir '{folder}/running'
        rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#
    )
}

async fn rows(cloud: &TestCloud) -> Vec<Task> {
    let mut rows = Vec::new();
    for n in 0..TASKS {
        rows.push(cloud.task(&format!("task-{n}")).await);
    }
    rows
}

/// Returns whether an attempt at the task has its input.
fn has_input(work_dir: &Path, task: &Task) -> bool {
    let attempts = std::fs::read_dir(work_dir).into_iter().flatten().flatten();
    attempts.map(|attempt| attempt.path().join("workload/input").join(task.src.as_str())).any(|input| input.exists())
}

async fn count(cloud: &TestCloud, state: State) -> usize {
    rows(cloud).await.iter().filter(|row| row.state == state).count()
}

async fn end(mut running: JoinSet<Life>) -> Outcome {
    running.join_next().await.unwrap().unwrap().outcome.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tasks_are_done_while_a_result_goes_up_and_one_workload_runs_at_a_time() {
    let (cloud, folder, faults) = (cloud().await, tempfile::tempdir().unwrap(), Faults::new());
    let gate = faults.hold_before(S3, "PutObject", When::Nth(3));
    let mut running = JoinSet::new();
    running.spawn(node(&cloud, faults, &line(folder.path(), 1, "sleep 0.05")).run());
    gate.arrived(1).await;

    until("others are done during the upload", async || count(&cloud, State::Done).await >= 6).await;
    gate.open();

    assert!(matches!(end(running).await, Outcome::Served { done: 12, other: 0 }));
    assert_eq!(cloud.local.published().len(), 1);
    assert!(rows(&cloud).await.iter().all(|row| row.attempt.0 == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_hands_back_what_was_claimed_ahead_and_no_budget_counts_it() {
    let (cloud, folder) = (cloud().await, tempfile::tempdir().unwrap());
    let node = node(&cloud, Faults::new(), &line(folder.path(), 3, "exec sleep 100"));
    let (stopping, work_dir) = (node.stopping.clone(), node.settings.work_dir.clone());
    let mut running = JoinSet::new();
    running.spawn(node.run());
    // Three tasks, and the mark of the one that runs.
    let begun = || std::fs::read_dir(folder.path()).unwrap().count() == 4;
    until("one runs, and one waits", async || begun() && count(&cloud, State::Running).await == 2).await;
    let held: Vec<Task> = rows(&cloud).await.into_iter().filter(|row| row.state == State::Running).collect();
    until("both have their inputs", async || held.iter().all(|task| has_input(&work_dir, task))).await;
    // Long enough for the one that waits to see that it must: it asks nobody before.
    tokio::time::sleep(Duration::from_millis(300)).await;

    stopping.drain.cancel();

    assert!(matches!(end(running).await, Outcome::Served { done: 2, other: 2 }));
    let mut counted = Vec::new();
    for row in held {
        let row = cloud.task(row.src.as_str()).await;
        assert_eq!((row.state, row.attempt.0, row.app_failures), (State::Pending, 1, 0));
        assert_eq!(row.interruptions, u64::from(folder.path().join(row.src.as_str()).exists()), "{}", row.src);
        counted.push(row.interruptions);
    }
    counted.sort_unstable();
    assert_eq!(counted, [0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_handed_back_if_the_workload_before_it_takes_unexpectedly_long() {
    let (cloud, folder) = (cloud().await, tempfile::tempdir().unwrap());
    let long = format!("[ -e '{0}/long' ] || {{ : > '{0}/long'; sleep 4; }}", folder.path().display());
    let mut node = node(&cloud, Faults::new(), &line(folder.path(), 3, &long));
    node.settings.claim_ahead = Duration::from_secs(1);

    let life = node.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 12, other: 1 })), "{life:?}");
    let again: Vec<Task> = rows(&cloud).await.into_iter().filter(|row| row.attempt.0 > 1).collect();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].state, again[0].interruptions, again[0].app_failures), (State::Done, 0, 0));
    let why = again[0].history[0].end.error.clone().unwrap();
    assert!(why.contains("claimed ahead"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_it_a_slot_has_one_task_at_a_time() {
    let (cloud, folder, faults) = (cloud().await, tempfile::tempdir().unwrap(), Faults::new());
    let gate = faults.hold_before(S3, "PutObject", When::Nth(3));
    let mut node = node(&cloud, faults, &line(folder.path(), 1, ":"));
    node.settings.claim_ahead = Duration::ZERO;
    let mut running = JoinSet::new();
    running.spawn(node.run());
    gate.arrived(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;

    assert_eq!((count(&cloud, State::Running).await, count(&cloud, State::Done).await), (1, 2));

    gate.open();
    assert!(matches!(end(running).await, Outcome::Served { done: 12, other: 0 }));
}
