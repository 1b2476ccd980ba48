//! The settings of the SDK, all set explicitly: HTTP client, region, credentials, timeouts, retries.

use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use aws_smithy_http_client::{Builder as HttpBuilder, tls};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction, SharedRetryClassifier};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use super::error::{CloudError, Kind};
use super::renewal::Renewal;

/// The attempts of one call, including the first. With the SDK's jittered exponential back-off from 250 ms to 2 s, five
/// attempts take up to 3.75 s: longer than a throttle, much shorter than a lease. For longer outages, callers repeat
/// the call, so that no back-off continues after an outage.
const CALL_ATTEMPTS_MAX: u32 = 5;
/// The first pause between attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// The maximum pause between attempts.
const BACKOFF_LAST: Duration = Duration::from_secs(2);
/// The time limit of connecting: some milliseconds in one region; three SYN retransmissions take 3.1 s.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3_100);
/// The attempts of one call to IMDS: with the SDK's jittered back-off from 1 s, they cover failures of up to 15 s.
const IMDS_ATTEMPTS_MAX: u32 = 5;
/// The time limit of one attempt of a call without a large body. DynamoDB and EC2 answer in well under a second, a slow
/// S3 in a few seconds. It is not the connector's read timeout, because connections are cached by that; calls with
/// other limits (a body to send) share the connections this way.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// The wall clock, for the SDK.
#[derive(Debug)]
struct WallClock;

impl TimeSource for WallClock {
    fn now(&self) -> std::time::SystemTime {
        lighthpc_runtime::true_now()
    }
}

/// The transport of calls, and their credentials.
#[derive(Clone, Debug)]
pub struct Wire {
    pub(crate) config: SdkConfig,
    /// The cache of credentials. Each client must use it as a classifier, too.
    pub(crate) renewal: Renewal,
    pub(crate) imds: imds::Client,
    /// Whether S3 URLs have the bucket in the path: an emulator at an IP address has no host name per bucket.
    pub(crate) path_style: bool,
    /// Whether IMDS has its own link-local address, and is not a replacement.
    pub(crate) imds_is_real: bool,
    region: String,
}

impl Wire {
    /// Creates the wire to AWS from the usual `AWS_*` variables, profiles, and the instance's role.
    ///
    /// # Errors
    /// [`Kind::WrongRegion`] if no region is set.
    pub async fn aws() -> Result<Self, CloudError> {
        let http = SharedHttpClient::new(ByScheme::new());
        let provider = ProviderConfig::without_region().with_http_client(http.clone());
        let imds = imds_client(&provider).build();
        let region = RegionProviderChain::first_try(region_of_environment())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(ImdsRegionProvider::builder().configure(&provider).imds_client(imds.clone()).build())
            .region()
            .await
            .ok_or_else(|| {
                CloudError::new(
                    Kind::WrongRegion,
                    "finding the region",
                    "this machine",
                    "AWS_REGION is not set, no profile has a region, and IMDS does not report one",
                )
            })?;
        let credentials = DefaultCredentialsChain::builder()
            .region(region.clone())
            .imds_client(imds.clone())
            .configure(provider)
            .build()
            .await;
        let renewal = Renewal::new();
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(region.clone())
            .credentials_provider(credentials)
            .identity_cache(renewal.clone())
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(CALL_ATTEMPTS_MAX)
                    .with_initial_backoff(BACKOFF_FIRST)
                    .with_max_backoff(BACKOFF_LAST),
            )
            .timeout_config(timeouts(CALL_TIMEOUT))
            .load()
            .await;
        let region = region.to_string();
        let endpoint_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let path_style =
            config.endpoint_url().is_some() || endpoint_set("AWS_ENDPOINT_URL") || endpoint_set("AWS_ENDPOINT_URL_S3");
        let imds_is_real = !endpoint_set("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        Ok(Self { config, renewal, imds, path_style, imds_is_real, region })
    }

    /// Creates a wire with the given HTTP client, region and credentials.
    ///
    /// The environment and profiles are not read, so no other endpoint or credentials can apply.
    #[must_use]
    pub fn plugged(http: SharedHttpClient, region: &str, access_key: &str, secret_key: &str) -> Self {
        Self::plugged_as(http, region, Credentials::new(access_key, secret_key, None, None, "plugged"))
    }

