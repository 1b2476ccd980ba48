//! The instance metadata service, version 2 only: a token first, then the data of the calling instance.
//!
//! Off EC2, every path is 404. That is quicker than a refused connection or a timeout, and the SDK retries none of
//! them.

use aws_smithy_types::body::SdkBody;

use super::fleet::{Fleet, Machine};
use super::names::REGION;
use super::query::reply;

const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const ZONE: &str = "us-east-1a";
const INSTANCE_TYPE: &str = "c7i.large";

/// Answers one call from `instance`.
pub(super) fn answer(fleet: &Fleet, instance: Option<&str>, request: &http::request::Parts) -> http::Response<SdkBody> {
    let Some((id, machine)) = instance.and_then(|id| fleet.machine(id).map(|machine| (id, machine))) else {
        return text_reply(404, "");
    };
    let path = request.uri.path();
    let token = format!("token-of-{id}");
    if path == "/latest/api/token" {
        return issue_token(&token, request);
    }
    if request.headers.get(TOKEN).is_none_or(|given| given.as_bytes() != token.as_bytes()) {
        return text_reply(401, "");
    }
    if request.method != http::Method::GET {
        return text_reply(405, "");
    }
    match metadata_value(fleet, id, &machine, path) {
        Some(value) => text_reply(200, &value),
        None => text_reply(404, ""),
    }
}

fn issue_token(token: &str, request: &http::request::Parts) -> http::Response<SdkBody> {
    if request.method != http::Method::PUT {
        return text_reply(405, "");
    }
    // One second to six hours, as in IMDS.
    let ttl = request.headers.get(TOKEN_TTL).cloned();
    let seconds: Option<u32> = ttl.as_ref().and_then(|ttl| ttl.to_str().ok()?.parse().ok());
    match (ttl, seconds) {
        (Some(ttl), Some(1..=21_600)) => {
            let mut answer = text_reply(200, token);
            answer.headers_mut().insert(TOKEN_TTL, ttl);
            answer
        }
        _ => text_reply(400, ""),
    }
}

fn metadata_value(fleet: &Fleet, id: &str, machine: &Machine, path: &str) -> Option<String> {
    if path == "/latest/dynamic/instance-identity/document" {
        return Some(identity_document(id));
    }
    let item = path.strip_prefix("/latest/meta-data/")?;
    let owned = |text: &str| Some(text.to_owned());
    match item {
        "instance-id" => owned(id),
        "instance-type" => owned(INSTANCE_TYPE),
        "instance-life-cycle" => owned("spot"),
        "placement/region" => owned(REGION),
        "placement/availability-zone" => owned(ZONE),
        "spot/instance-action" => {
            let (action, time) = machine.notice.as_ref()?;
            Some(serde_json::json!({ "action": action, "time": time }).to_string())
        }
        "spot/termination-time" => {
            machine.notice.as_ref().filter(|(action, _)| action == "terminate").map(|(_, time)| time.clone())
        }
        "events/recommendations/rebalance" => {
            let time = machine.rebalance.as_ref()?;
            Some(serde_json::json!({ "noticeTime": time }).to_string())
        }
        _ => {
            let key = item.strip_prefix("tags/instance")?;
            if !fleet.shows_tags_in_imds() {
                return None;
            }
            match key.trim_start_matches('/') {
                "" => Some(machine.tags.keys().cloned().collect::<Vec<_>>().join("\n")),
                key => machine.tags.get(key).cloned(),
            }
        }
    }
}

fn identity_document(id: &str) -> String {
    serde_json::json!({
        "accountId": "000000000000",
        "architecture": "x86_64",
        "availabilityZone": ZONE,
        "imageId": "ami-00000000000000000",
        "instanceId": id,
        "instanceType": INSTANCE_TYPE,
        "privateIp": "127.0.0.1",
        "region": REGION,
        "version": "2017-09-30",
    })
    .to_string()
}

pub(super) fn text_reply(status: u16, body: &str) -> http::Response<SdkBody> {
    reply(status, "text/plain", body.to_owned())
}
