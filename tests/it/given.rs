//! A node whose tasks the caller gives, as `run --local` does.

use lighthpc::worker::{GivenTask, NodeError, Outcome, Report};
use local_cloud::Service::Dynamodb;
use local_cloud::{Faults, When};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::test_cloud::{PATIENCE, TestCloud, TestNode, src};

type Ended = oneshot::Receiver<Result<Outcome, NodeError>>;

fn node_of(cloud: &TestCloud, faults: Faults) -> TestNode {
    let instance = cloud.local.launch(&[("missionID", "M")]);
    cloud.node_on(instance, faults).shell(r#"rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#)
}

fn given(name: &str) -> (GivenTask, Ended) {
    let (ended, outcome) = oneshot::channel();
    (GivenTask { src: src(name), report: watch::Sender::new(Report::default()), ended }, outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_given_are_done_and_the_mission_is_announced_once() {
    let cloud = TestCloud::new().await;
    let names: Vec<String> = (0..12).map(|n| format!("task-{n}")).collect();
    cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let faults = Faults::new();
    let (give, tasks) = mpsc::channel(3);
    let mut node = JoinSet::new();
    node.spawn(node_of(&cloud, faults.clone()).run_given(tasks));

    let mut outcomes = Vec::new();
    for name in &names {
        let (task, ended) = given(name);
        give.send(task).await.unwrap();
        outcomes.push(ended);
    }
    drop(give);
    for ended in outcomes {
        assert!(matches!(ended.await.unwrap(), Ok(Outcome::Committed { .. })));
    }
    let life = node.join_next().await.unwrap().unwrap();

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 12, other: 0 })), "{life:?}");
    assert_eq!((cloud.tally("M").await.ok, cloud.local.published().len()), (12, 1));
    assert!(cloud.local.instances().iter().all(|i| i.state == "terminated"));
    // The tally is read for many tasks together.
    let reads = faults.count(Dynamodb, "Query") + faults.count(Dynamodb, "GetItem");
    assert!(reads < names.len(), "{reads} reads");
}

/// The process that committed the last task was killed before it looked at the mission's end.
#[tokio::test]
async fn a_complete_mission_is_announced_by_a_node_that_gets_no_task() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a"]).await;
    let faults = Faults::new();
    let gate = faults.hold_after(Dynamodb, "TransactWriteItems", When::Nth(1));
    let first = node_of(&cloud, faults);
    let (give, tasks) = mpsc::channel(1);
    let (task, _ended) = given("a");
    give.send(task).await.unwrap();
    drop(give);
    let mut running = JoinSet::new();
    running.spawn(first.run_given(tasks));
    gate.arrived(1).await;
    running.shutdown().await;
    assert!(cloud.local.published().is_empty());

    let (give, tasks) = mpsc::channel(1);
    drop(give);
    let life = node_of(&cloud, Faults::new()).run_given(tasks).await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 0, other: 0 })), "{life:?}");
    assert_eq!((cloud.tally("M").await.ok, cloud.local.published().len()), (1, 1));
}

#[tokio::test]
async fn a_node_that_ends_early_answers_nobody_and_takes_no_more() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a"]).await;
    let node = node_of(&cloud, Faults::new());
    node.stopping.drain.cancel();
    let (give, tasks) = mpsc::channel(1);
    let (task, ended) = given("a");
    give.send(task).await.unwrap();

    let life = node.run_given(tasks).await;

    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    assert!(ended.await.is_err());
    assert!(tokio::time::timeout(PATIENCE, give.closed()).await.is_ok());
    assert_eq!(cloud.tally("M").await.ended(), 0);
}
