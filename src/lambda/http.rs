//! The HTTP interface: creates, reads, lists and cancels missions.
//!
//! Requests have API Gateway's payload format 2.0. A request without an authorizer's identity is refused, even if the
//! stack was changed to have none. The workload of a mission (program and number of nodes) has its own route: it is the
//! permission to run code in the account, and IAM can distinguish routes but not fields of a body.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::backend::error_chain;
use crate::backend::ledger::NewMission;
use crate::clock;
use crate::domain::ids::MissionId;
use crate::domain::mission::NotifyOn;
use crate::domain::policy::Policy;
use crate::domain::printable;
use crate::render::mission_json;
use crate::scheduler::{Scheduler, SchedulerError};

/// The time that a cancellation waits for running tasks. API Gateway's time limit is 30 s.
const CANCEL_PATIENCE: Duration = Duration::from_secs(10);
/// The maximum number of missions in a list.
const LIST_LEN_MAX: usize = 1_000;

/// The maximum number of tasks that a node runs at the same time.
const SLOTS_MAX: u64 = 1_000;
/// The maximum number of nodes of a mission: the limit of one fleet. Source: EC2 user guide, "EC2 Fleet quotas".
pub(crate) const NODES_MAX: u64 = 10_000;

/// The fields of a workload, which `POST /missions` refuses.
const WORKLOAD: [&str; 3] = ["exec", "nodes", "slots"];

/// The limits of the deployment, from the function's environment. IAM would refuse the launch later; this check refuses
/// the request.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Instance types, with `*` and `?` as wildcards.
    instance_types: Vec<String>,
    /// The maximum number of nodes at a time.
    nodes: u64,
}

impl Allowed {
    /// Reads the function's environment. A missing setting allows everything within EC2's own limits.
    #[must_use]
    pub fn of_environment() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(value: impl Fn(&str) -> Option<String>) -> Self {
        let types = value("LIGHTHPC_ALLOWED_INSTANCE_TYPES").unwrap_or_default();
        // 0 (no launches for now) and `none` (no limit) are settings of the deployment, not limits of a mission.
        let nodes = value("LIGHTHPC_MAX_NODES").and_then(|nodes| nodes.trim().parse().ok()).filter(|&nodes| nodes > 0);
        Self {
            instance_types: types.split(',').map(str::trim).filter(|t| !t.is_empty()).map(ToOwned::to_owned).collect(),
            nodes: nodes.unwrap_or(NODES_MAX).min(NODES_MAX),
        }
    }

    fn check_types(&self, types: &[String]) -> Result<(), HttpError> {
        let is_allowed = |name: &String| self.instance_types.iter().any(|pattern| matches(pattern, name));
        match types.iter().find(|name| !self.instance_types.is_empty() && !is_allowed(name)) {
            None => Ok(()),
            Some(name) => Err(HttpError::bad(format!(
                "bidInstanceType {name} is not allowed in this deployment; allowed types: {}",
                self.instance_types.join(", ")
            ))),
        }
    }
}

/// Returns whether a name matches a pattern with `*` (any characters) and `?` (one character), as IAM's `StringLike`
/// does.
fn matches(pattern: &str, name: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return name.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    match first {
        // Types are short and patterns come from the stack, so trying each position is cheap.
        '*' => name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches(rest, &name[at..])),
        _ => name.chars().next().is_some_and(|c| (first == '?' || first == c) && matches(rest, &name[c.len_utf8()..])),
    }
}

/// A refused request: the status and the reason.
#[derive(Debug)]
pub(crate) struct HttpError(u16, String);

impl HttpError {
    fn bad(what: impl Into<String>) -> Self {
        Self(400, what.into())
    }
}

impl From<SchedulerError> for HttpError {
    fn from(error: SchedulerError) -> Self {
        let status = match &error {
            SchedulerError::NoMission(_) => 404,
            SchedulerError::Policy { .. } | SchedulerError::BadName(_) => 400,
            SchedulerError::OtherMission { .. }
            | SchedulerError::OtherTask { .. }
            | SchedulerError::OtherWork { .. } => 409,
            SchedulerError::Cloud { .. } | SchedulerError::Announce { .. } | SchedulerError::NoTemplate => 503,
        };
        Self(status, error_chain(&error))
    }
}

