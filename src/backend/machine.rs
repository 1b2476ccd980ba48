//! EC2 and IMDS: which machine this is, whether another still lives, and this one's end.
//!
//! A machine is terminated or powered off only with an [`EndProof`]: its instance bears a tag of ours, or the person
//! who started the process ordered it. Nothing outside this file makes one, and [`Machine::end`] and
//! [`end_unconnected`] are the only ways to the end of a machine.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_config::imds;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::Builder;
use aws_sdk_ec2::types::{
    Filter, HttpTokensState, InstanceAttributeName, InstanceMetadataOptionsResponse, InstanceStateName,
};
use tokio::process::Command;

use super::error::{CloudError, Kind, error_chain};
use super::sdk::Wire;
use super::unknown::Unknown;
use crate::domain::{backoff, ids, tags};

/// How this machine is switched off if EC2 does not end it. An [`EndProof`] is needed as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// By `systemctl poweroff`, but only if IMDS answers at its own link-local address: a stand-in for IMDS means that
    /// this is somebody's own computer.
    OnEc2,
    /// By this command line, for `sh -c`.
    By(String),
    /// Never: the machine is not ours.
    Never,
}

/// What the person who started the process ordered about the end of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndOrder {
    /// `--no-terminate`: the machine keeps running, whatever its tags are.
    Keep,
    /// Nothing: the machine ends if its tags prove that it is a node.
    #[default]
    IfNode,
    /// `--terminate`: the machine ends, whatever its tags are.
    Terminate,
}

/// The tags that make an instance a node. Any of them is enough, whatever its value is.
pub const NODE_TAGS: [&str; 3] = [tags::SRC, tags::MISSION, tags::OURS];

/// The proof that this process may end the machine that it runs on. Only this module makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndProof(Ground);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ground {
    /// [`EndOrder::Terminate`].
    Ordered,
    /// This instance bears a tag of ours.
    Tagged { instance: String },
}

impl EndProof {
    fn of_tags<'a>(instance: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        keys.into_iter().find(|key| NODE_TAGS.contains(key))?;
        Some(Self(Ground::Tagged { instance: instance.to_owned() }))
    }

    /// Returns whether the proof is about this machine: tags prove nothing about another instance than the one that
    /// bears them.
    fn covers(&self, instance: Option<&str>) -> bool {
        match &self.0 {
            Ground::Ordered => true,
            Ground::Tagged { instance: tagged } => instance == Some(tagged.as_str()),
        }
    }
}

/// What a node's tags say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTags {
    /// The value of `srcID`.
    pub src: Option<String>,
    /// The value of `missionID`.
    pub mission: Option<String>,
    /// The proof that this instance is a node, if it bears a tag of ours.
    pub proof: Option<EndProof>,
}

/// Why a machine is not ended.
#[derive(Debug)]
enum NoProof {
    /// `--no-terminate`.
    Ordered,
    /// IMDS does not say which instance this is.
    NoInstance,
    /// The instance bears no tag of ours.
    NotANode(String),
    /// The tags can be read neither from IMDS nor from EC2.
    Unknown(String, String),
}

impl NoProof {
    fn log(&self) {
        let keys = NODE_TAGS.join(", ");
        match self {
            Self::Ordered => tracing::info!("this machine keeps running, as ordered: if it is an instance, it bills"),
            Self::NoInstance => tracing::info!(
                "this machine keeps running: it is no EC2 instance, or its metadata service does not answer \
                 (hint: --terminate or LIGHTHPC_TERMINATE=1 ends a machine all the same)"
            ),
            Self::NotANode(instance) => tracing::info!(
                "instance {instance} keeps running, and bills: it is no node, for it bears none of the tags {keys} \
                 (hint: --terminate or LIGHTHPC_TERMINATE=1 ends it all the same)"
            ),
            Self::Unknown(instance, why) => tracing::error!(
                "instance {instance} keeps running, and bills: its tags cannot be read, so it may be no node: {why} \
                 (hint: terminate it by hand; set InstanceMetadataTags=enabled, allow ec2:DescribeTags in its role, or \
                 set LIGHTHPC_TERMINATE=1 on machines that are nodes)"
            ),
        }
    }
}

/// How many processes of one machine can have a place at a time; others have none. Each place that is looked at is one
/// system call.
const PLACES: u32 = 16;

/// The address of a place: a socket with an abstract name. The kernel removes it with the process, and all processes of
/// one network namespace share it, whatever their user, root folder, or work folder.
fn place(instance: &str, number: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("lighthpc/{instance}/{number}"))
}

/// Returns whether a living process has a place on this instance.
#[must_use]
pub fn has_process(instance: &str) -> bool {
    let is_taken = |number| {
        // A datagram socket waits for nobody: it is connected if the name is bound, and refused if not.
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&place(instance, number)?)
    };
    (0..PLACES).any(|number| is_taken(number).is_ok())
}

