//! Limits launches to EC2's request rate.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The number of requests that may be sent at once. Source: EC2 API reference, "Request throttling": RunInstances has a
/// bucket of 5 requests that refills at 2 per second; launches of a fleet count there.
const BURST: f64 = 5.0;
/// The requests per second after that.
pub const PER_SECOND: f64 = 2.0;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Pacer {
    per_second: f64,
    bucket: Mutex<(f64, Instant)>,
}

impl Pacer {
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second, bucket: Mutex::new((BURST, Instant::now())) }
    }

    /// Waits until a request may be sent. Waiters proceed in the order of their calls.
    pub(super) async fn turn(&self) {
        let mut bucket = self.bucket.lock().await;
        let (tokens, wait) = draw(bucket.0, bucket.1.elapsed(), self.per_second);
        tokio::time::sleep(wait).await;
        *bucket = (tokens, Instant::now());
    }
}

/// Takes a token. Returns the remaining tokens, and the time to wait.
fn draw(tokens: f64, elapsed: Duration, per_second: f64) -> (f64, Duration) {
    let tokens = (tokens + elapsed.as_secs_f64() * per_second).min(BURST);
    if tokens >= 1.0 {
        return (tokens - 1.0, Duration::ZERO);
    }
    (0.0, Duration::from_secs_f64((1.0 - tokens) / per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_go_at_once_and_then_two_a_second() {
        let mut tokens = BURST;
        let mut waited = Duration::ZERO;
        for _ in 0..25 {
            let (left, wait) = draw(tokens, Duration::ZERO, PER_SECOND);
            tokens = left;
            waited += wait;
        }
        assert_eq!(waited, Duration::from_secs(10));
        assert_eq!(draw(0.0, Duration::from_mins(1), PER_SECOND), (BURST - 1.0, Duration::ZERO));
    }
}
