//! A node that is asked to stop, at any moment, with services away or silent: it ends in time and in order.

use std::time::{Duration, Instant};

use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{Life, NodeError, Outcome};
use lighthpc::workload::Left;
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;

use crate::test_cloud::{PATIENCE, TestCloud, TestNode, src, until};

/// What a node meets, by name: the cloud, and the node with its faults.
const SCENES: [&str; 6] = ["pulls", "has one task", "finds crashes", "takes over", "watches", "finds its task ended"];

async fn scene(name: &str, faults: &Faults) -> (TestCloud, TestNode) {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let before = || async {
        let gate_faults = Faults::new();
        let gate = gate_faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
        let holder = cloud.node_with("abc", "M", gate_faults);
        let instance = holder.instance.clone();
        holder.die_at(&gate).await;
        instance
    };
    let node = match name {
        "pulls" => cloud.node_on(cloud.local.launch(&[("missionID", "M")]), faults.clone()),
        "has one task" => cloud.node_with("abc", "M", faults.clone()),
        "finds crashes" => {
            let instance = before().await;
            // The third crash of a task that was alone: its mission is read, and it is failed.
            cloud.set_value("abc", "crashes", aws_sdk_dynamodb::types::AttributeValue::N("2".to_owned())).await;
            let mut node = cloud.node_on(instance, faults.clone());
            node.settings.left = vec![Left::without_folder(src("abc"), cloud.task("abc").await.attempt, true)];
            node
        }
        "takes over" => {
            cloud.local.reclaim_instance(&before().await);
            cloud.node_with("abc", "M", faults.clone())
        }
        "watches" => {
            before().await;
            cloud.node_with("abc", "M", faults.clone())
        }
        _ => {
            let gone = Faults::new();
            let gate = gone.hold_after(Dynamodb, "TransactWriteItems", When::Nth(1));
            cloud.node_with("abc", "M", gone).die_at(&gate).await;
            cloud.node_with("abc", "M", faults.clone())
        }
    };
    (cloud, node)
}

/// The tables are away from the n-th call on, for longer than anyone waits, and at that moment the node is asked to stop:
/// it does so in time, whichever call it is, and that is an error only if it holds a task that it cannot hand back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_during_an_outage_is_an_orderly_end_at_every_call() {
    let mut running = JoinSet::new();
    for name in SCENES {
        for n in 1..=9 {
            running.spawn(async move { (name, n, outage_at(name, n).await) });
        }
    }
    let mut reached = std::collections::BTreeMap::<_, u32>::new();
    while let Some(ended) = running.join_next().await {
        let (name, n, is_reached) = ended.unwrap();
        let last = reached.entry(name).or_default();
        *last = (*last).max(if is_reached { n } else { 0 });
    }
    // Each of them makes that many calls at least, so the calls of its own were among them.
    for name in SCENES {
        assert!(reached[name] >= 3, "{reached:?}");
    }
}

/// Returns whether there was such a call.
async fn outage_at(name: &str, n: u32) -> bool {
    let faults = Faults::new();
    let (cloud, mut node) = scene(name, &faults).await;
    let attempt_before = cloud.task("abc").await.attempt;
    node.settings.max_idle = Duration::from_hours(1);
    node.settings.lease = Duration::from_hours(1);
    let (stopping, drained) = (node.stopping.clone(), node.stopping.drain.clone());
    faults.before(Dynamodb, "*", n, move || stopping.drain_within(Duration::from_secs(10)));
    faults.add(Dynamodb, "*", When::After(n - 1), Fault::FailBefore);
    let instance = node.instance.clone();
    let (started, running) = (Instant::now(), node.run());
    // Whoever watches a lease of an hour makes few calls: it is asked to stop all the same.
    let stopping = drained.clone();
    let life = tokio::select! {
        life = running => life,
        () = async { tokio::time::sleep(PATIENCE / 6).await; stopping.cancel(); std::future::pending().await } => unreachable!(),
    };
    let what = format!("{name}, call {n}, {:?}: {life:?}", started.elapsed());
    assert!(cloud.has_ended(&instance), "{what}");
    let row = cloud.task("abc").await;
    let holds = row.state == State::Running && row.attempt > attempt_before;
    let is_in_order = match life.outcome {
        Err(NodeError::DrainCutShort | NodeError::Cloud { .. }) => holds,
        outcome => outcome.is_ok() && !holds,
    };
    assert!(is_in_order, "{what}");
    drained.is_cancelled() && faults.count(Dynamodb, "*") >= n as usize
}

