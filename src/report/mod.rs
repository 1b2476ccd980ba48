//! The report of a mission: what ran where and when, how long it took, what failed, and what it cost.
//!
//! A [`Collector`] takes the rows one by one. What it keeps has a bound, whatever the size of the mission: beyond
//! [`SPANS_MAX`] attempts, the timeline shows a part of them, and says so.

mod histogram;
mod html;
mod lanes;
mod trace;

pub use html::html;
pub use trace::perfetto;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use histogram::Histogram;

use crate::clock;
use crate::domain::ids::SrcId;
use crate::domain::machine_info::{MicroUsd, PurchaseOption};
use crate::domain::mission::{Mission, Tally};
use crate::domain::task::{PastAttempt, State, Task};
use crate::domain::verdict::{Budget, Verdict};

/// The most attempts that the timeline shows: 32 bytes each.
pub const SPANS_MAX: usize = 200_000;
/// The most tasks in the table: about 12 bytes each in the file, after compression.
pub const TABLE_MAX: usize = 60_000;
/// The most bytes of names in the table: 60,000 names of 130 bytes.
const TABLE_BYTES_MAX: usize = 8_000_000;
/// The most failed tasks of one reason that are kept, and may have the end of their log in the report.
const FAILED_PER_REASON: u64 = 5;
/// Of all reasons.
pub const FAILED_MAX: usize = 50;
/// The most reasons of failures.
const REASONS_MAX: usize = 50;
/// The longest attempts that are listed.
const LONGEST: usize = 10;

/// How an attempt ended, as its colour shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpanKind {
    /// Its result is committed.
    Done,
    /// The workload failed.
    Failed,
    /// The machine was taken back, or stopped.
    Interrupted,
    /// It still ran when the report was made.
    Running,
}

impl SpanKind {
    /// Every kind, in the order of the legend.
    pub const ALL: [Self; 4] = [Self::Done, Self::Failed, Self::Interrupted, Self::Running];

    /// Returns the word of the legend.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted or lost",
            Self::Running => "running",
        }
    }

    fn of(verdict: Verdict) -> Self {
        match verdict.budget() {
            Budget::None => Self::Done,
            Budget::Application => Self::Failed,
            Budget::Interruption => Self::Interrupted,
        }
    }
}

/// One attempt on the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The number of its instance, in the order in which they were met.
    pub instance: u32,
    /// Its start, in seconds since 1970.
    pub start_s: u64,
    /// Its end.
    pub end_s: u64,
    /// How it ended.
    pub kind: SpanKind,
    /// When its instance got a Spot notice.
    pub notice: Option<Second>,
    /// When its newest checkpoint was complete.
    pub checkpoint: Option<Second>,
}

/// A second since 1970, in four bytes: until 2106.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second(std::num::NonZero<u32>);

impl Second {
    /// Makes it; `None` outside of its range.
    #[must_use]
    pub fn new(second: u64) -> Option<Self> {
        u32::try_from(second).ok().and_then(std::num::NonZero::new).map(Self)
    }

    /// Returns the second.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get().into()
    }
}

/// A long attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Long {
    /// The task.
    pub src: SrcId,
    /// Its start, in seconds since 1970.
    pub start_s: u64,
    /// Its end.
    pub end_s: u64,
}

/// A failed task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTask {
    /// The task.
    pub src: SrcId,
    /// The verdict and the error.
    pub reason: String,
    /// `s3://…` of its last log.
    pub log: Option<String>,
    /// The last lines of the log, if they were read.
    pub tail: Option<String>,
}

/// Time and money of one purchase option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Attempts.
    pub attempts: u64,
    /// Seconds of attempts.
    pub time_s: u64,
    /// Seconds of attempts that brought no result.
    pub wasted_s: u64,
    /// The cost of all of them, where the price is known.
    pub cost: MicroUsd,
    /// The cost of those that brought no result.
    pub wasted: MicroUsd,
    /// Seconds whose price is unknown.
    pub unpriced_s: u64,
}

