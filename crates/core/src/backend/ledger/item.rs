//! The names of attributes, and the lenient reading of their values from two versions.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

pub(super) use super::key::SRC;
use crate::domain::value::{Form, integer};

// The tasks table.
pub(super) const BUCKET: &str = "bucketname";
pub(super) const SOURCE_KEY: &str = "sourceKey";
pub(super) const SOURCES: &str = "sources";
pub(super) const INDEX_NUMBER: &str = "index";
pub(super) const PARAMS: &str = "params";
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
pub(super) const TIME_COST_MS: &str = "timeCostMs";
pub(super) const RESULT: &str = "rsltFilename";
pub(super) const RESULT_ETAG: &str = "resultETag";
pub(super) const RESULT_BYTES: &str = "resultBytes";
pub(super) const INPUT_ETAG: &str = "inputETag";
pub(super) const VERDICT: &str = "verdict";
pub(super) const EXIT_CODE: &str = "exitCode";
pub(super) const SIGNAL: &str = "signal";
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

// The missions table. `TIME_COST` and `TIME_COST_MS` are used in both tables.
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
pub(super) const NODE_SECONDS: &str = "nodeSeconds";
pub(super) const UNPRICED_SECONDS: &str = "unpricedSeconds";
pub(super) const COST: &str = "costMicroUSD";
pub(super) const EXEC: &str = "exec";
pub(super) const MISSION_NAME: &str = "name";
pub(super) const NODES: &str = "nodes";
pub(super) const NODES_LAUNCHED: &str = "nodesLaunched";
pub(super) const ON_DEMAND_LAUNCHED: &str = "onDemandLaunched";
pub(super) const SLOTS: &str = "slots";
pub(super) const UPLOADS: &str = "uploads";
pub(super) const NOTIFY_ON: &str = "notifyOn";
pub(super) const FAILURE_NOTIFIED: &str = "failureNotified";
pub(super) const STALL_NOTIFIED: &str = "stallNotified";
pub(super) const IDLE_SEQ: &str = "idleSeq";
pub(super) const IDLE_SINCE: &str = "idleSince";
pub(super) const CANCELLED_AT: &str = "cancelledAt";
pub(super) const LATE: &str = "late";
pub(super) const CLOSED: &str = "closed";
pub(super) const LAUNCH_ROUND: &str = "launchRound";
pub(super) const TIME_CFG: &str = "timeCfg";
pub(super) const LAUNCH_REQUESTS: &str = "launchRequests";

/// The attributes of a mission's row that are read. `rsltList` is omitted, because it may be large.
pub(super) const MISSION_NAMES: &[&str] = &[
    MISSION_KEY,
    TRANS_NUMBER,
    TRANS_OK,
    TRANS_FAILED,
    TIME_COST,
    TIME_COST_MS,
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
    NOTIFY_ON,
    FAILURE_NOTIFIED,
    STALL_NOTIFIED,
    IDLE_SEQ,
    IDLE_SINCE,
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

/// Returns the value of a string attribute.
pub(super) fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

/// Returns the value of a number attribute.
pub(super) fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// An item. The first version wrote numbers as strings; both are read as numbers.
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

    /// Returns the workload time in milliseconds. `timeCostMs` counts if it agrees with the whole seconds of `timeCost`,
    /// which the first version, and scripts for it, also write.
    pub(super) fn time_cost_ms(self) -> u64 {
        let seconds = self.number(TIME_COST);
        let ms = self.number(TIME_COST_MS);
        match (seconds, ms) {
            (Some(seconds), Some(ms)) if seconds.abs_diff(ms / 1000) <= 1 => ms,
            (Some(seconds), _) => seconds.saturating_mul(1000),
            (None, ms) => ms.unwrap_or(0),
        }
    }

    /// Returns the form of an attribute in the row.
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

    /// Returns whether a flag is set: any value except those that mean "no".
    pub(super) fn is_set(self, name: &str) -> bool {
        match self.0.get(name) {
            None | Some(AttributeValue::Null(_)) => false,
            Some(AttributeValue::Bool(is_set)) => *is_set,
            Some(AttributeValue::S(word) | AttributeValue::N(word)) => {
                !matches!(word.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false")
            }
            Some(_) => true,
        }
    }

    pub(super) fn list(self, name: &str) -> Vec<AttributeValue> {
        self.0.get(name).and_then(|value| value.as_l().ok()).cloned().unwrap_or_default()
    }
}
