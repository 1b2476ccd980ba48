//! What a launch asks EC2 for: pools that it accepts, tokens that launch once, and what is said of an instance that ended early.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use lighthpc::backend::fleet::Template;
use lighthpc::domain::policy::{Policy, words};
use lighthpc::domain::task::State;
use lighthpc::scheduler::{Ingested, LaunchResult, Scheduler, SchedulerSettings, What};
use local_cloud::Service::{Dynamodb, Ec2};
use local_cloud::{Fault, Faults, When};
use tokio_util::sync::CancellationToken;

use crate::scheduler::{board, running, sweep};
use crate::test_cloud::{TestCloud, mission_id};

fn with_pools(types: &str, subnets: &str) -> SchedulerSettings {
    let policy = Policy { instance_types: words(types), ..Policy::default() };
    SchedulerSettings { policy, subnets: words(subnets), ..TestCloud::scheduler_settings() }
}

fn with_version(version: &str) -> SchedulerSettings {
    let template = Template { name: "nodes".to_owned(), version: version.to_owned() };
    SchedulerSettings { template: Some(template), ..TestCloud::scheduler_settings() }
}

/// The values of one field of a request's pools.
fn named(request: &BTreeMap<String, String>, field: &str) -> BTreeSet<String> {
    let is_one = |key: &str| key.contains(".Overrides.") && key.ends_with(field);
    request.iter().filter(|(key, _)| is_one(key)).map(|(_, value)| value.clone()).collect()
}

/// EC2's CreateFleet calls, without their tokens, and the tokens.
fn launches(cloud: &TestCloud) -> (Vec<BTreeMap<String, String>>, BTreeSet<String>) {
    let mut requests = cloud.local.requests("CreateFleet");
    let tokens = requests.iter_mut().filter_map(|request| request.remove("ClientToken")).collect();
    (requests, tokens)
}

#[tokio::test]
async fn no_pool_is_named_twice_and_each_subnet_of_a_zone_has_its_turn() {
    let cloud = TestCloud::new().await;
    for (subnet, zone) in [("subnet-a1", "a"), ("subnet-a2", "a"), ("subnet-b", "b")] {
        cloud.local.put_subnet(subnet, zone);
    }
    let faults = Faults::new();
    let subnets = "subnet-a1, subnet-b, subnet-a2, subnet-a1";
    let scheduler = cloud.scheduler_with(&faults, with_pools("m5.large,c5.large, m5.large", subnets));

    for n in 0..20 {
        let boarded = board(&scheduler, &format!("task-{n}")).await;
        assert!(matches!(boarded, Ingested::Launched(_)), "{boarded:?}");
    }

    let requests = cloud.local.requests("CreateFleet");
    for request in &requests {
        let subnets = named(request, ".SubnetId");
        assert!(subnets.len() == 2 && subnets.contains("subnet-b"), "{subnets:?}");
        assert_eq!(named(request, ".InstanceType").len(), 2);
    }
    let all: BTreeSet<String> = requests.iter().flat_map(|request| named(request, ".SubnetId")).collect();
    assert_eq!(all.len(), 3, "a full subnet does not block its zone for ever");
    assert_eq!(faults.count(Ec2, "DescribeSubnets"), 1, "asked once a scheduler");
}

#[tokio::test]
async fn without_the_right_to_ask_for_zones_and_types_launches_go_on() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    for operation in ["DescribeSubnets", "DescribeInstanceTypeOfferings"] {
        faults.add(Ec2, operation, When::Always, Fault::Status(403, "UnauthorizedOperation"));
    }
    let scheduler = cloud.scheduler_with(&faults, with_pools("m5.large,c5.large", "subnet-a,subnet-b,subnet-a"));
    for key in ["a", "b", "c"] {
        assert!(matches!(board(&scheduler, key).await, Ingested::Launched(_)));
    }
    assert_eq!((faults.count(Ec2, "DescribeSubnets"), faults.count(Ec2, "DescribeInstanceTypeOfferings")), (1, 1));
}

