//! Results: whose an object is, what S3 takes, and what becomes of an upload that arrived otherwise than it was sent.

use std::time::Duration;

use lighthpc::backend::ledger::{Claim, Claimant, Commit, Completion, Fence, Finish, Made, NewTask};
use lighthpc::backend::machine::PowerOff;
use lighthpc::backend::store::{Holder, Mark, Put, StoreError};
use lighthpc::backend::{Backend, Tables, Wire, error_chain};
use lighthpc::command::exit::{self, ExitCode};
use lighthpc::domain::ids::{AttemptNumber, InstanceId};
use lighthpc::domain::keys::result_key;
use lighthpc::domain::task::{AttemptEnd, Counts, State};
use lighthpc::domain::verdict::Verdict;
use lighthpc::domain::work::Work;
use lighthpc::worker::{NodeError, Outcome};
use lighthpc::workload::Left;
use local_cloud::Service::S3;
use local_cloud::{ACCESS_KEY, Fault, Faults, REGION, RESULT_BUCKET, SECRET_KEY, SOURCE_BUCKET, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, TestNode, mission_id, src};

/// Task `d` makes a folder with the files `x` and `y`; any other makes a file.
const WORK: &str = r#"case "$LIGHTHPC_SRC_ID" in
    d) mkdir "$LIGHTHPC_OUTPUT"; echo folder > "$LIGHTHPC_OUTPUT/x"; echo folder > "$LIGHTHPC_OUTPUT/y";;
    *) echo "file of $LIGHTHPC_SRC_ID" > "$LIGHTHPC_OUTPUT";; esac"#;

fn other_tables() -> Tables {
    Tables { tasks: "otherTasks".to_owned(), missions: "otherMissions".to_owned() }
}

/// A backend of another deployment, which shares the buckets.
async fn other_deployment(cloud: &TestCloud, instance: Option<&str>) -> Backend {
    let wire = Wire::plugged(cloud.local.http_client(instance), REGION, ACCESS_KEY, SECRET_KEY);
    let backend = Backend::new(&wire, other_tables(), PowerOff::Never);
    backend.ledger.create_tables().await.unwrap();
    backend
}

async fn claim(backend: &Backend, task: &str, instance: &str) -> Fence {
    let owner = InstanceId::new(instance).unwrap();
    let who = Claimant {
        owner: owner.clone(),
        mission: None,
        bucket: None,
        now: "2026-01-01T00:00:00Z".to_owned(),
        token: format!("{instance} {task}"),
        is_alone: true,
    };
    let row = match backend.ledger.claim(&src(task), &who).await.unwrap() {
        Claim::Held(row) => row,
        Claim::HeldByOther(seen) => backend.ledger.take_over(&seen, &who).await.unwrap().unwrap(),
        other => panic!("{other:?}"),
    };
    Fence { src: src(task), attempt: row.attempt, owner }
}

/// Asserts that a task failed at once because of another's object, and that the error names both.
async fn assert_refused(cloud: &TestCloud, task: &str, outcome: &Result<Outcome, NodeError>, names: &[&str]) {
    let Err(error @ NodeError::Store { source: StoreError::Taken { .. }, .. }) = outcome else { panic!("{outcome:?}") };
    for name in names {
        assert!(error_chain(error).contains(name), "{name} is not in: {}", error_chain(error));
    }
    assert_eq!(exit::of_node(error).0, ExitCode::WorkloadFailed);
    let row = cloud.task(task).await;
    assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::AppError), 1));
    assert_eq!(row.result, None);
}

#[tokio::test]
async fn two_names_with_one_key_never_share_an_object() {
    // The folder's file, and the folder's index.
    for other in ["d/x", "d/_lighthpc_index.json"] {
        for (first, second) in [("d", other), (other, "d")] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &[first, second]).await;
            cloud.node(first, "M").shell(WORK).run().await.outcome.unwrap();
            let before = cloud.result(&format!("rslt_{other}"));

            let life = cloud.node(second, "M").shell(WORK).run().await;

            assert_refused(&cloud, second, &life.outcome, &["task d", &format!("task {other}"), "rslt_d/"]).await;
            assert_eq!(cloud.result(&format!("rslt_{other}")), before, "{first}, {second}");
            assert_eq!(cloud.task(first).await.state, State::Done);
            let tally = cloud.tally("M").await;
            assert_eq!((tally.ok, tally.failed), (1, 1));
        }
    }
}

