//! Attribute names, and how rows are read: leniently, as two versions wrote them.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::key::Item;
pub(super) use super::key::SRC;
use super::request;
use crate::domain::ids::{Attempt, InstanceId, MissionId, SrcId};
use crate::domain::mission::{
    ManifestPart, ManifestProgress, Mission, Notified, SeenMission, TALLY_SHARDS_MAX, Tally, tally_shards_for,
};
use crate::domain::policy::Policy;
use crate::domain::task::{Launch, PastAttempt, Seen, State, Task};
use crate::domain::value::{Form, integer};
use crate::domain::verdict::Verdict;

// The tasks table.
pub(super) const BUCKET: &str = "bucketname";
pub(super) const TIME_BOARDING: &str = "timeBoarding";
pub(super) const TRIG_TIME: &str = "trigTime";
pub(super) const TRIG_NAME: &str = "trigName";
pub(super) const NUM_LOG: &str = "numlog";
pub(super) const MISSION: &str = "missionID";
pub(super) const STATE: &str = "state";
pub(super) const ATTEMPT: &str = "attempt";
pub(super) const CLAIM_TOKEN: &str = "claimToken";
pub(super) const BEAT: &str = "beat";
pub(super) const INSTANCE: &str = "execInstanceID";
pub(super) const PROGRESS: &str = "strIndiProgress";
pub(super) const TIME_COST: &str = "timeCost";
pub(super) const RESULT: &str = "rsltFilename";
pub(super) const RESULT_ETAG: &str = "resultETag";
pub(super) const RESULT_BYTES: &str = "resultBytes";
pub(super) const INPUT_ETAG: &str = "inputETag";
pub(super) const VERDICT: &str = "verdict";
pub(super) const EXIT_CODE: &str = "exitCode";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const APP_FAILURES: &str = "appFailures";
pub(super) const INTERRUPTIONS: &str = "interruptions";
pub(super) const CRASHES: &str = "crashes";
pub(super) const SUSPECT: &str = "suspect";
pub(super) const ERROR: &str = "error";
pub(super) const HISTORY: &str = "history";
pub(super) const OPEN_IN: &str = "openIn";
pub(super) const OPEN_AS: &str = "openAs";
pub(super) const LAUNCH_AT_ATTEMPT: &str = "launchAtAttempt";
pub(super) const LAUNCH_TRIES: &str = "launchTries";
pub(super) const LAUNCH_AT: &str = "launchAt";
pub(super) const LAUNCH_INSTANCE: &str = "launchInstanceID";
pub(super) const LAUNCHES_LOST: &str = "launchesLost";
pub(super) const LAUNCH_ERROR: &str = "launchError";
pub(super) const LAUNCH_REQUEST: &str = "launchRequest";
pub(super) const LAUNCH_AFTER: &str = "launchAfter";
pub(super) const CANCELLED: &str = "cancelled";

// The missions table. `TIME_COST` is in both.
pub(super) const MISSION_KEY: &str = "timePush";
pub(super) const TRANS_NUMBER: &str = "transNumber";
pub(super) const TRANS_OK: &str = "transOK";
pub(super) const TRANS_FAILED: &str = "transFailed";
pub(super) const RESULT_LIST: &str = "rsltList";
pub(super) const NOTIFIED: &str = "notifyEmail";
pub(super) const NOTIFY_BY: &str = "notifyBy";
pub(super) const NOTIFY_TOKEN: &str = "notifyToken";
pub(super) const NOTIFY_BEAT: &str = "notifyBeat";
pub(super) const NOTIFIED_TO: &str = "notifiedTo";
pub(super) const MANIFEST_PROGRESS: &str = "manifestProgress";
pub(super) const OPENED: &str = "opened";
pub(super) const NOTIFIED_AT: &str = "notifiedAt";
pub(super) const MANIFEST: &str = "manifest";
pub(super) const TALLY_SHARDS: &str = "tallyShards";
pub(super) const TALLY_BASE: &str = "tallyBase";
pub(super) const TALLY_SEQ: &str = "tallySeq";
pub(super) const EXEC: &str = "exec";
pub(super) const MISSION_NAME: &str = "name";
pub(super) const NODES: &str = "nodes";
pub(super) const NODES_LAUNCHED: &str = "nodesLaunched";
pub(super) const ON_DEMAND_LAUNCHED: &str = "onDemandLaunched";
pub(super) const SLOTS: &str = "slots";
pub(super) const UPLOADS: &str = "uploads";
pub(super) const CANCELLED_AT: &str = "cancelledAt";
pub(super) const LATE: &str = "late";
pub(super) const CLOSED: &str = "closed";
pub(super) const LAUNCH_ROUND: &str = "launchRound";
pub(super) const TIME_CFG: &str = "timeCfg";
pub(super) const LAUNCH_REQUESTS: &str = "launchRequests";

