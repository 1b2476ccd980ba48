//! What a local mission is to do: made once, and read from the tables ever after.

use std::collections::VecDeque;
use std::path::Path;

use super::Failure;
use super::cli::RunArgs;
use super::inputs::{Input, Known};
use super::screen;
use crate::backend::Backend;
use crate::backend::ledger::{NewMission, NewTask, Redrive};
use crate::clock;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};
use crate::exit::Exit;
use crate::local::{LocalCloud, SOURCE_BUCKET};
use crate::worker::Settings;

/// The mission's name if none is given: one folder, one mission.
const DEFAULT_MISSION: &str = "local";

/// A task counts for one mission: the same file cannot be in two of them in one folder.
pub(super) async fn refuse_foreign_tasks(
    desk: &Backend,
    inputs: &[Input],
    mission: Option<&MissionId>,
) -> Result<(), Failure> {
    let Some(ours) = mission else { return Ok(()) };
    for input in inputs {
        let row = desk.ledger.task(&input.src).await?;
        if let Some(theirs) = row.and_then(|row| row.mission).filter(|theirs| theirs != ours) {
            return Err(Failure::usage(
                format!("{} is a task of mission {theirs} in this folder, so not of {ours}", input.src),
                "name another folder with --local=DIR",
            ));
        }
    }
    Ok(())
}

/// Finds the folder's mission, or makes it of the inputs.
pub(super) async fn find_or_make(
    desk: &Backend,
    dir: &Path,
    args: &RunArgs,
    settings: &Settings,
    inputs: &[Input],
) -> Result<Mission, Failure> {
    let missions = desk.ledger.missions().await?;
    let id = match (&settings.mission, missions.as_slice()) {
        (Some(id), _) => id.clone(),
        (None, [only]) => only.id.clone(),
        (None, _) => MissionId::new(DEFAULT_MISSION).expect("a constant name is legal"),
    };
    let exec = command_line(args);
    if let Some(mission) = missions.into_iter().find(|mission| mission.id == id) {
        if exec == mission.exec || exec.is_none() && inputs.is_empty() {
            return Ok(mission);
        }
        let mut done = 0;
        desk.ledger.each_task(Some(&id), |task| done += u64::from(task.state == State::Done)).await?;
        if done > 0 {
            return Err(other_program(dir, &mission, exec.as_deref()));
        }
        // No result stands yet, so a mended command line does no harm.
        desk.ledger.set_exec(&id, exec.as_deref()).await?;
        return Ok(Mission { exec, ..mission });
    }
    if inputs.is_empty() {
        return Err(no_mission(dir));
    }
    let trans_number = inputs.len() as u64;
    let new = NewMission { exec, now: clock::now_rfc3339(), ..NewMission::of(id.clone(), trans_number) };
    desk.ledger.create_mission(&new).await?;
    let made = desk.ledger.mission(&id).await?;
    made.ok_or_else(|| Failure { exit: Exit::Internal, error: anyhow::anyhow!("mission {id} vanished"), hint: None })
}

pub(super) fn no_mission(dir: &Path) -> Failure {
    let hint = "name input files: lighthpc run --local FILE... -- PROGRAM";
    Failure::usage(format!("there is no mission in {}", dir.display()), hint)
}

/// The files that are tasks already: a file keeps the key it got first, whatever it is named beside later.
pub(super) async fn known(desk: &Backend, cloud: &LocalCloud) -> Result<Known, Failure> {
    let mut known = Known::new();
    let each = |task: Task| {
        if let Ok(file) = std::fs::read_link(cloud.object_path(SOURCE_BUCKET, task.src.as_str())) {
            known.insert(file, (task.src, task.state == State::Done));
        }
    };
    desk.ledger.each_task(None, each).await?;
    Ok(known)
}

/// The workload as one line for `sh`, for the mission's row: there it is seen, and found again.
fn command_line(args: &RunArgs) -> Option<String> {
    if !args.program.is_empty() {
        return Some(shell_words::join(&args.program));
    }
    args.exec.clone().filter(|exec| !exec.trim().is_empty())
}

fn other_program(dir: &Path, mission: &Mission, exec: Option<&str>) -> Failure {
    let words =
        |exec: Option<&str>| exec.map_or_else(|| "the simulated workload".to_owned(), |exec| format!("`{exec}`"));
    let (old, new) = (words(mission.exec.as_deref()), words(exec));
    Failure::usage(
        format!("mission {} in {} runs {old}, not {new}: its results would be of two kinds", mission.id, dir.display()),
        "name another folder with --local=DIR, or remove this one",
    )
}