/// A row of the table of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The task.
    pub src: SrcId,
    /// Its state.
    pub state: State,
    /// Workload time.
    pub time_cost_ms: u64,
    /// Attempts.
    pub attempts: u64,
    /// The number of its reason in [`MissionReport::reasons`], if it failed.
    pub reason: Option<usize>,
}

/// What the report shows.
#[derive(Clone, Debug)]
pub struct MissionReport {
    /// The mission's row.
    pub mission: Mission,
    /// Its tally.
    pub total: Tally,
    /// When the report was made, RFC 3339 UTC.
    pub made_at: String,
    /// Tasks by state: pending, running, done, failed.
    pub states: [u64; 4],
    /// Attempts on the timeline.
    pub spans: Vec<Span>,
    /// Attempts that the timeline leaves out.
    pub left_out: u64,
    /// The instances, by their numbers.
    pub instances: Vec<String>,
    /// Workload time per task that is done, in ms.
    pub durations: Histogram,
    /// Peak memory per attempt, in bytes.
    pub memory: Histogram,
    /// Reasons of failures, and how many tasks have each.
    pub reasons: Vec<(String, u64)>,
    /// Failed tasks.
    pub failed: Vec<FailedTask>,
    /// The longest attempts.
    pub longest: Vec<Long>,
    /// Time and money, by purchase option; `None`: unknown.
    pub spent: BTreeMap<Option<PurchaseOption>, Spent>,
    /// The table of tasks, by name.
    pub table: Vec<Line>,
}

impl MissionReport {
    /// Returns the first start and the last end of an attempt, in seconds since 1970; `None` without attempts.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        let start = self.spans.iter().map(|span| span.start_s).min()?;
        let end = self.spans.iter().map(|span| span.end_s).max()?;
        Some((start, end.max(start + 1)))
    }
}

/// Collects a report from the rows of a mission.
#[derive(Debug)]
pub struct Collector {
    report: MissionReport,
    numbers: std::collections::HashMap<String, u32>,
    /// The bytes of the names in the table.
    table_bytes: usize,
}

impl Collector {
    /// Makes an empty report.
    #[must_use]
    pub fn new(mission: &Mission, total: Tally, made_at: &str) -> Self {
        Self {
            report: MissionReport {
                mission: mission.clone(),
                total,
                made_at: made_at.to_owned(),
                states: [0; 4],
                spans: Vec::new(),
                left_out: 0,
                instances: Vec::new(),
                durations: Histogram::default(),
                memory: Histogram::default(),
                reasons: Vec::new(),
                failed: Vec::new(),
                longest: Vec::new(),
                spent: BTreeMap::new(),
                table: Vec::new(),
            },
            numbers: std::collections::HashMap::new(),
            table_bytes: 0,
        }
    }

    /// Adds a task.
    pub fn add(&mut self, task: &Task) {
        let report = &mut self.report;
        match task.state {
            State::Pending | State::Unknown => report.states[0] += 1,
            State::Running => report.states[1] += 1,
            State::Done => {
                report.states[2] += 1;
                report.durations.add(task.time_cost_ms);
            }
            State::Failed => report.states[3] += 1,
        }
        let reason = (task.state == State::Failed).then(|| self.add_failed(task));
        for past in &task.history {
            self.add_attempt(task, past);
        }
        if task.state == State::Running
            && let (Some(start), Some(instance)) =
                (task.open_since.as_deref().and_then(seconds), task.instance.as_ref())
        {
            let end_s = seconds(&self.report.made_at).unwrap_or(start).max(start);
            let instance = self.number(instance.as_str());
            self.add_span(Span {
                instance,
                start_s: start,
                end_s,
                kind: SpanKind::Running,
                notice: None,
                checkpoint: None,
            });
        }
        self.table_bytes += task.src.as_str().len();
        if self.report.table.len() < TABLE_MAX && self.table_bytes < TABLE_BYTES_MAX {
            self.report.table.push(Line {
                src: task.src.clone(),
                state: task.state,
                time_cost_ms: task.time_cost_ms,
                attempts: task.attempt.0,
                reason,
            });
        }
    }

