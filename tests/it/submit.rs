//! Submissions: a mission, its rows, and its own nodes, whatever meets them.

use std::time::Duration;

use lighthpc::local::{Faults, SOURCE_BUCKET};
use lighthpc::scheduler::{Boarded, Plan, SchedulerError, What};

use crate::lab::{Lab, mission_id, src};
use crate::scheduler::{board, running, sweep};

fn plan(keys: &[&str]) -> Plan {
    Plan {
        mission: mission_id("M"),
        name: None,
        bucket: SOURCE_BUCKET.to_owned(),
        srcs: keys.iter().map(|key| src(key)).collect(),
        exec: None,
        nodes: None,
        slots: None,
    }
}

/// An object is a task as soon as it is there: whatever order object and submission come in, it counts for the mission once.
#[tokio::test]
async fn a_submission_and_its_objects_events_meet_in_any_order() {
    let lab = Lab::new().await;
    let scheduler = lab.scheduler(&Faults::new());
    board(&scheduler, "M/before").await;
    assert_eq!(lab.task("M/before").await.mission, None);
    let plan = plan(&["M/before", "M/between", "M/after"]);

    let prepared = scheduler.prepare(&plan).await.unwrap();
    board(&scheduler, "M/between").await;
    let submitted = scheduler.make_rows(&plan, &prepared, |_| {}).await.unwrap();
    assert_eq!(board(&scheduler, "M/after").await, Boarded::Duplicate);

    assert!(submitted.is_new);
    assert_eq!((submitted.made, submitted.there), (1, 2));
    assert_eq!(lab.mission_row("M").await.trans_number, Some(3));
    for key in ["M/before", "M/between", "M/after"] {
        assert_eq!(lab.task(key).await.mission, Some(mission_id("M")), "{key}");
    }
    let again = scheduler.prepare(&plan).await.unwrap();
    assert!(!again.is_new && again.known.len() == 3);
    assert_eq!(again.mission.trans_number, Some(3));

    // A later upload is a task of the mission, and a later submission counts it.
    board(&scheduler, "M/uploaded").await;
    let larger = Plan { srcs: vec![src("M/more")], ..plan };
    assert_eq!(scheduler.prepare(&larger).await.unwrap().mission.trans_number, Some(5));
}

#[tokio::test]
async fn a_task_that_ran_in_no_mission_is_not_taken_over() {
    let lab = Lab::new().await;
    let scheduler = lab.scheduler(&Faults::new());
    lab.input("abc", b"abc").await;
    let Boarded::Launched(instance) = board(&scheduler, "abc").await else { panic!("no node") };
    lab.node_on(instance, Faults::new()).run().await.ending.unwrap();

    let error = scheduler.prepare(&plan(&["abc"])).await.unwrap_err();

    assert!(matches!(error, SchedulerError::OtherTask { .. }), "{error:?}");
    assert_eq!(lab.desk.ledger.mission(&mission_id("M")).await.unwrap(), None, "nothing was written");
}

/// Two sweeps, or a sweep and a submission, see the same missing nodes: one launches them.
#[tokio::test]
async fn a_missions_nodes_are_launched_once_however_many_look() {
    let lab = Lab::new().await;
    lab.mission("M", &["a", "b", "c", "d"]).await;
    lab.set_mission_number("M", "nodes", 2).await;
    let seen = lab.mission_row("M").await;

    let first = lab.desk.ledger.reserve_round(&seen).await.unwrap();
    assert_eq!((first, lab.desk.ledger.reserve_round(&seen).await.unwrap()), (Some(1), None));

    // Whoever reserved has died: the next sweep launches, and the one after finds nothing missing.
    let scheduler = lab.scheduler(&Faults::new());
    let found = sweep(&scheduler).await;
    assert_eq!(found.iter().filter(|(what, _)| *what == What::Launched).count(), 2, "{found:?}");
    assert_eq!(sweep(&scheduler).await, []);
    assert_eq!(running(&lab).len(), 2);

    // A redrive launches them, too.
    scheduler.cancel(&mission_id("M"), Duration::from_secs(30)).await.unwrap();
    assert_eq!(running(&lab).len(), 0);
    let redriven = scheduler.redrive(&mission_id("M"), None, &[]).await.unwrap();
    assert_eq!((redriven.put_back, redriven.launched, running(&lab).len()), (4, 2, 2));
}
