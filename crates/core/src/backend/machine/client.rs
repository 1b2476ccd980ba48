//! The client of EC2 and IMDS: which machine this is, and whether another instance is alive.

use std::sync::{Arc, Mutex, OnceLock};

use aws_config::imds;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Builder;
use aws_sdk_ec2::types::{
    Filter, HttpTokensState, InstanceAttributeName, InstanceMetadataOptionsResponse, InstanceStateName,
};
use lighthpc_runtime::HeldName;

use super::power_off::PowerOff;
use super::proof::EndProof;
use crate::backend::error::{CloudError, Kind};
use crate::backend::sdk::Wire;
use crate::backend::unknown::Unknown;
use crate::domain::machine_info::{MachineInfo, PurchaseOption};
use crate::domain::{ids, tags};

/// The tags of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTags {
    /// The value of `srcID`.
    pub src: Option<String>,
    /// The value of `missionID`.
    pub mission: Option<String>,
    /// The proof that this instance is a node, if it has a tag of ours.
    pub proof: Option<EndProof>,
}

/// The metadata options of an instance; `None` if EC2 does not report them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The number of network hops of an answer with a token. More than 1 reaches containers.
    pub hop_limit: Option<i32>,
    /// Whether every request needs a token (`IMDSv2`).
    pub needs_token: Option<bool>,
}

/// The client of EC2 and IMDS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) client: Client,
    imds: imds::Client,
    pub(super) imds_is_real: bool,
    pub(super) power_off: PowerOff,
    /// The id of this instance, from IMDS only: a machine terminates only itself.
    own: Arc<OnceLock<String>>,
    /// This process's slot on the instance.
    pub(super) place: Arc<Mutex<Option<HeldName>>>,
    /// Instances that EC2 did not list.
    unknown: Unknown,
}

