//! EC2, IMDS, and SNS.

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_ec2::types::{
    Filter, FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest, FleetType, InstanceStateName,
    InstanceType, ResourceType, Tag, TagSpecification, TargetCapacitySpecificationRequest,
};

use super::*;

fn ec2(cloud: &LocalCloud) -> aws_sdk_ec2::Client {
    aws_sdk_ec2::Client::new(&config(cloud.http_client(None)))
}

fn metadata(cloud: &LocalCloud, instance: Option<&str>) -> imds::Client {
    let provider = ProviderConfig::without_region().with_http_client(cloud.http_client(instance));
    imds::Client::builder().configure(&provider).build()
}

pub(super) async fn publish(cloud: &LocalCloud, message: &str) -> Result<(), String> {
    let sns = aws_sdk_sns::Client::new(&config(cloud.http_client(None)));
    sns.publish().topic_arn(TOPIC_ARN).message(message).send().await.map(drop).map_err(|error| code(&error))
}

fn filter(name: &str, value: &str) -> Filter {
    Filter::builder().name(name).values(value).build()
}

#[tokio::test]
async fn imds_shows_an_instance_its_identity_and_notices() {
    let cloud = TestCloud::new();
    let id = cloud.launch(&[("srcID", "a b/ü+1.sdf"), ("mission", "m")]);
    let me = metadata(&cloud, Some(&id));
    let get = async |path: &str| me.get(format!("/latest/meta-data/{path}")).await.map(String::from);

    assert_eq!(id.len(), 19);
    assert_eq!(get("instance-id").await.unwrap(), id);
    assert_eq!(get("placement/region").await.unwrap(), REGION);
    assert_eq!(get("tags/instance").await.unwrap(), "mission\nsrcID");
    assert_eq!(get("tags/instance/srcID").await.unwrap(), "a b/ü+1.sdf");
    assert!(get("spot/instance-action").await.is_err());
    assert!(get("events/recommendations/rebalance").await.is_err());
    let document = me.get("/latest/dynamic/instance-identity/document").await.unwrap();
    assert!(String::from(document).contains(&id));

    cloud.put_spot_notice(&id, "terminate", "2030-01-02T03:04:05Z");
    cloud.rebalance(&id, "2030-01-02T03:00:00Z");
    cloud.set_instance_tags_in_imds(false);

    assert_eq!(get("spot/instance-action").await.unwrap(), r#"{"action":"terminate","time":"2030-01-02T03:04:05Z"}"#);
    assert_eq!(get("spot/termination-time").await.unwrap(), "2030-01-02T03:04:05Z");
    assert_eq!(get("events/recommendations/rebalance").await.unwrap(), r#"{"noticeTime":"2030-01-02T03:00:00Z"}"#);
    let error = get("tags/instance/srcID").await.unwrap_err();
    assert!(
        matches!(&error, imds::client::error::ImdsError::ErrorResponse(e) if e.response().status().as_u16() == 404)
    );
}

#[tokio::test]
async fn off_ec2_there_is_no_metadata() {
    let cloud = TestCloud::new();

    let begun = std::time::Instant::now();
    metadata(&cloud, None).get("/latest/meta-data/instance-id").await.unwrap_err();

    assert!(begun.elapsed().as_secs() < 1);
}

#[tokio::test]
async fn tags_are_found_by_filter() {
    let cloud = TestCloud::new();
    let id = cloud.launch(&[("srcID", "a<&>b\n")]);
    cloud.launch(&[("srcID", "other")]);
    let ec2 = ec2(&cloud);

    let found =
        ec2.describe_tags().filters(filter("resource-id", &id)).filters(filter("key", "srcID")).send().await.unwrap();

    let values: Vec<_> = found.tags().iter().map(|tag| tag.value().unwrap()).collect();
    assert_eq!(values, ["a<&>b\n"]);
    let error = ec2.describe_tags().filters(filter("colour", "x")).send().await.unwrap_err();
    assert_eq!(code(&error), "InvalidParameterValue");
}

#[tokio::test]
async fn an_instance_of_an_earlier_process_in_the_same_folder_is_terminated() {
    let dir = TempDir::new().unwrap();
    let earlier = LocalCloud::open(dir.path()).unwrap().launch(&[("lighthpc", "node")]);
    let cloud = LocalCloud::open(dir.path()).unwrap();

    let answer = ec2(&cloud).describe_instances().instance_ids(&earlier).send().await.unwrap();

    let instance = &answer.reservations()[0].instances()[0];
    assert_eq!(instance.instance_id(), Some(earlier.as_str()));
    assert_eq!(instance.state().unwrap().name(), Some(&InstanceStateName::Terminated));
    let unknown = ec2(&cloud).describe_instances().instance_ids("i-1").send().await.unwrap_err();
    assert_eq!(code(&unknown), "InvalidInstanceID.NotFound");
}

#[tokio::test]
async fn an_instance_runs_until_it_is_terminated() {
    let cloud = TestCloud::new();
    let ids = [cloud.launch(&[("lighthpc", "node")]), cloud.launch(&[])];
    let ec2 = ec2(&cloud);

    let dry = ec2.terminate_instances().instance_ids(&ids[0]).dry_run(true).send().await.unwrap_err();
    assert_eq!(code(&dry), "DryRunOperation");
    for _ in 0..2 {
        ec2.terminate_instances().instance_ids(&ids[0]).send().await.unwrap();
    }
    let tagged = ec2.describe_instances().filters(filter("tag:lighthpc", "no*")).send().await.unwrap();
    let instance = &tagged.reservations()[0].instances()[0];
    assert_eq!(instance.instance_id(), Some(ids[0].as_str()));
    assert_eq!(instance.state().unwrap().name(), Some(&InstanceStateName::Terminated));
    assert!(instance.launch_time().is_some());
    let running = ec2.describe_instances().filters(filter("instance-state-name", "running")).send().await.unwrap();
    assert_eq!(running.reservations().len(), 1);
    assert_eq!(cloud.instances()[0].terminate_calls, 2);
    cloud.reclaim_instance(&ids[1]);
    assert_eq!(cloud.instances()[1].state, "terminated");
    assert_eq!(cloud.instances()[1].terminate_calls, 0);

    let stranger = "i-00000000000000000";
    let unknown = ec2.describe_instances().instance_ids(stranger).send().await.unwrap_err();
    assert_eq!(code(&unknown), "InvalidInstanceID.NotFound");
    let unknown = ec2.terminate_instances().instance_ids(stranger).send().await.unwrap_err();
    assert_eq!(code(&unknown), "InvalidInstanceID.NotFound");
    assert_eq!(code(&ec2.describe_launch_template_versions().send().await.unwrap_err()), "InvalidAction");
}

#[tokio::test]
async fn a_client_token_launches_once() {
    let cloud = TestCloud::new();
    let ec2 = ec2(&cloud);
    let launch = |source: &str| {
        let tag = Tag::builder().key("srcID").value(source).build();
        let tags = TagSpecification::builder().resource_type(ResourceType::Instance).tags(tag).build();
        let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(1).build();
        let fleet = ec2.create_fleet().r#type(FleetType::Instant).target_capacity_specification(capacity);
        let config = FleetLaunchTemplateConfigRequest::builder().build();
        fleet.launch_template_configs(config).client_token("token").tag_specifications(tags).send()
    };

    let first = launch("a").await.unwrap();
    let second = launch("a").await.unwrap();
    let other = launch("b").await.unwrap_err();

    assert_eq!(first.instances()[0].instance_ids(), second.instances()[0].instance_ids());
    assert_eq!(code(&other), "IdempotentParameterMismatch");
    let instances = cloud.instances();
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].tags, [("srcID".to_owned(), "a".to_owned())]);
}

