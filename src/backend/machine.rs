//! EC2 and IMDS: which machine this is, whether another still lives, and this one's end.

use std::time::Duration;

use aws_config::imds;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Builder;
use aws_sdk_ec2::types::{
    Filter, HttpTokensState, InstanceAttributeName, InstanceMetadataOptionsResponse, InstanceStateName,
};
use tokio::process::Command;

use super::error::{CloudError, Kind};
use super::sdk::Wire;
use crate::domain::backoff;

/// How this machine is switched off if EC2 does not end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// By `systemctl poweroff`, but only if IMDS answers at its own link-local address: a stand-in for IMDS means that
    /// this is somebody's desk.
    OnEc2,
    /// By this command line, for `sh -c`, wherever this is.
    By(String),
    /// Never: the machine is not ours.
    Never,
}

/// How often the machine asks EC2 for its own end, the SDK's five attempts (about 4 s) a time. With waits of up to 5 s
/// between, about a minute at the most: then the power goes off.
const TERMINATE_TRIES_MAX: u32 = 7;
/// A power-off returns at once; a minute is for a system that is out of memory.
const POWER_OFF_TIMEOUT: Duration = Duration::from_mins(1);

/// How the machine's end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// EC2 terminates the instance.
    Terminated,
    /// The power goes off; the shutdown behaviour `terminate` does the rest.
    PoweredOff,
    /// Nothing was done: this is not a machine of ours to end.
    LeftRunning,
}

/// What EC2 has set for an instance's metadata service; `None` where it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many hops an answer with a token may go: more than 1 reaches containers.
    pub hop_limit: Option<i32>,
    /// Whether every read needs a token (`IMDSv2`).
    pub needs_token: Option<bool>,
}

/// Why the machine could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The power-off command could not be run, or failed.
    #[error("running `{command}`: {reason}")]
    PowerOff {
        /// The command line.
        command: String,
        /// What happened.
        reason: String,
    },
}

/// EC2 and IMDS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machine {
    client: Client,
    imds: imds::Client,
    imds_is_real: bool,
    power_off: PowerOff,
}

