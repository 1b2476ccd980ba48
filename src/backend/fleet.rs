//! EC2 as a scheduler needs it: launches by `CreateFleet`, what runs of ours, its end, and what Spot costs now.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Builder;
use aws_sdk_ec2::operation::create_fleet::builders::CreateFleetFluentBuilder;
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, Filter, FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetType, InstanceStateName,
    InstanceType, LaunchTemplateHttpTokensState, LaunchTemplateInstanceMetadataOptions,
    LaunchTemplateInstanceMetadataTagsState, OnDemandOptionsRequest, ResourceType, ShutdownBehavior,
    SpotAllocationStrategy, SpotInstanceInterruptionBehavior, SpotOptionsRequest, Tag, TagSpecification,
    TargetCapacitySpecificationRequest,
};

use super::error::{CloudError, Kind};
use super::machine::Options;
use super::sdk::Wire;
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::policy::{Price, Purchase};
use crate::domain::tags;

/// The most pools (instance type × subnet) that one request names. Source: EC2 user guide, "EC2 Fleet quotas": 300 launch
/// specifications and overrides per fleet.
pub const POOLS_MAX: usize = 300;

/// A launch template, by id (`lt-…`) or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its id or name.
    pub name: String,
    /// Its version: a number, `$Default`, or `$Latest`.
    pub version: String,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The template.
    pub template: Template,
    /// The instance types, any of which will do; empty: the template's.
    pub instance_types: Vec<String>,
    /// The subnets, any of which will do; empty: the template's.
    pub subnets: Vec<String>,
    /// How it is paid for.
    pub purchase: Purchase,
    /// The most a Spot instance may cost, in USD for an hour.
    pub max_price: Option<Price>,
    /// How many instances.
    pub count: u32,
    /// The instances' tags.
    pub tags: Vec<(String, String)>,
    /// The same for a repeat of the same launch: EC2 then launches once.
    pub token: String,
}

/// What a launch template says, as far as nodes depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether a power-off terminates the instance.
    pub terminates: bool,
    /// Whether it has an instance profile.
    pub has_role: bool,
    /// Whether the metadata service offers the instance's tags.
    pub shows_tags: bool,
    /// The metadata service; `None` in it: the image's setting, or the account's.
    pub metadata: Options,
}

/// What came of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launched {
    /// The instances' ids.
    pub instances: Vec<String>,
    /// Why there are fewer than were asked for, in EC2's words, each once.
    pub shortfall: Vec<String>,
}

/// An instance of ours that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// Its id.
    pub id: String,
    /// The task it was launched for: a key, or a short name.
    pub src: Option<String>,
    /// The mission, as the tag names it.
    pub mission: Option<String>,
    /// Whether it is a Spot instance.
    pub is_spot: bool,
    /// How long ago EC2 launched it, by this machine's clock.
    pub age: Duration,
    /// Whether it is stopped, or on its way there: it does no work any more, and its volumes bill.
    pub is_stopped: bool,
    _found: Found,
}

/// Shows that EC2 named an instance as ours: nothing outside this module makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found;

impl Ours {
    /// Returns whether it runs, or boots, and serves a whole mission, this one.
    #[must_use]
    pub fn serves(&self, mission: &MissionId) -> bool {
        !self.is_stopped && self.src.is_none() && self.is_of(mission)
    }

    /// Returns whether its tag names this mission.
    #[must_use]
    pub fn is_of(&self, mission: &MissionId) -> bool {
        self.mission.as_ref().is_some_and(|value| *value == tags::mission_value(mission))
    }
}

/// EC2's scheduling side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet {
    client: Client,
}

