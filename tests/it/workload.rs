//! A workload's folder, its checkpoint, its progress file, and its start, through the whole worker.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lighthpc::domain::checkpoint::{earlier_folder, folder};
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use lighthpc::workload::Workload;
use local_cloud::RESULT_BUCKET;
use tokio::task::JoinSet;

use crate::test_cloud::{TestCloud, TestNode, src, until};

/// Runs a node until its workload has made the file `began`, then drains it.
async fn drained_after(node: TestNode, began: &Path) {
    let (stopping, mut running) = (node.stopping.clone(), JoinSet::new());
    running.spawn(node.run());
    until("the workload begins", async || began.exists()).await;
    std::fs::remove_file(began).unwrap();
    stopping.drain.cancel();
    let life = running.join_all().await.pop().unwrap();
    assert!(matches!(life.outcome, Ok(Outcome::Drained)), "{life:?}");
}

async fn checkpoint_keys(cloud: &TestCloud) -> Vec<String> {
    cloud.backend.store.list(RESULT_BUCKET, "checkpoints/").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_keeps_links_empty_folders_modes_and_any_name() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let began = cloud.dir.path().join("began");
    let long = "n".repeat(250);
    let line = format!(
        r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; mkdir -p empty/deeper ro {long}/{long}/{long}/{long}
        echo 1 > ro/file; chmod 555 ro; printf '#!/bin/sh\necho ran\n' > run.sh; chmod 755 run.sh
        ln -s run.sh link; ln -s nowhere dangling; ln -s /etc/passwd outside; echo mine > _lighthpc_checkpoint.json
        echo deep > {long}/{long}/{long}/{long}/x; echo odd > "$(printf 'odd\377')"; echo 100 > '100%25'
        : > '{}'; while :; do sleep 0.05; done"#,
        began.display()
    );
    drained_after(cloud.node("abc", "M").shell(&line), &began).await;
    let first = checkpoint_keys(&cloud).await;
    assert!(first.iter().all(|key| key.starts_with(&folder("tblTrans2", &src("abc")))), "{first:?}");

    let line = format!(
        r#"set -e; cd "$LIGHTHPC_CHECKPOINT_DIR"; [ "$LIGHTHPC_RESUMED" = 1 ]; [ -d empty/deeper ]
        [ "$(stat -c %a ro)" = 555 ]; [ "$(cat ro/file)" = 1 ]; [ "$(./link)" = ran ]; [ "$(readlink link)" = run.sh ]
        [ "$(readlink dangling)" = nowhere ]; [ "$(readlink outside)" = /etc/passwd ]
        [ "$(cat _lighthpc_checkpoint.json)" = mine ]; [ "$(cat {long}/{long}/{long}/{long}/x)" = deep ]
        [ "$(cat "$(printf 'odd\377')")" = odd ]; [ "$(cat '100%25')" = 100 ]
        echo whole > "$LIGHTHPC_OUTPUT""#
    );
    let second = cloud.node("abc", "M").shell(&line);
    let work_dir = second.settings.work_dir.clone();
    second.run().await.outcome.unwrap();

    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("whole\n"));
    assert_eq!(checkpoint_keys(&cloud).await, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(work_dir).unwrap().count(), 0, "the attempt's folder is gone, read-only parts too");
}

/// A restored checkpoint that nobody touched is not put again, and a change that hides behind size and time is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_change_since_the_restoring_is_saved() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let began = cloud.dir.path().join("began");
    let at = |commands: &str| {
        format!(r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; {commands}; : > '{}'; while :; do sleep 0.05; done"#, began.display())
    };
    let first = at("mkdir a; echo one > a/b; chmod 600 a/b; ln -s a c; touch -d 2020-01-01 a/b");
    drained_after(cloud.node("abc", "M").shell(&first), &began).await;
    let before = (checkpoint_keys(&cloud).await, cloud.task("abc").await.checkpoint);

    drained_after(cloud.node("abc", "M").shell(&at("true")), &began).await;
    assert_eq!((checkpoint_keys(&cloud).await, cloud.task("abc").await.checkpoint), before);

    let hidden = "touch -r a/b ../time; echo two > a/b; touch -r ../time a/b";
    drained_after(cloud.node("abc", "M").shell(&at(hidden)), &began).await;
    cloud
        .node("abc", "M")
        .shell(r#"cat "$LIGHTHPC_CHECKPOINT_DIR/a/b" > "$LIGHTHPC_OUTPUT""#)
        .run()
        .await
        .outcome
        .unwrap();
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("two\n"));
}

