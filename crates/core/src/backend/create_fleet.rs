//! `CreateFleet`: builds the request of a launch, and classifies refusals as missing capacity or as errors.

use aws_sdk_ec2::operation::create_fleet::builders::CreateFleetFluentBuilder;
use aws_sdk_ec2::types::{
    DefaultTargetCapacityType, FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetType, InstanceType,
    OnDemandOptionsRequest, ResourceType, SpotAllocationStrategy, SpotInstanceInterruptionBehavior, SpotOptionsRequest,
    Tag, TagSpecification, TargetCapacitySpecificationRequest,
};

use crate::domain::policy::Purchase;
use crate::domain::request::Request;

/// The maximum number of pools (instance type × subnet) in one request. Source: EC2 user guide, "EC2 Fleet quotas": 300
/// launch specifications and overrides per fleet.
const POOLS_MAX: usize = 300;

/// Builds the request of a launch.
pub(super) fn build(fleet: CreateFleetFluentBuilder, request: &Request) -> CreateFleetFluentBuilder {
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

/// Returns whether an EC2 error code means that capacity or a quota is exhausted now. Sources: EC2 API reference,
/// "Error codes"; the launch errors in the EC2 Fleet user guide; Karpenter's `unfulfillableCapacityErrorCodes`;
/// `scale_errors` of terraform-aws-github-runner. `Unsupported` means that a zone does not offer the type; another zone
/// may.
pub(super) fn is_shortfall(word: &str) -> bool {
    const WORDS: [&str; 27] = [
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientVolumeCapacity",
        "InsufficientAddressCapacity",
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "ReservationCapacityExceeded",
        "UnfulfillableCapacity",
        "TargetCapacityLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "MaxFleetCountExceeded",
        "SpotInstanceRequestLimitExceeded",
        "SpotMaxPriceTooLow",
        "InstanceLimitExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
        "MaxIOPSLimitExceeded",
        "NetworkInterfaceLimitExceeded",
        "ResourceLimitExceeded",
        "ResourceCountExceeded",
        "MaxConfigLimitExceeded",
        "RequestLimitExceeded",
        "RequestResourceCountExceeded",
        "InternalError",
        "Unsupported",
    ];
    // Only the code is compared, because a message may contain any name. `Server.InternalError` and `…Exception` are
    // variants of it.
    let code = word.split(':').next().unwrap_or(word);
    let code = code.trim().trim_end_matches("Exception").trim_start_matches("Server.").trim_start_matches("Client.");
    WORDS.contains(&code) || code.starts_with("InsufficientCapacity")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_a_message_is_no_code() {
        for word in [
            "InsufficientInstanceCapacity",
            "InsufficientCapacityOnHost",
            "TargetCapacityLimitExceededException: you have reached the limit",
            "MaxSpotFleetRequestCountExceeded: too many",
            "Server.InternalError: Internal error on launch",
            "Unsupported: Your requested instance type (x) is not supported in your requested Availability Zone (a)",
        ] {
            assert!(is_shortfall(word), "{word}");
        }
        for word in [
            "UnauthorizedOperation: to see InsufficientInstanceCapacity, ask for rights",
            "UnsupportedOperation: the image has no boot mode",
            "InvalidFleetConfig: Unsupported",
            "IdempotentParameterMismatch",
            "",
        ] {
            assert!(!is_shortfall(word), "{word}");
        }
    }
}
