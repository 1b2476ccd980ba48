//! Rows that another version, another program, or a person wrote: understood or reported, never a reason to loop or to stop.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::State;
use lighthpc::scheduler::{Finding, What};
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::Dynamodb;
use local_cloud::{Faults, When};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, mission_id, text, until};

fn number(value: &str) -> AttributeValue {
    AttributeValue::N(value.to_owned())
}

async fn sweep(cloud: &TestCloud) -> Vec<Finding> {
    cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap()
}

fn of(found: &[Finding], what: What) -> Vec<&str> {
    found.iter().filter(|finding| finding.what == what).map(|finding| finding.subject.as_str()).collect()
}

/// An ended row stands in the index as one that waits: whoever meets it takes it out, and nobody goes round in circles.
#[tokio::test]
async fn a_leftover_of_the_index_stops_neither_a_node_nor_a_sweep() {
    for (state, open_as) in
        [("done", "pending#2026"), ("failed", "pending#2026"), ("failed", "running#2026"), ("done", "running#2026")]
    {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "old"]).await;
        cloud.set_attribute("old", "state", state).await;
        cloud.set_attribute("old", "openAs", open_as).await;
        let faults = Faults::new();
        let node = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), faults.clone());

        let life = node.run().await;

        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, .. })), "{state} {open_as}: {life:?}");
        let calls = faults.count(Dynamodb, "*");
        assert!(calls < 40, "{state} {open_as}: {calls} calls");
        sweep(&cloud).await;
        let row = cloud.row_of("old").await;
        match state {
            // Failed tasks are found by the index.
            "failed" => assert!(row["openAs"].as_s().unwrap().starts_with("failed#"), "{state} {open_as}: {row:?}"),
            _ => assert!(
                !row.contains_key("openIn") && !row.contains_key("openAs"),
                "{state} {open_as}: it is still in the index"
            ),
        }
        assert_eq!(row["state"], text(state));
    }
}

/// What runs is in the index as waiting, and the other way round: the sweep corrects it.
#[tokio::test]
async fn an_open_row_in_a_wrong_place_of_the_index_is_moved() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.set_attribute("abc", "openAs", "running#2026-01-01T00:00:00Z").await;
    assert_eq!(of(&sweep(&cloud).await, What::Reindexed), ["abc"]);
    assert!(cloud.attribute("abc", "openAs").await.starts_with("pending#"));
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "after the index was corrected").await;
}

/// `running` without `beat`, or with one that is no number: it is taken over, put back, and a holder can renew it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_row_with_an_odd_beat_is_taken_over_and_put_back() {
    let odd = [
        None,
        Some(text("5")),
        Some(text("five")),
        Some(AttributeValue::L(vec![])),
        Some(number("-1")),
        Some(number("2.5")),
    ];
    for beat in odd {
        for by_sweep in [false, true] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["abc"]).await;
            let faults = Faults::new();
            let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
            let silent = cloud.ours("abc", "M").instance;
            cloud.node_on(silent, faults).die_at(&gate).await;
            match &beat {
                Some(value) => cloud.set_value("abc", "beat", value.clone()).await,
                None => cloud.remove_attribute("abc", "beat").await,
            }
            if by_sweep {
                assert_eq!(of(&sweep(&cloud).await, What::PutBack), ["abc"], "{beat:?}");
                assert_eq!(cloud.task("abc").await.state, State::Pending);
            }
            let second = Duration::from_secs(1);
            cloud.node("abc", "M").lease(3 * second / 2, second / 4).run().await.outcome.unwrap();
            cloud.assert_done("abc", "M", &format!("{beat:?}")).await;
            assert_eq!((cloud.task("abc").await.attempt.0, cloud.task("abc").await.interruptions), (2, 1), "{beat:?}");
        }
    }
}

/// Somebody writes into `beat` while the workload runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_goes_on_when_its_beat_is_overwritten() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (began, go) = (cloud.dir.path().join("began"), cloud.dir.path().join("go"));
    let line = format!(
        r#"echo x > '{}'; while [ ! -e '{}' ]; do sleep 0.05; done; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#,
        began.display(),
        go.display()
    );
    let second = Duration::from_secs(1);
    let mut running = JoinSet::new();
    running.spawn(cloud.node("abc", "M").shell(&line).lease(6 * second, second / 5).run());
    until("the workload begins", async || began.exists()).await;
    cloud.set_value("abc", "beat", text("forty")).await;
    until("it renews the lease", async || cloud.task("abc").await.beat >= 2).await;
    std::fs::write(go, "").unwrap();
    running.join_next().await.unwrap().unwrap().outcome.unwrap();
    cloud.assert_done("abc", "M", "with an overwritten beat").await;
}

