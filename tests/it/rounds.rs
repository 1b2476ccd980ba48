//! Launches whose answers are not known: what is repeated, what is waited for, and who gives back what was taken for them.

use aws_sdk_dynamodb::types::AttributeValue;
use lighthpc::backend::fleet::Template;
use lighthpc::domain::node_limit::NodeLimit;
use lighthpc::domain::policy::{BidMode, Policy, words};
use lighthpc::scheduler::{Ingested, LaunchResult, OwnLimits, SchedulerSettings, What};
use local_cloud::Service::{Dynamodb, Ec2};
use local_cloud::{Fault, Faults, When};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::scheduler::{board, no_room, running, sweep};
use crate::test_cloud::{TestCloud, text};

/// A scheduler with a limit that it never reaches, so that nodes are counted.
fn counting() -> SchedulerSettings {
    let node_limits = OwnLimits { at_a_time: NodeLimit::Most(50), per_hour: NodeLimit::Most(50) };
    SchedulerSettings { node_limits, ..TestCloud::scheduler_settings() }
}

async fn count(cloud: &TestCloud) -> i64 {
    cloud.backend.ledger.node_count().await.unwrap().unwrap().taken
}

fn always(fault: Fault) -> Faults {
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Always, fault);
    faults
}

/// A mission of `nodes` nodes whose first round was asked for, with one fault at EC2.
async fn with_round(nodes: u64, fault: Fault) -> TestCloud {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c", "d", "e"]).await;
    cloud.set_mission_number("M", "nodes", nodes).await;
    cloud.scheduler_with(&always(fault), counting()).sweep(&CancellationToken::new()).await.unwrap();
    assert_eq!(cloud.mission_row("M").await.requests.len(), 1);
    cloud
}

fn launched(found: &[(What, String)]) -> usize {
    found.iter().filter(|(what, _)| *what == What::Launched).count()
}

#[tokio::test]
async fn a_round_whose_nodes_show_is_settled_and_blocks_nothing() {
    let cloud = with_round(3, Fault::FailAfter).await;
    let scheduler = cloud.scheduler_with(&Faults::new(), counting());
    assert_eq!(sweep(&scheduler).await, []);
    let row = cloud.mission_row("M").await;
    assert!(row.requests.is_empty() && row.launch_error.is_none(), "{row:?}");

    cloud.local.reclaim_instance(&running(&cloud)[0]);
    assert_eq!(launched(&sweep(&scheduler).await), 1);
    assert_eq!((running(&cloud).len(), cloud.local.instances().len()), (3, 4));
}

/// Of three nodes two show: the third is not replaced before it must show, and three are not launched again for it.
#[tokio::test]
async fn a_round_that_is_more_than_what_is_missing_is_waited_for() {
    let cloud = with_round(3, Fault::FailAfter).await;
    let hidden = running(&cloud)[0].clone();
    cloud.local.show_instance(&hidden, false);
    let scheduler = cloud.scheduler_with(&Faults::new(), counting());
    assert_eq!(sweep(&scheduler).await, [(What::NoNode, "M".to_owned())]);
    assert!(cloud.mission_row("M").await.launch_error.unwrap().contains("may not list"));

    // It never was, after all: what EC2 has not shown for five minutes is not there.
    cloud.age_launches(None, Some("M"), 300).await;
    assert_eq!(launched(&sweep(&scheduler).await), 1);
    let row = cloud.mission_row("M").await;
    assert!(row.requests.is_empty() && row.launch_error.is_none(), "{row:?}");
}

/// The mission wants fewer nodes by now, or other ones, or there is less room: the round is not repeated, and not for ever.
#[tokio::test]
async fn a_round_that_cannot_be_repeated_is_given_up_when_it_would_show() {
    let policy = Policy { instance_types: words("c5.large"), ..Policy::default() };
    let few = OwnLimits { at_a_time: NodeLimit::Most(2), per_hour: NodeLimit::Most(5) };
    for (settings, nodes) in [
        (counting(), 2),
        (SchedulerSettings { policy, ..counting() }, 3),
        (SchedulerSettings { node_limits: few, ..counting() }, 3),
    ] {
        let cloud = with_round(3, Fault::FailBefore).await;
        // As after two epochs, so that the limit leaves no room for all of it.
        cloud.set_mission_number("~nodes", "nodesInEpoch", 0).await;
        cloud.set_mission_number("~nodes", "nodes", 0).await;
        cloud.set_mission_number("M", "nodes", nodes).await;
        let scheduler = cloud.scheduler_with(&Faults::new(), settings);
        assert_eq!(launched(&sweep(&scheduler).await), 0, "{nodes}");
        cloud.age_launches(None, Some("M"), 300).await;
        assert_eq!(launched(&sweep(&scheduler).await), running(&cloud).len());
        let wanted = if scheduler.settings.node_limits == few { 2 } else { nodes };
        assert_eq!(running(&cloud).len() as u64, wanted);
        assert!(cloud.mission_row("M").await.requests.is_empty());
    }
}

