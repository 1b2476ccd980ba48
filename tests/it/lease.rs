//! Leases: taken over only when their holder is gone, given up in time, taken up again by the same instance.

use std::time::{Duration, Instant};

use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, Ec2};
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, line_of, until};

const SECOND: Duration = Duration::from_secs(1);

/// A workload that says that it runs, waits for a signal of the test, and answers.
fn waiting(cloud: &TestCloud) -> (String, std::path::PathBuf, std::path::PathBuf) {
    let (began, go) = (cloud.dir.path().join("began"), cloud.dir.path().join("go"));
    let line = format!(
        r#"echo $$ >> '{}'; while [ ! -e '{}' ]; do sleep 0.05; done; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#,
        began.display(),
        go.display()
    );
    (line, began, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_leaves_when_the_holder_beats() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (line, began, go) = waiting(&cloud);
    let mut holder = JoinSet::new();
    holder.spawn(cloud.node("abc", "M").shell(&line).lease(6 * SECOND, SECOND / 4).run());
    until("the workload's start", async || began.exists()).await;

    let duplicate = cloud.node("abc", "M").lease(6 * SECOND, SECOND / 4);
    let instance = duplicate.instance.clone();
    let life = duplicate.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::HeldByOther(_))), "{life:?}");
    assert!(cloud.has_ended(&instance));
    std::fs::write(go, "").unwrap();
    holder.join_all().await.pop().unwrap().outcome.unwrap();
    cloud.assert_done("abc", "M", "by the holder").await;
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_holder_is_replaced_after_a_whole_lease_and_stops_itself_before() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (line, began, _go) = waiting(&cloud);
    // The holder's heartbeats are lost; EC2 says that it runs.
    let faults = Faults::new();
    faults.add(Dynamodb, "UpdateItem", When::After(1), Fault::FailBefore);
    let mut holder = JoinSet::new();
    holder.spawn(cloud.node_with("abc", "M", faults).shell(&line).lease(3 * SECOND, SECOND / 2).run());
    let pid: u32 = line_of(&began).await.parse().unwrap();

    let started = Instant::now();
    cloud.node("abc", "M").lease(3 * SECOND, SECOND / 2).run().await.outcome.unwrap();

    assert!(started.elapsed() >= 3 * SECOND, "taken over after {:?}", started.elapsed());
    let life = holder.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Err(NodeError::LeaseLost { .. })), "{life:?}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the old workload still runs");
    cloud.assert_done("abc", "M", "by the second").await;
    assert_eq!(cloud.task("abc").await.attempt.0, 2);
    assert_eq!(cloud.task("abc").await.history[0].end.verdict, Verdict::Lost);
}

#[tokio::test]
async fn a_holder_whose_instance_is_gone_is_replaced_at_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let first = cloud.node_with("abc", "M", faults);
    let instance = first.instance.clone();
    first.die_at(&gate).await;
    cloud.local.reclaim_instance(&instance);

    let started = Instant::now();
    cloud.node("abc", "M").run().await.outcome.unwrap();

    assert!(started.elapsed() < 30 * SECOND, "a lease of 90 s was waited for");
    cloud.assert_done("abc", "M", "by the second").await;
}

#[tokio::test]
async fn the_same_instance_takes_its_task_up_again_after_a_restart() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let first = cloud.node_with("abc", "M", faults);
    let instance = first.instance.clone();
    first.die_at(&gate).await;

    let faults = Faults::new();
    cloud.node_on(instance, faults.clone()).run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "by the same instance").await;
    assert_eq!(faults.count(Ec2, "DescribeInstances"), 0, "it asked whether it is gone itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_task_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (line, began, go) = waiting(&cloud);
    let node = cloud.node("abc", "M").shell(&line);
    let (stopping, instance) = (node.stopping.clone(), node.instance.clone());
    let mut running = JoinSet::new();
    running.spawn(node.run());
    until("the workload's start", async || began.exists()).await;

    stopping.drain.cancel();
    let life = running.join_all().await.pop().unwrap();

    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    assert!(cloud.has_ended(&instance));
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.interruptions), (State::Pending, Some(Verdict::Cancelled), 1));
    std::fs::write(go, "").unwrap();
    cloud.node("abc", "M").shell(&line).run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "by the next").await;
}

/// A task that takes its machine down each time: after the allowed interruptions it is failed, counted, and announced.
#[tokio::test]
async fn a_task_that_ends_its_machines_is_failed_in_the_end() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let doomed = || {
        let faults = Faults::new();
        let gate = faults.hold_before(local_cloud::Service::S3, "PutObject", When::Nth(1));
        let mut node = cloud.node_with("abc", "M", faults);
        node.settings.limits.max_interruptions = 2;
        (node, gate)
    };
    for (node, gate) in [doomed(), doomed(), doomed()] {
        let instance = node.instance.clone();
        node.die_at(&gate).await;
        cloud.local.reclaim_instance(&instance);
    }

    cloud.set_attribute("abc", "timeCost", "47").await;
    let (last, _) = doomed();
    let life = last.run().await;

    assert!(matches!(life.outcome, Err(NodeError::Exhausted { interruptions: 3, .. })), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::Lost), 4));
    assert_eq!(row.time_cost_s(), 47, "the time of earlier attempts is kept");
    assert_eq!(cloud.tally("M").await.failed, 1);
    assert_eq!(cloud.local.published().len(), 1);
}
