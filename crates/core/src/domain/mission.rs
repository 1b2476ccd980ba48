//! A mission's row and its tally.

use std::collections::HashSet;

use super::ids::{MissionId, SrcId};
use super::machine_info::MicroUsd;
use super::policy::{Policy, PolicyError};
use super::request::Reserved;
use super::value::Form;

/// The counters of a mission, summed over its tally items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tasks with a committed result.
    pub ok: u64,
    /// Tasks that ran out of budget.
    pub failed: u64,
    /// Milliseconds of workload time of all these tasks.
    pub time_cost_ms: u64,
    /// Counts every end of a task in the tally: a sum with a larger `seq` is newer.
    pub seq: u64,
    /// Seconds of the mission's nodes, boot and idle time included.
    pub node_s: u64,
    /// The part of them whose price is unknown.
    pub unpriced_s: u64,
    /// The cost of the rest.
    pub cost: MicroUsd,
}

impl Tally {
    /// Returns the workload time in whole seconds, rounded: `timeCost`.
    #[must_use]
    pub const fn time_cost_s(self) -> u64 {
        self.time_cost_ms.saturating_add(500) / 1000
    }

    /// Returns how many tasks have ended.
    #[must_use]
    pub const fn ended(self) -> u64 {
        self.ok.saturating_add(self.failed)
    }
}

/// Whether the notification was sent: the value of `notifyEmail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notified {
    /// Not yet.
    No,
    /// A publisher writes the manifest, or sends the notification.
    Sending {
        /// The instance that publishes.
        by: String,
        /// Names its right to publish.
        token: String,
        /// Renewals of the publisher's lease so far. A publisher is lost if the same token and renewals are seen for a whole lease.
        beat: u64,
    },
    /// They were.
    Yes,
}

impl Notified {
    /// Returns the value of the mission's attribute `notifyEmail`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::No => "No",
            Self::Sending { .. } => "Sending",
            Self::Yes => "Yes",
        }
    }
}

/// The events of which people want to be notified before the mission's end: `notifyOn`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NotifyOn {
    /// The first failure.
    pub failure: bool,
    /// A stall: tasks wait, and none runs.
    pub stall: bool,
}

impl NotifyOn {
    /// Reads the words `failure` and `stall`, separated by commas.
    ///
    /// # Errors
    /// A sentence that names the word that is neither.
    pub fn parse(words: &str) -> Result<Self, String> {
        let mut read = Self::default();
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.to_ascii_lowercase().as_str() {
                "failure" => read.failure = true,
                "stall" => read.stall = true,
                _ => return Err(format!("{word:?} is neither failure nor stall")),
            }
        }
        Ok(read)
    }

    /// Returns the words; `None` if there is none.
    #[must_use]
    pub const fn words(self) -> Option<&'static str> {
        match (self.failure, self.stall) {
            (true, true) => Some("failure,stall"),
            (true, false) => Some("failure"),
            (false, true) => Some("stall"),
            (false, false) => None,
        }
    }
}

/// A mission's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mission {
    /// The key.
    pub id: MissionId,
    /// How many tasks it has; `None` if the row does not say, and then its end cannot be seen.
    pub trans_number: Option<u64>,
    /// The number of tally items the commits are spread over.
    pub tally_shards: u32,
    /// Results that were counted before the tally items existed, by the first version.
    pub tally_base: u64,
    /// `seq` of the sum that was last rolled up into the row.
    pub rolled_seq: Option<u64>,
    /// The rolled-up counters, for people.
    pub rolled: Tally,
    /// Whether the row's counters are written as strings, as the first version did.
    pub counts_as_strings: bool,
    /// Whether the notification was sent.
    pub notified: Notified,
    /// The topic that the end was published to, or `none`; absent if nobody noted it.
    pub notified_to: Option<String>,
    /// `rsltList`, as it stands.
    pub results: Vec<String>,
    /// The workload's command line for every task, for `sh -c`; the node's own settings go first.
    pub exec: Option<String>,
    /// What it is called, for people.
    pub name: Option<String>,
    /// How many nodes serve it, each task after task; `None`: a node for each task.
    pub nodes: Option<u32>,
    /// How many tasks such a node works at, at a time.
    pub slots: Option<u16>,
    /// Whether objects that are put below its prefix become tasks of it; else only what is submitted counts.
    pub accepts_uploads: bool,
    /// What people are notified of before its end.
    pub notify_on: NotifyOn,
    /// `opened` when people were notified of the first failure.
    pub failure_notified: Option<u64>,
    /// `seq` of the tally when people were notified of a stall.
    pub stall_notified: Option<u64>,
    /// When a sweep first found that tasks wait and none runs: `seq` of the tally, and the time, RFC 3339 UTC.
    pub idle: Option<(u64, String)>,
    /// When it was cancelled, RFC 3339 UTC.
    pub cancelled_at: Option<String>,
    /// A mark of the last task that came after its end was announced.
    pub late: Option<String>,
    /// When a sweep found it announced and without an open task, RFC 3339 UTC.
    pub closed_at: Option<String>,
    /// How often launches of its nodes were reserved, repeats included.
    pub launch_round: u64,
    /// How many nodes were asked for in all its rounds.
    pub nodes_launched: u64,
    /// The launches of the newest round whose answers are not known yet.
    pub requests: Vec<Reserved>,
    /// Why its last launch of nodes got fewer than it wanted, or why a node ended as it was launched.
    pub launch_error: Option<String>,
    /// When it was made or configured: `timeCfg`.
    pub made_at: Option<String>,
    /// What it may cost; an error if the row's words cannot be read.
    pub policy: Result<Policy, PolicyError>,
    /// How often it was opened: created, enlarged, redriven, or reinstated.
    pub opened: u64,
    /// A manifest that is stored in parts, and how far it is.
    pub manifest_progress: Option<ManifestProgress>,
    /// The attributes that conditions compare with, as they stand in the row; `None`: as this version writes them.
    pub seen: Option<Box<SeenMission>>,
    /// What in the row cannot be read, one sentence each.
    pub oddities: Vec<String>,
}

