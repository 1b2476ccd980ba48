//! Operators, sweeps, and publishers at the same moment: whatever one of them assumed is a condition of what it writes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::machine::PowerOff;
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::scheduler::What;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, S3, Sns};
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, backend, mission_id, src, text, until};

const SECOND: Duration = Duration::from_secs(1);

/// A sweep has read a cancelled mission when a redrive reinstates it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_does_not_fail_the_tasks_of_a_mission_that_was_reinstated() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    cloud.backend.ledger.cancel_mission(&mission_id("M"), "2026-01-01T00:00:00Z").await.unwrap();
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let scheduler = cloud.scheduler(&faults);
    let mut sweeping = JoinSet::new();
    sweeping.spawn(async move { scheduler.sweep(&CancellationToken::new()).await.unwrap() });
    gate.arrived(1).await;

    let redriven = cloud.scheduler(&Faults::new()).redrive(&mission_id("M"), None, &[]).await.unwrap();
    assert!(redriven.is_reinstated, "a mission without failed tasks is reinstated, too");
    gate.open();
    let found = sweeping.join_next().await.unwrap().unwrap();

    assert!(found.iter().all(|finding| finding.what != What::Failed), "{found:?}");
    for task in ["abc", "def"] {
        assert_eq!(cloud.task(task).await.state, State::Pending, "{task}");
    }
    assert_eq!(cloud.tally("M").await.failed, 0);
}

/// The holder has found its mission cancelled and is about to end its task when the mission is reinstated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_end_a_task_for_a_cancellation_that_was_taken_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.backend.ledger.cancel_mission(&mission_id("M"), "2026-01-01T00:00:00Z").await.unwrap();
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let mut running = JoinSet::new();
    running.spawn(cloud.node_with("abc", "M", faults).run());
    gate.arrived(1).await;

    cloud.scheduler(&Faults::new()).redrive(&mission_id("M"), None, &[]).await.unwrap();
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();

    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.interruptions, cloud.tally("M").await.ended()), (State::Pending, 0, 0));
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "after the mission was reinstated").await;
}

/// Between a publisher's look at the tally and its `Sending`, a failed task is redriven: there is nothing to announce.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_before_the_publication_puts_the_announcement_off() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // The claim is the first.
    let gate = faults.hold_before(Dynamodb, "UpdateItem", When::Nth(2));
    let mut running = JoinSet::new();
    running.spawn(cloud.node_with("abc", "M", faults).shell("exit 3").run());
    gate.arrived(1).await;

    let redriven =
        cloud.scheduler(&Faults::new()).redrive(&mission_id("M"), None, &[src("abc"), src("abc")]).await.unwrap();
    assert_eq!((redriven.put_back, redriven.others.len()), (1, 0), "a task that is named twice is one");
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();

    assert!(matches!(life.outcome, Err(NodeError::WorkloadFailed { .. })), "{life:?}");
    assert_eq!((cloud.local.published().len(), cloud.mission_row("M").await.notified), (0, Notified::No));
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "after the redrive").await;
    assert_eq!(cloud.local.published().len(), 1, "the real end is announced, once");
}

/// The same when the mission is enlarged, by any of the writes of a publisher that have not arrived yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enlargement_meanwhile_is_announced_at_its_own_end() {
    for (write, sent) in [(2, 0), (3, 0), (4, 1)] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        let gate = faults.hold_before(Dynamodb, "UpdateItem", When::Nth(write));
        let mut running = JoinSet::new();
        running.spawn(cloud.node_with("abc", "M", faults).run());
        gate.arrived(1).await;

        let seen = cloud.mission_row("M").await;
        assert!(cloud.backend.ledger.resize_mission(&seen, 2).await.unwrap());
        assert!(!cloud.backend.ledger.resize_mission(&seen, 3).await.unwrap(), "it has another number by now");
        gate.open();
        running.join_next().await.unwrap().unwrap().outcome.unwrap();

        assert_eq!(
            (cloud.local.published().len(), cloud.mission_row("M").await.notified),
            (sent, Notified::No),
            "write {write}"
        );
        cloud.input("def", b"def").await;
        cloud.row("def", &mission_id("M")).await;
        cloud.node("def", "M").run().await.outcome.unwrap();
        assert_eq!(
            (cloud.local.published().len(), cloud.mission_row("M").await.notified),
            (sent + 1, Notified::Yes),
            "write {write}"
        );
    }
}

