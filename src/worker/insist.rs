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

/// Repeats a call while its failure may pass, once at least, and until `limit` has gone by since the first try. The SDK's own
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
        let pause = backoff::delay(tries + 2, rand::random());
        if !error.may_pass() || tries > 1 && started.elapsed() + pause >= limit {
            return Err(error);
        }
        tracing::warn!("tried again: {}", super::error::words(&error));
        tokio::time::sleep(pause).await;
    }
}
