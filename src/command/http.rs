//! The HTTP interface: missions are made, read, listed, and cancelled, as the article's was meant to be.
//!
//! API Gateway's payload 2.0 comes in. Never open: a request that no authoriser has let through is refused here, too, should
//! somebody have left it away.

use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};

use super::status;
use crate::backend::ledger::NewMission;
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::mission::tally_shards_for;
use crate::domain::policy::Policy;
use crate::scheduler::{Scheduler, SchedulerError};
use crate::worker::words;

/// How long a cancellation waits for what runs: API Gateway gives an answer 30 s.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
/// The most missions of a list.
const LIST_LEN_MAX: usize = 1_000;

/// The most nodes of a mission: one fleet takes no more. Source: EC2 user guide, "EC2 Fleet quotas".
pub(super) const NODES_MAX: u64 = 10_000;

/// What is wrong with a request, and its status.
#[derive(Debug)]
pub(super) struct Refusal(u16, String);

impl Refusal {
    fn bad(what: impl Into<String>) -> Self {
        Self(400, what.into())
    }
}

impl From<SchedulerError> for Refusal {
    fn from(error: SchedulerError) -> Self {
        let status = match &error {
            SchedulerError::NoMission(_) => 404,
            SchedulerError::Policy { .. } | SchedulerError::BadName(_) => 400,
            SchedulerError::OtherMission { .. } | SchedulerError::OtherTask { .. } => 409,
            SchedulerError::Cloud { .. } | SchedulerError::Announce { .. } | SchedulerError::NoTemplate => 503,
        };
        Self(status, words(&error))
    }
}

impl From<crate::backend::CloudError> for Refusal {
    fn from(error: crate::backend::CloudError) -> Self {
        Self(503, words(&error))
    }
}

/// Answers one request, always.
pub(super) async fn answer(scheduler: &Scheduler, event: &Value) -> Value {
    let (status, body) = match route(scheduler, event).await {
        Ok((status, body)) => (status, body),
        Err(Refusal(status, what)) => {
            tracing::warn!("answered {status}: {what}");
            (status, json!({ "error": what }))
        }
    };
    json!({
        "statusCode": status,
        "headers": { "content-type": "application/json" },
        "body": body.to_string(),
    })
}

async fn route(scheduler: &Scheduler, event: &Value) -> Result<(u16, Value), Refusal> {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str);
    let is_let_through = event.pointer("/requestContext/authorizer").and_then(Value::as_object);
    if is_let_through.is_none_or(serde_json::Map::is_empty) {
        return Err(Refusal(403, "no authoriser has let this request through".to_owned()));
    }
    let method = text("/requestContext/http/method").unwrap_or_default();
    let path = text("/rawPath").unwrap_or_default();
    let stage = format!("/{}", text("/requestContext/stage").unwrap_or_default());
    let path = path.strip_prefix(&stage).filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["missions"]) => list(scheduler).await,
        ("POST", ["missions"]) => create(scheduler, &body(event)?).await,
        ("GET", ["missions", id]) => show(scheduler, &mission_id(id)?).await,
        ("POST", ["missions", id, "cancel"]) => cancel(scheduler, &mission_id(id)?).await,
        (_, ["missions"] | ["missions", _] | ["missions", _, "cancel"]) => {
            Err(Refusal(405, format!("{method} is not for {path}")))
        }
        _ => {
            Err(Refusal(404, format!("there is no {path}: there are /missions, /missions/ID, and /missions/ID/cancel")))
        }
    }
}

pub(super) fn body(event: &Value) -> Result<String, Refusal> {
    let text = event.get("body").and_then(Value::as_str).unwrap_or_default();
    if event.get("isBase64Encoded").and_then(Value::as_bool) != Some(true) {
        return Ok(text.to_owned());
    }
    let bytes = aws_smithy_types::base64::decode(text).map_err(|error| Refusal::bad(format!("the body: {error}")))?;
    String::from_utf8(bytes).map_err(|_| Refusal::bad("the body is not UTF-8"))
}

pub(super) fn mission_id(part: &str) -> Result<MissionId, Refusal> {
    let id = percent_decode_str(part).decode_utf8().map_err(|_| Refusal::bad("the mission's id is not UTF-8"))?;
    MissionId::new(id).map_err(|error| Refusal::bad(error.to_string()))
}

/// A mission to be made; numbers may be written as text, as the first version did.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewBody {
    mission: String,
    name: Option<String>,
    trans_number: Value,
    exec: Option<String>,
    nodes: Option<Value>,
    slots: Option<Value>,
    bid_mode: Option<String>,
    bid_instance_type: Option<String>,
    #[serde(rename = "maxUnitprice")]
    max_unit_price: Option<Value>,
    max_wait_time: Option<Value>,
    on_demand_floor: Option<Value>,
}

async fn create(scheduler: &Scheduler, body: &str) -> Result<(u16, Value), Refusal> {
    let new = read(body)?;
    // What the row leaves open comes from the settings; together they must make sense.
    new.policy.clone().or(&scheduler.settings.policy).check().map_err(|error| Refusal::bad(error.to_string()))?;
    if !scheduler.backend.ledger.create_mission(&new).await? {
        return Err(Refusal(409, format!("there is a mission {} already", new.id)));
    }
    let (_, body) = show(scheduler, &new.id).await?;
    Ok((201, body))
}