/// What an earlier process would have left of a task's first attempt.
fn left_of(task: &str) -> Left {
    Left::without_folder(src(task), AttemptNumber(1), true)
}

/// On one node both are attempt 1 of the same instance: that must not look like a put whose answer was lost.
#[tokio::test]
async fn on_one_node_a_foreign_object_is_not_adopted() {
    for order in [["d", "d/x"], ["d/x", "d"]] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &order).await;
        let instance = cloud.local.launch(&[("missionID", "M")]);
        let mut node = cloud.node_on(instance, Faults::new()).shell(WORK);
        node.settings.left = order.iter().map(|task| left_of(task)).collect();

        let life = node.run().await;

        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 1, other: 1 })), "{order:?}: {life:?}");
        assert_eq!(cloud.task(order[0]).await.state, State::Done, "{order:?}");
        let row = cloud.task(order[1]).await;
        assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::AppError)), "{order:?}");
        let bytes = if order[0] == "d" { "folder\n" } else { "file of d/x\n" };
        assert_eq!(cloud.result("rslt_d/x").as_deref(), Some(bytes), "{order:?}");
    }
}

#[tokio::test]
async fn what_a_failed_task_left_is_overwritten_and_what_a_running_one_put_is_not() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["d", "d/x"]).await;
    let (ledger, store) = (&cloud.backend.ledger, &cloud.backend.store);
    let d = claim(&cloud.backend, "d", "i-d").await;
    let other = claim(&cloud.backend, "d/x", "i-x").await;
    let put = async |fence: &Fence, text: &str| {
        let holder = Holder { ledger, fence, is_sure: false };
        store.put_result(holder, RESULT_BUCKET, "rslt_d/x", text.as_bytes().to_vec()).await
    };
    assert!(matches!(put(&d, "d's file").await, Ok(Put::Stored(_))));
    assert!(matches!(put(&other, "x's").await, Err(StoreError::Taken { .. })));
    assert_eq!(cloud.result("rslt_d/x").as_deref(), Some("d's file"));

    let finish = Finish {
        completion: Completion::Failed,
        end: AttemptEnd::of(Verdict::AppError, "why"),
        input_etag: None,
        time_cost_ms: 0,
        history: vec![],
        counts: Counts::default(),
        now: "2026-01-01T00:00:00Z".to_owned(),
    };
    let mission = cloud.mission_row("M").await;
    assert_eq!(ledger.commit(&d, Some(&mission), &finish).await.unwrap(), Commit::Committed);

    assert!(matches!(put(&other, "x's").await, Ok(Put::Stored(_))));
    assert_eq!(cloud.result("rslt_d/x").as_deref(), Some("x's"));
    // And now it is the other's.
    let again = store.head(RESULT_BUCKET, "rslt_d/x").await.unwrap().unwrap();
    assert!(again.is_of_another(&Mark::of_task(ledger.tables(), &src("d"))));
}

#[tokio::test]
async fn an_attempt_overwrites_what_its_own_task_left_and_what_has_no_mark() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (ledger, store) = (&cloud.backend.ledger, &cloud.backend.store);
    store.put_bytes(RESULT_BUCKET, "rslt_abc", b"an earlier version's".to_vec()).await.unwrap();
    for n in 0..3 {
        let fence = claim(&cloud.backend, "abc", &format!("i-{n}")).await;
        let text = format!("attempt {}", fence.attempt);
        let put = store
            .put_result(
                Holder { ledger, fence: &fence, is_sure: false },
                RESULT_BUCKET,
                "rslt_abc",
                text.clone().into_bytes(),
            )
            .await;
        assert!(matches!(put, Ok(Put::Stored(_))), "{put:?}");
        assert_eq!(cloud.result("rslt_abc"), Some(text));
    }
}

