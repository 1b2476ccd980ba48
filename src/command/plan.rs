//! The plan of a local mission: creates the mission and its rows, and determines which tasks to run.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::time::Instant;

use super::failure::Failure;
use super::forms;
use super::inputs::{self, Input, Known, LocalTask};
use super::review::Review;
use super::screen::{self, Preparation};
use crate::backend::Backend;
use crate::backend::ledger::{Made, NewMission, NewTask, Redrive};
use crate::backend::parallel::Parallel;
use crate::clock;
use crate::command::exit::ExitCode;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::keys::task_name;
use crate::domain::mission::{Mission, Notified};
use crate::domain::task::{State, Task};
use crate::domain::work::{Inputs, ObjectName};
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

/// Refuses tasks that belong to another mission of the folder, and names of tasks that work on something else.
pub(super) fn refuse_other_tasks(rows: &Rows, tasks: &[LocalTask], ours: &MissionId) -> Result<(), Failure> {
    for task in tasks {
        let Some(row) = rows.get(&task.src) else { continue };
        if let Some(theirs) = row.mission.as_ref().filter(|theirs| *theirs != ours) {
            return Err(Failure::usage(
                format!(
                    "{} already belongs to mission {theirs} in this folder and cannot also belong to {ours}",
                    task.src
                ),
                "use another folder with --local=DIR",
            ));
        }
        let difference = match &row.work {
            Ok(theirs) => task.work.difference(theirs),
            Err(what) => Some(format!("attributes that cannot be understood: {what}")),
        };
        if let Some(difference) = difference {
            return Err(Failure::usage(
                format!("task {} exists in this folder, and it has {difference}", task.src),
                "name another mission with --mission, or another folder with --local=DIR",
            ));
        }
    }
    Ok(())
}

/// Refuses a task that `--src-id` names if it neither exists nor is among the inputs.
pub(super) fn refuse_unknown_task(rows: &Rows, tasks: &[LocalTask], src: Option<&SrcId>) -> Result<(), Failure> {
    let is_known = |src: &SrcId| rows.contains_key(src) || tasks.iter().any(|task| task.src == *src);
    match src.filter(|src| !is_known(src)) {
        None => Ok(()),
        Some(src) => Err(Failure::usage(
            format!("there is no task {src} (--src-id)"),
            "list the tasks with `lighthpc status --local`; a new task is named after its file",
        )),
    }
}

/// Checks what a folder that does not exist yet is to hold.
pub(super) fn check_new(dir: &Path, settings: &NodeSettings, tasks: &[LocalTask]) -> Result<(), Failure> {
    if tasks.is_empty() {
        return Err(no_mission(dir, settings.mission.as_ref()));
    }
    settings.mission.as_ref().map(new_id).transpose()?;
    refuse_unknown_task(&Rows::new(), tasks, settings.src.as_ref())
}

fn new_id(id: &MissionId) -> Result<MissionId, Failure> {
    MissionId::for_a_new_mission(id.as_str()).map_err(|error| Failure::usage(error, "give another id with --mission"))
}

/// Returns the id of the mission to run: the named one, the folder's only one, or the default.
pub(super) fn id_of(named: Option<&MissionId>, missions: &[Mission]) -> MissionId {
    match (named, missions) {
        (Some(id), _) => id.clone(),
        (None, [only]) => only.id.clone(),
        (None, _) => MissionId::new(DEFAULT_MISSION).expect("a constant name is legal"),
    }
}

