//! The fault table: each call of a node's life × each fault. Whatever happens, the mission ends with one result, one count,
//! its notification sent, and its machines ended.

use std::time::Duration;

use lighthpc::backend::machine::EndOrder;
use local_cloud::Service::{Dynamodb, Ec2, Imds, S3, Sns};
use local_cloud::{Fault, Faults, Service, When};

use crate::steps::{CALLS, Call};
use crate::test_cloud::{PATIENCE, TestCloud};

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InjectedFault {
    FailsOnce,
    FailsForGood,
    DiesBefore,
    DiesAfter,
    AnswerLost,
    Repeated,
    Throttled,
    ServerError,
}

const MISHAPS: [InjectedFault; 8] = [
    InjectedFault::FailsOnce,
    InjectedFault::FailsForGood,
    InjectedFault::DiesBefore,
    InjectedFault::DiesAfter,
    InjectedFault::AnswerLost,
    InjectedFault::Repeated,
    InjectedFault::Throttled,
    InjectedFault::ServerError,
];

fn throttle(service: Service) -> Fault {
    match service {
        Dynamodb => Fault::Status(400, "ThrottlingException"),
        S3 => Fault::Status(503, "SlowDown"),
        Sns => Fault::Status(400, "Throttling"),
        Ec2 => Fault::Status(503, "RequestLimitExceeded"),
        Imds => Fault::Status(429, "TooManyRequests"),
    }
}

impl InjectedFault {
    fn arrange(self, faults: &Faults, call: Call) {
        let Call { service, operation, nth, .. } = call;
        let fault = match self {
            Self::FailsOnce => Fault::FailBefore,
            Self::FailsForGood => {
                faults.add(service, operation, When::After(nth - 1), Fault::FailBefore);
                return;
            }
            Self::AnswerLost => Fault::FailAfter,
            Self::Repeated => Fault::Repeat,
            Self::Throttled => throttle(service),
            Self::ServerError => Fault::StatusAfter(500, "InternalServerError"),
            Self::DiesBefore | Self::DiesAfter => return,
        };
        faults.add(service, operation, When::Nth(nth), fault);
    }
}

/// Runs a node into the fault; then, if the mission still stands, lets the machine vanish and launches another.
async fn survive(call: Call, fault: InjectedFault) {
    let context = format!("{} × {fault:?}", call.name);
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    fault.arrange(&faults, call);
    // A write that fails permanently is retried for a lease.
    let mut node = cloud.node_with("abc", "M", faults.clone()).lease(Duration::from_secs(3), Duration::from_secs(1));
    let instance = node.instance.clone();
    // Where the machine cannot learn its own name, nothing proves that it is a node; a real one has the order of its
    // unit.
    let is_nameless = fault == InjectedFault::FailsForGood && matches!(call.name, "token" | "instance id");
    if is_nameless {
        node.settings.end_order = EndOrder::Terminate;
    }

    match fault {
        InjectedFault::DiesBefore | InjectedFault::DiesAfter => {
            let when = When::Nth(call.nth);
            let gate = match fault {
                InjectedFault::DiesBefore => faults.hold_before(call.service, call.operation, when),
                _ => faults.hold_after(call.service, call.operation, when),
            };
            // Dropping the node's future is its process's death: nothing of it goes on, and nothing is undone.
            tokio::select! {
                life = node.run() => panic!("{context}: the call was never made: {life:?}"),
                () = gate.arrived(1) => {}
            }
            cloud.local.reclaim_instance(&instance);
        }
        _ => {
            let life = node.run().await;
            assert!(cloud.has_ended(&instance), "{context}: the instance was left running: {life:?}");
        }
    }

    let second = cloud.node("abc", "M");
    let second_instance = second.instance.clone();
    let life = second.run().await;

    cloud.assert_done("abc", "M", &format!("{context}, then {life:?}")).await;
    assert!(cloud.has_ended(&second_instance), "{context}");
    let sent = cloud.local.published().len();
    // At least once, and once in practice: a publisher that cannot know whether its message went out sends it again.
    let unknowable = call.service == Sns && fault != InjectedFault::DiesBefore && fault != InjectedFault::Throttled
        || call.name == "mark announced" && matches!(fault, InjectedFault::DiesBefore | InjectedFault::FailsForGood);
    assert!(sent == 1 || unknowable && sent == 2, "{context}: {sent} notifications");
    assert!(cloud.task("abc").await.attempt.0 <= 3, "{context}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_survives_every_mishap() {
    // Four at a time; each in a folder of its own.
    let mut cases: Vec<(Call, InjectedFault)> =
        CALLS.iter().flat_map(|&call| MISHAPS.map(|fault| (call, fault))).collect();
    let count = cases.len();
    let mut running = tokio::task::JoinSet::new();
    let mut failed = Vec::new();
    while !cases.is_empty() || !running.is_empty() {
        while running.len() < 4
            && let Some((call, fault)) = cases.pop()
        {
            running.spawn(async move {
                let case = format!("{} × {fault:?}", call.name);
                let mut one = tokio::task::JoinSet::new();
                one.spawn(async move { tokio::time::timeout(2 * PATIENCE, survive(call, fault)).await });
                let ended = one.join_next().await.unwrap();
                match ended {
                    Ok(Ok(())) => None,
                    Ok(Err(_)) => Some(format!("{case}: no end")),
                    Err(panic) => Some(format!("{case}: {panic}")),
                }
            });
        }
        failed.extend(running.join_next().await.and_then(|ended| ended.unwrap()));
    }
    assert!(failed.is_empty(), "{} of {count} cases failed:\n{}", failed.len(), failed.join("\n"));
}

/// EC2 refuses permanently: the power goes off instead.
#[tokio::test]
async fn an_instance_that_ec2_does_not_end_is_powered_off() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(Ec2, "TerminateInstances", When::Always, Fault::Status(403, "UnauthorizedOperation"));
    let node = cloud.node_with("abc", "M", faults.clone());
    let instance = node.instance.clone();

    let life = node.run().await;

    assert_eq!(life.end.unwrap(), lighthpc::backend::machine::MachineEnd::PoweredOff);
    assert!(cloud.has_ended(&instance));
    // A refusal is not repeated.
    assert_eq!(faults.count(Ec2, "TerminateInstances"), 1);
}

