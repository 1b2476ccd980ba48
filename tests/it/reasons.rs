//! Why an attempt ended is kept: in the row of its task, in the task's history, and in the index of failed tasks.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use lighthpc::backend::ledger::{Partition, Redrive};
use lighthpc::domain::ids::MissionId;
use lighthpc::domain::machine_info::{MicroUsd, PurchaseOption};
use lighthpc::domain::task::{ERROR_CHARS_MAX, State, Task};
use lighthpc::domain::verdict::Verdict;
use lighthpc::summary::{Order, Selection, Summary};
use lighthpc::worker::Pricing;
use local_cloud::{Faults, SOURCE_BUCKET};
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, mission_id};

async fn failed_by(shell: &str, change: impl FnOnce(&TestCloud)) -> Task {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    change(&cloud);
    let mut node = cloud.node("abc", "M").shell(shell);
    node.settings.limits.max_attempts = 1;
    node.settings.bounds.time_limit = Some(Duration::from_secs(2));
    node.run().await.outcome.unwrap_err();
    let row = cloud.task("abc").await;
    assert_eq!(row.state, State::Failed, "{shell}");
    row
}

#[tokio::test]
async fn each_kind_of_failure_reads_differently_in_the_row() {
    let kinds = [
        ("exit 1", Verdict::AppError, Some(1), None),
        ("exit 42", Verdict::AppError, Some(42), None),
        ("kill -11 $$", Verdict::AppError, None, Some(11)),
        ("no-such-program", Verdict::AppError, Some(127), None),
        ("true", Verdict::NoResult, Some(0), None),
        ("sleep 60", Verdict::Timeout, None, None),
        ("mkfifo \"$LIGHTHPC_OUTPUT\"", Verdict::AppError, None, None),
    ];
    let mut errors = HashSet::new();
    for (shell, verdict, code, signal) in kinds {
        let row = failed_by(shell, |_| {}).await;
        let error = row.error.clone().unwrap();
        assert_eq!((row.verdict, row.exit_code, row.signal), (Some(verdict), code, signal), "{shell}: {error}");
        let past = row.history.last().unwrap();
        assert_eq!(past.end.error.as_ref(), Some(&error), "{shell}");
        assert_eq!((past.end.exit_code.map(i64::from), past.end.signal.map(i64::from)), (code, signal), "{shell}");
        assert!(!error.contains('\n') && error.chars().count() <= ERROR_CHARS_MAX, "{error}");
        assert!(errors.insert(error.clone()), "{shell} reads like another: {error}");
    }
    let row = failed_by("true", |cloud| {
        std::fs::remove_file(cloud.local.object_path(SOURCE_BUCKET, "abc")).unwrap();
    });
    let row = row.await;
    assert_eq!(row.verdict, Some(Verdict::Infra));
    assert_eq!(row.error.as_deref(), Some("the input s3://source/abc does not exist"));
}

#[tokio::test]
async fn a_success_leaves_no_reason_of_an_earlier_attempt() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M").shell("exit 75");
    node.settings.limits.max_attempts = 9;
    node.run().await.outcome.unwrap_err();
    let row = cloud.task("abc").await;
    assert_eq!(row.history.len(), 9, "its budget is spent");
    let mission = cloud.mission_row("M").await;
    let now = "2026-01-01T00:00:00Z";
    assert_eq!(cloud.backend.ledger.redrive(&row, Some(&mission), now).await.unwrap(), Redrive::Redriven);
    cloud.node("abc", "M").run().await.outcome.unwrap();
    let row = cloud.task("abc").await;
    assert_eq!((row.error, row.exit_code, row.signal), (None, Some(0), None));
    assert!(row.history.last().unwrap().end.error.is_none() && row.history[0].end.error.is_some());
}

#[tokio::test]
async fn an_attempt_knows_its_machine_and_its_price() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M").shell("sleep 1; echo x > $LIGHTHPC_OUTPUT");
    node.settings.pricing = Pricing::Ec2 { on_demand: BTreeMap::new(), billed_before: Duration::from_secs(100) };
    node.run().await.outcome.unwrap();
    let row = cloud.task("abc").await;
    let machine = &row.history[0].machine;
    assert_eq!(machine.instance_type.as_deref(), Some("c7i.large"));
    assert_eq!((machine.zone.as_deref(), machine.purchase), (Some("us-east-1a"), Some(PurchaseOption::Spot)));
    assert_eq!(machine.usd_per_hour, Some(MicroUsd(34_100)));
    let asked = cloud.local.requests("DescribeSpotPriceHistory");
    assert_eq!(asked.len(), 1, "once per node");
    assert_eq!(
        (asked[0]["AvailabilityZone"].as_str(), asked[0]["ProductDescription.1"].as_str()),
        ("us-east-1a", "Linux/UNIX")
    );
    assert!(row.history[0].end.peak_memory.is_some_and(|bytes| bytes > 100_000), "{row:?}");
    // The machine's time: 100 s before the process, and what it ran.
    let tally = cloud.tally("M").await;
    assert!((101..160).contains(&tally.node_s), "{tally:?}");
    assert_eq!(tally.cost, MicroUsd(34_100).for_time(Duration::from_secs(tally.node_s)));
    assert_eq!(tally.unpriced_s, 0);
    assert!((1000..20_000).contains(&row.time_cost_ms), "{}", row.time_cost_ms);
}

