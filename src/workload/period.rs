//! How often a running workload is looked at: a short one often, and a long one seldom, because each look takes time from it.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two looks.
const MIN: Duration = Duration::from_millis(500);
/// The number of looks during the time so far, if none of the limits applies.
const LOOKS: u32 = 20;

/// Returns the time until the next look at a workload that was started at an instant.
pub(super) fn period(started: Instant, max: Duration) -> Duration {
    (started.elapsed() / LOOKS).clamp(MIN, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_workload_is_looked_at_less_often() {
        let started = Instant::now();
        let mut periods = Vec::new();
        for seconds in [0, 9, 21, 60, 3600] {
            tokio::time::sleep_until(started + Duration::from_secs(seconds)).await;
            periods.push(period(started, Duration::from_secs(2)).as_millis());
        }
        assert_eq!(periods, [500, 500, 1050, 2000, 2000]);
    }
}
