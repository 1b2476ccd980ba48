//! Inputs, results, and workloads that are not as they should be.

use std::time::Duration;

use lighthpc::backend::store::StoreError;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{Fault, Faults, SOURCE_BUCKET, When};

use crate::test_cloud::TestCloud;

#[tokio::test]
async fn an_empty_input_and_an_empty_result_are_good_ones() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.input("abc", b"").await;
    cloud.node("abc", "M").shell(r#"[ -e "$LIGHTHPC_INPUT" ] && : > "$LIGHTHPC_OUTPUT""#).run().await.outcome.unwrap();
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some(""));
    assert_eq!(cloud.task("abc").await.result_bytes, Some(0));
}

#[tokio::test]
async fn no_result_is_a_verdict_of_its_own() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let life = cloud.node("abc", "M").shell("true").run().await;
    assert!(matches!(life.outcome, Err(NodeError::NoResult)), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::NoResult)));
}

#[tokio::test]
async fn an_input_that_is_not_there_fails_the_task_at_once() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    std::fs::remove_file(cloud.local.object_path(SOURCE_BUCKET, "abc")).unwrap();
    let life = cloud.node("abc", "M").run().await;
    assert!(matches!(life.outcome, Err(NodeError::MissingInput { .. })), "{life:?}");
    assert_eq!(cloud.task("abc").await.state, State::Failed);
    assert_eq!(cloud.local.published().len(), 1);
}

/// A failure before the mission was read is counted in it all the same.
#[tokio::test]
async fn a_task_that_fails_before_its_mission_is_read_is_counted() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let mut node = cloud.node_with("abc", "M", faults.clone());
    // From the claim on, a file stands where the attempt's folder would be made.
    let work = cloud.dir.path().join("work");
    node.settings.work_dir.clone_from(&work);
    faults.before(Dynamodb, "UpdateItem", 1, move || {
        std::fs::remove_dir_all(&work).ok();
        std::fs::write(&work, "").unwrap();
    });
    node.settings.limits.max_attempts = 1;
    node.run().await.outcome.unwrap_err();
    assert_eq!(cloud.task("abc").await.state, State::Failed);
    assert_eq!(cloud.tally("M").await.failed, 1);
    assert_eq!(
        cloud.mission_row("M").await.rolled.failed,
        1,
        "the row shows the end, though no notification could be sent"
    );
}

/// What is wrong with every task is found before one is claimed.
#[tokio::test]
async fn a_node_without_a_result_bucket_claims_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M");
    node.settings.result_bucket = None;
    let instance = node.instance.clone();
    let life = node.run().await;
    assert!(matches!(life.outcome, Err(NodeError::Setting { .. })), "{life:?}");
    assert_eq!(cloud.task("abc").await.attempt.0, 0);
    assert!(cloud.has_ended(&instance));
}

/// Larger than the disk: refused before a byte is fetched, and another machine may have the room.
#[tokio::test]
async fn an_input_that_does_not_fit_is_refused_before_the_first_byte() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let path = cloud.local.object_path(SOURCE_BUCKET, "abc");
    std::fs::File::create(path).unwrap().set_len(8 << 40).unwrap();
    let faults = Faults::new();
    let life = cloud.node_with("abc", "M", faults.clone()).run().await;
    assert!(matches!(&life.outcome, Err(NodeError::Store { source: StoreError::DiskFull { .. }, .. })), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::DiskFull)));
    assert_eq!(faults.count(S3, "GetObject"), 1);
}

/// An answer that does not say how long the input is could end early: nobody works on what came.
#[tokio::test]
async fn an_input_of_unknown_length_is_requested_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(S3, "GetObject", When::First(1), Fault::Raw(200, "the inp".to_owned()));
    let life = cloud.node_with("abc", "M", faults.clone()).run().await;
    life.outcome.unwrap();
    cloud.assert_done("abc", "M", "after an answer without a length").await;
    assert_eq!((cloud.task("abc").await.attempt.0, faults.count(S3, "GetObject")), (1, 2));
}

/// Replaced between the requests of its two ranges: the download starts over and takes the new one, whole.
#[tokio::test]
async fn an_input_that_changes_during_the_download_is_taken_whole() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let path = cloud.local.object_path(SOURCE_BUCKET, "abc");
    std::fs::write(&path, large("before")).unwrap();
    faults.before(S3, "GetObject", 2, move || std::fs::write(&path, large("changed")).unwrap());
    let node = cloud.node_with("abc", "M", faults.clone()).shell(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#);
    node.run().await.outcome.unwrap();
    assert!(cloud.result("rslt_abc") == Some(large("changed")));
    assert_eq!(faults.count(S3, "GetObject"), 4);
}

