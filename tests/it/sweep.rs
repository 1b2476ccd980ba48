//! The sweep: lost tasks come back, leaked instances end, missions are announced; and what lives is left alone.

use std::time::{Duration, Instant};

use lighthpc::domain::mission::Notified;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::scheduler::{Scheduler, What};
use lighthpc::worker::Outcome;
use local_cloud::Service::{Dynamodb, Sns};
use local_cloud::{Faults, When};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::test_cloud::{TestCloud, mission_id, until};

async fn sweep(scheduler: &Scheduler) -> Vec<(What, String)> {
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    assert!(found.iter().all(|finding| finding.what != What::Failure), "{found:?}");
    found.into_iter().map(|finding| (finding.what, finding.subject)).collect()
}

fn one(what: What, subject: &str) -> (What, String) {
    (what, subject.to_owned())
}

/// Runs a node until its commit is on its way; then its process is gone, and its machine as `vanishes` says.
async fn die(cloud: &TestCloud, task: &str, vanishes: bool) -> String {
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let instance = cloud.ours(task, "M").instance;
    let node = cloud.node_on(instance.clone(), faults);
    node.die_at(&gate).await;
    if vanishes {
        cloud.local.reclaim_instance(&instance);
    }
    instance
}

#[tokio::test]
async fn a_task_whose_instance_is_gone_is_put_back_and_launched_at_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let gone = die(&cloud, "abc", true).await;
    let scheduler = cloud.scheduler(&Faults::new());

    let started = Instant::now();
    let found = sweep(&scheduler).await;

    assert_eq!(found, [one(What::PutBack, "abc"), one(What::Launched, "abc")]);
    assert!(started.elapsed() < scheduler.settings.lease, "nothing had to be seen twice");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.interruptions), (State::Pending, Some(Verdict::Lost), 1));
    assert_eq!(row.history[0].instance, gone);
    let instance = row.launch.instance.unwrap();
    cloud.node_on(instance, Faults::new()).run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "after the sweep").await;
    assert_eq!(cloud.task("abc").await.history.len(), 2);
}

#[tokio::test]
async fn a_silent_lease_is_put_back_after_a_whole_lease_and_its_machine_ended() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let silent = die(&cloud, "abc", false).await;
    let scheduler = cloud.scheduler(&Faults::new());

    let started = Instant::now();
    let found = sweep(&scheduler).await;

    assert!(started.elapsed() >= scheduler.settings.lease);
    assert_eq!(found, [one(What::PutBack, "abc"), one(What::Launched, "abc")]);
    // The silent machine has no live task any more.
    assert_eq!(sweep(&scheduler).await, [one(What::Ended, &silent)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_is_left_alone() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let go = cloud.dir.path().join("go");
    let line = format!(
        r#"while [ ! -e '{}' ]; do sleep 0.05; done; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#,
        go.display()
    );
    let lease = scheduler.settings.lease;
    let mut holder = JoinSet::new();
    holder.spawn(cloud.ours("abc", "M").shell(&line).lease(lease, lease / 4).run());
    // A node that boots, and takes longer for it than a sweep.
    let booting = cloud.ours("def", "M");
    until("the task runs", async || cloud.task("abc").await.state == State::Running).await;

    assert_eq!(sweep(&scheduler).await, []);
    assert_eq!(sweep(&scheduler).await, []);

    std::fs::write(go, "").unwrap();
    assert!(matches!(holder.join_all().await.pop().unwrap().outcome, Ok(Outcome::Committed { .. })));
    booting.run().await.outcome.unwrap();
    assert_eq!(cloud.tally("M").await.ok, 2);
}

#[tokio::test]
async fn instances_without_a_live_task_are_ended_and_others_are_not_touched() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.node("abc", "M").run().await.outcome.unwrap();
    let mark = ("lighthpc", "tblTrans2");
    let ended_task = cloud.local.launch(&[mark, ("srcID", "abc"), ("missionID", "M")]);
    let no_task = cloud.local.launch(&[mark]);
    let over = cloud.local.launch(&[mark, ("missionID", "M")]);
    let no_row = cloud.local.launch(&[mark, ("srcID", "of no row"), ("missionID", "M")]);
    let young = cloud.local.launch(&[mark, ("missionID", "M")]);
    for id in [&over, &no_row] {
        cloud.local.age_instance(id, Duration::from_mins(16));
    }
    let foreign = cloud.local.launch(&[("lighthpc", "another table"), ("srcID", "abc")]);
    let stranger = cloud.local.launch(&[("Name", "a database")]);

    let mut found = sweep(&cloud.scheduler(&Faults::new())).await;

    found.sort_by(|a, b| a.1.cmp(&b.1));
    let mut expected = [ended_task, no_task, over, no_row].map(|id| one(What::Ended, &id));
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(found, expected);
    for id in [foreign, stranger, young] {
        assert!(cloud.local.instances().iter().any(|i| i.id == id && i.state == "running"));
    }
}