#[tokio::test]
async fn the_rows_counters_follow_the_tally_after_the_announcement() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.node("abc", "M").run().await.outcome.unwrap();
    assert_eq!(cloud.mission_row("M").await.notified, Notified::Yes);

    cloud.input("late", b"late").await;
    cloud.row("late", &mission_id("M")).await;
    cloud.node("late", "M").run().await.outcome.unwrap();
    assert_eq!(cloud.mission_row("M").await.rolled.ok, 2, "by the node");

    // The committer dies before it reads the tally: a sweep counts.
    cloud.input("later", b"later").await;
    cloud.row("later", &mission_id("M")).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "BatchGetItem", When::Nth(1));
    cloud.node_with("later", "M", faults).die_at(&gate).await;
    cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap();
    assert_eq!((cloud.mission_row("M").await.rolled.ok, cloud.local.published().len()), (3, 1), "by the sweep");
}

/// A sweep and a node see the same lost attempt at the same time: one interruption.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_attempt_is_one_interruption_whoever_notices() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let gone = cloud.ours("abc", "M").instance;
    cloud.node_on(gone.clone(), faults).shell("echo begun; echo x > $LIGHTHPC_OUTPUT").die_at(&gate).await;
    cloud.local.reclaim_instance(&gone);
    let faults = Faults::new();
    // The claim is refused, then the lease is taken over: that is held up.
    let gate = faults.hold_before(Dynamodb, "UpdateItem", When::Nth(2));
    let mut running = JoinSet::new();
    running.spawn(cloud.node_with("abc", "M", faults).run());
    gate.arrived(1).await;

    let found = cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap();
    assert_eq!(found[0].what, What::PutBack, "{found:?}");
    gate.open();
    running.join_next().await.unwrap().unwrap().outcome.unwrap();

    let row = cloud.task("abc").await;
    assert_eq!((row.interruptions, row.attempt.0), (1, 2));
    assert_eq!(row.history.len(), 2, "{:?}", row.history);
    assert_eq!((row.history[0].end.verdict, row.history[0].instance.as_str()), (Verdict::Lost, gone.as_str()));
    assert_eq!(row.history[0].log.as_deref(), Some("s3://results/logs/abc.1.log"), "its node had saved a log");
    cloud.assert_done("abc", "M", "after a lost attempt").await;
}

/// S3 takes longer for the log than a lease lasts: the holder still holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_is_renewed_until_the_commit_is_sent() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // The result is the first, the log the second.
    let gate = faults.hold_before(S3, "PutObject", When::Nth(2));
    let lease = 3 * SECOND / 2;
    let mut running = JoinSet::new();
    let line = r#"echo a log; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#;
    running.spawn(cloud.node_with("abc", "M", faults).shell(line).lease(lease, lease / 6).run());
    gate.arrived(1).await;

    // Each of these waits for a beat, or for a whole lease.
    for _ in 0..3 {
        let life = cloud.node("abc", "M").lease(lease, lease / 6).run().await;
        assert!(matches!(life.outcome, Ok(Outcome::HeldByOther(_))), "{life:?}");
    }
    let beat = cloud.task("abc").await.beat;
    until("seven more renewals", async || cloud.task("abc").await.beat >= beat + 7).await;
    gate.open();
    running.join_next().await.unwrap().unwrap().outcome.unwrap();

    cloud.assert_done("abc", "M", "after a slow log").await;
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

/// The publisher's process is gone, and its machine runs on: its lease tells.
#[tokio::test]
async fn a_publisher_that_died_on_a_machine_that_runs_is_replaced() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Sns, "Publish", When::Nth(1));
    let node = cloud.ours("abc", "M").instance;
    cloud.node_on(node, faults).die_at(&gate).await;
    let scheduler = cloud.scheduler(&Faults::new());

    let started = Instant::now();
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();

    assert!(found.iter().any(|finding| finding.what == What::Announced), "{found:?}");
    assert!(started.elapsed() >= scheduler.settings.lease);
    cloud.assert_done("abc", "M", "announced by the sweep").await;
    assert_eq!(cloud.local.published().len(), 1);
}