/// Puts the mission's id before the names that tasks of the folder's other missions have, and before the keys that
/// stand for other files.
///
/// # Errors
/// Two tasks would have one name.
pub(super) fn name_apart(
    rows: &Rows,
    cloud: &LocalCloud,
    tasks: Vec<LocalTask>,
    mission: &MissionId,
) -> Result<Vec<LocalTask>, Failure> {
    let below = |name: &SrcId| {
        task_name(Some(mission), name.as_str()).map_err(|error| Failure::usage(error, "give the file another name"))
    };
    let is_anothers = |src: &SrcId| {
        let theirs = rows.get(src).and_then(|row| row.mission.as_ref());
        theirs.is_some_and(|theirs| theirs != mission)
    };
    let is_other_file = |input: &Input| {
        let linked = cloud.object_path(SOURCE_BUCKET, input.src.as_str()).canonicalize();
        linked.is_ok_and(|linked| input.file.canonicalize().is_ok_and(|real| real != linked))
    };
    let (mut apart, mut seen) = (Vec::with_capacity(tasks.len()), HashSet::new());
    for mut task in tasks {
        if task.work.inputs == Inputs::Named {
            // The file of such a task has its name, and a row of this mission keeps both.
            let is_known = rows.get(&task.src).is_some_and(|row| row.mission.as_ref() == Some(mission));
            if is_anothers(&task.src) || !is_known && task.files.iter().any(is_other_file) {
                task.src = below(&task.src)?;
                task.files.iter_mut().for_each(|input| input.src = task.src.clone());
            }
        } else {
            if is_anothers(&task.src) {
                task.src = below(&task.src)?;
            }
            for input in &mut task.files {
                if is_other_file(input) {
                    input.src = below(&input.src)?;
                }
            }
            if matches!(task.work.inputs, Inputs::Several(_)) {
                task.work.inputs = inputs::objects_of(&task.files);
            }
        }
        if !seen.insert(task.src.clone()) {
            let message = format!("two tasks would have the name {}", task.src);
            return Err(Failure::usage(
                message,
                "give one of them another name, or use another folder with --local=DIR",
            ));
        }
        apart.push(task);
    }
    Ok(apart)
}

/// Refuses files that would replace others, before anything is written.
pub(super) fn refuse_other_files(cloud: &LocalCloud, tasks: &[LocalTask]) -> Result<(), Failure> {
    tasks.iter().flat_map(|task| &task.files).try_for_each(|input| is_linked(cloud, input).map(drop))
}

