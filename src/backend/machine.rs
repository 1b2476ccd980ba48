//! EC2 and IMDS: identifies this machine, checks whether another instance is alive, and terminates this one.
//!
//! A machine is terminated or powered off only with an [`EndProof`]: its instance has a tag of ours, or the user who
//! started the process ordered it. Only this file creates such a proof, and only [`Machine::end`] and
//! [`end_unconnected`] terminate a machine.

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

/// The way to power off this machine if EC2 does not terminate it. An [`EndProof`] is needed as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PowerOff {
    /// Runs `systemctl poweroff`, but only if IMDS has its own link-local address. A replacement for IMDS means that
    /// this is a user's computer.
    OnEc2,
    /// Runs this command line with `sh -c`.
    By(String),
    /// Never powers off: the machine is not ours.
    Never,
}

/// The user's order about the termination of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndOrder {
    /// `--no-terminate`: the machine keeps running, whatever its tags are.
    Keep,
    /// No order: the machine is terminated if its tags prove that it is a node.
    #[default]
    IfNode,
    /// `--terminate`: the machine is terminated, whatever its tags are.
    Terminate,
}

/// The tags that identify an instance as a node. One of them is enough, with any value.
pub const NODE_TAGS: [&str; 3] = [tags::SRC, tags::MISSION, tags::OURS];

/// Proof that this process may terminate its machine. Only this module creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndProof(Ground);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ground {
    /// [`EndOrder::Terminate`].
    Ordered,
    /// This instance has a tag of ours.
    Tagged { instance: String },
}

impl EndProof {
    fn of_tags<'a>(instance: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        keys.into_iter().find(|key| NODE_TAGS.contains(key))?;
        Some(Self(Ground::Tagged { instance: instance.to_owned() }))
    }

    /// Returns whether the proof applies to this machine. Tags prove nothing about another instance.
    fn covers(&self, instance: Option<&str>) -> bool {
        match &self.0 {
            Ground::Ordered => true,
            Ground::Tagged { instance: tagged } => instance == Some(tagged.as_str()),
        }
    }
}

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

/// The reason why a machine is not terminated.
#[derive(Debug)]
enum NoProof {
    /// `--no-terminate`.
    Ordered,
    /// IMDS does not report the instance id.
    NoInstance,
    /// The instance has no tag of ours.
    NotANode(String),
    /// The tags can be read neither from IMDS nor from EC2.
    Unknown(String, String),
}

impl NoProof {
    fn log(&self) {
        let keys = NODE_TAGS.join(", ");
        match self {
            Self::Ordered => {
                tracing::info!("this machine keeps running, as requested; an EC2 instance costs money");
            }
            Self::NoInstance => tracing::info!(
                "this machine keeps running: it is not an EC2 instance, or its metadata service does not answer \
                 (hint: use --terminate or LIGHTHPC_TERMINATE=1 to terminate it nevertheless)"
            ),
            Self::NotANode(instance) => tracing::info!(
                "instance {instance} keeps running and costs money: it is not a node, because it has none of the tags \
                 {keys} (hint: use --terminate or LIGHTHPC_TERMINATE=1 to terminate it nevertheless)"
            ),
            Self::Unknown(instance, why) => tracing::error!(
                "instance {instance} keeps running and costs money: its tags cannot be read, so it is unknown \
                 whether it is a node: {why} (hint: terminate it manually; set InstanceMetadataTags=enabled, allow \
                 ec2:DescribeTags in its role, or set LIGHTHPC_TERMINATE=1 on machines that are nodes)"
            ),
        }
    }
}

/// The maximum number of processes on one machine that have a slot; others have none. The check of a slot is one system
/// call.
const PLACES: u32 = 16;

/// Returns the address of a slot: a socket with an abstract name. The kernel removes it with the process. All processes
/// in one network namespace share the names, whatever their user, root folder or work folder.
fn place(instance: &str, number: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("lighthpc/{instance}/{number}"))
}

/// Returns whether a living process holds a slot on this instance.
#[must_use]
pub fn has_process(instance: &str) -> bool {
    let is_taken = |number| {
        // A datagram socket does not wait: connecting succeeds if the name is bound, and fails otherwise.
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&place(instance, number)?)
    };
    (0..PLACES).any(|number| is_taken(number).is_ok())
}

/// The number of checks of a taken slot, and the pause between them. A child that was just forked holds a copy of its
/// parent's sockets for some milliseconds, until it executes its program.
const PLACE_LOOKS: u32 = 10;
const PLACE_PAUSE: Duration = Duration::from_millis(20);

/// Returns whether a process holds a slot on this instance in all of the checks.
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

/// The number of requests to EC2 for the machine's own termination. Each has the SDK's five attempts (about 4 s). With
/// pauses of up to 5 s this takes at most about a minute; then the machine is powered off.
const TERMINATE_TRIES_MAX: u32 = 7;
/// The time limit for proving that the machine is a node: IMDS fails within 15 s, and EC2 has the time of a
/// termination.
const PROOF_TIMEOUT: Duration = Duration::from_mins(1);
/// The time limit of a power-off. It returns at once; a minute is for a system without free memory.
const POWER_OFF_TIMEOUT: Duration = Duration::from_mins(1);

/// The way in which the machine's termination was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEnd {
    /// EC2 terminates the instance.
    Terminated,
    /// The machine is powered off; the shutdown behaviour `terminate` does the rest.
    PoweredOff,
    /// Nothing was done: there is no proof that this machine may be terminated.
    LeftRunning,
}

