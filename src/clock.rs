//! The wall clock, for people and for the first version's columns. Nothing is decided by it but how long a Spot notice
//! still runs, for EC2 gives only a time of day, and what costs money, not results: when a launch is tried again, and whether
//! a task has waited long enough for Spot.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// Returns the time, RFC 3339 UTC to the second: `2026-02-03T04:05:06Z`.
#[must_use]
pub fn now_rfc3339() -> String {
    rfc3339(now())
}

/// Returns the time, for the prices of now and for what a person reads.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Returns how long ago a time of day was, RFC 3339; nothing if it is yet to come, `None` if it cannot be read.
#[must_use]
pub fn since(time: &str) -> Option<Duration> {
    since_time(DateTime::from_str(time, Format::DateTime).ok()?)
}

/// Returns how long ago an instant was that a service named; nothing if it is yet to come.
#[must_use]
pub fn since_time(time: DateTime) -> Option<Duration> {
    Some(now().duration_since(SystemTime::try_from(time).ok()?).unwrap_or_default())
}

/// Returns the time in so long, RFC 3339 UTC.
#[must_use]
pub fn later(wait: Duration) -> String {
    rfc3339(now() + wait)
}

/// Writes a time in the same way, so that the texts sort as the times do.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = DateTime::from_secs(DateTime::from(time).secs());
    seconds.fmt(Format::DateTime).unwrap_or_default()
}

/// Reads a time of day, RFC 3339; `None` if it cannot be read.
#[must_use]
pub fn read(time: &str) -> Option<SystemTime> {
    SystemTime::try_from(DateTime::from_str(time.trim(), Format::DateTime).ok()?).ok()
}

/// Returns how long it is until a time of day, RFC 3339; nothing if it has passed, `None` if it cannot be read.
#[must_use]
pub fn until(time: &str) -> Option<Duration> {
    let time = DateTime::from_str(time, Format::DateTime).ok()?;
    let time = SystemTime::try_from(time).ok()?;
    Some(time.duration_since(now()).unwrap_or_default())
}
