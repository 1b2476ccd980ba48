//! `lighthpc submit`: a mission of many inputs, its rows, and its nodes.

use std::collections::{BTreeMap, HashSet};
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::cli::SubmitArgs;
use super::inputs::{self, Input, Known};
use super::{Failure, scheduling, screen};
use crate::backend::fleet::Request;
use crate::backend::store::StoreError;
use crate::clock;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::policy::Purchase;
use crate::exit::{self, Exit};
use crate::scheduler::{Plan, Scheduler, Submitted};

/// Files under way at once.
const UPLOADS_PARALLEL: usize = 8;
/// Missions above this are better served by nodes that do task after task: EC2 launches two a second.
const TASKS_MANY: usize = 500;

/// Where the inputs come from.
enum Source {
    /// Objects that are there.
    Keys { bucket: String, srcs: Vec<SrcId> },
    /// Files that go up first.
    Files(Vec<Input>),
}

pub(super) async fn run(args: SubmitArgs) -> Result<Exit, Failure> {
    let mission = mission_id(&args)?;
    let scheduler = scheduling::scheduler(&args.scheduler).await?;
    let source = source(&args, &scheduler).await?;
    let own = scheduler.settings.source_bucket.clone();
    let no_bucket = || Failure::usage("no source bucket is set", "set --source-bucket or LIGHTHPC_SOURCE_BUCKET");
    let (bucket, srcs, files) = match source {
        Source::Keys { bucket, srcs } => (bucket, srcs, Vec::new()),
        Source::Files(files) => {
            let files = files.into_iter().map(|input| under(&mission, input)).collect::<Result<Vec<_>, _>>()?;
            let srcs = files.iter().map(|input| input.src.clone()).collect();
            (own.ok_or_else(no_bucket)?, srcs, files)
        }
    };
    if scheduler.settings.result_bucket.as_deref() == Some(&bucket) {
        return Err(Failure::usage(
            format!("{bucket} is the result bucket"),
            "results must not become tasks: use another bucket for inputs",
        ));
    }
    if srcs.is_empty() {
        return Err(Failure::usage(
            "a mission needs at least one input, and there is none",
            "look at the prefix, or at the list",
        ));
    }
    let plan = Plan {
        mission,
        name: args.name.clone(),
        bucket,
        srcs: unique(srcs),
        exec: exec(&args),
        nodes: args.nodes,
        slots: args.slots,
    };
    if args.dry_run {
        return dry_run(&args, &scheduler, &plan).await;
    }
    let prepared = scheduler.prepare(&plan).await?;
    upload(&scheduler, &plan, &prepared.known, files).await?;
    let bar = bar("rows", plan.srcs.len() as u64);
    let mut submitted = scheduler.make_rows(&plan, &prepared, |done| bar.set_position(done)).await?;
    bar.finish_and_clear();
    let launched = if args.no_launch {
        Ok(())
    } else {
        let bar = self::bar("launches", plan.srcs.len() as u64);
        let launched = scheduler
            .launch_all(&prepared.mission, &mut submitted, |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })
            .await;
        bar.finish_and_clear();
        launched
    };
    say(&args, &plan, &submitted);
    launched?;
    Ok(Exit::Ok)
}

/// The mission's id: as named, or the time, as the first version had it.
fn mission_id(args: &SubmitArgs) -> Result<MissionId, Failure> {
    let id = args.mission.clone().unwrap_or_else(|| clock::now_rfc3339().replace(':', "-"));
    if id.contains("#tally#") || id.contains('/') {
        return Err(Failure::usage(
            format!("{id} cannot be a mission's id"),
            "an id has no `/`, which ends it in the keys of its inputs, and no `#tally#`",
        ));
    }
    MissionId::new(id).map_err(|error| Failure::usage(error, "look at --mission"))
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
            "a prefix, or -, is named beside other inputs",
            "name one s3:// prefix, or -, or local files",
        )),
        some => {
            let files: Vec<PathBuf> = some.iter().map(PathBuf::from).collect();
            inputs::read(&files, &Known::new()).map(Source::Files)
        }
    }
}

