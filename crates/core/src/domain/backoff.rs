//! How long to wait before the next try, and how waits are spread by chance.
//!
//! `dice` is a random number of the whole range of `u32`: the caller draws it.

use std::time::Duration;

/// The first ceiling; each try doubles it.
const FIRST: Duration = Duration::from_millis(50);
/// The last ceiling: a tenth of the shortest lease that makes sense on AWS (50 s).
const LAST: Duration = Duration::from_secs(5);

/// Returns the wait before try `tries + 1`, with full jitter: evenly between nothing and a doubling ceiling.
///
/// Source: AWS Architecture Blog, "Exponential backoff and jitter".
#[must_use]
pub fn delay(tries: u32, dice: u32) -> Duration {
    between(Duration::ZERO, doubled(FIRST, tries.saturating_sub(1), LAST), dice)
}

/// Returns `first`, doubled `doublings` times, but no more than `last`.
#[must_use]
pub fn doubled(first: Duration, doublings: u32, last: Duration) -> Duration {
    // 16 doublings are a factor of 65,536, which reaches every `last` in use.
    first.saturating_mul(1 << doublings.min(16)).min(last)
}

/// Returns a time that is spread evenly between `shortest` and `longest`.
#[must_use]
pub fn between(shortest: Duration, longest: Duration, dice: u32) -> Duration {
    shortest + longest.saturating_sub(shortest).mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

/// Returns `time`, up to `share` of it shorter or longer by chance: what starts together does not stay together.
#[must_use]
pub fn jittered(time: Duration, share: f64, dice: u32) -> Duration {
    between(time.mul_f64(1.0 - share), time.mul_f64(1.0 + share), dice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_and_stops() {
        assert_eq!(delay(1, u32::MAX), Duration::from_millis(50));
        assert_eq!(delay(3, u32::MAX), Duration::from_millis(200));
        assert_eq!(delay(40, u32::MAX), LAST);
        assert_eq!(delay(40, 0), Duration::ZERO);
    }

    #[test]
    fn jitter_stays_within_its_share() {
        let time = Duration::from_secs(10);
        assert_eq!(jittered(time, 0.1, 0), Duration::from_secs(9));
        assert_eq!(jittered(time, 0.1, u32::MAX), Duration::from_secs(11));
        assert_eq!(between(time, time, 7), time);
        assert_eq!(between(time, Duration::ZERO, u32::MAX), time, "never shorter than the shortest");
    }
}