/// The attributes of a mission's row that are read, but for `rsltList`, which may be large.
pub(super) const MISSION_NAMES: &[&str] = &[
    MISSION_KEY,
    TRANS_NUMBER,
    TRANS_OK,
    TRANS_FAILED,
    TIME_COST,
    NOTIFIED,
    NOTIFY_BY,
    NOTIFY_TOKEN,
    NOTIFY_BEAT,
    NOTIFIED_TO,
    MANIFEST,
    MANIFEST_PROGRESS,
    OPENED,
    TALLY_SHARDS,
    TALLY_BASE,
    TALLY_SEQ,
    EXEC,
    MISSION_NAME,
    NODES,
    SLOTS,
    UPLOADS,
    CANCELLED_AT,
    LATE,
    CLOSED,
    NODES_LAUNCHED,
    LAUNCH_ROUND,
    LAUNCH_REQUESTS,
    LAUNCH_ERROR,
    TIME_CFG,
    "bidMode",
    "bidInstanceType",
    "maxUnitprice",
    "maxWaitTime",
    "onDemandFloor",
];

/// The value of a string attribute.
pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

/// The value of a number attribute.
pub(super) fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// An item as it was read. The first version wrote numbers as strings; both are numbers here.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a>(pub &'a HashMap<String, AttributeValue>);

