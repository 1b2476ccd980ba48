//! A network of a simulation between the SDK's clients and the services: it decides when, how often, and whether a
//! request is applied, and whether its answer arrives.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::LocalCloud;
use super::connector::Connector;
use super::faulty::{error_reply, reset};
use super::services::Service;

/// An answer, or a broken connection.
pub type Answer = Result<http::Response<SdkBody>, ConnectorError>;
/// The future of an answer.
pub type AnswerFuture = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What carries requests.
pub trait Network: Send + Sync + 'static {
    /// Carries one request, and returns what arrives at its sender.
    fn carry(&self, call: Call) -> AnswerFuture;
}

/// A request on its way. A clone is the same request.
#[derive(Clone)]
pub struct Call {
    /// The service that it is for.
    pub service: Service,
    /// The operation, or the path for IMDS.
    pub operation: String,
    /// The instance that sent it; `None`: a caller off EC2.
    pub instance: Option<String>,
    /// Method, path, and headers.
    pub parts: http::request::Parts,
    /// The body.
    pub body: Bytes,
    pub(super) connector: Connector,
}

impl Call {
    /// Applies the request, as when it arrives at the service.
    ///
    /// # Errors
    /// The connection's.
    pub async fn apply(&self) -> Answer {
        let request = (self.parts.clone(), SdkBody::from(self.body.clone()));
        self.connector.apply(self.service, &self.operation, request).await
    }

    /// Applies a request of DynamoDB's protocol beside this one, as from nowhere.
    ///
    /// # Errors
    /// The connection's.
    pub async fn ask_dynamodb(&self, operation: &str, body: String) -> Answer {
        let request = (self.parts.clone(), SdkBody::from(body));
        self.connector.apply(Service::Dynamodb, operation, request).await
    }

    /// Makes an answer of the service that refuses the request.
    #[must_use]
    pub fn refusal(&self, status: u16, code: &str) -> http::Response<SdkBody> {
        error_reply(self.service, status, code)
    }

    /// Makes the error of a broken connection: whether the request was applied is not known.
    #[must_use]
    pub fn broken(&self) -> ConnectorError {
        reset("the connection broke (a simulated fault)")
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("service", &self.service).field("operation", &self.operation).finish_non_exhaustive()
    }
}

/// What becomes of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchChange {
    /// How many instances of those that were asked for are not launched.
    pub fewer: usize,
    /// How many more are launched, and are not in the answer.
    pub more: usize,
}

/// Decides about the n-th launch (from 1).
pub type LaunchHook = Arc<dyn Fn(u64) -> LaunchChange + Send + Sync>;

impl LocalCloud {
    /// Returns the HTTP client of an instance, whose requests a network carries.
    #[must_use]
    pub fn http_client_via(&self, instance: Option<&str>, network: Arc<dyn Network>) -> SharedHttpClient {
        SharedHttpClient::new(Connector::via(Arc::clone(&self.services), instance, network))
    }

    /// Sets what decides about launches.
    pub fn set_launch_hook(&self, hook: LaunchHook) {
        self.services.fleet.set_launch_hook(hook);
    }

    /// Returns a counter of launched instances.
    #[must_use]
    pub fn launches(&self) -> tokio::sync::watch::Receiver<u64> {
        self.services.fleet.launches()
    }
}

impl Connector {
    /// Hands a request to the network, if there is one.
    pub(super) fn carried(&self, call: Call) -> Option<AnswerFuture> {
        self.network.as_ref().map(|network| network.carry(call))
    }
}
