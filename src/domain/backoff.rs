//! How long to wait before the next try.

use std::time::Duration;

/// The first ceiling; each try doubles it.
const FIRST: Duration = Duration::from_millis(50);
/// The last ceiling: a tenth of the shortest lease that makes sense on AWS (50 s).
const LAST: Duration = Duration::from_secs(5);

/// Returns the wait before try `tries + 1`, with full jitter: evenly between nothing and a doubling ceiling.
/// `dice` is a random number of the whole range of `u32`.
///
/// Source: AWS Architecture Blog, "Exponential backoff and jitter".
#[must_use]
pub fn delay(tries: u32, dice: u32) -> Duration {
    let ceiling = FIRST.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(LAST);
    ceiling.mul_f64(f64::from(dice) / f64::from(u32::MAX))
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
}
