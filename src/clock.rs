//! The wall clock, for people and for the first version's columns. Nothing is decided by it.

use std::time::SystemTime;

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
