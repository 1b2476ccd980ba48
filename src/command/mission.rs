//! `lighthpc run --local`: runs a whole mission on this computer, with the same code that runs on EC2.
//!
//! One node does all tasks, `slots` at a time, on an instance of the in-process cloud. All state is in the tables, so the
//! same command continues a run that was interrupted or killed.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::cli::RunArgs;
use super::failure::Failure;
use super::inputs::{self, Known, LocalTask};
use super::plan::{self, Preparing, RunPlan};
use super::review::{Review, shown};
use super::screen::{self, Screen};
use super::{forms, local_dir, node, signals, trust, watch};
use crate::backend::Backend;
use crate::backend::machine::EndOrder;
use crate::command::exit::ExitCode;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::keys::{INDEX_NAME, log_key};
use crate::domain::mission::Mission;
use crate::domain::task::{State, Task};
use crate::worker::{
    self, Begun, GivenTask, Life, Node, NodeError, NodeSettings, Outcome, Preflight, Pricing, Report, Stopping,
};
use crate::workload::{self, Removal};
use local_cloud::{LocalCloud, RESULT_BUCKET, SOURCE_BUCKET, TOPIC_ARN};

/// The time between two copies of a running workload's log, into the same disk.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// The pause between two checks whether the disk has room for one more task. A check is one system call.
const ROOM_LOOK: Duration = Duration::from_secs(1);

pub(super) async fn run(args: Box<RunArgs>) -> Result<ExitCode, Failure> {
    local_dir::note_ignored();
    refuse_aws_names(&args)?;
    let started = Instant::now();
    let local = args.local.as_deref().unwrap_or(Path::new(local_dir::DEFAULT_DIR));
    let (dir, files) = local_dir::parse(local, args.local_is_folder, &args.files)?;
    trust::check(&dir, &args.trust_folder)?;
    let mut settings = node::settings(&args)?;
    args.form.check(!files.is_empty())?;
    let has_inputs = !files.is_empty();
    let files = inputs::files(inputs::listed(files)?, &args.form)?;
    if has_inputs && files.is_empty() {
        return Err(Failure::usage("no input is left by --include and --exclude", "correct the patterns"));
    }
    let exec = forms::command_line(&args.program, args.exec.as_deref())?;
    // Read once: it may be standard input.
    let without_files = args.form.tasks(None)?.unwrap_or_default();
    let tasks = |known: &Known, mission: Option<&MissionId>| {
        inputs::tasks(&args.form, &without_files, inputs::read(&files, known)?, mission)
    };
    if !dir.join(".lighthpc").exists() {
        // Checked before anything is written.
        let tasks = tasks(&Known::new(), None)?;
        check_workload(exec.as_deref(), &tasks)?;
        plan::check_new(&dir, &settings, &tasks)?;
    }
    let cloud = LocalCloud::open(&dir)?;
    let backend = local_dir::backend(&cloud, None);
    backend.ledger.create_tables().await?;
    let rows = plan::rows(&backend).await?;
    let missions = backend.ledger.missions().await?;
    let id = plan::id_of(settings.mission.as_ref(), &missions);
    let tasks = tasks(&plan::known(&rows, &cloud, &id), Some(&id))?;
    let tasks = plan::name_apart(&rows, &cloud, tasks, &id)?;

    check_workload(exec.as_deref(), &tasks)?;
    plan::refuse_other_tasks(&rows, &tasks, &id)?;
    plan::refuse_other_files(&cloud, &tasks)?;
    plan::refuse_unknown_task(&rows, &tasks, settings.src.as_ref())?;
    let mission = plan::find_or_make(&backend, &dir, exec, &settings, (missions, &tasks)).await?;
    plan::refuse_cancelled(&mission, &dir)?;
    if mission.exec.is_none() {
        screen::to_stderr(
            "note: no program is given, so each task runs the simulated workload (hint: add -- PROGRAM)\n",
        );
    }
    let preparing = Preparing { backend: &backend, cloud: &cloud, tasks: &tasks, started };
    preparing.add_tasks(&mission, &rows).await?;
    drop(rows);
    let plan = preparing.plan(&mission, settings.src.take()).await?;

    settings.source_bucket = Some(SOURCE_BUCKET.to_owned());
    settings.result_bucket = Some(RESULT_BUCKET.to_owned());
    settings.topic_arn = Some(TOPIC_ARN.to_owned());
    settings.preflight = Arc::new(Preflight::passed());
    // The instances belong to the local cloud, and each has one process.
    settings.end_order = EndOrder::IfNode;
    settings.holds_work_dir = true;
    settings.pricing = Pricing::Local;
    settings.log_every = LOG_EVERY;
    settings.bounds.echo = false;
    settings.work_dir = work_dir(cloud.dir());
    let tasks = &backend.ledger.tables().tasks;
    workload::adopt_orphans();
    let taken = workload::lock_trusted_work_dir(&settings.work_dir, tasks);
    let hint = "remove it, or give another folder with --local=DIR";
    let (_work_dir, left) = node::taken(taken, &settings.work_dir, hint)?;

    let stopping = Stopping::default();
    let _listener = signals::listen(stopping.clone()).map_err(|error| Failure {
        exit: ExitCode::Internal,
        error: error.into(),
        hint: None,
    })?;
    let notified_before = cloud.published().len();
    let is_watched = args.watch && std::io::stdout().is_terminal();
    let run = Run { cloud, mission, settings, stopping, screen: Screen::new(plan.total, plan.ended, is_watched) };
    let mut removal = Removal::start(left, Vec::new(), &run.stopping.drain);
    removal.head_start().await;
    let slots = args.slots.map_or_else(cores, usize::from);
    let work = run.all(&backend, plan, slots);
    let review = if is_watched {
        watch::beside(&run.cloud, run.mission.id.as_str(), &run.stopping, work).await
    } else {
        work.await
    };
    run.screen.close();
    removal.end().await;
    run.conclude(&backend, review, notified_before, started.elapsed()).await
}

