//! EC2: launches, lists, and terminates the instances of [`Fleet`], and records the requests.
//!
//! It never starts a process: the caller plays the machine. It refuses the pools that EC2 refuses, and launches once
//! for one client token (while the process lives; EC2 for at least a day). Launch templates and capacity are not
//! modelled: a call for them is refused by its name. There is one Spot price.

use aws_smithy_types::body::SdkBody;

use super::filter::Filters;
use super::fleet::{Fleet, Machine};
use super::names::REGION;
use super::query::{Form, Xml, fresh_id, reply};

const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";
/// The Spot price of every instance type, in USD per hour.
const SPOT_PRICE: &str = "0.034100";
/// Launches in one call; more is a mistake in a test.
const COUNT_MAX: usize = 10_000;

/// Answers one call.
pub(super) fn answer(fleet: &Fleet, form: &Form) -> http::Response<SdkBody> {
    fleet.record(form.without("Version"));
    let outcome = match form.action() {
        "CreateFleet" => create_fleet(fleet, form),
        "DescribeInstances" => describe_instances(fleet, form),
        "TerminateInstances" => terminate_instances(fleet, form),
        "DescribeTags" => describe_tags(fleet, form),
        "DescribeSubnets" => describe_subnets(fleet, form),
        "DescribeSpotPriceHistory" => describe_spot_prices(form),
        "DescribeInstanceTypeOfferings" => describe_offerings(fleet, form),
        other => Err(Ec2Error::new("InvalidAction", format!("The action {other} is not valid for this web service."))),
    };
    match outcome {
        Ok(mut xml) => {
            xml.field("requestId", fresh_id());
            reply(200, "text/xml", xml.root(&format!("{}Response", form.action()), NAMESPACE))
        }
        Err(error) => error_reply(error.status, error.code, &error.message),
    }
}

/// Builds an error answer from which the SDK reads the code.
pub(super) fn error_reply(status: u16, code: &str, message: &str) -> http::Response<SdkBody> {
    let mut xml = Xml::default();
    xml.element("Errors", |xml| {
        xml.element("Error", |xml| {
            xml.field("Code", code).field("Message", message);
        });
    });
    xml.field("RequestID", fresh_id());
    reply(status, "text/xml", xml.root("Response", NAMESPACE))
}

/// A refusal, with EC2's code.
struct Ec2Error {
    status: u16,
    code: &'static str,
    message: String,
}

impl Ec2Error {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, code, message: message.into() }
    }
}

/// Refuses a dry run, which has passed all checks.
fn refuse_dry_run(form: &Form) -> Result<(), Ec2Error> {
    if !form.is_true("DryRun") {
        return Ok(());
    }
    let message = "Request would have succeeded, but DryRun flag is set.";
    Err(Ec2Error { status: 412, ..Ec2Error::new("DryRunOperation", message) })
}

fn require_known(fleet: &Fleet, ids: &[String]) -> Result<(), Ec2Error> {
    match fleet.first_unknown(ids) {
        None => Ok(()),
        Some(id) => Err(Ec2Error::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))),
    }
}

fn parse_count(form: &Form, name: &'static str) -> Result<usize, Ec2Error> {
    let text = form.get(name).unwrap_or("1");
    match text.parse() {
        Ok(count @ 1..=COUNT_MAX) => Ok(count),
        _ => Err(Ec2Error::new("InvalidParameterValue", format!("Invalid value '{text}' for {name}."))),
    }
}

/// Launches `count` instances with the call's tags for instances; once for one client token.
fn launch(fleet: &Fleet, form: &Form, count: usize) -> Result<Vec<String>, Ec2Error> {
    let is_for_instances = |prefix: &String| form.get(&format!("{prefix}.ResourceType")) == Some("instance");
    let specifications = form.indexes("TagSpecification");
    let tags: Vec<_> = specifications
        .iter()
        .filter(|prefix| is_for_instances(prefix))
        .flat_map(|prefix| form.tags(&format!("{prefix}.Tag")))
        .collect();
    fleet.launch_once(form.get("ClientToken"), form.without("ClientToken"), || launch_all(fleet, &tags, count)).map_err(
        |()| Ec2Error::new("IdempotentParameterMismatch", "The client token was used with other parameters before."),
    )
}

/// Launches instances.
#[cfg(not(any(test, feature = "testing")))]
fn launch_all(fleet: &Fleet, tags: &[(String, String)], count: usize) -> Vec<String> {
    (0..count).map(|_| fleet.launch(tags.to_vec())).collect()
}