impl From<crate::backend::CloudError> for HttpError {
    fn from(error: crate::backend::CloudError) -> Self {
        Self(503, error_chain(&error))
    }
}

/// Answers one request. A failure becomes an HTTP status.
pub(crate) async fn answer(scheduler: &Scheduler, allowed: &Allowed, event: &Value) -> Value {
    let (status, body) = match route(scheduler, allowed, event).await {
        Ok((status, body)) => (status, body),
        Err(HttpError(status, what)) => {
            tracing::warn!("returned status {status}: {what}");
            (status, json!({ "error": what }))
        }
    };
    json!({
        "statusCode": status,
        "headers": { "content-type": "application/json" },
        // The same JSON with control characters and invisible characters escaped, because names in it are untrusted.
        "body": printable::json(&body.to_string()),
    })
}

async fn route(scheduler: &Scheduler, allowed: &Allowed, event: &Value) -> Result<(u16, Value), HttpError> {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str);
    let is_let_through = event.pointer("/requestContext/authorizer").and_then(Value::as_object);
    if is_let_through.is_none_or(serde_json::Map::is_empty) {
        return Err(HttpError(403, "the request has no authorizer identity".to_owned()));
    }
    let method = text("/requestContext/http/method").unwrap_or_default();
    let path = text("/rawPath").unwrap_or_default();
    let stage = format!("/{}", text("/requestContext/stage").unwrap_or_default());
    let path = path.strip_prefix(&stage).filter(|rest| rest.starts_with('/')).unwrap_or(path);
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    // An HTTP API has already decoded both. Decoding again would change `a%41` to another mission.
    // Source: API Gateway developer guide, "Lambda proxy integrations", payload format 2.0.
    let id = |part: &str| {
        let id = text("/pathParameters/mission").unwrap_or(part);
        MissionId::new(id).map_err(|error| HttpError::bad(error.to_string()))
    };
    match (method, parts.as_slice()) {
        ("GET", ["missions"]) => list(scheduler).await,
        ("POST", ["missions"]) => create(scheduler, allowed, &body(event)?).await,
        ("GET", ["missions", part]) => show(scheduler, &id(part)?).await,
        ("PUT", ["missions", part, "workload"]) => set_workload(scheduler, allowed, &id(part)?, &body(event)?).await,
        ("POST", ["missions", part, "cancel"]) => cancel(scheduler, &id(part)?).await,
        (_, ["missions"] | ["missions", _] | ["missions", _, "cancel" | "workload"]) => {
            Err(HttpError(405, format!("{method} is not supported for {path}")))
        }
        _ => Err(HttpError(
            404,
            format!("unknown path {path}: use /missions, /missions/ID, /missions/ID/workload or /missions/ID/cancel"),
        )),
    }
}

pub(crate) fn body(event: &Value) -> Result<String, HttpError> {
    let text = event.get("body").and_then(Value::as_str).unwrap_or_default();
    if event.get("isBase64Encoded").and_then(Value::as_bool) != Some(true) {
        return Ok(text.to_owned());
    }
    let bytes = aws_smithy_types::base64::decode(text).map_err(|error| HttpError::bad(format!("the body: {error}")))?;
    String::from_utf8(bytes).map_err(|_| HttpError::bad("the body is not UTF-8"))
}

/// A mission to be created. Numbers may be written as text, as in the first version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NewBody {
    mission: String,
    name: Option<String>,
    trans_number: Value,
    uploads: Option<Value>,
    notify_on: Option<String>,
    bid_mode: Option<String>,
    bid_instance_type: Option<String>,
    #[serde(rename = "maxUnitprice")]
    max_unit_price: Option<Value>,
    max_wait_time: Option<Value>,
    on_demand_floor: Option<Value>,
}