/// How far a manifest is that is stored in parts: another publisher may go on from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestProgress {
    /// The id of the multipart upload.
    pub upload: String,
    /// The parts that are stored, in order.
    pub parts: Vec<ManifestPart>,
    /// The tasks that are in these parts.
    pub tasks: u64,
    /// The key of the row after which the list goes on.
    pub after: String,
    /// `opened` of the mission when the list was begun: a mission that was opened since needs a new list.
    pub opened: u64,
}

/// A stored part of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPart {
    /// Its `ETag`, quotes included.
    pub etag: String,
    /// Its CRC-32.
    pub crc: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Attributes of a mission's row, in the form in which they were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenMission {
    /// `transNumber`.
    pub trans_number: Form,
    /// `opened`.
    pub opened: Form,
    /// `launchRound`.
    pub launch_round: Form,
    /// `nodesLaunched`.
    pub nodes_launched: Form,
    /// `tallySeq`.
    pub tally_seq: Form,
    /// `cancelledAt`.
    pub cancelled_at: Form,
    /// `notifyToken`.
    pub notify_token: Form,
    /// `notifyBeat`.
    pub notify_beat: Form,
}

impl Mission {
    /// Makes what is known of a mission that has no row: its name.
    #[must_use]
    pub fn unknown(id: MissionId) -> Self {
        Self {
            id,
            trans_number: None,
            tally_shards: 1,
            tally_base: 0,
            rolled_seq: None,
            rolled: Tally::default(),
            counts_as_strings: false,
            notified: Notified::No,
            notified_to: None,
            results: Vec::new(),
            exec: None,
            name: None,
            nodes: None,
            slots: None,
            accepts_uploads: true,
            notify_on: NotifyOn::default(),
            failure_notified: None,
            stall_notified: None,
            idle: None,
            cancelled_at: None,
            late: None,
            closed_at: None,
            launch_round: 0,
            nodes_launched: 0,
            requests: Vec::new(),
            launch_error: None,
            made_at: None,
            policy: Ok(Policy::default()),
            opened: 0,
            manifest_progress: None,
            seen: None,
            oddities: Vec::new(),
        }
    }

    /// Returns how many nodes of its own it wants for so many open tasks; none if each task has a node.
    #[must_use]
    pub fn nodes_wanted(&self, open: u64) -> u32 {
        let slots = u64::from(self.slots.unwrap_or(1)).max(1);
        let most = self.nodes.unwrap_or(0);
        u32::try_from(open.div_ceil(slots)).unwrap_or(u32::MAX).min(most)
    }

    /// Returns the number of the next launch of its nodes.
    #[must_use]
    pub const fn next_round(&self) -> u64 {
        self.launch_round.saturating_add(1)
    }

    /// Returns the mission's counters, given the sum of its tally items.
    #[must_use]
    pub const fn total(&self, sum: Tally) -> Tally {
        Tally { ok: sum.ok.saturating_add(self.tally_base), ..sum }
    }

    /// Returns whether every task has ended.
    #[must_use]
    pub fn is_complete(&self, total: Tally) -> bool {
        self.trans_number.is_some_and(|number| number > 0 && total.ended() >= number)
    }

    /// Returns whether the sum is worth a write to the mission's row, the one item that all its nodes share.
    ///
    /// At the end always; before it at most a hundred times a mission, so that people see it move and the row,
    /// which takes about 1,000 writes a second, never becomes the limit.
    #[must_use]
    pub fn wants_roll_up(&self, total: Tally) -> bool {
        let rolled = self.rolled_seq.unwrap_or(0);
        let stride = self.trans_number.map_or(1, |number| number.div_ceil(100)).max(1);
        total.seq > rolled && (self.is_complete(total) || total.seq - rolled >= stride)
    }
}

/// Returns the partition of the index of open tasks that a task is in: `<mission>#<shard>`, with nothing before `#` for a task
/// of no mission. Spread like the tally, so that no partition is asked by every node.
#[must_use]
pub fn open_partition(mission: Option<&MissionId>, shard: u32) -> String {
    format!("{}#{shard}", mission.map_or("", MissionId::as_str))
}