/// A time ahead of all clocks, or no time, is no reason to wait for ever; nor is a round whose number was edited.
#[tokio::test]
async fn an_edited_round_blocks_nothing() {
    for (name, value) in [
        ("launchRequests[0].askedAt", AttributeValue::N("99999999999".to_owned())),
        ("launchRequests[0].askedAt", text("soon")),
        ("launchRequests[0].token", AttributeValue::Bool(true)),
        ("launchRequests[0].types", text("p5.48xlarge")),
        ("launchRound", text("many")),
        ("nodesLaunched", text("many")),
    ] {
        let cloud = with_round(3, Fault::FailBefore).await;
        cloud.age_launches(None, Some("M"), 300).await;
        cloud.set_path("M", name, value).await;
        let scheduler = cloud.scheduler_with(&Faults::new(), counting());
        sweep(&scheduler).await;
        assert_eq!((running(&cloud).len(), sweep(&scheduler).await), (3, vec![]), "{name}");
        let asked = cloud.local.requests("CreateFleet");
        assert!(asked.iter().all(|request| !request.values().any(|value| value == "p5.48xlarge")), "{asked:?}");
    }
}

/// While one scheduler waits for EC2's answer, another launches nothing. Then the first is thought dead, and the second repeats.
/// EC2 has no room for either: what was taken is given back once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_ask_for_one_round_one_gives_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    cloud.set_mission_number("M", "nodes", 3).await;
    let (slow, quick) = (always(no_room()), always(no_room()));
    let gate = slow.hold_before(Ec2, "CreateFleet", When::Nth(1));
    let first = cloud.scheduler_with(&slow, counting());
    let mut work = JoinSet::new();
    work.spawn(async move { first.sweep(&CancellationToken::new()).await.unwrap() });
    gate.arrived(1).await;
    let second = cloud.scheduler_with(&quick, counting());
    assert_eq!(sweep(&second).await, []);
    assert_eq!((quick.count(Ec2, "CreateFleet"), count(&cloud).await), (0, 3));

    cloud.age_launches(None, Some("M"), 150).await;
    assert_eq!(sweep(&second).await, [(What::NoNode, "M".to_owned())]);
    assert_eq!((quick.count(Ec2, "CreateFleet"), count(&cloud).await), (1, 0));
    gate.open();
    work.join_next().await.unwrap().unwrap();
    assert_eq!(count(&cloud).await, 0);
    let tokens = cloud.local.requests("CreateFleet");
    assert!(tokens.iter().all(|request| request["ClientToken"] == tokens[0]["ClientToken"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_ask_for_one_node_one_gives_back() {
    let cloud = TestCloud::new().await;
    let (slow, quick) = (always(no_room()), always(no_room()));
    let gate = slow.hold_before(Ec2, "CreateFleet", When::Nth(1));
    let first = cloud.scheduler_with(&slow, counting());
    let mut work = JoinSet::new();
    work.spawn(async move { board(&first, "abc").await });
    gate.arrived(1).await;
    let second = cloud.scheduler_with(&quick, counting());
    let row = cloud.task("abc").await;
    let (one, two) = tokio::join!(second.launch_for(&row, None), second.launch_for(&row, None));
    assert!(matches!(
        (&one, &two),
        (Ok(LaunchResult::Waits(_)), Ok(LaunchResult::NotNeeded))
            | (Ok(LaunchResult::NotNeeded), Ok(LaunchResult::Waits(_)))
    ));
    assert_eq!((quick.count(Ec2, "CreateFleet"), count(&cloud).await), (1, 0));
    gate.open();
    assert!(matches!(work.join_next().await.unwrap(), Ok(Ingested::Waits(_))));
    assert_eq!(count(&cloud).await, 0);
    assert!(matches!(board(&cloud.scheduler_with(&Faults::new(), counting()), "def").await, Ingested::Launched(_)));
    assert_eq!(count(&cloud).await, 1);
}

/// One scheduler may not ask which types the region offers, the other may: the repeat has the types of the first.
#[tokio::test]
async fn a_repeat_has_the_types_of_the_first_request() {
    let cloud = TestCloud::new().await;
    let types = |types: &str| {
        let policy = Policy { instance_types: words(types), ..Policy::default() };
        SchedulerSettings { policy, ..TestCloud::scheduler_settings() }
    };
    let faults = always(Fault::FailAfter);
    faults.add(Ec2, "DescribeInstanceTypeOfferings", When::Always, Fault::Status(403, "UnauthorizedOperation"));
    assert!(matches!(
        board(&cloud.scheduler_with(&faults, types("m5.large,c5.large")), "abc").await,
        Ingested::Waits(_)
    ));
    cloud.local.show_instance(&running(&cloud)[0], false);
    cloud.local.offer_types(&["m5.large", "c5.large"]);

    let second = cloud.scheduler_with(&Faults::new(), types("c5.large,m5.large,r5.large"));
    assert!(matches!(second.launch_for(&cloud.task("abc").await, None).await, Ok(LaunchResult::Launched(_))));

    let asked = cloud.local.requests("CreateFleet");
    assert!(asked.iter().all(|request| *request == asked[0]), "{asked:?}");
    assert_eq!(running(&cloud).len(), 1);
}

/// The types have changed since, and EC2 does not show the first instance yet: never two nodes for one task.
#[tokio::test]
async fn a_node_that_may_not_show_yet_is_waited_for() {
    let cloud = TestCloud::new().await;
    let policy = Policy { instance_types: words("c5.large"), ..Policy::default() };
    let other = cloud.scheduler_with(&Faults::new(), SchedulerSettings { policy, ..counting() });
    for (key, is_there) in [("abc", true), ("def", false)] {
        let fault = if is_there { Fault::FailAfter } else { Fault::FailBefore };
        assert!(matches!(board(&cloud.scheduler_with(&always(fault), counting()), key).await, Ingested::Waits(_)));
        for instance in running(&cloud) {
            cloud.local.show_instance(&instance, false);
        }
        let asked = cloud.local.requests("CreateFleet").len();
        for _ in 0..2 {
            let node = other.launch_for(&cloud.task(key).await, None).await.unwrap();
            assert!(matches!(node, LaunchResult::Waits(why) if why.contains("may not list")), "{key}");
        }
        assert_eq!((cloud.local.requests("CreateFleet").len(), count(&cloud).await), (asked, 1), "{key}: taken once");
        for instance in running(&cloud) {
            cloud.local.show_instance(&instance, true);
        }
        if !is_there {
            cloud.age_launches(Some(key), None, 300).await;
        }
        assert!(matches!(other.launch_for(&cloud.task(key).await, None).await, Ok(LaunchResult::Launched(_))), "{key}");
        assert_eq!((running(&cloud).len(), count(&cloud).await), (1, 1), "{key}");
        cloud.local.reclaim_instance(&running(&cloud)[0]);
        sweep(&other).await;
        cloud.set_value(key, "state", text("done")).await;
        for instance in running(&cloud) {
            cloud.local.reclaim_instance(&instance);
        }
        sweep(&other).await;
        assert_eq!(count(&cloud).await, 0);
    }
}

/// The image was updated, and the role may launch the new one alone: the repeat is refused, and others get their nodes.
#[tokio::test]
async fn a_repeat_that_is_refused_ends_no_sweep_and_loses_no_node() {
    let with_version = |version: &str| {
        let template = Template { name: "nodes".to_owned(), version: version.to_owned() };
        SchedulerSettings { template: Some(template), ..counting() }
    };
    for is_there in [true, false] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["m"]).await;
        cloud.set_mission_number("M", "nodes", 1).await;
        let first = cloud
            .scheduler_with(&always(if is_there { Fault::FailAfter } else { Fault::FailBefore }), with_version("1"));
        assert!(matches!(board(&first, "abc").await, Ingested::Waits(_)));
        first.sweep(&CancellationToken::new()).await.unwrap();
        let hidden = running(&cloud);
        for instance in &hidden {
            cloud.local.show_instance(instance, false);
        }
        cloud.set_attribute("abc", "launchAfter", "2026-01-01T00:00:00Z").await;
        cloud.mission("N", &["def"]).await;

        let faults = Faults::new();
        faults.add(Ec2, "CreateFleet", When::First(2), Fault::Status(403, "UnauthorizedOperation"));
        let second = cloud.scheduler_with(&faults, with_version("2"));
        let found = sweep(&second).await;
        let waits = ["M", "abc"].map(|subject| (What::NoNode, subject.to_owned()));
        assert!(waits.iter().all(|waits| found.contains(waits)), "{found:?}");
        assert!(found.contains(&(What::Launched, "def".to_owned())), "{found:?}");

        cloud.set_attribute("abc", "launchAfter", "2026-01-01T00:00:00Z").await;
        if is_there {
            for instance in &hidden {
                cloud.local.show_instance(instance, true);
            }
        } else {
            cloud.age_launches(Some("abc"), Some("M"), 300).await;
            // The repeats: the mission's, then the task's.
            for n in [1, 3] {
                faults.add(Ec2, "CreateFleet", When::Nth(n), Fault::Status(403, "UnauthorizedOperation"));
            }
        }
        sweep(&second).await;
        let mission = cloud.mission_row("M").await;
        // What was taken for a round that is given up is forgotten with its epoch: some of it might still show.
        let counted = if is_there { 3 } else { 4 };
        assert_eq!((running(&cloud).len(), mission.requests.len(), count(&cloud).await), (3, 0, counted), "{is_there}");
        let its =
            cloud.local.instances().into_iter().filter(|it| it.tags.contains(&("srcID".to_owned(), "abc".to_owned())));
        assert_eq!(its.count(), 1, "{is_there}");
    }
}

/// A mission has so many nodes, whoever launches them: uploads, a submission, a sweep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_and_rounds_share_a_missions_nodes() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    cloud.set_mission_number("M", "nodes", 3).await;
    let scheduler = cloud.scheduler_with(&Faults::new(), counting());
    sweep(&scheduler).await;
    for n in 0..4 {
        assert_eq!(board(&scheduler, &format!("M/{n}")).await, Ingested::Queued);
    }
    assert_eq!(cloud.local.instances().len(), 3);

    // An upload's launch is under way, and does not show: a sweep does not count without it, nor does another upload.
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    cloud.set_mission_number("M", "nodes", 3).await;
    let slow = Faults::new();
    let gate = slow.hold_after(Ec2, "CreateFleet", When::Nth(1));
    let upload = cloud.scheduler_with(&slow, counting());
    let mut work = JoinSet::new();
    work.spawn(async move { board(&upload, "M/0").await });
    gate.arrived(1).await;
    let scheduler = cloud.scheduler_with(&Faults::new(), counting());
    assert_eq!(board(&scheduler, "M/1").await, Ingested::Queued);
    assert_eq!(launched(&sweep(&scheduler).await), 0);
    gate.open();
    assert!(matches!(work.join_next().await.unwrap(), Ok(Ingested::Launched(_))));
    assert_eq!(launched(&sweep(&scheduler).await), 2);
    let boarded = [board(&scheduler, "M/2").await, board(&scheduler, "M/3").await];
    assert_eq!((boarded, cloud.local.instances().len()), ([Ingested::Queued, Ingested::Queued], 3));
}