#[tokio::test]
async fn what_sns_would_refuse_is_refused() {
    let cloud = TestCloud::new();
    let sns = aws_sdk_sns::Client::new(&config(cloud.http_client(None)));
    let long = "x".repeat(100);

    for subject in ["line\nbreak", "ümlaut", "", " leads", &long] {
        let publish = sns.publish().topic_arn(TOPIC_ARN).subject(subject).message("m");
        assert_eq!(code(&publish.send().await.unwrap_err()), "InvalidParameter", "{subject:?}");
    }
    assert_eq!(publish(&cloud, "").await.unwrap_err(), "InvalidParameter");
    assert_eq!(code(&sns.list_topics().send().await.unwrap_err()), "InvalidAction");
    assert!(cloud.published().is_empty());

    let sent = sns
        .publish()
        .topic_arn(TOPIC_ARN)
        .subject("Mission m is done")
        .message("üä & <all>\n+1")
        .message_group_id("g")
        .message_deduplication_id("d");
    assert!(sent.send().await.unwrap().message_id().is_some());
    let expected = Published {
        topic_arn: TOPIC_ARN.into(),
        subject: Some("Mission m is done".into()),
        message: "üä & <all>\n+1".into(),
        group_id: Some("g".into()),
        deduplication_id: Some("d".into()),
    };
    assert_eq!(cloud.published(), [expected]);
}