#[tokio::test]
async fn a_name_that_looks_like_a_shortened_one_has_a_place_of_its_own() {
    let cloud = TestCloud::new().await;
    let long = "x".repeat(1024);
    let literal = result_key(&src(&long)).strip_prefix("rslt_").unwrap().to_owned();
    cloud.mission("M", &[&long, &literal]).await;
    for task in [&long, &literal] {
        cloud
            .node(task, "M")
            .shell(r#"printf %s "$LIGHTHPC_SRC_ID" > "$LIGHTHPC_OUTPUT""#)
            .run()
            .await
            .outcome
            .unwrap();
    }
    for task in [&long, &literal] {
        assert_eq!(cloud.result(&result_key(&src(task))).as_ref(), Some(task));
    }
}

/// Two deployments with other tables share the result bucket.
#[tokio::test]
async fn deployments_that_share_a_bucket_do_not_overwrite_each_other() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let chatty = r#"echo "the log of $LIGHTHPC_SRC_ID"; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#;
    cloud.node("abc", "M").shell(chatty).run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "in the first deployment").await;
    let log = cloud.result("logs/abc.1.log");

    let TestNode { instance, settings, stopping, .. } =
        cloud.node("abc", "").shell("echo other; echo x > $LIGHTHPC_OUTPUT");
    let backend = other_deployment(&cloud, Some(&instance)).await;
    let new = NewTask {
        src: src("abc"),
        mission: None,
        bucket: Some(SOURCE_BUCKET.to_owned()),
        work: Work::default(),
        now: "2026-01-01T00:00:00Z".to_owned(),
        trigger_time: String::new(),
        trigger: "test".to_owned(),
    };
    assert_eq!(backend.ledger.create_task(&new).await.unwrap(), Made::New);
    let other = TestNode { instance, backend: backend.clone(), settings, stopping };
    let life = other.run().await;

    let outcome = life.outcome.unwrap_err();
    assert!(matches!(&outcome, NodeError::Store { source: StoreError::Taken { .. }, .. }), "{outcome:?}");
    assert!(error_chain(&outcome).contains("another tasks table"), "{}", error_chain(&outcome));
    let row = backend.ledger.task(&src("abc")).await.unwrap().unwrap();
    assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::AppError)));
    assert_eq!(row.history.last().unwrap().log, None, "its log has no place");
    assert_eq!(cloud.result("logs/abc.1.log"), log);
    cloud.assert_done("abc", "M", "after the other deployment").await;
}