/// `attempt` and `state` in other forms are understood, and the fence holds from then on.
#[tokio::test]
async fn a_row_in_other_forms_is_claimed_as_it_is() {
    for (name, value, attempt) in [
        ("attempt", text("3"), 4),
        ("attempt", text(" 7.0 "), 8),
        ("attempt", number("2.5"), 5),
        ("state", text("Pending"), 1),
        ("state", text(" pending\n"), 1),
        ("interruptions", text("two"), 1),
        ("interruptions", text("2"), 1),
        ("appFailures", AttributeValue::L(vec![]), 1),
        ("timeCost", text("12.5"), 1),
        ("history", text("none"), 1),
        ("launchTries", text("1"), 1),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        cloud.set_value("abc", name, value.clone()).await;
        let scheduler = cloud.scheduler(&Faults::new());
        scheduler.sweep(&CancellationToken::new()).await.unwrap();
        assert_eq!(cloud.local.instances().len(), 1, "{name} {value:?}: a node is launched");

        cloud.node_on(cloud.local.instances()[0].id.clone(), Faults::new()).run().await.outcome.unwrap();

        cloud.assert_done("abc", "M", &format!("{name} {value:?}")).await;
        assert_eq!(cloud.task("abc").await.attempt.0, attempt, "{name} {value:?}");
    }
}

/// What cannot be understood is reported by every sweep, and stops nobody: not the node of its mission, not a node of its own.
#[tokio::test]
async fn a_row_that_cannot_be_understood_is_reported_and_left_alone() {
    for (name, value) in [
        ("state", text("paused")),
        ("state", number("1")),
        ("state", AttributeValue::Bool(true)),
        ("attempt", text("first")),
        ("attempt", number("1e38")),
        ("attempt", AttributeValue::L(vec![text("1")])),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "odd"]).await;
        cloud.set_value("odd", name, value.clone()).await;
        let before = cloud.row_of("odd").await;
        let faults = Faults::new();
        let node = cloud.node_on(cloud.local.launch(&[("missionID", "M"), ("lighthpc", "tblTrans2")]), faults.clone());

        let life = node.run().await;

        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, .. })), "{name} {value:?}: {life:?}");
        assert!(faults.count(Dynamodb, "*") < 60, "{name} {value:?}: {} calls", faults.count(Dynamodb, "*"));
        let life = cloud.node("odd", "M").run().await;
        assert!(matches!(life.outcome, Err(NodeError::OddRow { .. })), "{name} {value:?}: {life:?}");
        for _ in 0..2 {
            let found = sweep(&cloud).await;
            assert_eq!(of(&found, What::Failure), ["odd"], "{name} {value:?}: {found:?}");
            assert!(of(&found, What::Launched).is_empty(), "{name} {value:?}: {found:?}");
        }
        assert_eq!(cloud.row_of("odd").await, before, "{name} {value:?}");
    }
}

/// A mission with nodes of its own has nothing but odd rows: no node is launched for them again and again.
#[tokio::test]
async fn no_node_is_launched_for_rows_that_nobody_can_claim() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["odd", "old"]).await;
    cloud.set_mission_number("M", "nodes", 2).await;
    cloud.set_attribute("odd", "state", "paused").await;
    cloud.set_attribute("old", "state", "done").await;
    for _ in 0..2 {
        let found = sweep(&cloud).await;
        assert_eq!(of(&found, What::Failure), ["odd"], "{found:?}");
    }
    assert!(cloud.local.instances().is_empty());
}

/// The drain is heard however the rows look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_finds_only_odd_rows_hears_the_drain() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["odd"]).await;
    cloud.set_attribute("odd", "state", "paused").await;
    let node = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), Faults::new());
    node.stopping.drain.cancel();
    let started = std::time::Instant::now();
    node.run().await.outcome.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

