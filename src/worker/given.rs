//! Does the tasks that the caller gives: a mission on this machine.
//!
//! The caller chooses the order, and how many run at a time. All else is as on a node that serves a mission: one
//! instance, one client of each service, and a look at the mission's end now and then (`mission_end.rs`).

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use super::host::Host;
use super::identity::Assignment;
use super::mission_end::MissionEnd;
use super::outcome::Outcome;
use super::panic::caught;
use super::retry::call_until_drained;
use super::{Node, NodeError, NodeSettings, Report, task};
use crate::backend::error_chain;
use crate::domain::ids::{MissionId, SrcId};

/// A task that is given to a node.
#[derive(Debug)]
pub struct GivenTask {
    /// The task.
    pub src: SrcId,
    /// Gets the progress of the attempt.
    pub report: watch::Sender<Report>,
    /// Gets how the attempt ended. Dropped without a value if the node ends before.
    pub ended: oneshot::Sender<Result<Outcome, NodeError>>,
}

/// Does each task as it comes, until the channel is closed and all have ended. Then looks at the mission's end, also if
/// no task came: the process that committed the last one may have been killed before it looked.
pub(super) async fn serve(
    host: &Host,
    mission: &MissionId,
    mut tasks: mpsc::Receiver<GivenTask>,
) -> Result<Outcome, NodeError> {
    let node = &host.node;
    let row = call_until_drained(node, "reading the mission", || node.backend.ledger.mission(mission)).await?;
    let Some(row) = row else { return Ok(Outcome::Drained) };
    let row = row.ok_or_else(|| NodeError::NoMission { mission: mission.to_string() })?;
    host.instance.note_mission(&row);
    let (end, look) = (MissionEnd::new(host.clone(), mission.clone()), MissionEnd::interval(&row));
    let (mut running, mut is_open, mut look_at) = (JoinSet::new(), true, Instant::now() + look);
    let (mut done, mut other) = (0, 0);
    while is_open || !running.is_empty() {
        // The losing arms may be dropped: no task is lost, given or ended.
        tokio::select! {
            given = tasks.recv(), if is_open => match given {
                Some(given) => {
                    lighthpc_runtime::spawn(&mut running, one(host.clone(), mission.clone(), given).in_current_span());
                }
                None => is_open = false,
            },
            Some(ended) = running.join_next() => {
                end.may_have_come();
                match ended {
                    Ok(true) => done += 1,
                    Ok(false) | Err(_) => other += 1,
                }
            }
            () = tokio::time::sleep_until(look_at) => {
                look_at = Instant::now() + look;
                if let Err(error) = end.look().await {
                    tracing::warn!("whether mission {mission} is complete is not known: {}", error_chain(&error));
                }
            }
        }
    }
    end.look().await?;
    Ok(Outcome::Served { done, other })
}

/// Does one task, and returns whether it is done.
async fn one(host: Host, mission: MissionId, given: GivenTask) -> bool {
    let GivenTask { src, report, ended } = given;
    let settings = NodeSettings { report, ..(*host.node.settings).clone() };
    let host = Host { node: Node { settings: Arc::new(settings), ..host.node.clone() }, ..host };
    // A crash of this machine ends the caller, too, who sees which tasks ran.
    let mission = Some(mission);
    let task = Assignment { src, mission, waits_for_holder: true, looks_at_end: false, is_alone: true };
    // The other tasks go on after a panic.
    let outcome =
        caught(Box::pin(task::run(&host, &task))).await.unwrap_or_else(|panic| Err(NodeError::Panicked(panic)));
    let is_done = matches!(outcome, Ok(Outcome::Committed { .. }));
    // Nobody waits for it if the caller is gone.
    ended.send(outcome).ok();
    is_done
}