/// A manifest takes several leases: its publisher renews its own, and no sweep publishes beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_takes_longer_than_a_lease_is_announced_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let lease = scheduler.settings.lease;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "Scan", When::Nth(1));
    let node = cloud.ours("abc", "M").instance;
    let mut running = JoinSet::new();
    running.spawn(cloud.node_on(node, faults).lease(lease, lease / 6).run());
    gate.arrived(1).await;

    for _ in 0..2 {
        assert_eq!(scheduler.sweep(&CancellationToken::new()).await.unwrap(), []);
    }
    gate.open();
    running.join_next().await.unwrap().unwrap().outcome.unwrap();

    cloud.assert_done("abc", "M", "after a long manifest").await;
    assert_eq!(cloud.local.published().len(), 1);
}

/// A large manifest goes up in parts. Its publisher dies, and another goes on after the last part.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_is_gone_on_with_where_its_publisher_stopped() {
    const TASKS: usize = 7_000;
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let name = |n: usize| format!("{}-{n:05}", "x".repeat(900));
    for n in 0..TASKS {
        cloud.row(&name(n), &mission_id("M")).await;
    }
    cloud.set_mission_number("M", "transNumber", TASKS as u64).await;
    cloud.set_mission_value("M#tally#0", "transFailed", AttributeValue::N(TASKS.to_string())).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.template = None;
    settings.lease = Duration::from_millis(60);
    let faults = Faults::new();
    let gate = faults.hold_before(S3, "CompleteMultipartUpload", When::Nth(1));
    let dying = cloud.scheduler_with(&faults, settings.clone());
    let never = CancellationToken::new();
    tokio::select! {
        found = dying.sweep(&never) => panic!("{found:?}"),
        () = gate.arrived(1) => {}
    }
    let progress = cloud.mission_row("M").await.manifest_progress.expect("a part was noted");
    assert!(progress.tasks > 1_000 && progress.tasks < TASKS as u64, "{} tasks are noted", progress.tasks);

    let faults = Faults::new();
    let found = cloud.scheduler_with(&faults, settings).sweep(&never).await.unwrap();

    assert!(found.iter().any(|finding| finding.what == What::Announced), "{found:?}");
    assert_eq!(faults.count(S3, "CreateMultipartUpload"), 0, "it went on with the upload that was begun");
    let manifest: serde_json::Value = serde_json::from_str(&cloud.result("manifests/M.json").unwrap()).unwrap();
    let mut listed: Vec<&str> =
        manifest["tasks"].as_array().unwrap().iter().map(|task| task["srcFilename"].as_str().unwrap()).collect();
    listed.sort_unstable();
    assert!(
        listed.iter().copied().eq((0..TASKS).map(name).collect::<Vec<_>>().iter().map(String::as_str)),
        "each task once"
    );
    let row = cloud.mission_row("M").await;
    assert_eq!((row.notified, row.manifest_progress, cloud.local.published().len()), (Notified::Yes, None, 1));
}

/// The upload that a manifest was to go on with is gone: the next publisher but one begins a new list.
#[tokio::test]
async fn a_manifest_whose_upload_is_gone_is_begun_again() {
    const TASKS: usize = 7_000;
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    for n in 0..TASKS {
        cloud.row(&format!("{}-{n:05}", "x".repeat(900)), &mission_id("M")).await;
    }
    cloud.set_mission_number("M", "transNumber", TASKS as u64).await;
    cloud.set_mission_value("M#tally#0", "transFailed", AttributeValue::N(TASKS.to_string())).await;
    let progress = [("upload", text("gone")), ("after", text("k")), ("parts", AttributeValue::L(vec![]))];
    let mut progress: HashMap<String, AttributeValue> = progress.map(|(name, value)| (name.to_owned(), value)).into();
    for (name, value) in [("tasks", "0"), ("opened", "0")] {
        progress.insert(name.to_owned(), AttributeValue::N(value.to_owned()));
    }
    cloud.set_mission_value("M", "manifestProgress", AttributeValue::M(progress)).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.template = None;
    // Each page is a reason to store a part.
    settings.lease = Duration::from_millis(3);

    for _ in 0..4 {
        cloud.scheduler_with(&Faults::new(), settings.clone()).sweep(&CancellationToken::new()).await.unwrap();
    }

    let row = cloud.mission_row("M").await;
    assert_eq!((row.notified, cloud.local.published().len()), (Notified::Yes, 1));
    let manifest: serde_json::Value = serde_json::from_str(&cloud.result("manifests/M.json").unwrap()).unwrap();
    assert_eq!(manifest["tasks"].as_array().unwrap().len(), TASKS);
}

