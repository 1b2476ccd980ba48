//! Submissions: a mission, its rows, and its own nodes, whatever meets them.

use std::collections::HashMap;
use std::time::Duration;

use lighthpc::scheduler::{Ingested, SchedulerError, SubmitPlan, What};
use local_cloud::{Fault, Faults, SOURCE_BUCKET, Service, When};

use crate::scheduler::{board, running, sweep};
use crate::test_cloud::{TestCloud, mission_id, src};

fn plan(keys: &[&str]) -> SubmitPlan {
    SubmitPlan {
        mission: mission_id("M"),
        name: None,
        bucket: Some(SOURCE_BUCKET.to_owned()),
        srcs: keys.iter().map(|key| src(key)).collect(),
        works: HashMap::new(),
        exec: None,
        nodes: None,
        slots: None,
        uploads: None,
        notify_on: None,
    }
}

/// Whatever order object and submission come in, each object that is submitted counts for the mission once; one that is not
/// submitted counts only if the mission takes uploads.
#[tokio::test]
async fn a_submission_and_its_objects_events_meet_in_any_order() {
    for uploads in [None, Some(false), Some(true)] {
        let is_open = uploads == Some(true);
        let cloud = TestCloud::new().await;
        let scheduler = cloud.scheduler(&Faults::new());
        board(&scheduler, "M/before").await;
        assert_eq!(cloud.task("M/before").await.mission, None);
        let keys = ["M/before", "M/while", "M/between", "M/after"];
        let plan = SubmitPlan { uploads, ..plan(&keys) };

        // The rows are looked at, an object comes, the mission is made.
        let checked = scheduler.check(&plan, false).await.unwrap();
        board(&scheduler, "M/while").await;
        let prepared = scheduler.prepare_checked(&plan, checked).await.unwrap();
        let between = board(&scheduler, "M/between").await;
        assert_eq!(matches!(between, Ingested::Refused(_)), !is_open, "{uploads:?}: {between:?}");
        let submitted = scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap();
        for key in keys {
            assert_eq!(board(&scheduler, key).await, Ingested::Duplicate, "{key}");
        }

        assert!(submitted.is_new);
        assert_eq!(submitted.made + submitted.there, 4, "{submitted:?}");
        assert_eq!(cloud.mission_row("M").await.trans_number, Some(4));
        for key in keys {
            assert_eq!(cloud.task(key).await.mission, Some(mission_id("M")), "{key}");
        }
        let again = scheduler.prepare(&plan).await.unwrap();
        assert!(!again.is_new && again.known.len() == 4);
        assert_eq!(again.mission.trans_number, Some(4));

        // A later upload is a task of the mission if it takes any, and a later submission counts it.
        board(&scheduler, "M/uploaded").await;
        let larger = SubmitPlan { srcs: vec![src("M/more")], ..plan };
        let larger = scheduler.prepare(&larger).await.unwrap();
        assert_eq!(larger.mission.trans_number, Some(if is_open { 6 } else { 5 }));
    }
}

#[tokio::test]
async fn a_task_that_ran_in_no_mission_is_not_taken_over() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    cloud.input("abc", b"abc").await;
    let Ingested::Launched(instance) = board(&scheduler, "abc").await else { panic!("no node") };
    cloud.node_on(instance, Faults::new()).run().await.outcome.unwrap();

    let error = scheduler.prepare(&plan(&["abc"])).await.unwrap_err();

    assert!(matches!(error, SchedulerError::OtherTask { .. }), "{error:?}");
    assert_eq!(cloud.backend.ledger.mission(&mission_id("M")).await.unwrap(), None, "nothing was written");
}

/// Two sweeps, or a sweep and a submission, see the same missing nodes: one launches them.
#[tokio::test]
async fn a_missions_nodes_are_launched_once_however_many_look() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c", "d"]).await;
    cloud.set_mission_number("M", "nodes", 2).await;
    let seen = cloud.mission_row("M").await;

    let first = cloud.backend.ledger.reserve_round(&seen, &[], 2).await.unwrap();
    assert_eq!((first, cloud.backend.ledger.reserve_round(&seen, &[], 2).await.unwrap()), (true, false));

    // Whoever reserved has died: the next sweep launches, and the one after finds nothing missing.
    let scheduler = cloud.scheduler(&Faults::new());
    let found = sweep(&scheduler).await;
    assert_eq!(found.iter().filter(|(what, _)| *what == What::Launched).count(), 2, "{found:?}");
    assert_eq!(sweep(&scheduler).await, []);
    assert_eq!(running(&cloud).len(), 2);

    // A redrive launches them, too.
    scheduler.cancel(&mission_id("M"), Duration::from_secs(30)).await.unwrap();
    assert_eq!(running(&cloud).len(), 0);
    let redriven = scheduler.redrive(&mission_id("M"), None, &[]).await.unwrap();
    assert_eq!((redriven.put_back, redriven.launched, running(&cloud).len()), (4, 2, 2));
}

