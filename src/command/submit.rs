//! `lighthpc submit`: creates a mission from many inputs, its rows and its nodes.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::PathBuf;

use serde_json::json;

use super::cli::SubmitArgs;
use super::dry_run::{self, with_archived};
use super::estimate::{Estimate, PlannedWork};
use super::failure::Failure;
use super::inputs::{self, Input, Known};
use super::{scheduling, screen, wait};
use crate::backend::parallel::Parallel;
use crate::backend::store::{OBJECT_BYTES_MAX, StoreError, files_parallel};
use crate::backend::{Kind, error_chain};
use crate::clock;
use crate::command::exit::{self, ExitCode};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::printable;
use crate::scheduler::{Checked, Scheduler, SubmitPlan, Submitted};

/// The source of the inputs.
enum Source {
    /// Existing objects. From a listing, also those that are archived.
    Keys { bucket: String, srcs: Vec<SrcId>, archived: Vec<SrcId> },
    /// Local files, which are uploaded first.
    Files(Vec<Input>),
}

pub(super) async fn run(args: SubmitArgs) -> Result<ExitCode, Failure> {
    let mission = mission_id(&args)?;
    let scheduler = scheduling::scheduler(&args.scheduler).await?;
    let source = source(&args, &scheduler).await?;
    let own = scheduler.settings.source_bucket.clone();
    let no_bucket = || Failure::usage("no source bucket is set", "set --source-bucket or LIGHTHPC_SOURCE_BUCKET");
    let (bucket, srcs, files, archived) = match source {
        Source::Keys { bucket, srcs, archived } => (bucket, srcs, Vec::new(), archived),
        Source::Files(files) => {
            let files = files.into_iter().map(|input| under(&mission, input)).collect::<Result<Vec<_>, _>>()?;
            let srcs = files.iter().map(|input| input.src.clone()).collect();
            (own.ok_or_else(no_bucket)?, srcs, files, Vec::new())
        }
    };
    if scheduler.settings.result_bucket.as_deref() == Some(&bucket) {
        return Err(Failure::usage(
            format!("{bucket} is the result bucket and cannot hold inputs"),
            "use another bucket for the inputs: results must not become tasks",
        ));
    }
    if srcs.is_empty() {
        return Err(Failure::usage(
            "no inputs were found",
            "check the prefix or the list; a mission needs at least one input",
        ));
    }
    let plan = SubmitPlan {
        mission,
        name: args.name.clone(),
        bucket,
        srcs: unique(srcs),
        exec: exec(&args),
        nodes: args.nodes,
        slots: args.slots,
        uploads: args.uploads,
        notify_on: args.notify_on,
    };
    // All checks that can refuse the submission come first, with and without --dry-run.
    check_bucket(&scheduler, &plan.bucket, files.first()).await?;
    let checked = scheduler.check(&plan, !args.no_launch).await?;
    warn_of_archived(&plan.bucket, plan.srcs.len(), &archived);
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
fn warn_of_archived(bucket: &str, all: usize, archived: &[SrcId]) {
    const SHOWN: usize = 3;
    let Some(first) = archived.first() else { return };
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

fn exec(args: &SubmitArgs) -> Option<String> {
    if args.program.is_empty() {
        return args.exec.clone().filter(|exec| !exec.trim().is_empty());
    }
    Some(shell_words::join(&args.program))
}

async fn source(args: &SubmitArgs, scheduler: &Scheduler) -> Result<Source, Failure> {
    let own = scheduler.settings.source_bucket.as_deref();
    match args.inputs.as_slice() {
        [one] if one == "-" => from_stdin(own),
        [one] if one.starts_with("s3://") => from_prefix(one, own, scheduler).await,
        some if some.iter().any(|input| input == "-" || input.starts_with("s3://")) => Err(Failure::usage(
            "an s3:// prefix or - cannot be combined with other inputs",
            "use one s3:// prefix, or -, or local files",
        )),
        some => {
            let files: Vec<PathBuf> = some.iter().map(PathBuf::from).collect();
            let files = inputs::read(&files, &Known::new())?;
            files.iter().try_for_each(|input| refuse_too_large(&input.file))?;
            Ok(Source::Files(files))
        }
    }
}

fn refuse_too_large(file: &std::path::Path) -> Result<(), Failure> {
    let bytes = file.metadata().map_or(0, |meta| meta.len());
    if bytes <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{} has {bytes} bytes, more than an S3 object can have ({OBJECT_BYTES_MAX})", file.display());
    Err(Failure::usage(message, "split the file"))
}

async fn from_prefix(uri: &str, own: Option<&str>, scheduler: &Scheduler) -> Result<Source, Failure> {
    let (bucket, prefix) = split_uri(uri)?;
    refuse_foreign(&bucket, own)?;
    let objects = scheduler.backend.store.list_objects(&bucket, &prefix).await?;
    let (mut srcs, mut archived) = (Vec::new(), Vec::new());
    // An empty object that represents a folder is not an input.
    for object in objects.into_iter().filter(|object| !object.key.ends_with('/')) {
        let src = src(&object.key)?;
        if object.is_archived {
            archived.push(src.clone());
        }
        srcs.push(src);
    }
    Ok(Source::Keys { bucket, srcs, archived })
}

fn from_stdin(own: Option<&str>) -> Result<Source, Failure> {
    let mut bucket = own.map(ToOwned::to_owned);
    let mut srcs = Vec::new();
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
        srcs.push(src(&key)?);
    }
    let bucket = bucket.ok_or_else(|| {
        Failure::usage("no bucket is given for the keys", "set --source-bucket, or write s3://BUCKET/KEY")
    })?;
    Ok(Source::Keys { bucket, srcs, archived: Vec::new() })
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
    let files: Vec<Input> = files.into_iter().filter(|input| !there.contains(&input.src)).collect();
    let bar = screen::bar("uploads", files.len() as u64);
    let uploads = files.into_iter().map(|Input { src, file }| {
        let (store, bucket) = (scheduler.backend.store.clone(), plan.bucket.clone());
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
