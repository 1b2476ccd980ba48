//! Selects tasks of a mission: by state, verdict, and name.

use crate::backend::ledger::{PAGE_LEN, Partition};
use crate::backend::{Backend, CloudError};
use crate::domain::ids::SrcId;
use crate::domain::mission::Mission;
use crate::domain::task::{State, Task};
use crate::domain::verdict::Verdict;

/// Which tasks are wanted.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The states; empty: all.
    pub states: Vec<State>,
    /// Only tasks whose last attempt has this verdict.
    pub verdict: Option<Verdict>,
    /// Only tasks whose name matches: `*` is any text, `?` any character.
    pub name: Option<String>,
    /// The most tasks; `None`: all.
    pub limit: Option<usize>,
}

/// How tasks were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the index of open tasks.
    Index,
    /// By a scan of the table, because tasks that are done are in no index, or because the index has fewer failed tasks
    /// than the tally counts (an earlier version did not index them).
    Scan,
}

/// The tasks that were found.
#[derive(Clone, Debug)]
pub struct Selected {
    /// The rows, by name.
    pub tasks: Vec<Task>,
    /// Whether there are more than the limit.
    pub is_cut: bool,
    /// How they were found.
    pub order: Order,
}

/// The number of rows of one read.
const ROWS_LEN: usize = 100;

impl Selection {
    /// Returns whether a task is wanted.
    #[must_use]
    pub fn takes(&self, task: &Task, mission: &Mission) -> bool {
        let is_its = task.mission.as_ref() == Some(&mission.id);
        is_its
            && (self.states.is_empty() || self.states.contains(&task.state))
            && self.verdict.is_none_or(|verdict| task.verdict == Some(verdict))
            && self.takes_name(&task.src)
    }

    fn takes_name(&self, src: &SrcId) -> bool {
        self.name.as_ref().is_none_or(|pattern| wildmatch::WildMatch::new(pattern).matches(src.as_str()))
    }

    /// Returns whether the index has all tasks that may be wanted.
    async fn is_indexed(&self, backend: &Backend, mission: &Mission) -> Result<bool, CloudError> {
        if self.states.is_empty() || self.states.iter().any(|state| matches!(state, State::Done | State::Unknown)) {
            return Ok(false);
        }
        if !self.states.contains(&State::Failed) {
            return Ok(true);
        }
        let counted = mission.total(backend.ledger.tally(mission).await?).failed;
        let id = Some(&mission.id);
        let indexed = backend.ledger.count_open(id, mission.tally_shards, State::Failed, counted).await?;
        Ok(indexed >= counted)
    }

    /// Reads the tasks that are wanted.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn read(&self, backend: &Backend, mission: &Mission) -> Result<Selected, CloudError> {
        let limit = self.limit.unwrap_or(usize::MAX);
        let (mut tasks, order) = if self.is_indexed(backend, mission).await? {
            (self.by_index(backend, mission, limit).await?, Order::Index)
        } else {
            (self.by_scan(backend, mission, limit).await?, Order::Scan)
        };
        tasks.sort_by(|a, b| a.src.cmp(&b.src));
        let is_cut = tasks.len() > limit;
        tasks.truncate(limit);
        Ok(Selected { tasks, is_cut, order })
    }

    /// Reads the tasks that are wanted, by the index only: it lacks tasks that are done, and those that failed under an
    /// earlier version.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn read_indexed(&self, backend: &Backend, mission: &Mission) -> Result<Selected, CloudError> {
        let limit = self.limit.unwrap_or(usize::MAX);
        let mut tasks = self.by_index(backend, mission, limit).await?;
        let is_cut = tasks.len() > limit;
        tasks.truncate(limit);
        Ok(Selected { tasks, is_cut, order: Order::Index })
    }

    /// Reads up to one more than `limit`, to know whether there are more.
    async fn by_index(&self, backend: &Backend, mission: &Mission, limit: usize) -> Result<Vec<Task>, CloudError> {
        let mut found = Vec::new();
        for &state in &self.states {
            for shard in 0..mission.tally_shards.max(1) {
                let partition = Partition { mission: Some(&mission.id), shard };
                let mut from = None;
                loop {
                    let page = backend.ledger.open_page(partition, state, PAGE_LEN, from.as_ref()).await?;
                    let srcs: Vec<SrcId> =
                        page.tasks.iter().map(|task| task.src.clone()).filter(|src| self.takes_name(src)).collect();
                    for srcs in srcs.chunks(ROWS_LEN) {
                        let rows = backend.ledger.tasks(srcs).await?;
                        found.extend(rows.into_iter().filter(|row| self.takes(row, mission)));
                        if found.len() > limit {
                            return Ok(found);
                        }
                    }
                    from = page.tasks.last().cloned();
                    if page.is_last || from.is_none() {
                        break;
                    }
                }
            }
        }
        // A task whose state changes meanwhile may be in two places of the index.
        found.sort_by(|a, b| a.src.cmp(&b.src));
        found.dedup_by(|a, b| a.src == b.src);
        Ok(found)
    }

    /// Scans the table. With a limit, the tasks that come first by name are kept, so that a repeated call shows the same.
    async fn by_scan(&self, backend: &Backend, mission: &Mission, limit: usize) -> Result<Vec<Task>, CloudError> {
        let mut found: Vec<Task> = Vec::new();
        let keep = limit.saturating_add(1);
        let each = |task: Task| {
            if self.takes(&task, mission) {
                found.push(task);
                if found.len() >= keep.saturating_mul(2).max(1024) {
                    found.sort_by(|a, b| a.src.cmp(&b.src));
                    found.truncate(keep);
                }
            }
        };
        backend.ledger.each_task(Some(&mission.id), each).await?;
        Ok(found)
    }
}