/// An upload's launch whose answer is lost is repeated by a sweep, as any round.
#[tokio::test]
async fn the_launch_of_an_upload_to_a_mission_is_repeated() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.set_mission_number("M", "nodes", 2).await;
    let first = cloud.scheduler_with(&always(Fault::FailAfter), counting());
    assert!(matches!(board(&first, "M/0").await, Ingested::Waits(_)));
    cloud.local.show_instance(&running(&cloud)[0], false);
    let second = cloud.scheduler_with(&Faults::new(), counting());
    assert_eq!(launched(&sweep(&second).await), 1);
    assert_eq!((cloud.local.instances().len(), count(&cloud).await), (1, 1));
    assert!(cloud.mission_row("M").await.requests.is_empty());
}

fn mixed(floor: u32) -> SchedulerSettings {
    let policy = Policy { bid_mode: Some(BidMode::Mix), on_demand_floor: Some(floor), ..Policy::default() };
    SchedulerSettings { policy, ..counting() }
}

/// How many On-Demand instances were asked for, of the newest `n` requests.
fn on_demand(cloud: &TestCloud, n: usize) -> usize {
    let asked = cloud.local.requests("CreateFleet");
    let kind = "TargetCapacitySpecification.DefaultTargetCapacityType";
    asked.iter().rev().take(n).filter(|request| request[kind] == "on-demand").count()
}