impl Fleet {
    /// Makes the client. Sends nothing.
    #[must_use]
    pub fn new(wire: &Wire) -> Self {
        Self { client: Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build()) }
    }

    /// Launches instances by an instant fleet: EC2 chooses among the pools, Spot by `price-capacity-optimized`.
    ///
    /// May be repeated: the same token launches once.
    ///
    /// # Errors
    /// [`CloudError`]: `Invalid`, `NotFound`, or `AccessDenied` if EC2 does not accept the request, whatever the capacity.
    /// That there is no capacity, or that a quota is reached, is a shortfall, not an error.
    pub async fn launch(&self, request: &Request) -> Result<Launched, CloudError> {
        let resource = format!("launch template {}", request.template.name);
        let answer = build(self.client.create_fleet(), request).send().await;
        let answer = match answer.map_err(|e| CloudError::sdk("CreateFleet", &resource, e)) {
            Ok(answer) => answer,
            // A quota that EC2 looks at before it makes the fleet.
            Err(error) if is_shortfall(&error.source.to_string()) => {
                return Ok(Launched { instances: Vec::new(), shortfall: vec![error.source.to_string()] });
            }
            Err(error) => return Err(error),
        };
        let instances: Vec<String> =
            answer.instances().iter().flat_map(|group| group.instance_ids().to_vec()).collect();
        let mut refusals = BTreeMap::new();
        for error in answer.errors() {
            let (code, message) = (error.error_code().unwrap_or("?"), error.error_message().unwrap_or(""));
            refusals.entry(code.to_owned()).or_insert_with(|| format!("{code}: {message}"));
        }
        let is_short = u32::try_from(instances.len()).unwrap_or(u32::MAX) < request.count;
        // One pool's refusal says nothing if another had room, or might have; if all refused, it is the request.
        let is_refused = instances.is_empty() && !refusals.keys().any(|code| is_shortfall(code));
        if is_refused && let Some(said) = refusals.values().next() {
            let kind = if said.contains("UnauthorizedOperation") { Kind::AccessDenied } else { Kind::Refused };
            return Err(CloudError::new(kind, "CreateFleet", resource, said.clone()));
        }
        let mut shortfall: Vec<String> = refusals.into_values().collect();
        if is_short && shortfall.is_empty() {
            shortfall.push("EC2 launched fewer instances than were asked for, and says no reason".to_owned());
        }
        Ok(Launched { instances, shortfall: if is_short { shortfall } else { Vec::new() } })
    }

    /// Reads what a launch template says of what must be right for a node to work, and to end.
    ///
    /// # Errors
    /// [`CloudError`]; `Refused` or `NotFound` if there is no such template or version.
    pub async fn template(&self, template: &Template) -> Result<Terms, CloudError> {
        let (name, by_id) = (Some(template.name.clone()), template.name.starts_with("lt-"));
        let describe = self
            .client
            .describe_launch_template_versions()
            .set_launch_template_id(name.clone().filter(|_| by_id))
            .set_launch_template_name(name.filter(|_| !by_id))
            .versions(&template.version);
        let resource = format!("launch template {}", template.name);
        let answer =
            describe.send().await.map_err(|e| CloudError::sdk("DescribeLaunchTemplateVersions", &resource, e))?;
        let data = answer.launch_template_versions().first().and_then(|version| version.launch_template_data());
        let data = data.ok_or_else(|| {
            let said = format!("it has no version {}", template.version);
            CloudError::new(Kind::Refused, "DescribeLaunchTemplateVersions", resource, said)
        })?;
        let metadata = data.metadata_options();
        let tags = metadata.and_then(|metadata| metadata.instance_metadata_tags());
        let tokens = metadata.and_then(|metadata| metadata.http_tokens());
        Ok(Terms {
            terminates: data.instance_initiated_shutdown_behavior() == Some(&ShutdownBehavior::Terminate),
            has_role: data.iam_instance_profile().is_some(),
            shows_tags: tags == Some(&LaunchTemplateInstanceMetadataTagsState::Enabled),
            metadata: Options {
                hop_limit: metadata.and_then(LaunchTemplateInstanceMetadataOptions::http_put_response_hop_limit),
                needs_token: tokens.map(|tokens| *tokens == LaunchTemplateHttpTokensState::Required),
            },
        })
    }

    /// Asks EC2 whether it would take a launch; launches nothing.
    ///
    /// # Errors
    /// [`CloudError`]: as of a launch.
    pub async fn may_launch(&self, request: &Request) -> Result<(), CloudError> {
        let answer = build(self.client.create_fleet(), request).dry_run(true).send().await;
        let resource = format!("launch template {}", request.template.name);
        super::error::dry_run(answer.map_err(|e| CloudError::sdk("CreateFleet", resource, e)))
    }

    /// Lists the instances of ours in every state that can still bill: pending, running, stopping, and stopped.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn ours(&self, mark: &str) -> Result<Vec<Ours>, CloudError> {
        let filter = |name: String, values: &[&str]| {
            Filter::builder().name(name).set_values(Some(values.iter().map(|v| (*v).to_owned()).collect())).build()
        };
        self.describe(
            vec![
                filter(format!("tag:{}", tags::OURS), &[mark]),
                filter("instance-state-name".to_owned(), &["pending", "running", "stopping", "stopped"]),
            ],
            None,
        )
        .await
    }

    /// Reads one instance, ended or not, if it is ours; `None` if it is not, or if EC2 knows it no more.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn one_of_ours(&self, id: &str, mark: &str) -> Result<Option<Ours>, CloudError> {
        let filter = Filter::builder().name(format!("tag:{}", tags::OURS)).values(mark).build();
        match self.describe(vec![filter], Some(id)).await {
            Ok(mut found) => Ok(found.pop()),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn describe(&self, filters: Vec<Filter>, id: Option<&str>) -> Result<Vec<Ours>, CloudError> {
        let describe = self.client.describe_instances().set_filters(Some(filters));
        let describe = describe.set_instance_ids(id.map(|id| vec![id.to_owned()]));
        let mut pages = describe.into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| CloudError::sdk("DescribeInstances", "instances of ours", e))?;
            let instances = page.reservations().iter().flat_map(aws_sdk_ec2::types::Reservation::instances);
            found.extend(instances.filter_map(ours));
        }
        Ok(found)
    }

    /// Terminates instances of ours. Those that have ended, or are unknown, are no error. May be called twice.
    ///
    /// Only an [`Ours`] can be terminated, and only this module makes one: of an instance that EC2 says bears our tag.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn terminate(&self, instances: &[Ours]) -> Result<(), CloudError> {
        let ids: Vec<String> = instances.iter().map(|ours| ours.id.clone()).collect();
        for some in ids.chunks(100) {
            match self.terminate_ids(some).await {
                // One unknown id refuses the whole call.
                Err(error) if error.kind == Kind::NotFound && some.len() > 1 => {
                    for id in some {
                        match self.terminate_ids(std::slice::from_ref(id)).await {
                            Err(error) if error.kind == Kind::NotFound => {}
                            ended => ended?,
                        }
                    }
                }
                Err(error) if error.kind == Kind::NotFound => {}
                ended => ended?,
            }
        }
        Ok(())
    }

    async fn terminate_ids(&self, ids: &[String]) -> Result<(), CloudError> {
        let answer = self.client.terminate_instances().set_instance_ids(Some(ids.to_vec())).send().await;
        answer.map(drop).map_err(|e| CloudError::sdk("TerminateInstances", ids.join(", "), e))
    }

    /// Reads what Spot costs now: USD for an instance-hour, by instance type, in the cheapest zone.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn spot_prices(&self, instance_types: &[String]) -> Result<BTreeMap<String, f64>, CloudError> {
        let types = instance_types.iter().map(|name| InstanceType::from(name.as_str())).collect();
        let now = aws_smithy_types::DateTime::from(clock::now());
        let mut pages = self
            .client
            .describe_spot_price_history()
            .set_instance_types(Some(types))
            .product_descriptions("Linux/UNIX")
            .start_time(now)
            .into_paginator()
            .send();
        let mut prices: BTreeMap<String, f64> = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| CloudError::sdk("DescribeSpotPriceHistory", instance_types.join(", "), e))?;
            for entry in page.spot_price_history() {
                let (Some(name), Some(price)) = (entry.instance_type(), entry.spot_price()) else { continue };
                let Ok(price) = price.parse::<f64>() else { continue };
                let lowest = prices.entry(name.as_str().to_owned()).or_insert(price);
                *lowest = lowest.min(price);
            }
        }
        Ok(prices)
    }
}

