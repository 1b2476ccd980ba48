//! `lighthpc submit`: creates a mission from many inputs, its rows and its nodes.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;
use std::path::PathBuf;

use serde_json::json;

use super::cli::SubmitArgs;
use super::dry_run::{self, with_archived};
use super::estimate::{Estimate, PlannedWork};
use super::failure::Failure;
use super::forms::{FormArgs, FormTask};
use super::inputs::{self, Input, Known};
use super::{forms, scheduling, screen, wait};
use crate::backend::parallel::Parallel;
use crate::backend::store::{OBJECT_BYTES_MAX, StoreError, files_parallel};
use crate::backend::{Kind, error_chain};
use crate::clock;
use crate::command::exit::{self, ExitCode};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::keys::task_name;
use crate::domain::printable;
use crate::domain::work::{Inputs, Work};
use crate::scheduler::{Checked, Scheduler, SubmitPlan, Submitted};

/// The tasks of a submission, and their inputs.
#[derive(Default)]
struct Source {
    /// The bucket of the inputs, if there are any.
    bucket: Option<String>,
    /// The names of the tasks.
    srcs: Vec<SrcId>,
    /// What tasks work on, if that is not the object of their name.
    works: HashMap<SrcId, Work>,
    /// Local files, which are uploaded first.
    files: Vec<Input>,
    /// Objects of a listing that are archived.
    archived: Vec<SrcId>,
}

impl Source {
    /// Makes one task for each object. An object below `<mission>/` has its task's name already.
    fn of_keys(mission: &MissionId, bucket: String, keys: Vec<String>) -> Result<Self, Failure> {
        let prefix = format!("{mission}/");
        let mut source = Self { bucket: Some(bucket), ..Self::default() };
        let names: HashSet<String> = keys.iter().filter(|key| key.starts_with(&prefix)).cloned().collect();
        for key in keys {
            if key.starts_with(&prefix) {
                source.srcs.push(src(&key)?);
                continue;
            }
            if names.contains(&format!("{prefix}{key}")) {
                let message = format!(
                    "the objects {} and {prefix}{} would be one task",
                    screen::plain(&key),
                    screen::plain(&key)
                );
                return Err(Failure::usage(message, "submit them to two missions, or select one with --include"));
            }
            let name = task_name(Some(mission), &key).map_err(|error| Failure::usage(error, "use another key"))?;
            source.works.insert(name.clone(), Work { inputs: Inputs::Key(src(&key)?.to_string()), ..Work::default() });
            source.srcs.push(name);
        }
        Ok(source)
    }

    fn of_form(tasks: Vec<FormTask>) -> Self {
        let srcs = tasks.iter().map(|task| task.src.clone()).collect();
        let works = tasks.into_iter().map(|task| (task.src, task.work)).collect();
        Self { srcs, works, ..Self::default() }
    }
}