/// A small object is one put, a large one goes in parts: both replace what is theirs, and refuse what is another's.
#[tokio::test]
async fn what_is_written_as_it_is_made_is_whole_and_replaces_only_its_own() {
    const KEY: &str = "manifests/M.json";
    let cloud = TestCloud::new().await;
    let other = other_deployment(&cloud, None).await;
    let own = Mark::of_mission(cloud.backend.ledger.tables(), &mission_id("M"));
    let foreign = Mark::of_mission(other.ledger.tables(), &mission_id("M"));
    let bytes: Vec<u8> = (0..20_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let second = Duration::from_secs(1);
    let store = &cloud.backend.store;
    let write = async |mark: &Mark, bytes: &[u8]| {
        let mut writer = store.writer(RESULT_BUCKET, KEY, mark.clone(), second);
        for chunk in bytes.chunks(3_000_001) {
            writer.write(chunk).await?;
        }
        writer.finish().await
    };
    let path = cloud.local.object_path(RESULT_BUCKET, KEY);
    // Of an earlier version, then one's own; of exactly one part, and of nothing.
    store.put_bytes(RESULT_BUCKET, KEY, b"old".to_vec()).await.unwrap();
    for length in [5, bytes.len(), 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 0, 16 * 1024 * 1024] {
        let stored = write(&own, &bytes[..length]).await.unwrap();
        assert_eq!(stored.bytes, length as u64);
        assert!(std::fs::read(&path).unwrap() == bytes[..length], "{length}");
        assert_eq!(store.head(RESULT_BUCKET, KEY).await.unwrap().unwrap().etag, stored.etag);
    }
    for length in [5, bytes.len()] {
        let refused = write(&foreign, &bytes[..length]).await;
        assert!(matches!(refused, Err(StoreError::Taken { .. })), "{length}: {refused:?}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 * 1024 * 1024);
        let put = store.put_own(&foreign, RESULT_BUCKET, KEY, bytes[..length].to_vec()).await;
        assert!(matches!(put, Err(StoreError::Taken { .. })), "{length}: {put:?}");
    }
}

/// An answer that was lost is no second object, an outage is waited for, and what is dropped leaves no parts.
#[tokio::test]
async fn an_object_under_way_survives_faults_and_leaves_no_parts() {
    let cloud = TestCloud::new().await;
    let own = Mark::of_mission(cloud.backend.ledger.tables(), &mission_id("M"));
    let bytes = vec![7; 20_000_000];
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Repeat, Fault::StatusAfter(500, "InternalError")] {
        for operation in ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"] {
            let faults = Faults::new();
            // More often than the SDK tries, once.
            faults.add(S3, operation, When::First(6), fault.clone());
            let wire = Wire::plugged(cloud.local.faulty_http_client(None, faults), REGION, ACCESS_KEY, SECRET_KEY);
            let store = Backend::new(&wire, Tables::default(), PowerOff::Never).store;
            let mut writer = store.writer(RESULT_BUCKET, "manifests/M", own.clone(), Duration::from_secs(20));
            writer.write(&bytes).await.unwrap();
            let stored = writer.finish().await.unwrap_or_else(|error| panic!("{operation} {fault:?}: {error:?}"));
            let there = store.head(RESULT_BUCKET, "manifests/M").await.unwrap().unwrap();
            assert_eq!((there.etag, there.bytes), (stored.etag, 20_000_000), "{operation} {fault:?}");
        }
    }
    let faults = Faults::new();
    let wire = Wire::plugged(cloud.local.faulty_http_client(None, faults.clone()), REGION, ACCESS_KEY, SECRET_KEY);
    let store = Backend::new(&wire, Tables::default(), PowerOff::Never).store;
    let mut writer = store.writer(RESULT_BUCKET, "manifests/dropped", own, Duration::ZERO);
    writer.write(&bytes).await.unwrap();
    drop(writer);
    assert_eq!(faults.count(S3, "AbortMultipartUpload"), 0);
    store.abort_dropped().await;
    assert_eq!(faults.count(S3, "AbortMultipartUpload"), 1);
    assert_eq!(cloud.result("manifests/dropped"), None);
}

/// The mark alone says who put an object, not what arrived.
#[tokio::test]
async fn an_own_object_is_adopted_only_if_its_bytes_are_the_files() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let fence = claim(&cloud.backend, "abc", "i-1").await;
    let file = cloud.dir.path().join("result");
    for bytes in [100, 9_000_000] {
        let faults = Faults::new();
        let wire = Wire::plugged(cloud.local.faulty_http_client(None, faults.clone()), REGION, ACCESS_KEY, SECRET_KEY);
        let Backend { ledger, store, .. } = Backend::new(&wire, Tables::default(), PowerOff::Never);
        let put = async || match store
            .put_result(Holder { ledger: &ledger, fence: &fence, is_sure: false }, RESULT_BUCKET, "rslt_abc", &file)
            .await
        {
            Ok(Put::Stored(stored)) => stored,
            other => panic!("{other:?}"),
        };
        std::fs::write(&file, vec![b'1'; bytes]).unwrap();
        let first = put().await;
        assert_eq!(put().await, first, "the same bytes: a put whose answer was lost");
        // As long, and of the same attempt, but not what was sent.
        std::fs::write(&file, vec![b'2'; bytes]).unwrap();
        let second = put().await;
        assert_ne!(second.etag, first.etag);
        assert!(cloud.result("rslt_abc").unwrap().bytes().all(|b| b == b'2'), "{bytes}");
        // Shorter.
        std::fs::write(&file, vec![b'2'; bytes - 1]).unwrap();
        assert_eq!(put().await.bytes, bytes as u64 - 1);
    }
}