fn build(fleet: CreateFleetFluentBuilder, request: &Request) -> CreateFleetFluentBuilder {
    let by_id = request.template.name.starts_with("lt-");
    let name = Some(request.template.name.clone());
    let template = FleetLaunchTemplateSpecificationRequest::builder()
        .set_launch_template_id(name.clone().filter(|_| by_id))
        .set_launch_template_name(name.filter(|_| !by_id))
        .version(&request.template.version)
        .build();
    let none_or = |list: &[String]| -> Vec<Option<String>> {
        if list.is_empty() { vec![None] } else { list.iter().cloned().map(Some).collect() }
    };
    let max_price = request.max_price.as_ref().filter(|_| request.purchase == Purchase::Spot);
    let pool = |instance_type: &Option<String>, subnet: &Option<String>| {
        FleetLaunchTemplateOverridesRequest::builder()
            .set_instance_type(instance_type.as_deref().map(InstanceType::from))
            .set_subnet_id(subnet.clone())
            .set_max_price(max_price.map(ToString::to_string))
            .build()
    };
    let (types, subnets) = (none_or(&request.instance_types), none_or(&request.subnets));
    let pools = types.iter().flat_map(|t| subnets.iter().map(move |s| pool(t, s))).take(POOLS_MAX).collect();
    let has_pools = max_price.is_some() || types[0].is_some() || subnets[0].is_some();
    let config = FleetLaunchTemplateConfigRequest::builder()
        .launch_template_specification(template)
        .set_overrides(has_pools.then_some(pools))
        .build();
    let count = i32::try_from(request.count).unwrap_or(i32::MAX);
    let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(count);
    let tags = request.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
    let fleet = fleet
        .r#type(FleetType::Instant)
        .client_token(&request.token)
        .launch_template_configs(config)
        .tag_specifications(
            TagSpecification::builder().resource_type(ResourceType::Instance).set_tags(Some(tags)).build(),
        );
    match request.purchase {
        Purchase::Spot => fleet
            .target_capacity_specification(
                capacity
                    .spot_target_capacity(count)
                    .default_target_capacity_type(DefaultTargetCapacityType::Spot)
                    .build(),
            )
            .spot_options(
                SpotOptionsRequest::builder()
                    .allocation_strategy(SpotAllocationStrategy::PriceCapacityOptimized)
                    .instance_interruption_behavior(SpotInstanceInterruptionBehavior::Terminate)
                    .build(),
            ),
        Purchase::OnDemand => fleet
            .target_capacity_specification(
                capacity
                    .on_demand_target_capacity(count)
                    .default_target_capacity_type(DefaultTargetCapacityType::OnDemand)
                    .build(),
            )
            .on_demand_options(
                OnDemandOptionsRequest::builder()
                    .allocation_strategy(FleetOnDemandAllocationStrategy::LowestPrice)
                    .build(),
            ),
    }
}

