//! Missions: the count, the end, the people, and rows of the first version.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::Wire;
use lighthpc::backend::ledger::{NewMission, Redrive};
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::{ACCESS_KEY, REGION, SECRET_KEY};

use crate::test_cloud::{TestCloud, mission_id, src};

fn dynamo(cloud: &TestCloud) -> aws_sdk_dynamodb::Client {
    let wire = Wire::plugged(cloud.local.http_client(None), REGION, ACCESS_KEY, SECRET_KEY);
    aws_sdk_dynamodb::Client::new(wire.sdk_config())
}

async fn put(cloud: &TestCloud, table: &str, row: &[(&str, AttributeValue)]) {
    let row: HashMap<String, AttributeValue> = row.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    dynamo(cloud).put_item().table_name(table).set_item(Some(row)).send().await.unwrap();
}

async fn get(cloud: &TestCloud, table: &str, key: &str, value: &str) -> HashMap<String, AttributeValue> {
    let key = HashMap::from([(key.to_owned(), text(value))]);
    dynamo(cloud).get_item().table_name(table).set_key(Some(key)).send().await.unwrap().item.unwrap()
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

#[tokio::test]
async fn rows_of_the_first_version_work_unchanged() {
    let cloud = TestCloud::new().await;
    put(
        &cloud,
        "tblMission",
        &[
            ("timePush", text("20190401-1")),
            ("bidMode", text("spot")),
            ("transNumber", text("3")),
            ("transOK", text("1")),
            ("rsltList", AttributeValue::L(vec![text("rsltList"), text("s3://results/rslt_earlier")])),
            ("notifyEmail", text("No")),
        ],
    )
    .await;
    for task in ["abc", "def"] {
        cloud.input(task, task.as_bytes()).await;
        put(
            &cloud,
            "tblTrans2",
            &[
                ("srcFilename", text(task)),
                ("bucketname", text("source")),
                ("timeBoarding", text("2019-04-01 12:00:00")),
                ("trigTime", text("2019-04-01T04:00:00.000Z")),
                ("trigName", text("ObjectCreated:Put")),
                ("numlog", text("1")),
                ("strIndiProgress", text("20.0%")),
                ("timeCost", text("47")),
            ],
        )
        .await;
        cloud.node(task, "20190401-1").run().await.outcome.unwrap();
    }

    let mission = get(&cloud, "tblMission", "timePush", "20190401-1").await;
    assert_eq!(mission["transOK"], text("3"), "one of the first version, two of this");
    assert_eq!(mission["notifyEmail"], text("Yes"));
    assert_eq!(mission["bidMode"], text("spot"));
    let list = mission["rsltList"].as_l().unwrap();
    assert_eq!(list[..2], [text("rsltList"), text("s3://results/rslt_earlier")]);
    assert_eq!(list.len(), 4);
    let row = get(&cloud, "tblTrans2", "srcFilename", "abc").await;
    assert_eq!(row["timeBoarding"], text("2019-04-01 12:00:00"));
    assert_eq!(row["timeCost"], text("47"), "no workload second is lost");
    assert_eq!(row["strIndiProgress"], text("100%"));
    assert_eq!(row["missionID"], text("20190401-1"));
    assert_eq!(cloud.local.published().len(), 1);
    assert!(cloud.local.published()[0].message.contains("HPC mission 20190401-1 accomplished at "));
}

#[tokio::test]
async fn a_task_that_the_first_version_finished_is_not_run_again() {
    let cloud = TestCloud::new().await;
    let row = [
        ("srcFilename", text("abc")),
        ("strIndiProgress", text("100%")),
        ("rsltFilename", text("s3://results/rslt_abc")),
    ];
    put(&cloud, "tblTrans2", &row).await;

    let life = cloud.node("abc", "M").run().await;

    assert!(matches!(life.outcome, Ok(Outcome::EndedBefore(State::Done))), "{life:?}");
    assert_eq!(get(&cloud, "tblTrans2", "srcFilename", "abc").await.len(), 3);
}

#[tokio::test]
async fn a_failed_task_is_counted_and_the_mission_still_ends() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;

    let life = cloud.node("abc", "M").shell("echo sorry; exit 3").run().await;
    assert!(matches!(life.outcome, Err(NodeError::WorkloadFailed { .. })), "{life:?}");
    cloud.node("def", "M").run().await.outcome.unwrap();

    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.exit_code), (State::Failed, Some(Verdict::AppError), Some(3)));
    assert_eq!(row.history[0].log.as_deref(), Some("s3://results/logs/abc.1.log"));
    assert_eq!(cloud.result("logs/abc.1.log").as_deref(), Some("sorry\n"));
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed), (1, 1));
    let sent = cloud.local.published();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].message.contains("with 1 failed"), "{}", sent[0].message);
}

