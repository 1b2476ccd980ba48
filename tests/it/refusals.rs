//! Whose fault is it? What is wrong with one task fails it once; with the machine, hands it back; with the deployment,
//! is found before the first workload.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use lighthpc::backend::machine::PowerOff;
use lighthpc::backend::{Backend, Scope, Tables, Wire};
use lighthpc::command::exit::{self, ExitCode};
use lighthpc::domain::task::State;
use lighthpc::domain::verdict::Verdict;
use lighthpc::worker::{NodeError, Outcome};
use local_cloud::Service::{Dynamodb, S3};
use local_cloud::{ACCESS_KEY, Fault, Faults, REGION, SECRET_KEY, When};

use crate::test_cloud::{TestCloud, TestNode};

fn server(cloud: &TestCloud, mission: &str, slots: u16, faults: Faults) -> TestNode {
    let instance = cloud.local.launch(&[("missionID", mission), ("lighthpc", "tblTrans2")]);
    let mut node = cloud.node_on(instance, faults);
    node.settings.slots = Some(slots);
    node
}

async fn states(cloud: &TestCloud, tasks: &[&str]) -> Vec<State> {
    let mut states = Vec::new();
    for task in tasks {
        states.push(cloud.task(task).await.state);
    }
    states
}

/// An object that cannot be read fails its task once, by the first node that meets it, and says what to do.
#[tokio::test]
async fn one_unreadable_input_fails_its_task_once() {
    for (code, exit, hint) in [
        ((403, "InvalidObjectState"), ExitCode::InputUnreadable, "restore-object"),
        ((400, "KMS.DisabledException"), ExitCode::InputUnreadable, "KMS"),
        ((400, "KMS.KMSInvalidStateException"), ExitCode::InputUnreadable, "KMS"),
        ((400, "KMS.NotFoundException"), ExitCode::InputUnreadable, "KMS"),
        ((403, "AccessDenied"), ExitCode::AccessDenied, "s3:GetObject"),
        ((400, "InvalidRequest"), ExitCode::Internal, ""),
    ] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        faults.add(S3, "GetObject", When::Always, Fault::Status(code.0, code.1));
        let context = format!("{code:?}");

        let life = cloud.node_with("abc", "M", faults.clone()).run().await;

        let (found, advice) = exit::of_node(life.outcome.as_ref().unwrap_err());
        assert_eq!(found, exit, "{context}: {life:?}");
        assert!(advice.unwrap().contains(hint), "{context}");
        let row = cloud.task("abc").await;
        assert_eq!((row.state, row.verdict, row.attempt.0), (State::Failed, Some(Verdict::Infra), 1), "{context}");
        assert_eq!(cloud.tally("M").await.failed, 1, "{context}");
    }
}

#[tokio::test]
async fn a_node_goes_on_after_an_unreadable_input() {
    for fault in [
        Fault::Status(403, "InvalidObjectState"),
        Fault::Status(400, "KMS.DisabledException"),
        Fault::Status(403, "AccessDenied"),
        Fault::Status(400, "SomethingNew"),
    ] {
        let cloud = TestCloud::new().await;
        let tasks = ["a", "b", "c", "d", "e", "f"];
        cloud.mission("M", &tasks).await;
        let faults = Faults::new();
        // The second to the fifth object: some are read before.
        faults.add(S3, "GetObject", When::Nth(2), fault.clone());
        faults.add(S3, "GetObject", When::Nth(3), fault.clone());
        faults.add(S3, "GetObject", When::Nth(4), fault.clone());
        faults.add(S3, "GetObject", When::Nth(5), fault.clone());

        let life = server(&cloud, "M", 1, faults).run().await;

        assert!(matches!(life.outcome, Ok(Outcome::Served { done: 2, other: 4 })), "{fault:?}: {life:?}");
        let tally = cloud.tally("M").await;
        assert_eq!((tally.ok, tally.failed), (2, 4), "{fault:?}");
    }
}

