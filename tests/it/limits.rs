//! The deployment's limits of nodes: never more than the limit, whatever happens at the same moment, and never stuck below it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::domain::node_limit::{NodeLimit, NodeLimits};
use lighthpc::scheduler::{Ingested, OwnLimits, SchedulerSettings, What};
use local_cloud::Service::{Dynamodb, Ec2};
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::scheduler::{board, running, sweep};
use crate::test_cloud::{TestCloud, mission_id, text};

fn limited(at_a_time: NodeLimit, per_hour: NodeLimit) -> SchedulerSettings {
    SchedulerSettings { node_limits: OwnLimits { at_a_time, per_hour }, ..TestCloud::scheduler_settings() }
}

fn most(n: u64) -> SchedulerSettings {
    limited(NodeLimit::Most(n), NodeLimit::Stored)
}

async fn count(cloud: &TestCloud) -> i64 {
    cloud.backend.ledger.node_count().await.unwrap().unwrap().taken
}

/// Makes the next sweep begin an epoch, as after ten minutes.
async fn age_epoch(cloud: &TestCloud) {
    cloud.set_mission_number("~nodes", "epochSince", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_uploads_with_a_limit_of_three_have_three_nodes_at_a_time() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let schedulers = [cloud.scheduler_with(&Faults::new(), most(3)), cloud.scheduler_with(&Faults::new(), most(3))];
    let mut uploads = JoinSet::new();
    for n in 0..1000 {
        let scheduler = schedulers[n % 2].clone();
        uploads.spawn(async move { board(&scheduler, &format!("M/{n}")).await });
        if uploads.len() >= 20 {
            uploads.join_next().await;
        }
    }
    while uploads.join_next().await.is_some() {}
    assert_eq!((running(&cloud).len(), cloud.local.instances().len(), count(&cloud).await), (3, 3, 3));
    assert_eq!(cloud.backend.ledger.missions().await.unwrap().len(), 1, "the count is no mission");
    let mut held = 0;
    for n in 0..1000 {
        held +=
            usize::from(cloud.task(&format!("M/{n}")).await.launch.error.is_some_and(|why| why.contains("limit of 3")));
    }
    assert_eq!(held, 997, "each row says what holds it back");

    for round in 1..=3 {
        for instance in running(&cloud).into_iter().take(2) {
            cloud.local.reclaim_instance(&instance);
        }
        tokio::join!(sweep(&schedulers[0]), sweep(&schedulers[1]));
        assert!(running(&cloud).len() <= 3);
        // What both have counted at the same moment, the next corrects.
        sweep(&schedulers[0]).await;
        assert_eq!((running(&cloud).len(), cloud.local.instances().len()), (3, 3 + 2 * round));
    }
}

#[tokio::test]
async fn without_a_limit_there_is_no_count_and_one_read() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    let scheduler = cloud.scheduler(&faults);
    board(&scheduler, "abc").await;
    assert_eq!((faults.count(Dynamodb, "GetItem"), faults.count(Dynamodb, "UpdateItem")), (1, 2));
    sweep(&scheduler).await;
    assert_eq!(cloud.backend.ledger.node_count().await.unwrap(), None);
}

#[tokio::test]
async fn a_client_obeys_the_limit_that_the_deployments_sweep_has_stored() {
    let cloud = TestCloud::new().await;
    let (client, function) = (cloud.scheduler(&Faults::new()), cloud.scheduler_with(&Faults::new(), most(1)));
    // What ran before there was a limit counts.
    board(&client, "a").await;
    sweep(&function).await;
    assert!(matches!(board(&client, "b").await, Ingested::Waits(why) if why.contains("limit of 1 nodes")));
    // Its own limit, if that is lower; else the stored one.
    let greedy = cloud.scheduler_with(&Faults::new(), most(100));
    assert!(matches!(board(&greedy, "c").await, Ingested::Waits(why) if why.contains("limit of 1 nodes")));

    // The deployment has more now, then none; 0 stops everything.
    sweep(&cloud.scheduler_with(&Faults::new(), most(2))).await;
    assert_eq!(running(&cloud).len(), 2);
    let none = cloud.scheduler_with(&Faults::new(), limited(NodeLimit::Unlimited, NodeLimit::Unlimited));
    sweep(&none).await;
    sweep(&none).await;
    assert_eq!(running(&cloud).len(), 3);
    assert!(matches!(board(&client, "d").await, Ingested::Launched(_)));
    sweep(&cloud.scheduler_with(&Faults::new(), most(0))).await;
    assert!(matches!(board(&client, "e").await, Ingested::Waits(_)));
}

/// The limit binds others from the first launch on: no sweep has stored it yet.
#[tokio::test]
async fn a_limit_is_stored_when_nodes_are_first_counted() {
    let cloud = TestCloud::new().await;
    let (function, client) = (
        cloud.scheduler_with(&Faults::new(), limited(NodeLimit::Most(1), NodeLimit::Most(7))),
        cloud.scheduler(&Faults::new()),
    );
    board(&function, "a").await;
    assert!(matches!(board(&client, "b").await, Ingested::Waits(why) if why.contains("limit of 1 nodes")));
    let stored = cloud.backend.ledger.node_count().await.unwrap().unwrap().limits;
    assert_eq!(stored, NodeLimits { at_a_time: Some(1), per_hour: Some(7) });
}

