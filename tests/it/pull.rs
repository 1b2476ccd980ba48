//! Nodes that serve a whole mission.

use std::time::Duration;

use lighthpc::domain::ids::MissionId;
use lighthpc::domain::task::State;
use lighthpc::scheduler::{Ingested, TaskIngest, UploadedObject, What};
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{Fault, Faults, RESULT_BUCKET, When};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, TestNode, mission_id, src, until};

fn server(cloud: &TestCloud, mission: &str, slots: u16) -> TestNode {
    let instance = cloud.local.launch(&[("missionID", mission), ("lighthpc", "tblTrans2")]);
    let mut node = cloud.node_on(instance, Faults::new());
    node.settings.slots = Some(slots);
    node
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("task-{n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_nodes_do_a_whole_mission_each_task_once() {
    let cloud = TestCloud::new().await;
    let names = names(60);
    let tasks: Vec<&str> = names.iter().map(String::as_str).collect();
    cloud.mission("M", &tasks).await;
    let runs = cloud.dir.path().join("runs");
    let line =
        format!(r#"echo "$LIGHTHPC_SRC_ID" >> '{}'; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#, runs.display());
    let mut nodes = JoinSet::new();
    for _ in 0..3 {
        nodes.spawn(server(&cloud, "M", 2).shell(&line).run());
    }

    let mut done = 0;
    for life in nodes.join_all().await {
        match life.outcome.unwrap() {
            Outcome::Served { done: some, .. } => done += some,
            other => panic!("{other:?}"),
        }
    }

    assert_eq!((done, cloud.tally("M").await.ok, cloud.local.published().len()), (60, 60, 1));
    let mut ran: Vec<String> = std::fs::read_to_string(runs).unwrap().lines().map(str::to_owned).collect();
    ran.sort();
    ran.dedup();
    assert_eq!(ran.len(), 60);
    assert!(cloud.local.instances().iter().all(|i| i.state == "terminated"));
}

/// What fails is counted, and does not hold up the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_fails_does_not_stop_its_node() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["bad", "good", "none"]).await;
    std::fs::remove_file(cloud.local.object_path("source", "none")).unwrap();
    let line = r#"[ "$LIGHTHPC_SRC_ID" != bad ] || exit 3; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#;
    let life = server(&cloud, "M", 1).shell(line).run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, other: 2 })), "{life:?}");
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed), (1, 2));
}

/// What is wrong with the node is wrong for every task: it must not fail them one after another.
#[tokio::test]
async fn a_node_that_cannot_work_stops_taking_tasks() {
    let cloud = TestCloud::new().await;
    let names = names(20);
    cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut node = server(&cloud, "M", 1);
    node.settings.workload = Some(lighthpc::workload::Workload::Program(vec!["/no/such/program".to_owned()]));
    let life = node.run().await;
    assert!(matches!(life.outcome, Err(NodeError::NotStarted { .. })), "{life:?}");
    assert_eq!(cloud.tally("M").await.ended(), 1);
}

/// Tasks that come while the node works are done by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_comes_late_is_picked_up() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["first"]).await;
    let came = cloud.dir.path().join("came");
    let line = format!(
        r#"echo x >> '{0}'; while [ ! -e '{0}.go' ]; do sleep 0.02; done; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#,
        came.display()
    );
    let mut running = JoinSet::new();
    running.spawn(server(&cloud, "M", 1).shell(&line).run());
    until("the workload begins", async || came.exists()).await;
    cloud.input("late", b"late").await;
    cloud.row("late", &mission_id("M")).await;
    std::fs::write(came.with_extension("go"), "").unwrap();
    let life = running.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 2, .. })), "{life:?}");
}

