//! CloudWatch Logs: log lines wait in a queue, and go up in batches.
//!
//! Log lines must never hold a node up: the queue has a bound, and what does not fit is dropped and counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use aws_sdk_cloudwatchlogs::Client;
use aws_sdk_cloudwatchlogs::config::Builder;
use aws_sdk_cloudwatchlogs::error::ProvideErrorMetadata;
use aws_sdk_cloudwatchlogs::types::InputLogEvent;

use super::error::CloudError;
use super::sdk::Wire;
use crate::clock;

/// The bytes that wait at most: an outage of minutes, and small beside a workload.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most events of a request. Source: CloudWatch Logs API reference, `PutLogEvents`, as the next three.
const EVENTS_MAX: usize = 10_000;
/// The most bytes of a request, with [`EVENT_EXTRA`] for each event.
const BATCH_BYTES_MAX: usize = 1_048_576;
/// The longest time between the first and the last event of a request: 24 hours.
const SPAN_MAX_MS: i64 = 23 * 3_600_000;
/// The bytes that each event counts beside its text.
const EVENT_EXTRA: usize = 26;
/// The most bytes of an event's text that is sent: the service takes 256 KiB with the extra bytes.
pub const EVENT_BYTES_MAX: usize = 200 * 1024;

/// A log line and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// The text, not empty.
    pub text: String,
}

impl LogEvent {
    fn bytes(&self) -> usize {
        self.text.len() + EVENT_EXTRA
    }
}

/// Log lines that wait to be sent. Cheap to clone; a clone is the same queue.
#[derive(Clone, Debug, Default)]
pub struct LogQueue {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<LogEvent>,
    bytes: usize,
    /// Events that were dropped since the last batch.
    dropped: u64,
}

impl LogQueue {
    /// Adds a line, cut to [`EVENT_BYTES_MAX`]. A line that does not fit is counted only; an empty one is left out.
    pub fn push(&self, text: &str) {
        let text = cut(text, EVENT_BYTES_MAX);
        if text.is_empty() {
            return;
        }
        let event = LogEvent { time_ms: now_ms(), text: text.to_owned() };
        let mut waiting = self.lock();
        if waiting.bytes + event.bytes() > QUEUE_BYTES_MAX {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += event.bytes();
        waiting.events.push_back(event);
    }

    /// Takes the events of one request, the oldest first; they are in the order of their times. A line that says how
    /// many were dropped follows the last one before them.
    #[must_use]
    pub fn take_batch(&self) -> Vec<LogEvent> {
        let mut waiting = self.lock();
        let (mut batch, mut bytes): (Vec<LogEvent>, usize) = (Vec::new(), 0);
        while let Some(event) = waiting.events.front() {
            let is_apart =
                batch.first().is_some_and(|first| event.time_ms.abs_diff(first.time_ms) > SPAN_MAX_MS.unsigned_abs());
            if batch.len() + 1 >= EVENTS_MAX || bytes + event.bytes() > BATCH_BYTES_MAX - 1024 || is_apart {
                break;
            }
            bytes += event.bytes();
            batch.extend(waiting.events.pop_front());
        }
        waiting.bytes -= bytes;
        if waiting.events.is_empty() && waiting.dropped > 0 {
            let text = format!(
                "{} log lines were dropped: more came than could be sent, or they were refused",
                waiting.dropped
            );
            waiting.dropped = 0;
            batch.push(LogEvent { time_ms: now_ms(), text });
        }
        // A clock may be set back between two lines; the service refuses a batch that is not in order.
        batch.sort_by_key(|event| event.time_ms);
        batch
    }

    /// Returns a batch that was not sent to the front of the queue. What does not fit any more is counted as dropped.
    pub fn put_back(&self, batch: Vec<LogEvent>) {
        let mut waiting = self.lock();
        for event in batch.into_iter().rev() {
            if waiting.bytes + event.bytes() > QUEUE_BYTES_MAX {
                waiting.dropped += 1;
                continue;
            }
            waiting.bytes += event.bytes();
            waiting.events.push_front(event);
        }
    }

    /// Counts events that the service refused.
    pub fn note_dropped(&self, count: u64) {
        self.lock().dropped += count;
    }

    /// Returns how many events wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Returns whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let waiting = self.lock();
        waiting.events.is_empty() && waiting.dropped == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts a text at a number of bytes, between two characters.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn now_ms() -> i64 {
    let since = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The client of CloudWatch Logs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    client: Client,
}

impl Logs {
    /// Creates the client. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire) -> Self {
        Self { client: Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build()) }
    }

    /// Names a stream. Characters that its name may not have become `_`.
    #[must_use]
    pub fn stream(&self, group: &str, stream: &str) -> LogStream {
        let stream = stream.chars().take(512).map(|c| if matches!(c, ':' | '*') || c.is_control() { '_' } else { c });
        LogStream { client: self.client.clone(), group: group.to_owned(), stream: stream.collect() }
    }
}

