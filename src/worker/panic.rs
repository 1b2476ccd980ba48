//! A panic in an attempt ends that attempt, and no other.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Polls a future until it ends or panics. After a panic, what the future borrows must not be trusted, except what is
/// written in one step.
pub(super) async fn caught<F: Future + ?Sized>(future: Pin<Box<F>>) -> Result<F::Output, String> {
    Caught(future).await
}

struct Caught<F: ?Sized>(Pin<Box<F>>);

impl<F: Future + ?Sized> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        match catch_unwind(AssertUnwindSafe(|| future.poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(words(panic.as_ref()))),
        }
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_result_whenever_it_comes() {
        assert_eq!(caught(Box::pin(async { 1 })).await, Ok(1));
        let late = async {
            tokio::task::yield_now().await;
            assert!(std::hint::black_box(false), "at {}", 7);
        };
        assert_eq!(caught(Box::pin(late)).await, Err("at 7".to_owned()));
        let bare = async { std::panic::panic_any(3) };
        assert_eq!(caught::<dyn Future<Output = ()>>(Box::pin(bare)).await, Err("no words".to_owned()));
    }
}