/// The mission's own numbers in other forms: it is counted and announced all the same.
#[tokio::test]
async fn a_mission_row_in_other_forms_is_announced() {
    for (name, value) in [
        ("transNumber", text("1.0")),
        ("transNumber", text(" 1 ")),
        ("transOK", text("none")),
        ("transFailed", AttributeValue::L(vec![])),
        ("tallySeq", text("0")),
        ("opened", text("1")),
        ("opened", AttributeValue::Bool(true)),
        ("notifyEmail", number("0")),
        ("notifyEmail", text("perhaps")),
        ("notifyBeat", text("x")),
        ("rsltList", text("rsltList")),
        ("launchRound", text("1")),
        ("tallyShards", text("many")),
        ("tallyShards", number("4000000000")),
        ("manifestProgress", text("half")),
        ("closed", number("7")),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        cloud.set_mission_value("M", name, value.clone()).await;

        cloud.node("abc", "M").run().await.outcome.unwrap();
        sweep(&cloud).await;

        let row = cloud.mission_row("M").await;
        assert_eq!((&row.notified, cloud.local.published().len()), (&Notified::Yes, 1), "{name} {value:?}");
        // And is opened, and announced, again.
        let failed = cloud.task("abc").await;
        assert_eq!(failed.state, State::Done);
        assert!(cloud.backend.ledger.resize_mission(&row, 2).await.unwrap(), "{name} {value:?}");
        cloud.input("def", b"def").await;
        cloud.row("def", &mission_id("M")).await;
        cloud.node("def", "M").run().await.outcome.unwrap();
        assert_eq!(cloud.local.published().len(), 2, "{name} {value:?}");
    }
}

#[tokio::test]
async fn a_number_that_cannot_be_read_is_reported() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.set_mission_value("M", "transNumber", text("a lot")).await;
    cloud.node("abc", "M").run().await.outcome.unwrap();
    let found = sweep(&cloud).await;
    assert_eq!(of(&found, What::Failure), ["M"], "{found:?}");
    assert!(found[0].reason.contains("transNumber"), "{found:?}");
}

/// A tally item holds text: the commit makes a number of it, and counts.
#[tokio::test]
async fn a_tally_item_that_holds_text_is_repaired_by_the_commit() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "bad"]).await;
    for (name, value) in [("transOK", "0"), ("transFailed", "none"), ("timeCost", "3.0"), ("tallySeq", "")] {
        cloud.set_mission_value("M#tally#0", name, text(value)).await;
    }
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.node("bad", "M").shell("exit 3").run().await.outcome.unwrap_err();
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed, tally.seq, cloud.local.published().len()), (1, 1, 2, 1));
}

const NAMES: &[&str] = &[
    "state",
    "attempt",
    "beat",
    "claimToken",
    "execInstanceID",
    "strIndiProgress",
    "timeCost",
    "verdict",
    "exitCode",
    "checkpoint",
    "appFailures",
    "interruptions",
    "history",
    "launchAtAttempt",
    "launchTries",
    "launchAt",
    "launchInstanceID",
    "launchesLost",
    "launchError",
    "launchRequest",
    "launchAfter",
    "cancelled",
    "missionID",
    "bucketname",
    "rsltFilename",
    "resultETag",
    "resultBytes",
    "numlog",
];

/// A row near `DynamoDB`'s 400 KB: the task is ended as long as there is room for its result, if need be without its
/// history.
#[tokio::test]
async fn a_row_without_room_for_its_history_is_ended() {
    let mut without_history = 0;
    for room in (460..1500).step_by(20) {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let padding = "x".repeat(409_600 - room);
        cloud.set_attribute("abc", "remark", &padding).await;

        let outcome = cloud.node("abc", "M").run().await.outcome;

        let row = cloud.row_of("abc").await;
        assert_eq!(row["remark"], text(&padding), "{room}");
        outcome.unwrap();
        cloud.assert_done("abc", "M", &format!("a row with room for {room} bytes")).await;
        without_history += u32::from(!row.contains_key("history"));
    }
    assert!(without_history > 0, "no row was too full for its history");
}

/// DynamoDB allows a key of 2,048 bytes, S3 one of 1,024. Such a row of another program's ends pages of the table.
#[tokio::test]
async fn a_key_that_is_longer_than_s3_allows_stops_no_announcement() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    for number in 0..8 {
        let key = format!("{number}{}", "k".repeat(1_200));
        cloud.set_value(&key, "remark", text(&"x".repeat(300_000))).await;
    }
    let indexed = format!("9{}", "k".repeat(1_200));
    for (name, value) in [("openIn", "M#0"), ("openAs", "pending#2026"), ("missionID", "M")] {
        cloud.set_value(&indexed, name, text(value)).await;
    }

    cloud.node("abc", "M").run().await.outcome.unwrap();

    assert_eq!((cloud.mission_row("M").await.notified, cloud.local.published().len()), (Notified::Yes, 1));
    assert_eq!(of(&sweep(&cloud).await, What::Failure), [indexed.as_str()], "its mission waits for it in vain");
}

