//! The network between processes and services: it loses, repeats, and delays requests and answers.
//!
//! A request that was sent is carried by a task of its own: it arrives even if its sender has died meanwhile.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::backend::machine::PowerOff;
use lighthpc::backend::{Backend, Tables, Wire};
use local_cloud::{ACCESS_KEY, Answer, AnswerFuture, Call, Network, REGION, SECRET_KEY, Service};
use tokio::sync::oneshot;

use crate::check;
use crate::index::with_lag;
use crate::limits::throttled;
use crate::plan::{Dice, Fate, Fault, Of};
use crate::step::{Sender, Step};
use crate::who::Who;
use crate::world::{World, spawn};

/// The network of one sender.
pub(crate) struct SimulatedNetwork {
    world: Arc<World>,
    who: Who,
}

impl SimulatedNetwork {
    pub(crate) fn new(world: Arc<World>, who: Who) -> Self {
        Self { world, who }
    }
}

impl World {
    /// Makes the services of a sender.
    pub(crate) fn backend(self: &Arc<Self>, who: Who, instance: Option<&str>) -> Backend {
        Backend::new(&self.wire(who, instance), Tables::default(), PowerOff::Never)
    }

    /// Makes the way to the services.
    pub(crate) fn wire(self: &Arc<Self>, who: Who, instance: Option<&str>) -> Wire {
        let http = match who {
            Who::Observer => self.cloud.http_client(None),
            _ => self.cloud.http_client_via(instance, Arc::new(SimulatedNetwork::new(Arc::clone(self), who))),
        };
        Wire::plugged(http, REGION, ACCESS_KEY, SECRET_KEY)
    }
}

impl Network for SimulatedNetwork {
    fn carry(&self, call: Call) -> AnswerFuture {
        let (world, who) = (Arc::clone(&self.world), self.who);
        // IMDS is on the machine: it is polled every few seconds, and no network is between.
        if call.service == Service::Imds {
            return Box::pin(async move { call.apply().await });
        }
        if world.limits.is_some() {
            return Box::pin(async move {
                let limits = world.limits.as_ref().expect("limits");
                limits.carry(call).await
            });
        }
        let number = world.next_request(who);
        let is_killed = is_killed_at(&world, who, number);
        let (fate, is_last) = fate_of_step(&world, who, &call).unzip();
        let fate = fate_of(&world, who, number).or(fate);
        let (sender, receiver) = oneshot::channel();
        let lost = call.clone();
        let carried = carry(Arc::clone(&world), who, number, fate, call, sender);
        Box::pin(async move {
            if is_killed {
                world.saw("process killed as it sends a request");
                // Half of the time the request has left the machine.
                if Dice::new(world.plan.seed, &format!("{who} {number} leaves")).chance(50) {
                    spawn(carried);
                }
                world.kill(who);
                return std::future::pending().await;
            }
            spawn(carried);
            if is_last == Some(true) {
                world.saw("sender's last request");
                match who {
                    Who::Node { machine, .. } => world.vanished(machine).cancel(),
                    _ => world.kill(who),
                }
                return std::future::pending().await;
            }
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => Err(lost.broken()),
            }
        })
    }
}

fn is_killed_at(world: &World, who: Who, number: u64) -> bool {
    world.is_hostile()
        && world.faults().any(|fault| match (who, fault) {
            (Who::Node { machine, .. }, Fault::KillAtRequest { machine: of, request }) => {
                *of == machine && *request == number
            }
            (Who::Caller(caller), Fault::KillCaller { caller: of, request }) => *of == caller && *request == number,
            _ => false,
        })
}

/// Returns what becomes of a request.
fn fate_of(world: &World, who: Who, number: u64) -> Option<Fate> {
    world.faults().filter(|_| world.is_hostile()).find_map(|fault| match (who, fault) {
        (Who::Node { machine, .. }, Fault::NodeRequest { machine: of, request, fate })
            if *of == machine && *request == number =>
        {
            Some(*fate)
        }
        (Who::Caller(caller), Fault::CallerRequest { caller: of, request, fate })
            if *of == caller && *request == number =>
        {
            Some(*fate)
        }
        _ => None,
    })
}

/// Returns what becomes of a request by what it does, and whether it is its sender's last.
fn fate_of_step(world: &World, who: Who, call: &Call) -> Option<(Fate, bool)> {
    let from = Sender::of(who)?;
    let numbers: Vec<_> = Step::of(call).into_iter().map(|step| (from, step, world.next_step(from, step))).collect();
    world.faults().filter(|_| world.is_hostile()).find_map(|fault| match fault {
        Fault::Step { sender, step, nth, fate, is_last } if numbers.contains(&(*sender, *step, *nth)) => {
            Some((*fate, *is_last))
        }
        _ => None,
    })
}

