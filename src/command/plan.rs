//! The plan of a local mission: creates the mission and its rows, and determines which tasks to run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::time::Instant;

use super::cli::RunArgs;
use super::failure::Failure;
use super::inputs::{Input, Known};
use super::review::Review;
use super::screen::{self, Preparation};
use crate::backend::Backend;
use crate::backend::ledger::{NewMission, NewTask, Redrive};
use crate::backend::parallel::Parallel;
use crate::clock;
use crate::command::exit::ExitCode;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};
use crate::worker::NodeSettings;
use local_cloud::{LocalCloud, SOURCE_BUCKET};

/// The default mission id. A folder usually has one mission.
const DEFAULT_MISSION: &str = "local";

/// Rows that are written at the same time. The database engine writes one at a time, and the rest of a call takes about
/// as long as the write.
const ROWS_PARALLEL: usize = 4;
/// Inputs that are linked before their rows are created. 1,000 rows take about 300 KB of memory.
const LINKED_AT_ONCE: usize = 1000;

/// The rows of a folder's tasks by key, read once before the first task runs.
pub(super) type Rows = HashMap<SrcId, Task>;

pub(super) async fn rows(backend: &Backend) -> Result<Rows, Failure> {
    let mut rows = Rows::new();
    let each = |task: Task| {
        rows.insert(task.src.clone(), task);
    };
    backend.ledger.each_task(None, each).await?;
    Ok(rows)
}

/// Refuses inputs that belong to another mission of the folder: a task counts for one mission only.
pub(super) fn refuse_foreign_tasks(rows: &Rows, inputs: &[Input], mission: Option<&MissionId>) -> Result<(), Failure> {
    let Some(ours) = mission else { return Ok(()) };
    for input in inputs {
        let theirs = rows.get(&input.src).and_then(|row| row.mission.as_ref());
        if let Some(theirs) = theirs.filter(|theirs| *theirs != ours) {
            return Err(Failure::usage(
                format!(
                    "{} already belongs to mission {theirs} in this folder and cannot also belong to {ours}",
                    input.src
                ),
                "use another folder with --local=DIR",
            ));
        }
    }
    Ok(())
}

/// Refuses a task that `--src-id` names if it neither exists nor is among the inputs.
pub(super) fn refuse_unknown_task(rows: &Rows, inputs: &[Input], src: Option<&SrcId>) -> Result<(), Failure> {
    let is_known = |src: &SrcId| rows.contains_key(src) || inputs.iter().any(|input| input.src == *src);
    match src.filter(|src| !is_known(src)) {
        None => Ok(()),
        Some(src) => Err(Failure::usage(
            format!("there is no task {src} (--src-id)"),
            "list the tasks with `lighthpc status --local`; a new task is named after its file",
        )),
    }
}

/// Checks what a folder that does not exist yet is to hold.
pub(super) fn check_new(dir: &Path, settings: &NodeSettings, inputs: &[Input]) -> Result<(), Failure> {
    if inputs.is_empty() {
        return Err(no_mission(dir, settings.mission.as_ref()));
    }
    settings.mission.as_ref().map(new_id).transpose()?;
    refuse_unknown_task(&Rows::new(), inputs, settings.src.as_ref())
}

fn new_id(id: &MissionId) -> Result<MissionId, Failure> {
    MissionId::for_a_new_mission(id.as_str()).map_err(|error| Failure::usage(error, "give another id with --mission"))
}