/// What cannot be saved is said: once in the task's own log, however often the save is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_that_is_refused_is_seen_in_the_tasks_log() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let began = cloud.dir.path().join("began");
    let line = format!(
        r#"mkfifo "$LIGHTHPC_CHECKPOINT_DIR/pipe"; echo working; sleep 0.5; : > '{}'; while :; do sleep 0.05; done"#,
        began.display()
    );
    let mut node = cloud.node("abc", "M").shell(&line);
    node.settings.checkpoint_every = Duration::from_millis(50);
    drained_after(node, &began).await;

    assert_eq!(cloud.task("abc").await.checkpoint, None);
    let log = cloud.result("logs/abc.1.log").unwrap();
    assert_eq!(log.matches("the checkpoint was not saved").count(), 1, "{log}");
    assert!(log.starts_with("working\n") && log.contains("pipe is a FIFO"), "{log}");
}

/// Lists of earlier versions are in buckets. They are restored and carried on; after the commit they are removed, but
/// nothing that another deployment has in the same folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_an_earlier_version_is_restored_and_removed() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let earlier = earlier_folder(&src("abc"));
    let put = async |key: &str, text: String| {
        cloud.backend.store.put_bytes(RESULT_BUCKET, &format!("{earlier}{key}"), text.into_bytes()).await.unwrap();
    };
    let file = |name: &str| format!(r#""{name}":{{"key":"{earlier}1.1/{name}","bytes":4,"changed_ns":5}}"#);
    put("1.1/a", "old\n".to_owned()).await;
    put("1.1/b/c", "old\n".to_owned()).await;
    put("1.1/_lighthpc_checkpoint.json", format!(r#"{{"files":{{{},{}}}}}"#, file("a"), file("b/c"))).await;
    put("7.1/of-another-deployment", "x".to_owned()).await;
    cloud
        .set_attribute("abc", "checkpoint", &format!("s3://{RESULT_BUCKET}/{earlier}1.1/_lighthpc_checkpoint.json"))
        .await;

    let began = cloud.dir.path().join("began");
    let line = format!(
        r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; [ "$LIGHTHPC_RESUMED" = 1 ] || exit 3; echo new > a; : > '{}'
        while :; do sleep 0.05; done"#,
        began.display()
    );
    drained_after(cloud.node("abc", "M").shell(&line), &began).await;
    let keys = checkpoint_keys(&cloud).await;
    assert!(keys.contains(&format!("{earlier}1.1/b/c")), "what did not change stays where it is: {keys:?}");
    assert!(!keys.contains(&format!("{earlier}1.1/a")), "{keys:?}");

    let line = r#"cd "$LIGHTHPC_CHECKPOINT_DIR"; cat a b/c > "$LIGHTHPC_OUTPUT""#;
    cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();
    assert_eq!(cloud.result("rslt_abc").as_deref(), Some("new\nold\n"));
    assert_eq!(checkpoint_keys(&cloud).await, [format!("{earlier}7.1/of-another-deployment")]);
}

/// A list that leads out of the folder restores nothing, and the workload begins from its start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_leads_out_of_the_folder_restores_nothing() {
    for entries in [
        r#"{"name":"../../../precious","key":"k","bytes":1}"#,
        r#"{"name":"link","target":"PLACE"},{"name":"link/precious","key":"k","bytes":1}"#,
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let place = cloud.dir.path().to_str().unwrap();
        let list = format!(r#"{{"version":2,"entries":[{}]}}"#, entries.replace("PLACE", place));
        cloud.backend.store.put_bytes(RESULT_BUCKET, "k", b"x".to_vec()).await.unwrap();
        cloud.backend.store.put_bytes(RESULT_BUCKET, "checkpoints/list", list.into_bytes()).await.unwrap();
        cloud.set_attribute("abc", "checkpoint", &format!("s3://{RESULT_BUCKET}/checkpoints/list")).await;
        let line = r#"[ "$LIGHTHPC_RESUMED" = 0 ] && ls -A "$LIGHTHPC_CHECKPOINT_DIR" > "$LIGHTHPC_OUTPUT""#;
        cloud.node("abc", "M").shell(line).run().await.outcome.unwrap();
        assert_eq!(cloud.result("rslt_abc").as_deref(), Some(""));
        assert!(cloud.result("logs/abc.1.log").unwrap().contains("could not be restored"));
        assert!(!cloud.dir.path().join("precious").exists());
        // It is nothing that lighthpc keeps for this task.
        assert_eq!(checkpoint_keys(&cloud).await, ["checkpoints/list"]);
    }
}

/// The disk is too small for the checkpoint: the work in it must not be replaced by that of a workload that begins from
/// its start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_does_not_fit_is_left_to_another_machine() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let list = r#"{"version":2,"entries":[{"name":"huge","key":"checkpoints/huge","bytes":8796093022208}]}"#;
    cloud.backend.store.put_bytes(RESULT_BUCKET, "checkpoints/huge", b"x".to_vec()).await.unwrap();
    let huge = cloud.local.object_path(RESULT_BUCKET, "checkpoints/huge");
    std::fs::File::options().write(true).open(huge).unwrap().set_len(8 << 40).unwrap();
    cloud.backend.store.put_bytes(RESULT_BUCKET, "checkpoints/list", list.as_bytes().to_vec()).await.unwrap();
    let named = format!("s3://{RESULT_BUCKET}/checkpoints/list");
    cloud.set_attribute("abc", "checkpoint", &named).await;
    cloud.node("abc", "M").run().await.outcome.unwrap_err();
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::DiskFull)));
    assert_eq!(row.checkpoint, Some(named));
}