    fn add_failed(&mut self, task: &Task) -> usize {
        let report = &mut self.report;
        let verdict = task.verdict.map_or("failed", Verdict::as_str);
        let reason = match &task.error {
            Some(error) => format!("{verdict}: {error}"),
            None => verdict.to_owned(),
        };
        let common = crate::summary::common(&reason, task.src.as_str());
        let place = report.reasons.iter().position(|(known, _)| *known == common);
        let place = place.unwrap_or_else(|| {
            if report.reasons.len() < REASONS_MAX {
                report.reasons.push((common, 0));
            } else if let Some(last) = report.reasons.last_mut() {
                "other reasons".clone_into(&mut last.0);
            }
            report.reasons.len() - 1
        });
        report.reasons[place].1 += 1;
        if report.failed.len() < FAILED_MAX && report.reasons[place].1 <= FAILED_PER_REASON {
            let log = task.history.last().and_then(|past| past.log.clone());
            report.failed.push(FailedTask { src: task.src.clone(), reason, log, tail: None });
        }
        place
    }

    fn add_attempt(&mut self, task: &Task, past: &PastAttempt) {
        if let Some(bytes) = past.end.peak_memory {
            self.report.memory.add(bytes);
        }
        let (Some(start_s), Some(end_s)) = (seconds(&past.started), seconds(&past.ended)) else { return };
        let end_s = end_s.max(start_s);
        let kind = SpanKind::of(past.end.verdict);
        let spent = self.report.spent.entry(past.machine.purchase).or_default();
        let time_s = end_s - start_s;
        spent.attempts += 1;
        spent.time_s = spent.time_s.saturating_add(time_s);
        let cost = past.machine.usd_per_hour.map(|price| price.for_time(Duration::from_secs(time_s)));
        spent.cost.0 = spent.cost.0.saturating_add(cost.unwrap_or_default().0);
        if cost.is_none() {
            spent.unpriced_s += time_s;
        }
        if kind != SpanKind::Done {
            spent.wasted_s += time_s;
            spent.wasted.0 = spent.wasted.0.saturating_add(cost.unwrap_or_default().0);
        }
        let longest = &mut self.report.longest;
        longest.push(Long { src: task.src.clone(), start_s, end_s });
        if longest.len() > 4 * LONGEST {
            keep_longest(longest);
        }
        if self.report.spans.len() >= SPANS_MAX {
            self.report.left_out += 1;
            return;
        }
        // A local mission has a stand-in instance for each task; they are one machine.
        let is_local = past.machine.purchase == Some(PurchaseOption::Local);
        let instance = self.number(if is_local { "this computer" } else { &past.instance });
        let mark = |time: &Option<String>| time.as_deref().and_then(seconds).and_then(Second::new);
        let (notice, checkpoint) = (mark(&past.marks.spot_notice_at), mark(&past.marks.checkpoint_at));
        self.add_span(Span { instance, start_s, end_s, kind, notice, checkpoint });
    }

    fn add_span(&mut self, span: Span) {
        if self.report.spans.len() < SPANS_MAX { self.report.spans.push(span) } else { self.report.left_out += 1 }
    }

    fn number(&mut self, instance: &str) -> u32 {
        if let Some(&number) = self.numbers.get(instance) {
            return number;
        }
        let number = u32::try_from(self.report.instances.len()).unwrap_or(u32::MAX);
        self.report.instances.push(instance.to_owned());
        self.numbers.insert(instance.to_owned(), number);
        number
    }

    /// Returns the report.
    #[must_use]
    pub fn finish(mut self) -> MissionReport {
        keep_longest(&mut self.report.longest);
        self.report.table.sort_by(|a, b| a.src.cmp(&b.src));
        self.report
    }
}

fn keep_longest(longest: &mut Vec<Long>) {
    longest.sort_by_key(|long| (std::cmp::Reverse(long.end_s - long.start_s), long.src.clone()));
    longest.truncate(LONGEST);
}

fn seconds(time: &str) -> Option<u64> {
    Some(clock::read(time)?.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Returns seconds since 1970 as RFC 3339 UTC.
fn rfc3339(seconds: u64) -> String {
    clock::rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}