const fn name_of(service: Service) -> Of {
    match service {
        Service::Dynamodb => Of::DynamoDb,
        Service::S3 => Of::S3,
        Service::Sns => Of::Sns,
        Service::Ec2 | Service::Imds => Of::Ec2,
    }
}

async fn carry(
    world: Arc<World>,
    who: Who,
    number: u64,
    fate: Option<Fate>,
    call: Call,
    answer: oneshot::Sender<Answer>,
) {
    let service = name_of(call.service);
    if let Some(fate) = fate {
        world.saw(fate.name());
        world.disturb(who, Some(service));
        world.note(&format!("{who} #{number} {} {fate}", call.operation));
    }
    let mut dice = Dice::new(world.plan.seed, &format!("{who} {number}"));
    let slowest = if who == Who::Hand { Duration::ZERO } else { world.slowness(service) };
    if !slowest.is_zero() {
        world.saw("request of a slow service");
    }
    let latency = world.plan.mission.latency + slowest / 2;
    let way = |dice: &mut Dice| dice.time(Duration::from_millis(1), latency);
    let (there, back) = (way(&mut dice), way(&mut dice));
    let (stalls_there, stalls_back) =
        if who == Who::Hand { Default::default() } else { world.stall(service, &mut dice) };
    tokio::time::sleep(there + stalls_there).await;
    if let Some(Fate::DelayRequest(delay)) = fate {
        tokio::time::sleep(delay).await;
    }
    if who != Who::Hand && world.is_out(service) {
        world.saw("request in an outage");
        // Some connections are refused, some hang.
        let wait = if dice.chance(50) { Duration::from_millis(20) } else { Duration::from_secs(30) };
        tokio::time::sleep(wait).await;
        drop(answer.send(Err(call.broken())));
        return;
    }
    let result = match fate {
        Some(Fate::LoseRequest) => Err(call.broken()),
        Some(Fate::Throttle) => Ok(throttled(&call)),
        Some(Fate::Refuse) => Ok(refused(&call)),
        Some(Fate::FailAfter) => {
            let _applied = apply(&world, who, number, &call).await;
            Ok(call.refusal(500, "InternalServerError"))
        }
        Some(Fate::LoseAnswer) => {
            let _applied = apply(&world, who, number, &call).await;
            Err(call.broken())
        }
        _ => apply(&world, who, number, &call).await,
    };
    let repeat = match fate {
        Some(Fate::Repeat(after)) => Some(after),
        None if who != Who::Hand => world.repeat(service, &mut dice),
        _ => None,
    };
    if let Some(after) = repeat {
        let (world, call) = (Arc::clone(&world), call.clone());
        spawn(async move {
            tokio::time::sleep(after).await;
            world.saw("request applied again");
            world.disturb(who, Some(service));
            let _applied = apply(&world, who, number, &call).await;
        });
    }
    if let Some(Fate::DelayAnswer(delay)) = fate {
        tokio::time::sleep(delay).await;
    }
    tokio::time::sleep(back + stalls_back).await;
    if fate.is_some() {
        world.disturb(who, Some(service));
    }
    // Nobody may wait any more.
    drop(answer.send(result));
}

fn refused(call: &Call) -> http::Response<aws_smithy_types::body::SdkBody> {
    let (status, code) = match call.service {
        Service::Dynamodb => (400, "AccessDeniedException"),
        Service::S3 => (403, "AccessDenied"),
        Service::Sns => (403, "AuthorizationError"),
        Service::Ec2 | Service::Imds => (403, "UnauthorizedOperation"),
    };
    call.refusal(status, code)
}

/// Applies a request, and checks what it changed.
async fn apply(world: &Arc<World>, who: Who, number: u64, call: &Call) -> Answer {
    let turn = world.turn.lock().await;
    let mut answer = call.apply().await;
    if let Ok(answer) = &mut answer {
        let date = lighthpc_runtime::true_now();
        if let Ok(date) = aws_smithy_types::DateTime::from(date).fmt(aws_smithy_types::date_time::Format::HttpDate)
            && let Ok(date) = http::HeaderValue::from_str(&date)
        {
            answer.headers_mut().insert(http::header::DATE, date);
        }
    }
    let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
    world.note(&format!("{who} #{number} {} {} -> {status}", call.operation, check::subject(call)));
    check::applied(world, who, call, status).await;
    drop(turn);
    with_lag(world, call, answer)
}
