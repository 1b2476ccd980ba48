//! The wall clock: timestamps for people and for the columns of the first version.
//!
//! Correctness never depends on it. It decides only how long a Spot notice still runs (EC2 gives a time of day), and
//! two things that cost money but no results: when a launch is retried, and whether a task has waited long enough for
//! Spot.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// Returns the current time as RFC 3339 UTC, to the second: `2026-02-03T04:05:06Z`.
#[must_use]
pub fn now_rfc3339() -> String {
    rfc3339(now())
}

/// Returns the current time.
#[must_use]
pub fn now() -> SystemTime {
    lighthpc_runtime::now()
}

/// Returns the time since an RFC 3339 timestamp: zero if it is in the future, `None` if it cannot be parsed.
#[must_use]
pub fn since(time: &str) -> Option<Duration> {
    since_time(DateTime::from_str(time, Format::DateTime).ok()?)
}

/// Returns the time since a service's timestamp: zero if it is in the future, `None` if it is out of range.
#[must_use]
pub fn since_time(time: DateTime) -> Option<Duration> {
    Some(now().duration_since(SystemTime::try_from(time).ok()?).unwrap_or_default())
}

/// Returns the time after `wait` as RFC 3339 UTC.
#[must_use]
pub fn later(wait: Duration) -> String {
    rfc3339(now() + wait)
}

/// Formats a time as RFC 3339 UTC, to the second. The texts sort in the order of the times.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = DateTime::from_secs(DateTime::from(time).secs());
    seconds.fmt(Format::DateTime).unwrap_or_default()
}

/// Parses an RFC 3339 timestamp; `None` if it is invalid.
#[must_use]
pub fn read(time: &str) -> Option<SystemTime> {
    SystemTime::try_from(DateTime::from_str(time.trim(), Format::DateTime).ok()?).ok()
}

/// Returns the time between two RFC 3339 timestamps: zero if the second is earlier, `None` if one cannot be parsed.
#[must_use]
pub fn between(from: &str, to: &str) -> Option<Duration> {
    Some(read(to)?.duration_since(read(from)?).unwrap_or_default())
}

/// Returns the time until an RFC 3339 timestamp: zero if it has passed, `None` if it cannot be parsed.
#[must_use]
pub fn until(time: &str) -> Option<Duration> {
    let time = DateTime::from_str(time, Format::DateTime).ok()?;
    let time = SystemTime::try_from(time).ok()?;
    Some(time.duration_since(now()).unwrap_or_default())
}