pub(super) async fn run(args: SubmitArgs) -> Result<ExitCode, Failure> {
    let mission = mission_id(&args)?;
    args.form.check(!args.inputs.is_empty())?;
    let exec = exec(&args)?;
    let scheduler = scheduling::scheduler(&args.scheduler).await?;
    let Source { bucket, srcs, works, files, archived } = source(&args, &mission, &scheduler).await?;
    if bucket.is_some() && scheduler.settings.result_bucket == bucket {
        return Err(Failure::usage(
            format!("{} is the result bucket and cannot hold inputs", bucket.unwrap_or_default()),
            "use another bucket for the inputs: results must not become tasks",
        ));
    }
    if srcs.is_empty() {
        return Err(Failure::usage(
            "no inputs were found",
            "check the prefix or the list; a mission needs at least one input",
        ));
    }
    if args.uploads == Some(true) && args.form.group_by.is_some() {
        return Err(Failure::usage(
            "--group-by cannot be used with --uploads yes, which makes a task of each object under the mission's prefix",
            "remove --uploads yes",
        ));
    }
    let mut plan = SubmitPlan {
        mission,
        name: args.name.clone(),
        bucket,
        srcs: unique(srcs),
        works,
        exec,
        nodes: args.nodes,
        slots: args.slots,
        uploads: args.uploads,
        notify_on: args.notify_on,
    };
    scheduler.keep_names(&mut plan).await?;
    // All checks that can refuse the submission come first, with and without --dry-run.
    if let Some(bucket) = &plan.bucket {
        check_bucket(&scheduler, bucket, files.first()).await?;
    }
    let checked = scheduler.check(&plan, !args.no_launch).await?;
    let stored = checked.mission.as_ref().and_then(|mission| mission.exec.as_ref());
    if let Some(exec) = plan.exec.as_ref().or(stored) {
        plan.srcs.iter().try_for_each(|src| forms::check_workload(exec, src, &plan.work(src)))?;
    }
    warn_of_archived(plan.bucket.as_deref(), plan.srcs.len(), &archived);
    let work = work(&args, &plan, &checked);
    let estimate = Estimate::read(&scheduler, &checked.requests, &args.on_demand_prices, work).await;
    if args.dry_run {
        dry_run::print(&args, &plan, &checked, (&estimate, work), archived.len());
        return Ok(ExitCode::Ok);
    }
    screen::to_stderr(&estimate.sums(work));
    let prepared = scheduler.prepare_checked(&plan, checked).await?;
    upload(&scheduler, &plan, &prepared.known, files).await?;
    let bar = screen::bar("rows", plan.srcs.len() as u64);
    let mut submitted = scheduler.make_rows(&plan, &prepared, |done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    let launched = if args.no_launch {
        Ok(())
    } else {
        let bar = screen::bar("launches", plan.srcs.len() as u64);
        let launched = scheduler
            .launch_all(&prepared.mission, &mut submitted, |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })
            .await;
        bar.finish_and_clear();
        launched
    };
    print_outcome(&args, &plan, &submitted, (&estimate, archived.len()));
    launched?;
    if args.wait {
        let place = args.place().open().await?;
        return wait::until_ended(place, plan.mission.as_str(), wait::Until::default()).await;
    }
    Ok(ExitCode::Ok)
}

/// Returns what the submission launches, for the estimate of its cost.
fn work(args: &SubmitArgs, plan: &SubmitPlan, checked: &Checked) -> PlannedWork {
    let mission = checked.mission.as_ref();
    let own_nodes = mission.map_or(plan.nodes, |mission| mission.nodes);
    let tasks = plan.srcs.len() as u64;
    let nodes = match own_nodes {
        _ if args.no_launch || checked.requests.is_empty() => 0,
        Some(_) => checked.requests.iter().map(|request| u64::from(request.count)).sum(),
        None => tasks,
    };
    let slots = own_nodes.and_then(|_| mission.map_or(plan.slots, |mission| mission.slots)).unwrap_or(1);
    PlannedWork { tasks, nodes, slots: slots.into(), task_time: args.task_time }
}

/// Returns the mission id: the given one, or a new one.
fn mission_id(args: &SubmitArgs) -> Result<MissionId, Failure> {
    let id = args.mission.clone().unwrap_or_else(|| generated_id(&clock::now_rfc3339(), rand::random()));
    MissionId::for_a_new_mission(id).map_err(|error| Failure::usage(error, "give another id with --mission"))
}

/// Returns an id from the time and 24 random bits, such as `2026-11-27T13-50-02Z-4f09c1`: two submissions in one second
/// that name no mission are two missions.
fn generated_id(now: &str, random: u32) -> String {
    format!("{}-{:06x}", now.replace(':', "-"), random >> 8)
}