/// A launch that fails does not use up the floor of On-Demand nodes, however it fails.
#[tokio::test]
async fn what_is_not_launched_does_not_count_for_the_floor() {
    for fault in [
        no_room(),
        Fault::Status(400, "InsufficientInstanceCapacity"),
        Fault::Status(400, "InvalidParameterValue"),
        Fault::Status(400, "IdempotentParameterMismatch"),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &[]).await;
        let failing = cloud.scheduler_with(&always(fault.clone()), mixed(1));
        assert!(matches!(board(&failing, "M/a").await, Ingested::Waits(_)));
        // The answer is lost, and the repeat finds no room.
        let lost = cloud.scheduler_with(&always(Fault::FailBefore), mixed(1));
        assert!(matches!(board(&lost, "M/b").await, Ingested::Waits(_)));
        let mission = cloud.mission_row("M").await;
        let again = cloud.scheduler_with(&always(no_room()), mixed(1));
        assert!(matches!(again.launch_for(&cloud.task("M/b").await, Some(&mission)).await, Ok(LaunchResult::Waits(_))));
        assert_eq!(count(&cloud).await, 0, "{fault:?}");

        let scheduler = cloud.scheduler_with(&Faults::new(), mixed(1));
        for key in ["M/c", "M/d"] {
            assert!(matches!(board(&scheduler, key).await, Ingested::Launched(_)));
        }
        assert_eq!((on_demand(&cloud, 2), on_demand(&cloud, 1)), (1, 0), "{fault:?}");
    }
}

