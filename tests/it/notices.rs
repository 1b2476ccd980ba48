//! Early notifications: of the first failure and of a stall, for missions that ask for them.

use lighthpc::scheduler::{Scheduler, SchedulerSettings, What};
use local_cloud::Service::{Dynamodb, Sns};
use local_cloud::{Fault, Faults, When};
use tokio_util::sync::CancellationToken;

use crate::test_cloud::TestCloud;

/// A mission of three tasks that asks for both, and a scheduler that launches nothing.
async fn asked(words: &str) -> (TestCloud, Scheduler) {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["a", "b", "c"]).await;
    cloud.set_mission_attribute("M", "notifyOn", words).await;
    let scheduler = quiet(&cloud, &Faults::new());
    (cloud, scheduler)
}

fn quiet(cloud: &TestCloud, faults: &Faults) -> Scheduler {
    cloud.scheduler_with(faults, SchedulerSettings { template: None, ..TestCloud::scheduler_settings() })
}

async fn warned(scheduler: &Scheduler) -> Vec<String> {
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    found.into_iter().filter(|finding| finding.what == What::Warned).map(|finding| finding.reason).collect()
}

fn subjects(cloud: &TestCloud) -> Vec<String> {
    cloud.local.published().into_iter().map(|message| message.subject.unwrap()).collect()
}

#[tokio::test]
async fn the_first_failure_is_sent_once_and_again_after_a_redrive() {
    let (cloud, scheduler) = asked("failure").await;
    assert_eq!(warned(&scheduler).await, [""; 0]);
    cloud.node("a", "M").shell("exit 3").run().await.outcome.unwrap_err();

    assert_eq!(warned(&scheduler).await, ["a task has failed"]);
    let message = cloud.local.published().remove(0);
    assert_eq!(message.subject.as_deref(), Some("HPC mission M: tasks fail"));
    assert_eq!(
        message.message,
        "HPC mission M: a task has failed.\n\ntasks done: 0 of 3\nfailed: 1\npending: 2\n\nfailures:\n  1  app-error: the \
         workload exited with code 3\n\nnext: lighthpc status M --failed\n      lighthpc explain M a\n"
    );
    cloud.node("b", "M").shell("exit 4").run().await.outcome.unwrap_err();
    assert_eq!(warned(&scheduler).await, [""; 0], "one is enough");

    let (row, mission) = (cloud.task("a").await, cloud.mission_row("M").await);
    cloud.backend.ledger.redrive(&row, Some(&mission), "2026-01-01T00:00:00Z").await.unwrap();
    assert_eq!(warned(&scheduler).await, ["a task has failed"], "b still has");
    assert_eq!(subjects(&cloud).len(), 2);
}

#[tokio::test]
async fn a_mission_in_which_nothing_runs_for_long_has_stalled() {
    let (cloud, scheduler) = asked("stall, failure").await;
    cloud.set_mission_number("M", "nodes", 2).await;
    cloud.set_mission_attribute("M", "launchError", "EC2 has no capacity (InsufficientInstanceCapacity)").await;
    // The rows have waited since January, but this is the first sweep that sees it.
    assert_eq!(warned(&scheduler).await, [""; 0]);
    assert_eq!(warned(&scheduler).await, [""; 0]);
    long_ago(&cloud).await;
    let found = warned(&scheduler).await;
    assert!(found.len() == 1 && found[0].starts_with("no task has run for "), "{found:?}");
    let text = cloud.local.published().remove(0).message;
    assert!(text.contains("why they wait:\n  3  no node: EC2 has no capacity"), "{text}");
    assert_eq!(warned(&scheduler).await, [""; 0], "the same stall");

    // A task has ended between two sweeps that see none run: it goes on.
    cloud.node("a", "M").run().await.outcome.unwrap();
    assert_eq!(warned(&scheduler).await, [""; 0]);
    long_ago(&cloud).await;
    assert_eq!(warned(&scheduler).await.len(), 1, "and has stalled again");
    assert_eq!(subjects(&cloud), ["HPC mission M has stalled"; 2]);

    // One that runs ends the stall, whatever it becomes.
    let gate = Faults::new();
    let hold = gate.hold_before(Dynamodb, "TransactWriteItems", When::Nth(1));
    let node = cloud.node_with("b", "M", gate);
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move { node.run().await });
    hold.arrived(1).await;
    assert_eq!(warned(&scheduler).await, [""; 0]);
    assert_eq!(cloud.mission_row("M").await.idle, None);
    running.shutdown().await;
}