/// Checks that the bucket exists and, if there are files, that they can be uploaded: starts and aborts an upload.
async fn check_bucket(scheduler: &Scheduler, bucket: &str, file: Option<&Input>) -> Result<(), Failure> {
    let store = &scheduler.backend.store;
    let checked = match file {
        Some(file) => store.may_put(bucket, file.src.as_str()).await,
        None => store.check_bucket(bucket).await,
    };
    match checked {
        // The right to start an upload is enough to upload. The right to abort is useful but not required.
        Err(error) if error.operation == "AbortMultipartUpload" && error.kind == Kind::AccessDenied => {
            let Failure { error, .. } = error.into();
            tracing::warn!(
                "an empty multipart upload remains until the bucket's lifecycle removes it: {}",
                error_chain(error.as_ref())
            );
            Ok(())
        }
        checked => checked.map_err(Failure::from),
    }
}

/// Warns about archived inputs, which nodes cannot read until they are restored. Only a listing reports them.
fn warn_of_archived(bucket: Option<&str>, all: usize, archived: &[SrcId]) {
    const SHOWN: usize = 3;
    let (Some(bucket), Some(first)) = (bucket, archived.first()) else { return };
    let some: Vec<String> = archived.iter().take(SHOWN).map(|src| screen::plain(src.as_str())).collect();
    let more = if archived.len() > SHOWN { format!(", and {} more", archived.len() - SHOWN) } else { String::new() };
    screen::to_stderr(&format!(
        "warning: {} of {all} inputs are archived (GLACIER or DEEP_ARCHIVE), and their tasks will fail: {}{more}\n\
         hint: restore each first: aws s3api restore-object --bucket={} --key={} --restore-request Days=7\n",
        archived.len(),
        some.join(", "),
        printable::shell(bucket),
        printable::shell(first.as_str()),
    ));
}

/// Returns the workload as a line for a shell.
fn exec(args: &SubmitArgs) -> Result<Option<String>, Failure> {
    forms::command_line(&args.program, args.exec.as_deref())
}

async fn source(args: &SubmitArgs, mission: &MissionId, scheduler: &Scheduler) -> Result<Source, Failure> {
    if let Some(tasks) = args.form.tasks(Some(mission))? {
        return Ok(Source::of_form(tasks));
    }
    let own = scheduler.settings.source_bucket.as_deref();
    let source = match args.inputs.as_slice() {
        [one] if one == "-" => from_stdin(own, mission, &args.form)?,
        [one] if one.starts_with("s3://") => from_prefix(one, own, (mission, &args.form), scheduler).await?,
        some if some.iter().any(|input| input == "-" || input.starts_with("s3://")) => {
            return Err(Failure::usage(
                "an s3:// prefix or - cannot be combined with other inputs",
                "use one s3:// prefix, or -, or local files",
            ));
        }
        some => from_files(some, own, mission, &args.form)?,
    };
    let bucket = source.bucket.clone().unwrap_or_default();
    let prefix = format!("{mission}/");
    let objects = source.srcs.iter().flat_map(|src| {
        let work = source.works.get(src).cloned().unwrap_or_default();
        work.objects(src, &bucket).into_iter().map(|object| {
            // A file is named as the user names it, and an object by its whole key.
            let name = object.key.strip_prefix(&prefix).filter(|_| !source.files.is_empty());
            (name.unwrap_or(&object.key).to_owned(), object)
        })
    });
    match args.form.groups(Some(mission), objects)? {
        None => Ok(source),
        Some(tasks) => {
            let Source { bucket, files, archived, .. } = source;
            Ok(Source { bucket, files, archived, ..Source::of_form(tasks) })
        }
    }
}

fn from_files(names: &[String], own: Option<&str>, mission: &MissionId, form: &FormArgs) -> Result<Source, Failure> {
    let files = inputs::files(names.iter().map(PathBuf::from).collect(), form)?;
    let files = inputs::read(&files, &Known::new())?;
    files.iter().try_for_each(|input| refuse_too_large(&input.file))?;
    let files = files.into_iter().map(|input| under(mission, input)).collect::<Result<Vec<_>, _>>()?;
    let no_bucket = || Failure::usage("no source bucket is set", "set --source-bucket or LIGHTHPC_SOURCE_BUCKET");
    let bucket = own.ok_or_else(no_bucket)?.to_owned();
    let srcs = files.iter().map(|input| input.src.clone()).collect();
    Ok(Source { bucket: Some(bucket), srcs, files, ..Source::default() })
}