/// How often, and how long apart, a taken place is looked at before it counts: a child that this process has just forked holds a
/// copy of its sockets for some ms, until it executes its program.
const PLACE_LOOKS: u32 = 10;
const PLACE_PAUSE: Duration = Duration::from_millis(20);

/// Returns whether a process has a place on this instance for as long as it is looked at.
async fn has_process_for(instance: &str, looks: u32) -> bool {
    for look in 0..looks {
        if look > 0 {
            tokio::time::sleep(PLACE_PAUSE).await;
        }
        if !has_process(instance) {
            return false;
        }
    }
    true
}

/// How often the machine asks EC2 for its own end, the SDK's five attempts (about 4 s) a time. With waits of up to 5 s
/// between, about a minute at the most: then the power goes off.
const TERMINATE_TRIES_MAX: u32 = 7;
/// How long a machine looks for the proof that it is a node: IMDS fails within 15 s, and EC2 has the time of a
/// termination.
const PROOF_TIMEOUT: Duration = Duration::from_mins(1);
/// A power-off returns at once; a minute is for a system that is out of memory.
const POWER_OFF_TIMEOUT: Duration = Duration::from_mins(1);

/// How the machine's end was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEnd {
    /// EC2 terminates the instance.
    Terminated,
    /// The power goes off; the shutdown behaviour `terminate` does the rest.
    PoweredOff,
    /// Nothing was done: nothing proves that this is a machine of ours to end.
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
    /// The instance that this is, once IMDS has said so. Nobody else says it: a machine ends only itself.
    own: Arc<OnceLock<String>>,
    /// This process's place on the instance.
    place: Arc<Mutex<Option<UnixDatagram>>>,
    /// Instances that EC2 did not know.
    unknown: Unknown,
}

impl Machine {
    /// Makes the clients. Sends nothing.
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
    /// [`CloudError`]: `Unreachable` where there is no IMDS, that is, not on EC2.
    pub async fn instance_id(&self) -> Result<String, CloudError> {
        if let Some(own) = self.own.get() {
            return Ok(own.clone());
        }
        let id = self.metadata("instance-id").await?.filter(|id| !id.is_empty()).ok_or_else(|| {
            CloudError::new(Kind::NotFound, "IMDS", "instance-id", "IMDS answers, but knows no instance id")
        })?;
        Ok(self.own.get_or_init(|| id).clone())
    }