#[tokio::test]
async fn a_type_that_the_region_does_not_offer_does_not_block_the_others() {
    let cloud = TestCloud::new().await;
    cloud.local.offer_types(&["m5.large"]);
    let scheduler = cloud.scheduler_with(&Faults::new(), with_pools("x9.large,m5.large", ""));
    assert!(matches!(board(&scheduler, "a").await, Ingested::Launched(_)));
    // Of none that is offered EC2 says itself what is wrong.
    let scheduler = cloud.scheduler_with(&Faults::new(), with_pools("x9.large,x9.xlarge", ""));
    assert!(matches!(board(&scheduler, "b").await, Ingested::Waits(why) if why.contains("x9.large")));
}

#[tokio::test]
async fn what_has_no_room_is_no_refusal() {
    for code in [
        "TargetCapacityLimitExceededException",
        "TargetCapacityLimitExceeded",
        "ResourceLimitExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "Unsupported",
        "ReservationCapacityExceeded",
        "MaxSpotInstanceCountExceeded",
    ] {
        let cloud = TestCloud::new().await;
        let faults = Faults::new();
        faults.add(Ec2, "CreateFleet", When::First(1), Fault::Status(400, code));
        let scheduler = cloud.scheduler(&faults);
        assert!(matches!(board(&scheduler, "abc").await, Ingested::Waits(why) if why.contains(code)), "{code}");
        let row = cloud.task("abc").await;
        assert!(row.launch.after.is_some() && row.launch.request.is_none(), "{code}");
        // A sweep tries others in the same breath, so it is no error.
        assert!(matches!(scheduler.launch_for(&row, None).await, Ok(LaunchResult::Launched(_))), "{code}");
    }
}

/// EC2 answers a launch of thousands when it has launched them all: other calls have 20 s for an answer.
#[tokio::test]
async fn a_launch_may_take_longer_than_other_calls() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Always, Fault::Delay(Duration::from_secs(21)));
    assert!(matches!(board(&cloud.scheduler(&faults), "abc").await, Ingested::Launched(_)));
    assert_eq!((faults.count(Ec2, "CreateFleet"), cloud.local.instances().len()), (1, 1));
}

/// The answer of EC2 is lost, and it does not show the instance yet. Meanwhile the stack was updated: another version of the
/// template, another order of subnets. The repeat is the same request all the same, and launches nothing.
#[tokio::test]
async fn a_repeat_after_a_lost_answer_is_equal_whatever_has_changed() {
    let cloud = TestCloud::new().await;
    for (subnet, zone) in [("subnet-a1", "a"), ("subnet-a2", "a")] {
        cloud.local.put_subnet(subnet, zone);
    }
    let settings =
        |version: &str, subnets: &str| SchedulerSettings { subnets: words(subnets), ..with_version(version) };
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Always, Fault::FailAfter);
    let first = cloud.scheduler_with(&faults, settings("1", "subnet-a1,subnet-a2"));
    assert!(matches!(board(&first, "abc").await, Ingested::Waits(_)));
    let instance = cloud.local.instances()[0].id.clone();
    cloud.local.show_instance(&instance, false);
    assert!(cloud.task("abc").await.launch.request.is_some());

    cloud.set_attribute("abc", "launchAfter", "2026-01-01T00:00:00Z").await;
    let second = cloud.scheduler_with(&Faults::new(), settings("2", "subnet-a2,subnet-a1"));
    assert_eq!(sweep(&second).await, [(What::Launched, "abc".to_owned())]);

    let (requests, tokens) = launches(&cloud);
    assert!(requests.iter().all(|request| request == &requests[0]), "{requests:?}");
    assert_eq!((tokens.len(), cloud.local.instances().len()), (1, 1));
    let launch = cloud.task("abc").await.launch;
    assert_eq!((launch.instance, launch.request, launch.tries), (Some(instance), None, 2));
}