impl Row<'_> {
    pub(super) fn text(self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            AttributeValue::S(value) | AttributeValue::N(value) => Some(value.clone()),
            _ => None,
        }
    }

    pub(super) fn number(self, name: &str) -> Option<u64> {
        self.signed(name).and_then(|value| u64::try_from(value).ok())
    }

    pub(super) fn signed(self, name: &str) -> Option<i64> {
        integer(&self.text(name)?)
    }

    /// A number, or nothing and a sentence in `oddities` if the row has something else there.
    fn expected_number(self, name: &str, oddities: &mut Vec<String>) -> Option<u64> {
        let number = self.number(name);
        let is_blank = || self.text(name).is_some_and(|text| text.trim().is_empty());
        if number.is_none() && self.0.contains_key(name) && !is_blank() {
            oddities.push(format!("{name} is {}, not a number", self.form(name).shown()));
        }
        number
    }

    /// Whether a mission takes uploads: if nothing is said about it, or one says so. Other words than `yes` and `no` are for
    /// caution's sake taken for `no`, and reported.
    fn accepts_uploads(self, oddities: &mut Vec<String>) -> bool {
        let word = match self.0.get(UPLOADS) {
            None => return true,
            Some(AttributeValue::Bool(are_taken)) => return *are_taken,
            Some(_) => self.text(UPLOADS).unwrap_or_default().trim().to_ascii_lowercase(),
        };
        match word.as_str() {
            "yes" | "true" => true,
            "no" | "false" => false,
            _ => {
                oddities.push(format!("uploads is {}, neither yes nor no: none is taken", self.form(UPLOADS).shown()));
                false
            }
        }
    }

    /// Returns the form in which an attribute stands in the row.
    pub(super) fn form(self, name: &str) -> Form {
        match self.0.get(name) {
            None => Form::Absent,
            Some(AttributeValue::N(value)) => Form::Number(value.clone()),
            Some(AttributeValue::S(value)) => Form::Text(value.clone()),
            Some(AttributeValue::L(_)) => Form::Other("L"),
            Some(AttributeValue::M(_)) => Form::Other("M"),
            Some(AttributeValue::Bool(_)) => Form::Other("BOOL"),
            Some(AttributeValue::Null(_)) => Form::Other("NULL"),
            Some(AttributeValue::B(_)) => Form::Other("B"),
            Some(AttributeValue::Ss(_)) => Form::Other("SS"),
            Some(AttributeValue::Ns(_)) => Form::Other("NS"),
            Some(_) => Form::Other("BS"),
        }
    }

    /// Returns whether a mark is there: anything but what a person would write for "no".
    fn is_set(self, name: &str) -> bool {
        match self.0.get(name) {
            None | Some(AttributeValue::Null(_)) => false,
            Some(AttributeValue::Bool(is_set)) => *is_set,
            Some(AttributeValue::S(word) | AttributeValue::N(word)) => {
                !matches!(word.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false")
            }
            Some(_) => true,
        }
    }

    fn list(self, name: &str) -> Vec<AttributeValue> {
        self.0.get(name).and_then(|value| value.as_l().ok()).cloned().unwrap_or_default()
    }

    /// Returns whether the first version finished this task: it knew no `state`, only a full progress and a result.
    pub(super) fn is_finished_by_first_version(self) -> bool {
        !self.0.contains_key(STATE) && self.text(PROGRESS).as_deref() == Some("100%") && self.0.contains_key(RESULT)
    }

    /// Reads a task's row.
    #[must_use]
    pub fn task(self, src: SrcId) -> Task {
        let state = match self.form(STATE) {
            Form::Absent if self.is_finished_by_first_version() => State::Done,
            Form::Absent => State::Pending,
            Form::Text(word) => State::parse(&word).unwrap_or(State::Unknown),
            Form::Number(_) | Form::Other(_) => State::Unknown,
        };
        let open = self.text(OPEN_AS);
        let open = open.as_deref().and_then(|open| open.split_once('#'));
        Task {
            src,
            mission: self.text(MISSION).and_then(|id| MissionId::new(id).ok()),
            bucket: self.text(BUCKET),
            made_at: self.text(TIME_BOARDING),
            state,
            attempt: Attempt(self.number(ATTEMPT).unwrap_or(0)),
            beat: self.number(BEAT).unwrap_or(0),
            claim_token: self.text(CLAIM_TOKEN),
            instance: self.text(INSTANCE).and_then(|id| InstanceId::new(id).ok()),
            progress: self.text(PROGRESS).unwrap_or_default(),
            time_cost_s: self.number(TIME_COST).unwrap_or(0),
            result: self.text(RESULT),
            result_etag: self.text(RESULT_ETAG),
            result_bytes: self.number(RESULT_BYTES),
            input_etag: self.text(INPUT_ETAG),
            verdict: self.text(VERDICT).as_deref().and_then(Verdict::parse),
            exit_code: self.signed(EXIT_CODE),
            checkpoint: self.text(CHECKPOINT),
            app_failures: self.number(APP_FAILURES).unwrap_or(0),
            interruptions: self.number(INTERRUPTIONS).unwrap_or(0),
            crashes: self.number(CRASHES).unwrap_or(0),
            is_suspect: self.is_set(SUSPECT),
            history: self.list(HISTORY).iter().filter_map(past_attempt).collect(),
            open_since: open.map(|(_, since)| since.to_owned()),
            launch: Launch {
                at_attempt: self.number(LAUNCH_AT_ATTEMPT).map(Attempt),
                tries: self.number(LAUNCH_TRIES).unwrap_or(0),
                at: self.text(LAUNCH_AT).unwrap_or_default(),
                instance: self.text(LAUNCH_INSTANCE),
                lost: self.number(LAUNCHES_LOST).unwrap_or(0),
                request: self.0.get(LAUNCH_REQUEST).and_then(request::read),
                error: self.text(LAUNCH_ERROR),
                after: self.text(LAUNCH_AFTER),
            },
            cancelled: self.0.contains_key(CANCELLED),
            open_as: open.and_then(|(state, _)| State::parse(state)),
            seen: Some(Box::new(Seen {
                mission: self.form(MISSION),
                state: self.form(STATE),
                attempt: self.form(ATTEMPT),
                beat: self.form(BEAT),
                launch_at_attempt: self.form(LAUNCH_AT_ATTEMPT),
                launch_tries: self.form(LAUNCH_TRIES),
                open_as: self.form(OPEN_AS),
                suspect: self.form(SUSPECT),
            })),
        }
    }

    /// Reads a mission's row.
    #[must_use]
    pub fn mission(self, id: MissionId) -> Mission {
        let mut oddities = Vec::new();
        oddities.extend(id.unfit().map(|rule| format!("its id is none that a new mission may have: {rule}")));
        let trans_number = self.expected_number(TRANS_NUMBER, &mut oddities);
        let shards = self.expected_number(TALLY_SHARDS, &mut oddities).and_then(|shards| u32::try_from(shards).ok());
        let shards = shards.filter(|shards| (1..=TALLY_SHARDS_MAX).contains(shards));
        let rolled_seq = self.number(TALLY_SEQ);
        let ok = self.number(TRANS_OK).unwrap_or(0);
        let notified = match self.text(NOTIFIED).as_deref() {
            Some("Yes") => Notified::Yes,
            Some("Sending") => Notified::Sending {
                by: self.text(NOTIFY_BY).unwrap_or_default(),
                token: self.text(NOTIFY_TOKEN).unwrap_or_default(),
                beat: self.number(NOTIFY_BEAT).unwrap_or(0),
            },
            _ => Notified::No,
        };
        Mission {
            id,
            trans_number,
            tally_shards: shards.unwrap_or_else(|| tally_shards_for(trans_number.unwrap_or(0))),
            // Before the first roll-up the row's own count is the first version's.
            tally_base: self.number(TALLY_BASE).unwrap_or(if rolled_seq.is_none() { ok } else { 0 }),
            rolled_seq,
            rolled: Tally {
                ok,
                failed: self.number(TRANS_FAILED).unwrap_or(0),
                time_cost_s: self.number(TIME_COST).unwrap_or(0),
                seq: rolled_seq.unwrap_or(0),
            },
            counts_as_strings: matches!(self.0.get(TRANS_OK), Some(AttributeValue::S(_))),
            notified,
            notified_to: self.text(NOTIFIED_TO),
            results: self.list(RESULT_LIST).iter().filter_map(|v| v.as_s().ok().cloned()).collect(),
            exec: self.text(EXEC).filter(|exec| !exec.trim().is_empty()),
            name: self.text(MISSION_NAME),
            nodes: self
                .expected_number(NODES, &mut oddities)
                .filter(|&nodes| nodes > 0)
                .map(|nodes| u32::try_from(nodes).unwrap_or(NODES_MAX).min(NODES_MAX)),
            slots: self
                .expected_number(SLOTS, &mut oddities)
                .filter(|&slots| slots > 0)
                .map(|slots| u16::try_from(slots).unwrap_or(SLOTS_MAX).min(SLOTS_MAX)),
            accepts_uploads: self.accepts_uploads(&mut oddities),
            // Whatever stands there: who wrote it meant to cancel.
            cancelled_at: self.0.contains_key(CANCELLED_AT).then(|| self.text(CANCELLED_AT).unwrap_or_default()),
            late: self.text(LATE),
            closed_at: self.text(CLOSED),
            launch_round: self.number(LAUNCH_ROUND).unwrap_or(0),
            nodes_launched: self.number(NODES_LAUNCHED).unwrap_or(0),
            requests: self.list(LAUNCH_REQUESTS).iter().filter_map(request::read).collect(),
            launch_error: self.text(LAUNCH_ERROR),
            made_at: self.text(TIME_CFG),
            policy: Policy::read(|name| match self.0.get(name)? {
                AttributeValue::S(value) | AttributeValue::N(value) => Some(value.as_str()),
                _ => None,
            }),
            opened: self.number(OPENED).unwrap_or(0),
            manifest_progress: self.0.get(MANIFEST_PROGRESS).and_then(manifest_progress),
            seen: Some(Box::new(SeenMission {
                trans_number: self.form(TRANS_NUMBER),
                opened: self.form(OPENED),
                launch_round: self.form(LAUNCH_ROUND),
                nodes_launched: self.form(NODES_LAUNCHED),
                tally_seq: self.form(TALLY_SEQ),
                cancelled_at: self.form(CANCELLED_AT),
                notify_token: self.form(NOTIFY_TOKEN),
                notify_beat: self.form(NOTIFY_BEAT),
            })),
            oddities,
        }
    }

    /// Reads a tally item's counters: ok, failed, time cost, sequence. One may be below nothing: what was counted in one
    /// item is taken off another, if the number of items was changed in between.
    pub(super) fn tally(self) -> [i64; 4] {
        [TRANS_OK, TRANS_FAILED, TIME_COST, TALLY_SEQ].map(|name| self.signed(name).unwrap_or(0))
    }
}

