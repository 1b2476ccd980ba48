//! The wall clock, for people and for the first version's columns. Nothing is decided by it but how long a Spot notice
//! still runs, for EC2 gives only a time of day.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

/// Returns the time, RFC 3339 UTC to the second: `2026-02-03T04:05:06Z`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now_rfc3339() -> String {
    rfc3339(SystemTime::now())
}

/// Writes a time in the same way, so that the texts sort as the times do.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = DateTime::from_secs(DateTime::from(time).secs());
    seconds.fmt(Format::DateTime).unwrap_or_default()
}

/// Returns how long it is until a time of day, RFC 3339; nothing if it has passed, `None` if it cannot be read.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn until(time: &str) -> Option<Duration> {
    let time = DateTime::from_str(time, Format::DateTime).ok()?;
    let time = SystemTime::try_from(time).ok()?;
    Some(time.duration_since(SystemTime::now()).unwrap_or_default())
}