pub(super) fn read(body: &str) -> Result<NewMission, Refusal> {
    let new: NewBody = serde_json::from_str(body).map_err(|error| Refusal::bad(format!("the body: {error}")))?;
    let word = |value: &Option<Value>| match value {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let number = |name: &str, value: &Option<Value>, most: u64| -> Result<Option<u64>, Refusal> {
        let Some(value) = value else { return Ok(None) };
        let n = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|n| (1..=most).contains(n));
        n.map(Some).ok_or_else(|| Refusal::bad(format!("{name} {value} is not a number from 1 to {most}")))
    };
    let id = MissionId::for_a_new_mission(&new.mission).map_err(|error| Refusal::bad(error.to_string()))?;
    let trans_number = number("transNumber", &Some(new.trans_number), 100_000_000)?.unwrap_or(1);
    let (price, wait, floor) = (word(&new.max_unit_price), word(&new.max_wait_time), word(&new.on_demand_floor));
    let policy = Policy::read(|name| match name {
        "bidMode" => new.bid_mode.as_deref(),
        "bidInstanceType" => new.bid_instance_type.as_deref(),
        "maxUnitprice" => price.as_deref(),
        "maxWaitTime" => wait.as_deref(),
        "onDemandFloor" => floor.as_deref(),
        _ => None,
    });
    Ok(NewMission {
        id,
        trans_number,
        tally_shards: tally_shards_for(trans_number),
        exec: new.exec.filter(|exec| !exec.trim().is_empty()),
        name: new.name,
        nodes: number("nodes", &new.nodes, NODES_MAX)?.and_then(|n| u32::try_from(n).ok()),
        slots: number("slots", &new.slots, 1_000)?.and_then(|n| u16::try_from(n).ok()),
        policy: policy.map_err(|error| Refusal::bad(error.to_string()))?,
        now: clock::now_rfc3339(),
    })
}

async fn show(scheduler: &Scheduler, id: &MissionId) -> Result<(u16, Value), Refusal> {
    let ledger = &scheduler.backend.ledger;
    let mission = ledger.mission(id).await?;
    let mission = mission.ok_or_else(|| Refusal(404, format!("there is no mission {id}")))?;
    let total = mission.total(ledger.tally(&mission).await?);
    Ok((200, status::mission_json(&mission, total)))
}

async fn list(scheduler: &Scheduler) -> Result<(u16, Value), Refusal> {
    let missions = scheduler.backend.ledger.missions().await?;
    let shown: Vec<Value> =
        missions.iter().rev().take(LIST_LEN_MAX).map(|mission| status::mission_json(mission, mission.rolled)).collect();
    Ok((200, json!({ "missions": shown, "count": missions.len() })))
}

async fn cancel(scheduler: &Scheduler, id: &MissionId) -> Result<(u16, Value), Refusal> {
    let cancelled = scheduler.cancel(id, CANCEL_PATIENCE).await?;
    let status = if cancelled.running == 0 { 200 } else { 202 };
    let body = json!({
        "mission": id.as_str(), "ended": cancelled.ended, "asked": cancelled.asked, "running": cancelled.running,
        "instancesEnded": cancelled.instances,
    });
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::policy::BidMode;

    #[test]
    fn a_body_is_read_as_the_first_version_wrote_it_and_as_json_has_it() {
        let new = read(
            r#"{"mission": "M001", "bidMode": "lowerPrice", "bidInstanceType": "m4.large", "maxUnitprice": "0.08",
                "maxWaitTime": 600, "transNumber": "10", "nodes": 3}"#,
        )
        .unwrap();
        assert_eq!((new.trans_number, new.nodes, new.slots), (10, Some(3), None));
        assert_eq!(new.policy.bid_mode, Some(BidMode::Spot));
        assert_eq!(new.policy.max_wait, Some(Duration::from_mins(10)));
    }

    #[test]
    fn a_wrong_body_is_refused_with_the_reason() {
        for (body, says) in [
            ("", "body"),
            ("[]", "body"),
            (r#"{"mission": "M"}"#, "transNumber"),
            (r#"{"mission": "M", "transNumber": 0}"#, "transNumber 0"),
            (r#"{"mission": "M", "transNumber": "many"}"#, "many"),
            (r#"{"mission": "", "transNumber": 1}"#, "empty"),
            (r#"{"mission": "a/b", "transNumber": 1}"#, "`/`"),
            (r#"{"mission": "M", "transNumber": 1, "price": 1}"#, "price"),
            (r#"{"mission": "M", "transNumber": 1, "maxUnitprice": "a lot"}"#, "a lot"),
            (r#"{"mission": "M", "transNumber": 1, "bidMode": "cheap"}"#, "cheap"),
            (r#"{"mission": "M", "transNumber": 1, "slots": -1}"#, "slots"),
        ] {
            let Refusal(status, what) = read(body).unwrap_err();
            assert!(status == 400 && what.contains(says), "{body}: {what}");
        }
    }
}