/// Returns whether EC2's word means that there is no room, or no quota, now. Source: EC2 API reference, "Error codes", and
/// the EC2 Fleet user guide's launch errors. `Unsupported` is a type that a zone does not offer.
fn is_shortfall(word: &str) -> bool {
    const WORDS: [&str; 14] = [
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "UnfulfillableCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "InstanceLimitExceeded",
        "VcpuLimitExceeded",
        "MaxConfigLimitExceededException",
        "RequestLimitExceeded",
        "RequestResourceCountExceeded",
        "Server.InternalError",
        "InternalError",
    ];
    WORDS.iter().any(|known| word.contains(known))
}

fn ours(instance: &aws_sdk_ec2::types::Instance) -> Option<Ours> {
    let tag = |key: &str| {
        let found = instance.tags().iter().find(|tag| tag.key() == Some(key));
        found.and_then(|tag| tag.value()).filter(|value| !value.is_empty()).map(ToOwned::to_owned)
    };
    Some(Ours {
        id: instance.instance_id()?.to_owned(),
        src: tag(tags::SRC),
        mission: tag(tags::MISSION),
        is_spot: instance.instance_lifecycle().is_some(),
        age: instance.launch_time().and_then(|time| clock::since_time(*time)).unwrap_or_default(),
        is_stopped: instance
            .state()
            .and_then(|state| state.name())
            .is_some_and(|state| matches!(state, InstanceStateName::Stopping | InstanceStateName::Stopped)),
        _found: Found,
    })
}
