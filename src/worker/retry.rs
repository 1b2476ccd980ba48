//! Retries of transient failures: an outage that is shorter than a lease costs time, not the task.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Node, NodeError};
use crate::backend::store::StoreError;
use crate::backend::{CloudError, error_chain};
use crate::domain::backoff;
use crate::workload::is_limit;

/// A failure that knows whether it is transient.
pub(super) trait Retryable: std::fmt::Display + std::error::Error {
    /// Returns whether the same call can succeed later.
    fn is_transient(&self) -> bool;
}

impl Retryable for CloudError {
    fn is_transient(&self) -> bool {
        self.is_retryable()
    }
}

impl Retryable for StoreError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Cloud(error) => error.is_retryable(),
            Self::Disk { source, .. } => is_limit(source),
            _ => false,
        }
    }
}

impl Retryable for NodeError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Cloud { source, .. } => source.is_transient(),
            Self::Store { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}

/// Retries a call while its failure is transient: at least once, and until a call was made after `limit`. Each call
/// includes the SDK's own five tries (about 4 s); between calls is a jittered pause of up to 5 s.
///
/// For calls that may be made twice, and that must be made even if the node drains.
///
/// # Errors
/// The last failure.
pub(super) async fn retry_transient<T, E: Retryable, F>(limit: Duration, call: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    retry_transient_unless(&CancellationToken::new(), limit, call).await
}

/// Retries a call to a service, for as long as a node may be idle. `None` if the node drains during an outage. `doing`
/// is a gerund phrase.
///
/// # Errors
/// [`NodeError::Cloud`]: the last failure.
pub(super) async fn call_until_drained<T, F>(
    node: &Node,
    doing: &'static str,
    call: impl FnMut() -> F,
) -> Result<Option<T>, NodeError>
where
    F: Future<Output = Result<T, CloudError>>,
{
    let called = retry_transient_unless(&node.stopping.drain, node.settings.max_idle, call).await;
    or_drained(node, called.map_err(NodeError::cloud(doing)))
}

/// Retries a call as [`retry_transient`] does, until `drain` is cancelled. A call under way is waited for: it must be
/// known whether it was applied.
///
/// # Errors
/// The last failure.
pub(super) async fn retry_transient_unless<T, E: Retryable, F>(
    drain: &CancellationToken,
    limit: Duration,
    mut call: impl FnMut() -> F,
) -> Result<T, E>
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
        if !error.is_transient() || tries > 1 && elapsed >= limit || drain.is_cancelled() {
            return Err(error);
        }
        let pause = backoff::delay(tries + 2, rand::random());
        // The last try is made when the limit has come, not before, so that a shorter outage is waited for.
        let pause = limit.checked_sub(elapsed).map_or(pause, |left| pause.min(left));
        tracing::warn!("retrying: {}", error_chain(&error));
        // Both arms may be dropped: neither holds anything.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.cancelled() => return Err(error),
        }
    }
}

/// Turns a transient failure during a drain into `None`: a drain during an outage is an orderly end.
///
/// # Errors
/// Every other failure.
pub(super) fn or_drained<T>(node: &Node, result: Result<T, NodeError>) -> Result<Option<T>, NodeError> {
    match result {
        Err(error) if node.stopping.drain.is_cancelled() && error.is_transient() => {
            tracing::warn!("given up, because the node drains: {}", error_chain(&error));
            Ok(None)
        }
        result => result.map(Some),
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
            retry_transient(limit, call).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_drain_is_heard_during_an_outage() {
        let stop = CancellationToken::new();
        let started = Instant::now();
        let away = || async { Err::<(), _>(CloudError::new(Kind::Unreachable, "Query", "a table", "away")) };
        let (waited, ()) =
            tokio::join!(retry_transient_unless(&stop, Duration::from_hours(1), away), async { stop.cancel() });
        assert!(waited.is_err() && started.elapsed() < Duration::from_mins(1));
    }
}
