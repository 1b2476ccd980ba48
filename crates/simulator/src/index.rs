//! The index of open tasks lags: what it answers is as old as the plan says.

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_types::body::SdkBody;
use local_cloud::{Answer, Call};
use serde_json::Value;

use crate::lock::locked;
use crate::plan::Fault;
use crate::world::World;

/// Returns how old the index is now.
fn lag(world: &World) -> Duration {
    let now = world.time();
    let lags = world.faults().filter(|_| world.is_hostile()).filter_map(|fault| match fault {
        Fault::Lag { from, length, by } if now >= *from && now < *from + *length => Some(*by),
        _ => None,
    });
    lags.max().unwrap_or_default()
}

/// Takes back, in the answer of a query of the index, what it does not have yet.
pub(crate) fn with_lag(world: &Arc<World>, call: &Call, answer: Answer) -> Answer {
    let lag = lag(world);
    if call.operation != "Query" || lag.is_zero() {
        return answer;
    }
    let answer = answer?;
    let (parts, body) = answer.into_parts();
    let Some(mut value) = body.bytes().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok()) else {
        return Ok(http::Response::from_parts(parts, body));
    };
    let Ok(request) = serde_json::from_slice::<Value>(&call.body) else {
        return Ok(http::Response::from_parts(parts, body));
    };
    let word = |name: &str| request["ExpressionAttributeValues"][name]["S"].as_str().unwrap_or_default().to_owned();
    let (partition, beginning) = (word(":in"), word(":as"));
    let is_full = !value["LastEvaluatedKey"].is_null();
    let Some(items) = value["Items"].as_array_mut() else { return Ok(http::Response::from_parts(parts, body)) };
    let is_here = |key: &Option<(String, String)>| {
        key.as_ref().is_some_and(|(at, order)| *at == partition && order.starts_with(&beginning))
    };
    let known = locked(&world.known);
    let young = known.index.iter().rev().take_while(|change| world.time().saturating_sub(change.at) < lag);
    for change in young {
        if is_here(&change.after) {
            items.retain(|item| item["srcFilename"]["S"].as_str() != Some(&change.src));
        }
        // Beyond a full page, it comes with the next one.
        if is_here(&change.before)
            && !is_full
            && let Some((at, order)) = &change.before
        {
            items.retain(|item| item["srcFilename"]["S"].as_str() != Some(&change.src));
            items.push(serde_json::json!({
                "srcFilename": { "S": change.src }, "openIn": { "S": at }, "openAs": { "S": order },
            }));
        }
    }
    drop(known);
    items.sort_by_key(|item| {
        (item["openAs"]["S"].as_str().unwrap_or_default().to_owned(), item["srcFilename"]["S"].to_string())
    });
    let count = items.len();
    value["Count"] = count.into();
    value["ScannedCount"] = count.into();
    world.saw("query of a lagging index");
    Ok(http::Response::from_parts(parts, SdkBody::from(value.to_string())))
}
