//! From an object to its node: rows and launches belong together, whatever breaks between them.

use std::time::Duration;

use lighthpc::command::exit::{ExitCode, of_scheduler};
use lighthpc::domain::ids::SrcId;
use lighthpc::domain::policy::{BidMode, Policy};
use lighthpc::domain::tags;
use lighthpc::domain::task::State;
use lighthpc::scheduler::{Ingested, Scheduler, TaskIngest, UploadedObject, What};
use local_cloud::Service::{Dynamodb, Ec2};
use local_cloud::{Fault, Faults, RESULT_BUCKET, SOURCE_BUCKET, When};
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, mission_id, src};

pub(crate) fn upload(key: &str) -> UploadedObject {
    UploadedObject {
        bucket: SOURCE_BUCKET.to_owned(),
        src: src(key),
        bytes: Some(3),
        time: "2026-01-01T00:00:00.000Z".to_owned(),
        trigger: "ObjectCreated:Put".to_owned(),
    }
}

pub(crate) async fn board(scheduler: &Scheduler, key: &str) -> Ingested {
    TaskIngest::new(scheduler).ingest(&upload(key)).await.unwrap()
}

pub(crate) async fn sweep(scheduler: &Scheduler) -> Vec<(What, String)> {
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    assert!(found.iter().all(|finding| finding.what != What::Failure), "{found:?}");
    found.into_iter().map(|finding| (finding.what, finding.subject)).collect()
}

pub(crate) fn running(cloud: &TestCloud) -> Vec<String> {
    cloud.local.instances().into_iter().filter(|i| i.state == "running").map(|i| i.id).collect()
}

/// EC2's answer to a fleet that got no instance.
pub(crate) fn no_room() -> Fault {
    let body = r#"<?xml version="1.0" encoding="UTF-8"?><CreateFleetResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId><fleetId>fleet-1</fleetId><errorSet><item><errorCode>InsufficientInstanceCapacity</errorCode><errorMessage>There is no Spot capacity available that matches your request.</errorMessage><lifecycle>spot</lifecycle></item></errorSet><fleetInstanceSet/></CreateFleetResponse>"#;
    Fault::Raw(200, body.to_owned())
}

#[tokio::test]
async fn an_object_is_a_row_and_a_node_and_its_duplicates_are_neither() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.input("M/a b+c.txt", b"abc").await;

    let first = board(&scheduler, "M/a b+c.txt").await;
    let again = board(&scheduler, "M/a b+c.txt").await;

    let Ingested::Launched(instance) = first else { panic!("{first:?}") };
    assert_eq!(again, Ingested::Duplicate);
    let instances = cloud.local.instances();
    assert_eq!(instances.len(), 1);
    let tag = |key: &str| instances[0].tags.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
    assert_eq!((tag(tags::SRC), tag(tags::MISSION)), (Some("M/a b+c.txt"), Some("M")));
    assert_eq!((tag(tags::OURS), tag(tags::NAME)), (Some("tblTrans2"), Some("lighthpc M/a b+c.txt")));
    let row = cloud.task("M/a b+c.txt").await;
    assert_eq!((row.state, row.mission), (State::Pending, Some(mission_id("M"))));
    assert_eq!(row.launch.instance.as_deref(), Some(instance.as_str()));
    assert_eq!(cloud.attribute("M/a b+c.txt", "numlog").await, "1+1");
    assert_eq!(cloud.attribute("M/a b+c.txt", "trigTime").await, "2026-01-01T00:00:00.000Z");

    cloud.node_on(instance, Faults::new()).run().await.outcome.unwrap();
    assert_eq!(cloud.result("rslt_M/a b+c.txt").as_deref(), Some("cba"));
}