/// Returns a text of two ranges.
fn large(word: &str) -> String {
    word.repeat(9 * 1024 * 1024 / word.len())
}

#[tokio::test]
async fn an_input_that_keeps_changing_hands_the_task_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    for nth in 1..=9 {
        let path = cloud.local.object_path(SOURCE_BUCKET, "abc");
        faults.before(S3, "GetObject", nth, move || std::fs::write(&path, large(&format!("change {nth}"))).unwrap());
    }
    let life = cloud.node_with("abc", "M", faults).run().await;
    assert!(matches!(&life.outcome, Err(NodeError::Store { source: StoreError::Changed { .. }, .. })), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.app_failures), (State::Pending, Some(Verdict::Infra), 1));
}

#[tokio::test]
async fn a_large_input_comes_in_ranges_and_a_large_result_goes_in_parts() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let bytes: Vec<u8> = (0..20_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    cloud.input("abc", &bytes).await;
    let faults = Faults::new();
    cloud
        .node_with("abc", "M", faults.clone())
        .shell(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#)
        .run()
        .await
        .outcome
        .unwrap();
    let result = std::fs::read(cloud.local.object_path("results", "rslt_abc")).unwrap();
    assert!(result == bytes, "the bytes differ");
    assert_eq!((faults.count(S3, "GetObject"), faults.count(S3, "UploadPart")), (3, 3));
}

/// The other ranges have shown how long one takes, so nobody waits for the time limit of the request, which is 20 s.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_hangs_is_requested_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    // Six ranges.
    let bytes: Vec<u8> = (0..12 * 1024 * 1024_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    cloud.input("abc", &bytes).await;
    let faults = Faults::new();
    faults.add(S3, "GetObject", When::Nth(3), Fault::Hang);
    let node = cloud.node_with("abc", "M", faults.clone()).shell(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#);

    let life = tokio::time::timeout(Duration::from_secs(15), node.run()).await;

    life.expect("the range was not requested again").outcome.unwrap();
    assert!(std::fs::read(cloud.local.object_path("results", "rslt_abc")).unwrap() == bytes);
    assert_eq!(faults.count(S3, "GetObject"), 7);
}

#[tokio::test]
async fn a_failed_upload_leaves_no_parts_behind() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.input("abc", &vec![7; 20_000_000]).await;
    let faults = Faults::new();
    let broken = Fault::Status(403, "AccessDenied");
    faults.add(S3, "UploadPart", When::After(1), broken);
    let life =
        cloud.node_with("abc", "M", faults.clone()).shell(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#).run().await;
    assert!(life.outcome.is_err());
    // One is the trial's, before the claim.
    assert_eq!(faults.count(S3, "AbortMultipartUpload"), 2);
    assert_eq!(cloud.task("abc").await.state, State::Pending);
}

#[tokio::test]
async fn a_folder_goes_up_file_by_file_with_an_index() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let line =
        r#"mkdir -p "$LIGHTHPC_OUTPUT/sub" && cd "$LIGHTHPC_OUTPUT" && echo one > 1.txt && echo two > sub/2.txt"#;
    let life = cloud.node("abc", "M").shell(line).run().await;
    assert!(
        matches!(&life.outcome, Ok(Outcome::Committed { result }) if result == "s3://results/rslt_abc/"),
        "{life:?}"
    );
    assert_eq!(cloud.result("rslt_abc/1.txt").as_deref(), Some("one\n"));
    assert_eq!(cloud.result("rslt_abc/sub/2.txt").as_deref(), Some("two\n"));
    let index: serde_json::Value =
        serde_json::from_str(&cloud.result("rslt_abc/_lighthpc_index.json").unwrap()).unwrap();
    assert_eq!(index["files"]["sub/2.txt"]["bytes"], 4);
    assert_eq!(cloud.task("abc").await.result_bytes, Some(8));
}

#[tokio::test]
async fn two_hundred_megabytes_of_output_neither_block_nor_fill_anything() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let line = r#"head -c 200000000 /dev/zero | tr '\0' x; echo; echo the end; : > "$LIGHTHPC_OUTPUT""#;
    cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();
    let log = cloud.result("logs/abc.1.log").unwrap();
    assert!(log.len() < 5_000_000 && log.ends_with("the end\n"));
    assert!(log.contains("bytes of output were dropped"));
}