async fn from_prefix(uri: &str, own: Option<&str>, scheduler: &Scheduler) -> Result<Source, Failure> {
    let (bucket, prefix) = split_uri(uri)?;
    refuse_foreign(&bucket, own)?;
    let keys = scheduler.backend.store.list(&bucket, &prefix).await?;
    // An empty object that stands for a folder is no input.
    let srcs = keys.into_iter().filter(|key| !key.ends_with('/')).map(|key| src(&key)).collect::<Result<_, _>>()?;
    Ok(Source::Keys { bucket, srcs })
}

fn from_stdin(own: Option<&str>) -> Result<Source, Failure> {
    let mut bucket = own.map(ToOwned::to_owned);
    let mut srcs = Vec::new();
    for (line, text) in (1..).zip(std::io::stdin().lock().lines()) {
        let text = text.map_err(|error| Failure::usage(format!("line {line}: {error}"), "keys are UTF-8"))?;
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
                return Err(Failure::usage(message, "a mission's inputs are in one bucket"));
            }
            bucket = Some(theirs);
            key
        } else {
            text.to_owned()
        };
        srcs.push(src(&key)?);
    }
    let bucket = bucket.ok_or_else(|| {
        Failure::usage("the keys' bucket is not named", "set --source-bucket, or write s3://BUCKET/KEY")
    })?;
    Ok(Source::Keys { bucket, srcs })
}

fn split_uri(uri: &str) -> Result<(String, String), Failure> {
    let rest = uri.strip_prefix("s3://").unwrap_or(uri);
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(Failure::usage(format!("{uri} names no bucket"), "it looks like s3://BUCKET/PREFIX"));
    }
    Ok((bucket.to_owned(), key.to_owned()))
}

fn refuse_foreign(bucket: &str, own: Option<&str>) -> Result<(), Failure> {
    match own {
        Some(own) if own != bucket => Err(Failure::usage(
            format!("s3://{bucket} is not the source bucket {own}"),
            "nodes may read the source bucket alone: copy the inputs there, or set --source-bucket and the nodes' role",
        )),
        _ => Ok(()),
    }
}

fn src(key: &str) -> Result<SrcId, Failure> {
    SrcId::new(key).map_err(|error| Failure::usage(format!("{error}: {key:.60}"), "a key has 1 to 1,024 bytes"))
}

/// Local files go under the mission's name: two missions may have files of the same name.
fn under(mission: &MissionId, input: Input) -> Result<Input, Failure> {
    Ok(Input { src: src(&format!("{mission}/{}", input.src))?, ..input })
}

fn unique(srcs: Vec<SrcId>) -> Vec<SrcId> {
    let mut seen = HashSet::new();
    srcs.into_iter().filter(|src| seen.insert(src.clone())).collect()
}