/// One stream of a log group. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogStream {
    client: Client,
    group: String,
    stream: String,
}

impl LogStream {
    /// Creates the stream. One that exists is used.
    ///
    /// # Errors
    /// [`CloudError`]; `NotFound` if the group does not exist.
    pub async fn create(&self) -> Result<(), CloudError> {
        let created = self.client.create_log_stream().log_group_name(&self.group).log_stream_name(&self.stream).send();
        match created.await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceAlreadyExistsException") => Ok(()),
            Err(error) => Err(CloudError::sdk("CreateLogStream", self.name(), error)),
        }
    }

    /// Sends a batch of [`LogQueue::take_batch`]. Returns how many events the service has refused: they are too old, or of
    /// a time to come.
    ///
    /// # Errors
    /// [`CloudError`]; nothing of the batch was stored, or its answer was lost.
    pub async fn put(&self, batch: &[LogEvent]) -> Result<u64, CloudError> {
        let events = batch.iter().map(|event| {
            let event = InputLogEvent::builder().timestamp(event.time_ms).message(&event.text).build();
            event.expect("time and text are set")
        });
        let put = self.client.put_log_events().log_group_name(&self.group).log_stream_name(&self.stream);
        let put = put.set_log_events(Some(events.collect())).send().await;
        let put = put.map_err(|error| CloudError::sdk("PutLogEvents", self.name(), error))?;
        let Some(refused) = put.rejected_log_events_info() else { return Ok(0) };
        let all = batch.len() as u64;
        let index = |index: Option<i32>| index.and_then(|index| u64::try_from(index).ok());
        let old = index(refused.too_old_log_event_end_index()).max(index(refused.expired_log_event_end_index()));
        let new = index(refused.too_new_log_event_start_index()).map(|first| all.saturating_sub(first));
        Ok((old.unwrap_or(0) + new.unwrap_or(0)).min(all))
    }

    fn name(&self) -> String {
        format!("log group {}, stream {}", self.group, self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_fit_into_a_request_and_nothing_vanishes_silently() {
        let queue = LogQueue::default();
        let line = "x".repeat(999);
        for _ in 0..6_000 {
            queue.push(&line);
        }
        queue.push("");
        let (mut sent, mut last) = (0, String::new());
        while !queue.is_empty() {
            let batch = queue.take_batch();
            assert!(batch.len() <= EVENTS_MAX);
            assert!(batch.iter().map(LogEvent::bytes).sum::<usize>() <= BATCH_BYTES_MAX);
            assert!(batch.is_sorted_by_key(|event| event.time_ms));
            sent += batch.len();
            last.clone_from(&batch.last().unwrap().text);
        }
        let dropped: usize = last.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(sent - 1 + dropped, 6_000, "{last}");
        assert!(sent * (999 + EVENT_EXTRA) > QUEUE_BYTES_MAX - 2_000);
    }

    #[test]
    fn many_short_lines_are_several_requests() {
        let queue = LogQueue::default();
        for n in 0..25_000 {
            queue.push(&n.to_string());
        }
        let batches: Vec<usize> =
            std::iter::from_fn(|| Some(queue.take_batch().len()).filter(|len| *len > 0)).collect();
        assert_eq!(batches.iter().sum::<usize>(), 25_000);
        assert!(batches.iter().all(|len| *len <= EVENTS_MAX), "{batches:?}");
    }

    #[test]
    fn a_batch_that_was_not_sent_comes_first_again() {
        let queue = LogQueue::default();
        queue.push("a");
        queue.push("b");
        let batch = queue.take_batch();
        queue.push("c");
        queue.put_back(batch);
        let texts: Vec<String> = queue.take_batch().into_iter().map(|event| event.text).collect();
        assert_eq!(texts, ["a", "b", "c"]);
    }

    #[test]
    fn a_batch_has_the_lines_of_one_day() {
        let queue = LogQueue::default();
        let day = 24 * 3_600_000;
        let events = [0, 1, day, 2 * day].map(|time_ms| LogEvent { time_ms, text: "x".to_owned() });
        queue.put_back(events.to_vec());
        assert_eq!([(); 3].map(|()| queue.take_batch().len()), [2, 1, 1]);
        queue.note_dropped(3);
        assert!(!queue.is_empty() && queue.take_batch()[0].text.starts_with("3 log lines were dropped"));
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let queue = LogQueue::default();
        queue.push(&"文".repeat(EVENT_BYTES_MAX));
        let batch = queue.take_batch();
        assert!(batch[0].text.len() <= EVENT_BYTES_MAX && batch[0].text.ends_with('文'));
    }
}
