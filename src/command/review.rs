//! The review of a local mission's finished tasks: users can change the folders of their results and inputs.
//!
//! A row stays `done` forever. Therefore each run, and `status --local`, compares the result with the committed one,
//! and the input with the downloaded one.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::clock;
use crate::domain::ids::SrcId;
use crate::domain::keys::INDEX_NAME;
use crate::domain::task::{State, Task};
use crate::domain::work::Inputs;
use local_cloud::{LocalCloud, ObjectState, RESULT_BUCKET, SOURCE_BUCKET};

/// The number of changes of one kind that are printed.
const SHOWN_MAX: u64 = 10;

/// A kind of change since a task was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Change {
    ResultMissing,
    ResultChanged,
    InputGone,
    InputChanged,
}

impl Change {
    const ALL: [Self; 4] = [Self::ResultMissing, Self::ResultChanged, Self::InputGone, Self::InputChanged];

    /// Returns the text after the file's name.
    const fn message(self) -> &'static str {
        match self {
            Self::ResultMissing => {
                "is missing although its task is done: restore it, or run the input in another folder"
            }
            Self::ResultChanged => "differs from the result that its task wrote",
            Self::InputGone => "is missing; its result was created before and is kept",
            Self::InputChanged => {
                "was changed or replaced since its result was created: for a new result, use another folder"
            }
        }
    }

    /// Returns the name of this kind of change.
    const fn kind(self) -> &'static str {
        match self {
            Self::ResultMissing => "missing results",
            Self::ResultChanged => "changed results",
            Self::InputGone => "missing inputs",
            Self::InputChanged => "changed inputs",
        }
    }
}

/// A review of finished tasks that reports each change once.
#[derive(Debug)]
pub(super) struct Review {
    cloud: LocalCloud,
    /// The number of bytes that may still be read to compare results whose files were replaced.
    budget_bytes: u64,
    seen: HashSet<(SrcId, Change)>,
    counts: [u64; Change::ALL.len()],
}

impl Review {
    pub(super) fn new(cloud: LocalCloud, budget_bytes: u64) -> Self {
        Self { cloud, budget_bytes, seen: HashSet::new(), counts: [0; Change::ALL.len()] }
    }

    /// Compares the files of one task, if it is done. A missing input is reported only if it `is_named` on the command
    /// line: a finished task does not need it.
    pub(super) fn look(&mut self, task: &Task, is_named: bool) {
        if task.state != State::Done {
            return;
        }
        let changes = self.result(task).into_iter().chain(self.input(task, is_named));
        for (change, path) in changes.collect::<Vec<_>>() {
            if !self.seen.insert((task.src.clone(), change)) {
                continue;
            }
            let count = &mut self.counts[change as usize];
            *count += 1;
            if *count <= SHOWN_MAX {
                tracing::warn!("{} {}", path.display(), change.message());
            }
        }
    }

    /// Reports how many changes were not printed, and returns the number of missing or changed results.
    pub(super) fn sum_up(&self) -> u64 {
        for change in Change::ALL {
            let count = self.counts[change as usize];
            if count > SHOWN_MAX {
                tracing::warn!("{count} {} in total, {SHOWN_MAX} of them are listed above", change.kind());
            }
        }
        self.counts[Change::ResultMissing as usize] + self.counts[Change::ResultChanged as usize]
    }

    fn result(&mut self, task: &Task) -> Option<(Change, PathBuf)> {
        let key = task.result.as_deref()?.strip_prefix(&format!("s3://{RESULT_BUCKET}/"))?;
        let etag = task.result_etag.as_deref()?;
        let Some(folder) = key.strip_suffix('/') else { return self.object(key, etag) };
        let index = format!("{folder}/{INDEX_NAME}");
        if let Some(change) = self.object(&index, etag) {
            return Some(change);
        }
        // The index lists each file with its ETag.
        let text = std::fs::read(self.cloud.object_path(RESULT_BUCKET, &index)).ok()?;
        let index: Value = serde_json::from_slice(&text).ok()?;
        index.get("files")?.as_object()?.iter().find_map(|(name, file)| {
            let etag = file.get("etag")?.as_str()?;
            self.object(&format!("{folder}/{name}"), etag)
        })
    }

    fn object(&mut self, key: &str, etag: &str) -> Option<(Change, PathBuf)> {
        let change = match self.cloud.compare_object(RESULT_BUCKET, key, etag, &mut self.budget_bytes) {
            ObjectState::Unchanged => return None,
            ObjectState::Missing => Change::ResultMissing,
            ObjectState::Changed => Change::ResultChanged,
        };
        Some((change, shown(&self.cloud.object_path(RESULT_BUCKET, key))))
    }

    fn input(&self, task: &Task, is_named: bool) -> Option<(Change, PathBuf)> {
        let is_plain = task.work.as_ref().is_ok_and(|work| work.inputs == Inputs::Named);
        if !is_plain || task.bucket.as_deref() != Some(SOURCE_BUCKET) {
            return None;
        }
        let link = self.cloud.object_path(SOURCE_BUCKET, task.src.as_str());
        let file = std::fs::read_link(&link).unwrap_or(link);
        let Some(now) = self.cloud.object_etag(SOURCE_BUCKET, task.src.as_str()) else {
            return is_named.then(|| (Change::InputGone, shown(&file)));
        };
        // A row of an earlier version has no `ETag` of its input: only the end of its attempt is known.
        let is_later = || {
            let modified = file.metadata().and_then(|meta| meta.modified()).ok().map(clock::rfc3339);
            let finished = task.history.last().map(|past| past.ended.clone());
            finished.is_some() && modified > finished
        };
        let is_changed = task.input_etag.as_ref().map_or_else(is_later, |then| then.trim_matches('"') != now);
        is_changed.then(|| (Change::InputChanged, shown(&file)))
    }
}

/// Returns a path relative to the current folder if that is possible.
pub(super) fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).to_owned()
}
