//! The calls of a node's life, in order: one list, from which the fault table is made. A new call that is missing here
//! fails `the_list_is_complete`.

use local_cloud::Faults;
use local_cloud::Service::{self, Dynamodb, Ec2, Imds, S3, Sns};

use crate::test_cloud::TestCloud;

/// One call of a node that does a mission's only task.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) service: Service,
    pub(crate) operation: &'static str,
    /// The how-many-eth call of this operation, from 1.
    pub(crate) nth: u32,
}

const fn call(name: &'static str, service: Service, operation: &'static str, nth: u32) -> Call {
    Call { name, service, operation, nth }
}

pub(crate) const CALLS: &[Call] = &[
    call("token", Imds, "/latest/api/token", 1),
    call("instance id", Imds, "/latest/meta-data/instance-id", 1),
    call("tag srcID", Imds, "/latest/meta-data/tags/instance/srcID", 1),
    call("tag missionID", Imds, "/latest/meta-data/tags/instance/missionID", 1),
    call("look at source bucket", S3, "HeadBucket", 1),
    call("begin a trial upload", S3, "CreateMultipartUpload", 1),
    call("abort it", S3, "AbortMultipartUpload", 1),
    call("claim", Dynamodb, "UpdateItem", 1),
    call("mission", Dynamodb, "GetItem", 1),
    call("get input", S3, "GetObject", 1),
    call("put result", S3, "PutObject", 1),
    call("commit", Dynamodb, "TransactWriteItems", 1),
    call("tally", Dynamodb, "BatchGetItem", 1),
    call("mission again", Dynamodb, "GetItem", 2),
    call("tally again", Dynamodb, "BatchGetItem", 2),
    call("become publisher", Dynamodb, "UpdateItem", 2),
    call("list tasks", Dynamodb, "Scan", 1),
    call("put manifest", S3, "PutObject", 2),
    call("put report", S3, "PutObject", 3),
    call("write results", Dynamodb, "UpdateItem", 3),
    call("publish", Sns, "Publish", 1),
    call("mark announced", Dynamodb, "UpdateItem", 4),
    call("terminate", Ec2, "TerminateInstances", 1),
];

#[tokio::test]
async fn the_list_is_complete() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();

    let node = cloud.node_with("abc", "M", faults.clone());
    let instance = node.instance.clone();
    node.run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "without a fault").await;
    assert!(cloud.has_ended(&instance));
    let made: Vec<(Service, String)> = faults.calls();
    let listed: Vec<(Service, String)> = CALLS.iter().map(|call| (call.service, call.operation.to_owned())).collect();
    assert_eq!(made, listed);
}
