//! A node that crashes: who is suspect of it, who runs alone, what counts, and what does not.

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::machine::has_process;
use lighthpc::domain::ids::AttemptNumber;
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::{State, Task};
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::Outcome;
use lighthpc::workload::{self, Left};
use local_cloud::Service::Dynamodb;
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, TestNode, mission_id, src, text, until};

/// Runs a node until something is so, and drops it there: to the node, its process has died. Returns what it left.
async fn crash(node: TestNode, count: usize, what: &str, is_so: impl AsyncFnMut() -> bool) -> Vec<Left> {
    let (instance, work_dir) = (node.instance.clone(), node.settings.work_dir.clone());
    tokio::select! {
        life = node.run() => panic!("it has ended before {what}: {life:?}"),
        () = until(what, is_so) => {}
    }
    let mut left = Vec::new();
    until("the dead process lets go", async || {
        if has_process(&instance) {
            return false;
        }
        left = workload::lock_work_dir(&work_dir, "tblTrans2").unwrap().1;
        left.len() >= count
    })
    .await;
    assert_eq!(left.len(), count);
    assert!(left.iter().all(|left| left.is_crash));
    left
}

/// A node that says when a task begins and ends. First attempts wait to be killed, and so does every attempt of
/// `culprit`.
fn worker(cloud: &TestCloud, instance: &str, slots: u16, left: Vec<Left>) -> TestNode {
    let runs = cloud.dir.path().join("runs");
    let line = format!(
        r#"say() {{ echo "$1 $LIGHTHPC_SRC_ID" >> '{}'; }}; say begin
        if [ "$LIGHTHPC_ATTEMPT" = 1 ] || [ "$LIGHTHPC_SRC_ID" = culprit ]; then while :; do sleep 0.05; done; fi
        rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT"; say end"#,
        runs.display()
    );
    let mut node = cloud.node_on(instance.to_owned(), Faults::new()).shell(&line);
    node.settings.slots = Some(slots);
    node.settings.left = left;
    node
}

