//! Everybody but the nodes: people who submit, cancel, and redrive; S3's and EC2's events; and the sweeps.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::fleet::Template;
use lighthpc::domain::budget::Limits;
use lighthpc::domain::ids::MissionId;
use lighthpc::domain::mission::NotifyOn;
use lighthpc::domain::node_limit::NodeLimit;
use lighthpc::domain::policy::Policy;
use lighthpc::lambda::{self, Allowed};
use lighthpc::scheduler::{OwnLimits, PER_SECOND, Scheduler, SchedulerSettings, SubmitPlan};
use local_cloud::{RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::check::{self, Checker, MISSION};
use crate::edits::edit;
use crate::machines::LEASE;
use crate::plan::{Act, Dice, Fault, When};
use crate::script::{input_of, name_of};
use crate::world::{Who, World, spawn};

/// The time of a function: the scheduler's, and that of uploads. Source: cloudformation/stack.yaml.
const FUNCTION_LIMIT: Duration = Duration::from_mins(15);
const UPLOADS_LIMIT: Duration = Duration::from_mins(3);
/// How long a person waits for a command.
const COMMAND_LIMIT: Duration = Duration::from_mins(30);
/// How often a person repeats a command that failed.
const REPEATS_MAX: u32 = 60;

/// Something that S3 or EC2 reports.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The state of an instance.
    Instance { id: String, state: &'static str },
    /// An object was put into the source bucket.
    Object { key: String },
}

impl Event {
    fn json(&self) -> Value {
        match self {
            Self::Instance { id, state } => json!({
                "source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification",
                "detail": { "instance-id": id, "state": state },
            }),
            Self::Object { key } => {
                let record = json!({ "Records": [{
                    "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-01-01T00:00:00.000Z",
                    "s3": { "bucket": { "name": SOURCE_BUCKET }, "object": { "key": key, "size": 20 } },
                }] });
                json!({ "Records": [{ "eventSource": "aws:sqs", "messageId": "1", "body": record.to_string() }] })
            }
        }
    }
}

fn scheduler(world: &Arc<World>, who: Who) -> Scheduler {
    let plan = &world.plan.mission;
    let settings = SchedulerSettings {
        template: Some(Template { name: "nodes".to_owned(), version: "1".to_owned() }),
        subnets: Vec::new(),
        policy: Policy::default(),
        source_bucket: Some(SOURCE_BUCKET.to_owned()),
        result_bucket: Some(RESULT_BUCKET.to_owned()),
        topic_arn: Some(TOPIC_ARN.to_owned()),
        default_mission: None,
        lease: LEASE,
        limits: Limits { max_interruptions: plan.max_interruptions, ..Limits::default() },
        node_limits: OwnLimits {
            at_a_time: plan.node_limit.map_or(NodeLimit::Stored, NodeLimit::Most),
            per_hour: NodeLimit::Stored,
        },
        pace: PER_SECOND,
    };
    Scheduler::new(world.backend(who, None), settings)
}

/// Runs a command or an invocation within its time. `None`: it was killed, or its time was over.
async fn call<T, F: Future<Output = T>>(
    world: &Arc<World>,
    what: &str,
    limit: Duration,
    work: impl FnOnce(Scheduler) -> F,
) -> Option<T> {
    let who = world.next_caller();
    let kill = CancellationToken::new();
    world.set_kill(who, kill.clone());
    world.note(&format!("{who}: {what}"));
    tokio::select! {
        done = work(scheduler(world, who)) => Some(done),
        () = kill.cancelled() => {
            world.saw("command or function killed");
            None
        }
        () = tokio::time::sleep(limit) => {
            world.saw("function killed at its time limit");
            world.note(&format!("{who}: its time is over"));
            world.disturb(who, None);
            None
        }
    }
}

/// Hands events to the function, each some seconds late; a failure is tried again.
pub(crate) async fn deliver(world: Arc<World>, mut events: mpsc::UnboundedReceiver<Event>) {
    let mut number = 0;
    while let Some(event) = events.recv().await {
        let fault = world.faults().filter(|_| world.is_hostile()).find_map(|fault| match fault {
            Fault::Event { event, copies, delay } if *event == number => Some((*copies, *delay)),
            _ => None,
        });
        // An object's event is never lost: S3 delivers at least once.
        let least = u64::from(matches!(event, Event::Object { .. }));
        let (copies, delay) = fault.map_or((1, Duration::ZERO), |(copies, delay)| (copies.max(least), delay));
        if let Some((copies, _)) = fault {
            world.saw(match copies {
                0 => "event lost",
                1 => "event late",
                _ => "event delivered twice",
            });
        }
        for copy in 0..copies {
            let (world, event) = (Arc::clone(&world), event.clone());
            let mut dice = Dice::new(world.plan.seed, &format!("event {number} {copy}"));
            let wait = delay + dice.time(Duration::from_millis(200), Duration::from_secs(5));
            spawn(async move {
                tokio::time::sleep(wait).await;
                hand_over(&world, &event).await;
            });
        }
        number += 1;
    }
}

async fn hand_over(world: &Arc<World>, event: &Event) {
    let (tries, limit, pause) = match event {
        // Lambda tries an event three times.
        Event::Instance { .. } => (3, FUNCTION_LIMIT, Duration::from_secs(90)),
        // The queue hands a message out until it is done; an operator moves it back from the failure queue.
        Event::Object { .. } => (100, UPLOADS_LIMIT, Duration::from_secs(1080)),
    };
    for _ in 0..tries {
        let value = event.json();
        let allowed = Allowed::of_environment();
        let what = format!("event {event:?}");
        let done =
            call(world, &what, limit, |scheduler| async move { lambda::answer(&scheduler, &allowed, &value).await });
        match done.await {
            Some(Ok(answer)) if answer["batchItemFailures"].as_array().is_none_or(Vec::is_empty) => return,
            _ => tokio::time::sleep(pause).await,
        }
    }
}

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

async fn sweep_once(world: &Arc<World>) {
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
    let plan = SubmitPlan {
        mission: MissionId::new(MISSION).expect("a legal name"),
        name: None,
        bucket: SOURCE_BUCKET.to_owned(),
        srcs: numbers.map(|number| name_of(mission, number)).collect(),
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
                let text = error.to_string();
                world.note(&format!("submit failed: {text:.120}"));
                // A cancelled mission takes no tasks until it is reinstated.
                if text.contains("is cancelled") || text.contains("has another") {
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
