//! Bounded concurrency: the only code that runs many futures at the same time.

use tokio::task::{JoinError, JoinSet};
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// Futures that run as tasks of the runtime, a limited number at a time, in the caller's span. Each is taken from the
/// iterator when an earlier one has finished, because there may be millions. Dropping this value stops the running
/// ones.
#[derive(Debug)]
pub struct Parallel<I: Iterator>
where
    I::Item: Future,
{
    limit: usize,
    work: I,
    running: JoinSet<<Instrumented<I::Item> as Future>::Output>,
}

impl<I> Parallel<I>
where
    I: Iterator,
    I::Item: Future<Output: Send> + Send + 'static,
{
    /// Creates the work, of which at most `limit` futures run at a time. Nothing runs before the first [`Self::next`].
    pub fn new(limit: usize, work: impl IntoIterator<IntoIter = I>) -> Self {
        Self { limit: limit.max(1), work: work.into_iter(), running: JoinSet::new() }
    }

    /// Returns the next result, in the order of completion; `None` after the last.
    ///
    /// Safe to drop: the next call returns the same result.
    ///
    /// # Errors
    /// [`JoinError`] if the future panicked.
    pub async fn next(&mut self) -> Option<Result<<I::Item as Future>::Output, JoinError>> {
        while self.running.len() < self.limit
            && let Some(work) = self.work.next()
        {
            lighthpc_runtime::spawn(&mut self.running, work.in_current_span());
        }
        self.running.join_next().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn all_is_done_and_never_more_than_the_limit_at_a_time() {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = (0..100).map(|n| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                n
            }
        });
        let mut parallel = Parallel::new(7, work);

        let mut done = Vec::new();
        while let Some(n) = parallel.next().await {
            done.push(n.unwrap());
        }

        done.sort_unstable();
        assert_eq!(done, (0..100).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 7);
    }

    #[tokio::test]
    async fn a_panic_is_one_result_and_the_rest_goes_on() {
        let mut parallel = Parallel::new(1, (0..3).map(|n| async move { assert_ne!(n, 1, "a panic of this test") }));

        assert!(parallel.next().await.unwrap().is_ok());
        assert!(parallel.next().await.unwrap().unwrap_err().is_panic());
        assert!(parallel.next().await.unwrap().is_ok());
        assert!(parallel.next().await.is_none());
    }
}
