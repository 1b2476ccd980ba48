//! Races, with barriers rather than sleeps.

use std::sync::Arc;

use lighthpc::backend::ledger::{Beat, Claim, Claimant, Commit, Completion, Fence, Finish, Release};
use lighthpc::backend::store::{Holder, Put};
use lighthpc::domain::ids::InstanceId;
use lighthpc::domain::mission::Notified;
use lighthpc::domain::progress::Progress;
use lighthpc::domain::task::{AttemptEnd, Counts};
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{Faults, RESULT_BUCKET, When};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, mission_id, src};

fn claimant(instance: &str) -> Claimant {
    Claimant {
        owner: InstanceId::new(instance).unwrap(),
        mission: None,
        bucket: None,
        now: "now".to_owned(),
        token: format!("token of {instance}"),
        is_alone: true,
    }
}

async fn claim(cloud: &TestCloud, instance: &str, expired: bool) -> Fence {
    let (ledger, who) = (&cloud.backend.ledger, claimant(instance));
    let task = if expired {
        ledger.take_over(&cloud.task("abc").await, &who).await.unwrap().unwrap()
    } else {
        match ledger.claim(&src("abc"), &who).await.unwrap() {
            Claim::Held(task) => task,
            other => panic!("{other:?}"),
        }
    };
    Fence { src: src("abc"), attempt: task.attempt, owner: InstanceId::new(instance).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixty_four_claimers_one_wins() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let barrier = Arc::new(Barrier::new(64));
    let mut claimers = JoinSet::new();
    for n in 0..64 {
        let (ledger, barrier) = (cloud.backend.ledger.clone(), barrier.clone());
        claimers.spawn(async move {
            barrier.wait().await;
            ledger.claim(&src("abc"), &claimant(&format!("i-{n}"))).await.unwrap()
        });
    }

    let claims = claimers.join_all().await;

    let held: Vec<_> = claims.iter().filter(|claim| matches!(claim, Claim::Held(_))).collect();
    assert_eq!(held.len(), 1);
    assert!(claims.iter().all(|claim| matches!(claim, Claim::Held(_) | Claim::HeldByOther(_))));
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

#[tokio::test]
async fn a_stale_attempt_cannot_write_upload_or_commit() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let stale = claim(&cloud, "i-old", false).await;
    let fresh = claim(&cloud, "i-new", true).await;
    let before = cloud.task("abc").await;
    let mission = cloud.mission_row("M").await;
    let file = cloud.dir.path().join("result");
    std::fs::write(&file, "stale").unwrap();
    let finish = |result: &str| Finish {
        input_etag: None,
        completion: Completion::Done { result: result.to_owned(), etag: "e".to_owned(), bytes: 1 },
        end: AttemptEnd::ok(),
        time_cost_ms: 1,
        history: vec![],
        counts: Counts::default(),
        now: "2026-01-01T00:00:00Z".to_owned(),
    };
    let (ledger, store) = (&cloud.backend.ledger, &cloud.backend.store);

    let beat = ledger.beat(&stale, Progress::default(), 1, true).await.unwrap();
    let holder = Holder { ledger, fence: &stale, is_sure: false };
    let put = store.put_result(holder, RESULT_BUCKET, "rslt_abc", &file).await.unwrap();
    let commit = ledger.commit(&stale, Some(&mission), &finish("stale")).await.unwrap();
    let release = Release {
        end: AttemptEnd::of(lighthpc::domain::verdict::Verdict::Cancelled, "why"),
        time_cost_ms: 1,
        history: vec![],
        counts: Counts::default(),
        now: "2026-01-01T00:00:00Z".to_owned(),
    };
    let released = ledger.release(&stale, &release).await.unwrap();

    assert_eq!((beat, put, commit, released), (Beat::Lost, Put::LeaseLost, Commit::Lost, false));
    assert_eq!(cloud.task("abc").await, before);
    assert_eq!(cloud.result("rslt_abc"), None);
    assert_eq!(cloud.tally("M").await.ended(), 0);

    // The fresh one can, twice, and is counted once.
    for _ in 0..2 {
        assert_eq!(ledger.commit(&fresh, Some(&mission), &finish("fresh")).await.unwrap(), Commit::Committed);
    }
    assert_eq!(cloud.tally("M").await.ok, 1);
    // A late stale commit changes nothing, not even with the row done.
    assert_eq!(ledger.commit(&stale, Some(&mission), &finish("stale")).await.unwrap(), Commit::Lost);
    assert_eq!(cloud.task("abc").await.result.as_deref(), Some("fresh"));
}

/// A holder that does not read the row before its put, because its last renewal is recent, may write where nothing stood.
/// It replaces nothing, and the next attempt's put replaces it.
#[tokio::test]
async fn a_stale_attempt_that_is_sure_of_its_lease_replaces_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let stale = claim(&cloud, "i-old", false).await;
    let fresh = claim(&cloud, "i-new", true).await;
    let (ledger, store) = (&cloud.backend.ledger, &cloud.backend.store);
    let put = async |fence: &Fence, text: &str| {
        let holder = Holder { ledger, fence, is_sure: true };
        store.put_result(holder, RESULT_BUCKET, "rslt_abc", text.as_bytes().to_vec()).await.unwrap()
    };

    assert!(matches!(put(&stale, "stale").await, Put::Stored(_)));
    assert!(matches!(put(&fresh, "fresh").await, Put::Stored(_)));
    assert_eq!(put(&stale, "stale").await, Put::LeaseLost);

    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("fresh"));
}

