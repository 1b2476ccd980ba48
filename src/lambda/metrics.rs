//! The figures of a sweep as CloudWatch metrics: one line of the embedded metric format on standard output, which
//! Lambda hands to CloudWatch Logs. Off unless `LIGHTHPC_METRICS` is set: a metric costs money.
//! Source: CloudWatch user guide, "Specification: Embedded metric format".

use std::io::Write;

use serde_json::{Value, json};

use crate::scheduler::Figures;
use crate::worker::NAMESPACE;

/// Returns whether metrics are wanted.
pub(super) fn are_wanted() -> bool {
    let value = std::env::var("LIGHTHPC_METRICS").unwrap_or_default();
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "off" | "false")
}

/// Writes the metrics of a sweep.
pub(super) fn write(deployment: &str, figures: Figures, now_ms: u64) {
    let line = format!("{}\n", line(deployment, figures, now_ms));
    // One write: lines of the log, which go to standard error, do not come in between.
    if let Err(error) = std::io::stdout().lock().write_all(line.as_bytes()) {
        tracing::warn!("the metrics of this sweep were not written: {error}");
    }
}

fn line(deployment: &str, figures: Figures, now_ms: u64) -> Value {
    let values = [
        ("OpenMissions", figures.open_missions),
        ("StalledMissions", figures.stalled_missions),
        ("RunningTasks", figures.running_tasks),
        ("FailedTasks", figures.failed_tasks),
        ("Instances", figures.instances),
        ("LostTasks", figures.lost_tasks),
        ("LeakedInstances", figures.leaked_instances),
        ("MissingNodes", figures.missing_nodes),
        ("SweepProblems", figures.problems),
    ];
    let metrics: Vec<Value> = values.iter().map(|(name, _)| json!({ "Name": name, "Unit": "Count" })).collect();
    let mut line = json!({
        "_aws": {
            "Timestamp": now_ms,
            "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": [["Deployment"]], "Metrics": metrics }],
        },
        "Deployment": deployment,
    });
    for (name, value) in values {
        line[name] = json!(value);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_a_value() {
        let line = line("tblTrans2", Figures { failed_tasks: 3, ..Figures::default() }, 1_767_225_600_000);
        let group = &line["_aws"]["CloudWatchMetrics"][0];
        let names: Vec<&str> =
            group["Metrics"].as_array().unwrap().iter().map(|metric| metric["Name"].as_str().unwrap()).collect();
        assert!(names.iter().all(|name| line[name].is_u64()), "{line}");
        assert_eq!((&line["FailedTasks"], &line["Deployment"]), (&json!(3), &json!("tblTrans2")));
        assert_eq!(group["Dimensions"], json!([["Deployment"]]));
        assert!(!line.to_string().contains('\n'));
    }
}