/// Finds the folder's mission, or creates it from the inputs.
pub(super) async fn find_or_make(
    backend: &Backend,
    dir: &Path,
    args: &RunArgs,
    settings: &NodeSettings,
    inputs: &[Input],
) -> Result<Mission, Failure> {
    let missions = backend.ledger.missions().await?;
    let id = match (&settings.mission, missions.as_slice()) {
        (Some(id), _) => id.clone(),
        (None, [only]) => only.id.clone(),
        (None, _) => MissionId::new(DEFAULT_MISSION).expect("a constant name is legal"),
    };
    let exec = command_line(args);
    if inputs.is_empty() && settings.mission.is_none() && missions.len() > 1 {
        let ids: Vec<&str> = missions.iter().map(|mission| mission.id.as_str()).collect();
        return Err(Failure::usage(
            format!("{} has {} missions: {}", dir.display(), ids.len(), ids.join(", ")),
            "name one with --mission",
        ));
    }
    if let Some(mission) = missions.into_iter().find(|mission| mission.id == id) {
        // Without a program, it is the mission's.
        if exec == mission.exec || exec.is_none() {
            return Ok(mission);
        }
        let mut done = 0;
        backend.ledger.each_task(Some(&id), |task| done += u64::from(task.state == State::Done)).await?;
        if done > 0 {
            return Err(other_program(dir, &mission, exec.as_deref()));
        }
        // No result exists yet, so the command may still be corrected.
        backend.ledger.set_exec(&id, exec.as_deref()).await?;
        return Ok(Mission { exec, ..mission });
    }
    if inputs.is_empty() {
        return Err(no_mission(dir, settings.mission.as_ref()));
    }
    let id = new_id(&id)?;
    let trans_number = inputs.len() as u64;
    let new = NewMission { exec, now: clock::now_rfc3339(), ..NewMission::of(id.clone(), trans_number) };
    backend.ledger.create_mission(&new).await?;
    let made = backend.ledger.mission(&id).await?;
    made.ok_or_else(|| Failure {
        exit: ExitCode::Internal,
        error: anyhow::anyhow!("the row of mission {id} disappeared after it was created"),
        hint: None,
    })
}

/// Refuses a mission that was cancelled: its tasks would only fail again.
pub(super) fn refuse_cancelled(mission: &Mission, dir: &Path) -> Result<(), Failure> {
    if mission.cancelled_at.is_none() {
        return Ok(());
    }
    let (id, flag) = (crate::domain::printable::shell(mission.id.as_str()).into_owned(), super::local_dir::flag(dir));
    Err(Failure::usage(
        format!("mission {} is cancelled", mission.id),
        format!("open it again with `lighthpc redrive{flag} {id}`, then run it"),
    ))
}

/// Returns the failure for a mission that does not exist, or for missing input files.
pub(super) fn no_mission(dir: &Path, named: Option<&MissionId>) -> Failure {
    let hint = "name input files: lighthpc run --local FILE... -- PROGRAM";
    match named {
        None => Failure::usage(format!("there is no mission in {}", dir.display()), hint),
        Some(id) => Failure {
            exit: ExitCode::NoTask,
            error: anyhow::anyhow!("there is no mission {id} in {}", dir.display()),
            hint: Some(format!("list the missions with `lighthpc status --local`; or {hint}")),
        },
    }
}

/// Returns the files that already are tasks. A file keeps its first key, whatever files are added later.
pub(super) fn known(rows: &Rows, cloud: &LocalCloud) -> Known {
    let file = |task: &Task| {
        let link = std::fs::read_link(cloud.object_path(SOURCE_BUCKET, task.src.as_str())).ok()?;
        Some((link, (task.src.clone(), task.state == State::Done)))
    };
    rows.values().filter_map(file).collect()
}

/// Returns the workload as one line for `sh`. The mission's row stores it for `status` and for later runs.
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
        format!("mission {} in {} runs {old} and cannot also run {new}", mission.id, dir.display()),
        "name another mission with --mission, or another folder with --local=DIR",
    )
}

/// The preparation of a run: a folder's cloud, and the inputs that the command line names.
#[derive(Clone, Copy)]
pub(super) struct Preparing<'a> {
    pub(super) backend: &'a Backend,
    pub(super) cloud: &'a LocalCloud,
    pub(super) inputs: &'a [Input],
    /// When the command was started; progress is shown after a while.
    pub(super) started: Instant,
}