/// The program is open for writing, as after a copy that is still going on: that is no failure of the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_stays_busy_hands_the_task_back() {
    use std::os::unix::fs::PermissionsExt;
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let program = cloud.dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\n: > \"$LIGHTHPC_OUTPUT\"\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let writer = std::fs::File::options().append(true).open(&program).unwrap();
    let node = |cloud: &TestCloud| {
        let mut node = cloud.node("abc", "M");
        node.settings.workload = Some(Workload::Program(vec![program.display().to_string()]));
        node
    };

    let life = node(&cloud).run().await;
    assert!(matches!(life.outcome, Err(NodeError::NotStarted { .. })), "{life:?}");
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.app_failures), (State::Pending, Some(Verdict::Infra), 1));

    drop(writer);
    node(&cloud).run().await.outcome.unwrap();
    assert_eq!(cloud.task("abc").await.state, State::Done);
}

/// The work folder may be somebody's home.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_in_the_work_folder_before_stays() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M");
    let home = cloud.dir.path().join("home");
    std::fs::create_dir_all(home.join("thesis")).unwrap();
    std::fs::write(home.join("thesis/draft.tex"), "x").unwrap();
    std::fs::write(home.join("notes"), "x").unwrap();
    std::os::unix::fs::symlink(home.join("thesis"), home.join("link")).unwrap();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    node.settings.work_dir.clone_from(&home);
    node.run().await.outcome.unwrap();
    assert_eq!(names(), before);
    lighthpc::workload::lock_work_dir(&home, "tblTrans2").unwrap();
    assert_eq!(names().len(), before.len() + 1, "the lock is new");
    assert!(home.join("thesis/draft.tex").exists());
}

