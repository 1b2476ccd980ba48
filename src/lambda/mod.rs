//! The AWS Lambda function (`lighthpc lambda`): parses events and HTTP requests, and calls the scheduler.
//!
//! ```text
//!   SQS: Records[].body of these┐              (SQS: failed messages are reported, the others are done)
//!   S3: Records[] ──────────────├─► uploads ─► TaskIngest::ingest, one by one
//!   EventBridge: Object Created ┘
//!   EventBridge: an instance's state ─► Scheduler::instance_gone      a schedule ─► Scheduler::sweep
//!   API Gateway, payload 2.0 ─► http.rs
//! ```
//!
//! Events arrive at least once and in any order. A record can be invalid; it does not affect the other records.
//! Therefore events are parsed field by field: a typed model of a batch would refuse the whole batch.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod hostile;
mod http;
mod metrics;

pub use http::Allowed;
use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::backend::error_chain;
use crate::clock;
use crate::domain::ids::SrcId;
use crate::scheduler::{Ingested, Scheduler, SchedulerError, TaskIngest, UploadedObject};

/// Answers invocations until Lambda stops the process.
///
/// # Errors
/// Lambda's runtime interface is unreachable or returned an invalid answer.
pub async fn serve(scheduler: Scheduler) -> Result<(), lambda_runtime::Error> {
    let allowed = Allowed::of_environment();
    let handler = |event: LambdaEvent<Value>| {
        let (scheduler, allowed) = (scheduler.clone(), allowed.clone());
        async move {
            let answer = answer(&scheduler, &allowed, &event.payload).await;
            answer.map_err(|error_message| Diagnostic { error_type: "Scheduler".to_owned(), error_message })
        }
    };
    lambda_runtime::run(service_fn(handler)).await
}

/// Answers one invocation. After an error, Lambda retries, and finally moves the event to the failure queue.
///
/// # Errors
/// A text that says what failed.
pub async fn answer(scheduler: &Scheduler, allowed: &Allowed, event: &Value) -> Result<Value, String> {
    let said = |error: SchedulerError| error_chain(&error);
    match read(event) {
        Event::Http => Ok(http::answer(scheduler, allowed, event).await),
        Event::Uploads(uploads) => direct(scheduler, uploads).await,
        Event::Messages(messages) => Ok(batch(scheduler, messages).await),
        Event::Instance { id, state } => {
            tracing::info!("EC2 reports that instance {id} is {state}");
            let is_over = matches!(state.as_str(), "terminated" | "stopped");
            let findings = scheduler.instance_gone(&id, is_over).await.map_err(said)?;
            Ok(json!({ "findings": findings.len() }))
        }
        Event::Schedule => {
            let (findings, figures) = scheduler.sweep_and_count(&CancellationToken::new()).await.map_err(said)?;
            if metrics::are_wanted() {
                let now = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                let deployment = &scheduler.backend.ledger.tables().tasks;
                metrics::write(deployment, figures, u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
            }
            Ok(json!({ "findings": findings.len() }))
        }
        Event::Nothing(why) => {
            tracing::info!("nothing to do: {why}");
            Ok(json!({ "ignored": why }))
        }
    }
}

/// An object of an event, or the reason why there is none.
pub(super) type Parsed = Result<UploadedObject, Unfit>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// An event that needs no action, such as a removal.
    Other(String),
    /// An invalid record.
    Nonsense(String),
}

#[derive(Debug, PartialEq)]
pub(super) enum Event {
    Http,
    Uploads(Vec<Parsed>),
    /// SQS: each message's id, and its objects.
    Messages(Vec<(String, Vec<Parsed>)>),
    Instance {
        id: String,
        state: String,
    },
    Schedule,
    Nothing(String),
}

/// Determines the kind of an event from its structure.
pub(super) fn read(event: &Value) -> Event {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str);
    if event.pointer("/requestContext/http").is_some() {
        return Event::Http;
    }
    if let Some(records) = event.get("Records").and_then(Value::as_array) {
        if records.first().and_then(|record| record.get("eventSource")).and_then(Value::as_str) == Some("aws:sqs") {
            return Event::Messages(records.iter().map(message).collect());
        }
        return Event::Uploads(records.iter().map(s3_record).collect());
    }
    match (text("/source"), text("/detail-type")) {
        (Some("aws.s3"), Some("Object Created")) => Event::Uploads(vec![bridged(event)]),
        (Some("aws.ec2"), Some("EC2 Instance State-change Notification")) => match text("/detail/instance-id") {
            Some(id) => {
                let state = text("/detail/state").unwrap_or("?").to_owned();
                Event::Instance { id: id.to_owned(), state }
            }
            None => Event::Nothing("a state change without an instance id".to_owned()),
        },
        (Some("aws.ec2"), Some("EC2 Spot Instance Interruption Warning")) => {
            // The node gets the same warning and returns its task. When the instance has terminated, another event
            // follows.
            Event::Nothing(format!(
                "{} has a Spot interruption warning, which the node handles",
                text("/detail/instance-id").unwrap_or("an instance")
            ))
        }
        (Some("aws.events" | "aws.scheduler"), _) => Event::Schedule,
        _ if text("/lighthpc") == Some("sweep") => Event::Schedule,
        _ if text("/Event") == Some("s3:TestEvent") => Event::Nothing("the test event of S3".to_owned()),
        (source, kind) => Event::Nothing(format!("unknown event: {} {}", source.unwrap_or("?"), kind.unwrap_or("?"))),
    }
}