/// A pool is an instance type and a zone. EC2 refuses a request that names one twice.
#[tokio::test]
async fn a_fleet_with_a_pool_twice_is_refused_as_a_whole() {
    let cloud = TestCloud::new();
    for (subnet, zone) in [("subnet-a1", "a"), ("subnet-a2", "a"), ("subnet-b", "b")] {
        cloud.put_subnet(subnet, zone);
    }
    cloud.offer_types(&["m5.large", "c5.large"]);
    let ec2 = ec2(&cloud);
    let launch = |pools: &[(&str, &str)]| {
        let pool = |(name, subnet): &(&str, &str)| {
            let pool = FleetLaunchTemplateOverridesRequest::builder().instance_type(InstanceType::from(*name));
            pool.subnet_id(*subnet).build()
        };
        let config = FleetLaunchTemplateConfigRequest::builder();
        let config = config.set_overrides(Some(pools.iter().map(pool).collect())).build();
        let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(1).build();
        let fleet = ec2.create_fleet().r#type(FleetType::Instant).launch_template_configs(config);
        fleet.target_capacity_specification(capacity).send()
    };
    for (pools, refusal) in [
        (&[("m5.large", "subnet-a1"), ("m5.large", "subnet-a1")][..], "InvalidFleetConfig"),
        (&[("m5.large", "subnet-a1"), ("m5.large", "subnet-a2")], "InvalidFleetConfig"),
        (&[("m5.large", "subnet-a1"), ("x1.old", "subnet-a1")], "InvalidParameterValue"),
    ] {
        assert_eq!(code(&launch(pools).await.unwrap_err()), refusal, "{pools:?}");
    }
    launch(&[("m5.large", "subnet-a1"), ("m5.large", "subnet-b"), ("c5.large", "subnet-a2")]).await.unwrap();
    assert_eq!(cloud.instances().len(), 1);

    let found = ec2.describe_subnets().filters(filter("subnet-id", "subnet-a2")).send().await.unwrap();
    assert_eq!(found.subnets()[0].availability_zone(), Some("a"));
    let offered = ec2.describe_instance_type_offerings();
    let wanted = Filter::builder().name("instance-type").values("m5.large").values("x1.old").build();
    assert_eq!(offered.filters(wanted).send().await.unwrap().instance_type_offerings().len(), 1);
}

#[tokio::test]
async fn ec2_shows_why_an_instance_terminated_and_can_show_it_late() {
    let cloud = TestCloud::new();
    let id = cloud.launch(&[("lighthpc", "node")]);
    let ec2 = ec2(&cloud);
    cloud.show_instance(&id, false);
    let unknown = ec2.describe_instances().instance_ids(&id).send().await.unwrap_err();
    assert_eq!(code(&unknown), "InvalidInstanceID.NotFound");
    assert!(ec2.describe_instances().send().await.unwrap().reservations().is_empty());

    cloud.show_instance(&id, true);
    cloud.fail_instance(&id, "Client.InternalError", "Client.InternalError: Client error on launch");
    let found = ec2.describe_instances().instance_ids(&id).send().await.unwrap();
    let instance = &found.reservations()[0].instances()[0];
    assert_eq!(instance.state_reason().and_then(|reason| reason.code()), Some("Client.InternalError"));
    assert_eq!(instance.state().unwrap().name(), Some(&InstanceStateName::Terminated));
}
