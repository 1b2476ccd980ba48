//! Results and checkpoints of absurd sizes and kinds: the task fails, and nothing else does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lighthpc::backend::store::StoreError;
use lighthpc::command::exit::{self, ExitCode};
use lighthpc::domain::budget::SizeLimits;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::S3;
use local_cloud::{Faults, RESULT_BUCKET, When};
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, src};

/// As large as the file system lets a file look: 7 EiB, of ext4 15 TiB.
const HUGE: &str = r#"huge() { truncate -s 7E "$1" 2> /dev/null || truncate -s 15T "$1"; }; "#;

const SMALL: SizeLimits =
    SizeLimits { result_bytes: 1000, result_files: 3, checkpoint_bytes: 1000, checkpoint_files: 3 };

/// A folder on a file system that takes a file of 7 EiB, if there is one here.
fn large_disk() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[tokio::test]
async fn a_result_that_is_too_large_fails_its_task_once_and_uploads_nothing() {
    let disk = large_disk();
    let folder = r#"mkdir "$LIGHTHPC_OUTPUT"; cd "$LIGHTHPC_OUTPUT"; "#;
    let default = SizeLimits::default();
    for (line, sizes, flag) in [
        (format!(r#"{HUGE} huge "$LIGHTHPC_OUTPUT""#), default, "--max-result-bytes"),
        (format!(r#"{HUGE} huge "$LIGHTHPC_OUTPUT"; echo x >> "$LIGHTHPC_OUTPUT""#), default, "--max-result-bytes"),
        // Together more than 64 bits count.
        (format!("{HUGE} {folder} for n in 1 2 3; do huge $n; done"), default, " bytes, "),
        (r#"head -c 1001 /dev/zero > "$LIGHTHPC_OUTPUT""#.to_owned(), SMALL, "--max-result-bytes"),
        (format!("{folder} for n in 1 2 3; do head -c 334 /dev/zero > $n; done"), SMALL, "--max-result-bytes"),
        (format!("{folder} mkdir d; : > 1; : > 2; : > 3; : > d/4"), SMALL, "--max-result-files"),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        let mut node = cloud.node_with("abc", "M", faults.clone()).shell(&line);
        node.settings.work_dir = disk.path().join("work");
        node.settings.sizes = sizes;
        // Even where such failures are tried again, the answer is the same.
        let life = node.run().await;

        let Err(error @ NodeError::Store { source: StoreError::TooLarge { reason, .. }, .. }) = &life.outcome else {
            panic!("{line}: {life:?}")
        };
        assert!(reason.contains(flag), "{line}: {reason}");
        assert_eq!(exit::of_node(error).0, ExitCode::WorkloadFailed);
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::AppError), 1), "{line}");
        assert!(cloud.backend.store.list(RESULT_BUCKET, "rslt_").await.unwrap().is_empty(), "{line}");
        // The one of the check before the first claim.
        assert_eq!(faults.count(S3, "CreateMultipartUpload"), 1, "{line}");
        let tally = cloud.tally("M").await;
        assert_eq!((tally.ok, tally.failed), (0, 1), "{line}");
    }
}

/// What is as large as it may be is a result; a hole is zeros.
#[tokio::test]
async fn a_result_of_exactly_the_limit_is_stored_and_a_sparse_one_has_all_its_bytes() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "sparse"]).await;
    let mut node = cloud.node("abc", "M").shell(r#"head -c 1000 /dev/zero > "$LIGHTHPC_OUTPUT""#);
    node.settings.sizes = SMALL;
    node.run().await.outcome.unwrap();
    assert_eq!(cloud.task("abc").await.result_bytes, Some(1000));

    let line = r#"printf 'begin' > "$LIGHTHPC_OUTPUT"; truncate -s 20000000 "$LIGHTHPC_OUTPUT"
        printf 'end' >> "$LIGHTHPC_OUTPUT""#;
    cloud.node("sparse", "M").shell(line).run().await.outcome.unwrap();
    let result = std::fs::read(cloud.local.object_path(RESULT_BUCKET, "rslt_sparse")).unwrap();
    assert_eq!(result.len(), 20_000_003);
    assert!(result.starts_with(b"begin\0") && result.ends_with(b"\0end"));
    assert_eq!(result.iter().filter(|&&byte| byte != 0).count(), 8);
}

/// The node goes on, with its other slots and with the next task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_too_large_does_not_stop_its_node() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["one", "huge", "two", "three"]).await;
    let instance = cloud.local.launch(&[("missionID", "M")]);
    let line = format!(
        r#"{HUGE} if [ "$LIGHTHPC_SRC_ID" = huge ]; then huge "$LIGHTHPC_OUTPUT"
        else rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT"; fi"#
    );
    let mut node = cloud.node_on(instance, Faults::new()).shell(&line);
    node.settings.slots = Some(2);
    let life = node.run().await;
    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 3, other: 1 })), "{life:?}");
    let tally = cloud.tally("M").await;
    assert_eq!((tally.ok, tally.failed), (3, 1));
}

