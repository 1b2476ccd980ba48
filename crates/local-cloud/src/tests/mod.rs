//! The local cloud as seen by the SDK's clients.

mod dynamo;
mod faults;
mod instances;
mod metadata;
mod multipart;
mod objects;
mod opening;
mod sqlite;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::RequestId as _;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use tempfile::TempDir;

use super::*;

/// A cloud with tables in memory and objects in a temporary folder.
struct TestCloud {
    cloud: LocalCloud,
    temp_dir: TempDir,
}

impl TestCloud {
    fn new() -> Self {
        let temp_dir = TempDir::new().unwrap();
        let cloud = LocalCloud::in_memory(&temp_dir.path().join("cloud")).unwrap();
        Self { cloud, temp_dir }
    }

    fn s3(&self) -> aws_sdk_s3::Client {
        s3(self.cloud.http_client(None))
    }

    async fn put(&self, key: &str, body: &[u8]) -> String {
        put(&self.s3(), key, body).await
    }

    async fn get(&self, key: &str) -> Vec<u8> {
        get(&self.s3(), key).await.unwrap()
    }
}

impl std::ops::Deref for TestCloud {
    type Target = LocalCloud;

    fn deref(&self) -> &LocalCloud {
        &self.cloud
    }
}

fn config(client: SharedHttpClient) -> SdkConfig {
    let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "local");
    SdkConfig::builder()
        .http_client(client)
        .region(Region::new(REGION))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .behavior_version(BehaviorVersion::latest())
        // Each failure reaches the test.
        .retry_config(RetryConfig::disabled())
        .build()
}

fn s3(client: SharedHttpClient) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(&config(client)).force_path_style(true).build();
    aws_sdk_s3::Client::from_conf(config)
}

async fn put(s3: &aws_sdk_s3::Client, key: &str, body: &[u8]) -> String {
    let body = ByteStream::from(body.to_vec());
    let put = s3.put_object().bucket(SOURCE_BUCKET).key(key).body(body).send().await.unwrap();
    put.e_tag.unwrap()
}

async fn get(s3: &aws_sdk_s3::Client, key: &str) -> Result<Vec<u8>, String> {
    let answer = s3.get_object().bucket(SOURCE_BUCKET).key(key).send().await.map_err(|error| code(&error))?;
    let body = answer.body.collect().await.map_err(|error| format!("body: {error}"))?;
    Ok(body.to_vec())
}

/// Returns the error's code, or its status or kind if it has none.
fn code<E: ProvideErrorMetadata + std::error::Error>(error: &SdkError<E, HttpResponse>) -> String {
    match error {
        SdkError::ServiceError(service) => {
            service.err().code().map_or_else(|| service.raw().status().as_u16().to_string(), str::to_owned)
        }
        SdkError::DispatchFailure(failure) => format!("dispatch: {:?}", failure.as_connector_error().unwrap()),
        SdkError::TimeoutError(_) => "timeout".to_owned(),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn a_foreign_host_is_refused() {
    let cloud = TestCloud::new();
    let config = config(cloud.http_client(None));
    for endpoint in ["https://example.com", "http://localhost:4566", "https://sts.us-east-1.amazonaws.com"] {
        let config = aws_sdk_dynamodb::config::Builder::from(&config).endpoint_url(endpoint).build();

        let error = aws_sdk_dynamodb::Client::from_conf(config).list_tables().send().await.unwrap_err();

        let host = endpoint.split("//").nth(1).unwrap().split(':').next().unwrap();
        let text = format!("{error:?}");
        assert!(text.contains(host) && error.as_service_error().is_none(), "{text}");
        let text = format!("{}", aws_sdk_s3::error::DisplayErrorContext(&error));
        assert!(text.contains(&format!("refuses host {host}: a dry run never leaves this machine")), "{text}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let cloud = TestCloud::new();
    let wrong = Credentials::new(ACCESS_KEY, "something else", None, None, "test");
    let config = aws_sdk_s3::config::Builder::from(&config(cloud.http_client(None)))
        .credentials_provider(wrong)
        .force_path_style(true)
        .build();

    let error = aws_sdk_s3::Client::from_conf(config).list_objects_v2().bucket(SOURCE_BUCKET).send().await.unwrap_err();

    assert_eq!(code(&error), "SignatureDoesNotMatch");
    assert_eq!(error.request_id(), None);
}