fn runs(cloud: &TestCloud) -> Vec<String> {
    let text = std::fs::read_to_string(cloud.dir.path().join("runs")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn begun(cloud: &TestCloud, task: &str) -> usize {
    runs(cloud).iter().filter(|run| **run == format!("begin {task}")).count()
}

fn counts(task: &Task) -> (u64, bool, u64, u64) {
    (task.crashes, task.is_suspect, task.interruptions, task.app_failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_all_run_alone_and_the_culprit_fails_at_its_third() {
    let cloud = TestCloud::new().await;
    let tasks = ["one", "two", "culprit", "three"];
    cloud.mission("M", &tasks).await;
    let instance = cloud.local.launch(&[("missionID", "M"), ("lighthpc", "tblTrans2")]);

    let mut left =
        crash(worker(&cloud, &instance, 4, Vec::new()), 4, "four run", async || runs(&cloud).len() == 4).await;
    for crashes in 0..3 {
        let before = begun(&cloud, "culprit");
        let node = worker(&cloud, &instance, 4, left);
        left = crash(node, 1, "the culprit runs again", async || begun(&cloud, "culprit") > before).await;
        assert_eq!(left[0].src, Some(src("culprit")), "it ran alone");
        let row = cloud.task("culprit").await;
        assert_eq!((row.state, counts(&row)), (State::Running, (crashes, true, 0, 0)));
    }
    let done_before = cloud.tally("M").await.ok;
    let life = worker(&cloud, &instance, 4, left).run().await;

    let is_whole = matches!(life.outcome, Ok(Outcome::Served { done, other: 0 }) if done + done_before == 3);
    assert!(is_whole, "{done_before} done before {life:?}: {:?}", runs(&cloud));
    // Since the first crash nobody ran beside another.
    let mut at = None;
    for run in &runs(&cloud)[4..] {
        match run.split_once(' ').unwrap() {
            ("begin", task) => {
                assert!(at.is_none_or(|at| at == "culprit"), "{:?}", runs(&cloud));
                at = Some(task);
            }
            (_, task) => assert_eq!(at.take(), Some(task), "{:?}", runs(&cloud)),
        }
    }
    let row = cloud.task("culprit").await;
    assert_eq!((row.state, row.verdict, counts(&row)), (State::Failed, Some(Verdict::AppError), (3, true, 0, 0)));
    assert_eq!(row.attempt.0, 4, "once beside the others, and three times alone");
    assert_eq!(row.history.len(), 4);
    let error = cloud.attribute("culprit", "error").await;
    assert!(error.contains("3 of 3") && error.len() <= 300, "{error}");
    for task in ["one", "two", "three"] {
        let row = cloud.task(task).await;
        assert_eq!((row.state, row.attempt.0, counts(&row)), (State::Done, 2, (0, false, 0, 0)), "{task}");
        let row = cloud.row_of(task).await;
        assert!(["suspect", "error"].iter().all(|name| !row.contains_key(*name)), "{row:?}");
    }
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed, cloud.local.published().len()), (3, 1, 1));
    assert_eq!(cloud.mission_row("M").await.notified, Notified::Yes);

    // A redrive gives it fresh budgets; it still runs alone.
    let (row, mission) = (cloud.task("culprit").await, cloud.mission_row("M").await);
    cloud.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap();
    assert_eq!(counts(&cloud.task("culprit").await), (0, true, 0, 0));
}

/// A node of one task is alone with it: each of its crashes counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_one_task_is_alone_with_it() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["culprit"]).await;
    let instance = cloud.local.launch(&[("srcID", "culprit"), ("missionID", "M")]);
    let mut left = Vec::new();
    for crashes in 0..3 {
        let node = worker(&cloud, &instance, 1, left);
        left = crash(node, 1, "it runs", async || begun(&cloud, "culprit") > crashes).await;
        assert_eq!(cloud.task("culprit").await.crashes, crashes as u64);
    }
    let life = worker(&cloud, &instance, 1, left).run().await;
    assert!(matches!(life.outcome, Ok(Outcome::EndedBefore(State::Failed))), "{life:?}");
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed, cloud.local.published().len()), (0, 1, 1));
    assert!(cloud.has_ended(&instance));
}

/// What may have any cause is no crash: a reboot, a machine that is gone, a lease that ran out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_reboot_nor_a_machine_that_is_gone_is_a_crash() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let instance = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
    let mut left =
        crash(worker(&cloud, &instance, 1, Vec::new()), 1, "it runs", async || begun(&cloud, "abc") == 1).await;
    left[0].is_crash = false;
    worker(&cloud, &instance, 1, left).run().await.outcome.unwrap();
    assert_eq!(counts(&cloud.task("abc").await), (0, false, 0, 0));
    cloud.assert_done("abc", "M", "after a reboot").await;

    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let gone = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
    crash(worker(&cloud, &gone, 1, Vec::new()), 1, "it runs", async || begun(&cloud, "abc") == 1).await;
    cloud.local.reclaim_instance(&gone);
    let other = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
    worker(&cloud, &other, 1, Vec::new()).run().await.outcome.unwrap();
    assert_eq!(counts(&cloud.task("abc").await), (0, false, 1, 0));
}