fn message(record: &Value) -> (String, Vec<Parsed>) {
    let id = record.get("messageId").and_then(Value::as_str).unwrap_or_default().to_owned();
    let body = record.get("body").and_then(Value::as_str).unwrap_or_default();
    let nonsense = |why: String| vec![Err(Unfit::Nonsense(why))];
    let parsed = match serde_json::from_str::<Value>(body).as_ref().map(read) {
        Ok(Event::Uploads(uploads)) => uploads,
        Ok(Event::Nothing(why)) if why.starts_with("the test event") => Vec::new(),
        Ok(_) => nonsense("the message is not an S3 event".to_owned()),
        Err(error) => nonsense(format!("the message is not JSON: {error}")),
    };
    (id, parsed)
}

/// Parses a record of an S3 notification. Its keys are URL-encoded.
/// Source: S3 user guide, "Event message structure".
fn s3_record(record: &Value) -> Parsed {
    let text = |path: &str| record.pointer(path).and_then(Value::as_str);
    let name = text("/eventName").unwrap_or("?");
    let kind = name.strip_prefix("s3:").unwrap_or(name);
    if text("/eventSource").is_some_and(|source| source != "aws:s3") || !kind.starts_with("ObjectCreated") {
        return Err(Unfit::Other(name.to_owned()));
    }
    let (Some(bucket), Some(key)) = (text("/s3/bucket/name"), text("/s3/object/key")) else {
        return Err(Unfit::Nonsense("the S3 record has no bucket or no key".to_owned()));
    };
    let spaced = key.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8();
    let decoded = decoded.map_err(|error| Unfit::Nonsense(format!("the decoded key {key:?} is not UTF-8: {error}")))?;
    let bytes = record.pointer("/s3/object/size").and_then(Value::as_u64);
    upload(bucket, &decoded, bytes, text("/eventTime"), kind)
}

/// Parses an S3 event from EventBridge. Its keys are not encoded.
fn bridged(event: &Value) -> Parsed {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str);
    let (Some(bucket), Some(key)) = (text("/detail/bucket/name"), text("/detail/object/key")) else {
        return Err(Unfit::Nonsense("the S3 event has no bucket or no key".to_owned()));
    };
    let bytes = event.pointer("/detail/object/size").and_then(Value::as_u64);
    let kind = format!("ObjectCreated:{}", text("/detail/reason").unwrap_or("?"));
    upload(bucket, key, bytes, text("/time"), &kind)
}

fn upload(bucket: &str, key: &str, bytes: Option<u64>, time: Option<&str>, trigger: &str) -> Parsed {
    let src = SrcId::new(key).map_err(|error| Unfit::Nonsense(error.to_string()))?;
    let time = time.map_or_else(clock::now_rfc3339, ToOwned::to_owned);
    Ok(UploadedObject { bucket: bucket.to_owned(), src, bytes, time, trigger: trigger.to_owned() })
}

/// Ingests objects of a notification that S3 or EventBridge sent directly. After a failure, Lambda retries twice with
/// all objects (finished ones are duplicates), then moves the event to the stack's failure queue. No event is lost.
async fn direct(scheduler: &Scheduler, uploads: Vec<Parsed>) -> Result<Value, String> {
    let mut ingest = TaskIngest::new(scheduler);
    let mut failed = Vec::new();
    let mut tasks = 0;
    for parsed in uploads {
        match ingest_one(&mut ingest, parsed).await {
            Outcome::In => tasks += 1,
            Outcome::Out => {}
            Outcome::Failed(why) => failed.push(why),
        }
    }
    if failed.is_empty() { Ok(json!({ "tasks": tasks })) } else { Err(failed.join("; ")) }
}

/// Ingests messages of a queue. Failed messages are reported by id: SQS delivers them again, or moves them to the
/// dead-letter queue.
async fn batch(scheduler: &Scheduler, messages: Vec<(String, Vec<Parsed>)>) -> Value {
    let mut ingest = TaskIngest::new(scheduler);
    let mut failures = Vec::new();
    for (id, uploads) in messages {
        let mut has_failed = false;
        for parsed in uploads {
            has_failed |= matches!(ingest_one(&mut ingest, parsed).await, Outcome::Failed(_));
        }
        if has_failed {
            failures.push(json!({ "itemIdentifier": id }));
        }
    }
    json!({ "batchItemFailures": failures })
}

