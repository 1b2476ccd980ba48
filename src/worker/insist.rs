//! Repeating what may pass: an outage that is shorter than a lease costs time, not the task.

use std::time::Duration;

use tokio::time::Instant;

use crate::backend::CloudError;
use crate::domain::backoff;

/// Repeats a call while its failure may pass, until `limit` has gone by since the first try. The SDK's own five tries
/// (about 15 s) are inside each of these; between them lies a jittered pause of up to 5 s.
///
/// For calls that may be made twice.
///
/// # Errors
/// The last failure.
pub(super) async fn insist<T, F>(limit: Duration, mut call: impl FnMut() -> F) -> Result<T, CloudError>
where
    F: Future<Output = Result<T, CloudError>>,
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
        if !error.is_retryable() || started.elapsed() + pause >= limit {
            return Err(error);
        }
        tracing::warn!("{error} failed, and is tried again: {}", error.source);
        tokio::time::sleep(pause).await;
    }
}