async fn create(scheduler: &Scheduler, allowed: &Allowed, body: &str) -> Result<(u16, Value), HttpError> {
    let new = read(body)?;
    allowed.check_types(&new.policy.instance_types)?;
    // The settings fill what the row leaves open; together they must be valid.
    new.policy.clone().or(&scheduler.settings.policy).check().map_err(|error| HttpError::bad(error.to_string()))?;
    if !scheduler.backend.ledger.create_mission(&new).await? {
        return Err(HttpError(409, format!("mission {} already exists", new.id)));
    }
    let (_, body) = show(scheduler, &new.id).await?;
    Ok((201, body))
}

pub(crate) fn read(body: &str) -> Result<NewMission, HttpError> {
    let value: Value = serde_json::from_str(body).map_err(not_read)?;
    if let Some(name) = WORKLOAD.iter().find(|name| value.get(name).is_some()) {
        return Err(HttpError::bad(format!(
            "{name} cannot be set here: create the mission, then PUT /missions/ID/workload with {{\"{name}\": …}}; \
             this needs its own permission"
        )));
    }
    let new: NewBody = serde_json::from_value(value).map_err(not_read)?;
    let word = |value: &Option<Value>| match value {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let id = MissionId::for_a_new_mission(&new.mission).map_err(|error| HttpError::bad(error.to_string()))?;
    let trans_number = number("transNumber", Some(&new.trans_number), 100_000_000)?.unwrap_or(1);
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
        name: new.name,
        uploads: uploads(new.uploads.as_ref())?,
        notify_on: NotifyOn::parse(new.notify_on.as_deref().unwrap_or_default())
            .map_err(|error| HttpError::bad(format!("notifyOn: {error}")))?,
        policy: policy.map_err(|error| HttpError::bad(error.to_string()))?,
        now: clock::now_rfc3339(),
        ..NewMission::of(id, trans_number)
    })
}

/// Parses whether uploads become tasks: `yes`, `no` or a boolean. A missing value means yes, as in the first version.
fn uploads(value: Option<&Value>) -> Result<Option<bool>, HttpError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(are_taken)) => Ok(Some(*are_taken)),
        Some(Value::String(word)) if word == "yes" => Ok(Some(true)),
        Some(Value::String(word)) if word == "no" => Ok(Some(false)),
        Some(other) => Err(HttpError::bad(format!("uploads {other} is neither \"yes\" nor \"no\""))),
    }
}

fn not_read(error: serde_json::Error) -> HttpError {
    HttpError::bad(format!("the body: {error}"))
}

/// Parses a number, which may be written as text; `null` is none.
fn number(name: &str, value: Option<&Value>, most: u64) -> Result<Option<u64>, HttpError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let n = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|n| (1..=most).contains(n));
    n.map(Some).ok_or_else(|| HttpError::bad(format!("{name} {value} is not a number from 1 to {most}")))
}

/// A mission's workload and number of nodes. The request replaces all of them: an absent field is removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WorkloadRequest {
    exec: Option<String>,
    nodes: Option<u32>,
    slots: Option<u16>,
}

impl WorkloadRequest {
    pub(crate) fn read(body: &str, allowed: &Allowed) -> Result<Self, HttpError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            exec: Option<String>,
            nodes: Option<Value>,
            slots: Option<Value>,
        }
        let body: Body = serde_json::from_str(body).map_err(not_read)?;
        let nodes = number("nodes", body.nodes.as_ref(), allowed.nodes)?;
        let slots = number("slots", body.slots.as_ref(), SLOTS_MAX)?;
        Ok(Self {
            exec: body.exec.filter(|exec| !exec.trim().is_empty()),
            nodes: nodes.and_then(|n| u32::try_from(n).ok()),
            slots: slots.and_then(|n| u16::try_from(n).ok()),
        })
    }
}

async fn set_workload(
    scheduler: &Scheduler,
    allowed: &Allowed,
    id: &MissionId,
    body: &str,
) -> Result<(u16, Value), HttpError> {
    let WorkloadRequest { exec, nodes, slots } = WorkloadRequest::read(body, allowed)?;
    if !scheduler.backend.ledger.set_workload(id, exec.as_deref(), nodes, slots).await? {
        return Err(HttpError(404, format!("there is no mission {id}")));
    }
    show(scheduler, id).await
}