fn refuse_too_large(file: &std::path::Path) -> Result<(), Failure> {
    let bytes = file.metadata().map_or(0, |meta| meta.len());
    if bytes <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{} has {bytes} bytes, more than an S3 object can have ({OBJECT_BYTES_MAX})", file.display());
    Err(Failure::usage(message, "split the file"))
}

async fn from_prefix(
    uri: &str,
    own: Option<&str>,
    (mission, form): (&MissionId, &FormArgs),
    scheduler: &Scheduler,
) -> Result<Source, Failure> {
    let (bucket, prefix) = split_uri(uri)?;
    refuse_foreign(&bucket, own)?;
    let objects = scheduler.backend.store.list_objects(&bucket, &prefix).await?;
    let (mut keys, mut archived) = (Vec::new(), Vec::new());
    // An empty object that represents a folder is not an input.
    let is_input = |key: &str| !key.ends_with('/') && form.is_wanted(key.strip_prefix(&prefix).unwrap_or(key));
    for object in objects.into_iter().filter(|object| is_input(&object.key)) {
        if object.is_archived {
            archived.push(src(&object.key)?);
        }
        keys.push(object.key);
    }
    Ok(Source { archived, ..Source::of_keys(mission, bucket, keys)? })
}

fn from_stdin(own: Option<&str>, mission: &MissionId, form: &FormArgs) -> Result<Source, Failure> {
    let mut bucket = own.map(ToOwned::to_owned);
    let mut keys = Vec::new();
    for (line, text) in (1..).zip(std::io::stdin().lock().lines()) {
        let text = text.map_err(|error| Failure::usage(format!("line {line}: {error}"), "write keys in UTF-8"))?;
        let text = text.strip_suffix('\r').unwrap_or(&text);
        if text.is_empty() {
            continue;
        }
        let key = if text.starts_with("s3://") {
            let (theirs, key) = split_uri(text)?;
            if let Some(ours) = &bucket
                && *ours != theirs
            {
                let message = format!("line {line}: {text} is not in bucket {ours}");
                return Err(Failure::usage(message, "use one bucket for all inputs of a mission"));
            }
            bucket = Some(theirs);
            key
        } else {
            text.to_owned()
        };
        keys.extend(Some(key).filter(|key| form.is_wanted(key)));
    }
    let bucket = bucket.ok_or_else(|| {
        Failure::usage("no bucket is given for the keys", "set --source-bucket, or write s3://BUCKET/KEY")
    })?;
    Source::of_keys(mission, bucket, keys)
}

fn split_uri(uri: &str) -> Result<(String, String), Failure> {
    let rest = uri.strip_prefix("s3://").unwrap_or(uri);
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Failure::usage(format!("{uri} has no bucket"), "write s3://BUCKET/PREFIX"));
    }
    Ok((bucket.to_owned(), key.to_owned()))
}

fn refuse_foreign(bucket: &str, own: Option<&str>) -> Result<(), Failure> {
    match own {
        Some(own) if own != bucket => Err(Failure::usage(
            format!("s3://{bucket} is not the source bucket {own}"),
            "nodes can read only the source bucket: copy the inputs there, or change --source-bucket and the \
             role of the nodes",
        )),
        _ => Ok(()),
    }
}

fn src(key: &str) -> Result<SrcId, Failure> {
    SrcId::new(key).map_err(|error| Failure::usage(format!("{error}: {key:.60}"), "use a key of 1 to 1,024 bytes"))
}

/// Puts local files under the mission's id, so that two missions can have files of the same name.
fn under(mission: &MissionId, input: Input) -> Result<Input, Failure> {
    Ok(Input { src: src(&format!("{mission}/{}", input.src))?, ..input })
}