/// S3's sum over the parts is not ours: nothing of that stays, and the result is put again.
#[tokio::test]
async fn an_upload_that_is_found_corrupt_is_made_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let bytes: Vec<u8> = (0..20_000_003_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    cloud.input("abc", &bytes).await;
    let faults = Faults::new();
    let answer = r#"<?xml version="1.0"?><CompleteMultipartUploadResult><ETag>"0"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></CompleteMultipartUploadResult>"#;
    faults.add(S3, "CompleteMultipartUpload", When::Nth(1), Fault::Raw(200, answer.to_owned()));
    faults.add(S3, "CompleteMultipartUpload", When::Nth(2), Fault::Status(400, "BadDigest"));

    let node = cloud.node_with("abc", "M", faults.clone()).shell(r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#);
    node.run().await.outcome.unwrap();

    let result = std::fs::read(cloud.local.object_path(RESULT_BUCKET, "rslt_abc")).unwrap();
    assert!(result == bytes, "the bytes differ");
    assert_eq!(faults.count(S3, "CompleteMultipartUpload"), 3);
    let (row, there) =
        (cloud.task("abc").await, cloud.backend.store.head(RESULT_BUCKET, "rslt_abc").await.unwrap().unwrap());
    assert_eq!((row.attempt.0, row.result_etag), (1, Some(there.etag)));
}

/// What S3 would refuse is the task's own fault, and is found before anything goes up.
#[tokio::test]
async fn a_result_with_a_name_that_is_too_long_fails_once_and_uploads_nothing() {
    let deep = |file: &str| {
        format!(
            r#"d="$LIGHTHPC_OUTPUT"; mkdir "$d"; echo 1 > "$d/a"; cd "$d"
            for n in 1 2 3 4 5; do d=$(printf '%0200d' $n); mkdir $d; cd $d; done; {file}"#
        )
    };
    let name = "x".repeat(1020);
    for (task, line, is_bad) in [
        // rslt_abc/ is 9 bytes, the folders are 1,005: 10 are left.
        ("abc", deep("echo 2 > 1234567890"), false),
        ("abc", deep("echo 2 > 12345678901"), true),
        ("abc", deep("d=$(printf '%0200d' 6); mkdir -p $d/$d/$d; echo 2 > $d/$d/$d/x"), true),
        // A folder without a file is nothing in S3.
        ("abc", deep("d=$(printf '%0200d' 6); mkdir $d"), false),
        (name.as_str(), r#"mkdir "$LIGHTHPC_OUTPUT"; echo 1 > "$LIGHTHPC_OUTPUT/a""#.to_owned(), true),
        (name.as_str(), r#"echo 1 > "$LIGHTHPC_OUTPUT""#.to_owned(), false),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &[task]).await;
        let faults = Faults::new();
        let life = cloud.node_with(task, "M", faults.clone()).shell(&line).run().await;
        let row = cloud.task(task).await;
        if !is_bad {
            life.outcome.unwrap();
            continue;
        }
        let Err(error @ NodeError::Store { source: StoreError::BadResult { .. }, .. }) = &life.outcome else {
            panic!("{line}: {life:?}")
        };
        assert_eq!(exit::of_node(error).0, ExitCode::WorkloadFailed);
        assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::AppError), 1), "{line}");
        assert!(cloud.backend.store.list(RESULT_BUCKET, "rslt_").await.unwrap().is_empty(), "{line}");
    }
}

/// S3 itself refuses a key, or a size, that we did not foresee.
#[tokio::test]
async fn a_result_that_s3_does_not_store_fails_its_task_once() {
    for code in ["KeyTooLongError", "EntityTooLarge", "InvalidURI"] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        faults.add(S3, "PutObject", When::First(1), Fault::Status(400, code));
        let life = cloud.node_with("abc", "M", faults).run().await;
        assert_eq!(exit::of_node(&life.outcome.unwrap_err()).0, ExitCode::WorkloadFailed, "{code}");
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::AppError), 1), "{code}");
    }
}

/// The index of a folder result never touches the disk: there may be no room, or something in the way.
#[tokio::test]
async fn a_folder_result_needs_no_room_on_the_disk() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let line = r#"mkdir "$LIGHTHPC_OUTPUT" "$LIGHTHPC_OUTPUT/../../index" || exit 1
        echo 'a "quoted" name' > "$LIGHTHPC_OUTPUT/a \"b\" ü"
        echo 2 > "$LIGHTHPC_OUTPUT/c""#;

    cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();

    let index: serde_json::Value =
        serde_json::from_str(&cloud.result("rslt_abc/_lighthpc_index.json").unwrap()).unwrap();
    assert_eq!((index["srcFilename"].as_str(), index["attempt"].as_u64()), (Some("abc"), Some(1)));
    assert_eq!(index["files"].as_object().unwrap().len(), 2);
    let there = cloud.backend.store.head(RESULT_BUCKET, "rslt_abc/a \"b\" ü").await.unwrap().unwrap();
    assert_eq!(index["files"]["a \"b\" ü"]["etag"].as_str(), Some(there.etag.as_str()));
    assert_eq!(index["files"]["c"]["bytes"], 2);
}

