//! Parses a mission's row and its tally items.

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{self, Row, number, text};
use super::key::Item;
use super::request;
use crate::domain::ids::MissionId;
use crate::domain::mission::{
    ManifestPart, ManifestProgress, Mission, Notified, NotifyOn, SeenMission, TALLY_SHARDS_MAX, Tally, tally_shards_for,
};
use crate::domain::policy::Policy;

impl Row<'_> {
    /// Returns a number; `None`, and a sentence in `oddities`, if the attribute has another type.
    fn expected_number(self, name: &str, oddities: &mut Vec<String>) -> Option<u64> {
        let number = self.number(name);
        let is_blank = || self.text(name).is_some_and(|text| text.trim().is_empty());
        if number.is_none() && self.0.contains_key(name) && !is_blank() {
            oddities.push(format!("{name} is {}, not a number", self.form(name).shown()));
        }
        number
    }

    /// Returns whether a mission accepts uploads: if the attribute is missing or `yes`. A value other than `yes` and
    /// `no` counts as `no` for safety, and is reported.
    fn accepts_uploads(self, oddities: &mut Vec<String>) -> bool {
        let word = match self.0.get(item::UPLOADS) {
            None => return true,
            Some(AttributeValue::Bool(are_taken)) => return *are_taken,
            Some(_) => self.text(item::UPLOADS).unwrap_or_default().trim().to_ascii_lowercase(),
        };
        match word.as_str() {
            "yes" | "true" => true,
            "no" | "false" => false,
            _ => {
                oddities.push(format!(
                    "uploads is {}, neither yes nor no; uploads are not accepted",
                    self.form(item::UPLOADS).shown()
                ));
                false
            }
        }
    }

    /// Returns which early notifications a mission asks for. A word that is none is reported.
    fn notify_on(self, oddities: &mut Vec<String>) -> NotifyOn {
        let words = self.text(item::NOTIFY_ON).unwrap_or_default();
        NotifyOn::parse(&words).unwrap_or_else(|error| {
            oddities.push(format!("notifyOn: {error}"));
            NotifyOn::default()
        })
    }

    /// Parses a mission's row.
    #[must_use]
    pub fn mission(self, id: MissionId) -> Mission {
        let mut oddities = Vec::new();
        oddities.extend(id.unfit().map(|rule| format!("a new mission cannot have its id: {rule}")));
        let trans_number = self.expected_number(item::TRANS_NUMBER, &mut oddities);
        let shards =
            self.expected_number(item::TALLY_SHARDS, &mut oddities).and_then(|shards| u32::try_from(shards).ok());
        let shards = shards.filter(|shards| (1..=TALLY_SHARDS_MAX).contains(shards));
        let rolled_seq = self.number(item::TALLY_SEQ);
        let ok = self.number(item::TRANS_OK).unwrap_or(0);
        let notified = match self.text(item::NOTIFIED).as_deref() {
            Some("Yes") => Notified::Yes,
            Some("Sending") => Notified::Sending {
                by: self.text(item::NOTIFY_BY).unwrap_or_default(),
                token: self.text(item::NOTIFY_TOKEN).unwrap_or_default(),
                beat: self.number(item::NOTIFY_BEAT).unwrap_or(0),
            },
            _ => Notified::No,
        };
        Mission {
            id,
            trans_number,
            tally_shards: shards.unwrap_or_else(|| tally_shards_for(trans_number.unwrap_or(0))),
            // Before the first roll-up, the counter in the row is the first version's.
            tally_base: self.number(item::TALLY_BASE).unwrap_or(if rolled_seq.is_none() { ok } else { 0 }),
            rolled_seq,
            rolled: Tally {
                ok,
                failed: self.number(item::TRANS_FAILED).unwrap_or(0),
                time_cost_ms: self.time_cost_ms(),
                seq: rolled_seq.unwrap_or(0),
                ..Tally::default()
            },
            counts_as_strings: matches!(self.0.get(item::TRANS_OK), Some(AttributeValue::S(_))),
            notified,
            notified_to: self.text(item::NOTIFIED_TO),
            results: self.list(item::RESULT_LIST).iter().filter_map(|v| v.as_s().ok().cloned()).collect(),
            exec: self.text(item::EXEC).filter(|exec| !exec.trim().is_empty()),
            name: self.text(item::MISSION_NAME),
            nodes: self
                .expected_number(item::NODES, &mut oddities)
                .filter(|&nodes| nodes > 0)
                .map(|nodes| u32::try_from(nodes).unwrap_or(NODES_MAX).min(NODES_MAX)),
            slots: self
                .expected_number(item::SLOTS, &mut oddities)
                .filter(|&slots| slots > 0)
                .map(|slots| u16::try_from(slots).unwrap_or(SLOTS_MAX).min(SLOTS_MAX)),
            accepts_uploads: self.accepts_uploads(&mut oddities),
            notify_on: self.notify_on(&mut oddities),
            failure_notified: self.number(item::FAILURE_NOTIFIED),
            stall_notified: self.number(item::STALL_NOTIFIED),
            idle: self.number(item::IDLE_SEQ).zip(self.text(item::IDLE_SINCE)),
            // Any value counts as a cancellation.
            cancelled_at: self
                .0
                .contains_key(item::CANCELLED_AT)
                .then(|| self.text(item::CANCELLED_AT).unwrap_or_default()),
            late: self.text(item::LATE),
            closed_at: self.text(item::CLOSED),
            launch_round: self.number(item::LAUNCH_ROUND).unwrap_or(0),
            nodes_launched: self.number(item::NODES_LAUNCHED).unwrap_or(0),
            requests: self.list(item::LAUNCH_REQUESTS).iter().filter_map(request::read).collect(),
            launch_error: self.text(item::LAUNCH_ERROR),
            made_at: self.text(item::TIME_CFG),
            policy: Policy::read(|name| match self.0.get(name)? {
                AttributeValue::S(value) | AttributeValue::N(value) => Some(value.as_str()),
                _ => None,
            }),
            opened: self.number(item::OPENED).unwrap_or(0),
            manifest_progress: self.0.get(item::MANIFEST_PROGRESS).and_then(manifest_progress),
            seen: Some(Box::new(SeenMission {
                trans_number: self.form(item::TRANS_NUMBER),
                opened: self.form(item::OPENED),
                launch_round: self.form(item::LAUNCH_ROUND),
                nodes_launched: self.form(item::NODES_LAUNCHED),
                tally_seq: self.form(item::TALLY_SEQ),
                cancelled_at: self.form(item::CANCELLED_AT),
                notify_token: self.form(item::NOTIFY_TOKEN),
                notify_beat: self.form(item::NOTIFY_BEAT),
            })),
            oddities,
        }
    }

    /// Parses the counters of a tally item, in the order of [`TALLY_NAMES`]. A counter may be negative: if the number
    /// of items has changed, a task may be counted in one item and subtracted from another.
    pub(super) fn tally(self) -> [i64; TALLY_NAMES.len()] {
        TALLY_NAMES.map(|name| self.signed(name).unwrap_or(0))
    }
}

