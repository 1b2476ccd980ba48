//! A disk that several tasks share, and that is too small for them; only root may mount one.

use std::path::PathBuf;
use std::process::Command;

use lighthpc::domain::task::{State, Task};
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::Outcome;
use local_cloud::Faults;

use crate::test_cloud::{TestCloud, TestNode};

/// A file system of 256 MiB in memory, of which 64 must stay free for an input to be fetched.
pub(crate) struct SmallDisk(pub(crate) PathBuf);

impl SmallDisk {
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub(crate) fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256m,mode=0755", "tmpfs"]).arg(&at).output();
        if mount.is_ok_and(|mount| mount.status.success()) {
            return Some(Self(at));
        }
        eprintln!("skipped: nothing can be mounted here");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

/// Shell functions: `until_there FILE`, and `write MIB` more to a file of the attempt's.
const TOOLS: &str = r#"
    until_there() { n=0; until [ -e "$1" ] || [ $n -ge 1500 ]; do n=$((n + 1)); sleep 0.02; done; }
    write() { head -c "$1M" /dev/zero >> "$LIGHTHPC_SCRATCH/file"; }
    is_first() { [ "$LIGHTHPC_ATTEMPT" = 1 ]; }
    done_now() { rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT" && exit 0; exit 1; }
"#;

/// A node of two slots on a small disk, whose workloads share a folder for their signs.
fn node(cloud: &TestCloud, disk: &SmallDisk, line: &str) -> TestNode {
    let instance = cloud.local.launch(&[("missionID", "M"), ("lighthpc", "tblTrans2")]);
    let signs = cloud.dir.path().join("signs");
    std::fs::create_dir_all(&signs).unwrap();
    let line = format!("S='{}'; {TOOLS} {line}", signs.display());
    let mut node = cloud.node_on(instance, Faults::new()).shell(&line);
    node.settings.slots = Some(2);
    node.settings.work_dir = disk.0.join("work");
    node
}

fn verdicts(row: &Task) -> Vec<Verdict> {
    row.history.iter().map(|past| past.end.verdict).collect()
}

/// Whoever of the two fails first: the neighbour may end a while after the one that filled the disk is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_fills_the_disk_costs_its_neighbour_no_failure() {
    let neighbour_first = r"
        if [ $LIGHTHPC_SRC_ID = hog ]; then
            is_first || done_now
            until_there $S/small; write 300; : > $S/full; until_there $S/failed; exit 1
        fi
        is_first || done_now
        : > $S/small; until_there $S/full; write 1 && exit 9; : > $S/failed; exit 1";
    let hog_first = r#"
        if [ $LIGHTHPC_SRC_ID = hog ]; then
            is_first || { until_there $S/failed; done_now; }
            until_there $S/small; write 300; echo "$LIGHTHPC_SCRATCH" > $S/full; until_there $S/met; exit 1
        fi
        is_first || done_now
        : > $S/small; until_there $S/full; write 1 && exit 9; : > $S/met; hog=$(cat $S/full)
        n=0; while [ -e $hog ] && [ $n -lt 1500 ]; do n=$((n + 1)); sleep 0.02; done
        : > $S/failed; exit 1"#;
    for line in [neighbour_first, hog_first] {
        let cloud = TestCloud::new().await;
        let Some(disk) = SmallDisk::mount(cloud.dir.path().join("disk")) else { return };
        cloud.mission("M", &["hog", "small"]).await;
        let life = node(&cloud, &disk, line).run().await;
        let (hog, small) = (cloud.task("hog").await, cloud.task("small").await);
        let context = format!("{line} {life:?} {hog:?} {small:?}");
        assert_eq!((hog.state, small.state), (State::Done, State::Done), "{context}");
        assert_eq!((hog.app_failures, small.app_failures), (1, 0), "{context}");
        assert_eq!((small.interruptions, small.crashes), (0, 0), "{context}");
        assert_eq!(verdicts(&small), [Verdict::DiskFull, Verdict::Ok], "{context}");
        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 2, other: 2 })), "{context}");
    }
}

/// Two tasks that fit one at a time: nobody is to blame, and they follow one another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_fill_the_disk_together_run_one_after_another_and_none_is_counted() {
    let cloud = TestCloud::new().await;
    let Some(disk) = SmallDisk::mount(cloud.dir.path().join("disk")) else { return };
    cloud.mission("M", &["one", "two"]).await;
    let line = r"
        write 100 || exit 1; : > $S/$LIGHTHPC_SRC_ID; until_there $S/one; until_there $S/two
        write 60 || exit 1; done_now";
    let life = node(&cloud, &disk, line).run().await;
    for task in ["one", "two"] {
        let row = cloud.task(task).await;
        assert_eq!((row.state, row.app_failures), (State::Done, 0), "{life:?} {row:?}");
        assert!(row.attempt.0 <= 2, "{row:?}");
    }
}

/// A task that fills the disk on its own is counted, and fails in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_always_fills_the_disk_fails_and_its_neighbours_are_done() {
    let cloud = TestCloud::new().await;
    let Some(disk) = SmallDisk::mount(cloud.dir.path().join("disk")) else { return };
    cloud.mission("M", &["a", "b", "c", "hog"]).await;
    let line = r"if [ $LIGHTHPC_SRC_ID = hog ]; then write 300; exit 1; fi; write 1 || exit 1; done_now";
    let life = node(&cloud, &disk, line).run().await;
    let hog = cloud.task("hog").await;
    assert_eq!((hog.state, hog.verdict, hog.app_failures), (State::Failed, Some(Verdict::DiskFull), 3), "{hog:?}");
    for task in ["a", "b", "c"] {
        let row = cloud.task(task).await;
        assert_eq!((row.state, row.app_failures), (State::Done, 0), "{life:?} {row:?}");
    }
}