/// The process dies and is started again: what it was at comes first, at once.
#[tokio::test]
async fn a_restarted_node_takes_up_what_it_was_at() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let instance = cloud.local.launch(&[("missionID", "M")]);
    let first = cloud.node_on(instance.clone(), faults);
    let work_dir = first.settings.work_dir.clone();
    first.die_at(&gate).await;

    // The dropped node's tasks end on their own; a process that has died holds no lock.
    let deadline = std::time::Instant::now() + crate::test_cloud::PATIENCE;
    let (_lock, left) = loop {
        let (lock, left) = lighthpc::workload::lock_work_dir(&work_dir, "tblTrans2").unwrap();
        if !left.is_empty() {
            break (lock, left);
        }
        assert!(std::time::Instant::now() < deadline, "the folder is never abandoned");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(left.iter().map(|left| left.src.clone()).collect::<Vec<_>>(), [Some(src("abc"))]);
    let mut second = cloud.node_on(instance, Faults::new());
    second.settings.left = left;
    let life = second.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, .. })), "{life:?}");
    cloud.assert_done("abc", "M", "after a restart").await;
    assert_eq!(cloud.task("abc").await.interruptions, 0);
}

/// A task takes four requests: its claim, its input, its result, its commit. What else a node asks, it asks once for
/// many tasks, however large the mission.
#[tokio::test]
async fn a_task_of_a_mission_takes_four_requests() {
    let cloud = TestCloud::new().await;
    let names = names(150);
    cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let faults = Faults::new();
    let instance = cloud.local.launch(&[("missionID", "M")]);
    let mut node = cloud.node_on(instance, faults.clone()).shell(r#": > "$LIGHTHPC_OUTPUT""#);
    node.settings.slots = Some(4);
    let started = std::time::Instant::now();
    node.run().await.outcome.unwrap();
    // A busy machine takes longer, and the node asks again after a time.
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert_eq!(cloud.tally("M").await.ok, 150);
    // The mission's list and report, too; and some writes of rows for the whole mission.
    let of_tasks = ["UpdateItem", "GetObject", "PutObject", "TransactWriteItems"].map(|operation| {
        let service = if operation.ends_with("Object") { S3 } else { Dynamodb };
        faults.count(service, operation)
    });
    assert!((150..160 + seconds).contains(&of_tasks[0]), "{of_tasks:?}");
    assert_eq!(of_tasks[1..], [150, 152, 150]);
    assert_eq!(faults.count(S3, "HeadObject"), 0);
    let others = faults.calls().len() - of_tasks.iter().sum::<usize>();
    assert!(others <= 75 + 10 * seconds, "{others} other requests for 150 tasks in {seconds} s");
    // Two pages of a hundred as long as they are fresh, then looks that find nothing.
    let queries = faults.count(Dynamodb, "Query");
    assert!(queries <= 30 + 5 * seconds, "{queries} queries for 150 tasks in {seconds} s");
    assert_eq!(faults.count(Dynamodb, "Scan"), 1, "the manifest's, at the end");
    // When no task is found, and by the publisher.
    let tallies = faults.count(Dynamodb, "BatchGetItem");
    assert!(tallies <= 8 + seconds, "the tally was read {tallies} times for 150 tasks in {seconds} s");
}

/// The node that commits the last task dies before it looks at the mission's end. Another, which finds no task, and has
/// done none, looks once before it ends.
#[tokio::test]
async fn a_node_without_a_task_notifies_for_one_that_died_after_the_last_commit() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "BatchGetItem", When::Nth(1));
    cloud.node_on(cloud.local.launch(&[("missionID", "M")]), faults).die_at(&gate).await;
    assert_eq!((cloud.tally("M").await.ok, cloud.local.published().len()), (1, 0));

    let life = server(&cloud, "M", 2).run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 0, .. })), "{life:?}");
    cloud.assert_done("abc", "M", "after the committer's death").await;
}

/// The look fails permanently: the node ends with that failure, and the next one notifies.
#[tokio::test]
async fn a_node_whose_look_at_the_missions_end_fails_ends_and_another_notifies() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(Dynamodb, "BatchGetItem", When::Always, Fault::Status(400, "AccessDeniedException"));
    let life = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), faults).run().await;
    assert!(matches!(life.outcome, Err(NodeError::Cloud { .. })), "{life:?}");
    assert_eq!((cloud.tally("M").await.ok, cloud.local.published().len()), (1, 0));

    server(&cloud, "M", 1).run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after a failed look").await;
}

