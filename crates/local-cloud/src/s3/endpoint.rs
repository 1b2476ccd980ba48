//! The HTTP endpoint of S3: passes the SDK's requests to `s3s`, and names their operations.

use aws_smithy_types::body::SdkBody;
use http::{HeaderValue, Method, StatusCode, header};
use s3s::auth::SimpleAuth;
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Result, s3_error};

use super::super::names::{ACCESS_KEY, SECRET_KEY};
use super::super::query::{Xml, fresh_id, reply};
use super::local::S3Local;

/// Builds the service, which checks requests for the local credentials.
fn service(local: S3Local) -> S3Service {
    let mut builder = S3ServiceBuilder::new(local);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    builder.set_host(HostNames);
    builder.build()
}

/// S3's own host names, with the bucket in the path or in the host.
struct HostNames;

impl S3Host for HostNames {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        if host.starts_with("s3.") {
            return Ok(VirtualHost::new(host));
        }
        match host.split_once(".s3.") {
            Some((bucket, domain)) => Ok(VirtualHost::new(domain).with_bucket(bucket)),
            None => Err(s3_error!(InvalidRequest, "not a host of S3: {host}")),
        }
    }
}

/// The HTTP endpoint of S3.
#[derive(Clone)]
pub(crate) struct Endpoint {
    service: S3Service,
}

impl S3Local {
    /// Returns the HTTP endpoint.
    pub(crate) fn endpoint(self) -> Endpoint {
        Endpoint { service: service(self) }
    }
}

impl Endpoint {
    /// Answers one call.
    pub(crate) async fn answer(&self, mut request: http::Request<SdkBody>) -> http::Response<SdkBody> {
        let is_head = request.method() == Method::HEAD;
        // The SDK signs this header, but leaves it to its HTTP client to set it.
        if !request.headers().contains_key(header::HOST)
            && let Some(host) = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        let outcome = self.service.call(request.map(s3s::Body::http_body)).await;
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                let error: s3s::StdError = error.into();
                return error_reply(500, "InternalError", &error.to_string());
            }
        };
        // Over HTTP these have no body, and the SDK expects none.
        if is_head || answer.status() == StatusCode::NOT_MODIFIED {
            return answer.map(|_| SdkBody::empty());
        }
        answer.map(SdkBody::from_body_1_x)
    }
}

/// Builds an error answer from which the SDK reads the code.
pub(crate) fn error_reply(status: u16, code: &str, message: &str) -> http::Response<SdkBody> {
    let mut xml = Xml::default();
    xml.field("Code", code).field("Message", message).field("RequestId", fresh_id());
    reply(status, "application/xml", xml.root("Error", ""))
}

/// Returns the name of a request's operation.
pub(crate) fn operation(request: &http::request::Parts) -> &'static str {
    let query = request.uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let host = request.uri.host().unwrap_or_default();
    let path = request.uri.path().trim_start_matches('/');
    let has_key = if host.starts_with("s3.") {
        path.split_once('/').is_some_and(|(_, key)| !key.is_empty())
    } else {
        !path.is_empty()
    };
    match (request.method.as_str(), has_key) {
        ("GET", true) => "GetObject",
        ("HEAD", true) => "HeadObject",
        ("PUT", true) if has("uploadId") => "UploadPart",
        ("PUT", true) if request.headers.contains_key("x-amz-copy-source") => "CopyObject",
        ("PUT", true) => "PutObject",
        ("POST", true) if has("uploads") => "CreateMultipartUpload",
        ("POST", true) => "CompleteMultipartUpload",
        ("DELETE", true) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", true) => "DeleteObject",
        ("GET", false) if has("list-type") => "ListObjectsV2",
        ("HEAD", false) => "HeadBucket",
        ("POST", false) if has("delete") => "DeleteObjects",
        _ => "Unknown",
    }
}