/// The report of a crash fails, its answer is lost, the process dies after it, and it is made twice: one crash is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_counted_once_whatever_becomes_of_its_report() {
    let faults = [
        ("fails", Fault::Status(500, "InternalServerError")),
        ("its answer is lost", Fault::FailAfter),
        ("arrives twice", Fault::Repeat),
    ];
    for (what, fault) in faults {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let instance = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
        let left =
            crash(worker(&cloud, &instance, 1, Vec::new()), 1, "it runs", async || begun(&cloud, "abc") == 1).await;
        let faults = Faults::new();
        faults.add(Dynamodb, "UpdateItem", When::Nth(1), fault);
        let mut node = worker(&cloud, &instance, 1, left.clone());
        node.backend = cloud.node_on(instance.clone(), faults).backend;
        node.run().await.outcome.unwrap();
        let row = cloud.task("abc").await;
        assert_eq!((row.attempt.0, counts(&row)), (2, (1, false, 0, 0)), "{what}");
        cloud.assert_done("abc", "M", what).await;
        // And once more, by a process that finds the same.
        worker(&cloud, &instance, 1, left).run().await.outcome.unwrap();
        assert_eq!(counts(&cloud.task("abc").await), (1, false, 0, 0), "{what}");
        cloud.assert_done("abc", "M", what).await;
    }

    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let instance = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
    let left = crash(worker(&cloud, &instance, 1, Vec::new()), 1, "it runs", async || begun(&cloud, "abc") == 1).await;
    for (call, state) in [(2, State::Pending), (3, State::Running)] {
        let faults = Faults::new();
        // The report, then the claim, then what comes after it.
        let (operation, nth) = if call == 2 { ("UpdateItem", 2) } else { ("GetItem", 1) };
        let gate = faults.hold_before(Dynamodb, operation, When::Nth(nth));
        let mut node = worker(&cloud, &instance, 1, if call == 2 { left.clone() } else { Vec::new() });
        node.backend = cloud.node_on(instance.clone(), faults).backend;
        node.die_at(&gate).await;
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.crashes, row.is_suspect), (state, 1, true), "call {call}");
    }
}

/// A row that cannot be written loses no other row, and its marker stays until it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_cannot_be_written_loses_no_other_and_keeps_its_marker() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["one", "two"]).await;
    let instance = cloud.local.launch(&[("missionID", "M")]);
    let left = crash(worker(&cloud, &instance, 2, Vec::new()), 2, "both run", async || runs(&cloud).len() == 2).await;
    let refused = left[0].src.clone().unwrap();
    let faults = Faults::new();
    faults.add(Dynamodb, "UpdateItem", When::Nth(1), Fault::Status(400, "AccessDeniedException"));
    let mut node = worker(&cloud, &instance, 2, left.clone());
    node.backend = cloud.node_on(instance.clone(), faults).backend;
    let work_dir = node.settings.work_dir.clone();
    let life = node.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, other: 0 })), "{life:?}");
    let row = cloud.task(refused.as_str()).await;
    assert_eq!((row.state, row.attempt.0, counts(&row)), (State::Running, 1, (0, false, 0, 0)), "not taken up either");
    let (lock, still_left) = workload::lock_work_dir(&work_dir, "tblTrans2").unwrap();
    assert_eq!(still_left, left[..1], "its marker alone");
    drop(lock);
    let life = worker(&cloud, &instance, 2, still_left).run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, other: 0 })), "{life:?}");
    let row = cloud.task(refused.as_str()).await;
    let past: Vec<_> = row.history.iter().map(|past| past.end.verdict).collect();
    assert_eq!((row.state, past), (State::Done, vec![Verdict::Lost, Verdict::Ok]));
    assert!(workload::lock_work_dir(&work_dir, "tblTrans2").unwrap().1.is_empty());

    // A node of one task does not take up what would then look handed back.
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let instance = cloud.local.launch(&[("srcID", "abc"), ("missionID", "M")]);
    let left = crash(worker(&cloud, &instance, 1, Vec::new()), 1, "it runs", async || begun(&cloud, "abc") == 1).await;
    let faults = Faults::new();
    faults.add(Dynamodb, "UpdateItem", When::Nth(1), Fault::Status(400, "AccessDeniedException"));
    let mut node = worker(&cloud, &instance, 1, left);
    node.backend = cloud.node_on(instance.clone(), faults).backend;
    let life = node.run().await;
    assert!(life.outcome.is_err(), "{life:?}");
    assert_eq!((cloud.task("abc").await.attempt.0, begun(&cloud, "abc")), (1, 1));
}

