//! What S3 and EC2 report, and how the function gets it.

use std::sync::Arc;
use std::time::Duration;

use lighthpc::lambda::{self, Allowed};
use local_cloud::SOURCE_BUCKET;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::callers::{FUNCTION_LIMIT, UPLOADS_LIMIT, call};
use crate::plan::{Dice, Fault};
use crate::world::{World, spawn};

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
