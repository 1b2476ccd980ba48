//! Answers and errors of faults.

use std::io;

use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;

use super::services::Service;
use super::{dynamo, ec2, imds, s3, sns};

/// Builds the answer of a service that refuses a request.
pub(super) fn error_reply(service: Service, status: u16, code: &str) -> http::Response<SdkBody> {
    let message = "an injected fault";
    match service {
        Service::Dynamodb => dynamo::error_reply(status, code, message),
        Service::S3 => s3::error_reply(status, code, message),
        Service::Sns => sns::error_reply(status, code, message),
        Service::Ec2 => ec2::error_reply(status, code, message),
        Service::Imds => imds::text_reply(status, message),
    }
}

/// Builds the SDK's own error for a broken connection: it is retried, and the outcome is unknown.
pub(super) fn reset(text: &'static str) -> ConnectorError {
    ConnectorError::io(io::Error::new(io::ErrorKind::ConnectionReset, text).into())
}