async fn show(scheduler: &Scheduler, id: &MissionId) -> Result<(u16, Value), HttpError> {
    let ledger = &scheduler.backend.ledger;
    let mission = ledger.mission(id).await?;
    let mission = mission.ok_or_else(|| HttpError(404, format!("there is no mission {id}")))?;
    let total = mission.total(ledger.tally(&mission).await?);
    Ok((200, mission_json(&mission, total)))
}

async fn list(scheduler: &Scheduler) -> Result<(u16, Value), HttpError> {
    let missions = scheduler.backend.ledger.missions().await?;
    let shown: Vec<Value> =
        missions.iter().rev().take(LIST_LEN_MAX).map(|mission| mission_json(mission, mission.rolled)).collect();
    Ok((200, json!({ "missions": shown, "count": missions.len() })))
}

async fn cancel(scheduler: &Scheduler, id: &MissionId) -> Result<(u16, Value), HttpError> {
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
                "maxWaitTime": 600, "transNumber": "10"}"#,
        )
        .unwrap();
        assert_eq!((new.trans_number, new.nodes, new.slots, new.exec), (10, None, None, None));
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
            (r#"{"mission": "M", "transNumber": 1, "slots": 1}"#, "PUT /missions/ID/workload"),
            (r#"{"mission": "M", "transNumber": 1, "nodes": null}"#, "PUT /missions/ID/workload"),
            (r#"{"mission": "M", "transNumber": 1, "exec": "id"}"#, "PUT /missions/ID/workload"),
            (r#"{"mission": "M", "transNumber": 1, "uploads": "perhaps"}"#, "uploads"),
            (r#"{"mission": "M#tally#0", "transNumber": 1}"#, "#tally#"),
        ] {
            let HttpError(status, what) = read(body).unwrap_err();
            assert!(status == 400 && what.contains(says), "{body}: {what}");
        }
    }
    #[test]
    fn a_workload_is_read_whole_and_within_the_deployments_limits() {
        let allowed = Allowed::read(|name| (name == "LIGHTHPC_MAX_NODES").then(|| "50".to_owned()));
        let read = |body: &str| WorkloadRequest::read(body, &allowed);

        let whole = WorkloadRequest { exec: Some("wc -l".to_owned()), nodes: Some(50), slots: Some(4) };
        assert_eq!(read(r#"{"exec": "wc -l", "nodes": "50", "slots": 4}"#).unwrap(), whole);
        let nothing = WorkloadRequest { exec: None, nodes: None, slots: None };
        assert_eq!(read(r#"{"exec": " ", "nodes": null}"#).unwrap(), nothing);
        for (body, says) in [
            (r#"{"nodes": 51}"#, "from 1 to 50"),
            (r#"{"nodes": 0}"#, "nodes 0"),
            (r#"{"slots": 1001}"#, "slots 1001"),
            (r#"{"exec": ["id"]}"#, "body"),
            (r#"{"bidMode": "on-demand"}"#, "bidMode"),
            ("", "body"),
        ] {
            let HttpError(status, what) = read(body).unwrap_err();
            assert!(status == 400 && what.contains(says), "{body}: {what}");
        }
    }

    #[test]
    fn types_that_the_deployment_does_not_allow_are_refused_at_once() {
        let allowed = |types: &str| Allowed::read(|name| name.contains("TYPES").then(|| types.to_owned()));
        let is_allowed = |types: &str, name: &str| allowed(types).check_types(&[name.to_owned()]).is_ok();

        for (types, name) in
            [("*", "p5.48xlarge"), ("c7*,m7i.large", "c7g.xlarge"), ("c?i.large", "c7i.large"), ("", "t3.micro")]
        {
            assert!(is_allowed(types, name), "{types}: {name}");
        }
        for (types, name) in [
            ("c7*,m7i.large", "m7i.xlarge"),
            ("c?i.large", "c77i.large"),
            ("c7", "c7i.large"),
            ("*.large", "C7i.Large"),
        ] {
            assert!(!is_allowed(types, name), "{types}: {name}");
        }
        let HttpError(status, what) =
            allowed("c7*").check_types(&["c7i.large".to_owned(), "p5.48xlarge".to_owned()]).unwrap_err();
        assert!(status == 400 && what.contains("p5.48xlarge") && what.contains("c7*"), "{what}");
    }
}