/// `--dry-run` and the submission itself ask this first, so neither finds out later.
#[tokio::test]
async fn what_would_refuse_a_submission_is_found_before_anything_is_written() {
    let cloud = TestCloud::new().await;
    let mission = async || cloud.backend.ledger.mission(&mission_id("M")).await.unwrap();
    let keys = plan(&["M/a"]);
    let mut settings = TestCloud::scheduler_settings();
    settings.template = None;
    let without = cloud.scheduler_with(&Faults::new(), settings);
    assert!(matches!(without.check(&keys, true).await, Err(SchedulerError::NoTemplate)));
    assert!(without.check(&keys, false).await.is_ok(), "with --no-launch nothing is launched");

    for (call, code, is_refused) in [
        ("DescribeLaunchTemplateVersions", "InvalidLaunchTemplateName.NotFoundException", true),
        // The right to look is not needed for a launch.
        ("DescribeLaunchTemplateVersions", "UnauthorizedOperation", false),
        ("CreateFleet", "InvalidParameterValue", true),
        ("CreateFleet", "UnauthorizedOperation", true),
    ] {
        let faults = Faults::new();
        faults.add(Service::Ec2, call, When::Always, Fault::Status(400, code));
        faults.add(
            Service::Ec2,
            "DescribeLaunchTemplateVersions",
            When::Always,
            Fault::Status(400, "UnauthorizedOperation"),
        );
        let checked = cloud.scheduler(&faults).check(&keys, true).await;
        assert_eq!(checked.is_err(), is_refused, "{call} {code}: {checked:?}");
    }
    for call in ["Query", "UpdateItem"] {
        let faults = Faults::new();
        faults.add(Service::Dynamodb, call, When::Always, Fault::Status(400, "AccessDeniedException"));
        faults.add(
            Service::Ec2,
            "DescribeLaunchTemplateVersions",
            When::Always,
            Fault::Status(400, "UnauthorizedOperation"),
        );
        assert!(cloud.scheduler(&faults).check(&keys, true).await.is_err(), "{call}");
    }
    let mut settings = TestCloud::scheduler_settings();
    settings.policy.bid_mode = Some(lighthpc::domain::policy::BidMode::SpotThenOnDemand);
    let incomplete = cloud.scheduler_with(&Faults::new(), settings);
    assert!(matches!(incomplete.check(&keys, false).await, Err(SchedulerError::Policy { .. })));
    assert_eq!(mission().await, None, "nothing was written");
    assert_eq!(running(&cloud).len(), 0, "nothing was launched");

    // A mission that is there, and was made otherwise.
    cloud.mission("M", &["M/a"]).await;
    cloud.mission("N", &["N/a"]).await;
    let before = mission().await;
    let scheduler = cloud.scheduler(&Faults::new());
    for other in [
        SubmitPlan { exec: Some("x".to_owned()), ..keys.clone() },
        SubmitPlan { nodes: Some(3), ..keys.clone() },
        SubmitPlan { slots: Some(3), ..keys.clone() },
        SubmitPlan { srcs: vec![src("N/a")], ..keys.clone() },
    ] {
        let refused = scheduler.check(&other, false).await.unwrap_err();
        let same = scheduler.prepare(&other).await.unwrap_err();
        assert_eq!(refused.to_string(), same.to_string());
    }
    scheduler.cancel(&mission_id("N"), Duration::ZERO).await.unwrap();
    let cancelled = SubmitPlan { mission: mission_id("N"), ..keys };
    assert!(matches!(scheduler.check(&cancelled, false).await, Err(SchedulerError::OtherTask { .. })));
    let cancelled = SubmitPlan { srcs: vec![src("N/b")], ..cancelled };
    assert!(matches!(scheduler.check(&cancelled, false).await, Err(SchedulerError::OtherMission { .. })));
    assert_eq!(mission().await, before);
}

#[tokio::test]
async fn a_listing_tells_which_objects_are_archived() {
    let cloud = TestCloud::new().await;
    let object = |key: &str, class: &str, more: &str| {
        format!("<Contents><Key>{key}</Key><Size>1</Size><StorageClass>{class}</StorageClass>{more}</Contents>")
    };
    let restored = "<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress>\
                    <RestoreExpiryDate>2030-01-01T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>";
    let restoring = "<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>";
    let body = [
        object("in/standard", "STANDARD", ""),
        object("in/instant", "GLACIER_IR", ""),
        object("in/tiered", "INTELLIGENT_TIERING", ""),
        object("in/glacier", "GLACIER", ""),
        object("in/deep", "DEEP_ARCHIVE", ""),
        object("in/restored", "GLACIER", restored),
        object("in/restoring", "DEEP_ARCHIVE", restoring),
        "<Contents><Key>in/odd</Key></Contents>".to_owned(),
    ];
    let body = format!(
        "<ListBucketResult><Name>source</Name><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
        body.concat()
    );
    let faults = Faults::new();
    faults.add(Service::S3, "ListObjectsV2", When::Nth(1), Fault::Raw(200, body));
    let store = cloud.scheduler(&faults).backend.store.clone();

    let objects = store.list_objects(SOURCE_BUCKET, "in/").await.unwrap();

    let archived: Vec<_> = objects.iter().filter(|it| it.is_archived).map(|it| it.key.as_str()).collect();
    assert_eq!((objects.len(), archived), (8, vec!["in/glacier", "in/deep", "in/restoring"]));
    // As the local cloud has them: nothing is archived.
    cloud.input("in/a", b"x").await;
    assert!(!store.list_objects(SOURCE_BUCKET, "in/").await.unwrap()[0].is_archived);
}