impl Machine {
    /// Makes the clients. Sends nothing.
    #[must_use]
    pub fn new(wire: &Wire, power_off: PowerOff) -> Self {
        let client = Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build());
        Self { client, imds: wire.imds.clone(), imds_is_real: wire.imds_is_real, power_off }
    }

    /// Reads this machine's instance id from IMDS (version 2 only).
    ///
    /// # Errors
    /// [`CloudError`]: `Unreachable` where there is no IMDS, that is, not on EC2.
    pub async fn instance_id(&self) -> Result<String, CloudError> {
        self.metadata("instance-id").await?.ok_or_else(|| {
            CloudError::new(Kind::NotFound, "IMDS", "instance-id", "IMDS answers, but knows no instance id")
        })
    }

    /// Reads one of this machine's tags from IMDS; `None` if it has no such tag or tags are not offered there.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn tag(&self, key: &str) -> Result<Option<String>, CloudError> {
        self.metadata(&format!("tags/instance/{key}")).await
    }

    /// Reads the Spot interruption notice as IMDS has it; `None` while there is none.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn spot_notice(&self) -> Result<Option<String>, CloudError> {
        self.metadata("spot/instance-action").await
    }

    /// Reads whether EC2 recommends to leave this Spot instance, for one that is less likely to be interrupted.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn rebalance_recommended(&self) -> Result<bool, CloudError> {
        Ok(self.metadata("events/recommendations/rebalance").await?.is_some())
    }

    async fn metadata(&self, path: &str) -> Result<Option<String>, CloudError> {
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

    /// Reads an instance's tags from EC2, where IMDS does not offer them.
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

    /// Reads what EC2 has set for an instance's metadata service.
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

    /// Reads what EC2 does with an instance that switches itself off: `terminate` or `stop`.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn shutdown_behavior(&self, instance: &str) -> Result<Option<String>, CloudError> {
        let attribute = InstanceAttributeName::InstanceInitiatedShutdownBehavior;
        let answer = self.client.describe_instance_attribute().instance_id(instance).attribute(attribute).send().await;
        let answer = answer.map_err(|e| CloudError::sdk("DescribeInstanceAttribute", instance, e))?;
        Ok(answer.instance_initiated_shutdown_behavior().and_then(|behavior| behavior.value()).map(str::to_owned))
    }

    /// Asks EC2 whether this caller may end an instance; ends nothing.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn may_terminate(&self, instance: &str) -> Result<(), CloudError> {
        let answer = self.client.terminate_instances().instance_ids(instance).dry_run(true).send().await;
        super::error::dry_run(answer.map_err(|e| CloudError::sdk("TerminateInstances", instance, e)))
    }

    /// Asks EC2 whether an instance is gone for good: terminated, on its way there, stopped, or unknown. Of a name that is
    /// no instance id (a desk's) EC2 knows nothing, so it is not gone.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn is_gone(&self, instance: &str) -> Result<bool, CloudError> {
        let is_id = instance.strip_prefix("i-").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !is_id {
            return Ok(false);
        }
        let answer = self.client.describe_instances().instance_ids(instance).send().await;
        let answer = match answer.map_err(|e| CloudError::sdk("DescribeInstances", instance, e)) {
            Ok(answer) => answer,
            Err(error) if error.kind == Kind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut states = answer
            .reservations()
            .iter()
            .flat_map(aws_sdk_ec2::types::Reservation::instances)
            .filter_map(|instance| instance.state()?.name());
        Ok(states.all(|state| {
            matches!(
                state,
                InstanceStateName::ShuttingDown
                    | InstanceStateName::Terminated
                    | InstanceStateName::Stopping
                    | InstanceStateName::Stopped
            )
        }))
    }

    /// Ends this machine: by EC2, and if EC2 does not, by power-off.
    ///
    /// # Errors
    /// [`EndError`] if both fail. May be called again.
    pub async fn end(&self, instance: Option<&str>) -> Result<End, EndError> {
        if let Some(instance) = instance {
            match self.terminate(instance).await {
                Ok(()) => return Ok(End::Terminated),
                Err(error) => tracing::error!("EC2 does not terminate {instance}: {error}: {}", error.source),
            }
        }
        let is_ours = self.imds_is_real && (instance.is_some() || is_ec2());
        switch_off(&self.power_off, is_ours).await
    }

    async fn terminate(&self, instance: &str) -> Result<(), CloudError> {
        let mut tries = 0;
        loop {
            let answer = self.client.terminate_instances().instance_ids(instance).send().await;
            let Err(error) = answer.map_err(|e| CloudError::sdk("TerminateInstances", instance, e)) else {
                return Ok(());
            };
            tries += 1;
            if !error.is_retryable() || tries >= TERMINATE_TRIES_MAX {
                return Err(error);
            }
            tokio::time::sleep(backoff::delay(tries + 4, rand::random())).await;
        }
    }
}

/// Ends this machine where not even the SDK could be set up: by power-off.
///
/// # Errors
/// [`EndError`].
pub async fn end_unconnected(power_off: &PowerOff) -> Result<End, EndError> {
    switch_off(power_off, is_ec2()).await
}

async fn switch_off(how: &PowerOff, is_ours: bool) -> Result<End, EndError> {
    let command = match how {
        PowerOff::By(command) => command,
        PowerOff::OnEc2 if is_ours => "systemctl poweroff",
        PowerOff::OnEc2 | PowerOff::Never => return Ok(End::LeftRunning),
    };
    power_off(command).await.map(|()| End::PoweredOff)
}

/// Returns whether the firmware says that this is an EC2 instance. On Nitro the vendor is "Amazon EC2", on Xen the UUID
/// begins with `ec2`. Source: EC2 user guide, "Detect whether a host is an EC2 instance".
fn is_ec2() -> bool {
    let says = |file: &str, start: &str| {
        std::fs::read_to_string(file).is_ok_and(|text| text.trim().to_ascii_lowercase().starts_with(start))
    };
    says("/sys/devices/virtual/dmi/id/sys_vendor", "amazon ec2") || says("/sys/hypervisor/uuid", "ec2")
}

async fn power_off(command: &str) -> Result<(), EndError> {
    let failed = |reason: String| EndError::PowerOff { command: command.to_owned(), reason };
    let run = Command::new("/bin/sh").arg("-c").arg(command).kill_on_drop(true).status();
    match tokio::time::timeout(POWER_OFF_TIMEOUT, run).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(failed(status.to_string())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not done after {POWER_OFF_TIMEOUT:?}"))),
    }
}
