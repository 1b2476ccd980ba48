//! Faults: the SDK's error for each, and whether the call was applied.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::types::AttributeValue;

use super::*;

async fn table() -> (TestCloud, Faults, Client) {
    let cloud = TestCloud::new();
    let faults = Faults::new();
    let client = Client::new(&config(cloud.faulty_http_client(None, faults.clone())));
    dynamo::make_table(&client).await;
    (cloud, faults, client)
}

/// Adds one to the row.
async fn add(client: &Client) -> Result<(), String> {
    let update = client
        .update_item()
        .table_name("tasks")
        .key("k", AttributeValue::S("k".into()))
        .update_expression("ADD n :one")
        .expression_attribute_values(":one", AttributeValue::N("1".into()));
    update.send().await.map(drop).map_err(|error| code(&error))
}

async fn count(client: &Client) -> i32 {
    let get = client.get_item().table_name("tasks").key("k", AttributeValue::S("k".into()));
    let item = get.send().await.unwrap().item.unwrap_or_default();
    item.get("n").map_or(0, |n| n.as_n().unwrap().parse().unwrap())
}

#[tokio::test]
async fn each_fault_is_applied_or_not_as_documented() {
    let cases = [
        (Fault::FailBefore, 0, "dispatch: ConnectorError { kind: Io"),
        (Fault::FailAfter, 1, "dispatch: ConnectorError { kind: Io"),
        (Fault::Status(400, "ThrottlingException"), 0, "ThrottlingException"),
        (Fault::Status(400, "ProvisionedThroughputExceededException"), 0, "ProvisionedThroughputExceededException"),
        (Fault::StatusAfter(500, "InternalServerError"), 1, "InternalServerError"),
        // For an answer that it cannot parse, the SDK returns a service error without a code.
        (Fault::Raw(200, "{\"Attributes\": tru".into()), 0, "200"),
        (Fault::Repeat, 2, "ok"),
        (Fault::Delay(Duration::from_millis(1)), 1, "ok"),
    ];
    for (fault, applied, expected) in cases {
        let (_cloud, faults, client) = table().await;
        faults.add(Service::Dynamodb, "UpdateItem", When::Nth(1), fault.clone());

        let outcome = add(&client).await.map_or_else(|code| code, |()| "ok".to_owned());

        assert!(outcome.starts_with(expected), "{fault:?}: {outcome}");
        assert_eq!(count(&client).await, applied, "{fault:?}");
        add(&client).await.unwrap();
        assert_eq!(count(&client).await, applied + 1);
        assert_eq!(faults.count(Service::Dynamodb, "UpdateItem"), 2);
    }
}

#[tokio::test]
async fn the_sdk_retries_what_it_should() {
    for (fault, applied) in [
        (Fault::FailBefore, 1),
        (Fault::FailAfter, 3),
        (Fault::Status(400, "ThrottlingException"), 1),
        (Fault::StatusAfter(500, "InternalServerError"), 3),
    ] {
        let cloud = TestCloud::new();
        let faults = Faults::new();
        let retry = RetryConfig::standard().with_initial_backoff(Duration::from_millis(1));
        let config = config(cloud.faulty_http_client(None, faults.clone())).to_builder().retry_config(retry).build();
        let client = Client::new(&config);
        dynamo::make_table(&client).await;
        faults.add(Service::Dynamodb, "UpdateItem", When::First(2), fault.clone());

        add(&client).await.unwrap();

        assert_eq!(count(&client).await, applied, "{fault:?}");
        assert_eq!(faults.count(Service::Dynamodb, "UpdateItem"), 3);
    }
}

#[tokio::test]
async fn a_call_that_hangs_is_timed_out() {
    let cloud = TestCloud::new();
    let faults = Faults::new();
    for timeout in [
        TimeoutConfig::builder().read_timeout(Duration::from_millis(200)).build(),
        TimeoutConfig::builder().operation_attempt_timeout(Duration::from_millis(200)).build(),
    ] {
        let client = cloud.faulty_http_client(None, faults.clone());
        let config = config(client).to_builder().timeout_config(timeout).build();
        faults.add(Service::Dynamodb, "ListTables", When::Always, Fault::Hang);

        let error = Client::new(&config).list_tables().send().await.unwrap_err();

        assert!(code(&error) == "timeout" || code(&error).contains("Timeout"), "{error:?}");
    }
}