/// Checks the placeholders of the workload for each task.
fn check_workload(exec: Option<&str>, tasks: &[LocalTask]) -> Result<(), Failure> {
    let Some(exec) = exec else { return Ok(()) };
    tasks.iter().try_for_each(|task| forms::check_workload(exec, &task.src, &task.work))
}

/// Returns the folder for the files of attempts. In another user's mission folder, which must be trusted, this user
/// gets a separate one.
fn work_dir(dir: &Path) -> PathBuf {
    let work = dir.join(".lighthpc/work");
    let uid = rustix::process::geteuid().as_raw();
    let is_anothers = work.symlink_metadata().is_ok_and(|meta| meta.uid() != uid);
    if is_anothers { dir.join(format!(".lighthpc/work-{uid}")) } else { work }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Refuses flags that name buckets or a topic: a local mission has its own. Variables are ignored.
fn refuse_aws_names(args: &RunArgs) -> Result<(), Failure> {
    let named = [
        ("--source-bucket", &args.aws.source_bucket),
        ("--result-bucket", &args.aws.result_bucket),
        ("--topic-arn", &args.aws.topic_arn),
    ];
    match named.into_iter().find(|(_, value)| value.as_ref().is_some_and(|value| !value.is_empty())) {
        None => Ok(()),
        Some((flag, value)) => Err(Failure::usage(
            format!(
                "a local mission has its own buckets and topic and cannot use {flag} {}",
                value.as_deref().unwrap_or("")
            ),
            format!("remove {flag}, or --local"),
        )),
    }
}

/// How a task ended.
type Ended = Result<Outcome, NodeError>;

/// A running mission.
struct Run {
    cloud: LocalCloud,
    mission: Mission,
    settings: NodeSettings,
    stopping: Stopping,
    screen: Screen,
}

impl Run {
    /// Runs the queued tasks on one node, `slots` at a time, until the queue is empty or the drain begins.
    async fn all(&self, backend: &Backend, plan: RunPlan, slots: usize) -> Review {
        let RunPlan { mut queue, mut ended, review, .. } = plan;
        let (give, given) = mpsc::channel(slots);
        let mut node = JoinSet::new();
        node.spawn(worker::run_given(self.node(), given));
        let mut tasks = JoinSet::new();
        loop {
            let mut has_room = true;
            while has_room && tasks.len() < slots && !queue.is_empty() && self.may_begin(&give) {
                // While no task runs, there is always room for one.
                let begun = self.settings.disk.begin(&self.settings.work_dir);
                has_room = begun.is_some();
                if let Some((begun, src)) = begun.and_then(|begun| Some((begun, queue.pop_front()?))) {
                    tasks.spawn(self.one(src, begun, give.clone()));
                }
            }
            let look = async {
                if has_room {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(ROOM_LOOK).await;
            };
            // Both arms may be dropped: the next call returns the task that has ended.
            let task = tokio::select! {
                task = tasks.join_next() => task,
                () = look => continue,
            };
            let Some(task) = task else { break };
            let (src, bar, took, outcome) = match task {
                Ok(task) => task,
                Err(panic) => {
                    tracing::error!("the display of a task panicked, which is a bug: {panic}");
                    continue;
                }
            };
            let Some(outcome) = outcome else {
                // The node has ended, and says why below.
                drop(bar.inspect(indicatif::ProgressBar::finish_and_clear));
                continue;
            };
            let was_ended = matches!(&outcome, Ok(Outcome::EndedBefore(_)));
            let is_over = !matches!(
                &outcome,
                Ok(Outcome::Suspect
                    | Outcome::Drained
                    | Outcome::Interrupted
                    | Outcome::HeldByOther(_)
                    | Outcome::Served { .. })
            );
            let waits = matches!(&outcome, Ok(Outcome::TryAgain(_) | Outcome::NoRoom(_)) | Err(_))
                && !has_failed(backend, &src).await;
            ended += u64::from(is_over && !was_ended && !waits);
            if matches!(&outcome, Ok(Outcome::NoRoom(_))) {
                queue.push_back(src.clone());
            }
            match self.line(&src, took, &outcome, waits) {
                Some(line) => self.screen.end(bar, ended, &line),
                None => drop(bar.inspect(indicatif::ProgressBar::finish_and_clear)),
            }
        }
        drop(give);
        match node.join_next().await {
            Some(Ok(Life { outcome: Err(error), .. })) => tracing::error!("{}", node::describe(&error)),
            Some(Err(panic)) => tracing::error!("the node panicked, which is a bug: {panic}"),
            _ => {}
        }
        review
    }

    /// Returns whether a task may begin.
    fn may_begin(&self, give: &mpsc::Sender<GivenTask>) -> bool {
        !self.stopping.drain.is_cancelled() && !give.is_closed()
    }

    /// Returns the node, whose instance is launched now.
    fn node(&self) -> Node {
        let instance = self.cloud.launch(&[("missionID", self.mission.id.as_str())]);
        let backend = local_dir::backend(&self.cloud, Some(&instance));
        let settings = Arc::new(NodeSettings { mission: None, src: None, ..self.settings.clone() });
        Node { backend, settings, stopping: self.stopping.clone() }
    }

    /// Gives a task to the node, and shows its progress until it has ended. There is no outcome if the node ended
    /// before.
    fn one(
        &self,
        src: SrcId,
        begun: Begun,
        give: mpsc::Sender<GivenTask>,
    ) -> impl Future<Output = (SrcId, Option<indicatif::ProgressBar>, Duration, Option<Ended>)> + use<> {
        let report = tokio::sync::watch::Sender::new(Report::default());
        let mut reports = report.subscribe();
        let bar = self.screen.begin(src.as_str());
        async move {
            let started = Instant::now();
            let show = async {
                while let (Some(bar), Ok(())) = (&bar, reports.changed().await) {
                    screen::show(bar, *reports.borrow_and_update());
                }
                std::future::pending::<()>().await;
            };
            let work = async {
                let (ended, outcome) = oneshot::channel();
                give.send(GivenTask { src: src.clone(), report, ended }).await.ok()?;
                outcome.await.ok()
            };
            // Only the task's arm completes.
            let outcome = tokio::select! {
                outcome = work => outcome,
                () = show => unreachable!("the bar never ends"),
            };
            drop(begun);
            (src, bar, started.elapsed(), outcome)
        }
    }

    /// Replaces the local cloud's URIs in a text by paths.
    fn with_paths(&self, text: &str) -> String {
        let results = shown(&self.cloud.dir().join(RESULT_BUCKET));
        let flag = local_dir::flag(self.cloud.dir());
        // The commands of a notification name no place.
        let text = text.replace("lighthpc explain ", &format!("lighthpc explain{flag} "));
        let text = text.replace("lighthpc redrive ", &format!("lighthpc redrive{flag} "));
        text.replace(&format!("s3://{RESULT_BUCKET}/"), &format!("{}/", results.display()))
    }

    /// Returns the output line for a task; with `waits` the task is tried again. `None` if it was released without a
    /// failure.
    fn line(&self, src: &SrcId, took: Duration, outcome: &Ended, waits: bool) -> Option<String> {
        match outcome {
            Ok(Outcome::Committed { result }) => Some(format!(
                "done   {}  {}  {}",
                screen::plain(src.as_str()),
                screen::duration(took),
                screen::plain(&self.place_of(result).display().to_string())
            )),
            Ok(
                Outcome::EndedBefore(_)
                | Outcome::Suspect
                | Outcome::Drained
                | Outcome::Interrupted
                | Outcome::Cancelled
                | Outcome::Served { .. }
                | Outcome::HeldByOther(_),
            ) => None,
            Ok(Outcome::TryAgain(error) | Outcome::NoRoom(error)) | Err(error) => Some(format!(
                "{} {}  {}  {}{}",
                if waits { "waits " } else { "failed" },
                screen::plain(src.as_str()),
                screen::duration(took),
                screen::plain(&node::describe(error)),
                self.last_words(src, error)
            )),
        }
    }

    /// Returns the path of a result: a file or a folder.
    fn place_of(&self, uri: &str) -> PathBuf {
        let key = uri.strip_prefix(&format!("s3://{RESULT_BUCKET}/")).unwrap_or(uri);
        let path = if key.ends_with('/') {
            let index = self.cloud.object_path(RESULT_BUCKET, &format!("{key}{INDEX_NAME}"));
            index.parent().map(Path::to_owned).unwrap_or(index)
        } else {
            self.cloud.object_path(RESULT_BUCKET, key)
        };
        shown(&path)
    }

    /// Returns the last lines of a failed workload's output, and the path of the log.
    fn last_words(&self, src: &SrcId, error: &NodeError) -> String {
        const LINES: usize = 3;
        const LINE_CHARS_MAX: usize = 500;
        if !matches!(error, NodeError::WorkloadFailed { .. } | NodeError::NoResult | NodeError::TimeLimit) {
            return String::new();
        }
        // The newest attempt has the highest number; the numbers start at 1 and have no gap.
        let logs =
            (1..).map(|n| self.cloud.object_path(RESULT_BUCKET, &log_key(src, crate::domain::ids::AttemptNumber(n))));
        let Some(log) = logs.take_while(|log| log.exists()).last() else { return String::new() };
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(LINES).collect();
        // A log can contain any character. Tabs become spaces, and the rest is escaped.
        let shown_line = |line: &&str| {
            let cut: String = line.chars().take(LINE_CHARS_MAX).collect();
            let more = if cut.len() < line.len() { "…" } else { "" };
            format!("\n         | {}{more}", screen::plain(&cut.replace('\t', "    ")))
        };
        let tail: String = lines.iter().rev().map(shown_line).collect();
        format!("{tail}\n         log: {}", screen::plain(&shown(&log).display().to_string()))
    }

    /// Prints the summary of the mission, and returns the exit code.
    async fn conclude(
        &self,
        backend: &Backend,
        mut review: Review,
        notified_before: usize,
        took: Duration,
    ) -> Result<ExitCode, Failure> {
        let (mut done, mut failed, mut open, mut time_cost_ms) = (0_u64, 0_u64, 0_u64, 0_u64);
        let count = |task: Task| {
            // Also checks results of this run: an input may have been replaced while the workload ran.
            review.look(&task, false);
            time_cost_ms = time_cost_ms.saturating_add(task.time_cost_ms);
            match task.state {
                State::Done => done += 1,
                State::Failed => failed += 1,
                State::Pending | State::Running | State::Unknown => open += 1,
            }
        };
        backend.ledger.each_task(Some(&self.mission.id), count).await?;
        let results_changed = review.sum_up();
        for notified in self.cloud.published().iter().skip(notified_before) {
            screen::to_stdout(&format!(
                "\nnotification: {}\n{}",
                screen::plain(notified.subject.as_deref().unwrap_or("")),
                indented(&self.with_paths(&notified.message))
            ));
        }
        let mut rest = if open > 0 { format!(", {open} not finished") } else { String::new() };
        if results_changed > 0 {
            rest.push_str(&format!("; {} missing or changed", screen::count(results_changed, "result")));
        }
        let results = shown(&self.cloud.dir().join(RESULT_BUCKET));
        screen::to_stdout(&format!(
            "\nmission {}: {}, {done} done, {failed} failed{rest}\ntime:     {}, workloads {}\nresults:  {}\n",
            screen::plain(self.mission.id.as_str()),
            screen::count(done + failed + open, "task"),
            screen::duration(took),
            screen::duration(Duration::from_millis(time_cost_ms)),
            screen::plain(&results.display().to_string()),
        ));
        if self.stopping.drain.is_cancelled() {
            screen::to_stderr("interrupted: run the same command again to continue\n");
            return Ok(ExitCode::Interrupted);
        }
        if failed > 0 {
            screen::to_stderr(&format!("next: lighthpc status{} --failed\n", local_dir::flag(self.cloud.dir())));
        }
        if open > 0 {
            let flag = local_dir::flag(self.cloud.dir());
            screen::to_stderr(&format!("hint: to run the remaining tasks: lighthpc run{flag}\n"));
        }
        Ok(match (failed + open, results_changed) {
            (0, 0) => ExitCode::Ok,
            (0, _) => ExitCode::ResultChanged,
            _ => ExitCode::WorkloadFailed,
        })
    }
}

/// Returns whether the task's row is failed. A task that was released is not, whatever the outcome of its attempt;
/// nor is one whose row cannot be read.
async fn has_failed(backend: &Backend, src: &SrcId) -> bool {
    backend.ledger.task(src).await.is_ok_and(|row| row.is_some_and(|row| row.state == State::Failed))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