fn unique(srcs: Vec<SrcId>) -> Vec<SrcId> {
    let mut seen = HashSet::new();
    srcs.into_iter().filter(|src| seen.insert(src.clone())).collect()
}

/// Returns the keys of the objects of new groups; `None` if the mission's tasks are no groups.
fn needed_by_groups(plan: &SubmitPlan, there: &HashSet<SrcId>) -> Option<HashSet<String>> {
    let new = plan.works.iter().filter(|(src, _)| !there.contains(src));
    let keys = new.flat_map(|(src, work)| work.objects(src, "")).map(|object| object.key);
    (!plan.works.is_empty()).then(|| keys.collect())
}

/// Uploads the files of tasks that have no row yet. The others were uploaded before.
async fn upload(
    scheduler: &Scheduler,
    plan: &SubmitPlan,
    there: &HashSet<SrcId>,
    files: Vec<Input>,
) -> Result<(), Failure> {
    if files.is_empty() {
        return Ok(());
    }
    let bucket = plan.bucket.clone().unwrap_or_default();
    let of_groups = needed_by_groups(plan, there);
    let is_needed = |input: &Input| match &of_groups {
        None => !there.contains(&input.src),
        Some(keys) => keys.contains(input.src.as_str()),
    };
    let files: Vec<Input> = files.into_iter().filter(is_needed).collect();
    let bar = screen::bar("uploads", files.len() as u64);
    let uploads = files.into_iter().map(|Input { src, file }| {
        let (store, bucket) = (scheduler.backend.store.clone(), bucket.clone());
        async move { store.put_file(&bucket, src.as_str(), &file).await }
    });
    let mut uploads = Parallel::new(files_parallel(), uploads);
    while let Some(put) = uploads.next().await {
        let put = put.map_err(|panic| Failure { exit: ExitCode::Internal, error: panic.into(), hint: None })?;
        put.map_err(of_store)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn of_store(error: StoreError) -> Failure {
    match error {
        StoreError::Cloud(error) => error.into(),
        other => {
            let (exit, hint) = exit::of_store(&other);
            Failure { exit, error: other.into(), hint }
        }
    }
}

/// Prints what was done, and the next step.
fn print_outcome(
    args: &SubmitArgs,
    plan: &SubmitPlan,
    submitted: &Submitted,
    (estimate, archived): (&Estimate, usize),
) {
    let Submitted { is_new, made, there, launched, waiting, waits } = submitted;
    if args.json {
        let line = json!({
            "mission": plan.mission.as_str(), "isNew": is_new, "tasks": plan.srcs.len(), "rowsMade": made,
            "rowsThere": there, "launched": launched, "waiting": waiting, "reasons": waits,
            "estimate": estimate.json(),
        });
        return screen::json_to_stdout(&with_archived(line, archived));
    }
    let is = if *is_new { "created" } else { "already exists" };
    screen::to_stdout(&format!(
        "mission {}: {is}; {} tasks: {made} rows created, {there} already existed\n\
         nodes: {launched} launched{}\nprogress: lighthpc status {}\n",
        screen::plain(plan.mission.as_str()),
        plan.srcs.len(),
        if *waiting > 0 { format!(", {waiting} tasks wait") } else { String::new() },
        printable::shell(plan.mission.as_str()),
    ));
    for why in waits {
        screen::to_stderr(&format!("no node was launched for some of them: {}\n", screen::plain(why)));
    }
    if !waits.is_empty() {
        screen::to_stderr("the next sweep tries again (`lighthpc sweep`, or the schedule of the stack)\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_submissions_of_one_second_have_two_ids_that_are_allowed() {
        let id = |random| generated_id("2026-11-27T13:50:02Z", random);

        assert_eq!("2026-11-27T13-50-02Z-00beef", id(0x00be_ef12));
        assert_ne!(id(0x0100_0000), id(0x0200_0000));
        assert!(MissionId::for_a_new_mission(id(u32::MAX)).is_ok());
    }
}
