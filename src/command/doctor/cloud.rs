//! The checks of AWS: what a node, or a scheduler, needs there.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::super::cli::DoctorArgs;
use super::super::scheduling;
use super::check::{Check, Status, is_provisioned};
use crate::backend::fleet::{Request, Template};
use crate::backend::ledger::TableKind;
use crate::backend::machine::PowerOff;
use crate::backend::notifier::Message;
use crate::backend::{Backend, CloudError, Kind, Wire, error_chain};
use crate::clock;
use crate::command::failure::Failure;
use crate::domain::policy::{Purchase, words};
use crate::domain::tags;

/// Most services refuse a signature that is 5 minutes off (S3: 15). A fifth of that is a warning.
const CLOCK_WARNING: Duration = Duration::from_mins(1);
const CLOCK_FAILURE: Duration = Duration::from_mins(5);
/// The key for the test whether objects can be written. No object remains.
const PROBE_KEY: &str = "logs/~doctor";

pub(super) async fn look(args: &DoctorArgs) -> Result<Vec<Check>, Failure> {
    let settings = scheduling::settings(&args.scheduler)?;
    let wire = match Wire::aws().await {
        Ok(wire) => wire,
        Err(error) => return Ok(vec![Check::of_call("region", Err(error))]),
    };
    let backend = Backend::new(&wire, args.scheduler.aws.tables.tables(), PowerOff::Never);
    let (credentials, is_signed) = credentials(&wire).await;
    let instance = backend.machine.instance_id().await;
    let mut checks = vec![identity(&instance, wire.region())];
    let mut is_node = is_provisioned();
    if let Ok(instance) = &instance {
        let tags = task_tags(&backend, instance).await;
        is_node |= tags.status == Status::Ok;
        checks.push(tags);
    }
    checks.push(credentials);
    if !is_signed {
        // Without credentials, every call below would fail in the same way.
        return Ok(checks);
    }
    if let Ok(instance) = &instance {
        checks.extend(options(&backend, instance).await);
    }
    checks.push(clock(&backend).await);
    checks.extend(tables(&backend, is_node).await);
    let aws = &args.scheduler.aws;
    checks.push(source(&backend, aws.source_bucket().as_deref()).await);
    checks.push(results(&backend, aws.result_bucket().as_deref(), instance.is_ok()).await);
    checks.push(topic(&backend, settings.topic_arn.as_deref()).await);
    if args.send_test_notification {
        checks.push(test_notification(&backend, settings.topic_arn.as_deref()).await);
    }
    if settings.template.is_none() && !is_node {
        checks.push(no_template(instance.is_ok()));
    }
    if let Some(template) = settings.template {
        checks.push(terms(&backend, &template).await);
        checks.extend(pools(&backend, args.scheduler.instance_types.as_deref(), &settings.subnets).await);
        let request = Request {
            template,
            instance_types: settings.policy.instance_types.clone(),
            // One subnet is enough for the dry run; EC2 refuses two of the same zone.
            subnets: settings.subnets.into_iter().take(1).collect(),
            purchase: Purchase::Spot,
            max_price: None,
            count: 1,
            tags: vec![(tags::OURS.to_owned(), backend.ledger.tables().tasks.clone())],
            token: format!("doctor-{:016x}", rand::random::<u64>()),
        };
        let said = format!("EC2 would launch from {}", request.template.name);
        checks.push(Check::of_call("launch", backend.fleet.may_launch(&request).await.map(|()| said)));
    }
    Ok(checks)
}

fn identity(instance: &Result<String, CloudError>, region: &str) -> Check {
    match instance {
        Ok(id) => Check::ok("identity", format!("instance {id} in {region}")),
        Err(error) if error.kind == Kind::Unreachable => {
            Check::ok("identity", format!("not an EC2 instance; calls go to {region}"))
        }
        Err(error) => Check::failure(
            "identity",
            format!("the metadata service returned an error: {}", error.source),
            "run `aws ec2 modify-instance-metadata-options --http-endpoint enabled`",
        ),
    }
}

async fn credentials(wire: &Wire) -> (Check, bool) {
    let found = wire.credentials().await;
    let is_found = found.is_ok();
    let said = found.map(|(key, expiry)| match expiry.map(|expiry| expiry.duration_since(clock::now())) {
        Some(Ok(left)) => format!("key {key}, valid for {} min", left.as_secs() / 60),
        Some(Err(_)) => format!("key {key}, expired"),
        None => format!("key {key}, without an expiration"),
    });
    (Check::of_call("credentials", said), is_found)
}