async fn failed_in_index(cloud: &TestCloud, id: &MissionId) -> Vec<String> {
    let partition = Partition { mission: Some(id), shard: 0 };
    let page = cloud.backend.ledger.open_page(partition, State::Failed, 100, None).await.unwrap();
    page.tasks.into_iter().map(|task| task.src.to_string()).collect()
}

#[tokio::test]
async fn failed_tasks_stay_in_the_index_until_they_are_redriven_and_done() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    let id = mission_id("M");
    for key in ["a", "b"] {
        cloud.node(key, "M").shell("exit 1").run().await.outcome.unwrap_err();
    }
    assert_eq!(failed_in_index(&cloud, &id).await, ["a", "b"]);
    let summary = Summary::read(&cloud.backend, cloud.mission_row("M").await).await.unwrap();
    assert_eq!((summary.total.failed, summary.pending, summary.running), (2, Some(1), 0));
    let group = &summary.failures.groups[0];
    assert_eq!((group.count, group.reason.as_str()), (2, "the workload exited with code 1"));

    let (row, mission) = (cloud.task("a").await, cloud.mission_row("M").await);
    cloud.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap();
    assert_eq!(failed_in_index(&cloud, &id).await, ["b"]);
    cloud.node("a", "M").run().await.outcome.unwrap();
    assert_eq!(failed_in_index(&cloud, &id).await, ["b"]);

    // A sweep corrects what other programs wrote, and leaves failed tasks where they are.
    cloud.set_attribute("b", "openAs", "pending#2026-01-01T00:00:00Z").await;
    cloud.scheduler(&Faults::new()).sweep(&CancellationToken::new()).await.unwrap();
    assert_eq!(failed_in_index(&cloud, &id).await, ["b"]);
}

#[tokio::test]
async fn tasks_that_failed_under_an_earlier_version_are_found_by_a_scan() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    for key in ["a", "b"] {
        cloud.node(key, "M").shell("exit 1").run().await.outcome.unwrap_err();
    }
    let failed = Selection { states: vec![State::Failed], ..Selection::default() };
    let mission = cloud.mission_row("M").await;
    let found = failed.read(&cloud.backend, &mission).await.unwrap();
    assert_eq!((found.tasks.len(), found.order, found.is_cut), (2, Order::Index, false));

    cloud.remove_attribute("a", "openIn").await;
    cloud.remove_attribute("a", "openAs").await;
    let found = failed.read(&cloud.backend, &mission).await.unwrap();
    assert_eq!((found.tasks.len(), found.order), (2, Order::Scan));
    let one = Selection { limit: Some(1), ..failed };
    let found = one.read(&cloud.backend, &mission).await.unwrap();
    assert_eq!((found.tasks[0].src.as_str(), found.tasks.len(), found.is_cut), ("a", 1, true));
}

#[tokio::test]
async fn times_of_earlier_versions_count_in_whole_seconds() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b"]).await;
    // An earlier version has written the row: no milliseconds.
    cloud.set_attribute("a", "timeCost", "47").await;
    cloud.node("a", "M").run().await.outcome.unwrap();
    let row = cloud.task("a").await;
    assert!((47_000..60_000).contains(&row.time_cost_ms), "{}", row.time_cost_ms);
    assert_eq!(cloud.tally("M").await.time_cost_ms, row.time_cost_ms);
    // A hand has changed the seconds since: they count.
    cloud.set_attribute("a", "timeCost", "500").await;
    assert_eq!(cloud.task("a").await.time_cost_ms, 500_000);
}

/// The summary of a large mission costs as many requests as that of a small one with as many tally items.
#[tokio::test]
async fn a_summary_reads_no_more_of_a_large_mission() {
    let mut counts = Vec::new();
    for tasks in [5, 500] {
        let cloud = TestCloud::new().await;
        let names: Vec<String> = (0..tasks).map(|n| format!("M/{n}")).collect();
        cloud.mission("M", &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        cloud.node("M/0", "M").shell("exit 1").run().await.outcome.unwrap_err();
        cloud.node("M/1", "M").run().await.outcome.unwrap();
        let faults = Faults::new();
        let mission = cloud.mission_row("M").await;
        let backend =
            crate::test_cloud::backend(&cloud.local, None, &faults, lighthpc::backend::machine::PowerOff::Never);
        let summary = Summary::read(&backend, mission).await.unwrap();
        assert_eq!((summary.total.ok, summary.total.failed, summary.pending), (1, 1, Some(tasks - 2)));
        counts.push(faults.count(local_cloud::Service::Dynamodb, "*"));
    }
    assert_eq!(counts[0], counts[1]);
    assert!(counts[0] <= 6, "{counts:?}");
}