/// What is no file, or is another's, is neither read nor waited for.
#[tokio::test]
async fn what_is_no_file_of_the_workloads_is_no_result() {
    let socket = r#"python3 -c 'import os, socket; socket.socket(socket.AF_UNIX).bind(os.environ["AT"])'"#;
    for line in [
        r#"mkfifo "$AT""#,
        r#"ln -s /dev/zero "$AT""#,
        r#"ln -s /dev/zero "$LIGHTHPC_SCRATCH/zero"; ln -s "$LIGHTHPC_SCRATCH/zero" "$AT""#,
        r#"ln -s /proc/self/environ "$AT""#,
        r#"ln -s "$LIGHTHPC_SCRATCH/../../.lighthpc-attempt.json" "$AT""#,
        r#"ln -s .. "$LIGHTHPC_SCRATCH/up"; ln -s "$LIGHTHPC_SCRATCH/up/../.lighthpc-attempt.json" "$AT""#,
        r#"mknod "$AT" c 1 5 2> /dev/null || mkfifo "$AT""#,
        socket,
    ] {
        for place in [r#"AT="$LIGHTHPC_OUTPUT""#, r#"mkdir "$LIGHTHPC_OUTPUT"; AT="$LIGHTHPC_OUTPUT/x""#] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["abc"]).await;
            let life = cloud.node("abc", "M").shell(&format!("{place}; export AT; {line}")).run().await;
            let row = cloud.task("abc").await;
            assert_eq!(
                (row.state, row.verdict, row.attempt.0),
                (State::Failed, Some(Verdict::AppError), 1),
                "{place} {line}: {life:?}"
            );
            assert!(cloud.backend.store.list(RESULT_BUCKET, "rslt_").await.unwrap().is_empty(), "{line}");
        }
    }
}

/// The output of the attempt that runs in this work folder.
fn output_in(work_dir: &Path) -> PathBuf {
    let folders = std::fs::read_dir(work_dir).unwrap().map(|entry| entry.unwrap().path());
    folders.map(|folder| folder.join("workload/output")).find(|output| output.exists()).unwrap()
}

/// A process of the workload that nobody found writes on: what goes up is no result, however the file changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_changes_while_it_goes_up_is_none() {
    type Change = fn(&Path);
    let append = |path: &Path| {
        std::fs::File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
    };
    let grow = |path: &Path| std::fs::File::options().write(true).open(path).unwrap().set_len(10 << 40).unwrap();
    let cut = |path: &Path| std::fs::File::options().write(true).open(path).unwrap().set_len(1).unwrap();
    let replace = |path: &Path| {
        std::fs::File::options().write(true).open(path).unwrap().write_all(b"other bytes").unwrap();
    };
    // In memory; sent as it is read, whole and in parts.
    let calls = [
        (1000, "PutObject"),
        (2_000_000, "PutObject"),
        (20_000_000, "CreateMultipartUpload"),
        (20_000_000, "UploadPart"),
    ];
    for (bytes, call) in calls {
        for (what, change) in [("append", append as Change), ("grow", grow), ("cut", cut), ("replace", replace)] {
            let cloud = TestCloud::new().await;
            cloud.mission("M", &["abc"]).await;
            let faults = Faults::new();
            // The first upload in parts is the check before the claim.
            let gate = faults.hold_before(S3, call, When::Nth(if call == "CreateMultipartUpload" { 2 } else { 1 }));
            let line = format!(r#"head -c {bytes} /dev/zero > "$LIGHTHPC_OUTPUT""#);
            let node = cloud.node_with("abc", "M", faults).shell(&line);
            let work_dir = node.settings.work_dir.clone();
            let mut running = JoinSet::new();
            running.spawn(node.run());
            gate.arrived(1).await;
            change(&output_in(&work_dir));
            gate.open();
            let life = running.join_all().await.pop().unwrap();
            let is_bad = matches!(&life.outcome, Err(NodeError::Store { source: StoreError::BadResult { .. }, .. }));
            assert!(is_bad, "{bytes} {call} {what}: {life:?}");
            let row = cloud.task("abc").await;
            assert_eq!((row.state, row.attempt.0, row.result), (State::Failed, 1, None), "{bytes} {what}");
        }
    }
}