/// If no input of a node can be read, it is not the objects' fault: the third task and all others are left for after
/// the repair.
#[tokio::test]
async fn when_every_input_is_refused_the_node_ends_and_keeps_the_rest() {
    let cloud = TestCloud::new().await;
    let tasks = ["a", "b", "c", "d", "e", "f", "g"];
    cloud.mission("M", &tasks).await;
    let faults = Faults::new();
    faults.add(S3, "HeadObject", When::Always, Fault::Raw(403, String::new()));
    faults.add(S3, "GetObject", When::Always, Fault::Status(403, "AccessDenied"));

    let life = server(&cloud, "M", 1, faults).run().await;

    let error = life.outcome.unwrap_err();
    assert!(matches!(error, NodeError::InputsRefused { .. }), "{error:?}");
    assert_eq!(exit::of_node(&error).0, ExitCode::AccessDenied);
    let states = states(&cloud, &tasks).await;
    assert_eq!(states.iter().filter(|state| **state == State::Failed).count(), 2);
    assert_eq!(states.iter().filter(|state| **state == State::Pending).count(), 5);
}

/// A bucket that answers for other keys may be read: its refusals are of the objects, however many.
#[tokio::test]
async fn forbidden_objects_of_a_readable_bucket_are_their_own_fault() {
    let cloud = TestCloud::new().await;
    let tasks = ["a", "b", "c", "d", "e"];
    cloud.mission("M", &tasks).await;
    let faults = Faults::new();
    faults.add(S3, "GetObject", When::Always, Fault::Status(403, "AccessDenied"));

    let life = server(&cloud, "M", 1, faults).run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 0, other: 5 })), "{life:?}");
    assert_eq!(cloud.tally("M").await.failed, 5);
}

/// The right to write is tried once per node, before any claim; no workload is run for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_right_to_write_is_found_before_the_first_claim() {
    for (code, exit) in [
        ("AccessDenied", ExitCode::AccessDenied),
        ("NoSuchBucket", ExitCode::NoBucket),
        ("KMS.DisabledException", ExitCode::AccessDenied),
        ("PermanentRedirect", ExitCode::WrongRegion),
    ] {
        for slots in [1, 4] {
            let cloud = TestCloud::new().await;
            let tasks = ["a", "b", "c", "d", "e"];
            cloud.mission("M", &tasks).await;
            let faults = Faults::new();
            faults.add(S3, "CreateMultipartUpload", When::Always, Fault::Status(403, code));
            let runs = cloud.dir.path().join("runs");
            let line = format!("echo x >> '{}'; echo x > $LIGHTHPC_OUTPUT", runs.display());

            let life = server(&cloud, "M", slots, faults).shell(&line).run().await;

            let error = life.outcome.unwrap_err();
            assert_eq!(exit::of_node(&error).0, exit, "{error:?}");
            assert!(matches!(&error, NodeError::Cloud { source, .. } if source.scope() == Scope::Deployment));
            assert!(!runs.exists(), "a workload was run");
            for task in tasks {
                assert_eq!((cloud.task(task).await.state, cloud.task(task).await.attempt.0), (State::Pending, 0));
            }
        }
    }
}

#[tokio::test]
async fn a_missing_source_bucket_is_found_before_the_first_claim() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let mut node = cloud.node("abc", "M");
    node.settings.source_bucket = Some("no-such-bucket".to_owned());
    let life = node.run().await;
    assert_eq!(exit::of_node(&life.outcome.unwrap_err()).0, ExitCode::NoBucket);
    assert_eq!(cloud.task("abc").await.attempt.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trial_is_made_once_per_node_and_an_outage_is_not_remembered() {
    let cloud = TestCloud::new().await;
    let tasks = ["a", "b", "c", "d", "e"];
    cloud.mission("M", &tasks).await;
    let faults = Faults::new();
    faults.add(S3, "CreateMultipartUpload", When::First(6), Fault::Status(503, "SlowDown"));

    let mut node = server(&cloud, "M", 2, faults.clone());
    node.settings.max_idle = Duration::from_secs(30);
    let life = node.run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 5, other: 0 })), "{life:?}");
    assert_eq!(faults.count(S3, "CreateMultipartUpload"), 7);
    assert_eq!(faults.count(S3, "AbortMultipartUpload"), 1);
}