#[tokio::test]
async fn what_is_no_task_is_refused() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let mut ingest = TaskIngest::new(&scheduler);
    let of = |bucket: &str, key: &str, bytes| UploadedObject {
        bucket: bucket.to_owned(),
        bytes: Some(bytes),
        ..upload(key)
    };
    for upload in [of(RESULT_BUCKET, "rslt_a", 3), of("another", "a", 3), of(SOURCE_BUCKET, "folder/", 0)] {
        assert!(matches!(ingest.ingest(&upload).await.unwrap(), Ingested::Refused(_)), "{upload:?}");
    }
    scheduler.cancel(&mission_id("M"), Duration::ZERO).await.unwrap();
    assert!(matches!(board(&scheduler, "M/late").await, Ingested::Refused(_)));
    assert!(cloud.local.instances().is_empty());
    // An object whose name only ends like a folder's is one.
    assert!(matches!(board(&scheduler, "trail/").await, Ingested::Launched(_)));
}

#[tokio::test]
async fn the_keys_beginning_names_the_mission_if_there_is_one() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.default_mission = Some(mission_id("default"));
    let scheduler = Scheduler::new(cloud.backend.clone(), settings);
    for (key, mission) in [("M/x", "M"), ("other/x", "default"), ("M", "default"), ("x", "default")] {
        board(&scheduler, key).await;
        assert_eq!(cloud.task(key).await.mission, Some(mission_id(mission)), "{key}");
    }
}

/// The scheduler dies right after the row, right before the launch, or right after it; and the answer of EC2 is lost. In the
/// end one instance runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_row_and_launch_is_healed_and_never_doubles() {
    for (what, operation, service, before) in [
        ("after the row", "PutItem", Dynamodb, false),
        ("before the launch", "CreateFleet", Ec2, true),
        ("after the launch", "CreateFleet", Ec2, false),
        ("before the note", "UpdateItem", Dynamodb, true),
    ] {
        let cloud = TestCloud::new().await;
        let faults = Faults::new();
        let when = When::Nth(1);
        let gate = if before {
            faults.hold_before(service, operation, when)
        } else {
            faults.hold_after(service, operation, when)
        };
        let dying = cloud.scheduler(&faults);
        tokio::select! {
            boarded = board(&dying, "abc") => panic!("{what}: {boarded:?}"),
            () = gate.arrived(1) => {}
        }

        let scheduler = cloud.scheduler(&Faults::new());
        assert_eq!(board(&scheduler, "abc").await, Ingested::Duplicate, "{what}");
        sweep(&scheduler).await;
        sweep(&scheduler).await;

        assert_eq!(running(&cloud).len(), 1, "{what}");
        assert_eq!(cloud.local.instances().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn a_lost_answer_of_ec2_launches_once() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Nth(1), Fault::FailAfter);
    let boarded = board(&cloud.scheduler(&faults), "abc").await;
    assert!(matches!(boarded, Ingested::Launched(_)), "{boarded:?}");
    assert_eq!((faults.count(Ec2, "CreateFleet"), cloud.local.instances().len()), (2, 1));
}

#[tokio::test]
async fn without_capacity_the_row_says_why_and_a_sweep_tries_again_in_time() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::First(1), no_room());
    let scheduler = cloud.scheduler(&faults);

    assert!(matches!(board(&scheduler, "abc").await, Ingested::Waits(why) if why.contains("no Spot capacity")));
    let launch = cloud.task("abc").await.launch;
    assert!(launch.error.unwrap().contains("InsufficientInstanceCapacity") && launch.after.is_some());
    assert_eq!(sweep(&scheduler).await, [], "the pause is not over");

    cloud.set_attribute("abc", "launchAfter", "2026-01-01T00:00:00Z").await;
    assert_eq!(sweep(&scheduler).await, [(What::Launched, "abc".to_owned())]);
    let launch = cloud.task("abc").await.launch;
    assert_eq!((launch.error, launch.tries), (None, 2));
}