/// A checkpoint that is too large is not saved; the workload goes on, and its log says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_too_large_is_not_saved_and_costs_nothing_else() {
    let disk = large_disk();
    for (line, sizes, why) in [
        (format!("{HUGE} for n in 1 2 3; do huge $n; done"), SizeLimits::default(), "--max-checkpoint-bytes"),
        ("truncate -s 1001 a".to_owned(), SMALL, "--max-checkpoint-bytes"),
        // Within the limit, but no disk of this size takes it back.
        (
            format!("{HUGE} huge a"),
            SizeLimits { checkpoint_bytes: u64::MAX, ..SizeLimits::default() },
            "could not be restored",
        ),
        (": > a; : > b; mkdir c; : > c/d".to_owned(), SMALL, "--max-checkpoint-files"),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        // It ends when the first save was tried: the node's note of it is there then.
        let line = format!(
            r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; {line}; n=0
            until [ -e ../../notes ] || [ $n -ge 1000 ]; do n=$((n + 1)); sleep 0.02; done
            rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT"; echo said"#
        );
        let mut node = cloud.node("abc", "M").shell(&line);
        node.settings.work_dir = disk.path().join("work");
        node.settings.sizes = sizes;
        node.settings.checkpoint_every = Duration::from_millis(50);
        node.run().await.outcome.unwrap();
        cloud.assert_done("abc", "M", why).await;
        assert!(cloud.backend.store.list(RESULT_BUCKET, "checkpoints/").await.unwrap().is_empty(), "{why}");
        let log = cloud.result("logs/abc.1.log").unwrap();
        assert_eq!(log.matches("the checkpoint was not saved").count(), 1, "{log}");
        assert!(log.contains(why), "{log}");
    }
}

/// The row may name anything as a checkpoint's list.
#[tokio::test]
async fn a_list_of_absurd_size_is_not_read() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    cloud.backend.store.put_bytes(RESULT_BUCKET, "absurd", b"x".to_vec()).await.unwrap();
    let list = std::fs::File::options().write(true).open(cloud.local.object_path(RESULT_BUCKET, "absurd")).unwrap();
    list.set_len(1 << 43).unwrap();
    cloud.set_attribute("abc", "checkpoint", &format!("s3://{RESULT_BUCKET}/absurd")).await;
    let line = r#"[ "$LIGHTHPC_RESUMED" = 0 ] || exit 3; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#;
    cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "from the start").await;
    assert_eq!(cloud.task("abc").await.src, src("abc"));
}

/// A workload without a sandbox can write into its attempt's folder, where its log is.
#[tokio::test]
async fn a_log_of_absurd_size_is_cut() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let line = format!(
        r#"{HUGE} echo hello; cd "$LIGHTHPC_SCRATCH/../.."; for n in 1 2 3 4 5 6 7; do huge log.$n; done; mkfifo log.9
        huge notes; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#
    );
    cloud.node("abc", "M").shell(&line).run().await.outcome.unwrap();
    cloud.assert_done("abc", "M", "a log that is no log").await;
    let log = cloud.backend.store.head(RESULT_BUCKET, "logs/abc.1.log").await.unwrap().unwrap();
    assert!(log.bytes < 10 << 20, "{}", log.bytes);
}

/// One file more is counted than are opened at a time: it grows while the others go up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grows_after_it_was_counted_goes_up_neither_in_a_checkpoint_nor_in_a_result() {
    let files = lighthpc::backend::store::files_parallel().min(64);
    let all = format!("for n in $(seq -w {}); do echo $n > $n; done", files + 1);
    let wait = "n=0; until grep -q grew ../../notes || [ $n -ge 1000 ]; do n=$((n + 1)); sleep 0.02; done";
    let saving = format!(r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; {all}; {wait}; echo x > "$LIGHTHPC_OUTPUT""#);
    let storing = format!(r#"mkdir "$LIGHTHPC_OUTPUT"; cd "$LIGHTHPC_OUTPUT"; {all}"#);
    for (line, folder, prefix) in [(saving, "checkpoint", "checkpoints/"), (storing, "output", "rslt_")] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        let held = u32::try_from(files).unwrap();
        let gate = faults.hold_before(S3, "PutObject", When::First(held));
        let mut node = cloud.node_with("abc", "M", faults).shell(&line);
        node.settings.sizes = SizeLimits { result_files: files + 1, checkpoint_files: files + 1, ..SMALL };
        // The first save has all as a rule; one that has fewer is held as well, and finds the limit the next time.
        node.settings.checkpoint_every = Duration::from_millis(500);
        let work_dir = node.settings.work_dir.clone();
        let mut running = JoinSet::new();
        running.spawn(node.run());
        gate.arrived(held).await;
        let attempt = std::fs::read_dir(&work_dir).unwrap().map(|entry| entry.unwrap().path());
        let last = (files + 1).to_string();
        let last = attempt.map(|attempt| attempt.join("workload").join(folder).join(&last)).find(|file| file.exists());
        std::fs::write(last.unwrap(), vec![0; 1000]).unwrap();
        gate.open();
        let life = running.join_all().await.pop().unwrap();
        for key in cloud.backend.store.list(RESULT_BUCKET, prefix).await.unwrap() {
            let stored = cloud.backend.store.head(RESULT_BUCKET, &key).await.unwrap().unwrap();
            assert!(stored.bytes < 1000, "{key}: {life:?}");
        }
        let row = cloud.task("abc").await;
        if folder == "output" {
            assert_eq!((row.state, row.result), (State::Failed, None), "{life:?}");
        } else {
            assert_eq!((row.state, row.checkpoint), (State::Done, None), "{life:?}");
            assert!(cloud.result("logs/abc.1.log").unwrap().contains("grew beyond --max-checkpoint-bytes"));
        }
    }
}