/// Launches instances; the hook may make fewer of them, and more that the answer does not name.
#[cfg(any(test, feature = "testing"))]
fn launch_all(fleet: &Fleet, tags: &[(String, String)], count: usize) -> Vec<String> {
    let change = fleet.next_launch();
    for _ in 0..change.more {
        fleet.launch(tags.to_vec());
    }
    (0..count.saturating_sub(change.fewer)).map(|_| fleet.launch(tags.to_vec())).collect()
}

/// Launches an `instant` fleet. The other types launch later, which nothing here would do.
fn create_fleet(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    if form.get("Type") != Some("instant") {
        return Err(Ec2Error::new("InvalidParameterValue", "the local cloud has fleets of type instant only"));
    }
    let count = parse_count(form, "TargetCapacitySpecification.TotalTargetCapacity")?;
    refuse_pools(fleet, form)?;
    refuse_dry_run(form)?;
    let ids = launch(fleet, form, count)?;
    let mut xml = Xml::default();
    xml.field("fleetId", format!("fleet-{}", fresh_id())).element("errorSet", |_| ());
    xml.element("fleetInstanceSet", |xml| {
        xml.element("item", |xml| {
            xml.field("lifecycle", "spot").field("instanceType", "c7i.large");
            xml.element("instanceIds", |xml| {
                for id in &ids {
                    xml.field("item", id);
                }
            });
        });
    });
    Ok(xml)
}

/// Refuses the whole request if it names a pool (instance type and zone) twice or a type that the region does not have.
fn refuse_pools(fleet: &Fleet, form: &Form) -> Result<(), Ec2Error> {
    let zones = fleet.subnets();
    let mut pools = std::collections::BTreeSet::new();
    for config in form.indexes("LaunchTemplateConfigs") {
        for pool in form.indexes(&format!("{config}.Overrides")) {
            let field = |name: &str| form.get(&format!("{pool}.{name}")).unwrap_or_default();
            let (instance_type, subnet) = (field("InstanceType"), field("SubnetId"));
            if !instance_type.is_empty() && !fleet.offers(instance_type) {
                let message = format!("Invalid value '{instance_type}' for InstanceType.");
                return Err(Ec2Error::new("InvalidParameterValue", message));
            }
            let zone = zones.get(subnet).cloned().unwrap_or_else(|| subnet.to_owned());
            if !pools.insert((instance_type.to_owned(), zone)) {
                let message = "The fleet configuration contains duplicate instance pools";
                return Err(Ec2Error::new("InvalidFleetConfig", message));
            }
        }
    }
    Ok(())
}

fn describe_subnets(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    let filters = Filters::parse(form);
    if let Some(name) = filters.first_unknown(|name| name == "subnet-id") {
        return Err(Ec2Error::new("InvalidParameterValue", format!("The filter '{name}' is invalid")));
    }
    refuse_dry_run(form)?;
    let mut xml = Xml::default();
    xml.element("subnetSet", |xml| {
        for (id, zone) in fleet.subnets() {
            if filters.all_match(|_| vec![id.clone()]) {
                xml.element("item", |xml| {
                    xml.field("subnetId", &id).field("availabilityZone", zone);
                });
            }
        }
    });
    Ok(xml)
}

/// Returns one Spot price for every requested type, as if it had never changed.
fn describe_spot_prices(form: &Form) -> Result<Xml, Ec2Error> {
    refuse_dry_run(form)?;
    let mut xml = Xml::default();
    xml.element("spotPriceHistorySet", |xml| {
        for instance_type in form.list("InstanceType") {
            xml.element("item", |xml| {
                xml.field("instanceType", &instance_type)
                    .field("productDescription", "Linux/UNIX")
                    .field("spotPrice", SPOT_PRICE)
                    .field("timestamp", "2026-01-01T00:00:00.000Z")
                    .field("availabilityZone", form.get("AvailabilityZone").unwrap_or("us-east-1a"));
            });
        }
    });
    Ok(xml)
}

/// Returns those of the requested types that the region offers. There is no list of all types.
fn describe_offerings(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    refuse_dry_run(form)?;
    if form.get("Filter.1.Name") != Some("instance-type") {
        return Err(Ec2Error::new("InvalidParameterValue", "the local cloud needs the filter instance-type"));
    }
    let mut xml = Xml::default();
    xml.element("instanceTypeOfferingSet", |xml| {
        for name in form.list("Filter.1.Value").iter().filter(|name| fleet.offers(name)) {
            xml.element("item", |xml| {
                xml.field("instanceType", name).field("locationType", "region").field("location", REGION);
            });
        }
    });
    Ok(xml)
}

