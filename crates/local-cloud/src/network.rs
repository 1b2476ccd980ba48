//! A network of a simulation between the SDK's clients and the services: it decides when, how often, and whether a
//! request is applied, and whether its answer arrives.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::replies::{error_reply, reset};
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

/// Applies a request to a service: its operation, head, and body.
pub(super) type Apply = dyn Fn(Service, String, http::request::Parts, SdkBody) -> AnswerFuture + Send + Sync;

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
    /// What applies a request.
    pub(super) apply: Arc<Apply>,
}

impl Call {
    /// Applies the request, as when it arrives at the service.
    ///
    /// # Errors
    /// The connection's.
    pub async fn apply(&self) -> Answer {
        (self.apply)(self.service, self.operation.clone(), self.parts.clone(), SdkBody::from(self.body.clone())).await
    }

    /// Applies a request of DynamoDB's protocol beside this one, as from nowhere.
    ///
    /// # Errors
    /// The connection's.
    pub async fn ask_dynamodb(&self, operation: &str, body: String) -> Answer {
        (self.apply)(Service::Dynamodb, operation.to_owned(), self.parts.clone(), SdkBody::from(body)).await
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
        f.debug_struct("Call")
            .field("service", &self.service)
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}
