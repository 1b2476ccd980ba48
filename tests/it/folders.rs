//! Folders that a workload leaves: however deep, and whatever their names.

use std::path::{Path, PathBuf};

use lighthpc::domain::checkpoint::earlier_folder;
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use local_cloud::RESULT_BUCKET;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use crate::test_cloud::{TestCloud, src};

/// Makes a chain of folders with a file in the innermost: in a folder of its own, for a workload to move.
fn chain(dir: &Path, levels: usize) -> PathBuf {
    let path = dir.join("chain");
    std::fs::create_dir(&path).unwrap();
    let mut at = openat(CWD, &path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&at, "level", Mode::RWXU).unwrap();
        at = openat(&at, "level", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    }
    openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
    path
}

fn left_in(work_dir: &Path) -> usize {
    std::fs::read_dir(work_dir).unwrap().filter(|entry| entry.as_ref().unwrap().file_name() != ".lock").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_that_is_too_deep_fails_its_task_with_a_text_of_its_own() {
    // Twenty thousand are tried beside the walker, in memory: a disk takes its time for them.
    for levels in [201, 3000] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let made = chain(cloud.dir.path(), levels);
        let node = cloud.node("abc", "M").shell(&format!("mv '{}' \"$LIGHTHPC_OUTPUT\"", made.display()));
        let work_dir = node.settings.work_dir.clone();
        let outcome = node.run().await.outcome;

        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::AppError)), "{levels}: {outcome:?}");
        let log = cloud.result("logs/abc.1.log").unwrap_or_default();
        assert!(format!("{outcome:?}{log}").contains("levels of folders"), "{levels}: {outcome:?} {log}");
        assert_eq!(left_in(&work_dir), 0, "{levels}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deep_folders_elsewhere_fail_no_task_and_are_removed() {
    for place in ["$LIGHTHPC_SCRATCH", "$LIGHTHPC_CHECKPOINT_DIR"] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let made = chain(cloud.dir.path(), 3000);
        let line = format!("mv '{}' \"{place}\"; echo whole > \"$LIGHTHPC_OUTPUT\"", made.display());
        let node = cloud.node("abc", "M").shell(&line);
        let work_dir = node.settings.work_dir.clone();
        node.run().await.outcome.unwrap();

        assert_eq!(cloud.result("rslt_abc").as_deref(), Some("whole\n"), "{place}");
        assert_eq!(left_in(&work_dir), 0, "{place}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_output_that_leads_round_or_too_far_is_the_tasks_own_failure() {
    for line in [
        "ln -s output \"$LIGHTHPC_OUTPUT\"",
        "ln -s progress/x \"$LIGHTHPC_OUTPUT\"",
        // Two links, each short enough, to a place that no path names.
        "n=$(printf '%0255d' 0); eight=$n/$n/$n/$n/$n/$n/$n/$n; cd \"$LIGHTHPC_SCRATCH\"; \
         for i in $(seq 17); do mkdir $n; cd -P $n; done; : > x; cd \"$LIGHTHPC_SCRATCH\"; ln -s $eight half; \
         ln -s scratch/half/$eight/$n/x \"$LIGHTHPC_OUTPUT\"; cat \"$LIGHTHPC_OUTPUT\"",
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let outcome = cloud.node("abc", "M").shell(line).run().await.outcome;
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict), (State::Failed, Some(Verdict::AppError)), "{line}: {outcome:?}");
    }
}

/// Earlier versions put a file's own name into its key, and a name may have any byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_names_of_an_earlier_checkpoint_do_not_stop_the_clean_up() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let earlier = earlier_folder(&src("abc"));
    let names: Vec<String> = (1..=31).chain([127, 128, 159]).map(|code| format!("a{}b", char::from(code))).collect();
    let names: Vec<String> =
        names.into_iter().chain(["plain", "a b+c", "100%25", "<&>\"'", "\u{fffe}"].map(str::to_owned)).collect();
    let mut files = serde_json::Map::new();
    for name in &names {
        let key = format!("{earlier}1.1/{name}");
        cloud.backend.store.put_bytes(RESULT_BUCKET, &key, b"old\n".to_vec()).await.unwrap();
        files.insert(name.clone(), serde_json::json!({ "key": key, "bytes": 4, "changed_ns": 5 }));
    }
    let listed = cloud.backend.store.list(RESULT_BUCKET, &earlier).await.unwrap();
    assert_eq!(listed.len(), names.len());
    assert!(names.iter().all(|name| listed.contains(&format!("{earlier}1.1/{name}"))), "{listed:?}");

    let list = format!("{earlier}1.1/_lighthpc_checkpoint.json");
    let text = serde_json::json!({ "files": files }).to_string().into_bytes();
    cloud.backend.store.put_bytes(RESULT_BUCKET, &list, text).await.unwrap();
    cloud.set_attribute("abc", "checkpoint", &format!("s3://{RESULT_BUCKET}/{list}")).await;
    let line = r#"ls "$LIGHTHPC_CHECKPOINT_DIR" | wc -l > "$LIGHTHPC_OUTPUT"; [ "$LIGHTHPC_RESUMED" = 1 ]"#;
    cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();
    assert_eq!(cloud.backend.store.list(RESULT_BUCKET, "checkpoints/").await.unwrap(), Vec::<String>::new());
}