/// The SDK sends a call again whose answer was lost: nothing is counted twice.
#[tokio::test]
async fn what_the_sdk_repeats_is_counted_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.mission("N", &["n1", "n2"]).await;
    cloud.set_mission_number("N", "nodes", 2).await;
    let faults = Faults::new();
    for operation in ["UpdateItem", "TransactWriteItems"] {
        // Each second call: so a call is lost once, and what it is repeated with is not.
        for n in 0..100 {
            faults.add(Dynamodb, operation, When::Nth(2 * n + 1), Fault::StatusAfter(500, "InternalServerError"));
        }
    }
    faults.add(Ec2, "CreateFleet", When::First(1), no_room());
    let scheduler = cloud.scheduler_with(&faults, mixed(1));
    for key in ["M/a", "M/b", "M/c"] {
        board(&scheduler, key).await;
    }
    scheduler.sweep(&CancellationToken::new()).await.unwrap();
    let seen = cloud.backend.ledger.node_count().await.unwrap().unwrap();
    let nodes = i64::try_from(running(&cloud).len()).unwrap();
    assert_eq!((seen.taken, seen.in_epoch, seen.in_hour), (nodes, nodes, nodes));
    assert_eq!(cloud.mission_row("N").await.nodes_launched, 2);
}

/// A filter takes `*` for any characters; a task's name does not.
#[tokio::test]
async fn a_name_with_a_wildcard_finds_its_own_instance_alone() {
    for (key, other) in [("a*", "abc"), ("a?", "ab"), (r"a\b", "ab")] {
        let cloud = TestCloud::new().await;
        let faults = always(Fault::FailAfter);
        assert!(matches!(board(&cloud.scheduler(&faults), key).await, Ingested::Waits(_)));
        let its = running(&cloud)[0].clone();
        assert!(matches!(board(&cloud.scheduler(&Faults::new()), other).await, Ingested::Launched(_)));
        let policy = Policy { instance_types: words("c5.large"), ..Policy::default() };
        let scheduler =
            cloud.scheduler_with(&Faults::new(), SchedulerSettings { policy, ..TestCloud::scheduler_settings() });
        let node = scheduler.launch_for(&cloud.task(key).await, None).await.unwrap();
        assert_eq!(node, LaunchResult::Launched(its), "{key}");
    }
    // Of any other name the instances of that name alone are listed.
    let cloud = TestCloud::new().await;
    assert!(matches!(board(&cloud.scheduler(&always(Fault::FailAfter)), "abc").await, Ingested::Waits(_)));
    let policy = Policy { instance_types: words("c5.large"), ..Policy::default() };
    let scheduler =
        cloud.scheduler_with(&Faults::new(), SchedulerSettings { policy, ..TestCloud::scheduler_settings() });
    assert!(matches!(scheduler.launch_for(&cloud.task("abc").await, None).await, Ok(LaunchResult::Launched(_))));
    let listed = cloud.local.requests("DescribeInstances");
    assert!(listed.iter().all(|request| request.values().any(|value| value == "tag:srcID")), "{listed:?}");
}