/// A transaction that others' transactions keep cancelling is tried again, and counted once.
#[tokio::test]
async fn a_conflicting_commit_is_tried_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    let body = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException","Message":"Transaction cancelled, please refer cancellation reasons for specific reasons [None, TransactionConflict]","CancellationReasons":[{"Code":"None"},{"Code":"TransactionConflict","Message":"Transaction is ongoing for the item"}]}"#;
    faults.add(Dynamodb, "TransactWriteItems", When::First(3), Fault::Raw(400, body.to_owned()));

    cloud.node_with("abc", "M", faults.clone()).run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after conflicts").await;
    assert_eq!(faults.count(Dynamodb, "TransactWriteItems"), 4);
}

/// A download whose body breaks off is taken up again.
#[tokio::test]
async fn a_body_that_breaks_off_is_fetched_again() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    faults.add(S3, "GetObject", When::First(2), Fault::CutBody(1));

    cloud.node_with("abc", "M", faults.clone()).run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after cut bodies").await;
    assert_eq!(faults.count(S3, "GetObject"), 3);
}

/// DynamoDB is away for less than a lease: the workload runs on, and its result is committed by the first attempt.
#[tokio::test]
async fn a_short_outage_of_the_ledger_does_not_stop_the_workload() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // The second to the sixth UpdateItem are heartbeats of 0.2 s.
    for nth in 2..=6 {
        faults.add(Dynamodb, "UpdateItem", When::Nth(nth), Fault::FailBefore);
    }
    let node = cloud
        .node_with("abc", "M", faults.clone())
        .shell(r#"sleep 1.5; rev "$LIGHTHPC_INPUT" > "$LIGHTHPC_OUTPUT""#)
        .lease(Duration::from_secs(6), Duration::from_millis(200));

    node.run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after an outage").await;
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}

/// S3 is away for a while, before the workload and after it: neither costs an attempt.
#[tokio::test]
async fn a_short_outage_of_s3_costs_no_attempt() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    // Each is three times the SDK's own five tries.
    for operation in ["HeadBucket", "CreateMultipartUpload", "GetObject", "PutObject"] {
        faults.add(S3, operation, When::First(15), Fault::Status(503, "ServiceUnavailable"));
    }
    let mut node = cloud.node_with("abc", "M", faults);
    node.settings.max_idle = PATIENCE / 2;

    node.run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after an outage of S3").await;
    let row = cloud.task("abc").await;
    assert_eq!((row.attempt.0, row.app_failures), (1, 0));
}

/// A role's credentials run out and are replaced: no refusal, and nothing lost by it.
#[tokio::test]
async fn credentials_that_ran_out_are_not_a_refusal() {
    let cloud = TestCloud::new().await;
    cloud.mission("M", &["abc"]).await;
    let faults = Faults::new();
    for (service, operation, code) in [
        (Dynamodb, "UpdateItem", "ExpiredTokenException"),
        (S3, "GetObject", "ExpiredToken"),
        (S3, "PutObject", "ExpiredToken"),
        (Dynamodb, "TransactWriteItems", "ExpiredTokenException"),
    ] {
        faults.add(service, operation, When::First(1), Fault::Status(400, code));
    }

    cloud.node_with("abc", "M", faults).run().await.outcome.unwrap();

    cloud.assert_done("abc", "M", "after credentials ran out").await;
    assert_eq!(cloud.task("abc").await.attempt.0, 1);
}
