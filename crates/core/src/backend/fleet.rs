//! EC2 for schedulers: launches by `CreateFleet`, and lists and terminates the deployment's instances.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Builder;
use aws_sdk_ec2::types::{
    Filter, InstanceStateName, LaunchTemplateHttpTokensState, LaunchTemplateInstanceMetadataOptions,
    LaunchTemplateInstanceMetadataTagsState, Reservation, ShutdownBehavior, Tag,
};

use super::create_fleet::{build, is_shortfall};
use super::error::{CloudError, Kind};
use super::machine::Options;
use super::sdk::{Wire, timeouts};
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::request::{HIDDEN_MAX, LAUNCH_MAX};
pub use crate::domain::request::{Request, Template};
use crate::domain::{printable, tags};

/// The settings of a launch template that nodes depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateInfo {
    /// Whether a power-off terminates the instance.
    pub terminates: bool,
    /// Whether it has an instance profile.
    pub has_role: bool,
    /// Whether the metadata service offers the instance's tags.
    pub shows_tags: bool,
    /// The metadata options. `None` in them means the setting of the image or the account.
    pub metadata: Options,
}

/// The time limit of one attempt of a launch. EC2 answers when all instances are launched: seconds for one, more than a
/// minute for thousands. After one attempt that takes the whole limit, 30 s of [`LAUNCH_MAX`] remain for a repetition.
const LAUNCH_TIMEOUT: Duration = Duration::from_mins(2);
/// The longest tag value that is used in a filter. EC2 allows 255 characters. For a longer one, all instances are
/// listed.
const FILTER_BYTES_MAX: usize = 255;
/// The maximum length of a stored reason, in characters.
const REASON_CHARS_MAX: usize = 300;

/// The result of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launched {
    /// The instances' ids.
    pub instances: Vec<String>,
    /// EC2's reasons why fewer instances than requested were launched, without duplicates.
    pub shortfall: Vec<String>,
}

/// EC2's reason for terminating, or not starting, an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// EC2's code, such as `Client.InternalError`.
    pub code: String,
    /// EC2's message, escaped.
    pub words: String,
}

impl Reason {
    /// Returns whether the termination was intended: by a user, by the instance itself, or as a Spot interruption.
    /// Source: EC2 API reference, `StateReason`.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        const USUAL: [&str; 7] = [
            "Client.UserInitiatedShutdown",
            "Client.UserInitiatedHibernate",
            "Client.InstanceInitiatedShutdown",
            "Client.InstanceTerminated",
            "Server.SpotInstanceShutdown",
            "Server.SpotInstanceTermination",
            "Server.ScheduledStop",
        ];
        USUAL.contains(&self.code.as_str())
    }
}

/// An instance of this deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedInstance {
    /// The instance id.
    pub id: String,
    /// The task that it was launched for: a key or a short name.
    pub src: Option<String>,
    /// The mission's id from the tag.
    pub mission: Option<String>,
    /// Whether it is a Spot instance.
    pub is_spot: bool,
    /// The time since EC2 launched it, by this machine's clock.
    pub age: Duration,
    /// Whether it is stopped or stopping. It does no work, but its volumes cost money.
    pub is_stopped: bool,
    /// Whether it is terminated or shutting down.
    pub is_ended: bool,
    /// EC2's reason for the last state change, if there is one.
    pub reason: Option<Reason>,
    /// The epoch of the count of nodes in which it was counted.
    pub epoch: Option<u64>,
    _found: Found,
}

/// Proof that EC2 listed an instance with our tag. Only this module creates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found;

impl ManagedInstance {
    /// Returns the reason for its termination as a sentence.
    #[must_use]
    pub fn end_words(&self) -> String {
        match &self.reason {
            Some(reason) => format!("its instance {} was terminated: {}", self.id, reason.words),
            None => format!("its instance {} was terminated", self.id),
        }
    }

    /// Returns whether it runs or boots, and serves this mission.
    #[must_use]
    pub fn serves(&self, mission: &MissionId) -> bool {
        !self.is_stopped && !self.is_ended && self.src.is_none() && self.is_of(mission)
    }

    /// Returns whether its tag has this mission's id.
    #[must_use]
    pub fn is_of(&self, mission: &MissionId) -> bool {
        self.mission.as_ref().is_some_and(|value| *value == tags::mission_value(mission))
    }
}

/// The EC2 client of a scheduler. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fleet {
    client: Client,
}