/// An upload on trial that could not be aborted is aborted before the node ends: after an attempt, and also if the task
/// had ended before.
#[tokio::test]
async fn a_trial_that_is_not_aborted_at_once_is_aborted_later() {
    for (has_ended, failures) in [(false, 5), (false, 10), (true, 5)] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        if has_ended {
            cloud.node("abc", "M").run().await.outcome.unwrap();
        }
        let faults = Faults::new();
        // The SDK tries five times.
        faults.add(S3, "AbortMultipartUpload", When::First(failures), Fault::Status(503, "SlowDown"));
        cloud.node_with("abc", "M", faults.clone()).run().await.outcome.unwrap();
        assert_eq!(faults.count(S3, "AbortMultipartUpload"), failures as usize + 1, "{has_ended}");
    }
}

/// A right that is taken away while the workload runs is the deployment's: the task is kept.
#[tokio::test]
async fn a_right_that_vanishes_hands_the_task_back() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(S3, "PutObject", When::Always, Fault::Status(403, "AccessDenied"));
    let life = cloud.node_with("abc", "M", faults).run().await;
    assert_eq!(exit::of_node(&life.outcome.unwrap_err()).0, ExitCode::AccessDenied);
    let row = cloud.task("abc").await;
    assert_eq!((row.state, row.verdict, row.app_failures), (State::Pending, Some(Verdict::Infra), 1));
}

/// A wrong clock is the machine's fault, with a hint of its own, and no task is held for it.
#[tokio::test]
async fn a_wrong_clock_is_the_machines_fault() {
    for message in
        ["Signature expired: 20260101T000000Z is now earlier than …", "Signature not yet current: 20260101T …"]
    {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let faults = Faults::new();
        let body =
            format!(r#"{{"__type":"com.amazon.coral.service#InvalidSignatureException","message":"{message}"}}"#);
        faults.add(Dynamodb, "UpdateItem", When::Always, Fault::Raw(400, body));

        let life = cloud.node_with("abc", "M", faults).run().await;

        let error = life.outcome.unwrap_err();
        assert!(matches!(&error, NodeError::Cloud { source, .. } if source.scope() == Scope::Machine), "{error:?}");
        let (exit, hint) = exit::of_node(&error);
        assert_eq!(exit, ExitCode::WrongClock);
        assert!(hint.unwrap().contains("chrony"));
        assert_eq!(cloud.task("abc").await.attempt.0, 0);
    }
}

/// A row that a node can do nothing with does not stop it, and is not tried again and again.
#[tokio::test]
async fn a_row_that_refuses_its_claim_does_not_hold_its_node() {
    let cloud = TestCloud::new().await;
    let tasks = ["a", "b", "c"];
    cloud.mission("M", &tasks).await;
    let faults = Faults::new();
    let body = r#"{"__type":"com.amazon.coral.validate#ValidationException","message":"Item size to update has exceeded the maximum allowed size"}"#;
    faults.add(Dynamodb, "UpdateItem", When::Nth(1), Fault::Raw(400, body.to_owned()));

    let life = server(&cloud, "M", 1, faults).run().await;

    assert!(matches!(life.outcome, Ok(Outcome::Served { done: 2, other: 1 })), "{life:?}");
    let pending = states(&cloud, &tasks).await.into_iter().filter(|state| *state == State::Pending).count();
    assert_eq!(pending, 1);
}

/// Hands out expired credentials for a while, as EC2's metadata service may, and says that they are good for long.
#[derive(Clone, Debug)]
struct Stale {
    asked: Arc<AtomicU32>,
    stale: u32,
}

const STALE_KEY: &str = "AKIASTALE00000000000";

impl ProvideCredentials for Stale {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let key = if asked < self.stale { STALE_KEY } else { ACCESS_KEY };
        let end = lighthpc::clock::now() + Duration::from_mins(15);
        future::ProvideCredentials::ready(Ok(Credentials::new(key, SECRET_KEY, None, Some(end), "stale")))
    }
}