/// A process that has taken its task up once more leaves two folders of it: the newest says what it was at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_tasks_folders_the_newest_counts() {
    for is_first in [true, false] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let instance = cloud.local.launch(&[("missionID", "M")]);
        let node = worker(&cloud, &instance, 2, Vec::new());
        let mut left = crash(node, 1, "it runs", async || begun(&cloud, "abc") == 1).await;
        let older = Left::without_folder(src("abc"), AttemptNumber(0), true);
        left.insert(usize::from(!is_first), older);
        let faults = Faults::new();
        let mut node = worker(&cloud, &instance, 2, left);
        node.backend = cloud.node_on(instance.clone(), faults.clone()).backend;
        let life = node.run().await;
        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, other: 0 })), "{life:?}");
        let past: Vec<_> = cloud.task("abc").await.history.iter().map(|past| past.end.verdict).collect();
        assert_eq!(past, [Verdict::Lost, Verdict::Ok]);
    }
}

/// Other slots and other tasks wait for a suspect task's end; a drain ends the wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_the_wait_for_a_suspect_task() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["culprit", "other"]).await;
    let instance = cloud.local.launch(&[("missionID", "M")]);
    let left = crash(worker(&cloud, &instance, 2, Vec::new()), 2, "both run", async || runs(&cloud).len() == 2).await;
    let culprit = left.iter().filter(|left| left.src == Some(src("culprit"))).cloned().collect();
    // The other's row says that it is held by this instance; it is handed back by hand.
    cloud.set_attribute("other", "state", "pending").await;
    cloud.set_attribute("other", "openAs", "pending#2026-01-01T00:00:00Z").await;
    let node = worker(&cloud, &instance, 2, culprit);
    let stopping = node.stopping.clone();
    let mut running = JoinSet::new();
    running.spawn(node.run());
    until("the culprit runs", async || begun(&cloud, "culprit") == 2).await;
    assert_eq!(begun(&cloud, "other"), 1, "it waits");
    stopping.drain.cancel();
    let life = running.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 0, .. })), "{life:?}");
    let row = cloud.task("culprit").await;
    assert_eq!((row.state, counts(&row)), (State::Pending, (0, true, 1, 0)), "a drain is no crash");
    assert_eq!((cloud.task("other").await.state, begun(&cloud, "other")), (State::Pending, 1));
}

/// Rows that people wrote: whatever stands there, the task is done, and a mark that says no is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_others_wrote_are_understood() {
    let number = |n: &str| AttributeValue::N(n.to_owned());
    for (value, is_suspect) in [
        (text("yes"), true),
        (number("3"), true),
        (AttributeValue::Bool(true), true),
        (AttributeValue::L(Vec::new()), true),
        (AttributeValue::Bool(false), false),
        (AttributeValue::Null(true), false),
        (text(" No "), false),
        (number("0"), false),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "def"]).await;
        cloud.set_value("abc", "suspect", value.clone()).await;
        cloud.set_value("abc", "crashes", text(" 2 ")).await;
        cloud.set_value("def", "crashes", AttributeValue::Bool(true)).await;
        assert_eq!((cloud.task("abc").await.is_suspect, cloud.task("abc").await.crashes), (is_suspect, 2), "{value:?}");
        let instance = cloud.local.launch(&[("missionID", "M")]);
        let mut node = cloud.node_on(instance, Faults::new());
        node.settings.slots = Some(2);
        let life = node.run().await;
        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 2, other: 0 })), "{value:?}: {life:?}");
        assert!(!cloud.task("abc").await.is_suspect, "{value:?}");
        assert_eq!(cloud.tally("M").await.ok, 2);
        assert_eq!(cloud.mission_row("M").await.id, mission_id("M"));
    }
}