impl Fleet {
    /// Creates the client. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire) -> Self {
        Self { client: Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build()) }
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Launches instances by an instant fleet. EC2 chooses among the pools; for Spot, by `price-capacity-optimized`.
    ///
    /// May be repeated: the same token launches once.
    ///
    /// # Errors
    /// [`CloudError`]: `Invalid`, `NotFound` or `AccessDenied` if EC2 refuses the request itself; `Precondition` if the
    /// token was used for another request. Missing capacity or an exhausted quota is a shortfall, not an error.
    pub async fn launch(&self, request: &Request) -> Result<Launched, CloudError> {
        let resource = format!("launch template {}", request.template.name);
        let timeouts = timeouts(LAUNCH_TIMEOUT).to_builder().operation_timeout(LAUNCH_MAX).build();
        let own = Builder::new().timeout_config(timeouts);
        let answer = build(self.client.create_fleet(), request).customize().config_override(own).send().await;
        let answer = match answer.map_err(|e| CloudError::sdk("CreateFleet", &resource, e)) {
            Ok(answer) => answer,
            // EC2 checks this quota before it creates the fleet. If instances may have been launched, it is not a
            // shortfall.
            Err(error) if !error.is_retryable() && is_shortfall(&error.source.to_string()) => {
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
        // A refusal of one pool is ignored if another had or may have capacity. If all pools refuse, the request is
        // refused.
        let is_refused = instances.is_empty() && !refusals.keys().any(|code| is_shortfall(code));
        if is_refused && let Some(said) = refusals.values().next() {
            let kind = if said.contains("UnauthorizedOperation") { Kind::AccessDenied } else { Kind::Refused };
            return Err(CloudError::new(kind, "CreateFleet", resource, said.clone()));
        }
        let mut shortfall: Vec<String> = refusals.into_values().collect();
        if is_short && shortfall.is_empty() {
            shortfall.push("EC2 launched fewer instances than requested, without a reason".to_owned());
        }
        Ok(Launched { instances, shortfall: if is_short { shortfall } else { Vec::new() } })
    }

    /// Reads the settings of a launch template that nodes need to work and to terminate.
    ///
    /// # Errors
    /// [`CloudError`]; `Refused` or `NotFound` if the template or its version does not exist.
    pub async fn template(&self, template: &Template) -> Result<TemplateInfo, CloudError> {
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
            let said = format!("the launch template has no version {}", template.version);
            CloudError::new(Kind::Refused, "DescribeLaunchTemplateVersions", resource, said)
        })?;
        let metadata = data.metadata_options();
        let tags = metadata.and_then(|metadata| metadata.instance_metadata_tags());
        let tokens = metadata.and_then(|metadata| metadata.http_tokens());
        Ok(TemplateInfo {
            terminates: data.instance_initiated_shutdown_behavior() == Some(&ShutdownBehavior::Terminate),
            has_role: data.iam_instance_profile().is_some(),
            shows_tags: tags == Some(&LaunchTemplateInstanceMetadataTagsState::Enabled),
            metadata: Options {
                hop_limit: metadata.and_then(LaunchTemplateInstanceMetadataOptions::http_put_response_hop_limit),
                needs_token: tokens.map(|tokens| *tokens == LaunchTemplateHttpTokensState::Required),
            },
        })
    }

    /// Checks by a dry run whether EC2 would accept a launch.
    ///
    /// # Errors
    /// [`CloudError`], as for a launch.
    pub async fn may_launch(&self, request: &Request) -> Result<(), CloudError> {
        let answer = build(self.client.create_fleet(), request).dry_run(true).send().await;
        let resource = format!("launch template {}", request.template.name);
        super::error::dry_run(answer.map_err(|e| CloudError::sdk("CreateFleet", resource, e)))
    }

    /// Lists the deployment's instances in every state that costs money: pending, running, stopping, and stopped.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn list_instances(&self, mark: &str) -> Result<Vec<ManagedInstance>, CloudError> {
        let states = ["pending", "running", "stopping", "stopped"].map(ToOwned::to_owned).to_vec();
        let states = Filter::builder().name("instance-state-name").set_values(Some(states)).build();
        self.describe(vec![marked(mark), states]).await
    }

    /// Lists the deployment's instances in every state. EC2 shows terminated ones for about an hour.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn list_all_instances(&self, mark: &str) -> Result<Vec<ManagedInstance>, CloudError> {
        self.describe(vec![marked(mark)]).await
    }

    /// Lists the deployment's instances, in every state, that were counted in an epoch.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn all_of_epoch(&self, mark: &str, epoch: u64) -> Result<Vec<ManagedInstance>, CloudError> {
        self.describe(vec![marked(mark), tagged(tags::EPOCH, &epoch.to_string())]).await
    }

    /// Finds a running or booting instance of the deployment with this task tag.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn node_for(&self, mark: &str, src: &str) -> Result<Option<ManagedInstance>, CloudError> {
        let mut filters = vec![marked(mark)];
        // In a filter, `*` and `?` are wildcards, and `\` escapes them.
        if src.len() <= FILTER_BYTES_MAX && !src.contains(['*', '?', '\\']) {
            filters.push(tagged(tags::SRC, src));
        }
        let found = self.describe(filters).await?;
        Ok(found.into_iter().find(|ours| !ours.is_stopped && !ours.is_ended && ours.src.as_deref() == Some(src)))
    }

    /// Reads one instance, terminated or not; `None` if it is not of this deployment, or if EC2 does not know it any
    /// more. EC2 shows a new instance and its tags late: an unknown or young instance without tags is read up to
    /// [`YOUNG_LOOKS`] times.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn find_instance(&self, id: &str, mark: &str) -> Result<Option<ManagedInstance>, CloudError> {
        for look in 1..=YOUNG_LOOKS {
            let answer = self.client.describe_instances().instance_ids(id).send().await;
            let answer = match answer.map_err(|e| CloudError::sdk("DescribeInstances", id, e)) {
                Ok(answer) => Some(answer),
                Err(error) if error.kind == Kind::NotFound => None,
                Err(error) => return Err(error),
            };
            let first = |reservation: &Reservation| reservation.instances().first().cloned();
            let instance = answer.and_then(|answer| answer.reservations().iter().find_map(first));
            let is_marked = |tag: &Tag| tag.key() == Some(tags::OURS) && tag.value() == Some(mark);
            // Tags of AWS, such as the fleet's, appear first.
            let is_set = |tag: &Tag| tag.key().is_some_and(|key| !key.starts_with("aws:"));
            let found = instance.as_ref().and_then(ours);
            match (&instance, found) {
                (Some(instance), found) if instance.tags().iter().any(is_marked) => return Ok(found),
                // It belongs to another deployment, or it is old enough to have its tags.
                (Some(instance), found)
                    if instance.tags().iter().any(is_set)
                        || found.as_ref().is_some_and(|found| found.age >= HIDDEN_MAX) =>
                {
                    return Ok(None);
                }
                _ if look == YOUNG_LOOKS => return Ok(None),
                _ => tokio::time::sleep(YOUNG_PAUSE).await,
            }
        }
        Ok(None)
    }

    async fn describe(&self, filters: Vec<Filter>) -> Result<Vec<ManagedInstance>, CloudError> {
        let mut pages = self.client.describe_instances().set_filters(Some(filters)).into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| CloudError::sdk("DescribeInstances", "instances of this deployment", e))?;
            let instances = page.reservations().iter().flat_map(Reservation::instances);
            found.extend(instances.filter_map(ours));
        }
        Ok(found)
    }

    /// Terminates instances of this deployment. Terminated and unknown instances are not an error. May be repeated.
    ///
    /// Only a [`ManagedInstance`] can be terminated, and only this module creates one, from an instance that EC2 lists
    /// with our tag.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn terminate(&self, instances: &[ManagedInstance]) -> Result<(), CloudError> {
        let ids: Vec<String> = instances.iter().map(|ours| ours.id.clone()).collect();
        for some in ids.chunks(100) {
            match self.terminate_ids(some).await {
                // One unknown id makes EC2 refuse the whole call.
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
}

fn marked(mark: &str) -> Filter {
    tagged(tags::OURS, mark)
}

fn tagged(key: &str, value: &str) -> Filter {
    Filter::builder().name(format!("tag:{key}")).values(value).build()
}

/// The number of reads of a new instance, and the pause between them: 9 s, within a function call for the instance's
/// event.
const YOUNG_LOOKS: u32 = 4;
const YOUNG_PAUSE: Duration = Duration::from_secs(3);

/// Returns EC2's reason for the last state change as one escaped line.
fn reason_of(instance: &aws_sdk_ec2::types::Instance) -> Option<Reason> {
    let reason = instance.state_reason()?;
    let (code, message) = (reason.code().unwrap_or_default(), reason.message().unwrap_or_default());
    // The message usually starts with the code.
    let words = if message.starts_with(code) { message.to_owned() } else { format!("{code}: {message}") };
    let words: String = printable::one_line(words.trim_end_matches(": ")).chars().take(REASON_CHARS_MAX).collect();
    (!words.is_empty()).then(|| Reason { code: code.to_owned(), words })
}

fn ours(instance: &aws_sdk_ec2::types::Instance) -> Option<ManagedInstance> {
    let tag = |key: &str| {
        let found = instance.tags().iter().find(|tag| tag.key() == Some(key));
        found.and_then(|tag| tag.value()).filter(|value| !value.is_empty()).map(ToOwned::to_owned)
    };
    let state = instance.state().and_then(|state| state.name());
    Some(ManagedInstance {
        id: instance.instance_id()?.to_owned(),
        src: tag(tags::SRC),
        mission: tag(tags::MISSION),
        is_spot: instance.instance_lifecycle().is_some(),
        age: instance.launch_time().and_then(|time| clock::since_time(*time)).unwrap_or_default(),
        is_stopped: state.is_some_and(|s| matches!(s, InstanceStateName::Stopping | InstanceStateName::Stopped)),
        is_ended: state.is_some_and(|s| matches!(s, InstanceStateName::ShuttingDown | InstanceStateName::Terminated)),
        reason: reason_of(instance),
        epoch: tag(tags::EPOCH).and_then(|epoch| epoch.parse().ok()),
        _found: Found,
    })
}