enum Outcome {
    /// It has a row.
    In,
    /// It is not a task.
    Out,
    /// It is invalid, or has no row yet, with the reason.
    Failed(String),
}

async fn ingest_one(ingest: &mut TaskIngest<'_>, parsed: Parsed) -> Outcome {
    let upload = match parsed {
        Ok(upload) => upload,
        Err(Unfit::Other(what)) => {
            tracing::info!("ignored: {what}");
            return Outcome::Out;
        }
        Err(Unfit::Nonsense(why)) => {
            tracing::error!("invalid record: {why}");
            return Outcome::Failed(why);
        }
    };
    let src = &upload.src;
    match ingest.ingest(&upload).await {
        Ok(Ingested::Refused(why)) => {
            tracing::warn!(src.id = %src, "s3://{}/{src} is not a task: {why}", upload.bucket);
            Outcome::Out
        }
        Ok(boarded) => {
            tracing::info!(src.id = %src, "{src}: {boarded:?}");
            Outcome::In
        }
        Err(error) => {
            tracing::error!(src.id = %src, "{src}: {}", error_chain(&error));
            Outcome::Failed(error_chain(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str) -> Value {
        json!({
            "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-01-01T00:00:00.000Z",
            "s3": { "bucket": { "name": "in" }, "object": { "key": key, "size": 3 } },
        })
    }

    fn keys(event: &Value) -> Vec<Result<String, Unfit>> {
        match read(event) {
            Event::Uploads(uploads) => uploads.into_iter().map(|one| one.map(|up| up.src.to_string())).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_of_s3_are_decoded_and_those_of_eventbridge_are_not() {
        for (encoded, key) in [
            ("a+b%2Bc.txt", "a b+c.txt"),
            ("100%25/a%252Fb", "100%/a%2Fb"),
            ("%C3%BCn%C3%AF/%E6%96%87", "ünï/文"),
            ("trail/", "trail/"),
        ] {
            assert_eq!(keys(&json!({ "Records": [record(encoded)] })), [Ok(key.to_owned())]);
        }
        let event = json!({
            "source": "aws.s3", "detail-type": "Object Created", "time": "2026-01-01T00:00:00Z",
            "detail": { "bucket": { "name": "in" }, "object": { "key": "a+b%2Bc", "size": 3 }, "reason": "PutObject" },
        });
        assert_eq!(keys(&event), [Ok("a+b%2Bc".to_owned())]);
    }

    #[test]
    fn one_bad_record_does_not_spoil_the_others() {
        let removed = json!({ "eventSource": "aws:s3", "eventName": "ObjectRemoved:Delete" });
        let found = keys(
            &json!({ "Records": [record("a"), {}, removed, record("%ff"), record(&"x".repeat(1025)), record("b")] }),
        );
        assert_eq!(found.iter().filter(|one| one.is_ok()).count(), 2);
        assert!(matches!(found[2], Err(Unfit::Other(_))));
        assert!(matches!(found[3], Err(Unfit::Nonsense(_))) && matches!(found[4], Err(Unfit::Nonsense(_))));
    }

    #[test]
    fn messages_of_a_queue_keep_their_names() {
        let body = json!({ "Records": [record("a")] }).to_string();
        let test = json!({ "Service": "Amazon S3", "Event": "s3:TestEvent" }).to_string();
        let message = |id: &str, body: &str| json!({ "eventSource": "aws:sqs", "messageId": id, "body": body });
        let event = json!({ "Records": [message("1", &body), message("2", "not json"), message("3", &test)] });
        let Event::Messages(messages) = read(&event) else { panic!() };
        assert_eq!(messages.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["1", "2", "3"]);
        assert!(messages[0].1[0].is_ok() && messages[1].1[0].is_err() && messages[2].1.is_empty());
    }

    #[test]
    fn other_events_are_known_by_their_shape() {
        let state = json!({
            "source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification",
            "detail": { "instance-id": "i-1", "state": "terminated" },
        });
        assert_eq!(read(&state), Event::Instance { id: "i-1".to_owned(), state: "terminated".to_owned() });
        assert_eq!(read(&json!({ "source": "aws.events", "detail-type": "Scheduled Event" })), Event::Schedule);
        assert_eq!(read(&json!({ "lighthpc": "sweep" })), Event::Schedule);
        assert_eq!(read(&json!({ "requestContext": { "http": { "method": "GET" } } })), Event::Http);
        for event in [json!({}), json!([]), json!("x"), json!({ "source": 7 }), json!({ "Event": "s3:TestEvent" })] {
            assert!(matches!(read(&event), Event::Nothing(_)), "{event}");
        }
        let warning = json!({ "source": "aws.ec2", "detail-type": "EC2 Spot Instance Interruption Warning" });
        assert!(matches!(read(&warning), Event::Nothing(_)));
    }
}
