//! Instances that EC2 does not list: they terminated long ago, or are so new that EC2 does not show them yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time for which EC2 must not list an instance before it counts as gone, on the observer's monotonic clock.
/// Source: EC2 developer guide, "Eventual consistency": a caller backs off for up to five minutes.
pub(super) const UNKNOWN_MIN: Duration = Duration::from_mins(5);

/// The maximum number of instances that are stored: 1,000 are about 100 kB. Above that, all but the new one are
/// dropped, and their time starts again.
const REMEMBERED_MAX: usize = 1_000;

/// The time since EC2 does not list each instance. Clones share the map.
#[derive(Clone, Debug, Default)]
pub(super) struct Unknown(Arc<Mutex<HashMap<String, Instant>>>);

impl Unknown {
    /// Records that EC2 does not list an instance. Returns whether this has lasted long enough.
    pub(super) fn is_believed(&self, instance: &str) -> bool {
        self.is_believed_at(instance, Instant::now())
    }

    fn is_believed_at(&self, instance: &str, now: Instant) -> bool {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.len() >= REMEMBERED_MAX && !since.contains_key(instance) {
            since.clear();
        }
        let first = since.entry(instance.to_owned()).or_insert(now);
        now.saturating_duration_since(*first) >= UNKNOWN_MIN
    }

    /// Records that EC2 lists an instance.
    pub(super) fn forget(&self, instance: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(instance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ec2_does_not_know_is_gone_after_five_minutes_of_it() {
        let (unknown, start) = (Unknown::default(), Instant::now());
        assert!(!unknown.is_believed_at("i-1", start));
        assert!(!unknown.is_believed_at("i-1", start + UNKNOWN_MIN - Duration::from_secs(1)));
        assert!(unknown.is_believed_at("i-1", start + UNKNOWN_MIN));
        assert!(!unknown.is_believed_at("i-2", start + UNKNOWN_MIN));
        unknown.forget("i-1");
        assert!(!unknown.is_believed_at("i-1", start + UNKNOWN_MIN), "it showed in between");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let unknown = Unknown::default();
        for n in 0..3 * REMEMBERED_MAX {
            unknown.is_believed(&format!("i-{n}"));
        }
        assert!(unknown.0.lock().unwrap().len() <= REMEMBERED_MAX);
    }
}