/// Makes the rows that are missing, and the mission as large as its tasks are many.
pub(super) async fn add_tasks(
    desk: &Backend,
    cloud: &LocalCloud,
    mission: &Mission,
    inputs: &[Input],
) -> Result<(), Failure> {
    for Input { src, file } in inputs {
        let Ok(real) = file.canonicalize() else { continue };
        let object = cloud.object_path(SOURCE_BUCKET, src.as_str());
        if let Ok(linked) = object.canonicalize()
            && linked != real
        {
            return Err(Failure::usage(
                format!("{} and {} would be the same task, {src}", linked.display(), real.display()),
                "name another folder with --local=DIR for the second",
            ));
        }
        let link = cloud.link_object(SOURCE_BUCKET, src.as_str(), &real);
        link.map_err(|error| Failure::usage(format!("{}: {error}", real.display()), "look at its permissions"))?;
        let new = NewTask {
            src: src.clone(),
            mission: Some((mission.id.clone(), mission.tally_shards)),
            bucket: SOURCE_BUCKET.to_owned(),
            now: clock::now_rfc3339(),
            trigger_time: clock::now_rfc3339(),
            trigger: "lighthpc run --local".to_owned(),
            is_launched: false,
        };
        desk.ledger.create_task(&new).await?;
    }
    let mut count = 0;
    desk.ledger.each_task(Some(&mission.id), |_| count += 1).await?;
    if mission.trans_number != Some(count) {
        desk.ledger.resize_mission(mission, count).await?;
    }
    Ok(())
}

/// What is to be run.
pub(super) struct Plan {
    pub(super) queue: VecDeque<SrcId>,
    pub(super) total: u64,
    pub(super) ended: u64,
}

/// Reads from the tables what is to be run. A failed task is tried again: a person called once more, and may have
/// mended what was wrong.
pub(super) async fn make(
    desk: &Backend,
    mission: &Mission,
    inputs: &[Input],
    only: Option<SrcId>,
) -> Result<Plan, Failure> {
    let mut tasks = Vec::new();
    desk.ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
    let is_wanted = |task: &Task| match &only {
        Some(src) => task.src == *src,
        None => inputs.is_empty() || inputs.iter().any(|input| input.src == task.src),
    };
    tasks.retain(is_wanted);
    if let Some(src) = only.filter(|_| tasks.is_empty()) {
        return Err(Failure::usage(
            format!("mission {} has no task {src}", mission.id),
            "see `lighthpc status --local`",
        ));
    }
    tasks.sort_by(|a, b| a.src.cmp(&b.src));

    let done: Vec<&Task> = tasks.iter().filter(|task| task.state == State::Done).collect();
    warn_of_changed(&done, inputs);
    let failed: Vec<&Task> = tasks.iter().filter(|task| task.state == State::Failed).collect();
    for task in &failed {
        if desk.ledger.redrive(task, Some(mission), &clock::now_rfc3339()).await? == Redrive::NotFailed {
            tracing::warn!("{} is no longer failed", task.src);
        }
    }
    if !done.is_empty() || !failed.is_empty() {
        screen::to_stderr(&format!("done already: {}; failed, and tried again: {}\n", done.len(), failed.len()));
    }
    let mut queue: VecDeque<SrcId> =
        tasks.iter().filter(|task| task.state != State::Done).map(|task| task.src.clone()).collect();
    // Everything is done but nobody was told: the last committer died in between. Any of its tasks leads a node there.
    let fresh = desk.ledger.mission(&mission.id).await?;
    if queue.is_empty() && fresh.is_some_and(|mission| mission.notified != Notified::Yes) {
        queue.extend(tasks.first().map(|task| task.src.clone()));
    }
    Ok(Plan { queue, total: tasks.len() as u64, ended: done.len() as u64 })
}

/// A finished task is not redone; if its input was changed since, its user should know.
fn warn_of_changed(done: &[&Task], inputs: &[Input]) {
    for input in inputs {
        let Some(task) = done.iter().find(|task| task.src == input.src) else { continue };
        let changed = input.file.metadata().and_then(|meta| meta.modified()).ok().map(clock::rfc3339);
        let finished = task.history.last().map(|past| past.ended.clone());
        if changed > finished && finished.is_some() {
            tracing::warn!(
                "{} was changed after its result was made: for a new result, use another folder",
                input.file.display()
            );
        }
    }
}
