//! The JSON form of rows, for the commands and the HTTP interface.

use serde_json::{Value, json};

use crate::domain::mission::{Mission, Tally};
use crate::domain::policy::BidMode;

/// Returns a mission as `status --json` and the HTTP interface print it. `timeCost` is the sum, in seconds, of all
/// successful attempts.
#[must_use]
pub fn mission_json(mission: &Mission, total: Tally) -> Value {
    let policy = mission.policy.as_ref().ok();
    json!({
        "mission": mission.id.as_str(),
        "transNumber": mission.trans_number,
        "transOK": total.ok,
        "transFailed": total.failed,
        "timeCost": total.time_cost_s(),
        "timeCostMs": total.time_cost_ms,
        "notifyEmail": mission.notified.as_str(),
        "notifiedTo": mission.notified_to,
        "exec": mission.exec,
        "name": mission.name,
        "nodes": mission.nodes,
        "slots": mission.slots,
        "uploads": if mission.accepts_uploads { "yes" } else { "no" },
        "bidMode": policy.as_ref().and_then(|policy| policy.bid_mode).map(BidMode::as_str),
        "cancelledAt": mission.cancelled_at,
    })
}
