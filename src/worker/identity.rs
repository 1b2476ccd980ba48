//! Step 1: which machine is this, and what is its task?

use tokio::sync::watch;

use super::retry::retry_transient;
use super::settings::Pricing;
use super::{Node, NodeError};
use crate::backend::Kind;
use crate::backend::ledger::Fence;
use crate::backend::machine::{EndProof, Machine, NodeTags};
use crate::domain::ids::{InstanceId, MissionId, SrcId, process_owner};
use crate::domain::machine_info::MachineInfo;
use crate::domain::mission::Mission;
use crate::domain::tags;
use crate::domain::task::Task;

/// The machine, and this process on it.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    /// The owner of this process's attempts: no two live processes have the same.
    pub(super) id: InstanceId,
    /// The EC2 instance, if this is one.
    on_ec2: Option<InstanceId>,
    /// What is known of the machine so far.
    pub(super) info: watch::Sender<MachineInfo>,
    /// The mission that the node serves, or that its task belongs to, once it is read. The machine's cost is counted
    /// there.
    pub(super) serves: watch::Sender<Option<Mission>>,
}

impl Instance {
    /// Returns whether this is an EC2 instance.
    pub(super) const fn is_on_ec2(&self) -> bool {
        self.on_ec2.is_some()
    }

    /// Returns whether this process is the one that its EC2 instance stands for: it bears the instance's id.
    pub(super) fn is_machines_own(&self) -> bool {
        self.on_ec2.as_ref() == Some(&self.id)
    }

    /// Notes the mission that pays for the machine; the first one stays.
    pub(super) fn note_mission(&self, mission: &Mission) {
        self.serves.send_if_modified(|serves| {
            let is_first = serves.is_none();
            if is_first {
                *serves = Some(mission.clone());
            }
            is_first
        });
    }

    /// Returns what is known of the machine so far.
    pub(super) fn machine_info(&self) -> MachineInfo {
        self.info.borrow().clone()
    }

    /// Returns what this process shows to write to a row that it holds.
    pub(super) fn fence(&self, row: &Task) -> Fence {
        Fence { src: row.src.clone(), attempt: row.attempt, owner: self.id.clone() }
    }
}

/// What this machine was launched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// One task.
    Task(Assignment),
    /// The tasks of a mission, one after another.
    Mission(MissionId),
}

/// A task to do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The task.
    pub(super) src: SrcId,
    /// The mission, if a tag or a flag names one.
    pub(super) mission: Option<MissionId>,
    /// Whether this node waits if another instance holds it. A task from the index of open tasks is left to its holder.
    pub(super) waits_for_holder: bool,
    /// Whether the mission's end is looked at after each of its tasks. A node that does many looks once for many of them
    /// (`mission_end.rs`).
    pub(super) looks_at_end: bool,
    /// Whether nothing else runs on this node until the attempt has ended.
    pub(super) is_alone: bool,
}

/// Finds out which machine this is, and its task. Sends at once what its tags prove: even if the task is not found, a
/// node must be terminated. There is no work for a node that drains.
pub(super) async fn find(
    node: &Node,
    proof: &watch::Sender<Option<EndProof>>,
) -> Result<(Instance, Option<Job>), NodeError> {
    let instance = instance(node).await?;
    // The search may be dropped: it only reads. The tags are then read again for the machine's end.
    let work = tokio::select! {
        work = task(node, &instance, proof) => Some(work?),
        () = node.stopping.drain.cancelled() => None,
    };
    Ok((instance, work.filter(|_| !node.stopping.drain.is_cancelled())))
}

/// Finds out which machine this is, and names this process.
///
/// Without IMDS this is not EC2; then a task must be named.
async fn instance(node: &Node) -> Result<Instance, NodeError> {
    match node.backend.machine.instance_id().await {
        Ok(id) => {
            let info = match node.settings.pricing {
                Pricing::Local => MachineInfo::local(),
                Pricing::Ec2 { .. } => MachineInfo::default(),
            };
            Ok(on_ec2(&node.backend.machine, InstanceId::new(id)?, node.settings.holds_work_dir, info))
        }
        Err(error) if error.kind == Kind::Unreachable && node.settings.src.is_some() => {
            tracing::info!("no IMDS here: this machine is not an EC2 instance");
            Ok(Instance {
                id: owner_of_process(),
                on_ec2: None,
                info: watch::Sender::new(MachineInfo::local()),
                serves: watch::Sender::new(None),
            })
        }
        Err(error) => Err(NodeError::Identity(error)),
    }
}

/// Names this process on an instance: by the instance's id, with which it continues its own task after a restart; or by
/// a name of its own, if another process may have the instance's id, or the lock of the work folder.
fn on_ec2(machine: &Machine, instance: InstanceId, holds_work_dir: bool, info: MachineInfo) -> Instance {
    let is_first = machine.take_place(instance.as_str(), holds_work_dir);
    let id = if is_first { instance.clone() } else { owner_of_process() };
    if !is_first {
        tracing::warn!(
            owner = id.as_str(),
            "another process runs tasks on instance {instance}, or the work folder cannot be locked: this process is \
             named {id}, and a sweep does not know that it needs the instance"
        );
    }
    Instance { id, on_ec2: Some(instance), info: watch::Sender::new(info), serves: watch::Sender::new(None) }
}

/// Returns a new name for this process.
fn owner_of_process() -> InstanceId {
    process_owner(&lighthpc_runtime::host_name(), rand::random())
}

/// Finds the work: from flags, from the tags in IMDS, or from the tags in EC2.
async fn task(node: &Node, instance: &Instance, seen: &watch::Sender<Option<EndProof>>) -> Result<Job, NodeError> {
    let settings = &node.settings;
    if let Some(src) = &settings.src {
        let (src, mission) = (src.clone(), settings.mission.clone());
        return Ok(Job::Task(Assignment { src, mission, waits_for_holder: true, looks_at_end: true, is_alone: true }));
    }
    let NodeTags { src, mission, proof } = match &instance.on_ec2 {
        Some(_) => node.backend.machine.node_tags().await.map_err(NodeError::Identity)?,
        None => NodeTags::default(),
    };
    seen.send_replace(proof);
    let mission = match mission.filter(|mission| !mission.is_empty()) {
        Some(value) if settings.mission.is_none() && tags::is_short_mission(&value) => {
            let mission = retry_transient(settings.max_idle, || node.backend.ledger.mission_named(&value)).await;
            mission.map_err(NodeError::cloud("looking up the mission's name"))?
        }
        Some(id) => Some(MissionId::new(id)?),
        None => None,
    };
    let mission = settings.mission.clone().or(mission);
    let no_task = || NodeError::NoTask { instance: instance.on_ec2.as_ref().unwrap_or(&instance.id).to_string() };
    let Some(src) = src.filter(|src| !src.is_empty()) else { return mission.map(Job::Mission).ok_or_else(no_task) };
    let src = if tags::is_short(&src) {
        let src = retry_transient(settings.max_idle, || node.backend.ledger.key_of(&src)).await;
        src.map_err(NodeError::cloud("looking up the task's name"))?.ok_or_else(no_task)?
    } else {
        SrcId::new(src)?
    };
    Ok(Job::Task(Assignment { src, mission, waits_for_holder: true, looks_at_end: true, is_alone: true }))
}