/// As above, but the repeat would be another request: the instance that bears the task's name is found.
#[tokio::test]
async fn a_repeat_that_would_be_another_request_finds_the_first_ones_instance() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Always, Fault::FailAfter);
    assert!(matches!(
        board(&cloud.scheduler_with(&faults, with_pools("m5.large", "")), "abc").await,
        Ingested::Waits(_)
    ));
    let instance = cloud.local.instances()[0].id.clone();

    let second = cloud.scheduler_with(&Faults::new(), with_pools("c5.large", ""));
    let node = second.launch_for(&cloud.task("abc").await, None).await.unwrap();

    assert_eq!((node, cloud.local.instances().len()), (LaunchResult::Launched(instance.clone()), 1));
    assert_eq!(cloud.task("abc").await.launch.instance.as_deref(), Some(instance.as_str()));

    // A row that a person edited is no order to launch something else.
    let third = cloud.scheduler_with(&faults, with_pools("c5.large", ""));
    assert!(matches!(board(&third, "def").await, Ingested::Waits(_)));
    let before = cloud.local.requests("CreateFleet").len();
    let mut row = cloud.task("def").await;
    let mut request = row.launch.request.clone().unwrap();
    request.version = "1".to_owned();
    request.subnets = vec!["subnet-theirs".to_owned()];
    row.launch.request = Some(request);
    assert!(matches!(second.launch_for(&row, None).await, Ok(LaunchResult::Launched(_))));
    assert_eq!(cloud.local.requests("CreateFleet").len(), before, "its instance was found");
}

/// Whoever reserved died right after the launch, before any note: the sweep repeats it, and nothing doubles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_the_launch_is_repeated_by_the_same_token() {
    let cloud = TestCloud::new().await;
    let faults = Faults::new();
    let gate = faults.hold_after(Ec2, "CreateFleet", When::Nth(1));
    let dying = cloud.scheduler_with(&faults, with_version("1"));
    tokio::select! {
        boarded = board(&dying, "abc") => panic!("{boarded:?}"),
        () = gate.arrived(1) => {}
    }
    let instance = cloud.local.instances()[0].id.clone();
    cloud.local.show_instance(&instance, false);

    assert_eq!(
        sweep(&cloud.scheduler_with(&Faults::new(), with_version("2"))).await,
        [(What::Launched, "abc".to_owned())]
    );

    assert_eq!((launches(&cloud).1.len(), cloud.local.instances().len()), (1, 1));
    assert_eq!(cloud.task("abc").await.launch.instance, Some(instance));
}

/// A row that lost what it knew of its launches (a restored table, a hand) meets its own tokens.
#[tokio::test]
async fn a_token_of_another_request_finds_the_instance_or_takes_the_next_number() {
    let cloud = TestCloud::new().await;
    let Ingested::Launched(first) = board(&cloud.scheduler_with(&Faults::new(), with_version("1")), "abc").await else {
        panic!()
    };
    let forget = async || {
        for name in ["launchAtAttempt", "launchTries", "launchInstanceID", "launchRequest"] {
            cloud.remove_attribute("abc", name).await;
        }
        cloud.task("abc").await
    };
    let scheduler = cloud.scheduler_with(&Faults::new(), with_version("2"));

    let row = forget().await;
    assert_eq!(scheduler.launch_for(&row, None).await.unwrap(), LaunchResult::Launched(first.clone()), "it runs");
    assert_eq!(cloud.local.instances().len(), 1);

    cloud.local.reclaim_instance(&first);
    let row = forget().await;
    let LaunchResult::Launched(second) = scheduler.launch_for(&row, None).await.unwrap() else { panic!() };
    assert_ne!(second, first);
    assert_eq!((running(&cloud), cloud.task("abc").await.launch.tries), (vec![second], 2));
}

