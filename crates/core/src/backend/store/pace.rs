//! Notices a range that takes much longer than the others, so that it is requested again.
//!
//! Most of S3's slow answers are slow by chance, and the next request is not. Source: Amazon S3 user guide, "Performance
//! design patterns", which advises to repeat the slowest 5 % of the requests of a large download.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A range is slow when it takes this multiple of the mean time of the finished ones.
const SLOW_FACTOR: u32 = 3;
/// No range is slow before: a connection and 8 MiB at 4 MiB/s take as long.
const SLOW_MIN: Duration = Duration::from_secs(2);
/// The ranges of which one may be requested again: 5 %, and one more.
const RANGES_PER_REPEAT: u32 = 20;
/// The number of finished ranges from which the mean is known.
const FINISHED_MIN: u32 = 4;

/// How long the ranges of one download take.
#[derive(Debug, Default)]
pub(super) struct Pace {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    finished: u32,
    total: Duration,
    repeated: u32,
}

impl State {
    /// Returns how long a range may take; `None` as long as this is not known.
    fn limit(&self) -> Option<Duration> {
        (self.finished >= FINISHED_MIN).then(|| (self.total / self.finished * SLOW_FACTOR).max(SLOW_MIN))
    }
}

impl Pace {
    /// Records a range that was received in one try.
    pub(super) fn finished(&self, took: Duration) {
        let mut state = self.locked();
        state.finished = state.finished.saturating_add(1);
        state.total = state.total.saturating_add(took);
    }

    /// Waits until the range that began at `started` is slow, and must be requested again. It is counted then. Never
    /// returns if enough ranges were requested again.
    pub(super) async fn slow(&self, started: Instant) {
        loop {
            let wait = match self.locked().limit() {
                None => SLOW_MIN,
                Some(limit) => limit.saturating_sub(started.elapsed()),
            };
            if wait.is_zero() {
                break;
            }
            tokio::time::sleep(wait).await;
        }
        let may_repeat = {
            let mut state = self.locked();
            let may_repeat = state.repeated <= state.finished / RANGES_PER_REPEAT;
            state.repeated += u32::from(may_repeat);
            may_repeat
        };
        if !may_repeat {
            std::future::pending::<()>().await;
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn is_slow_within(pace: &Pace, started: Instant, limit: Duration) -> bool {
        tokio::time::timeout(limit, pace.slow(started)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_is_slow_at_three_times_the_mean_but_not_before_two_seconds() {
        for (mean, limit_ms) in [(SECOND / 10, 2_000), (SECOND, 3_000), (20 * SECOND, 60_000)] {
            let pace = Pace::default();
            let started = Instant::now();
            (0..3).for_each(|_| pace.finished(mean));
            assert!(!is_slow_within(&pace, started, 1000 * SECOND).await, "three ranges have no mean");
            pace.finished(mean);

            let started = Instant::now();
            assert!(!is_slow_within(&pace, started, Duration::from_millis(limit_ms - 10)).await, "{mean:?}");
            assert!(is_slow_within(&pace, started, Duration::from_millis(limit_ms + 10)).await, "{mean:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_one_range_of_twenty_is_requested_again_and_one_more() {
        let pace = Pace::default();
        (0..40).for_each(|_| pace.finished(SECOND));
        let started = Instant::now();
        let mut repeated = 0;
        while repeated < 100 && is_slow_within(&pace, started, 1000 * SECOND).await {
            repeated += 1;
        }
        assert_eq!(repeated, 3);
    }
}
