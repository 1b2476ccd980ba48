//! The index of open tasks in parts and pages, in the order of a sweep.

use super::snapshot::Snapshot;
use crate::backend::ledger::{Cursor, OpenTask, PAGE_LEN, Partition};
use crate::domain::ids::MissionId;
use crate::domain::mission::Mission;
use crate::domain::task::State;
use crate::scheduler::{Scheduler, SchedulerError};

/// A part of the index that is still to be checked.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) mission: Option<MissionId>,
    pub(super) shard: u32,
    /// The entry before the first one; `None`: starts at the first entry of the partition.
    pub(super) from: Option<OpenTask>,
    /// The last entry; `None`: ends at the last entry of the partition.
    pub(super) until: Option<OpenTask>,
}

/// Returns all partitions of the index that may hold open tasks, always in the same order.
pub(super) fn parts_of(world: &Snapshot) -> Vec<Part> {
    let mut missions: Vec<&Mission> = world.missions.values().collect();
    missions.sort_by(|a, b| a.id.cmp(&b.id));
    let part = |mission: Option<&Mission>, shard| Part {
        mission: mission.map(|m| m.id.clone()),
        shard,
        from: None,
        until: None,
    };
    let own =
        missions.into_iter().flat_map(|mission| (0..mission.tally_shards).map(move |shard| part(Some(mission), shard)));
    std::iter::once(part(None, 0)).chain(own).collect()
}

/// Returns the parts in the order of the sweep: from the cursor to the end, then from the beginning to the cursor.
pub(super) fn rotated(mut parts: Vec<Part>, cursor: &Cursor) -> Vec<Part> {
    let is_before = |part: &Part| (&part.mission, part.shard) < (&cursor.mission, cursor.shard);
    let start = parts.iter().take_while(|part| is_before(part)).count();
    parts.rotate_left(start);
    let is_at = |part: &Part| part.mission == cursor.mission && part.shard == cursor.shard;
    if let (Some(first), Some(after)) = (parts.first_mut().filter(|part| is_at(part)), &cursor.after) {
        let rest = Part { until: Some(after.clone()), ..first.clone() };
        first.from = Some(after.clone());
        parts.push(rest);
    }
    parts
}

/// The pages of one partition of the index.
pub(super) struct Pages<'a> {
    scheduler: &'a Scheduler,
    partition: Partition<'a>,
    state: State,
    from: Option<OpenTask>,
    /// Keys that are not valid task keys.
    pub(super) odd: Vec<String>,
    is_over: bool,
}

impl<'a> Pages<'a> {
    pub(super) const fn new(
        scheduler: &'a Scheduler,
        partition: Partition<'a>,
        state: State,
        from: Option<OpenTask>,
    ) -> Self {
        Self { scheduler, partition, state, from, odd: Vec::new(), is_over: false }
    }

    /// Returns the next page; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<OpenTask>>, SchedulerError> {
        if self.is_over {
            return Ok(None);
        }
        let ledger = &self.scheduler.backend.ledger;
        let page = ledger.open_page(self.partition, self.state, PAGE_LEN, self.from.as_ref()).await;
        let page = page.map_err(SchedulerError::cloud("listing open tasks"))?;
        self.is_over = page.is_last;
        self.odd.extend(page.odd);
        self.from = page.tasks.last().cloned();
        Ok(Some(page.tasks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::SrcId;

    fn part(mission: Option<&str>, shard: u32) -> Part {
        Part { mission: mission.map(|id| MissionId::new(id).unwrap()), shard, from: None, until: None }
    }

    fn names(parts: &[Part]) -> Vec<String> {
        let name = |part: &Part| {
            let mark = |task: &Option<OpenTask>| task.as_ref().map_or(String::new(), |task| task.src.to_string());
            let id = part.mission.as_ref().map_or("", MissionId::as_str);
            format!("{id}#{} {}..{}", part.shard, mark(&part.from), mark(&part.until))
        };
        parts.iter().map(name).collect()
    }

    #[test]
    fn a_sweep_goes_on_at_the_cursor_and_round_to_it() {
        let all = || vec![part(None, 0), part(Some("A"), 0), part(Some("A"), 1), part(Some("B"), 0)];
        assert_eq!(names(&rotated(all(), &Cursor::default())), ["#0 ..", "A#0 ..", "A#1 ..", "B#0 .."]);
        let after = OpenTask { src: SrcId::new("x").unwrap(), open_as: "pending#1".to_owned() };
        let cursor = Cursor {
            mission: Some(MissionId::new("A").unwrap()),
            shard: 1,
            after: Some(after),
            moved: 3,
            ..Cursor::default()
        };
        assert_eq!(names(&rotated(all(), &cursor)), ["A#1 x..", "B#0 ..", "#0 ..", "A#0 ..", "A#1 ..x"]);
        // A mission that is gone since: its place is gone on from.
        let gone = Cursor { mission: Some(MissionId::new("AA").unwrap()), ..cursor };
        assert_eq!(names(&rotated(all(), &gone)), ["B#0 ..", "#0 ..", "A#0 ..", "A#1 .."]);
        let last = Cursor { mission: Some(MissionId::new("Z").unwrap()), ..Cursor::default() };
        assert_eq!(names(&rotated(all(), &last)), ["#0 ..", "A#0 ..", "A#1 ..", "B#0 .."]);
    }
}