/// Two slots find nothing at the same moment: they are one publisher, and one of them publishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_end_together_notify_once() {
    let mut missions = JoinSet::new();
    for _ in 0..10 {
        missions.spawn(async {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["a", "b", "c", "d"]).await;
            server(&cloud, "M", 4).run().await.outcome.unwrap();
            (cloud.tally("M").await.ok, cloud.local.published().len())
        });
    }
    assert_eq!(missions.join_all().await, [(4, 1); 10]);
}

/// A drain after the last commit: the node that drains still looks, because a task has ended since its last look.
#[tokio::test]
async fn a_node_that_drains_after_the_last_commit_notifies() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_after(Dynamodb, "TransactWriteItems", When::Nth(1));
    let node = cloud.node_on(cloud.local.launch(&[("missionID", "M")]), faults);
    let drain = node.stopping.drain.clone();
    let mut running = JoinSet::new();
    running.spawn(node.run());
    gate.arrived(1).await;
    drain.cancel();
    gate.open();
    let life = running.join_all().await.pop().unwrap();

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, .. })), "{life:?}");
    cloud.assert_done("abc", "M", "after a drain").await;
}

#[tokio::test]
async fn a_mission_that_is_not_there_and_one_that_is_cancelled_serve_nothing() {
    let cloud = TestCloud::new().await;
    let life = server(&cloud, "none", 1).run().await;
    assert!(matches!(life.outcome, Err(NodeError::NoMission { .. })), "{life:?}");
    cloud.mission("M", &["abc"]).await;
    cloud.backend.ledger.cancel_mission(&mission_id("M"), "2026-01-01T00:00:00Z").await.unwrap();
    let life = server(&cloud, "M", 1).run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 0, .. })), "{life:?}");
    assert_eq!(cloud.task("abc").await.state, State::Pending);
    assert!(cloud.local.instances().iter().all(|i| i.state == "terminated"));
}

/// A recommendation to leave: the task at hand is finished, no other is begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_should_leave_takes_no_more_tasks() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    // IMDS is looked at every 5 s.
    let node = server(&cloud, "M", 1).shell(r#"sleep 7; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#);
    cloud.local.rebalance(&node.instance, "2026-01-01T00:00:00Z");
    let life = node.run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, .. })), "{life:?}");
    assert_eq!(cloud.tally("M").await.ok, 1);
}

/// Uploads to a mission with nodes of its own launch these, and no more; the sweep replaces those that ended.
#[tokio::test]
async fn a_missions_own_nodes_are_launched_and_replaced() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.set_mission_number("M", "nodes", 2).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let upload = |key: &str| UploadedObject {
        bucket: "source".to_owned(),
        src: src(key),
        bytes: Some(1),
        time: String::new(),
        trigger: "ObjectCreated:Put".to_owned(),
    };
    let mut ingest = TaskIngest::new(&scheduler);
    let mut boarded = Vec::new();
    for n in 0..5 {
        cloud.input(&format!("M/{n}"), b"abc").await;
        boarded.push(ingest.ingest(&upload(&format!("M/{n}"))).await.unwrap());
    }
    assert_eq!(boarded.iter().filter(|one| matches!(one, Ingested::Launched(_))).count(), 2);
    assert_eq!(boarded.iter().filter(|one| **one == Ingested::Queued).count(), 3);
    let nodes = cloud.local.instances();
    assert!(nodes.iter().all(|i| i.tags.iter().all(|(key, _)| key != "srcID")));
    cloud.local.reclaim_instance(&nodes[0].id);

    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();

    assert_eq!(found.iter().map(|finding| finding.what).collect::<Vec<_>>(), [What::Launched]);
    assert_eq!(scheduler.sweep(&CancellationToken::new()).await.unwrap(), []);
    let node = cloud.node_on(nodes[1].id.clone(), Faults::new());
    node.run().await.outcome.unwrap();
    assert_eq!(cloud.tally("M").await.ok, 5);
    let id: MissionId = mission_id("M");
    assert!(cloud.backend.ledger.open_tasks(Some(&id), 1, State::Pending).await.unwrap().is_empty());
    assert!(cloud.backend.store.head(RESULT_BUCKET, "rslt_M/0").await.unwrap().is_some());
}