/// Uploads the files whose tasks have no row yet: one that has was uploaded before.
async fn upload(scheduler: &Scheduler, plan: &Plan, there: &HashSet<SrcId>, files: Vec<Input>) -> Result<(), Failure> {
    if files.is_empty() {
        return Ok(());
    }
    let files: Vec<Input> = files.into_iter().filter(|input| !there.contains(&input.src)).collect();
    let bar = bar("uploads", files.len() as u64);
    let permits = Arc::new(Semaphore::new(UPLOADS_PARALLEL));
    let mut uploads = JoinSet::new();
    for Input { src, file } in files {
        let (store, bucket, permits) = (scheduler.backend.store.clone(), plan.bucket.clone(), permits.clone());
        uploads.spawn(async move {
            let _permit = permits.acquire_owned().await;
            store.put_file(&bucket, src.as_str(), &file).await
        });
    }
    while let Some(put) = uploads.join_next().await {
        let put = put.map_err(|panic| Failure { exit: Exit::Internal, error: panic.into(), hint: None })?;
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

/// What was done, and what to do next.
fn say(args: &SubmitArgs, plan: &Plan, submitted: &Submitted) {
    let Submitted { is_new, made, there, launched, waiting, waits } = submitted;
    if args.json {
        let line = json!({
            "mission": plan.mission.as_str(), "isNew": is_new, "tasks": plan.srcs.len(), "rowsMade": made,
            "rowsThere": there, "launched": launched, "waiting": waiting, "reasons": waits,
        });
        return screen::to_stdout(&format!("{line}\n"));
    }
    let is = if *is_new { "made" } else { "there already" };
    screen::to_stdout(&format!(
        "mission {}: {is}; {} tasks, {made} rows made, {there} there already\nnodes: {launched} launched{}\nwatch: lighthpc status {}\n",
        plan.mission,
        plan.srcs.len(),
        if *waiting > 0 { format!(", {waiting} tasks wait") } else { String::new() },
        shell_words::quote(plan.mission.as_str()),
    ));
    for why in waits {
        screen::to_stderr(&format!("some wait for a node: {why}\n"));
    }
    if !waits.is_empty() {
        screen::to_stderr("a sweep tries again (`lighthpc sweep`, or the stack's schedule)\n");
    }
}

/// What would be done, and what it costs now.
async fn dry_run(args: &SubmitArgs, scheduler: &Scheduler, plan: &Plan) -> Result<Exit, Failure> {
    const SHOWN: usize = 10;
    let requests = if args.no_launch { Vec::new() } else { scheduler.requests(plan)? };
    let types: Vec<String> = requests.iter().flat_map(|request| request.instance_types.clone()).collect();
    let is_spot = requests.iter().any(|request| request.purchase == Purchase::Spot);
    let prices = if is_spot && !types.is_empty() {
        scheduler.backend.fleet.spot_prices(&unique_words(types)).await?
    } else {
        BTreeMap::new()
    };
    let nodes: u64 = match plan.nodes {
        Some(_) => requests.iter().map(|request| u64::from(request.count)).sum(),
        None => plan.srcs.len() as u64,
    };
    if args.json {
        let line = json!({
            "mission": plan.mission.as_str(), "bucket": plan.bucket, "tasks": plan.srcs.len(), "exec": plan.exec,
            "keys": plan.srcs.iter().map(SrcId::as_str).collect::<Vec<_>>(), "nodes": nodes,
            "requests": requests.iter().map(request_json).collect::<Vec<_>>(), "spotPrices": prices,
        });
        screen::to_stdout(&format!("{line}\n"));
        return Ok(Exit::Ok);
    }
    let mut text = format!("mission {} would have {} tasks in s3://{}:\n", plan.mission, plan.srcs.len(), plan.bucket);
    for src in plan.srcs.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", screen::plain(src.as_str())));
    }
    if plan.srcs.len() > SHOWN {
        text.push_str(&format!("  and {} more\n", plan.srcs.len() - SHOWN));
    }
    text.push_str(&format!("{nodes} nodes would be launched"));
    text.push_str(if plan.nodes.is_some() { ", by:\n" } else { ", one for each task, the first by:\n" });
    for request in &requests {
        text.push_str(&format!("  {}\n", request_json(request)));
    }
    if !is_spot && !requests.is_empty() {
        text.push_str("price: On-Demand; see EC2's price list\n");
    }
    for (name, price) in &prices {
        text.push_str(&format!("price: {name} now {price:.4} USD an hour as Spot in the cheapest zone\n"));
    }
    if let (Some(lowest), Some(highest)) =
        (prices.values().copied().reduce(f64::min), prices.values().copied().reduce(f64::max))
    {
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let nodes = nodes as f64;
        text.push_str(&format!(
            "estimate: {:.2} to {:.2} USD for each hour that all {nodes} nodes run\n",
            lowest * nodes,
            highest * nodes
        ));
    }
    if plan.nodes.is_none() && plan.srcs.len() > TASKS_MANY {
        text.push_str(&format!(
            "EC2 launches two nodes a second, so {} take {} minutes: --nodes N is quicker\n",
            plan.srcs.len(),
            plan.srcs.len() / 120
        ));
    }
    text.push_str("nothing was changed\n");
    screen::to_stdout(&text);
    Ok(Exit::Ok)
}

fn unique_words(words: Vec<String>) -> Vec<String> {
    words.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

fn request_json(request: &Request) -> serde_json::Value {
    let tags: BTreeMap<&str, &str> = request.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    json!({
        "launchTemplate": request.template.name, "version": request.template.version,
        "instanceTypes": request.instance_types, "subnets": request.subnets,
        "purchase": match request.purchase { Purchase::Spot => "spot", Purchase::OnDemand => "on-demand" },
        "maxPrice": request.max_price.as_ref().map(ToString::to_string), "count": request.count, "tags": tags,
    })
}

/// A bar on a terminal; nothing elsewhere.
fn bar(what: &'static str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{msg:8} {bar:20} {pos}/{len}, {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("█▌░"));
    bar.set_message(what);
    bar
}