/// The old attempt passes its fence check and stalls right before its put; the new one does everything; the old one wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_stalls_past_the_commit_of_another_changes_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(S3, "PutObject", When::Nth(1));
    let old = cloud.node_with("abc", "M", faults).shell(r#"echo stale > "$LIGHTHPC_OUTPUT""#);
    let mut running = JoinSet::new();
    running.spawn(old.run());
    gate.arrived(1).await;

    // To the others the old machine is gone; its process does not know.
    let gone = cloud.local.instances()[0].id.clone();
    cloud.local.reclaim_instance(&gone);
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "by the new attempt").await;
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();

    assert!(matches!(life.outcome, Err(NodeError::LeaseLost { .. })), "{life:?}");
    cloud.assert_done("abc", "M", "after the old attempt woke").await;
    assert_eq!(cloud.local.published().len(), 1);
}

/// The same, but what stalls is the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_stalls_past_another_counts_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let mut running = JoinSet::new();
    running.spawn(cloud.node_with("abc", "M", faults).shell(r#"echo stale > "$LIGHTHPC_OUTPUT""#).run());
    gate.arrived(1).await;

    let gone = cloud.local.instances()[0].id.clone();
    cloud.local.reclaim_instance(&gone);
    // The stale result stands there: a dead attempt's, overwritten by the new one.
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("stale\n"));
    cloud.node("abc", "M").run().await.outcome.unwrap();
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();

    assert!(matches!(life.outcome, Err(NodeError::LeaseLost { .. })), "{life:?}");
    cloud.assert_done("abc", "M", "after the old commit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_two_committers_publish_once() {
    for round in 0..10 {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc", "def"]).await;
        // Both have committed before either reads the tally.
        let faults = Faults::new();
        let gate = faults.hold_before(Dynamodb, "BatchGetItem", When::First(2));
        let mut nodes = JoinSet::new();
        nodes.spawn(cloud.node_with("abc", "M", faults.clone()).run());
        nodes.spawn(cloud.node_with("def", "M", faults.clone()).run());
        gate.arrived(2).await;
        gate.open();

        for life in nodes.join_all().await {
            assert!(matches!(life.outcome, Ok(Outcome::Committed { .. })), "{round}: {life:?}");
        }

        assert_eq!(cloud.local.published().len(), 1, "round {round}");
        let mission = cloud.mission_row("M").await;
        assert_eq!((mission.notified, mission.rolled.ok), (Notified::Yes, 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mission_whose_every_node_is_launched_twice_is_done_once() {
    let cloud = TestCloud::new().await;
    let names: Vec<String> = (0..12).map(|n| format!("task-{n}")).collect();
    let tasks: Vec<&str> = names.iter().map(String::as_str).collect();
    cloud.mission("M", &tasks).await;
    let runs = cloud.dir.path().join("runs");
    let line = format!(r#"echo x >> '{}'; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#, runs.display());
    let mut nodes = JoinSet::new();
    for task in tasks.iter().chain(&tasks) {
        let second = std::time::Duration::from_secs(1);
        nodes.spawn(cloud.node(task, "M").shell(&line).lease(6 * second, second / 2).run());
    }

    for life in nodes.join_all().await {
        life.outcome.unwrap();
    }

    assert_eq!(cloud.tally("M").await.ok, 12);
    assert_eq!(std::fs::read_to_string(runs).unwrap().lines().count(), 12, "a task was run twice");
    assert_eq!(cloud.local.published().len(), 1);
    for task in tasks {
        assert_eq!(cloud.result(&format!("rslt_{task}")), Some(task.chars().rev().collect()));
    }
    assert!(cloud.local.instances().iter().all(|instance| instance.state == "terminated"));
    assert_eq!(cloud.mission_row("M").await.id, mission_id("M"));
}
