//! Missions: the count, the end, the people, and rows of the first version.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::Wire;
use lighthpc::backend::ledger::{NewMission, Redrive};
use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{Ending, NodeError};
use local_cloud::{ACCESS_KEY, REGION, SECRET_KEY};

use crate::lab::{Lab, mission_id, src};

fn dynamo(lab: &Lab) -> aws_sdk_dynamodb::Client {
    let wire = Wire::plugged(lab.cloud.http_client(None), REGION, ACCESS_KEY, SECRET_KEY);
    aws_sdk_dynamodb::Client::new(wire.sdk_config())
}

async fn put(lab: &Lab, table: &str, row: &[(&str, AttributeValue)]) {
    let row: HashMap<String, AttributeValue> = row.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    dynamo(lab).put_item().table_name(table).set_item(Some(row)).send().await.unwrap();
}

async fn get(lab: &Lab, table: &str, key: &str, value: &str) -> HashMap<String, AttributeValue> {
    let key = HashMap::from([(key.to_owned(), text(value))]);
    dynamo(lab).get_item().table_name(table).set_key(Some(key)).send().await.unwrap().item.unwrap()
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

#[tokio::test]
async fn rows_of_the_first_version_work_unchanged() {
    let lab = Lab::new().await;
    put(
        &lab,
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
        lab.input(task, task.as_bytes()).await;
        put(
            &lab,
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
        lab.node(task, "20190401-1").run().await.ending.unwrap();
    }

    let mission = get(&lab, "tblMission", "timePush", "20190401-1").await;
    assert_eq!(mission["transOK"], text("3"), "one of the first version, two of this");
    assert_eq!(mission["notifyEmail"], text("Yes"));
    assert_eq!(mission["bidMode"], text("spot"));
    let list = mission["rsltList"].as_l().unwrap();
    assert_eq!(list[..2], [text("rsltList"), text("s3://results/rslt_earlier")]);
    assert_eq!(list.len(), 4);
    let row = get(&lab, "tblTrans2", "srcFilename", "abc").await;
    assert_eq!(row["timeBoarding"], text("2019-04-01 12:00:00"));
    assert_eq!(row["timeCost"], text("47"), "no workload second is lost");
    assert_eq!(row["strIndiProgress"], text("100%"));
    assert_eq!(row["missionID"], text("20190401-1"));
    assert_eq!(lab.cloud.published().len(), 1);
    assert!(lab.cloud.published()[0].message.contains("HPC mission 20190401-1 accomplished at "));
}

#[tokio::test]
async fn a_task_that_the_first_version_finished_is_not_run_again() {
    let lab = Lab::new().await;
    let row = [
        ("srcFilename", text("abc")),
        ("strIndiProgress", text("100%")),
        ("rsltFilename", text("s3://results/rslt_abc")),
    ];
    put(&lab, "tblTrans2", &row).await;

    let life = lab.node("abc", "M").run().await;

    assert!(matches!(life.ending, Ok(Ending::EndedBefore(State::Done))), "{life:?}");
    assert_eq!(get(&lab, "tblTrans2", "srcFilename", "abc").await.len(), 3);
}

#[tokio::test]
async fn a_failed_task_is_counted_and_the_mission_still_ends() {
    let lab = Lab::new().await;
    lab.mission("M", &["abc", "def"]).await;

    let life = lab.node("abc", "M").shell("echo sorry; exit 3").run().await;
    assert!(matches!(life.ending, Err(NodeError::WorkloadFailed { .. })), "{life:?}");
    lab.node("def", "M").run().await.ending.unwrap();

    let row = lab.task("abc").await;
    assert_eq!((row.state, row.verdict, row.exit_code), (State::Failed, Some(Verdict::AppError), Some(3)));
    assert_eq!(row.history[0].log.as_deref(), Some("s3://results/logs/abc.1.log"));
    assert_eq!(lab.result("logs/abc.1.log").as_deref(), Some("sorry\n"));
    let tally = lab.tally("M").await;
    assert_eq!((tally.ok, tally.failed), (1, 1));
    let told = lab.cloud.published();
    assert_eq!(told.len(), 1);
    assert!(told[0].message.contains("with 1 failed"), "{}", told[0].message);
}

#[tokio::test]
async fn a_redriven_task_counts_again_and_people_hear_again() {
    let lab = Lab::new().await;
    lab.mission("M", &["abc"]).await;
    lab.node("abc", "M").shell("exit 3").run().await.ending.unwrap_err();
    let (row, mission) = (lab.task("abc").await, lab.mission_row("M").await);
    assert_eq!(mission.notified, Notified::Yes);

    assert_eq!(
        lab.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap(),
        Redrive::Redriven
    );
    assert_eq!(
        lab.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap(),
        Redrive::NotFailed
    );
    lab.node("abc", "M").run().await.ending.unwrap();

    lab.assert_done("abc", "M", "after the redrive").await;
    assert_eq!(lab.cloud.published().len(), 2);
}

#[tokio::test]
async fn exit_75_is_tried_again_on_the_same_node_three_times_in_all() {
    let lab = Lab::new().await;
    lab.mission("M", &["abc"]).await;
    let tries = lab.dir.path().join("tries");
    let line = format!("echo x >> '{}'; exit 75", tries.display());

    let life = lab.node("abc", "M").shell(&line).run().await;

    assert!(matches!(life.ending, Err(NodeError::WorkloadFailed { .. })), "{life:?}");
    assert_eq!(std::fs::read_to_string(tries).unwrap().lines().count(), 3);
    let row = lab.task("abc").await;
    assert_eq!((row.state, row.attempt.0, row.app_failures), (State::Failed, 3, 3));
    assert_eq!(row.history.len(), 3);
}

#[tokio::test]
async fn a_mission_without_a_number_or_without_a_row_is_counted_all_the_same() {
    let lab = Lab::new().await;
    for task in ["abc", "def"] {
        lab.input(task, task.as_bytes()).await;
    }
    put(&lab, "tblMission", &[("timePush", text("no-number")), ("notifyEmail", text("No"))]).await;

    lab.node("abc", "no-number").run().await.ending.unwrap();
    lab.node("def", "no-row").run().await.ending.unwrap();

    let row = get(&lab, "tblMission", "timePush", "no-number").await;
    assert_eq!(row["transOK"], AttributeValue::N("1".to_owned()));
    let tally = get(&lab, "tblMission", "timePush", "no-row#tally#0").await;
    assert_eq!(tally["transOK"], AttributeValue::N("1".to_owned()));
    assert!(lab.backend.ledger.mission(&mission_id("no-row")).await.unwrap().is_none());
    assert!(lab.cloud.published().is_empty());
}

#[tokio::test]
async fn a_large_missions_tally_is_spread_and_sums_up() {
    let lab = Lab::new().await;
    let new = NewMission { tally_shards: 16, ..NewMission::of(mission_id("M"), 40) };
    lab.backend.ledger.create_mission(&new).await.unwrap();
    for n in 0..40 {
        let task = format!("t{n}");
        lab.input(&task, b"x").await;
        lab.row(&task, &mission_id("M")).await;
        lab.node(&task, "M").run().await.ending.unwrap();
    }

    assert_eq!(lab.tally("M").await.ok, 40);
    assert_eq!(lab.mission_row("M").await.rolled.ok, 40);
    assert_eq!(lab.cloud.published().len(), 1);
    let manifest = lab.result("manifests/M.json").unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!((&manifest["transOK"], manifest["tasks"].as_array().unwrap().len()), (&40.into(), 40));
}

/// A publisher died between `Sending` and the message: whoever comes by next and hears that it is gone takes over.
#[tokio::test]
async fn a_dead_publisher_is_replaced() {
    let lab = Lab::new().await;
    lab.mission("M", &["abc"]).await;
    let faults = local_cloud::Faults::new();
    let gate = faults.hold_before(local_cloud::Service::Sns, "Publish", local_cloud::When::Nth(1));
    let node = lab.node_with("abc", "M", faults);
    let instance = node.instance.clone();
    node.die_at(&gate).await;
    assert!(matches!(lab.mission_row("M").await.notified, Notified::Sending { .. }));

    // While it lives, nobody takes over.
    lab.node("abc", "M").run().await.ending.unwrap();
    assert!(lab.cloud.published().is_empty());

    lab.cloud.stop_instance(&instance);
    lab.node("abc", "M").run().await.ending.unwrap();
    assert_eq!(lab.cloud.published().len(), 1);
    lab.assert_done("abc", "M", "announced by another").await;
    assert_eq!(lab.backend.ledger.task(&src("abc")).await.unwrap().unwrap().attempt.0, 1);
}