/// A transaction that checks the mission's row is in the way of a redrive.
#[tokio::test]
async fn a_mission_is_reinstated_while_transactions_check_its_row() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.scheduler(&Faults::new()).cancel(&mission_id("M"), Duration::from_millis(20)).await.unwrap();
    let faults = Faults::new();
    let body = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TransactionConflictException","message":"Transaction is ongoing for the item"}"#;
    faults.add(Dynamodb, "UpdateItem", When::First(3), Fault::Raw(400, body.to_owned()));

    let cancelled = cloud.mission_row("M").await;
    let backend = backend(&cloud.local, None, &faults, PowerOff::Never);
    backend.ledger.reinstate_mission(&cancelled).await.unwrap();

    assert_eq!(cloud.mission_row("M").await.cancelled_at, None);
    assert_eq!(faults.count(Dynamodb, "UpdateItem"), 4);
}

/// The mission's row is near DynamoDB's 400 kB: people are notified once, and the row says so.
#[tokio::test]
async fn a_row_without_room_for_results_is_announced_once() {
    let cloud = TestCloud::new().await;
    // The name of its result is longer than what is left in the row.
    let task = "x".repeat(1_000);
    cloud.mission("M", &[&task]).await;
    cloud.set_mission_value("M", "remark", text(&"x".repeat(409_600 - 1_200))).await;

    cloud.node(&task, "M").run().await.outcome.unwrap();
    for _ in 0..2 {
        cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap();
    }

    let row = cloud.mission_row("M").await;
    assert_eq!((row.notified, row.rolled.ok, cloud.local.published().len()), (Notified::Yes, 1, 1));
    assert_eq!(row.results, ["rsltList"], "there was no room for more");
}

/// An instance of ours that somebody, or a Spot interruption, has stopped bills for its volumes.
#[tokio::test]
async fn a_stopped_instance_of_ours_is_terminated_and_its_task_put_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let stopped = cloud.ours("abc", "M").instance;
    cloud.node_on(stopped.clone(), faults).die_at(&gate).await;
    let foreign = cloud.local.launch(&[("lighthpc", "another table"), ("srcID", "abc")]);
    for id in [&stopped, &foreign] {
        cloud.local.stop_instance(id);
    }

    let found = cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap();

    let of = |what: What| found.iter().filter(|f| f.what == what).map(|f| f.subject.as_str()).collect::<Vec<_>>();
    assert_eq!((of(What::PutBack), of(What::Ended)), (vec!["abc"], vec![stopped.as_str()]), "{found:?}");
    let state = |id: &str| cloud.local.instances().iter().find(|i| i.id == id).unwrap().state.clone();
    assert_eq!((state(&stopped), state(&foreign)), ("terminated".to_owned(), "stopped".to_owned()));
}

/// More tasks wait than one sweep may look at: the next ones go on where it stopped, and round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_cannot_launch_for_all_leaves_the_rest_to_the_next() {
    let cloud = TestCloud::new().await;
    for mission in ["A", "B"] {
        let names: Vec<String> = (0..500).map(|n| format!("{mission}-{n:03}")).collect();
        cloud.mission(mission, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let scheduler = cloud.scheduler(&Faults::new());

    let mut launched = Vec::new();
    for sweep in 0..5 {
        let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
        let new = found.iter().filter(|f| f.what == What::Launched).count();
        launched.push(new);
        assert!(new <= 240, "sweep {sweep}: {new}");
    }

    assert_eq!(launched.iter().sum::<usize>(), 1_000, "{launched:?}");
    assert_eq!(cloud.local.instances().len(), 1_000);
    assert_eq!(scheduler.sweep(&CancellationToken::new()).await.unwrap(), [], "all have a node");
}

/// Throttled or conflicting transactions do not stop a cancellation, and each task is counted once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_mission_is_cancelled_in_batches_and_counted_once() {
    let cloud = TestCloud::new().await;
    let names: Vec<String> = (0..230).map(|n| format!("t{n}")).collect();
    cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let faults = Faults::new();
    faults.add(Dynamodb, "TransactWriteItems", When::Nth(2), Fault::FailAfter);
    faults.add(Dynamodb, "TransactWriteItems", When::Nth(5), Fault::Status(400, "ThrottlingException"));

    let cancelled = cloud.scheduler(&faults).cancel(&mission_id("M"), 30 * SECOND).await.unwrap();

    assert_eq!((cancelled.ended, cancelled.running), (230, 0));
    assert!(faults.count(Dynamodb, "TransactWriteItems") < 30, "in batches");
    let tally = cloud.tally("M").await;
    assert_eq!((tally.failed, tally.seq, cloud.local.published().len()), (230, 230, 1));
}