/// Checks whether the tags that name the task are available, and from which service.
async fn task_tags(backend: &Backend, instance: &str) -> Check {
    let fix = "launch with the tag srcID or missionID, and with InstanceMetadataTags=enabled in the metadata options";
    let machine = &backend.machine;
    let in_imds = tokio::try_join!(machine.tag(tags::SRC), machine.tag(tags::MISSION));
    match in_imds {
        Ok((Some(src), _)) => return Check::ok("tags", format!("srcID={src}, from the metadata service")),
        Ok((None, Some(mission))) => {
            return Check::ok("tags", format!("missionID={mission}, from the metadata service"));
        }
        Ok((None, None)) => {}
        Err(error) => return Check::of_call("tags", Err(error)),
    }
    match machine.tags_of(instance).await {
        Ok(found) if found.iter().any(|(key, _)| key == tags::SRC || key == tags::MISSION) => Check::warning(
            "tags",
            "the task's tags are available only from EC2, which costs each node a call and a permission",
            "set InstanceMetadataTags=enabled in the metadata options",
        ),
        Ok(_) => {
            Check::warning("tags", "this instance has no task: it has neither the tag srcID nor the tag missionID", fix)
        }
        Err(error) => Check::failure(
            "tags",
            format!("the metadata service has no tags, and EC2 refuses the request: {}", error.source),
            fix,
        ),
    }
}

/// Checks the instance's settings in EC2: metadata options, shutdown behaviour, and the permission to terminate it.
async fn options(backend: &Backend, instance: &str) -> Vec<Check> {
    let machine = &backend.machine;
    let (options, shutdown, end) = tokio::join!(
        machine.options_of(instance),
        machine.shutdown_behavior(instance),
        machine.may_terminate(instance)
    );
    let mut checks = Vec::new();
    match options {
        Ok(options) => {
            checks.push(match options.hop_limit {
                Some(1) => Check::ok("hop limit", "1: containers cannot reach the metadata service"),
                Some(hops) => Check::warning(
                    "hop limit",
                    format!("{hops}: containers on this instance can use the instance's role"),
                    "set HttpPutResponseHopLimit=1 in the metadata options",
                ),
                None => Check::warning(
                    "hop limit",
                    "EC2 does not report it",
                    "check the metadata options of the launch template",
                ),
            });
            if options.needs_token == Some(false) {
                let fix = "set HttpTokens=required in the metadata options";
                checks.push(Check::warning("IMDSv2", "the metadata service accepts requests without a token", fix));
            }
        }
        Err(error) => checks.push(unseen("hop limit", error)),
    }
    let fix = "launch with InstanceInitiatedShutdownBehavior=terminate, as the stack's launch template does";
    checks.push(match shutdown {
        Ok(Some(behavior)) if behavior == "terminate" => Check::ok("shutdown", "a power-off terminates this instance"),
        Ok(behavior) => Check::failure(
            "shutdown",
            format!("a power-off leaves this instance {}", behavior.as_deref().unwrap_or("in an unknown state")),
            fix,
        ),
        Err(error) => unseen("shutdown", error),
    });
    let may_end = end.map(|()| "the role may terminate this instance".to_owned());
    checks.push(match may_end {
        Err(error) if error.kind == Kind::AccessDenied => Check::warning(
            "own end",
            "the role may not terminate this instance, so it can only be powered off",
            format!(
                "allow ec2:TerminateInstances for instances whose tag {} is the name of the tasks table",
                tags::OURS
            ),
        ),
        other => Check::of_call("own end", other),
    });
    checks
}

/// Converts a failed call. It is not a failure if the role lacks a permission that a node does not need.
fn unseen(name: &'static str, error: CloudError) -> Check {
    if error.kind != Kind::AccessDenied {
        return Check::of_call(name, Err(error));
    }
    Check::skipped(name, &format!("ec2:{}", error.operation))
}

/// Reports that no launch template is set. It is a failure off EC2. An instance may be a scheduler's machine or another
/// one, so there it is a warning.
fn no_template(is_on_ec2: bool) -> Check {
    let (said, hint) = (
        "no launch template is set, so `submit`, `sweep` and `redrive` launch no nodes",
        "set LIGHTHPC_LAUNCH_TEMPLATE (`scripts/deploy --exports` prints it), or --launch-template",
    );
    if is_on_ec2 { Check::warning("template", said, hint) } else { Check::failure("template", said, hint) }
}