/// The counters of a tally item: done, failed, workload time in seconds and in milliseconds, the number of changes, and
/// the nodes' time, the part of it without a price, and its cost.
pub(super) const TALLY_NAMES: [&str; 8] = [
    item::TRANS_OK,
    item::TRANS_FAILED,
    item::TIME_COST,
    item::TIME_COST_MS,
    item::TALLY_SEQ,
    item::NODE_SECONDS,
    item::UNPRICED_SECONDS,
    item::COST,
];

/// The maximum number of nodes in a mission's row: the limit of one fleet. Source: EC2 user guide, "EC2 Fleet quotas".
const NODES_MAX: u32 = 10_000;
/// The maximum number of tasks that a node runs at the same time.
pub(super) const SLOTS_MAX: u16 = 1_000;

fn manifest_progress(value: &AttributeValue) -> Option<ManifestProgress> {
    let row = Row(value.as_m().ok()?);
    let part = |part: &AttributeValue| {
        let mut words = part.as_s().ok()?.split(' ');
        let (etag, crc, bytes) = (words.next()?.to_owned(), words.next()?, words.next()?);
        Some(ManifestPart { etag, crc: u64::from_str_radix(crc, 16).ok()?, bytes: bytes.parse().ok()? })
    };
    Some(ManifestProgress {
        upload: row.text("upload")?,
        parts: row.list("parts").iter().map(part).collect::<Option<_>>()?,
        tasks: row.number("tasks")?,
        after: row.text("after")?,
        opened: row.number("opened")?,
    })
}

/// Returns the value of `manifestProgress`.
pub(super) fn manifest_progress_value(progress: &ManifestProgress) -> AttributeValue {
    let part = |part: &ManifestPart| text(format!("{} {:08x} {}", part.etag, part.crc, part.bytes));
    AttributeValue::M(Item::from([
        ("upload".to_owned(), text(&progress.upload)),
        ("parts".to_owned(), AttributeValue::L(progress.parts.iter().map(part).collect())),
        ("tasks".to_owned(), number(progress.tasks)),
        ("after".to_owned(), text(&progress.after)),
        ("opened".to_owned(), number(progress.opened)),
    ]))
}