#[tokio::test]
async fn operations_have_their_names() {
    let cloud = TestCloud::new();
    let faults = Faults::new();
    let id = cloud.launch(&[]);
    let client = cloud.faulty_http_client(Some(&id), faults.clone());
    let (config, s3) = (config(client.clone()), s3(client.clone()));
    let seen = |service, operation: &str| assert_eq!(faults.count(service, operation), 1, "{operation}");

    put(&s3, "a/b c", b"x").await;
    get(&s3, "a/b c").await.unwrap();
    s3.head_object().bucket(SOURCE_BUCKET).key("k").send().await.unwrap_err();
    let upload = s3.create_multipart_upload().bucket(SOURCE_BUCKET).key("k").send().await.unwrap().upload_id.unwrap();
    let one = || s3.upload_part().bucket(SOURCE_BUCKET).key("k").upload_id(&upload).part_number(1);
    one().send().await.unwrap();
    s3.complete_multipart_upload().bucket(SOURCE_BUCKET).key("k").upload_id(&upload).send().await.unwrap_err();
    s3.abort_multipart_upload().bucket(SOURCE_BUCKET).key("k").upload_id(&upload).send().await.unwrap();
    s3.list_objects_v2().bucket(SOURCE_BUCKET).send().await.unwrap();
    s3.head_bucket().bucket(SOURCE_BUCKET).send().await.unwrap();
    s3.delete_object().bucket(SOURCE_BUCKET).key("k").send().await.unwrap();
    aws_sdk_sns::Client::new(&config).publish().topic_arn(TOPIC_ARN).message("m").send().await.unwrap();
    aws_sdk_ec2::Client::new(&config).terminate_instances().instance_ids(&id).send().await.unwrap();
    let provider = aws_config::provider_config::ProviderConfig::without_region().with_http_client(client);
    let imds = aws_config::imds::Client::builder().configure(&provider).build();
    imds.get("/latest/meta-data/instance-id").await.unwrap();

    for operation in [
        "PutObject",
        "GetObject",
        "HeadObject",
        "CreateMultipartUpload",
        "UploadPart",
        "CompleteMultipartUpload",
        "AbortMultipartUpload",
        "ListObjectsV2",
        "HeadBucket",
        "DeleteObject",
    ] {
        seen(Service::S3, operation);
    }
    seen(Service::Sns, "Publish");
    seen(Service::Ec2, "TerminateInstances");
    seen(Service::Imds, "/latest/meta-data/instance-id");
    assert_eq!(faults.count(Service::S3, "Unknown"), 0);
    assert_eq!(faults.calls()[0], (Service::S3, "PutObject".to_owned()));
}

#[tokio::test]
async fn object_calls_fail_as_on_the_wire() {
    let cloud = TestCloud::new();
    let faults = Faults::new();
    let s3 = s3(cloud.faulty_http_client(None, faults.clone()));
    let put = || {
        let body = ByteStream::from_static(b"0123456789");
        s3.put_object().bucket(SOURCE_BUCKET).key("k").if_none_match("*").body(body).send()
    };

    faults.add(Service::S3, "PutObject", When::Nth(1), Fault::Status(503, "SlowDown"));
    assert_eq!(code(&put().await.unwrap_err()), "SlowDown");
    faults.clear();
    // Applied twice: the second is refused because of the first.
    faults.add(Service::S3, "PutObject", When::Nth(1), Fault::Repeat);
    assert_eq!(code(&put().await.unwrap_err()), "PreconditionFailed");
    faults.add(Service::S3, "GetObject", When::Nth(1), Fault::CutBody(4));
    let cut = get(&s3, "k").await.unwrap_err();
    assert!(cut.starts_with("body:"), "{cut}");
    assert_eq!(get(&s3, "k").await.unwrap(), b"0123456789");
}

#[tokio::test]
async fn calls_can_be_hooked_and_held() {
    let (_cloud, faults, client) = table().await;
    let hooked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&hooked);
    faults.before(Service::Dynamodb, "UpdateItem", 2, move || {
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let seen = Arc::clone(&hooked);
    faults.after(Service::Dynamodb, "UpdateItem", 2, move || {
        seen.fetch_add(10, Ordering::SeqCst);
    });
    let before = faults.hold_before(Service::Dynamodb, "UpdateItem", When::Nth(3));
    let after = faults.hold_after(Service::Dynamodb, "UpdateItem", When::Nth(4));

    add(&client).await.unwrap();
    assert_eq!(hooked.load(Ordering::SeqCst), 0);
    add(&client).await.unwrap();
    assert_eq!(hooked.load(Ordering::SeqCst), 11);

    for (gate, applied) in [(before, 2), (after, 4)] {
        let held = add(&client);
        let observe = async {
            gate.arrived(1).await;
            let applied = count(&client).await;
            gate.open();
            applied
        };
        let (outcome, seen) = tokio::join!(held, observe);
        outcome.unwrap();
        assert_eq!(seen, applied);
    }
}
