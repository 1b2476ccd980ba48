//! Everybody but the nodes: people who submit, cancel, and redrive; S3's and EC2's events; and the sweeps.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::domain::ids::{MissionId, SrcId};
use lighthpc::domain::mission::NotifyOn;
use lighthpc::lambda::{self, Allowed};
use lighthpc::scheduler::{SchedulerError, SubmitPlan};
use local_cloud::SOURCE_BUCKET;
use serde_json::json;
use tokio::sync::mpsc;

use crate::callers::{COMMAND_LIMIT, FUNCTION_LIMIT, call};
use crate::check::{self, Checker};
use crate::edits::edit;
use crate::events::Event;
use crate::plan::{Act, Fault, When};
use crate::settings::LEASE;
use crate::tasks::{MISSION, input_of, name_of, work_of};
use crate::who::Who;
use crate::world::{World, spawn};

/// How often a person repeats a command that failed.
const REPEATS_MAX: u32 = 60;

/// Sweeps as often as the plan says.
pub(crate) async fn sweep(world: Arc<World>) {
    let twos: Vec<Duration> = world
        .faults()
        .filter_map(|fault| match fault {
            Fault::TwoSweeps { at } => Some(*at),
            _ => None,
        })
        .collect();
    for at in twos {
        let world = Arc::clone(&world);
        spawn(async move {
            tokio::time::sleep(at).await;
            world.saw("two sweeps at once");
            tokio::join!(sweep_once(&world), sweep_once(&world));
        });
    }
    loop {
        // After the time of faults: as the stack does.
        let every = if world.is_hostile() { world.plan.mission.sweep_every } else { Duration::from_mins(5) };
        tokio::time::sleep(every).await;
        let world = Arc::clone(&world);
        spawn(async move { sweep_once(&world).await });
    }
}

pub(crate) async fn sweep_once(world: &Arc<World>) {
    let allowed = Allowed::of_environment();
    let event = json!({ "lighthpc": "sweep" });
    let done =
        call(
            world,
            "sweep",
            FUNCTION_LIMIT,
            |scheduler| async move { lambda::answer(&scheduler, &allowed, &event).await },
        );
    if let Some(Err(error)) = done.await {
        world.saw("sweep failed");
        world.note(&format!("a sweep failed: {error:.120}"));
    }
}

/// Submits the tasks with these numbers, until it is done.
pub(crate) async fn submit(world: &Arc<World>, numbers: std::ops::Range<u64>) {
    let mission = &world.plan.mission;
    let srcs: Vec<SrcId> = numbers.map(|number| name_of(mission, number)).collect();
    let plan = SubmitPlan {
        mission: MissionId::new(MISSION).expect("a legal name"),
        name: None,
        bucket: Some(SOURCE_BUCKET.to_owned()),
        works: srcs.iter().filter_map(|src| Some((src.clone(), work_of(mission, src)?))).collect(),
        srcs,
        exec: None,
        nodes: mission.nodes,
        slots: mission.slots,
        uploads: Some(mission.uploads),
        notify_on: mission.notifies_early.then_some(NotifyOn { failure: true, stall: true }),
    };
    for _ in 0..REPEATS_MAX {
        let done = call(world, "submit", COMMAND_LIMIT, |scheduler| async {
            let scheduler = scheduler;
            let checked = scheduler.check(&plan, false).await?;
            let prepared = scheduler.prepare_checked(&plan, checked).await?;
            let mut submitted = scheduler.make_rows(&plan, &prepared, |_| {}).await?;
            scheduler.launch_all(&prepared.mission, &mut submitted, |_, _| {}).await
        });
        match done.await {
            Some(Ok(())) => {
                check::submitted(world, &plan.srcs);
                return;
            }
            Some(Err(error)) => {
                world.note(&format!("submit failed: {error:.120}"));
                // Such as a cancelled mission, which takes no tasks until it is reinstated.
                if matches!(error, SchedulerError::OtherMission { .. }) {
                    return;
                }
            }
            None => {}
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    world.broken(Checker::Submission, "a submission never succeeded");
}

/// Does what the plan says.
pub(crate) async fn act(world: Arc<World>, events: mpsc::UnboundedSender<Event>) {
    let acts: Vec<(When, Act)> = world
        .faults()
        .filter_map(|fault| match fault {
            Fault::Operator { when, act } => Some((*when, *act)),
            _ => None,
        })
        .collect();
    let first = world.plan.mission.tasks;
    for (number, (when, act)) in acts.into_iter().enumerate() {
        let (world, events) = (Arc::clone(&world), events.clone());
        spawn(async move {
            let mut ends = world.ends.subscribe();
            let after = match when {
                When::At(at) => at,
                When::AfterEnd(after) => {
                    drop(ends.wait_for(|(_, are_all)| *are_all).await);
                    after
                }
                When::AfterTasks(count, after) => {
                    drop(ends.wait_for(|(ended, _)| *ended >= count).await);
                    after
                }
            };
            tokio::time::sleep(after).await;
            if !world.is_hostile() {
                return;
            }
            let number = first + 10 * (number as u64 + 1);
            act_once(&world, act, number, &events).await;
        });
    }
}

async fn act_once(world: &Arc<World>, act: Act, number: u64, events: &mpsc::UnboundedSender<Event>) {
    let id = MissionId::new(MISSION).expect("a legal name");
    match act {
        Act::SubmitTwice => {
            world.saw(act.name());
            let tasks = 0..world.plan.mission.tasks;
            tokio::join!(submit(world, tasks.clone()), submit(world, tasks));
        }
        Act::Enlarge(more) => {
            world.saw(act.name());
            put_inputs(world, number..number + more).await;
            submit(world, number..number + more).await;
        }
        Act::Cancel => {
            world.saw(act.name());
            let done =
                call(
                    world,
                    "cancel",
                    COMMAND_LIMIT,
                    |scheduler| async move { scheduler.cancel(&id, LEASE * 3 / 2).await },
                );
            let _done = done.await;
        }
        Act::Redrive => {
            world.saw(act.name());
            let done =
                call(
                    world,
                    "redrive",
                    COMMAND_LIMIT,
                    |scheduler| async move { scheduler.redrive(&id, None, &[]).await },
                );
            let _done = done.await;
        }
        Act::Upload if world.plan.mission.uploads => {
            world.saw(act.name());
            put_inputs(world, number..number + 1).await;
            let key = name_of(&world.plan.mission, number).to_string();
            check::object_uploaded(world, &key);
            let _sent = events.send(Event::Object { key });
        }
        Act::Upload => {}
        Act::Edit(task, what) => edit(world, task, what).await,
    }
}

/// Puts the inputs of tasks.
pub(crate) async fn put_inputs(world: &Arc<World>, numbers: std::ops::Range<u64>) {
    let backend = world.backend(Who::Observer, None);
    for number in numbers {
        let key = name_of(&world.plan.mission, number).to_string();
        let put = backend.store.put_bytes(SOURCE_BUCKET, &key, input_of(&key).into_bytes()).await;
        put.expect("the observer's requests have no faults");
    }
}
