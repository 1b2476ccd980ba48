//! The node's log lines, and one event per ended attempt, to CloudWatch Logs; off unless a log group is set.
//!
//! ```text
//!   log lines ──────┐
//!                   ├─► the queue (bounded; what does not fit is counted) ─► every 5 s, and at the end: PutLogEvents
//!   ended attempts ─┘
//! ```
//!
//! An event of an attempt has its numbers in CloudWatch's embedded metric format, and the end of the workload's output.
//! Source: CloudWatch user guide, "Specification: Embedded metric format".

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Node;
use super::attempt::Attempt;
use crate::backend::logs::{EVENT_BYTES_MAX, LogQueue, LogStream};
use crate::backend::{Kind, error_chain};
use crate::clock;
use crate::domain::task::AttemptEnd;
use crate::domain::verdict::{Budget, Verdict};

/// The namespace of the metrics.
pub const NAMESPACE: &str = "lighthpc";
/// The pause between two requests.
const PERIOD: Duration = Duration::from_secs(5);
/// The longest pause while the service refuses.
const PERIOD_MAX: Duration = Duration::from_mins(1);
/// How long the last requests may take: the termination of the machine waits for them.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends what waits, until `stop` is cancelled and the rest is sent. A failure is logged once per cause; the lines wait.
pub(super) async fn send(node: Node, stream: String, stop: CancellationToken) {
    let Some(log) = &node.settings.log else { return };
    let stream = node.backend.logs.stream(&log.group, &stream);
    let mut sender = Sender { queue: &log.queue, stream, is_created: false, said: None };
    let mut pause = PERIOD;
    loop {
        let next = async {
            tokio::time::sleep(pause).await;
            sender.send_all().await
        };
        // A batch whose request is dropped at the stop may have been stored: it is not sent again.
        let is_sent = tokio::select! {
            is_sent = next => is_sent,
            () = stop.cancelled() => break,
        };
        pause = if is_sent { PERIOD } else { (pause * 2).min(PERIOD_MAX) };
    }
    drop(tokio::time::timeout(LAST_TIMEOUT, sender.send_all()).await);
}

struct Sender<'a> {
    queue: &'a LogQueue,
    stream: LogStream,
    is_created: bool,
    /// The cause of the last failure, which was logged.
    said: Option<String>,
}

impl Sender<'_> {
    /// Sends what waits now, and not what this adds. Returns whether the service took it.
    async fn send_all(&mut self) -> bool {
        let mut left = self.queue.len().max(1);
        while left > 0 && !self.queue.is_empty() {
            let batch = self.queue.take_batch();
            left = left.saturating_sub(batch.len());
            let sent = async {
                if !self.is_created {
                    self.stream.create().await?;
                    self.is_created = true;
                }
                self.stream.put(&batch).await
            };
            let error = match sent.await {
                Ok(refused) => {
                    self.queue.note_dropped(refused);
                    continue;
                }
                Err(error) => error,
            };
            {
                match error.kind {
                    // It would be refused for ever.
                    Kind::Invalid => self.queue.note_dropped(batch.len() as u64),
                    Kind::NotFound => {
                        self.is_created = false;
                        self.queue.put_back(batch);
                    }
                    _ => self.queue.put_back(batch),
                }
                let cause = error_chain(&error);
                if self.said.as_ref() != Some(&cause) {
                    tracing::warn!("the log was not sent to CloudWatch Logs, and is tried again: {cause}");
                    self.said = Some(cause);
                }
                return false;
            }
        }
        self.said = None;
        true
    }
}

/// The end of a workload's output, within a bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OutputTail {
    text: String,
    dropped_bytes: u64,
}

impl OutputTail {
    /// Cuts a log at `most` bytes from its end.
    pub(super) fn of(log: &[u8], most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let start = log.len().saturating_sub(most);
        Self { text: String::from_utf8_lossy(&log[start..]).into_owned(), dropped_bytes: start as u64 }
    }
}

/// Returns the event of an ended attempt.
pub(super) fn attempt_event(attempt: &Attempt, end: &AttemptEnd, result: Option<&str>, output: &OutputTail) -> String {
    let machine = attempt.host.instance.machine_info();
    let ended_ms = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let count = |is_so: bool| u8::from(is_so);
    let metric = |name: &str, unit: &str| json!({ "Name": name, "Unit": unit });
    let mut event: Value = json!({
        "_aws": {
            "Timestamp": u64::try_from(ended_ms).unwrap_or(u64::MAX),
            "CloudWatchMetrics": [{
                "Namespace": NAMESPACE,
                "Dimensions": [["Deployment"]],
                "Metrics": [
                    metric("AttemptsDone", "Count"),
                    metric("AttemptsFailed", "Count"),
                    metric("AttemptsInterrupted", "Count"),
                    metric("WorkloadTime", "Milliseconds"),
                ],
            }],
        },
        "Deployment": attempt.host.node.backend.ledger.tables().tasks,
        "AttemptsDone": count(end.verdict == Verdict::Ok),
        "AttemptsFailed": count(end.verdict.budget() == Budget::Application),
        "AttemptsInterrupted": count(end.verdict.budget() == Budget::Interruption),
        "WorkloadTime": attempt.time_cost_ms.saturating_sub(attempt.row.time_cost_ms),
        "event": "attempt-ended",
        "task": attempt.fence.src.as_str(),
        "mission": attempt.mission.as_ref().map(|mission| mission.id.as_str()),
        "attempt": attempt.fence.attempt.0,
        "instance": attempt.fence.owner.as_str(),
        "instanceType": machine.instance_type,
        "verdict": end.verdict.as_str(),
        "error": end.error,
        "exitCode": end.exit_code,
        "signal": end.signal,
        "peakMemory": end.peak_memory,
        "result": result,
        "output": output.text,
        "outputDroppedBytes": output.dropped_bytes,
    });
    let mut text = event.to_string();
    // Escapes may make the output much longer: an event that is cut is no JSON.
    let mut kept = output.text.as_str();
    while text.len() > EVENT_BYTES_MAX && !kept.is_empty() {
        kept = &kept[kept.ceil_char_boundary(kept.len().div_ceil(2))..];
        event["output"] = kept.into();
        event["outputDroppedBytes"] = (output.dropped_bytes + (output.text.len() - kept.len()) as u64).into();
        text = event.to_string();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_kept_and_the_rest_is_counted() {
        assert_eq!(OutputTail::of(b"abc", 10), OutputTail { text: "abc".to_owned(), dropped_bytes: 0 });
        assert_eq!(OutputTail::of(b"abc", 2), OutputTail { text: "bc".to_owned(), dropped_bytes: 1 });
        assert_eq!(OutputTail::of(b"abc", 0), OutputTail { text: String::new(), dropped_bytes: 3 });
        assert_eq!(OutputTail::of("文".as_bytes(), 2).text, "\u{fffd}\u{fffd}");
    }
}