/// Spot has no room; after `maxWaitTime` the task goes On-Demand.
#[tokio::test]
async fn what_has_waited_long_enough_for_spot_goes_on_demand() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::First(1), no_room());
    let mut settings = TestCloud::scheduler_settings();
    let wait = Some(Duration::from_mins(10));
    settings.policy = Policy { bid_mode: Some(BidMode::SpotThenOnDemand), max_wait: wait, ..Policy::default() };
    let scheduler = cloud.scheduler_with(&faults, settings);
    board(&scheduler, "abc").await;

    cloud.set_attribute("abc", "launchAfter", "2026-01-01T00:00:00Z").await;
    cloud.set_attribute("abc", "openAs", "pending#2026-01-01T00:00:00Z").await;
    sweep(&scheduler).await;

    assert_eq!(cloud.local.requests("CreateFleet").len(), 1, "the first was answered by the fault");
    let asked = &cloud.local.requests("CreateFleet")[0];
    assert_eq!(asked["TargetCapacitySpecification.DefaultTargetCapacityType"], "on-demand");
    assert_eq!(asked["LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName"], "nodes");
}

#[tokio::test]
async fn a_floor_of_on_demand_is_kept() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.policy = Policy { bid_mode: Some(BidMode::Mix), on_demand_floor: Some(2), ..Policy::default() };
    let scheduler = Scheduler::new(cloud.backend.clone(), settings);
    for n in 0..5 {
        board(&scheduler, &format!("M/{n}")).await;
    }
    let kinds: Vec<String> = cloud
        .local
        .requests("CreateFleet")
        .iter()
        .map(|asked| asked["TargetCapacitySpecification.DefaultTargetCapacityType"].clone())
        .collect();
    assert_eq!(kinds, ["on-demand", "on-demand", "spot", "spot", "spot"]);
}

#[tokio::test]
async fn a_launch_that_ec2_refuses_is_named_and_the_task_waits() {
    for code in ["InvalidLaunchTemplateId.NotFoundException", "InvalidParameterValue", "UnauthorizedOperation"] {
        let cloud = TestCloud::new().await;
        let faults = Faults::new();
        faults.add(Ec2, "CreateFleet", When::Always, Fault::Status(400, code));
        let scheduler = cloud.scheduler(&faults);

        assert!(matches!(board(&scheduler, "abc").await, Ingested::Waits(why) if why.contains(code)));

        let row = cloud.task("abc").await;
        assert_eq!(row.state, State::Pending);
        assert!(row.launch.error.clone().unwrap().contains(code));
        let error = scheduler.launch_for(&row, None).await.unwrap_err();
        let (exit, hint) = of_scheduler(&error);
        assert!(matches!(exit, ExitCode::LaunchRefused | ExitCode::AccessDenied), "{code}: {exit:?}");
        assert!(hint.is_some() && !error.is_transient(), "{code}");
        // Types and prices are a mission's own, and others may launch.
        assert_eq!(error.is_of_every_launch(), code != "InvalidParameterValue", "{code}");
    }
}

/// A key that no tag can hold goes by a short name, and comes back from it.
#[tokio::test]
async fn a_long_key_goes_by_a_short_name() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    for key in ["x".repeat(1024), "文".repeat(300), "new\nline".to_owned()] {
        cloud.input(&key, b"abc").await;
        let Ingested::Launched(instance) = board(&scheduler, &key).await else { panic!() };
        let instances = cloud.local.instances();
        let launched = instances.iter().find(|i| i.id == instance).unwrap();
        let value = launched.tags.iter().find(|(k, _)| k == tags::SRC).unwrap().1.clone();
        assert!(tags::is_short(&value));
        assert_eq!(sweep(&scheduler).await, [], "its node is known by its short name");

        cloud.node_on(instance, Faults::new()).run().await.outcome.unwrap();

        assert_eq!(cloud.task(&key).await.state, State::Done);
    }
    assert!(cloud.backend.ledger.missions().await.unwrap().is_empty(), "short names are no missions");
}

