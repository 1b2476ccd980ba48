//! What has become of a local mission's finished tasks: their results and inputs lie in folders that people work in.
//!
//! A row says `done` for ever. So whenever a run, or `status --local`, says it too, the result is compared with what
//! was committed, and the input with what was downloaded.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::clock;
use crate::domain::ids::SrcId;
use crate::domain::keys::INDEX_NAME;
use crate::domain::task::{State, Task};
use local_cloud::{LocalCloud, ObjectState, RESULT_BUCKET, SOURCE_BUCKET};

/// How many changes of one kind are shown, each by a line.
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

    /// What is said of it, after the file's name.
    const fn said(self) -> &'static str {
        match self {
            Self::ResultMissing => {
                "is missing, though its task is done: put it back, or run its input in another folder"
            }
            Self::ResultChanged => "is not the result that its task wrote: somebody changed it since",
            Self::InputGone => "is gone; its result was made before that",
            Self::InputChanged => {
                "was changed or replaced since its result was made: for a new result, use another folder"
            }
        }
    }

    /// What is said of all of a kind.
    const fn kind(self) -> &'static str {
        match self {
            Self::ResultMissing => "missing results",
            Self::ResultChanged => "changed results",
            Self::InputGone => "inputs that are gone",
            Self::InputChanged => "changed inputs",
        }
    }
}

/// Looks at finished tasks, and reports each change once.
#[derive(Debug)]
pub(super) struct Review {
    cloud: LocalCloud,
    /// How many bytes may be read to compare results whose files are others.
    budget_bytes: u64,
    seen: HashSet<(SrcId, Change)>,
    counts: [u64; Change::ALL.len()],
}

impl Review {
    pub(super) fn new(cloud: LocalCloud, budget_bytes: u64) -> Self {
        Self { cloud, budget_bytes, seen: HashSet::new(), counts: [0; Change::ALL.len()] }
    }

    /// Compares one task's files, if it is done. That its input is gone is reported only if it `is_named`: a finished
    /// task does not need it any more.
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
                tracing::warn!("{} {}", path.display(), change.said());
            }
        }
    }

    /// Says how many more there are than were shown, and returns how many results are missing or changed.
    pub(super) fn sum_up(&self) -> u64 {
        for change in Change::ALL {
            let count = self.counts[change as usize];
            if count > SHOWN_MAX {
                tracing::warn!("{count} {} in all, of which {SHOWN_MAX} are named above", change.kind());
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
        // The index names each file, as it was put.
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
        if task.bucket.as_deref() != Some(SOURCE_BUCKET) {
            return None;
        }
        let link = self.cloud.object_path(SOURCE_BUCKET, task.src.as_str());
        let file = std::fs::read_link(&link).unwrap_or(link);
        let Some(now) = self.cloud.object_etag(SOURCE_BUCKET, task.src.as_str()) else {
            return is_named.then(|| (Change::InputGone, shown(&file)));
        };
        // A row of an earlier version has no `ETag` of its input: all that is known is when its attempt ended.
        let is_later = || {
            let modified = file.metadata().and_then(|meta| meta.modified()).ok().map(clock::rfc3339);
            let finished = task.history.last().map(|past| past.ended.clone());
            finished.is_some() && modified > finished
        };
        let is_changed = task.input_etag.as_ref().map_or_else(is_later, |then| then.trim_matches('"') != now);
        is_changed.then(|| (Change::InputChanged, shown(&file)))
    }
}

/// A path as short as it can be said from here.
pub(super) fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).to_owned()
}