/// Returns how many tally items a mission of `trans_number` tasks is spread over.
///
/// One item takes about 1,000 writes a second; a commit is one write to one of them.
#[must_use]
pub const fn tally_shards_for(trans_number: u64) -> u32 {
    match trans_number {
        0..=1_000 => 1,
        1_001..=100_000 => 16,
        _ => 64,
    }
}

/// Returns the tally item that a task's commit is counted in: CRC-32 (ISO-HDLC) of its name, modulo the shards.
///
/// The result must never change between versions: a task that is counted here and redriven there would be
/// taken from another item than it was added to. (The sum would still be right.)
#[must_use]
pub fn shard_of(src: &SrcId, shards: u32) -> u32 {
    shard_of_name(src.as_str(), shards)
}

/// Returns the tally item that a name belongs to, such as an instance's.
#[must_use]
pub fn shard_of_name(name: &str, shards: u32) -> u32 {
    crc_fast::crc32_iso_hdlc(name.as_bytes()) % shards.max(1)
}

/// The most tally items that a row may ask for; more is taken for a slip of the pen. Each is read at every look at the tally.
pub const TALLY_SHARDS_MAX: u32 = 1_024;

/// The most results that are listed in the mission's row itself; above it `rsltList` names the manifest.
pub const RESULT_LIST_LEN_MAX: usize = 1_000;

/// The most bytes of results in the mission's row: three quarters of DynamoDB's 400 kB for an item.
pub const RESULT_LIST_BYTES_MAX: usize = 300_000;

/// Returns what `rsltList` holds at the end: its old beginning, then the results, or the manifest if they are too many (`None`,
/// or more than [`RESULT_LIST_LEN_MAX`] or [`RESULT_LIST_BYTES_MAX`]).
#[must_use]
pub fn result_list(old: &[String], results: Option<&[String]>, manifest: &str) -> Vec<String> {
    let bytes = |results: &[String]| -> usize { old.iter().chain(results).map(|result| result.len() + 3).sum() };
    let fit = results.filter(|results| results.len() <= RESULT_LIST_LEN_MAX && bytes(results) <= RESULT_LIST_BYTES_MAX);
    let manifest = [manifest.to_owned()];
    let mut seen: HashSet<&str> = old.iter().map(String::as_str).collect();
    let new = fit.unwrap_or(&manifest).iter().filter(|result| seen.insert(result));
    old.iter().chain(new.collect::<Vec<_>>()).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mission(trans_number: Option<u64>) -> Mission {
        Mission { trans_number, ..Mission::unknown(MissionId::new("M").unwrap()) }
    }

    fn tally(ok: u64, failed: u64) -> Tally {
        Tally { ok, failed, seq: ok + failed, ..Tally::default() }
    }

    #[test]
    fn a_mission_is_complete_when_all_have_ended_well_or_badly() {
        assert!(!mission(Some(3)).is_complete(tally(2, 0)));
        assert!(mission(Some(3)).is_complete(tally(2, 1)));
        assert!(!mission(None).is_complete(tally(9, 9)));
        assert!(!mission(Some(0)).is_complete(tally(0, 0)));
    }

    #[test]
    fn large_missions_roll_up_about_a_hundred_times_and_at_the_end() {
        let mut large = mission(Some(10_000));
        assert!(!large.wants_roll_up(tally(99, 0)));
        assert!(large.wants_roll_up(tally(100, 0)));
        large.rolled_seq = Some(9_950);
        assert!(large.wants_roll_up(tally(10_000, 0)));
        assert!(!large.wants_roll_up(tally(9_950, 0)));
        assert!(mission(None).wants_roll_up(tally(1, 0)));
    }

    #[test]
    fn shards_are_stable() {
        let src = |key: &str| SrcId::new(key).unwrap();
        // CRC-32 of "123456789" is the check value of the catalogue: 0xcbf43926.
        assert_eq!(shard_of(&src("123456789"), 64), 0xcbf4_3926 % 64);
        assert_eq!(shard_of(&src("x"), 0), 0);
        assert_eq!([1_000, 1_001, 100_000, 100_001].map(tally_shards_for), [1, 16, 16, 64]);
    }

    #[test]
    fn a_result_list_keeps_its_beginning_and_never_outgrows_the_row() {
        let old = vec!["rsltList".to_owned()];
        let few = vec!["s3://b/rslt_a".to_owned(), "s3://b/rslt_b".to_owned()];
        assert_eq!(result_list(&old, Some(&few), "m"), ["rsltList", "s3://b/rslt_a", "s3://b/rslt_b"]);

        let long: Vec<String> = (0..900).map(|n| format!("{n}{}", "x".repeat(1000))).collect();
        assert_eq!(result_list(&old, Some(&long), "m"), ["rsltList", "m"]);
        assert_eq!(result_list(&["rsltList".to_owned(), "m".to_owned()], None, "m"), ["rsltList", "m"]);
    }
}