/// Two thousand objects; a fifth of the events come twice, in any order; some launches find no room, some answers are lost.
/// Sweeps heal it, and every task has one row and one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_objects_with_duplicates_and_failing_launches_have_a_node_each() {
    use rand::seq::SliceRandom;
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let faults = Faults::new();
    for nth in (1..2000).step_by(50) {
        faults.add(Ec2, "CreateFleet", When::Nth(nth), no_room());
        faults.add(Ec2, "CreateFleet", When::Nth(nth + 20), Fault::FailAfter);
        faults.add(Dynamodb, "PutItem", When::Nth(nth + 30), Fault::FailAfter);
    }
    let scheduler = cloud.scheduler(&faults);
    let keys: Vec<String> = (0..2000).map(|n| format!("M/{n}")).collect();
    let mut events: Vec<&String> = keys.iter().chain(keys.iter().step_by(5)).collect();
    events.shuffle(&mut rand::rng());

    let mut waiting = 0;
    for key in events {
        waiting += usize::from(matches!(board(&scheduler, key).await, Ingested::Waits(_)));
    }
    assert!(waiting > 0);
    let tasks: Vec<SrcId> = keys.iter().map(|key| src(key)).collect();
    for task in cloud.backend.ledger.tasks(&tasks).await.unwrap() {
        if task.launch.after.is_some() {
            cloud.set_attribute(task.src.as_str(), "launchAfter", "2026-01-01T00:00:00Z").await;
        }
    }
    faults.clear();
    for _ in 0..2 {
        sweep(&scheduler).await;
    }

    let tasks = cloud.backend.ledger.tasks(&tasks).await.unwrap();
    assert_eq!(tasks.len(), 2000);
    let instances = cloud.local.instances();
    assert_eq!(instances.len(), 2000, "a node each");
    let mut named: Vec<String> =
        instances.iter().map(|i| i.tags.iter().find(|(k, _)| k == tags::SRC).unwrap().1.clone()).collect();
    named.sort();
    named.dedup();
    assert_eq!(named.len(), 2000, "and none two");
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_is_named() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.set_mission_attribute("M", "maxUnitprice", "a lot").await;
    let scheduler = cloud.scheduler(&Faults::new());
    assert!(matches!(board(&scheduler, "M/abc").await, Ingested::Waits(why) if why.contains("a lot")));
    assert!(cloud.task("M/abc").await.launch.error.unwrap().contains("a lot"));
    let error = scheduler.policy(Some(&cloud.mission_row("M").await)).unwrap_err();
    assert_eq!(of_scheduler(&error).0, ExitCode::Usage);
}

/// The mission is announced between an invocation's first event and its second: its last task is not forgotten.
#[tokio::test]
async fn a_task_that_comes_as_its_mission_is_announced_is_swept() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.template = None;
    let without_launches = Scheduler::new(cloud.backend.clone(), settings);
    let mut ingest = TaskIngest::new(&without_launches);
    ingest.ingest(&upload("M/a")).await.unwrap();
    cloud.set_mission_attribute("M", "notifyEmail", "Yes").await;
    cloud.set_mission_attribute("M", "closed", "2026-01-01T00:00:00.000Z").await;
    let scheduler = cloud.scheduler(&Faults::new());
    assert_eq!(sweep(&scheduler).await, [], "a closed mission is not looked at");

    ingest.ingest(&upload("M/b")).await.unwrap();

    let mission = cloud.mission_row("M").await;
    assert!(mission.late.is_some() && mission.closed_at.is_none());
    let mut found = sweep(&scheduler).await;
    found.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(found, ["M/a", "M/b"].map(|key| (What::Launched, key.to_owned())));
    // What was seen before the mark changed closes nothing; what has no open task is closed.
    let stale = cloud.mission_row("M").await;
    cloud.backend.ledger.note_late(&mission_id("M"), "another").await.unwrap();
    cloud.backend.ledger.close_mission(&stale, "now").await.unwrap();
    assert_eq!(cloud.mission_row("M").await.closed_at, None);
    scheduler.cancel(&mission_id("M"), Duration::from_secs(30)).await.unwrap();
    sweep(&scheduler).await;
    let mission = cloud.mission_row("M").await;
    assert!(mission.late.is_none() && mission.closed_at.is_some(), "{mission:?}");
}