/// The deployment was removed and made again within a day: the same names, other rows.
#[tokio::test]
async fn a_row_or_a_mission_that_was_made_again_has_tokens_of_its_own() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["m"]).await;
    cloud.set_mission_number("M", "nodes", 1).await;
    let scheduler = cloud.scheduler(&Faults::new());
    board(&scheduler, "abc").await;
    sweep(&scheduler).await;
    for instance in running(&cloud) {
        cloud.local.reclaim_instance(&instance);
    }
    cloud.remove_attribute("abc", "launchTries").await;
    cloud.remove_attribute("abc", "launchAtAttempt").await;
    cloud.set_attribute("abc", "timeBoarding", "2026-02-02T00:00:00Z").await;
    cloud.set_mission_number("M", "launchRound", 0).await;
    cloud.set_mission_attribute("M", "timeCfg", "2026-02-02T00:00:00Z").await;

    let scheduler = cloud.scheduler_with(&Faults::new(), with_version("2"));
    let mut found = sweep(&scheduler).await;
    found.retain(|(what, _)| *what == What::Launched);

    assert_eq!((found.len(), running(&cloud).len(), launches(&cloud).1.len()), (2, 2, 4));
}

/// A task that was launched, cancelled before its claim, and redriven has a new node, not the old one's id.
#[tokio::test]
async fn a_redrive_takes_the_next_number() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &[]).await;
    cloud.set_mission_number("M", "transNumber", 1).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let Ingested::Launched(first) = board(&scheduler, "M/abc").await else { panic!() };
    scheduler.cancel(&mission_id("M"), Duration::from_secs(30)).await.unwrap();

    let redriven = scheduler.redrive(&mission_id("M"), None, &[]).await.unwrap();

    assert_eq!((redriven.put_back, redriven.launched), (1, 1));
    let second = cloud.task("M/abc").await.launch.instance.unwrap();
    assert!(second != first && running(&cloud) == [second]);
}

/// As with a key for EBS that the launching role may not use.
#[tokio::test]
async fn the_row_says_why_an_instance_ended_before_its_claim() {
    let (code, said) = ("Client.InvalidKMSKey.InvalidState", "the key arn:aws:kms:…:key/1 is \u{1b}[31mdisabled\n");
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    let Ingested::Launched(first) = board(&scheduler, "abc").await else { panic!() };
    cloud.local.fail_instance(&first, code, said);

    // By EC2's event.
    let found = scheduler.instance_gone(&first, true).await.unwrap();
    assert!(found.iter().any(|finding| finding.reason.contains(code)), "{found:?}");
    let row = cloud.task("abc").await;
    let error = row.launch.error.unwrap();
    assert!(error.contains(&first) && error.contains(code), "{error}");
    assert!(!error.contains(|c: char| c.is_control()), "{error:?}");

    // By a sweep, at once: EC2 says that it is over.
    cloud.local.fail_instance(&row.launch.instance.unwrap(), "Client.InternalError", "Client.InternalError: on launch");
    let started = Instant::now();
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    assert!(started.elapsed() < scheduler.settings.lease);
    assert!(
        found[0].what == What::Launched && found[0].reason.contains("Client.InternalError: on launch"),
        "{found:?}"
    );
    assert!(cloud.task("abc").await.launch.error.unwrap().ends_with("was terminated: Client.InternalError: on launch"));

    // The last of five.
    while cloud.task("abc").await.state == State::Pending {
        for instance in running(&cloud) {
            cloud.local.fail_instance(&instance, "Client.InternalError", "no key");
        }
        sweep(&scheduler).await;
    }
    let error = cloud.task("abc").await.launch.error.unwrap();
    assert!(error.starts_with("5 instances") && error.ends_with("Client.InternalError: no key"), "{error}");
}