/// What boots gets its time; what has had it and still holds nothing does not work. Its task gets another node.
#[tokio::test]
async fn an_instance_that_never_claims_is_ended_after_its_time() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    sweep(&scheduler).await;
    let stuck = cloud.task("abc").await.launch.instance.unwrap();
    let idle_server = cloud.local.launch(&[("lighthpc", "tblTrans2"), ("missionID", "M")]);
    assert_eq!(sweep(&scheduler).await, []);

    for id in [&stuck, &idle_server] {
        cloud.local.age_instance(id, Duration::from_mins(16));
    }
    let mut found = sweep(&scheduler).await;
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let mut expected = [one(What::Ended, &stuck), one(What::Ended, &idle_server)];
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(found, expected);

    assert_eq!(sweep(&scheduler).await, [one(What::Launched, "abc")]);
    assert_eq!(cloud.task("abc").await.launch.lost, 1);
}

#[tokio::test]
async fn a_mission_that_nobody_announced_is_announced() {
    // The last committer dies after its commit, or as the publisher.
    for (service, operation, nth) in [(Dynamodb, "BatchGetItem", 1), (Sns, "Publish", 1)] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        let gate = faults.hold_before(service, operation, When::Nth(nth));
        let node = cloud.node_with("abc", "M", faults);
        let instance = node.instance.clone();
        node.die_at(&gate).await;
        cloud.local.reclaim_instance(&instance);

        assert_eq!(sweep(&cloud.scheduler(&Faults::new())).await, [one(What::Announced, "M")], "{operation}");

        assert_eq!(cloud.local.published().len(), 1);
        cloud.assert_done("abc", "M", operation).await;
        assert_eq!(sweep(&cloud.scheduler(&Faults::new())).await, []);
    }
}

/// A sweep that publishes may die, too; EC2 cannot say so of it, so its silence must last a lease.
#[tokio::test]
async fn a_sweep_that_died_as_publisher_is_replaced() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(Dynamodb, "BatchGetItem", When::Nth(1));
    let node = cloud.node_with("abc", "M", faults);
    let instance = node.instance.clone();
    node.die_at(&gate).await;
    cloud.local.reclaim_instance(&instance);
    let faults = Faults::new();
    let gate = faults.hold_before(Sns, "Publish", When::Nth(1));
    let dying = cloud.scheduler(&faults);
    let never = CancellationToken::new();
    tokio::select! {
        found = dying.sweep(&never) => panic!("{found:?}"),
        () = gate.arrived(1) => {}
    }
    assert!(
        matches!(cloud.mission_row("M").await.notified, Notified::Sending { by, .. } if by.starts_with("scheduler-"))
    );

    let started = Instant::now();
    let scheduler = cloud.scheduler(&Faults::new());
    assert_eq!(sweep(&scheduler).await, [one(What::Announced, "M")]);
    assert!(started.elapsed() >= scheduler.settings.lease);
    assert_eq!(cloud.local.published().len(), 1);
}

/// Each instance ends before it claims: after five the task is failed, and its mission ends with that.
#[tokio::test]
async fn a_task_whose_machines_never_boot_is_failed_in_the_end() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let mut rounds = 0;
    while cloud.task("abc").await.state == State::Pending {
        sweep(&scheduler).await;
        for instance in cloud.local.instances() {
            cloud.local.reclaim_instance(&instance.id);
        }
        rounds += 1;
        assert!(rounds < 20);
    }
    assert_eq!(cloud.local.instances().len(), 5);
    assert_eq!(cloud.task("abc").await.verdict, Some(Verdict::Infra));
    assert_eq!((cloud.tally("M").await.failed, cloud.local.published().len()), (1, 1));
}

#[tokio::test]
async fn interruptions_have_their_budget_in_a_sweep_too() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut settings = TestCloud::scheduler_settings();
    settings.limits.max_interruptions = 1;
    let scheduler = cloud.scheduler_with(&Faults::new(), settings);
    die(&cloud, "abc", true).await;
    sweep(&scheduler).await;
    die(&cloud, "abc", true).await;

    assert_eq!(sweep(&scheduler).await[0], one(What::Failed, "abc"));
    assert_eq!((cloud.task("abc").await.state, cloud.tally("M").await.failed), (State::Failed, 1));
}