impl Machine {
    /// Creates the clients. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire, power_off: PowerOff) -> Self {
        let client = Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build());
        let own = Arc::new(OnceLock::new());
        Self {
            client,
            imds: wire.imds.clone(),
            imds_is_real: wire.imds_is_real,
            power_off,
            own,
            place: Arc::default(),
            unknown: Unknown::default(),
        }
    }

    /// Reads this machine's instance id from IMDS (version 2 only).
    ///
    /// # Errors
    /// [`CloudError`]: `Unreachable` if there is no IMDS, that is, off EC2.
    pub async fn instance_id(&self) -> Result<String, CloudError> {
        if let Some(own) = self.own.get() {
            return Ok(own.clone());
        }
        let id = self.metadata("instance-id").await?.filter(|id| !id.is_empty()).ok_or_else(|| {
            CloudError::new(Kind::NotFound, "IMDS", "instance-id", "IMDS answers, but has no instance id")
        })?;
        Ok(self.own.get_or_init(|| id).clone())
    }

    /// Reads one of this machine's tags from IMDS; `None` if it has no such tag or tags are not offered there.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn tag(&self, key: &str) -> Result<Option<String>, CloudError> {
        self.metadata(&format!("tags/instance/{key}")).await
    }

    /// Reads the Spot interruption notice from IMDS; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn spot_notice(&self) -> Result<Option<String>, CloudError> {
        self.metadata("spot/instance-action").await
    }

    /// Reads from IMDS whether EC2 recommends to replace this Spot instance, because its risk of interruption is high.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn rebalance_recommended(&self) -> Result<bool, CloudError> {
        Ok(self.metadata("events/recommendations/rebalance").await?.is_some())
    }

    /// Reads this instance's type, zone, and purchase option from IMDS. The price is not known there.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn describe(&self) -> Result<MachineInfo, CloudError> {
        let (instance_type, zone, purchase) = tokio::try_join!(
            self.metadata("instance-type"),
            self.metadata("placement/availability-zone"),
            self.metadata("instance-life-cycle")
        )?;
        let purchase = purchase.as_deref().and_then(PurchaseOption::parse);
        Ok(MachineInfo { instance_type, zone, purchase, usd_per_hour: None })
    }

    pub(super) async fn metadata(&self, path: &str) -> Result<Option<String>, CloudError> {
        use imds::client::error::ImdsError;
        match self.imds.get(format!("/latest/meta-data/{path}")).await {
            Ok(value) => Ok(Some(String::from(value))),
            Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => Ok(None),
            Err(error) => {
                let kind = match &error {
                    ImdsError::ErrorResponse(answer) if answer.response().status().as_u16() < 429 => Kind::AccessDenied,
                    _ => Kind::Unreachable,
                };
                let words = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
                Err(CloudError::new(kind, "IMDS", path, words))
            }
        }
    }

    /// Reads an instance's tags from EC2, if IMDS does not offer them.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn tags_of(&self, instance: &str) -> Result<Vec<(String, String)>, CloudError> {
        let filter = Filter::builder().name("resource-id").values(instance).build();
        let answer = self
            .client
            .describe_tags()
            .filters(filter)
            .send()
            .await
            .map_err(|e| CloudError::sdk("DescribeTags", instance, e))?;
        let pair = |tag: &aws_sdk_ec2::types::TagDescription| Some((tag.key()?.to_owned(), tag.value()?.to_owned()));
        Ok(answer.tags().iter().filter_map(pair).collect())
    }

    /// Reads the tags of this instance: from IMDS and, if that has neither `srcID` nor `missionID`, from EC2.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn node_tags(&self) -> Result<NodeTags, CloudError> {
        let instance = &self.instance_id().await?;
        let (src, mission) = tokio::try_join!(self.tag(tags::SRC), self.tag(tags::MISSION))?;
        if src.is_some() || mission.is_some() {
            let keys = [(tags::SRC, &src), (tags::MISSION, &mission)];
            let keys = keys.into_iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key);
            let proof = EndProof::of_tags(instance, keys);
            return Ok(NodeTags { src, mission, proof });
        }
        // 404: the tag does not exist, or the metadata options do not offer tags. EC2 has the answer.
        let mut found = self.tags_of(instance).await?;
        let proof = EndProof::of_tags(instance, found.iter().map(|(key, _)| key.as_str()));
        let mut take = |name: &str| found.iter().position(|(key, _)| key == name).map(|at| found.swap_remove(at).1);
        Ok(NodeTags { src: take(tags::SRC), mission: take(tags::MISSION), proof })
    }

    /// Reads an instance's metadata options from EC2.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn options_of(&self, instance: &str) -> Result<Options, CloudError> {
        let answer = self.client.describe_instances().instance_ids(instance).send().await;
        let answer = answer.map_err(|e| CloudError::sdk("DescribeInstances", instance, e))?;
        let mut instances = answer.reservations().iter().flat_map(aws_sdk_ec2::types::Reservation::instances);
        let options = instances.next().and_then(|instance| instance.metadata_options());
        let tokens = options.and_then(|options| options.http_tokens());
        Ok(Options {
            hop_limit: options.and_then(InstanceMetadataOptionsResponse::http_put_response_hop_limit),
            needs_token: tokens.map(|tokens| *tokens == HttpTokensState::Required),
        })
    }

    /// Reads the shutdown behaviour of an instance: `terminate` or `stop`.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn shutdown_behavior(&self, instance: &str) -> Result<Option<String>, CloudError> {
        let attribute = InstanceAttributeName::InstanceInitiatedShutdownBehavior;
        let answer = self.client.describe_instance_attribute().instance_id(instance).attribute(attribute).send().await;
        let answer = answer.map_err(|e| CloudError::sdk("DescribeInstanceAttribute", instance, e))?;
        Ok(answer.instance_initiated_shutdown_behavior().and_then(|behavior| behavior.value()).map(str::to_owned))
    }

    /// Checks by a dry run whether this caller may terminate an instance.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn may_terminate(&self, instance: &str) -> Result<(), CloudError> {
        let answer = self.client.terminate_instances().instance_ids(instance).dry_run(true).send().await;
        crate::backend::error::dry_run(answer.map_err(|e| CloudError::sdk("TerminateInstances", instance, e)))
    }

    /// Checks in EC2 whether an instance is permanently gone: terminated, shutting down or stopped. EC2 does not know
    /// an owner that is not an instance, so it is never gone: its lease must expire.
    ///
    /// An instance that EC2 does not list counts as gone after [`UNKNOWN_MIN`](crate::backend::unknown::UNKNOWN_MIN) on this
    /// process's monotonic clock, because EC2 may show a new one late. Source: EC2 developer guide, "Eventual
    /// consistency".
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn is_gone(&self, instance: &str) -> Result<bool, CloudError> {
        if !ids::is_ec2_instance(instance) {
            return Ok(false);
        }
        let answer = self.client.describe_instances().instance_ids(instance).send().await;
        let answer = match answer.map_err(|e| CloudError::sdk("DescribeInstances", instance, e)) {
            Ok(answer) => answer,
            Err(error) if error.kind == Kind::NotFound => return Ok(self.unknown.is_believed(instance)),
            Err(error) => return Err(error),
        };
        let mut instances = answer.reservations().iter().flat_map(aws_sdk_ec2::types::Reservation::instances);
        let Some(state) = instances.find_map(|instance| instance.state()?.name()) else {
            return Ok(self.unknown.is_believed(instance));
        };
        self.unknown.forget(instance);
        Ok(matches!(
            state,
            InstanceStateName::ShuttingDown
                | InstanceStateName::Terminated
                | InstanceStateName::Stopping
                | InstanceStateName::Stopped
        ))
    }
}
