//! Requests new credentials when a service refuses the cached ones as expired.
//!
//! The SDK caches credentials until shortly before they expire. It extends expired ones of IMDS by 10 to 15 minutes,
//! because EC2 may return old ones for a while ("static stability"). If a service refuses them, the cache is emptied,
//! and the call is repeated with the provider's current credentials. This happens at most five times per second over
//! all clients: at each of the SDK's attempts of a call, and at each retry of the caller. The caller gives up after a
//! lease.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_config::identity::IdentityCache;
use aws_smithy_runtime_api::client::identity::{
    IdentityFuture, ResolveCachedIdentity, SharedIdentityCache, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use super::failures::may_be_expired;

/// The minimum time between two requests to the provider. Calls that were sent with the old credentials are refused as
/// well, and must not discard the new credentials.
const RENEWAL_PAUSE: Duration = Duration::from_millis(200);

/// The cache of credentials, which can be emptied, and the classifier of answers that empties it. A clone shares both.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    cache: SharedIdentityCache,
    emptied_at: Option<Instant>,
}

impl Renewal {
    pub(super) fn new() -> Self {
        Self { state: Arc::new(Mutex::new(State { cache: IdentityCache::lazy().build(), emptied_at: None })) }
    }

    /// Empties the cache, unless that was done just before.
    fn empty(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.emptied_at.is_none_or(|at| at.elapsed() >= RENEWAL_PAUSE) {
            state.cache = IdentityCache::lazy().build();
            state.emptied_at = Some(Instant::now());
            tracing::debug!("a service refused the credentials as expired: requesting new ones");
        }
    }
}

impl ResolveCachedIdentity for Renewal {
    fn resolve_cached_identity<'a>(
        &'a self,
        resolver: SharedIdentityResolver,
        components: &'a RuntimeComponents,
        config: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        let cache = self.state.lock().unwrap_or_else(PoisonError::into_inner).cache.clone();
        IdentityFuture::new(async move { cache.resolve_cached_identity(resolver, components, config).await })
    }
}

impl ClassifyRetry for Renewal {
    fn name(&self) -> &'static str {
        "Renewal"
    }

    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(response) = context.response() else { return RetryAction::NoActionIndicated };
        let is_head = context.request().is_some_and(|request| request.method() == "HEAD");
        let body = response.body().bytes().unwrap_or_default();
        if !may_be_expired(response.status().as_u16(), is_head, body) {
            return RetryAction::NoActionIndicated;
        }
        self.empty();
        RetryAction::transient_error()
    }
}