/// The first sweep that saw the stall was in January.
async fn long_ago(cloud: &TestCloud) {
    assert!(cloud.mission_row("M").await.idle.is_some());
    cloud.set_mission_attribute("M", "idleSince", "2026-01-01T00:00:00Z").await;
}

#[tokio::test]
async fn nothing_is_sent_that_was_not_asked_for_nor_of_what_is_over() {
    for (words, cancelled) in [("", false), ("stall", true), ("failure", true)] {
        let (cloud, scheduler) = asked(words).await;
        cloud.node("a", "M").shell("exit 3").run().await.outcome.unwrap_err();
        if cancelled {
            cloud.set_mission_attribute("M", "cancelledAt", "2026-01-01T00:00:00Z").await;
            cloud.set_mission_number("M", "idleSeq", 1).await;
            cloud.set_mission_attribute("M", "idleSince", "2026-01-01T00:00:00Z").await;
        }
        assert_eq!(warned(&scheduler).await, [""; 0], "{words}");
    }
    let (_cloud, scheduler) = asked("sometimes").await;
    let found = scheduler.sweep(&CancellationToken::new()).await.unwrap();
    assert!(
        found.iter().any(|finding| finding.reason.contains("\"sometimes\" is neither failure nor stall")),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_message_that_was_not_sent_or_not_noted_comes_again() {
    let (cloud, _) = asked("failure").await;
    cloud.node("a", "M").shell("exit 3").run().await.outcome.unwrap_err();
    let faults = Faults::new();
    faults.add(Sns, "Publish", When::Always, Fault::Status(403, "AuthorizationError"));
    let refused = quiet(&cloud, &faults);
    let found = refused.sweep(&CancellationToken::new()).await.unwrap();
    assert!(found.iter().any(|finding| finding.what == What::Failure), "{found:?}");
    assert_eq!(subjects(&cloud), [""; 0]);

    // The process dies just after the message.
    let faults = Faults::new();
    let gate = faults.hold_after(Sns, "Publish", When::Nth(1));
    let dying = quiet(&cloud, &faults);
    let never = CancellationToken::new();
    tokio::select! {
        found = dying.sweep(&never) => panic!("{found:?}"),
        () = gate.arrived(1) => {}
    }
    assert_eq!(subjects(&cloud).len(), 1);
    assert_eq!(warned(&quiet(&cloud, &Faults::new())).await, ["a task has failed"], "twice, but not never");
    assert_eq!(warned(&quiet(&cloud, &Faults::new())).await, [""; 0]);
    assert_eq!(faults.count(Dynamodb, "DeleteItem"), 0);
}

#[tokio::test]
async fn a_sweep_counts_what_it_finds() {
    let (cloud, scheduler) = asked("").await;
    cloud.node("a", "M").shell("exit 3").run().await.outcome.unwrap_err();
    let (_, figures) = scheduler.sweep_and_count(&CancellationToken::new()).await.unwrap();
    assert_eq!((figures.open_missions, figures.stalled_missions, figures.failed_tasks), (1, 0, 1), "{figures:?}");
    long_ago(&cloud).await;
    let (_, figures) = scheduler.sweep_and_count(&CancellationToken::new()).await.unwrap();
    assert_eq!((figures.open_missions, figures.stalled_missions, figures.failed_tasks), (1, 1, 1), "{figures:?}");
    assert_eq!((figures.running_tasks, figures.problems), (0, 0), "{figures:?}");
}

#[tokio::test]
async fn a_reason_of_any_length_is_sent() {
    let (cloud, scheduler) = asked("failure").await;
    cloud.node("a", "M").shell("exit 3").run().await.outcome.unwrap_err();
    cloud.set_attribute("a", "error", &"\u{1b}x".repeat(50_000)).await;
    assert_eq!(warned(&scheduler).await, ["a task has failed"]);
    assert!(cloud.local.published()[0].message.len() < 2_000);
    for key in ["b", "c"] {
        cloud.node(key, "M").run().await.outcome.unwrap();
    }
    assert_eq!(subjects(&cloud).len(), 2, "the end is announced too");
}