#[tokio::test]
async fn chatty_progress_is_at_most_one_write_per_heartbeat() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let line = r#"for n in $(seq 3000); do echo "$((n / 40))% step $n" >> "$LIGHTHPC_PROGRESS"; done
        sleep 1.2; : > "$LIGHTHPC_OUTPUT""#;
    let half = Duration::from_millis(500);
    cloud.node_with("abc", "M", faults.clone()).shell(line).lease(6 * half, half).run().await.outcome.unwrap();
    let beats = cloud.task("abc").await.beat;
    assert!((1..=5).contains(&beats), "{beats} beats");
    // Claim, beats, and the publication: begun, what the mission came to, ended.
    assert_eq!(faults.count(Dynamodb, "UpdateItem") as u64, beats + 4);
}

#[tokio::test]
async fn the_time_limit_ends_the_whole_process_group() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let pid = cloud.dir.path().join("pid");
    // A grandchild that ignores SIGTERM, and holds the output open.
    let line = format!(
        "(trap '' TERM; echo $BASHPID > '{0}'; sh -c 'trap \"\" TERM; echo $$ > {0}; sleep 60') & wait",
        pid.display()
    );
    let mut node = cloud.node("abc", "M").shell(&line);
    node.settings.bounds.time_limit = Some(Duration::from_secs(1));
    node.settings.bounds.grace = Duration::from_millis(300);
    node.settings.limits.max_attempts = 1;
    let life = node.run().await;
    assert!(matches!(life.outcome, Err(NodeError::TimeLimit)), "{life:?}");
    assert_eq!(cloud.task("abc").await.verdict, Some(Verdict::Timeout));
    let pid = std::fs::read_to_string(pid).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the grandchild lives: {stat}");
}

#[tokio::test]
async fn the_workload_sees_its_contract_and_no_credential() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud
        .node("abc", "M")
        .shell(r#"env > "$LIGHTHPC_OUTPUT"; [ -d "$LIGHTHPC_SCRATCH" ]"#)
        .run()
        .await
        .outcome
        .unwrap();
    let env = cloud.result("rslt_abc").unwrap();
    for line in ["LIGHTHPC_SRC_ID=abc", "LIGHTHPC_MISSION=M", "LIGHTHPC_ATTEMPT=1", "LIGHTHPC_RESUMED=0"] {
        assert!(env.lines().any(|l| l == line), "{line} is missing:\n{env}");
    }
    assert!(!env.lines().any(|l| l.starts_with("AWS_")), "{env}");
    let scratch = env.lines().find_map(|l| l.strip_prefix("LIGHTHPC_SCRATCH=")).unwrap();
    assert!(!std::path::Path::new(scratch).exists());
}

#[tokio::test]
async fn a_table_with_another_key_is_named_as_such() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M");
    let tables = lighthpc::backend::Tables { tasks: "tblMission".to_owned(), missions: "tblMission".to_owned() };
    let wire = lighthpc::backend::Wire::plugged(
        cloud.local.http_client(Some(&node.instance)),
        local_cloud::REGION,
        local_cloud::ACCESS_KEY,
        local_cloud::SECRET_KEY,
    );
    node.backend.ledger = lighthpc::backend::Ledger::new(&wire, tables);
    let instance = node.instance.clone();
    let life = node.run().await;
    let (exit, hint) = lighthpc::command::exit::of_node(&life.outcome.unwrap_err());
    assert_eq!(exit, lighthpc::command::exit::ExitCode::TableKey);
    assert!(hint.unwrap().contains("srcFilename"));
    assert!(cloud.has_ended(&instance));
}

#[tokio::test]
async fn tags_come_from_ec2_where_imds_has_none_and_without_a_tag_of_ours_the_machine_keeps_running() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.local.set_instance_tags_in_imds(false);
    cloud.node("abc", "M").run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "by DescribeTags").await;

    let node = cloud.node_on(cloud.local.launch(&[("Name", "nobody")]), Faults::new());
    let instance = node.instance.clone();
    let life = node.run().await;
    assert!(matches!(life.outcome, Err(NodeError::NoTask { .. })), "{life:?}");
    assert!(!cloud.has_ended(&instance));
}

/// Whatever the workload makes of its progress file, and whoever goes on writing to its output, the node ends.
#[tokio::test]
async fn neither_a_fifo_nor_an_endless_writer_holds_the_node() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let pid = cloud.dir.path().join("pid");
    let line = format!(
        r#"rm "$LIGHTHPC_PROGRESS"; mkfifo "$LIGHTHPC_PROGRESS"
        env -i setsid sh -c 'echo $$ > {}; while :; do echo x; sleep 0.01; done' &
        sleep 1; : > "$LIGHTHPC_OUTPUT""#,
        pid.display()
    );
    let started = std::time::Instant::now();
    cloud.node("abc", "M").shell(&line).run().await.outcome.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "it took {:?}", started.elapsed());
    // Out of our reach by its own doing; not out of the test's.
    let pid = std::fs::read_to_string(pid).unwrap();
    std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
}
