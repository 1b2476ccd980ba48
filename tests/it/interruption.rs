//! Spot notices and checkpoints: what a workload saves survives its machine, and nothing that is torn is used.

use std::time::{Duration, Instant};

use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::Outcome;
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{Fault, Faults, RESULT_BUCKET, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, until};

/// Counts to three, a file a step, and goes on where it was; says that it has begun, and waits at step `$1`.
fn counting(cloud: &TestCloud, wait_at: u32) -> String {
    format!(
        r#"cd "$LIGHTHPC_CHECKPOINT_DIR"
        trap 'echo saved > on-term.txt; exit 1' TERM
        echo "$LIGHTHPC_RESUMED" > '{0}'.resumed
        n=$(cat count 2>/dev/null || echo 0)
        while [ "$n" -lt 3 ]; do
            n=$((n + 1)); echo step $n > step-$n; echo $n > count.new; mv count.new count
            if [ $n -eq {1} ]; then echo x > '{0}'; while :; do sleep 0.05; done; fi
        done
        cat step-1 step-2 step-3 > "$LIGHTHPC_OUTPUT""#,
        cloud.dir.path().join("began").display(),
        wait_at,
    )
}

async fn began(cloud: &TestCloud) {
    let path = cloud.dir.path().join("began");
    until("the workload begins", async || path.exists()).await;
    std::fs::remove_file(path).unwrap();
}

fn resumed(cloud: &TestCloud) -> String {
    std::fs::read_to_string(cloud.dir.path().join("began.resumed")).unwrap().trim().to_owned()
}

/// In how long, as IMDS writes it: whole seconds, UTC.
fn in_seconds(seconds: u64) -> String {
    lighthpc::clock::rfc3339(
        std::time::UNIX_EPOCH + std::time::UNIX_EPOCH.elapsed().unwrap() + Duration::from_secs(seconds),
    )
}

async fn checkpoint_keys(cloud: &TestCloud) -> Vec<String> {
    cloud.backend.store.list(RESULT_BUCKET, "checkpoints/").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spot_notice_saves_the_work_and_hands_the_task_back_in_time() {
    for budget_s in [30, 7] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let node = cloud.node("abc", "M").shell(&counting(&cloud, 2));
        let instance = node.instance.clone();
        let mut running = JoinSet::new();
        running.spawn(node.run());
        began(&cloud).await;
        assert_eq!(resumed(&cloud), "0");

        let noticed = Instant::now();
        cloud.local.put_spot_notice(&instance, "terminate", &in_seconds(budget_s));
        let life = running.join_all().await.pop().unwrap();

        assert!(matches!(life.outcome, Ok(Outcome::Interrupted)), "{life:?}");
        assert!(noticed.elapsed() < Duration::from_secs(budget_s), "after the deadline");
        assert!(cloud.has_ended(&instance));
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::SpotInterrupted)));
        assert_eq!((row.interruptions, row.app_failures), (1, 0));
        assert!(row.checkpoint.is_some());

        cloud.node("abc", "M").shell(&counting(&cloud, 9)).run().await.outcome.unwrap();

        assert_eq!(resumed(&cloud), "1");
        assert_eq!(cloud.result("rslt_abc").as_deref(), Some("step 1\nstep 2\nstep 3\n"));
        assert_eq!(cloud.task("abc").await.checkpoint, None);
        assert_eq!(checkpoint_keys(&cloud).await, Vec::<String>::new(), "checkpoints are removed after the commit");
    }
}

