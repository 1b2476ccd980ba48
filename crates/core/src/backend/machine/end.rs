//! The termination of this machine, and the proof that it is allowed.

use std::sync::PoisonError;
use std::time::Duration;

use super::client::Machine;
use super::place::{PLACE_LOOKS, has_process_for};
use super::power_off::{EndError, PowerOff, is_ec2, power_off};
use super::proof::{EndProof, Ground, NODE_TAGS};
use crate::backend::error::{CloudError, Kind, error_chain};
use crate::domain::backoff;

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
                 (hint: if it is a node, set LIGHTHPC_TERMINATE=1)"
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

/// The number of requests to EC2 for the machine's own termination. Each has the SDK's five attempts (about 4 s). With
/// pauses of up to 5 s this takes at most about a minute; then the machine is powered off.
const TERMINATE_TRIES_MAX: u32 = 7;
/// The time limit for proving that the machine is a node: IMDS fails within 15 s, and EC2 has the time of a
/// termination.
const PROOF_TIMEOUT: Duration = Duration::from_mins(1);
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

impl Machine {
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