#[tokio::test]
async fn the_missions_row_says_why_a_node_of_it_could_not_start() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b"]).await;
    cloud.set_mission_number("M", "nodes", 1).await;
    let scheduler = cloud.scheduler(&Faults::new());
    sweep(&scheduler).await;
    let first = running(&cloud)[0].clone();
    cloud.local.fail_instance(&first, "Client.InternalError", "Client error on launch");

    let found = scheduler.instance_gone(&first, true).await.unwrap();
    assert!(found.iter().any(|f| f.what == What::NoNode && f.subject == "M"), "{found:?}");
    let said = async || cloud.mission_row("M").await.launch_error.unwrap();
    assert!(said().await.contains("Client.InternalError: Client error on launch"));
    // The next one is launched, and the reason stays as long as EC2 has it.
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    assert!(found[0].what == What::Launched && found[0].reason.contains("Client.InternalError"), "{found:?}");
    assert!(said().await.contains("Client.InternalError"));
}

/// EC2 may not show a new instance for minutes: that is not the same as gone.
#[tokio::test]
async fn an_instance_that_ec2_does_not_show_yet_is_not_gone() {
    let cloud = TestCloud::new().await;
    let scheduler = cloud.scheduler(&Faults::new());
    let Ingested::Launched(instance) = board(&scheduler, "abc").await else { panic!() };
    cloud.local.show_instance(&instance, false);

    assert!(!cloud.backend.machine.is_gone(&instance).await.unwrap());
    assert_eq!(sweep(&scheduler).await, [], "seen twice as unknown within seconds");
    assert_eq!(cloud.local.instances().len(), 1);
    // A clock that is wrong, or a sweep after hours: it costs a boot at the most.
    cloud.set_attribute("abc", "launchAt", "2026-01-01T00:00:00Z").await;
    assert_eq!(sweep(&scheduler).await, [(What::Launched, "abc".to_owned())]);

    // Of a task that runs, the lease decides.
    cloud.mission("M", &["held"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let holder = cloud.ours("held", "M").instance;
    cloud.node_on(holder.clone(), faults).die_at(&gate).await;
    cloud.local.show_instance(&holder, false);
    let started = Instant::now();
    let found = sweep(&scheduler).await;
    assert!(found.contains(&(What::PutBack, "held".to_owned())), "{found:?}");
    assert!(started.elapsed() >= scheduler.settings.lease, "it was seen not to move for a whole lease");
}

/// Its tags, too, may come late: an event about it is not forgotten.
#[tokio::test]
async fn an_event_about_an_instance_that_shows_late_is_acted_on() {
    let cloud = TestCloud::new().await;
    let scheduler: Scheduler = cloud.scheduler(&Faults::new());
    let Ingested::Launched(first) = board(&scheduler, "abc").await else { panic!() };
    cloud.local.fail_instance(&first, "Client.InternalError", "on launch");
    cloud.local.show_instance(&first, false);
    let shows = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cloud.local.show_instance(&first, true);
    };
    let (found, ()) = tokio::join!(scheduler.instance_gone(&first, true), shows);
    assert_eq!(found.unwrap().iter().map(|f| f.what).collect::<Vec<_>>(), [What::Launched]);
}

/// A round's answer is lost: the next sweep repeats it, and the mission has no more nodes than it wants.
#[tokio::test]
async fn a_missions_round_is_repeated_by_its_tokens() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    cloud.set_mission_number("M", "nodes", 2).await;
    let faults = Faults::new();
    faults.add(Ec2, "CreateFleet", When::Always, Fault::FailAfter);
    let found = cloud.scheduler_with(&faults, with_version("1")).sweep(&CancellationToken::new()).await.unwrap();
    assert!(found.iter().any(|finding| finding.what == What::NoNode), "{found:?}");
    for instance in cloud.local.instances() {
        cloud.local.show_instance(&instance.id, false);
    }

    let found = sweep(&cloud.scheduler_with(&Faults::new(), with_version("2"))).await;

    assert_eq!(found.iter().filter(|(what, _)| *what == What::Launched).count(), 2, "{found:?}");
    assert_eq!((launches(&cloud).1.len(), cloud.local.instances().len()), (1, 2));
    let row = cloud.mission_row("M").await;
    assert!(row.requests.is_empty() && row.launch_round == 2 && row.launch_error.is_none(), "{row:?}");
}