/// A clock that was ahead, or a hand, has left an hour that is not this one: it holds nothing back, and is not for ever.
#[tokio::test]
async fn an_hour_that_is_not_this_one_does_not_count() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler_with(&Faults::new(), limited(NodeLimit::Stored, NodeLimit::Most(2)));
    board(&scheduler, "first").await;
    for hour in ["2999-01-01T00", "zzz", "2026-01-01T00", ""] {
        cloud.set_mission_attribute("~nodes", "hour", hour).await;
        cloud.set_mission_number("~nodes", "nodesInHour", 99).await;
        assert!(matches!(board(&scheduler, &format!("a-{hour}")).await, Ingested::Launched(_)), "{hour}");
        assert!(matches!(board(&scheduler, &format!("b-{hour}")).await, Ingested::Launched(_)), "{hour}");
        assert!(matches!(board(&scheduler, &format!("c-{hour}")).await, Ingested::Waits(_)), "{hour}");
    }
}

#[tokio::test]
async fn nodes_of_one_hour_are_limited() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler_with(&Faults::new(), limited(NodeLimit::Stored, NodeLimit::Most(2)));
    for key in ["a", "b"] {
        assert!(matches!(board(&scheduler, key).await, Ingested::Launched(_)));
    }
    for instance in running(&cloud) {
        cloud.local.reclaim_instance(&instance);
    }
    assert!(matches!(board(&scheduler, "c").await, Ingested::Waits(why) if why.contains("2 nodes an hour")));
    sweep(&scheduler).await;
    assert_eq!(running(&cloud).len(), 0, "they have ended, and the hour has not");

    cloud.set_mission_attribute("~nodes", "hour", "2026-01-01T00").await;
    sweep(&scheduler).await;
    assert_eq!(running(&cloud).len(), 2);
}

#[tokio::test]
async fn a_mission_gets_as_many_nodes_as_fit() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c", "d", "e"]).await;
    cloud.set_mission_number("M", "nodes", 5).await;
    let scheduler = cloud.scheduler_with(&Faults::new(), most(3));

    let found = sweep(&scheduler).await;

    assert_eq!(found.iter().filter(|(what, _)| *what == What::Launched).count(), 3);
    assert_eq!((running(&cloud).len(), cloud.local.requests("CreateFleet").len(), count(&cloud).await), (3, 1, 3));
    assert!(cloud.mission_row("M").await.launch_error.unwrap().contains("limit of 3 nodes"));
    assert_eq!(sweep(&scheduler).await, [(What::NoNode, "M".to_owned())]);
    cloud.local.reclaim_instance(&running(&cloud)[0]);
    sweep(&scheduler).await;
    assert_eq!(running(&cloud).len(), 3);
}

/// EC2 has room for one of three, or for none, or refuses: what it did not launch may be launched for others.
#[tokio::test]
async fn what_ec2_does_not_launch_is_given_back() {
    for fault in [Fault::Status(400, "InsufficientInstanceCapacity"), Fault::Status(400, "InvalidParameterValue")] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["a", "b", "c"]).await;
        cloud.set_mission_number("M", "nodes", 3).await;
        let faults = Faults::new();
        faults.add(Ec2, "CreateFleet", When::First(2), fault);
        let scheduler = cloud.scheduler_with(&faults, most(3));
        assert!(matches!(board(&scheduler, "x").await, Ingested::Waits(_)));
        assert_eq!(count(&cloud).await, 0);
        scheduler.sweep(&CancellationToken::new()).await.unwrap();
        assert_eq!(count(&cloud).await, 0);
        assert!(matches!(board(&scheduler, "y").await, Ingested::Launched(_)));
        assert_eq!(count(&cloud).await, 1);
    }
}

/// A duplicate event, or a task that another scheduler launches, takes nothing.
#[tokio::test]
async fn a_launch_that_is_not_needed_is_given_back() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler_with(&Faults::new(), most(3));
    board(&scheduler, "abc").await;
    assert_eq!(board(&scheduler, "abc").await, Ingested::Duplicate);
    let row = cloud.task("abc").await;
    cloud.local.reclaim_instance(row.launch.instance.as_deref().unwrap());
    let (one, two) = tokio::join!(scheduler.launch_for(&row, None), scheduler.launch_for(&row, None));
    assert!(one.is_ok() && two.is_ok());
    assert_eq!((running(&cloud).len(), count(&cloud).await), (1, 2), "the ended one is counted until a sweep");
    sweep(&scheduler).await;
    assert_eq!(count(&cloud).await, 1);
}