#[tokio::test]
async fn a_redriven_task_counts_again_and_people_hear_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.node("abc", "M").shell("exit 3").run().await.outcome.unwrap_err();
    let (row, mission) = (cloud.task("abc").await, cloud.mission_row("M").await);
    assert_eq!(mission.notified, Notified::Yes);

    assert_eq!(
        cloud.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap(),
        Redrive::Redriven
    );
    assert_eq!(
        cloud.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap(),
        Redrive::NotFailed
    );
    cloud.node("abc", "M").run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after the redrive").await;
    assert_eq!(cloud.local.published().len(), 2);
}

#[tokio::test]
async fn exit_75_is_tried_again_on_the_same_node_three_times_in_all() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let tries = cloud.dir.path().join("tries");
    let line = format!("echo x >> '{}'; exit 75", tries.display());

    let life = cloud.node("abc", "M").shell(&line).run().await;

    assert!(matches!(life.outcome, Err(NodeError::WorkloadFailed { .. })), "{life:?}");
    assert_eq!(std::fs::read_to_string(tries).unwrap().lines().count(), 3);
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.attempt.0, row.app_failures), (State::Failed, 3, 3));
    assert_eq!(row.history.len(), 3);
}

#[tokio::test]
async fn a_mission_without_a_number_or_without_a_row_is_counted_all_the_same() {
    let cloud = TestCloud::new().await;
    for task in ["abc", "def"] {
        cloud.input(task, task.as_bytes()).await;
    }
    put(&cloud, "tblMission", &[("timePush", text("no-number")), ("notifyEmail", text("No"))]).await;

    cloud.node("abc", "no-number").run().await.outcome.unwrap();
    cloud.node("def", "no-row").run().await.outcome.unwrap();

    let row = get(&cloud, "tblMission", "timePush", "no-number").await;
    assert_eq!(row["transOK"], AttributeValue::N("1".to_owned()));
    let tally = get(&cloud, "tblMission", "timePush", "no-row#tally#0").await;
    assert_eq!(tally["transOK"], AttributeValue::N("1".to_owned()));
    assert!(cloud.backend.ledger.mission(&mission_id("no-row")).await.unwrap().is_none());
    assert!(cloud.local.published().is_empty());
}

#[tokio::test]
async fn a_large_missions_tally_is_spread_and_sums_up() {
    let cloud = TestCloud::new().await;
    let new = NewMission { tally_shards: 16, ..NewMission::of(mission_id("M"), 40) };
    cloud.backend.ledger.create_mission(&new).await.unwrap();
    for n in 0..40 {
        let task = format!("t{n}");
        cloud.input(&task, b"x").await;
        cloud.row(&task, &mission_id("M")).await;
        cloud.node(&task, "M").run().await.outcome.unwrap();
    }

    assert_eq!(cloud.tally("M").await.ok, 40);
    assert_eq!(cloud.mission_row("M").await.rolled.ok, 40);
    assert_eq!(cloud.local.published().len(), 1);
    let manifest = cloud.result("manifests/M.json").unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!((&manifest["transOK"], manifest["tasks"].as_array().unwrap().len()), (&40.into(), 40));
}

/// A publisher died between `Sending` and the message: whoever comes by next and hears that it is gone takes over.
#[tokio::test]
async fn a_dead_publisher_is_replaced() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = local_cloud::Faults::new();
    let gate = faults.hold_before(local_cloud::Service::Sns, "Publish", local_cloud::When::Nth(1));
    let node = cloud.node_with("abc", "M", faults);
    let instance = node.instance.clone();
    node.die_at(&gate).await;
    assert!(matches!(cloud.mission_row("M").await.notified, Notified::Sending { .. }));

    // While it lives, nobody takes over.
    cloud.node("abc", "M").run().await.outcome.unwrap();
    assert!(cloud.local.published().is_empty());

    cloud.local.reclaim_instance(&instance);
    cloud.node("abc", "M").run().await.outcome.unwrap();
    assert_eq!(cloud.local.published().len(), 1);
    cloud.assert_done("abc", "M", "announced by another").await;
    assert_eq!(cloud.backend.ledger.task(&src("abc")).await.unwrap().unwrap().attempt.0, 1);
}
