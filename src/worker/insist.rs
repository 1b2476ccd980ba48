//! Repeating what may pass: an outage that is shorter than a lease costs time, not the task.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::CloudError;
use crate::backend::store::StoreError;
use crate::domain::backoff;

/// A failure that says of itself whether the same again may succeed.
pub(super) trait Failure: std::fmt::Display + std::error::Error {
    /// Returns whether the same call may succeed later.
    fn may_pass(&self) -> bool;
}

impl Failure for CloudError {
    fn may_pass(&self) -> bool {
        self.is_retryable()
    }
}

impl Failure for StoreError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Cloud(error) if error.is_retryable())
    }
}

/// Repeats a call while its failure may pass, once at least, and until one was made when `limit` had gone by. The SDK's own
/// five tries (about 4 s) are inside each of these; between them lies a jittered pause of up to 5 s.
///
/// For calls that may be made twice.
///
/// # Errors
/// The last failure.
pub(super) async fn insist<T, E: Failure, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    let mut tries = 0;
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tries += 1;
        let elapsed = started.elapsed();
        if !error.may_pass() || tries > 1 && elapsed >= limit {
            return Err(error);
        }
        let pause = backoff::delay(tries + 2, rand::random());
        // The last try is made when the limit has come, not before: what is away for less is waited for.
        let pause = limit.checked_sub(elapsed).map_or(pause, |left| pause.min(left));
        tracing::warn!("tried again: {}", super::error::words(&error));
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Kind;

    #[tokio::test]
    async fn an_outage_as_long_as_the_limit_is_waited_for() {
        let limit = Duration::from_millis(60);
        for _ in 0..20 {
            let started = Instant::now();
            let call = || async move {
                let is_away = started.elapsed() < limit;
                if is_away { Err(CloudError::new(Kind::Unreachable, "GetItem", "a table", "away")) } else { Ok(()) }
            };
            insist(limit, call).await.unwrap();
        }
    }
}