    /// Creates a wire with the given HTTP client and region, and a provider of credentials.
    #[must_use]
    pub fn plugged_as(http: SharedHttpClient, region: &str, provider: impl ProvideCredentials + 'static) -> Self {
        let renewal = Renewal::new();
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http.clone())
            .region(Region::new(region.to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(provider))
            .identity_cache(renewal.clone())
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SharedTimeSource::new(WallClock))
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(CALL_ATTEMPTS_MAX)
                    .with_initial_backoff(Duration::from_millis(20)),
            )
            .timeout_config(timeouts(CALL_TIMEOUT))
            .build();
        let imds = imds_client(&ProviderConfig::without_region().with_http_client(http))
            .endpoint("http://169.254.169.254")
            .expect("a constant endpoint is valid")
            .build();
        Self { config, renewal, imds, path_style: true, imds_is_real: false, region: region.to_owned() }
    }

    /// Returns the SDK's settings, for the client of another service.
    #[must_use]
    pub const fn sdk_config(&self) -> &SdkConfig {
        &self.config
    }

    /// Finds the credentials of calls. Returns the id of the key, never the secret, and the expiration.
    ///
    /// # Errors
    /// [`Kind::NoCredentials`].
    pub async fn credentials(&self) -> Result<(String, Option<std::time::SystemTime>), CloudError> {
        let missing = |said: String| CloudError::new(Kind::NoCredentials, "finding credentials", "this machine", said);
        let provider = self.config.credentials_provider().ok_or_else(|| missing("no provider is set".to_owned()))?;
        let found = provider.provide_credentials().await;
        let found = found.map_err(|error| missing(super::error_chain(&error)))?;
        Ok((found.access_key_id().to_owned(), found.expiry()))
    }

    /// Returns the region of all calls.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }
}

/// Returns the region in the environment. An empty variable counts as not set.
fn region_of_environment() -> Option<Region> {
    let named = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().filter_map(|name| std::env::var(name).ok());
    named.map(|name| name.trim().to_owned()).find(|name| !name.is_empty()).map(Region::new)
}

fn imds_client(provider: &ProviderConfig) -> imds::client::Builder {
    imds::Client::builder()
        .configure(provider)
        .max_attempts(IMDS_ATTEMPTS_MAX)
        .retry_classifier(SharedRetryClassifier::new(ImdsIllness))
}

/// Classifies answers of IMDS as transient: 429 (many processes at once), 5xx, and 401 (the token expired). The SDK's
/// own classifier omits 429. A missing answer is not retried: off EC2 there is none.
#[derive(Debug)]
struct ImdsIllness;

impl ClassifyRetry for ImdsIllness {
    fn name(&self) -> &'static str {
        "ImdsIllness"
    }

    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(401 | 429 | 500..=599) => RetryAction::server_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }
}

/// Returns the timeouts of a call: for connecting, and for each attempt.
pub(super) fn timeouts(attempt: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(attempt).build()
}

/// The SDK's HTTP clients, one per scheme. Each is created on its first use: reading the system's root certificates
/// costs more CPU than the rest of a node's start, and IMDS does not use TLS.
///
/// TLS is rustls with ring: the SDK's default, aws-lc, takes four minutes longer to build.
#[derive(Debug)]
struct ByScheme {
    plain: SharedHttpClient,
    tls: SharedHttpClient,
}

impl ByScheme {
    fn new() -> Self {
        let ring = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring);
        Self { plain: HttpBuilder::new().build_http(), tls: HttpBuilder::new().tls_provider(ring).build_https() }
    }
}

impl HttpClient for ByScheme {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(ConnectorByScheme {
            plain: self.plain.clone(),
            tls: self.tls.clone(),
            settings: settings.clone(),
            components: components.clone(),
        })
    }
}

#[derive(Debug)]
struct ConnectorByScheme {
    plain: SharedHttpClient,
    tls: SharedHttpClient,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for ConnectorByScheme {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = if request.uri().starts_with("http://") { &self.plain } else { &self.tls };
        // The client caches its connectors, and their connections, by these settings.
        client.http_connector(&self.settings, &self.components).call(request)
    }
}