/// The metadata options of an instance; `None` if EC2 does not report them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The number of network hops of an answer with a token. More than 1 reaches containers.
    pub hop_limit: Option<i32>,
    /// Whether every request needs a token (`IMDSv2`).
    pub needs_token: Option<bool>,
}

/// The error of a machine that could not be terminated.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The power-off command could not be run, or failed.
    #[error("running `{command}`: {reason}")]
    PowerOff {
        /// The command line.
        command: String,
        /// The reason.
        reason: String,
    },
}

/// The client of EC2 and IMDS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machine {
    client: Client,
    imds: imds::Client,
    imds_is_real: bool,
    power_off: PowerOff,
    /// The id of this instance, from IMDS only: a machine terminates only itself.
    own: Arc<OnceLock<String>>,
    /// This process's slot on the instance.
    place: Arc<Mutex<Option<UnixDatagram>>>,
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

    /// Takes a slot among the processes of this instance, until the machine is terminated. Returns whether it is the
    /// first slot. At most one living process has it, and may use the instance's id as its own name. With
    /// `may_be_first`, this process tries to get it.
    pub fn take_place(&self, instance: &str, may_be_first: bool) -> bool {
        for number in u32::from(!may_be_first)..PLACES {
            match place(instance, number).and_then(|address| UnixDatagram::bind_addr(&address)) {
                Ok(socket) => {
                    *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
                    return number == 0;
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    tracing::warn!("taking a process slot on instance {instance} failed: {error}");
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
        super::error::dry_run(answer.map_err(|e| CloudError::sdk("TerminateInstances", instance, e)))
    }

    /// Checks in EC2 whether an instance is permanently gone: terminated, shutting down or stopped. EC2 does not know
    /// an owner that is not an instance, so it is never gone: its lease must expire.
    ///
    /// An instance that EC2 does not list counts as gone after [`UNKNOWN_MIN`](super::unknown::UNKNOWN_MIN) on this
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

    /// Terminates this machine, if it may be terminated: by EC2 or, if EC2 fails, by power-off. `seen` is a proof from
    /// tags that were read before; without it they are read now. Logs why a machine keeps running.
    ///
    /// # Errors
    /// [`EndError`] if both fail. May be repeated.
    pub async fn end(&self, order: EndOrder, seen: Option<EndProof>) -> Result<MachineEnd, EndError> {
        // Without an answer, this is not an EC2 instance, or one that can only be powered off.
        let instance = if order == EndOrder::Keep { None } else { self.instance_id().await.ok() };
        let instance = instance.as_deref();
        let proof = match self.prove(order, instance, seen).await {
            Ok(proof) => proof,
            Err(why) => {
                why.log();
                return Ok(MachineEnd::LeftRunning);
            }
        };
        // The own slot is released before the others are checked: of two processes that stop at once, one finds no
        // other.
        drop(self.place.lock().unwrap_or_else(PoisonError::into_inner).take());
        if proof.0 != Ground::Ordered
            && let Some(instance) = instance
            && has_process_for(instance, PLACE_LOOKS).await
        {
            tracing::info!("instance {instance} keeps running: another lighthpc process on it will terminate it");
            return Ok(MachineEnd::LeftRunning);
        }
        if let Some(instance) = instance {
            match self.terminate(instance, &proof).await {
                Ok(()) => return Ok(MachineEnd::Terminated),
                Err(error) => tracing::error!("terminating {instance} failed: {}", error_chain(&error)),
            }
        }
        let is_ec2 = self.imds_is_real && (instance.is_some() || is_ec2());
        switch_off(&self.power_off, is_ec2, &proof).await
    }

    /// Searches for proof that this machine may be terminated.
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

    /// Searches for a tag of ours in IMDS and, if there is none, in EC2.
    async fn find_tags(&self, instance: &str) -> Result<Option<EndProof>, CloudError> {
        match self.metadata("tags/instance").await {
            Ok(keys) => {
                let proof = EndProof::of_tags(instance, keys.iter().flat_map(|keys| keys.lines()).map(str::trim));
                if proof.is_some() {
                    return Ok(proof);
                }
            }
            Err(error) => tracing::debug!("reading the tags of {instance} from IMDS failed: {}", error.source),
        }
        let found = retry_transient(|| self.tags_of(instance)).await?;
        Ok(EndProof::of_tags(instance, found.iter().map(|(key, _)| key.as_str())))
    }

    async fn terminate(&self, instance: &str, proof: &EndProof) -> Result<(), CloudError> {
        if !proof.covers(Some(instance)) {
            let words = format!("{proof:?} does not apply to this instance");
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

/// Retries a call to EC2 while its failure is transient, up to [`TERMINATE_TRIES_MAX`] times.
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

/// Powers off this machine if the SDK could not be set up. Only by the explicit order, because without the SDK its tags
/// cannot be read.
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

/// Powers off this machine. The proof is only required, not read: its holder has checked that it applies to this
/// machine.
async fn switch_off(how: &PowerOff, is_ec2: bool, _: &EndProof) -> Result<MachineEnd, EndError> {
    let command = match how {
        PowerOff::By(command) => command,
        PowerOff::OnEc2 if is_ec2 => "systemctl poweroff",
        PowerOff::OnEc2 | PowerOff::Never => return Ok(MachineEnd::LeftRunning),
    };
    power_off(command).await.map(|()| MachineEnd::PoweredOff)
}

/// Returns whether the firmware identifies an EC2 instance. On Nitro the vendor is "Amazon EC2"; on Xen the UUID starts
/// with `ec2`. Source: EC2 user guide, "Detect whether a host is an EC2 instance".
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
        Err(_) => Err(failed(format!("not finished after {POWER_OFF_TIMEOUT:?}"))),
    }
}