/// The scheduler dies between take and launch. No more than the limit run, and in the end as many as the limit allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_take_and_launch_is_healed_by_sweeps() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Ec2, "CreateFleet", When::Nth(1));
    let dying = cloud.scheduler_with(&faults, most(1));
    tokio::select! {
        boarded = board(&dying, "abc") => panic!("{boarded:?}"),
        () = gate.arrived(1) => {}
    }
    let scheduler = cloud.scheduler_with(&Faults::new(), most(1));
    assert!(matches!(board(&scheduler, "def").await, Ingested::Waits(_)), "it may have been launched");
    sweep(&scheduler).await;
    assert_eq!((running(&cloud).len(), count(&cloud).await), (1, 1), "the same launch, and taken once");
    cloud.local.reclaim_instance(&running(&cloud)[0]);
    cloud.backend.ledger.cancel_mission(&mission_id("M"), "2026-01-01T00:00:00Z").await.unwrap();

    // A launch that no row tells of: it is forgotten when it cannot show any more.
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a"]).await;
    cloud.set_mission_number("M", "nodes", 1).await;
    let scheduler = cloud.scheduler_with(&Faults::new(), most(1));
    sweep(&scheduler).await;
    cloud.local.reclaim_instance(&running(&cloud)[0]);
    sweep(&scheduler).await;
    cloud.local.reclaim_instance(&running(&cloud)[0]);
    let seen = cloud.backend.ledger.node_count().await.unwrap().unwrap();
    cloud.backend.ledger.take_nodes(&seen, 1, 0, NodeLimits::default()).await.unwrap();
    assert_eq!(count(&cloud).await, 2, "one that has ended, and one that never was");
    sweep(&scheduler).await;
    assert_eq!(running(&cloud).len(), 0);
    age_epoch(&cloud).await;
    sweep(&scheduler).await;
    assert_eq!(running(&cloud).len(), 0, "it may still show");
    age_epoch(&cloud).await;
    sweep(&scheduler).await;
    assert_eq!((running(&cloud).len(), count(&cloud).await), (1, 1));
}

/// EC2 shows a new instance late: a sweep in between does not take it for ended.
#[tokio::test]
async fn what_does_not_show_yet_is_counted() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler_with(&Faults::new(), most(2));
    for key in ["a", "b"] {
        board(&scheduler, key).await;
    }
    for instance in running(&cloud) {
        cloud.local.show_instance(&instance, false);
    }
    for _ in 0..2 {
        sweep(&scheduler).await;
        assert!(matches!(board(&scheduler, "c").await, Ingested::Waits(_) | Ingested::Duplicate));
        assert_eq!(running(&cloud).len(), 2);
    }
}

/// Two sweeps, launches, and ends at the same moments: the count never lets more run than the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_schedulers_never_exceed_the_limit() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    let schedulers: Vec<_> = (0..4).map(|_| cloud.scheduler_with(&Faults::new(), most(5))).collect();
    for round in 0..10 {
        let mut work = JoinSet::new();
        for (n, scheduler) in schedulers.iter().cloned().enumerate() {
            work.spawn(async move {
                for k in 0..5 {
                    board(&scheduler, &format!("M/{round}-{n}-{k}")).await;
                }
            });
        }
        for scheduler in &schedulers[..2] {
            let scheduler = scheduler.clone();
            work.spawn(async move {
                let stop = CancellationToken::new();
                stop.cancel();
                scheduler.sweep(&stop).await.unwrap();
            });
        }
        if let Some(instance) = running(&cloud).first() {
            cloud.local.reclaim_instance(instance);
        }
        while !work.is_empty() {
            assert!(running(&cloud).len() <= 5);
            if let Ok(Some(ended)) = tokio::time::timeout(Duration::from_millis(5), work.join_next()).await {
                ended.unwrap();
            }
        }
        assert!(running(&cloud).len() <= 5);
    }
    sweep(&schedulers[0]).await;
    assert_eq!(running(&cloud).len(), 5);
}

/// A count that a person has edited is made again, from what EC2 has; a limit that cannot be read holds everything.
#[tokio::test]
async fn an_edited_count_is_made_again() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler_with(&Faults::new(), most(2));
    board(&scheduler, "a").await;
    for (name, value) in [
        ("nodes", text("many")),
        ("nodesInEpoch", text("7")),
        ("epoch", AttributeValue::Bool(true)),
        ("counted", text("x")),
        ("nodesInHour", text("x")),
    ] {
        cloud.set_mission_value("~nodes", name, value).await;
        cloud.set_mission_value("~nodes", "hour", text("2026-01-01T00")).await;
        assert!(matches!(board(&scheduler, name).await, Ingested::Launched(_)), "{name}");
        assert_eq!((running(&cloud).len(), count(&cloud).await), (2, 2), "{name}");
        cloud.local.reclaim_instance(&running(&cloud)[1]);
        cloud.set_mission_number("~nodes", "nodes", 1).await;
    }
    cloud.set_mission_value("~nodes", "maxNodes", text("many")).await;
    assert!(matches!(board(&scheduler, "last").await, Ingested::Waits(why) if why.contains("limit of 0")));
}
