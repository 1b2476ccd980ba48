//! How a fault acts on a call: the connection breaks, or an answer is lost, repeated, or replaced.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame};

use super::connector::{CallResult, Connector, Request, collect};
use super::faults::Fault;
use super::lock::locked;
use super::query;
use super::replies::{error_reply, reset};
use super::services::Service;

impl Connector {
    /// Returns why a call of this instance is denied. The bodies of DynamoDB's calls are in memory here.
    pub(super) fn denial(&self, service: Service, operation: &str, body: &SdkBody) -> Option<String> {
        let denied = locked(&self.services.denied).clone()?;
        let is_asked = service == Service::Dynamodb && self.instance.is_some();
        is_asked.then(|| denied.denial(operation, body.bytes().unwrap_or_default())).flatten()
    }

    pub(super) async fn apply_with_faults(&self, service: Service, operation: &str, request: Request) -> CallResult {
        let mut plan = self.faults.record(service, operation);
        plan.before().await;
        let outcome = match plan.fault.take() {
            Some(Fault::FailBefore) => Err(reset("the connection broke before the request was sent (a fault)")),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Status(status, code)) => Ok(error_reply(service, status, code)),
            Some(Fault::Raw(status, body)) => Ok(query::reply(status, content_type(service), body)),
            Some(Fault::Repeat) => self.apply_twice(service, operation, request).await,
            Some(Fault::CutBody(left)) => self
                .apply(service, operation, request)
                .await
                .map(|answer| answer.map(|body| SdkBody::from_body_1_x(CutBody::new(body, left)))),
            Some(Fault::FailAfter) => {
                self.apply(service, operation, request).await?;
                Err(reset("the connection broke before the answer came (a fault)"))
            }
            Some(Fault::StatusAfter(status, code)) => {
                self.apply(service, operation, request).await?;
                Ok(error_reply(service, status, code))
            }
            Some(Fault::Delay(_)) | None => self.apply(service, operation, request).await,
        };
        plan.after().await;
        outcome
    }

    async fn apply_twice(&self, service: Service, operation: &str, (parts, body): Request) -> CallResult {
        let body = collect(body).await?;
        self.apply(service, operation, (parts.clone(), body.clone().into())).await?;
        self.apply(service, operation, (parts, body.into())).await
    }
}

fn content_type(service: Service) -> &'static str {
    match service {
        Service::Dynamodb => "application/x-amz-json-1.0",
        Service::S3 => "application/xml",
        Service::Sns | Service::Ec2 => "text/xml",
        Service::Imds => "text/plain",
    }
}

/// A body whose connection breaks after `left` bytes.
struct CutBody {
    body: SdkBody,
    left: u64,
}

impl CutBody {
    fn new(body: SdkBody, left: u64) -> Self {
        Self { body, left }
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

impl Body for CutBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if this.left > 0 {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(mut data) => {
                        data.truncate(usize::try_from(this.left).unwrap_or(usize::MAX));
                        this.left -= data.len() as u64;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        let error = io::Error::new(io::ErrorKind::ConnectionReset, "a fault cut the body short");
        Poll::Ready(Some(Err(error.into())))
    }
}