/// A cancellation ends the mission's instances, but not the one that announces its end: a second one would announce it
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_does_not_terminate_the_publisher() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Sns, "Publish", When::Nth(1));
    let node = cloud.ours("abc", "M");
    let publisher = node.instance.clone();
    drop(node);
    let mut running = JoinSet::new();
    running.spawn(cloud.node_on(publisher.clone(), faults).run());
    gate.arrived(1).await;
    let idle = cloud.ours("abc", "M").instance;

    let cancelled = cloud.scheduler(&Faults::new()).cancel(&mission_id("M"), SECOND).await.unwrap();

    assert_eq!(cancelled.instances, [idle]);
    assert!(!cloud.has_ended(&publisher) && cloud.local.published().is_empty());
    gate.open();
    running.join_all().await.pop().unwrap().outcome.unwrap();
    assert_eq!(cloud.local.published().len(), 1);
    assert!(cloud.has_ended(&publisher));
}

/// A submission has made the mission's row, and died before the tasks' rows; then the mission is cancelled.
#[tokio::test]
async fn a_cancelled_mission_that_lacks_tasks_ends_with_those_that_it_has() {
    let cloud = TestCloud::new().await;
    for (mission, tasks) in [("by-cancel", &["abc", "def"][..]), ("by-sweep", &["ghi"][..])] {
        cloud.mission(mission, tasks).await;
        cloud.set_mission_number(mission, "transNumber", 9).await;
    }
    let scheduler = cloud.scheduler(&Faults::new());

    scheduler.cancel(&mission_id("by-cancel"), 10 * SECOND).await.unwrap();
    // The command dies at once, and a sweep goes on.
    let now = lighthpc::clock::now_rfc3339();
    cloud.backend.ledger.cancel_mission(&mission_id("by-sweep"), &now).await.unwrap();
    for _ in 0..2 {
        scheduler.sweep(&CancellationToken::new()).await.unwrap();
    }

    for (mission, tasks) in [("by-cancel", 2), ("by-sweep", 1)] {
        let row = cloud.mission_row(mission).await;
        assert_eq!((row.trans_number, row.notified), (Some(tasks), Notified::Yes), "{mission}");
        assert_eq!(cloud.tally(mission).await.failed, tasks, "{mission}");
    }
}

/// A row that somebody made by hand is in no index, and fails with the others.
#[tokio::test]
async fn a_cancelled_mission_ends_tasks_that_no_index_lists() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    cloud.set_mission_number("M", "transNumber", 9).await;
    for name in ["openIn", "openAs"] {
        cloud.remove_attribute("def", name).await;
    }

    cloud.scheduler(&Faults::new()).cancel(&mission_id("M"), 10 * SECOND).await.unwrap();

    let row = cloud.mission_row("M").await;
    assert_eq!((row.trans_number, row.notified), (Some(2), Notified::Yes));
    assert_eq!((cloud.task("def").await.verdict, cloud.tally("M").await.failed), (Some(Verdict::Cancelled), 2));
}

/// A row that cannot be understood, or a task that runs, keeps a cancelled mission open, and its number as it is. Sweeps
/// scan for it during an hour only.
#[tokio::test]
async fn a_cancelled_mission_with_an_odd_row_keeps_its_number_and_is_not_scanned_for_ever() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    cloud.set_mission_number("M", "transNumber", 9).await;
    cloud.set_attribute("def", "state", "parked").await;

    cloud.scheduler(&Faults::new()).cancel(&mission_id("M"), 10 * SECOND).await.unwrap();
    let row = cloud.mission_row("M").await;
    assert_eq!((row.trans_number, row.notified), (Some(9), Notified::No));
    assert_eq!(cloud.tally("M").await.failed, 1);

    // The sweep itself scans the table of missions once.
    for (cancelled_at, scans) in [(lighthpc::clock::now_rfc3339(), 1), ("2026-01-01T00:00:00Z".to_owned(), 0)] {
        cloud.set_mission_attribute("M", "cancelledAt", &cancelled_at).await;
        let faults = Faults::new();
        cloud.scheduler(&faults).sweep(&CancellationToken::new()).await.unwrap();
        assert_eq!(faults.count(Dynamodb, "Scan"), 1 + scans, "{cancelled_at}");
    }
}