/// What cannot be a work folder is found before a task is claimed, and what can is left as it was.
#[tokio::test]
async fn a_work_folder_that_cannot_be_used_claims_nothing() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let file = cloud.dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    for work in [file.clone(), file.join("below"), std::path::PathBuf::from("/proc/none")] {
        let faults = local_cloud::Faults::new();
        let mut node = cloud.node_with("abc", "M", faults.clone());
        let instance = node.instance.clone();
        node.settings.work_dir.clone_from(&work);

        let life = node.run().await;

        assert!(matches!(life.outcome, Err(NodeError::Disk { .. })), "{}: {life:?}", work.display());
        assert_eq!(faults.count(local_cloud::Service::Dynamodb, "UpdateItem"), 0, "{}", work.display());
        assert!(cloud.has_ended(&instance), "{}", work.display());
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

    let work = cloud.dir.path().join("new");
    let mut node = cloud.node("abc", "M");
    node.settings.work_dir.clone_from(&work);
    node.run().await.outcome.unwrap();
    let left: Vec<_> = std::fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".lock"), "{left:?}");
}

/// A file system of its own, with room for bytes and none for files; only root may mount one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
async fn no_room_for_files_is_a_full_disk() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
        }
    }
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc", "def"]).await;
    let work = cloud.dir.path().join("small");
    std::fs::create_dir(&work).unwrap();
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m,nr_inodes=40", "tmpfs"]).arg(&work).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let _mounted = Mounted(work.clone());

    // A program that heeds the failure, and one that ignores it and leaves no result.
    for (attempt, otherwise) in ["exit 1", "break"].into_iter().enumerate() {
        let fill = format!(r#"for n in $(seq 100); do : > "$LIGHTHPC_SCRATCH/$n" || {otherwise}; done; true"#);
        let mut node = cloud.node("abc", "M").shell(&format!("( {fill} )"));
        node.settings.work_dir.clone_from(&work);
        let life = node.run().await;
        assert!(matches!(life.outcome, Err(NodeError::WorkloadDiskFull)), "{otherwise}: {life:?}");
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict), (State::Pending, Some(Verdict::DiskFull)), "{otherwise}");
        assert_eq!(row.attempt.0, attempt as u64 + 1);
    }

    // Not even the attempt's folder can be made.
    for n in 0..40 {
        std::fs::write(work.join(n.to_string()), "").ok();
    }
    let mut node = cloud.node("def", "M");
    node.settings.work_dir.clone_from(&work);
    let life = node.run().await;
    assert!(matches!(life.outcome, Err(NodeError::Disk { .. })), "{life:?}");
    let row = cloud.task("def").await;
    assert_eq!((row.state, row.attempt.0), (State::Pending, 0), "it was found before the claim");
    assert!(
        std::fs::read_dir(&work).unwrap().all(|entry| !entry.unwrap().file_type().unwrap().is_dir()),
        "no folder is left"
    );
}

/// However the workload writes its progress, the row follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_that_is_rewritten_or_renamed_reaches_the_row() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let go = cloud.dir.path().join("go");
    let line = format!(
        r#"wait_for() {{ while [ ! -e '{0}'-$1 ]; do sleep 0.02; done; }}
        echo "10 the first of the lines" > "$LIGHTHPC_PROGRESS"; wait_for 1
        echo 21 > "$LIGHTHPC_SCRATCH/p"; mv "$LIGHTHPC_SCRATCH/p" "$LIGHTHPC_PROGRESS"; wait_for 2
        echo "32 and some more words" > "$LIGHTHPC_PROGRESS"; wait_for 3
        printf 43 > "$LIGHTHPC_PROGRESS"; wait_for 4
        : > "$LIGHTHPC_OUTPUT""#,
        go.display()
    );
    let node = cloud.node("abc", "M").shell(&line).lease(Duration::from_mins(1), Duration::from_millis(50));
    let mut running = JoinSet::new();
    running.spawn(node.run());
    for (step, shown) in [(1, "10%"), (2, "21%"), (3, "32%"), (4, "43%")] {
        until(shown, async || cloud.task("abc").await.progress == shown).await;
        std::fs::write(format!("{}-{step}", go.display()), "").unwrap();
    }
    running.join_all().await.pop().unwrap().outcome.unwrap();
}