/// EC2's event comes, before any sweep.
#[tokio::test]
async fn an_instances_end_heals_its_own_task_at_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let held = cloud.ours("abc", "M").instance;
    cloud.local.reclaim_instance(&held);
    // Never claimed, and launched for nothing that the row knows: a sweep's.
    assert_eq!(scheduler.instance_gone(&held, true).await.unwrap(), []);

    let row = cloud.task("abc").await;
    scheduler.launch_for(&row, Some(&cloud.mission_row("M").await)).await.unwrap();
    let launched = cloud.task("abc").await.launch.instance.unwrap();
    cloud.local.reclaim_instance(&launched);
    let found = scheduler.instance_gone(&launched, true).await.unwrap();
    assert_eq!(found.iter().map(|f| f.what).collect::<Vec<_>>(), [What::Launched]);
    assert_eq!(scheduler.instance_gone(&launched, true).await.unwrap(), [], "the event comes twice");
    assert_eq!(scheduler.instance_gone("i-00000000000000000", true).await.unwrap(), []);

    // One that holds its task and is going may still hand it back; one that is gone does not.
    let gone = die(&cloud, "def", true).await;
    assert_eq!(scheduler.instance_gone(&gone, false).await.unwrap(), []);
    let found = scheduler.instance_gone(&gone, true).await.unwrap();
    assert_eq!(found.iter().map(|f| f.what).collect::<Vec<_>>(), [What::PutBack, What::Launched]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_mission_ends_and_a_redrive_opens_it() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let second = Duration::from_secs(1);
    let began = cloud.dir.path().join("began");
    let line = format!("echo begun; echo x > '{}'; while :; do sleep 0.05; done", began.display());
    let node = cloud.ours("abc", "M").shell(&line).lease(6 * second, second / 4);
    let instance = node.instance.clone();
    let waiting = cloud.ours("def", "M").instance;
    let mut running = JoinSet::new();
    running.spawn(node.run());
    until("the workload begins", async || began.exists()).await;

    let cancelled = scheduler.cancel(&mission_id("M"), 30 * second).await.unwrap();

    assert_eq!((cancelled.ended, cancelled.asked, cancelled.running), (1, 1, 0));
    let life = running.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Cancelled)), "{life:?}");
    for task in ["abc", "def"] {
        let row = cloud.task(task).await;
        assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::Cancelled)), "{task}");
    }
    assert_eq!(cloud.result("logs/abc.1.log").as_deref(), Some("begun\n"));
    assert!(cloud.has_ended(&instance) && cloud.has_ended(&waiting));
    assert_eq!((cloud.tally("M").await.failed, cloud.local.published().len()), (2, 1));
    assert_eq!(scheduler.cancel(&mission_id("M"), second).await.unwrap().ended, 0);
    assert_eq!(sweep(&scheduler).await, []);

    let redriven = scheduler.redrive(&mission_id("M"), Some(Verdict::Cancelled), &[]).await.unwrap();
    assert_eq!((redriven.put_back, redriven.launched), (2, 2));
    for task in ["abc", "def"] {
        let launched = cloud.task(task).await.launch.instance.unwrap();
        cloud.node_on(launched, Faults::new()).run().await.outcome.unwrap();
    }
    assert_eq!((cloud.tally("M").await.ok, cloud.tally("M").await.failed), (2, 0));
}

/// A holder that does not answer is ended by the sweep, once its lease has been silent.
#[tokio::test]
async fn a_cancelled_task_whose_holder_is_silent_is_ended() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    die(&cloud, "abc", false).await;
    let scheduler = cloud.scheduler(&Faults::new());
    let cancelled = scheduler.cancel(&mission_id("M"), Duration::ZERO).await.unwrap();
    assert_eq!(cancelled.running, 1);

    let found = sweep(&scheduler).await;

    assert!(found.contains(&one(What::Failed, "abc")) && found.contains(&one(What::Announced, "M")), "{found:?}");
    assert_eq!(cloud.task("abc").await.verdict, Some(Verdict::Cancelled));
}

/// What is put back in a cancelled mission ends instead of getting a node.
#[tokio::test]
async fn a_lost_task_of_a_cancelled_mission_ends() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let gone = die(&cloud, "abc", true).await;
    let scheduler = cloud.scheduler(&Faults::new());
    scheduler.cancel(&mission_id("M"), Duration::ZERO).await.unwrap();

    let found = scheduler.instance_gone(&gone, true).await.unwrap();

    assert_eq!(found.iter().map(|f| f.what).collect::<Vec<_>>(), [What::Failed, What::Announced]);
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::Cancelled)));
    assert_eq!(row.history.last().unwrap().end.verdict, Verdict::Lost);
    assert_eq!((cloud.tally("M").await.failed, cloud.local.published().len()), (1, 1));
}

/// One mission's types are refused: others get their nodes.
#[tokio::test]
async fn a_missions_refused_launches_do_not_stop_others() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    cloud.mission("N", &["ghi"]).await;
    cloud.set_mission_attribute("M", "maxUnitprice", "a lot").await;
    let scheduler = cloud.scheduler(&Faults::new());

    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();

    let of = |what: What| found.iter().filter(|f| f.what == what).map(|f| f.subject.as_str()).collect::<Vec<_>>();
    assert_eq!(of(What::Launched), ["ghi"], "{found:?}");
    assert_eq!(of(What::Failure).len(), 1, "the second is not asked for: {found:?}");
}