/// Two submissions to one mission at once, in every order of their steps: its number of tasks is that of its rows in the end.
#[tokio::test]
async fn two_submissions_to_a_mission_at_once_are_counted_together() {
    // A step is of the first or of the second; each has two: the mission, and the rows.
    for order in [[0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0]] {
        for already in [false, true] {
            let cloud = TestCloud::new().await;
            let scheduler = cloud.scheduler(&Faults::new());
            if already {
                cloud.mission("M", &["old"]).await;
            }
            let plans = [plan(&["a1", "a2", "a3", "a4"]), plan(&["b1", "b2", "b3"])];
            let mut prepared = [None, None];
            for who in order {
                match prepared[who].take() {
                    None => prepared[who] = Some(scheduler.prepare(&plans[who]).await.unwrap()),
                    Some(ready) => drop(scheduler.make_rows(&plans[who], &ready, |_| {}).await.unwrap()),
                }
            }
            let count = 7 + u64::from(already);
            assert_eq!(cloud.mission_row("M").await.trans_number, Some(count), "{order:?} {already}");
        }
    }
}

/// Another submission enlarges the mission just after it was made, before its maker has read it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mission_that_is_enlarged_as_soon_as_it_is_made_is_counted_whole() {
    let cloud = TestCloud::new().await;
    let (first, second) = (plan(&["a1", "a2", "a3", "a4"]), plan(&["b1", "b2", "b3"]));
    let faults = Faults::new();
    // The mission is looked for, made, and read.
    let gate = faults.hold_before(Service::Dynamodb, "GetItem", When::Nth(2));
    let maker = cloud.scheduler(&faults);
    let mut making = tokio::task::JoinSet::new();
    making.spawn(async move {
        let ready = maker.prepare(&first).await.unwrap();
        maker.make_rows(&first, &ready, |_| {}).await.unwrap();
    });
    gate.arrived(1).await;

    let scheduler = cloud.scheduler(&Faults::new());
    let ready = scheduler.prepare(&second).await.unwrap();
    scheduler.make_rows(&second, &ready, |_| {}).await.unwrap();
    gate.open();
    making.join_next().await.unwrap().unwrap();

    assert_eq!(cloud.mission_row("M").await.trans_number, Some(7));
}

/// Two submissions find no mission, and both make it: the second enlarges the first's.
/// A new table takes fewer writes than a submission makes: it slows down, and does not fail.
#[tokio::test]
async fn a_submission_that_is_throttled_slows_down() {
    let cloud = TestCloud::new().await;
    // Each more than the SDK's own tries of all its calls.
    let throttled = |operation, calls| {
        let fault = Fault::Status(400, "ProvisionedThroughputExceededException");
        cloud.scheduler(Faults::new().add(Service::Dynamodb, operation, When::First(calls), fault))
    };
    let plan = plan(&["a", "b", "c"]);

    let prepared = throttled("BatchGetItem", 8).prepare(&plan).await.unwrap();
    let submitted = throttled("PutItem", 40).make_rows(&plan, &prepared, |_| {}).await.unwrap();

    assert_eq!((submitted.made, cloud.mission_row("M").await.trans_number), (3, Some(3)));
}

#[tokio::test]
async fn of_two_submissions_that_make_a_mission_the_second_enlarges_it() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    let (first, second) = (plan(&["a1", "a2"]), plan(&["b1", "b2", "b3"]));
    let checked = scheduler.check(&second, false).await.unwrap();
    let ready = scheduler.prepare(&first).await.unwrap();

    let late = scheduler.prepare_checked(&second, checked).await.unwrap();
    scheduler.make_rows(&second, &late, |_| {}).await.unwrap();
    scheduler.make_rows(&first, &ready, |_| {}).await.unwrap();

    assert!(ready.is_new && !late.is_new);
    assert_eq!(cloud.mission_row("M").await.trans_number, Some(5));
    // Of another workload, it is refused.
    let other = SubmitPlan { exec: Some("other".to_owned()), ..plan(&["c"]) };
    assert!(matches!(scheduler.prepare(&other).await, Err(SchedulerError::OtherMission { .. })));
}
