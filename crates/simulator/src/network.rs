//! The network between processes and services: it loses, repeats, and delays requests and answers.
//!
//! A request that was sent is carried by a task of its own: it arrives even if its sender has died meanwhile.

use std::sync::Arc;
use std::time::Duration;

use local_cloud::{Answer, AnswerFuture, Call, Network, Service};
use tokio::sync::oneshot;

use crate::check;
use crate::index::with_lag;
use crate::plan::{Dice, Fault, Wire};
use crate::world::{Who, World};

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

impl Network for SimulatedNetwork {
    fn carry(&self, call: Call) -> AnswerFuture {
        let (world, who) = (Arc::clone(&self.world), self.who);
        let number = world.next_request(who);
        let is_killed = is_killed_at(&world, who, number);
        let (sender, receiver) = oneshot::channel();
        let lost = call.clone();
        let carried = carry(Arc::clone(&world), who, number, call, sender);
        Box::pin(async move {
            if is_killed {
                world.saw("killed at a request");
                // Half of the time the request has left the machine.
                if Dice::new(world.plan.seed, &format!("{who} {number} leaves")).chance(50) {
                    tokio::spawn(carried);
                }
                world.kill(who);
                return std::future::pending().await;
            }
            tokio::spawn(carried);
            match receiver.await {
                Ok(answer) => answer,
                Err(_) => Err(lost.broken()),
            }
        })
    }
}

fn is_killed_at(world: &World, who: Who, number: u64) -> bool {
    world.is_hostile()
        && world.faults().any(|fault| match (*fault).clone() {
            Fault::KillAtRequest { machine, request } => who == Who::Node(machine) && request == number,
            Fault::KillCaller { caller, request } => who == Who::Caller(caller) && request == number,
            _ => false,
        })
}

/// Returns what becomes of a request.
fn wire_of(world: &World, who: Who, number: u64) -> Option<Wire> {
    world.faults().filter(|_| world.is_hostile()).find_map(|fault| match fault {
        Fault::NodeWire { machine, request, wire } if who == Who::Node(*machine) && *request == number => Some(*wire),
        Fault::OtherWire { caller, request, wire } if who == Who::Caller(*caller) && *request == number => Some(*wire),
        _ => None,
    })
}

fn name_of(service: Service) -> &'static str {
    match service {
        Service::Dynamodb => "dynamodb",
        Service::S3 => "s3",
        Service::Sns => "sns",
        Service::Ec2 => "ec2",
        Service::Imds => "imds",
    }
}

fn is_out(world: &World, service: Service) -> bool {
    let (now, service) = (world.time(), name_of(service));
    world.is_hostile()
        && world.faults().any(|fault| match fault {
            Fault::Outage { service: out, from, length } => *out == service && now >= *from && now < *from + *length,
            _ => false,
        })
}

async fn carry(world: Arc<World>, who: Who, number: u64, call: Call, answer: oneshot::Sender<Answer>) {
    let wire = wire_of(&world, who, number);
    if let Some(wire) = wire {
        world.saw(&format!("wire {}", format!("{wire:?}").split('(').next().unwrap_or_default()));
        world.note(&format!("{who} #{number} {}: {wire:?}", call.operation));
    }
    let mut dice = Dice::new(world.plan.seed, &format!("{who} {number}"));
    let is_local = call.service == Service::Imds;
    let (there, back) = if is_local { (1, 1) } else { (dice.number(1, 30), dice.number(1, 30)) };
    tokio::time::sleep(Duration::from_millis(there)).await;
    if let Some(Wire::DelayRequest(delay)) = wire {
        tokio::time::sleep(delay).await;
    }
    if is_out(&world, call.service) {
        world.saw("request in an outage");
        // Some connections are refused, some hang.
        let wait = if dice.chance(50) { Duration::from_millis(20) } else { Duration::from_secs(30) };
        tokio::time::sleep(wait).await;
        drop(answer.send(Err(call.broken())));
        return;
    }
    let result = match wire {
        Some(Wire::LoseRequest) => Err(call.broken()),
        Some(Wire::Throttle) => Ok(throttled(&call)),
        Some(Wire::FailAfter) => {
            let _applied = apply(&world, who, number, &call).await;
            Ok(call.refusal(500, "InternalServerError"))
        }
        Some(Wire::LoseAnswer) => {
            let _applied = apply(&world, who, number, &call).await;
            Err(call.broken())
        }
        _ => apply(&world, who, number, &call).await,
    };
    if let Some(Wire::Repeat(after)) = wire {
        let (world, call) = (Arc::clone(&world), call.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _applied = apply(&world, who, number, &call).await;
        });
    }
    if let Some(Wire::DelayAnswer(delay)) = wire {
        tokio::time::sleep(delay).await;
    }
    tokio::time::sleep(Duration::from_millis(back)).await;
    // Nobody may wait any more.
    drop(answer.send(result));
}

fn throttled(call: &Call) -> http::Response<aws_smithy_types::body::SdkBody> {
    let (status, code) = match call.service {
        Service::Dynamodb => (400, "ProvisionedThroughputExceededException"),
        Service::S3 => (503, "SlowDown"),
        Service::Sns => (400, "Throttling"),
        Service::Ec2 => (503, "RequestLimitExceeded"),
        Service::Imds => (503, "Throttling"),
    };
    call.refusal(status, code)
}

/// Applies a request, and checks what it changed.
async fn apply(world: &Arc<World>, who: Who, number: u64, call: &Call) -> Answer {
    let before = check::before(call).await;
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
    if call.service != Service::Imds {
        world.note(&format!("{who} #{number} {} {} -> {status}", call.operation, check::subject(call)));
    }
    check::after(world, who, call, before, status).await;
    with_lag(world, call, answer)
}
