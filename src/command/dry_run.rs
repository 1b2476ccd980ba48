//! `lighthpc submit --dry-run`: prints what a submission would do.

use std::collections::BTreeMap;

use serde_json::json;

use super::cli::SubmitArgs;
use super::estimate::{Estimate, PlannedWork};
use super::screen;
use crate::backend::fleet::Request;
use crate::domain::ids::SrcId;
use crate::domain::policy::Purchase;
use crate::domain::printable;
use crate::domain::work::{Inputs, ObjectName, Work};
use crate::scheduler::{Checked, SubmitPlan};

/// Above this number of tasks, one node per task is slow: EC2 launches two instances per second.
const TASKS_MANY: usize = 500;
/// The keys that are listed.
const SHOWN: usize = 10;

/// Adds the number of archived inputs, if there are any.
pub(super) fn with_archived(mut line: serde_json::Value, archived: usize) -> serde_json::Value {
    if archived > 0 {
        line["archived"] = archived.into();
    }
    line
}

/// Prints what would be done, and what it would cost.
pub(super) fn print(
    args: &SubmitArgs,
    plan: &SubmitPlan,
    checked: &Checked,
    (estimate, work): (&Estimate, PlannedWork),
    archived: usize,
) {
    let requests = &checked.requests;
    let own_nodes = checked.mission.as_ref().map_or(plan.nodes, |mission| mission.nodes);
    if args.json {
        let line = json!({
            "mission": plan.mission.as_str(), "bucket": plan.bucket, "tasks": plan.srcs.len(), "exec": plan.exec,
            "keys": plan.srcs.iter().map(SrcId::as_str).collect::<Vec<_>>(), "nodes": work.nodes,
            "requests": requests.iter().map(request_json).collect::<Vec<_>>(), "spotPrices": estimate.spot,
            "estimate": estimate.json(),
        });
        return screen::json_to_stdout(&with_archived(line, archived));
    }
    let mission = screen::plain(plan.mission.as_str());
    let place = plan.bucket.as_ref().map(|bucket| format!(" in s3://{}", screen::plain(bucket))).unwrap_or_default();
    let mut text = format!("mission {mission} would have {} tasks{place}:\n", plan.srcs.len());
    for src in plan.srcs.iter().take(SHOWN) {
        text.push_str(&format!("  {}{}\n", screen::plain(src.as_str()), worked_on(&plan.work(src))));
    }
    if plan.srcs.len() > SHOWN {
        text.push_str(&format!("  and {} more\n", plan.srcs.len() - SHOWN));
    }
    text.push_str(&format!("{} nodes would be launched", work.nodes));
    text.push_str(match (requests.is_empty(), own_nodes) {
        (true, _) => "\n",
        (false, Some(_)) => ", by:\n",
        (false, None) => ", one per task; the first request:\n",
    });
    for request in requests {
        text.push_str(&format!("  {}\n", printable::json(&request_json(request).to_string())));
    }
    text.push_str(&estimate.text(work));
    if own_nodes.is_none() && !requests.is_empty() && plan.srcs.len() > TASKS_MANY {
        text.push_str(&format!(
            "EC2 launches two instances per second, so {} take {} minutes; --nodes N is faster\n",
            plan.srcs.len(),
            plan.srcs.len() / 120
        ));
    }
    text.push_str("nothing was changed\n");
    screen::to_stdout(&text);
}

/// Returns what a task works on, if that is not the object of its name.
fn worked_on(work: &Work) -> String {
    let mut parts: Vec<String> = match &work.inputs {
        Inputs::Named | Inputs::None => Vec::new(),
        Inputs::Key(key) => vec![key.clone()],
        Inputs::Several(objects) => objects.iter().map(ObjectName::uri).collect(),
    };
    parts.extend(work.params.iter().map(|(name, value)| format!("{name}={value}")));
    parts.iter().map(|part| format!("  {}", screen::plain(part))).collect()
}

fn request_json(request: &Request) -> serde_json::Value {
    let tags: BTreeMap<&str, &str> = request.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    json!({
        "launchTemplate": request.template.name, "version": request.template.version,
        "instanceTypes": request.instance_types, "subnets": request.subnets,
        "purchase": match request.purchase { Purchase::Spot => "spot", Purchase::OnDemand => "on-demand" },
        "maxPrice": request.max_price.as_ref().map(ToString::to_string), "count": request.count, "tags": tags,
    })
}
