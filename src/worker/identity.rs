//! Step 1: which machine is this, and what is its task?

use tokio::sync::watch;

use super::insist::insist;
use super::{Node, NodeError};
use crate::backend::Kind;
use crate::domain::ids::{InstanceId, MissionId, SrcId};
use crate::domain::tags;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    /// Its id.
    pub(super) id: InstanceId,
    /// Whether it is an EC2 instance, which EC2 can end.
    pub(super) is_on_ec2: bool,
}

/// What this machine was launched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// One task.
    Task(Assignment),
    /// The tasks of a mission, one after another.
    Mission(MissionId),
}

/// A task to be done here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Assignment {
    /// The task.
    pub(super) src: SrcId,
    /// The mission, if a tag or a flag names one.
    pub(super) mission: Option<MissionId>,
    /// Whether it was found among the mission's open tasks: another that holds it is not waited for.
    pub(super) is_pulled: bool,
}

/// Finds out which machine this is and what its task is. Tells `known` of the machine at once: if the task is not to
/// be found, the machine must still be ended.
pub(super) async fn find(node: &Node, known: &watch::Sender<Option<Instance>>) -> Result<(Instance, Work), NodeError> {
    let instance = instance(node).await?;
    known.send_replace(Some(instance.clone()));
    let task = task(node, &instance).await?;
    Ok((instance, task))
}

/// Finds out which machine this is.
///
/// Without IMDS this is not EC2; then a task must be named, and the machine must not be asked to end.
async fn instance(node: &Node) -> Result<Instance, NodeError> {
    match node.backend.machine.instance_id().await {
        Ok(id) => Ok(Instance { id: InstanceId::new(id)?, is_on_ec2: true }),
        Err(error) if error.kind == Kind::Unreachable && node.settings.src.is_some() && !node.settings.terminate => {
            tracing::info!("no IMDS here: this is a machine of your own");
            Ok(Instance { id: InstanceId::new(desk_id())?, is_on_ec2: false })
        }
        Err(error) => Err(NodeError::Identity(error)),
    }
}

/// A name for a machine that is not on EC2. Random at its end, so that no two processes are ever the same holder.
fn desk_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("desk-{}-{:08x}", host.chars().take(200).collect::<String>(), rand::random::<u32>())
}

/// Finds out what there is to do: from flags, from the tags that IMDS offers, or from EC2's.
async fn task(node: &Node, instance: &Instance) -> Result<Work, NodeError> {
    let settings = &node.settings;
    if let Some(src) = &settings.src {
        let (src, mission) = (src.clone(), settings.mission.clone());
        return Ok(Work::Task(Assignment { src, mission, is_pulled: false }));
    }
    let machine = &node.backend.machine;
    let tags = tokio::try_join!(machine.tag(tags::SRC), machine.tag(tags::MISSION));
    let (mut src, mut mission) = tags.map_err(NodeError::Identity)?;
    if src.is_none() && mission.is_none() && instance.is_on_ec2 {
        // 404: the tag is not there, or the instance's metadata options do not offer tags. EC2 knows which.
        let mut tags = machine.tags_of(instance.id.as_str()).await.map_err(NodeError::Identity)?;
        let mut take = |name: &str| tags.iter().position(|(key, _)| key == name).map(|at| tags.swap_remove(at).1);
        src = take(tags::SRC);
        mission = take(tags::MISSION);
    }
    let mission = mission.filter(|mission| !mission.is_empty()).map(MissionId::new).transpose()?;
    let mission = settings.mission.clone().or(mission);
    let no_task = || NodeError::NoTask { instance: instance.id.to_string() };
    let Some(src) = src.filter(|src| !src.is_empty()) else { return mission.map(Work::Mission).ok_or_else(no_task) };
    let src = if tags::is_short(&src) {
        let key = insist(settings.max_idle, || node.backend.ledger.key_of(&src)).await;
        key.map_err(NodeError::cloud("looking up the task's name"))?.ok_or_else(no_task)?
    } else {
        SrcId::new(src)?
    };
    Ok(Work::Task(Assignment { src, mission, is_pulled: false }))
}