/// `openAs` of another form: no page of the index shows the row, and a sweep, or a cancellation, puts it where it belongs.
#[tokio::test]
async fn an_open_row_that_no_page_of_the_index_shows_is_found() {
    for open_as in [
        "pending",
        "Pending#2026",
        "running",
        "running$",
        "done#2026",
        "failed",
        "failed$",
        "#",
        "xx",
        "pending\"",
        "q",
    ] {
        for is_cancelled in [false, true] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["abc"]).await;
            cloud.set_attribute("abc", "openAs", open_as).await;
            if is_cancelled {
                let patience = Duration::from_millis(200);
                let cancelled = cloud.scheduler(&Faults::new()).cancel(&mission_id("M"), patience).await.unwrap();
                assert_eq!((cancelled.ended, cloud.task("abc").await.state), (1, State::Failed), "{open_as}");
            } else {
                assert_eq!(of(&sweep(&cloud).await, What::Reindexed), ["abc"], "{open_as}");
                let node = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), Faults::new());
                node.run().await.outcome.unwrap();
                cloud.assert_done("abc", "M", open_as).await;
            }
        }
    }
}

/// A `missionID` that is no mission's id: a task with one would be done, and counted nowhere.
#[tokio::test]
async fn a_task_whose_mission_cannot_be_read_is_reported_and_not_run() {
    for value in [text(""), number("1"), AttributeValue::M(std::collections::HashMap::new()), text(&"m".repeat(1_901))]
    {
        let is_readable = value == number("1");
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "odd"]).await;
        cloud.set_value("odd", "missionID", value.clone()).await;

        let node = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), Faults::new());
        let life = node.run().await;

        assert!(matches!(life.outcome, Ok(Outcome::Served { .. })), "{value:?}: {life:?}");
        if !is_readable {
            assert_eq!(of(&sweep(&cloud).await, What::Failure), ["odd"], "{value:?}");
            assert_eq!(cloud.task("odd").await.state, State::Pending, "{value:?}");
            cloud.set_attribute("odd", "missionID", "M").await;
            cloud.node("odd", "M").run().await.outcome.unwrap();
            assert_eq!((cloud.task("odd").await.state, cloud.tally("M").await.ok), (State::Done, 2), "{value:?}");
        }
    }
}

/// The index has a row in the partition of a mission that is cancelled; the row names another mission.
#[tokio::test]
async fn a_cancellation_leaves_rows_of_other_missions_alone() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.mission("N", &["other"]).await;
    cloud.set_attribute("other", "openIn", "M#0").await;
    let scheduler = cloud.scheduler(&Faults::new());

    let cancelled = scheduler.cancel(&mission_id("M"), Duration::from_millis(50)).await.unwrap();
    sweep(&cloud).await;

    assert_eq!((cancelled.ended, cloud.task("other").await.state), (1, State::Pending));
    assert_eq!((cloud.tally("M").await.failed, cloud.tally("N").await.failed), (1, 0));
}

/// Whatever stands in the cursor's item, sweeps go round.
#[tokio::test]
async fn an_odd_cursor_stops_no_sweep() {
    let odd: [&[(&str, AttributeValue)]; 4] = [
        &[("openAs", text("whatever")), ("srcFilename", text("abc")), ("moved", text("5"))],
        &[("openAs", number("1")), ("srcFilename", text("")), ("moved", number("-3"))],
        &[("timePushed", text("M")), ("shard", text("x")), ("moved", AttributeValue::L(vec![]))],
        &[("openAs", text("running#2026")), ("srcFilename", text("abc")), ("moved", number("7"))],
    ];
    for item in odd {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        for (name, value) in item {
            cloud.set_mission_value("~sweep", name, value.clone()).await;
        }

        let found = sweep(&cloud).await;

        assert_eq!(of(&found, What::Failure), Vec::<&str>::new(), "{item:?}: {found:?}");
        assert_eq!(of(&found, What::Launched).len(), 1, "{item:?}: {found:?}");
    }
}