/// Finds the folder's mission, or creates it from the inputs.
pub(super) async fn find_or_make(
    backend: &Backend,
    dir: &Path,
    exec: Option<String>,
    settings: &NodeSettings,
    (missions, tasks): (Vec<Mission>, &[LocalTask]),
) -> Result<Mission, Failure> {
    let id = id_of(settings.mission.as_ref(), &missions);
    if tasks.is_empty() && settings.mission.is_none() && missions.len() > 1 {
        let ids: Vec<&str> = missions.iter().map(|mission| mission.id.as_str()).collect();
        return Err(Failure::usage(
            format!("{} has {} missions: {}", dir.display(), ids.len(), ids.join(", ")),
            "name one with --mission",
        ));
    }
    if let Some(mission) = missions.into_iter().find(|mission| mission.id == id) {
        if let Some(exec) = exec.as_ref().or(mission.exec.as_ref()) {
            tasks.iter().try_for_each(|task| forms::check_workload(exec, &task.src, &task.work))?;
        }
        // Without a program, it is the mission's.
        if exec == mission.exec || exec.is_none() {
            return Ok(mission);
        }
        let (mut done, mut unfit) = (0, None);
        let each = |task: Task| {
            done += u64::from(task.state == State::Done);
            if let (Some(exec), Ok(work), None) = (&exec, &task.work, &unfit) {
                unfit = forms::check_workload(exec, &task.src, work).err();
            }
        };
        backend.ledger.each_task(Some(&id), each).await?;
        if done > 0 {
            return Err(other_program(dir, &mission, exec.as_deref()));
        }
        if let Some(unfit) = unfit {
            return Err(unfit);
        }
        // No result exists yet, so the command may still be corrected.
        backend.ledger.set_exec(&id, exec.as_deref()).await?;
        return Ok(Mission { exec, ..mission });
    }
    if tasks.is_empty() {
        return Err(no_mission(dir, settings.mission.as_ref()));
    }
    let id = new_id(&id)?;
    let trans_number = tasks.len() as u64;
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

/// Returns the files that already are tasks of the mission. A file keeps its first key, whatever files are added later.
pub(super) fn known(rows: &Rows, cloud: &LocalCloud, mission: &MissionId) -> Known {
    let files = |task: &Task| {
        let is_done = task.state == State::Done;
        let work = task.work.clone().unwrap_or_default();
        let objects = work.objects(&task.src, SOURCE_BUCKET).into_iter();
        let file = |object: ObjectName| {
            let link = std::fs::read_link(cloud.object_path(SOURCE_BUCKET, &object.key)).ok()?;
            Some((link, (SrcId::new(object.key).ok()?, is_done)))
        };
        objects.filter_map(file).collect::<Vec<_>>()
    };
    let is_its = |task: &&Task| task.mission.as_ref().is_none_or(|theirs| theirs == mission);
    let mut known = Known::new();
    for (file, key) in rows.values().filter(is_its).flat_map(files) {
        known.entry(file).or_default().push(key);
    }
    known
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

/// The preparation of a run: a folder's cloud, and the tasks that the command line names.
#[derive(Clone, Copy)]
pub(super) struct Preparing<'a> {
    pub(super) backend: &'a Backend,
    pub(super) cloud: &'a LocalCloud,
    pub(super) tasks: &'a [LocalTask],
    /// When the command was started; progress is shown after a while.
    pub(super) started: Instant,
}

impl Preparing<'_> {
    /// Creates the missing rows, and sets the mission's number of tasks.
    pub(super) async fn add_tasks(&self, mission: &Mission, rows: &Rows) -> Result<(), Failure> {
        let Self { backend, cloud, tasks: given, started } = *self;
        let mut progress = Preparation::new("preparing tasks", given.len() as u64, started);
        // In chunks, to bound the memory for the rows of a large mission.
        for (part, given) in (0..).zip(given.chunks(LINKED_AT_ONCE)) {
            let mut tasks = Vec::new();
            for (n, task) in (part * LINKED_AT_ONCE as u64..).zip(given) {
                progress.at(n);
                let mut is_there = rows.contains_key(&task.src);
                for input in &task.files {
                    is_there &= link(cloud, input)?;
                }
                if is_there || task.files.iter().any(|input| !input.file.exists()) {
                    continue;
                }
                tasks.push(NewTask {
                    src: task.src.clone(),
                    mission: Some((mission.id.clone(), mission.tally_shards)),
                    bucket: task.work.needs_bucket().then(|| SOURCE_BUCKET.to_owned()),
                    work: task.work.clone(),
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
                if let Made::There(task) = made.map_err(Failure::from)?
                    && !rows.contains_key(&task.src)
                {
                    let message = format!("task {} was made twice", task.src);
                    return Err(Failure::usage(message, "run the same command again"));
                }
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
        let Self { backend, cloud, tasks: given, started } = *self;
        let mut tasks = Vec::new();
        backend.ledger.each_task(Some(&mission.id), |task| tasks.push(task)).await?;
        let named: HashSet<&SrcId> = given.iter().map(|task| &task.src).collect();
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

/// Returns whether an input file is linked as an object, or is gone.
fn is_linked(cloud: &LocalCloud, input: &Input) -> Result<bool, Failure> {
    let Input { src, file } = input;
    let Ok(real) = file.canonicalize() else { return Ok(true) };
    match cloud.object_path(SOURCE_BUCKET, src.as_str()).canonicalize() {
        Ok(linked) if linked != real => Err(Failure::usage(
            format!("{} and {} would be the same input, {src}", linked.display(), real.display()),
            "use another folder with --local=DIR for the second file",
        )),
        Ok(_) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// Links an input file as an object, and returns whether it was linked before.
fn link(cloud: &LocalCloud, input: &Input) -> Result<bool, Failure> {
    if is_linked(cloud, input)? {
        return Ok(true);
    }
    let real = input.file.canonicalize();
    let linked = real.and_then(|real| cloud.link_object(SOURCE_BUCKET, input.src.as_str(), &real));
    linked.map(|()| false).map_err(|error| {
        Failure::usage(format!("{}: {error}", input.file.display()), "check its permissions and the folder's")
    })
}

/// The tasks to run.
pub(super) struct RunPlan {
    pub(super) queue: VecDeque<SrcId>,
    pub(super) total: u64,
    pub(super) ended: u64,
    /// The review of the tasks that were done before.
    pub(super) review: Review,
}