/// Runs a node until its workload has begun, and tells it to end within a time.
async fn drained_within(cloud: &TestCloud, node: TestNode, limit: Duration) -> (Life, Duration) {
    let (stopping, mut running) = (node.stopping.clone(), JoinSet::new());
    running.spawn(node.run());
    let began = cloud.dir.path().join("began");
    until("the workload begins", async || began.exists()).await;
    let asked = Instant::now();
    stopping.drain_within(limit);
    (running.join_next().await.unwrap().unwrap(), asked.elapsed())
}

fn line(cloud: &TestCloud, before: &str, after: &str) -> String {
    format!("echo words; {before}; : > '{}'; {after}", cloud.dir.path().join("began").display())
}

const FOREVER: &str = "while :; do sleep 0.05; done";

/// Another node can go on as soon as the row says so: the log, which S3 may take a minute for, comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_row_of_a_drained_attempt_is_written_before_its_log() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(S3, "PutObject", When::Always);
    let node = cloud.node_with("abc", "M", faults).shell(&line(&cloud, ":", FOREVER));
    let (stopping, mut running) = (node.stopping.clone(), JoinSet::new());
    running.spawn(node.run());
    until("the workload begins", async || cloud.dir.path().join("began").exists()).await;
    stopping.drain.cancel();
    gate.arrived(1).await;
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::Cancelled)));
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    // It names the log that is there now.
    assert_eq!(row.history[0].log.as_deref(), Some("s3://results/logs/abc.1.log"));
    assert!(cloud.result("logs/abc.1.log").unwrap().contains("words"));
}

/// Whatever hangs, the row has its time, and the machine ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_in_time_whatever_hangs() {
    let limit = Duration::from_secs(6);
    let save = r#"echo x > "$LIGHTHPC_CHECKPOINT_DIR/x""#;
    let result = r#"echo x > "$LIGHTHPC_OUTPUT""#;
    let stubborn = "trap '' TERM";
    for (what, service, operation, before, after, is_handed_back) in [
        ("the log", S3, "PutObject", ":", FOREVER, true),
        ("the checkpoint", S3, "PutObject", save, FOREVER, true),
        ("the result", S3, "PutObject", result, ":", true),
        ("the workload", S3, "Nothing", stubborn, FOREVER, true),
        ("the row", Dynamodb, "UpdateItem", ":", FOREVER, false),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        // The claim is the first update.
        let when = if service == Dynamodb { When::After(1) } else { When::Always };
        faults.add(service, operation, when, Fault::Hang);
        let mut node = cloud.node_with("abc", "M", faults).shell(&line(&cloud, before, after));
        node.settings.bounds.grace = Duration::from_hours(1);
        let instance = node.instance.clone();

        let (life, took) = drained_within(&cloud, node, limit).await;

        assert!(took < limit + Duration::from_secs(10), "{what}: {took:?}");
        assert!(cloud.has_ended(&instance), "{what}");
        let row = cloud.task("abc").await;
        if is_handed_back {
            assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{what}: {life:?}");
            assert_eq!((row.state, row.interruptions), (State::Pending, 1), "{what}");
        } else {
            assert!(matches!(life.outcome, Err(NodeError::DrainCutShort)), "{what}: {life:?}");
            assert_eq!(row.state, State::Running, "{what}");
        }
    }
}