/// A workload that ignores SIGTERM is ended before the deadline all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_workload_does_not_outlive_the_notice() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let began_file = cloud.dir.path().join("began");
    let line = format!("trap '' TERM; echo x > '{}'; while :; do sleep 0.05; done", began_file.display());
    let node = cloud.node("abc", "M").shell(&line);
    let instance = node.instance.clone();
    let mut running = JoinSet::new();
    running.spawn(node.run());
    began(&cloud).await;

    let noticed = Instant::now();
    cloud.local.put_spot_notice(&instance, "stop", &in_seconds(12));
    let life = running.join_all().await.pop().unwrap();

    assert!(matches!(life.outcome, Ok(Outcome::Interrupted)), "{life:?}");
    assert!(noticed.elapsed() < Duration::from_secs(12));
    assert_eq!(cloud.task("abc").await.state, State::Pending);
}

/// The machine vanishes without a word after a periodic save: the next attempt goes on from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_periodic_checkpoint_survives_a_machine_that_vanishes() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // The second UpdateItem names the checkpoint; the machine dies once that is done.
    let gate = faults.hold_after(Dynamodb, "UpdateItem", When::Nth(2));
    let mut node = cloud.node_with("abc", "M", faults.clone()).shell(&counting(&cloud, 2));
    node.settings.checkpoint_every = Duration::from_millis(300);
    let instance = node.instance.clone();
    node.die_at(&gate).await;
    cloud.local.reclaim_instance(&instance);
    assert!(cloud.task("abc").await.checkpoint.is_some());

    cloud.node("abc", "M").shell(&counting(&cloud, 9)).run().await.outcome.unwrap();

    assert_eq!(resumed(&cloud), "1");
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("step 1\nstep 2\nstep 3\n"));
}

/// A save breaks off before its manifest: the row does not name it, and nobody uses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_save_is_never_used() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // Four files, eight at once; then the manifest.
    faults.add(S3, "PutObject", When::Nth(5), Fault::Status(403, "AccessDenied"));
    let node = cloud.node_with("abc", "M", faults).shell(&counting(&cloud, 2));
    let (stopping, mut running) = (node.stopping.clone(), JoinSet::new());
    running.spawn(node.run());
    began(&cloud).await;
    stopping.drain.cancel();
    running.join_all().await;
    assert_eq!(checkpoint_keys(&cloud).await.len(), 4, "the files went up, and no manifest");
    assert_eq!(cloud.task("abc").await.checkpoint, None);

    cloud.node("abc", "M").shell(&counting(&cloud, 9)).run().await.outcome.unwrap();

    assert_eq!(resumed(&cloud), "0");
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("step 1\nstep 2\nstep 3\n"));
    assert_eq!(checkpoint_keys(&cloud).await, Vec::<String>::new(), "the torn save is removed after the commit");
}

/// Only what changed goes up, and what no checkpoint needs any more goes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_save_puts_only_what_changed() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let line = r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; echo big > big; echo 1 > small; sleep 0.8; echo 22 > small; sleep 0.8
        : > "$LIGHTHPC_OUTPUT""#;
    let mut node = cloud.node_with("abc", "M", faults.clone()).shell(line);
    node.settings.checkpoint_every = Duration::from_millis(300);
    node.run().await.outcome.unwrap();
    // Two files and a manifest, then one file and a manifest; the result, and the mission's manifest and report.
    assert_eq!(faults.count(S3, "PutObject"), 3 + 2 + 3);
    assert!(checkpoint_keys(&cloud).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_recommendation_saves_and_goes_on() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_after(Dynamodb, "UpdateItem", When::Nth(2));
    let go = cloud.dir.path().join("go");
    let line = format!(
        r#"echo x > "$LIGHTHPC_CHECKPOINT_DIR/x"; echo x > '{}'; while [ ! -e '{}' ]; do sleep 0.05; done
        : > "$LIGHTHPC_OUTPUT""#,
        cloud.dir.path().join("began").display(),
        go.display()
    );
    let node = cloud.node_with("abc", "M", faults).shell(&line);
    let instance = node.instance.clone();
    let mut running = JoinSet::new();
    running.spawn(node.run());
    began(&cloud).await;

    cloud.local.rebalance(&instance, &in_seconds(0));
    gate.arrived(1).await;
    assert!(cloud.task("abc").await.checkpoint.is_some());
    gate.open();
    std::fs::write(go, "").unwrap();

    let life = running.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Committed { .. })), "{life:?}");
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_lived_long_enough_drains() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M").shell("while :; do sleep 0.05; done");
    node.settings.max_lifetime = Some(Duration::from_secs(1));
    let instance = node.instance.clone();
    let life = node.run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
    assert!(cloud.has_ended(&instance));
    assert_eq!(cloud.task("abc").await.state, State::Pending);
}