    /// Takes a place among the processes of this instance, until the machine's end. Returns whether it is the first, which
    /// at most one living process has: that one may be named by the instance's id. `may_be_first` tells whether this
    /// process asks for that.
    pub fn take_place(&self, instance: &str, may_be_first: bool) -> bool {
        for number in u32::from(!may_be_first)..PLACES {
            match place(instance, number).and_then(|address| UnixDatagram::bind_addr(&address)) {
                Ok(socket) => {
                    *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
                    return number == 0;
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    tracing::warn!("this process has no place among those of instance {instance}: {error}");
                    return false;
                }
            }
        }
        false
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

    /// Reads what the tags of this instance say to a node: from IMDS, and if it has neither `srcID` nor `missionID`,
    /// from EC2.
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
        // 404: the tag is not there, or the instance's metadata options do not offer tags. EC2 knows which.
        let mut found = self.tags_of(instance).await?;
        let proof = EndProof::of_tags(instance, found.iter().map(|(key, _)| key.as_str()));
        let mut take = |name: &str| found.iter().position(|(key, _)| key == name).map(|at| found.swap_remove(at).1);
        Ok(NodeTags { src: take(tags::SRC), mission: take(tags::MISSION), proof })
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

    /// Asks EC2 whether an instance is permanently gone: terminated, on its way there, or stopped. Of an owner that is no
    /// instance EC2 knows nothing, so it is not gone: its lease must run out.
    ///
    /// That EC2 does not know an instance is believed when it was so for [`UNKNOWN_MIN`](super::unknown::UNKNOWN_MIN) of this process's monotonic clock:
    /// it may show a new one late. Source: EC2 developer guide, "Eventual consistency".
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

    /// Ends this machine, if it may be ended: by EC2, and if EC2 does not, by power-off. `seen` is what its tags have
    /// proved already; without it they are read now. Logs why a machine keeps running.
    ///
    /// # Errors
    /// [`EndError`] if both fail. May be called again.
    pub async fn end(&self, order: EndOrder, seen: Option<EndProof>) -> Result<MachineEnd, EndError> {
        // Without an answer this is no EC2 instance, or one that only a power-off can end.
        let instance = if order == EndOrder::Keep { None } else { self.instance_id().await.ok() };
        let instance = instance.as_deref();
        let proof = match self.prove(order, instance, seen).await {
            Ok(proof) => proof,
            Err(why) => {
                why.log();
                return Ok(MachineEnd::LeftRunning);
            }
        };
        // The own place is given up before the others are looked at: of two that end at once, one sees the other gone.
        drop(self.place.lock().unwrap_or_else(PoisonError::into_inner).take());
        if proof.0 != Ground::Ordered
            && let Some(instance) = instance
            && has_process_for(instance, PLACE_LOOKS).await
        {
            tracing::info!("instance {instance} keeps running: another process of lighthpc runs here, and ends it");
            return Ok(MachineEnd::LeftRunning);
        }
        if let Some(instance) = instance {
            match self.terminate(instance, &proof).await {
                Ok(()) => return Ok(MachineEnd::Terminated),
                Err(error) => tracing::error!("EC2 does not terminate {instance}: {}", error_chain(&error)),
            }
        }
        let is_ec2 = self.imds_is_real && (instance.is_some() || is_ec2());
        switch_off(&self.power_off, is_ec2, &proof).await
    }

    /// Finds the proof that this machine may be ended.
    async fn prove(
        &self,
        order: EndOrder,
        instance: Option<&str>,
        seen: Option<EndProof>,
    ) -> Result<EndProof, NoProof> {
        match order {
            EndOrder::Keep => return Err(NoProof::Ordered),
            EndOrder::Terminate => return Ok(EndProof(Ground::Ordered)),
            EndOrder::IfNode => {}
        }
        if let Some(proof) = seen.filter(|proof| proof.covers(instance)) {
            return Ok(proof);
        }
        let instance = instance.ok_or(NoProof::NoInstance)?;
        let unknown = |why: String| NoProof::Unknown(instance.to_owned(), why);
        match tokio::time::timeout(PROOF_TIMEOUT, self.find_tags(instance)).await {
            Ok(Ok(proof)) => proof.ok_or_else(|| NoProof::NotANode(instance.to_owned())),
            Ok(Err(error)) => Err(unknown(error_chain(&error))),
            Err(_) => Err(unknown(format!("no answer within {PROOF_TIMEOUT:?}"))),
        }
    }

    /// Looks for a tag of ours: in IMDS, and if it shows none, in EC2.
    async fn find_tags(&self, instance: &str) -> Result<Option<EndProof>, CloudError> {
        match self.metadata("tags/instance").await {
            Ok(keys) => {
                let proof = EndProof::of_tags(instance, keys.iter().flat_map(|keys| keys.lines()).map(str::trim));
                if proof.is_some() {
                    return Ok(proof);
                }
            }
            Err(error) => tracing::debug!("IMDS does not say which tags {instance} bears: {}", error.source),
        }
        let found = retry_transient(|| self.tags_of(instance)).await?;
        Ok(EndProof::of_tags(instance, found.iter().map(|(key, _)| key.as_str())))
    }

    async fn terminate(&self, instance: &str, proof: &EndProof) -> Result<(), CloudError> {
        if !proof.covers(Some(instance)) {
            let words = format!("{proof:?} says nothing about this instance");
            return Err(CloudError::new(Kind::Precondition, "TerminateInstances", instance, words));
        }
        retry_transient(|| async {
            let answer = self.client.terminate_instances().instance_ids(instance).send().await;
            answer.map_err(|error| CloudError::sdk("TerminateInstances", instance, error))
        })
        .await
        .map(|_| ())
    }
}

/// Repeats a call to EC2 while its failure is transient, up to [`TERMINATE_TRIES_MAX`] times.
async fn retry_transient<T, F>(mut call: impl FnMut() -> F) -> Result<T, CloudError>
where
    F: Future<Output = Result<T, CloudError>>,
{
    let mut tries = 0;
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tries += 1;
        if !error.is_retryable() || tries >= TERMINATE_TRIES_MAX {
            return Err(error);
        }
        tokio::time::sleep(backoff::delay(tries + 4, rand::random())).await;
    }
}

/// Ends this machine where not even the SDK could be set up: by power-off, and only by the explicit order, for without
/// the SDK its tags cannot be read.
///
/// # Errors
/// [`EndError`].
pub async fn end_unconnected(power_off: &PowerOff, order: EndOrder) -> Result<MachineEnd, EndError> {
    let why = match order {
        EndOrder::Terminate => return switch_off(power_off, is_ec2(), &EndProof(Ground::Ordered)).await,
        EndOrder::Keep => NoProof::Ordered,
        EndOrder::IfNode => NoProof::NoInstance,
    };
    why.log();
    Ok(MachineEnd::LeftRunning)
}

/// Switches this machine off. The proof is not looked into: whoever holds one has shown that it covers this machine.
async fn switch_off(how: &PowerOff, is_ec2: bool, _: &EndProof) -> Result<MachineEnd, EndError> {
    let command = match how {
        PowerOff::By(command) => command,
        PowerOff::OnEc2 if is_ec2 => "systemctl poweroff",
        PowerOff::OnEc2 | PowerOff::Never => return Ok(MachineEnd::LeftRunning),
    };
    power_off(command).await.map(|()| MachineEnd::PoweredOff)
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