/// Reports instance types and subnets that EC2 would refuse; launches omit them. `types` is the setting as it was
/// written.
async fn pools(backend: &Backend, types: Option<&str>, subnets: &[String]) -> Vec<Check> {
    let mut warnings = Vec::new();
    let written: Vec<&str> = types.into_iter().flat_map(|types| types.split(',')).map(str::trim).collect();
    let types = words(&written.join(","));
    for name in types.iter().filter(|name| written.iter().filter(|word| *word == name).count() > 1) {
        warnings.push(format!("instance type {name} is listed more than once"));
    }
    let mut checks = Vec::new();
    match backend.fleet.zones(subnets).await {
        Ok(zones) => {
            let mut by_zone: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for subnet in subnets {
                match zones.get(subnet) {
                    Some(zone) => by_zone.entry(zone).or_default().push(subnet),
                    None => warnings.push(format!("there is no subnet {subnet} in this region")),
                }
            }
            let shared = by_zone.iter().filter(|(_, some)| some.len() > 1);
            warnings.extend(shared.map(|(zone, some)| format!("{} are all in zone {zone}", some.join(" and "))));
        }
        Err(error) => checks.push(unseen("zones", error)),
    }
    match backend.fleet.offered(&types).await {
        Ok(offered) => {
            let missing = types.iter().filter(|name| !offered.contains(*name));
            warnings.extend(missing.map(|name| format!("the region does not offer instance type {name}")));
        }
        Err(error) => checks.push(unseen("offered types", error)),
    }
    if !warnings.is_empty() {
        let fix = "launches use each type once, one subnet per zone, and no missing types or subnets; \
             correct LIGHTHPC_INSTANCE_TYPES and LIGHTHPC_SUBNETS";
        checks.push(Check::warning("pools", warnings.join("; "), fix));
    } else if checks.is_empty() && (!types.is_empty() || !subnets.is_empty()) {
        let said = format!("{} instance types, {} subnets in different zones", types.len(), subnets.len());
        checks.push(Check::ok("pools", said));
    }
    checks
}

/// Checks whether nodes from a launch template can work and can be terminated.
async fn terms(backend: &Backend, template: &Template) -> Check {
    let name = "template";
    let terms = match backend.fleet.template(template).await {
        Ok(terms) => terms,
        Err(error) => return unseen(name, error),
    };
    let mut failures = Vec::new();
    if !terms.terminates {
        failures.push(
            "InstanceInitiatedShutdownBehavior is not terminate, so a power-off keeps the disk, which costs money",
        );
    }
    if !terms.has_role {
        failures.push("it has no instance profile, so the nodes have no role");
    }
    let mut warnings = Vec::new();
    if !terms.shows_tags {
        warnings.push("InstanceMetadataTags is not enabled, so each node reads its tags from EC2");
    }
    if terms.metadata.needs_token != Some(true) {
        warnings.push("HttpTokens is not required, so the metadata can be read without a token");
    }
    if terms.metadata.hop_limit.is_some_and(|hops| hops > 1) {
        warnings.push("HttpPutResponseHopLimit is more than 1, so containers can use the role");
    }
    let fix = "create a new version of the template with the settings in cloudformation/stack.yaml";
    if failures.is_empty() && warnings.is_empty() {
        Check::ok(name, format!("{}: role, tags, IMDSv2 and termination at power-off are set", template.name))
    } else if failures.is_empty() {
        Check::warning(name, warnings.join("; "), fix)
    } else {
        failures.extend(warnings);
        Check::failure(name, failures.join("; "), fix)
    }
}

async fn clock(backend: &Backend) -> Check {
    let before = clock::now();
    let time = match backend.ledger.time().await {
        Ok(Some(time)) => time,
        Ok(None) => return Check::warning("clock", "DynamoDB does not report its time", "check the endpoint"),
        Err(error) => return Check::of_call("clock", Err(error)),
    };
    // The service's `Date` has whole seconds, and the answer took some time.
    let middle = before + clock::now().duration_since(before).unwrap_or_default() / 2;
    let off = difference(middle, time);
    let said = format!("{} s away from DynamoDB's clock", off.as_secs());
    let fix = "synchronize the clock with chrony or systemd-timesyncd (Amazon Time Sync: 169.254.169.123)";
    if off >= CLOCK_FAILURE {
        Check::failure("clock", format!("{said}: AWS refuses signatures"), fix)
    } else if off >= CLOCK_WARNING {
        Check::warning("clock", said, fix)
    } else {
        Check::ok("clock", said)
    }
}