/// What was written before the machine vanished without a word is in the log that was copied meanwhile, and the next
/// attempt's history says where it is and whose it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_vanishes_leaves_its_log() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M").shell("echo so far so good; while :; do sleep 0.05; done");
    node.settings.log_every = Duration::from_millis(100);
    let instance = node.instance.clone();
    let log = async {
        while cloud.result("logs/abc.1.log").as_deref() != Some("so far so good\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        life = node.run() => panic!("{life:?}"),
        () = log => {}
    }
    cloud.local.reclaim_instance(&instance);

    cloud.node("abc", "M").run().await.outcome.unwrap();

    let lost = cloud.task("abc").await.history[0].clone();
    assert_eq!((lost.end.verdict, lost.instance), (Verdict::Lost, instance));
    assert_eq!(lost.log.as_deref(), Some("s3://results/logs/abc.1.log"));
}

/// The workload renames a new file into place while the old one goes up: the old one is saved, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_replaced_while_it_goes_up_is_saved_as_it_was() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let put = faults.hold_before(S3, "PutObject", When::Nth(1));
    let named = faults.hold_after(Dynamodb, "UpdateItem", When::Nth(2));
    let swap = cloud.dir.path().join("swap");
    let line = format!(
        r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; echo old > state; while [ ! -e '{0}' ]; do sleep 0.01; done
        echo new > state.new; mv state.new state; rm '{0}'; while :; do sleep 0.05; done"#,
        swap.display()
    );
    let mut node = cloud.node_with("abc", "M", faults).shell(&line);
    node.settings.checkpoint_every = Duration::from_millis(100);
    let instance = node.instance.clone();
    let steps = async {
        put.arrived(1).await;
        std::fs::write(&swap, "").unwrap();
        until("the state is replaced", async || !swap.exists()).await;
        put.open();
        named.arrived(1).await;
    };
    tokio::select! {
        life = node.run() => panic!("{life:?}"),
        () = steps => {}
    }
    cloud.local.reclaim_instance(&instance);

    cloud
        .node("abc", "M")
        .shell(r#"cat "$LIGHTHPC_CHECKPOINT_DIR/state" > "$LIGHTHPC_OUTPUT""#)
        .run()
        .await
        .outcome
        .unwrap();

    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("old\n"));
}

/// At the speed that was measured, the result would need minutes more than the notice leaves: the checkpoint goes up instead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_does_not_fit_the_notice_gives_way_to_the_checkpoint() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(S3, "UploadPart", When::First(2), Fault::Delay(Duration::from_secs(1)));
    faults.add(S3, "UploadPart", When::After(2), Fault::Hang);
    let line = r#"echo nearly there > "$LIGHTHPC_CHECKPOINT_DIR/state"; truncate -s 2G "$LIGHTHPC_OUTPUT""#;
    let node = cloud.node_with("abc", "M", faults.clone()).shell(line);
    let instance = node.instance.clone();
    cloud.local.put_spot_notice(&instance, "terminate", &in_seconds(60));
    // The notice comes within 5.5 s, after the workload's end.
    let started = Instant::now();
    let life = node.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Interrupted)), "{life:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "it waited for {:?}", started.elapsed());
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::SpotInterrupted)));
    assert!(row.checkpoint.is_some());
    // The other is the trial's, before the claim.
    assert_eq!(faults.count(S3, "AbortMultipartUpload"), 2, "the parts are given back");
}