fn describe_instances(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    let ids = form.list("InstanceId");
    let filters = Filters::parse(form);
    if let Some(name) = filters.first_unknown(is_instance_field) {
        return Err(Ec2Error::new("InvalidParameterValue", format!("The filter '{name}' is invalid")));
    }
    fleet.add_earlier(&ids);
    require_known(fleet, &ids)?;
    refuse_dry_run(form)?;
    let mut machines = fleet.all();
    machines.retain(|(id, machine)| {
        !machine.is_hidden
            && (ids.is_empty() || ids.contains(id))
            && filters.all_match(|name| instance_field(name, id, machine))
    });
    let mut xml = Xml::default();
    xml.element("reservationSet", |xml| {
        for (id, machine) in &machines {
            xml.element("item", |xml| {
                xml.field("reservationId", "r-00000000000000000").field("ownerId", "000000000000");
                xml.element("instancesSet", |xml| instance_item(xml, id, machine));
            });
        }
    });
    Ok(xml)
}

fn is_instance_field(name: &str) -> bool {
    matches!(name, "instance-id" | "instance-state-name" | "tag-key") || name.starts_with("tag:")
}

fn instance_field(name: &str, id: &str, machine: &Machine) -> Vec<String> {
    match name {
        "instance-id" => vec![id.to_owned()],
        "instance-state-name" => vec![machine.state().to_owned()],
        "tag-key" => machine.tags.keys().cloned().collect(),
        _ => name.strip_prefix("tag:").and_then(|key| machine.tags.get(key)).cloned().into_iter().collect(),
    }
}

fn instance_item(xml: &mut Xml, id: &str, machine: &Machine) {
    let launched_at =
        aws_smithy_types::DateTime::from_millis(i64::try_from(machine.launched_at.as_millis()).unwrap_or(i64::MAX));
    xml.element("item", |xml| {
        xml.field("instanceId", id).field("imageId", "ami-00000000000000000").field("instanceType", "c7i.large");
        xml.element("instanceState", |xml| state_fields(xml, machine.state()));
        if let Ok(time) = launched_at.fmt(aws_smithy_types::date_time::Format::DateTime) {
            xml.field("launchTime", time);
        }
        xml.element("placement", |xml| {
            xml.field("availabilityZone", format!("{REGION}a"));
        });
        xml.field("instanceLifecycle", "spot");
        if let Some((code, message)) = &machine.reason {
            xml.element("stateReason", |xml| {
                xml.field("code", code).field("message", message);
            });
        }
        xml.element("tagSet", |xml| {
            for (key, value) in &machine.tags {
                xml.element("item", |xml| {
                    xml.field("key", key).field("value", value);
                });
            }
        });
    });
}

fn state_fields(xml: &mut Xml, name: &str) {
    let code = match name {
        "running" => 16,
        "stopped" => 80,
        _ => 48,
    };
    xml.field("code", code).field("name", name);
}

fn terminate_instances(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    let ids = form.list("InstanceId");
    require_known(fleet, &ids)?;
    refuse_dry_run(form)?;
    let mut xml = Xml::default();
    xml.element("instancesSet", |xml| {
        for id in &ids {
            let before = fleet.change(id, |machine| {
                let before = machine.state();
                machine.terminate_calls += 1;
                (machine.is_running, machine.is_stopped) = (false, false);
                let code = "Client.UserInitiatedShutdown";
                machine.reason.get_or_insert_with(|| (code.to_owned(), format!("{code}: User initiated shutdown")));
                before
            });
            xml.element("item", |xml| {
                xml.field("instanceId", id);
                xml.element("currentState", |xml| state_fields(xml, "terminated"));
                xml.element("previousState", |xml| state_fields(xml, before.unwrap_or("terminated")));
            });
        }
    });
    Ok(xml)
}

fn describe_tags(fleet: &Fleet, form: &Form) -> Result<Xml, Ec2Error> {
    let filters = Filters::parse(form);
    let is_field = |name: &str| matches!(name, "resource-id" | "resource-type" | "key" | "value");
    if let Some(name) = filters.first_unknown(is_field) {
        return Err(Ec2Error::new("InvalidParameterValue", format!("The filter '{name}' is invalid")));
    }
    refuse_dry_run(form)?;
    let mut xml = Xml::default();
    xml.element("tagSet", |xml| {
        for (id, machine) in fleet.all() {
            for (key, value) in &machine.tags {
                let field = |name: &str| match name {
                    "resource-id" => vec![id.clone()],
                    "resource-type" => vec!["instance".to_owned()],
                    "key" => vec![key.clone()],
                    _ => vec![value.clone()],
                };
                if filters.all_match(field) {
                    xml.element("item", |xml| {
                        xml.field("resourceId", &id).field("resourceType", "instance");
                        xml.field("key", key).field("value", value);
                    });
                }
            }
        }
    });
    Ok(xml)
}
