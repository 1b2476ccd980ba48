//! The HTTP client of the AWS SDK's clients, from which no request leaves the process.
//!
//! The host of a request selects the service. Any other host is refused, so a local run can reach neither an account
//! nor anything else. Faults act here, around the service.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::BodyExt as _;

#[cfg(any(test, feature = "testing"))]
use super::faults::Faults;
use super::query::Form;
use super::services::{Service, Services};
use super::{dynamo, ec2, imds, s3};

pub(super) type CallResult = Result<http::Response<SdkBody>, ConnectorError>;

/// The HTTP client of one machine.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) services: Arc<Services>,
    /// The calling instance, for IMDS; `None`: a machine off EC2.
    pub(super) instance: Option<Arc<str>>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) faults: Faults,
    #[cfg(any(test, feature = "testing"))]
    pub(super) network: Option<Arc<dyn super::network::Network>>,
    /// From the start of a request to the head of its answer, as in the SDK's own client.
    read_timeout: Option<Duration>,
}

impl Connector {
    pub(super) fn new(services: Arc<Services>, instance: Option<&str>) -> Self {
        Self {
            services,
            instance: instance.map(Arc::from),
            #[cfg(any(test, feature = "testing"))]
            faults: Faults::new(),
            #[cfg(any(test, feature = "testing"))]
            network: None,
            read_timeout: None,
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn with_faults(services: Arc<Services>, instance: Option<&str>, faults: Faults) -> Self {
        Self { faults, ..Self::new(services, instance) }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn via(
        services: Arc<Services>,
        instance: Option<&str>,
        network: Arc<dyn super::network::Network>,
    ) -> Self {
        Self { network: Some(network), ..Self::new(services, instance) }
    }

    async fn answer(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let request = request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
        let service = route(request.uri())?;
        let (parts, body) = request.into_parts();
        // The operation's name can be in the body of a small call; the bytes of an object stay a stream.
        let body = if service == Service::S3 { body } else { SdkBody::from(collect(body).await?) };
        let operation = operation(service, &parts, &body);
        #[cfg(any(test, feature = "testing"))]
        let answer = if let Some(network) = &self.network {
            let body = collect(body).await?;
            let instance = self.instance.as_deref().map(str::to_owned);
            let connector = self.clone();
            let apply = Arc::new(move |service, operation: String, parts, body| {
                let connector = connector.clone();
                let answer = async move { connector.apply(service, &operation, (parts, body)).await };
                Box::pin(answer) as super::network::AnswerFuture
            });
            network.carry(super::network::Call { service, operation, instance, parts, body, apply }).await?
        } else {
            self.apply_with_faults(service, &operation, (parts, body)).await?
        };
        #[cfg(not(any(test, feature = "testing")))]
        let answer = self.apply(service, &operation, (parts, body)).await?;
        answer
            .try_into()
            .map_err(|error: aws_smithy_runtime_api::http::HttpError| ConnectorError::other(error.into(), None))
    }

    pub(super) async fn apply(&self, service: Service, operation: &str, (parts, body): Request) -> CallResult {
        let services = &self.services;
        #[cfg(any(test, feature = "testing"))]
        if let Some(reason) = self.denial(service, operation, &body) {
            return Ok(dynamo::error_reply(400, "AccessDeniedException", &reason));
        }
        Ok(match service {
            Service::S3 => services.s3.answer(http::Request::from_parts(parts, body)).await,
            Service::Dynamodb => services.dynamo.answer(operation.to_owned(), collect(body).await?).await,
            Service::Imds => imds::answer(&services.fleet, self.instance.as_deref(), &parts),
            Service::Ec2 => ec2::answer(&services.fleet, &Form::parse(&collect(body).await?)),
            Service::Sns => services.sns.answer(&Form::parse(&collect(body).await?)),
        })
    }
}

pub(super) type Request = (http::request::Parts, SdkBody);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl HttpClient for Connector {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(Self { read_timeout: settings.read_timeout(), ..self.clone() })
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = self.clone();
        HttpConnectorFuture::new(async move {
            match connector.read_timeout {
                None => connector.answer(request).await,
                Some(limit) => match tokio::time::timeout(limit, connector.answer(request)).await {
                    Ok(outcome) => outcome,
                    Err(elapsed) => Err(ConnectorError::timeout(elapsed.into())),
                },
            }
        })
    }
}

/// The error for a host that is not a service's.
#[derive(Debug, thiserror::Error)]
#[error("the local cloud refuses host {host}: a dry run never leaves this machine")]
struct HostRefused {
    host: String,
}

fn route(uri: &http::Uri) -> Result<Service, ConnectorError> {
    let host = uri.host().unwrap_or_default();
    if matches!(host, "169.254.169.254" | "[fd00:ec2::254]") {
        return Ok(Service::Imds);
    }
    let labels: Vec<&str> = host.strip_suffix(".amazonaws.com").unwrap_or_default().split('.').collect();
    match labels[..] {
        ["dynamodb", _] | [_, "ddb", _] => Ok(Service::Dynamodb),
        ["sns", _] => Ok(Service::Sns),
        ["ec2", _] => Ok(Service::Ec2),
        ["s3", _] => Ok(Service::S3),
        // The name of a bucket can contain dots.
        [.., bucket, "s3", _] if !bucket.is_empty() => Ok(Service::S3),
        _ => Err(ConnectorError::user(HostRefused { host: host.to_owned() }.into())),
    }
}

fn operation(service: Service, parts: &http::request::Parts, body: &SdkBody) -> String {
    match service {
        Service::Dynamodb => dynamo::operation(&parts.headers),
        Service::S3 => s3::operation(parts).to_owned(),
        Service::Imds => parts.uri.path().to_owned(),
        Service::Ec2 | Service::Sns => Form::parse(body.bytes().unwrap_or_default()).action().to_owned(),
    }
}

pub(super) async fn collect(body: SdkBody) -> Result<Bytes, ConnectorError> {
    let collected = body.collect().await.map_err(ConnectorError::io)?;
    Ok(collected.to_bytes())
}