impl Preparing<'_> {
    /// Creates the missing rows, and sets the mission's number of tasks.
    pub(super) async fn add_tasks(&self, mission: &Mission, rows: &Rows) -> Result<(), Failure> {
        let Self { backend, cloud, inputs, started } = *self;
        let mut progress = Preparation::new("preparing tasks", inputs.len() as u64, started);
        // In chunks, to bound the memory for the rows of a large mission.
        for (part, inputs) in (0..).zip(inputs.chunks(LINKED_AT_ONCE)) {
            let mut tasks = Vec::new();
            for (n, Input { src, file }) in (part * LINKED_AT_ONCE as u64..).zip(inputs) {
                progress.at(n);
                let Ok(real) = file.canonicalize() else { continue };
                let object = cloud.object_path(SOURCE_BUCKET, src.as_str());
                let linked = object.canonicalize().ok();
                if let Some(linked) = linked.as_ref().filter(|linked| **linked != real) {
                    return Err(Failure::usage(
                        format!("{} and {} would be the same task, {src}", linked.display(), real.display()),
                        "use another folder with --local=DIR for the second file",
                    ));
                }
                if linked.is_some() && rows.contains_key(src) {
                    continue;
                }
                let link = cloud.link_object(SOURCE_BUCKET, src.as_str(), &real);
                link.map_err(|error| {
                    Failure::usage(format!("{}: {error}", real.display()), "check its permissions and the folder's")
                })?;
                tasks.push(NewTask {
                    src: src.clone(),
                    mission: Some((mission.id.clone(), mission.tally_shards)),
                    bucket: SOURCE_BUCKET.to_owned(),
                    now: clock::now_rfc3339(),
                    trigger_time: clock::now_rfc3339(),
                    trigger: "lighthpc run --local".to_owned(),
                });
            }
            let writes = tasks.into_iter().map(|new| {
                let ledger = backend.ledger.clone();
                async move { ledger.create_task(&new).await }
            });
            // May be dropped on an error: the next run finds the rows that exist.
            let mut writes = Parallel::new(ROWS_PARALLEL, writes);
            while let Some(made) = writes.next().await {
                let made =
                    made.map_err(|panic| Failure { exit: ExitCode::Internal, error: panic.into(), hint: None })?;
                made.map(drop).map_err(Failure::from)?;
            }
        }
        drop(progress);
        let mut count = 0;
        backend.ledger.each_task(Some(&mission.id), |_| count += 1).await?;
        if mission.trans_number != Some(count) {
            backend.ledger.resize_mission(mission, count).await?;
        }
        Ok(())
    }

    /// Determines from the tables which tasks to run. Failed tasks are retried: the user may have fixed the cause.
    pub(super) async fn plan(&self, mission: &Mission, only: Option<SrcId>) -> Result<RunPlan, Failure> {
        let Self { backend, cloud, inputs, started } = *self;
        let mut tasks = Vec::new();
        backend.ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
        let named: HashSet<&SrcId> = inputs.iter().map(|input| &input.src).collect();
        let is_wanted = |task: &Task| match &only {
            Some(src) => task.src == *src,
            None => named.is_empty() || named.contains(&task.src),
        };
        tasks.retain(is_wanted);
        if let Some(src) = only.filter(|_| tasks.is_empty()) {
            return Err(Failure::usage(
                format!("mission {} has no task {src}", mission.id),
                "list the tasks with `lighthpc status --local`",
            ));
        }
        tasks.sort_by(|a, b| a.src.cmp(&b.src));

        let done: Vec<&Task> = tasks.iter().filter(|task| task.state == State::Done).collect();
        let mut review = Review::new(cloud.clone(), u64::MAX);
        let mut progress = Preparation::new("comparing existing results", done.len() as u64, started);
        for (number, task) in (0..).zip(&done) {
            progress.at(number);
            review.look(task, named.contains(&task.src));
        }
        drop(progress);
        let failed: Vec<&Task> = tasks.iter().filter(|task| task.state == State::Failed).collect();
        for task in &failed {
            if backend.ledger.redrive(task, Some(mission), &clock::now_rfc3339()).await? == Redrive::NotFailed {
                tracing::warn!("task {} is no longer failed", task.src);
            }
        }
        if !done.is_empty() || !failed.is_empty() {
            screen::to_stderr(&format!("already done: {}; failed, retried now: {}\n", done.len(), failed.len()));
        }
        let mut queue: VecDeque<SrcId> =
            tasks.iter().filter(|task| task.state != State::Done).map(|task| task.src.clone()).collect();
        // All tasks are done but no notification was sent: the last node died in between. Running any task again completes
        // this step.
        let fresh = backend.ledger.mission(&mission.id).await?;
        if queue.is_empty() && fresh.is_some_and(|mission| mission.notified != Notified::Yes) {
            queue.extend(tasks.first().map(|task| task.src.clone()));
        }
        Ok(RunPlan { queue, total: tasks.len() as u64, ended: done.len() as u64, review })
    }
}

/// The tasks to run.
pub(super) struct RunPlan {
    pub(super) queue: VecDeque<SrcId>,
    pub(super) total: u64,
    pub(super) ended: u64,
    /// The review of the tasks that were done before.
    pub(super) review: Review,
}