/// The most nodes that a mission's row may ask for: one fleet takes no more. Source: EC2 user guide, "EC2 Fleet quotas".
const NODES_MAX: u32 = 10_000;
/// The most tasks that a node works at, at a time.
const SLOTS_MAX: u16 = 1_000;

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

/// The value of `manifestProgress`.
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

fn past_attempt(value: &AttributeValue) -> Option<PastAttempt> {
    let row = Row(value.as_m().ok()?);
    Some(PastAttempt {
        attempt: Attempt(row.number("attempt")?),
        instance: row.text("instance").unwrap_or_default(),
        started: row.text("started").unwrap_or_default(),
        ended: row.text("ended").unwrap_or_default(),
        verdict: row.text("verdict").as_deref().and_then(Verdict::parse)?,
        exit_code: row.signed("exitCode").and_then(|code| i32::try_from(code).ok()),
        log: row.text("log"),
    })
}

/// The value of `history`.
pub(super) fn history(attempts: &[PastAttempt]) -> AttributeValue {
    let entry = |past: &PastAttempt| {
        let mut map = Item::from([
            ("attempt".to_owned(), number(past.attempt.0)),
            ("instance".to_owned(), text(&past.instance)),
            ("started".to_owned(), text(&past.started)),
            ("ended".to_owned(), text(&past.ended)),
            ("verdict".to_owned(), text(past.verdict.as_str())),
        ]);
        if let Some(code) = past.exit_code {
            map.insert("exitCode".to_owned(), AttributeValue::N(code.to_string()));
        }
        if let Some(log) = &past.log {
            map.insert("log".to_owned(), text(log));
        }
        AttributeValue::M(map)
    };
    AttributeValue::L(attempts.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(pairs: &[(&str, AttributeValue)]) -> Item {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn rows_of_the_first_version_are_read() {
        let row = item(&[
            (BUCKET, text("in")),
            (TRIG_NAME, text("ObjectCreated:Put")),
            (PROGRESS, text("20.0%")),
            (TIME_COST, text("47")),
        ]);
        let task = Row(&row).task(SrcId::new("a.dat").unwrap());
        assert_eq!((task.state, task.attempt, task.time_cost_s), (State::Pending, Attempt(0), 47));

        let row = item(&[
            (TRANS_NUMBER, text("15")),
            (TRANS_OK, text("4")),
            (RESULT_LIST, AttributeValue::L(vec![text("rsltList")])),
            (NOTIFIED, text("No")),
        ]);
        let mission = Row(&row).mission(MissionId::new("M001").unwrap());
        assert_eq!((mission.trans_number, mission.tally_base, mission.tally_shards), (Some(15), 4, 1));
        assert!(mission.counts_as_strings);
        assert_eq!(mission.results, ["rsltList"]);
    }

    #[test]
    fn a_task_that_the_first_version_finished_is_done() {
        let mut row = item(&[(PROGRESS, text("100%")), (RESULT, text("s3://b/rslt_a"))]);
        assert_eq!(Row(&row).task(SrcId::new("a").unwrap()).state, State::Done);
        row.insert(STATE.to_owned(), text("pending"));
        assert_eq!(Row(&row).task(SrcId::new("a").unwrap()).state, State::Pending);
    }

    #[test]
    fn history_reads_back() {
        let past = PastAttempt {
            attempt: Attempt(2),
            instance: "i-1".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            verdict: Verdict::AppError,
            exit_code: Some(-9),
            log: None,
        };
        let row = item(&[(HISTORY, history(std::slice::from_ref(&past)))]);
        assert_eq!(Row(&row).task(SrcId::new("a").unwrap()).history, [past]);
    }

    /// A value of any type that `DynamoDB` has, with words and numbers as people write them among the texts.
    fn any_value() -> impl Strategy<Value = AttributeValue> {
        let word = prop_oneof![
            "\\PC{0,12}",
            Just("pending".to_owned()),
            Just("Running".to_owned()),
            Just("Sending".to_owned()),
            Just("1e38".to_owned()),
            Just("-1".to_owned()),
            Just(" 12.0 ".to_owned()),
            Just("pending#".to_owned()),
        ];
        let number = prop_oneof!["-?[0-9]{1,38}", Just("2.5".to_owned()), Just("1e125".to_owned())];
        let leaf = prop_oneof![
            word.clone().prop_map(AttributeValue::S),
            number.clone().prop_map(AttributeValue::N),
            any::<bool>().prop_map(AttributeValue::Bool),
            Just(AttributeValue::Null(true)),
            proptest::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| AttributeValue::B(bytes.into())),
            proptest::collection::vec(word.clone(), 1..3).prop_map(AttributeValue::Ss),
            proptest::collection::vec(number, 1..3).prop_map(AttributeValue::Ns),
        ];
        leaf.prop_recursive(2, 8, 4, move |inner| {
            let names = prop_oneof![word.clone(), Just("attempt".to_owned()), Just("upload".to_owned())];
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(AttributeValue::L),
                proptest::collection::hash_map(names, inner, 0..4).prop_map(AttributeValue::M),
            ]
        })
    }

    const NAMES: &[&str] = &[
        BUCKET,
        TIME_BOARDING,
        NUM_LOG,
        MISSION,
        STATE,
        ATTEMPT,
        CLAIM_TOKEN,
        BEAT,
        INSTANCE,
        PROGRESS,
        TIME_COST,
        RESULT,
        RESULT_ETAG,
        RESULT_BYTES,
        VERDICT,
        EXIT_CODE,
        CHECKPOINT,
        APP_FAILURES,
        INTERRUPTIONS,
        HISTORY,
        OPEN_IN,
        OPEN_AS,
        LAUNCH_AT_ATTEMPT,
        LAUNCH_TRIES,
        LAUNCH_AT,
        LAUNCH_INSTANCE,
        LAUNCHES_LOST,
        LAUNCH_ERROR,
        LAUNCH_REQUEST,
        LAUNCH_REQUESTS,
        LAUNCH_AFTER,
        CANCELLED,
        TRANS_NUMBER,
        TRANS_OK,
        TRANS_FAILED,
        RESULT_LIST,
        NOTIFIED,
        NOTIFY_BY,
        NOTIFY_TOKEN,
        NOTIFY_BEAT,
        MANIFEST,
        MANIFEST_PROGRESS,
        TALLY_SHARDS,
        TALLY_BASE,
        TALLY_SEQ,
        EXEC,
        MISSION_NAME,
        NODES,
        NODES_LAUNCHED,
        SLOTS,
        UPLOADS,
        CANCELLED_AT,
        LATE,
        CLOSED,
        LAUNCH_ROUND,
        OPENED,
        TIME_CFG,
        "bidMode",
        "maxUnitprice",
        "maxWaitTime",
        "onDemandFloor",
    ];

    proptest! {
        #[test]
        fn a_row_of_any_values_is_read(values in proptest::collection::vec(any_value(), NAMES.len()), kept in any::<u64>()) {
            let row: Item = NAMES.iter().zip(values).enumerate()
                .filter(|(n, _)| kept >> n & 1 == 1)
                .map(|(_, (name, value))| ((*name).to_owned(), value))
                .collect();
            let task = Row(&row).task(SrcId::new("a").unwrap());
            prop_assert!(task.state != State::Running || task.lease().is_some());
            prop_assert!(row.contains_key(STATE) || task.state != State::Unknown);
            let mission = Row(&row).mission(MissionId::new("M").unwrap());
            prop_assert!((1..=TALLY_SHARDS_MAX).contains(&mission.tally_shards));
            prop_assert!(mission.slots.is_none_or(|slots| (1..=SLOTS_MAX).contains(&slots)));
            Row(&row).tally();
        }
    }
}