fn difference(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).or_else(|_| b.duration_since(a)).unwrap_or_default()
}

async fn tables(backend: &Backend, is_node: bool) -> Vec<Check> {
    let ledger = &backend.ledger;
    let tasks = async {
        // A sweep reads tasks in batches. Nodes do not, and their role does not allow it.
        if is_node { ledger.may_update(TableKind::Tasks).await } else { ledger.may_work_at(TableKind::Tasks).await }
    };
    let (tasks, index, missions) = tokio::join!(tasks, ledger.has_index(), ledger.may_work_at(TableKind::Missions));
    let names = ledger.tables();
    let said = |name: &str| format!("{name}: the key is correct; reads and writes are allowed");
    vec![
        Check::of_call("tasks table", tasks.map(|()| said(&names.tasks))),
        match index {
            Err(error) if matches!(error.kind, Kind::Invalid | Kind::NoTable) => Check::failure(
                "index",
                error_chain(&error),
                "create the index `open` of the tasks table (docs/TABLES.md), or adopt the table with scripts/deploy",
            ),
            other => Check::of_call("index", other.map(|name| format!("{name}: reads are allowed"))),
        },
        Check::of_call("missions table", missions.map(|()| said(&names.missions))),
    ]
}

async fn source(backend: &Backend, bucket: Option<&str>) -> Check {
    let name = "source bucket";
    let Some(bucket) = bucket else {
        return Check::warning(
            name,
            "no source bucket is set, so each task's row must name one",
            "set LIGHTHPC_SOURCE_BUCKET",
        );
    };
    match backend.store.head(bucket, PROBE_KEY).await {
        Err(error) if error.kind == Kind::AccessDenied => Check::warning(
            name,
            format!("{bucket}: without s3:ListBucket, the check cannot show whether it can be read"),
            format!("allow s3:ListBucket on {bucket}, and s3:GetObject on {bucket}/*"),
        ),
        other => Check::of_call(name, other.map(|_| format!("{bucket}: reads are allowed"))),
    }
}

async fn results(backend: &Backend, bucket: Option<&str>, is_node: bool) -> Check {
    let name = "result bucket";
    match bucket {
        Some(bucket) => {
            let put = backend.store.may_put(bucket, PROBE_KEY).await;
            Check::of_call(name, put.map(|()| format!("{bucket}: writes are allowed")))
        }
        None if is_node => {
            Check::failure(name, "no result bucket is set, so nodes cannot claim tasks", "set LIGHTHPC_RESULT_BUCKET")
        }
        None => Check::warning(
            name,
            "no result bucket is set",
            "set LIGHTHPC_RESULT_BUCKET to the bucket that the nodes use",
        ),
    }
}

/// Publishes a message to the topic.
async fn test_notification(backend: &Backend, topic: Option<&str>) -> Check {
    const NAME: &str = "test notification";
    let Some(topic) = topic else {
        return Check::failure(NAME, "no topic is set", "set --topic-arn or LIGHTHPC_TOPIC_ARN");
    };
    let message = Message {
        subject: "lighthpc: test notification".to_owned(),
        text: "This is a test. When a mission ends, a message with its counts comes to this address.\n".to_owned(),
        group: "lighthpc-test".to_owned(),
        deduplication: format!("test-{:016x}", rand::random::<u64>()),
    };
    let sent = backend.notifier.publish(topic, &message).await;
    Check::of_call(NAME, sent.map(|()| format!("published to {topic}: look whether it arrives")))
}

async fn topic(backend: &Backend, topic: Option<&str>) -> Check {
    let name = "topic";
    let Some(topic) = topic else {
        return Check::warning(name, "no topic is set, so no notification is sent", "set LIGHTHPC_TOPIC_ARN");
    };
    match backend.notifier.look(topic).await {
        Err(error) if error.kind == Kind::AccessDenied => Check::skipped(name, "sns:GetTopicAttributes"),
        // SNS reports a parameter error for a topic of another account or an invalid one.
        Err(error) if error.kind == Kind::Invalid => {
            Check::failure(name, error_chain(&error), "check LIGHTHPC_TOPIC_ARN")
        }
        other => Check::of_call(name, other.map(|()| format!("{topic} exists"))),
    }
}