/// As above, of a task that is put back and then failed: each write goes on without the history.
#[tokio::test]
async fn a_row_without_room_for_its_history_is_put_back_and_failed() {
    let mut without_history = [0, 0];
    for room in (300..520).step_by(10) {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        cloud.set_attribute("abc", "remark", &"x".repeat(409_600 - room)).await;
        let faults = Faults::new();
        let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
        let gone = cloud.ours("abc", "M").instance;
        cloud.node_on(gone.clone(), faults.clone()).die_at(&gate).await;
        if room % 20 == 0 {
            cloud.local.reclaim_instance(&gone);
            assert_eq!(of(&sweep(&cloud).await, What::PutBack), ["abc"], "{room}");
            without_history[0] += u32::from(!cloud.row_of("abc").await.contains_key("history"));
            continue;
        }
        let scheduler = cloud.scheduler(&Faults::new());
        scheduler.cancel(&mission_id("M"), Duration::from_millis(1)).await.unwrap();
        cloud.local.reclaim_instance(&gone);
        let found = sweep(&cloud).await;
        assert_eq!(of(&found, What::Failed), ["abc"], "{room}: {found:?}");
        without_history[1] += u32::from(!cloud.row_of("abc").await.contains_key("history"));
    }
    assert!(without_history.iter().all(|&rows| rows > 0), "no row was too full for its history: {without_history:?}");
}

fn value() -> impl Strategy<Value = AttributeValue> {
    let word = prop_oneof![
        Just("pending"),
        Just("running"),
        Just("Done"),
        Just("failed"),
        Just("x"),
        Just(" 3 "),
        Just("1e3"),
        Just("i-0123456789abcdef0"),
        Just("2026-01-01T00:00:00Z"),
        Just("M"),
        Just("100%"),
        Just("\u{1b}[31m"),
    ];
    prop_oneof![
        4 => word.prop_map(text),
        2 => (-3_i64..5).prop_map(|n| AttributeValue::N(n.to_string())),
        1 => Just(AttributeValue::N("1e38".to_owned())),
        1 => Just(AttributeValue::L(vec![text("x")])),
        1 => Just(AttributeValue::M(std::collections::HashMap::from([("attempt".to_owned(), text("1"))]))),
        1 => Just(AttributeValue::Bool(true)),
        1 => Just(AttributeValue::Null(true)),
    ]
}

/// Rows of arbitrary values beside good ones: every node and every sweep ends, with few calls, and the good ones are done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_arbitrary_values_stop_neither_nodes_nor_sweeps() {
    // Each time other rows; the rows are part of every message.
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..6 {
        let rows = proptest::collection::vec(
            proptest::collection::hash_map(proptest::sample::select(NAMES), value(), 1..8),
            5,
        );
        let rows = rows.new_tree(&mut runner).unwrap().current();
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["good-1", "odd-0", "odd-1", "odd-2", "odd-3", "odd-4", "good-2"]).await;
        for (n, row) in rows.iter().enumerate() {
            for (name, value) in row {
                cloud.set_value(&format!("odd-{n}"), name, value.clone()).await;
            }
        }
        let faults = Faults::new();
        let tags = [("missionID", "M"), ("lighthpc", "tblTrans2")];
        let node = cloud.node_on(cloud.local.launch(&tags), faults.clone());
        let life = node.run().await;
        assert!(faults.count(Dynamodb, "*") < 400, "{} calls for {rows:?}", faults.count(Dynamodb, "*"));
        assert!(matches!(life.outcome, Ok(Outcome::Served { .. })), "{life:?} for {rows:?}");
        for good in ["good-1", "good-2"] {
            assert_eq!(cloud.task(good).await.state, State::Done, "{good} beside {rows:?}");
        }
        let faults = Faults::new();
        let scheduler = cloud.scheduler(&faults);
        for _ in 0..2 {
            scheduler.sweep(&CancellationToken::new()).await.unwrap();
        }
        assert!(faults.count(Dynamodb, "*") < 400, "{} calls for {rows:?}", faults.count(Dynamodb, "*"));
        scheduler.cancel(&mission_id("M"), Duration::ZERO).await.unwrap();
        scheduler.redrive(&mission_id("M"), None, &[]).await.unwrap();
        cloud.backend.ledger.each_task(None, |_| {}).await.unwrap();
    }
}