/// A wire on which every service refuses the stale credentials in its own words.
#[derive(Clone, Debug)]
struct Refusing(SharedHttpClient);

impl HttpClient for Refusing {
    fn http_connector(&self, settings: &HttpConnectorSettings, parts: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(RefusingConnector(self.0.http_connector(settings, parts)))
    }
}

#[derive(Debug)]
struct RefusingConnector(SharedHttpConnector);

impl HttpConnector for RefusingConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let signed = request.headers().get("authorization").unwrap_or_default();
        if !signed.contains(STALE_KEY) {
            return self.0.call(request);
        }
        let xml = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        let in_response = |code: &str| format!("<Response><Errors>{}</Errors></Response>", xml(code));
        let body = if request.uri().contains("dynamodb") {
            r#"{"__type":"com.amazon.coral.service#ExpiredTokenException","message":"The security token included in the request is expired"}"#.to_owned()
        } else if request.uri().contains("ec2.") {
            in_response("RequestExpired")
        } else if request.uri().contains("sns.") {
            format!("<ErrorResponse>{}</ErrorResponse>", xml("ExpiredToken"))
        } else if request.method() == "HEAD" {
            String::new()
        } else {
            xml("ExpiredToken")
        };
        let answer = http::Response::builder().status(400).body(body.into()).unwrap();
        HttpConnectorFuture::ready(Ok(answer.try_into().unwrap()))
    }
}

fn stale_node(cloud: &TestCloud, stale: u32) -> (TestNode, Arc<AtomicU32>) {
    let mut node = cloud.node("abc", "M");
    let asked = Arc::new(AtomicU32::new(0));
    let http = SharedHttpClient::new(Refusing(cloud.local.http_client(Some(&node.instance))));
    let wire = Wire::plugged_as(http, REGION, Stale { asked: asked.clone(), stale });
    node.backend = Backend::new(&wire, Tables::default(), PowerOff::Never);
    (node, asked)
}

/// The provider is asked again when a service refuses what it gave, though it said that they were good.
#[tokio::test]
async fn refused_credentials_are_requested_again() {
    for stale in [1, 2, 4] {
        let cloud = TestCloud::new().await;
        cloud.mission("M", &["abc"]).await;
        let (mut node, asked) = stale_node(&cloud, stale);
        node.settings.max_idle = Duration::from_secs(30);

        node.run().await.outcome.unwrap();

        cloud.assert_done("abc", "M", &format!("after {stale} stale credentials")).await;
        // Each client keeps credentials of its own: a few calls more than the stale ones, not one for each request.
        let asked = asked.load(Ordering::SeqCst);
        assert!(asked > stale && asked <= stale + 8, "{asked} for {stale}");
        assert!(cloud.local.instances().iter().all(|instance| instance.state == "terminated"));
    }
}

/// If they stay stale, the node ends in bounded time, and does not flood the provider.
#[tokio::test]
async fn credentials_that_stay_stale_end_the_node_in_time() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let (node, asked) = stale_node(&cloud, u32::MAX);

    let life = node.run().await;

    let error = life.outcome.unwrap_err();
    assert_eq!(exit::of_node(&error).0, ExitCode::NoCredentials, "{error:?}");
    assert!(asked.load(Ordering::SeqCst) < 60, "{asked:?}");
    assert_eq!(cloud.task("abc").await.attempt.0, 0);
}