/// Many files go up and none is lost, although some puts fail for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_files_go_up_through_an_outage() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(S3, "PutObject", When::First(40), Fault::Status(503, "SlowDown"));
    let line = r#"mkdir "$LIGHTHPC_OUTPUT"; cd "$LIGHTHPC_OUTPUT"; for n in $(seq 300); do echo $n > $n; done"#;

    cloud.node_with("abc", "M", faults).shell(line).run().await.outcome.unwrap();

    assert_eq!(cloud.backend.store.list(RESULT_BUCKET, "rslt_abc/").await.unwrap().len(), 301);
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

/// The range that is on its way decides what is in memory, not the size of the object.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_input_or_folder_makes_a_bounded_number_of_tasks() {
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let object = std::fs::File::create(cloud.local.object_path(SOURCE_BUCKET, "abc")).unwrap();
    object.set_len(1 << 30).unwrap();
    let faults = Faults::new();
    let gate = faults.hold_before(S3, "GetObject", When::After(1));
    let node = cloud.node_with("abc", "M", faults.clone());
    let stopping = node.stopping.clone();
    let mut running = JoinSet::new();
    running.spawn(node.run());
    // 128 ranges of 8 MiB. The first is in the answer that says how large the object is.
    let connections = lighthpc::backend::store::connections();
    gate.arrived(u32::try_from(connections).unwrap() - 1).await;
    assert!(alive() < 32 + connections, "{} tasks", alive());
    stopping.drain.cancel();
    gate.open();
    let life = running.join_next().await.unwrap().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");

    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let gate = faults.hold_before(S3, "PutObject", When::Always);
    let line = r#"mkdir "$LIGHTHPC_OUTPUT"; cd "$LIGHTHPC_OUTPUT"; for n in $(seq 500); do : > $n; done"#;
    running.spawn(cloud.node_with("abc", "M", faults.clone()).shell(line).run());
    let files = lighthpc::backend::store::files_parallel().min(64);
    gate.arrived(u32::try_from(files).unwrap()).await;
    assert!(alive() < 32 + files, "{} tasks", alive());
    gate.open();
    running.join_next().await.unwrap().unwrap().outcome.unwrap();
    assert_eq!(cloud.backend.store.list(RESULT_BUCKET, "rslt_abc/").await.unwrap().len(), 501);
}

/// A large part is streamed from its file with a checksum that was computed before: the SDK and S3 agree on it, and
/// find a file that changed in between.
#[tokio::test]
async fn a_streamed_part_with_its_checksum_is_taken() {
    use aws_sdk_s3::primitives::{ByteStream, Length};
    let cloud = TestCloud::new().await;
    let wire = Wire::plugged(cloud.local.http_client(None), REGION, ACCESS_KEY, SECRET_KEY);
    let client = aws_sdk_s3::Client::new(wire.sdk_config());
    let file = cloud.dir.path().join("part");
    std::fs::write(&file, vec![7; 6_000_000]).unwrap();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &vec![7; 5_500_000]);
    let sum = aws_smithy_types::base64::encode(&crc.to_be_bytes()[4..]);
    let created = client.create_multipart_upload().bucket(RESULT_BUCKET).key("big").send().await.unwrap();
    let put = async || {
        let body = ByteStream::read_from().path(&file).offset(500_000).length(Length::Exact(5_500_000));
        let part = client.upload_part().bucket(RESULT_BUCKET).key("big").upload_id(created.upload_id().unwrap());
        let part = part.part_number(1).content_length(5_500_000).checksum_crc32(&sum);
        part.body(body.build().await.unwrap()).send().await
    };
    assert_eq!(put().await.unwrap().checksum_crc32(), Some(sum.as_str()));
    std::fs::write(&file, vec![8; 6_000_000]).unwrap();
    assert!(format!("{:?}", put().await.unwrap_err()).contains("BadDigest"));
}
