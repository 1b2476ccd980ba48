//! Flags that several commands share, and parsers for their values.

use std::time::Duration;

use clap::Args;

use super::failure::Failure;
use crate::backend::Tables;
use crate::domain::machine_info::MicroUsd;
use crate::domain::node_limit::NodeLimit;

/// The names of the tables.
#[derive(Clone, Debug, Args)]
pub(super) struct TableArgs {
    /// DynamoDB table of tasks; its partition key is srcFilename (String)
    #[arg(long, env = "LIGHTHPC_TASKS_TABLE", default_value = "tblTrans2", value_name = "TABLE", help_heading = "AWS")]
    pub(super) tasks_table: String,
    /// DynamoDB table of missions; its partition key is timePush (String)
    #[arg(
        long,
        env = "LIGHTHPC_MISSIONS_TABLE",
        default_value = "tblMission",
        value_name = "TABLE",
        help_heading = "AWS"
    )]
    pub(super) missions_table: String,
}

impl TableArgs {
    pub(super) fn tables(&self) -> Tables {
        Tables { tasks: self.tasks_table.clone(), missions: self.missions_table.clone() }
    }
}

/// The settings that nodes and schedulers share: tables, buckets, topic.
#[derive(Clone, Debug, Args)]
pub(super) struct AwsArgs {
    #[command(flatten)]
    pub(super) tables: TableArgs,
    /// S3 bucket of inputs; a task's row may name another one
    #[arg(long, env = "LIGHTHPC_SOURCE_BUCKET", value_name = "BUCKET", help_heading = "AWS")]
    pub(super) source_bucket: Option<String>,
    /// S3 bucket of results, logs and manifests
    #[arg(long, env = "LIGHTHPC_RESULT_BUCKET", value_name = "BUCKET", help_heading = "AWS")]
    pub(super) result_bucket: Option<String>,
    /// SNS topic (standard or FIFO) that is notified when a mission is complete (default: no notification)
    #[arg(long, env = "LIGHTHPC_TOPIC_ARN", value_name = "ARN", help_heading = "AWS")]
    pub(super) topic_arn: Option<String>,
}

impl AwsArgs {
    pub(super) fn source_bucket(&self) -> Option<String> {
        text(self.source_bucket.as_deref())
    }

    pub(super) fn result_bucket(&self) -> Option<String> {
        text(self.result_bucket.as_deref())
    }

    /// Returns the topic's ARN. An invalid one is a usage failure.
    pub(super) fn topic_arn(&self) -> Result<Option<String>, Failure> {
        match text(self.topic_arn.as_deref()) {
            Some(topic) if !topic.starts_with("arn:") => Err(Failure::usage(
                format!("--topic-arn {topic} is not an ARN"),
                "use an ARN such as arn:aws:sns:us-east-1:123456789012:NotifyMe",
            )),
            topic => Ok(topic),
        }
    }
}

/// Returns a value without surrounding spaces; `None` if it is empty.
pub(super) fn text(value: Option<&str>) -> Option<String> {
    value.map(str::trim).filter(|value| !value.is_empty()).map(ToOwned::to_owned)
}

/// The settings for launches.
#[derive(Clone, Debug, Args)]
pub(super) struct SchedulerArgs {
    #[command(flatten)]
    pub(super) aws: AwsArgs,
    /// EC2 launch template of the nodes, by id or name (default: no node is launched)
    #[arg(long, env = "LIGHTHPC_LAUNCH_TEMPLATE", value_name = "TEMPLATE", help_heading = "Launching")]
    pub(super) launch_template: Option<String>,
    /// Version of the launch template: a number, $Latest, or $Default (which CloudFormation never updates)
    #[arg(
        long,
        env = "LIGHTHPC_LAUNCH_TEMPLATE_VERSION",
        default_value = "$Latest",
        value_name = "VERSION",
        help_heading = "Launching"
    )]
    pub(super) launch_template_version: String,
    /// Comma-separated instance types that nodes may have (default: the type in the launch template)
    #[arg(long, env = "LIGHTHPC_INSTANCE_TYPES", value_name = "TYPES", help_heading = "Launching")]
    pub(super) instance_types: Option<String>,
    /// Comma-separated subnets that nodes may run in (default: the subnet in the launch template)
    #[arg(long, env = "LIGHTHPC_SUBNETS", value_name = "SUBNETS", help_heading = "Launching")]
    pub(super) subnets: Option<String>,
    /// Purchase option: spot, on-demand, mix, or spot-then-on-demand (default: spot)
    #[arg(long, env = "LIGHTHPC_BID_MODE", value_name = "MODE", help_heading = "Launching")]
    pub(super) bid_mode: Option<String>,
    /// Maximum price of a Spot instance in USD per hour (default: the On-Demand price). A lower value does not lower
    /// the price that you pay; it makes nodes harder to get and interruptions more frequent
    #[arg(long, env = "LIGHTHPC_MAX_UNIT_PRICE", value_name = "USD", help_heading = "Launching")]
    pub(super) max_unit_price: Option<String>,
    /// With spot-then-on-demand: time that a task waits for Spot capacity
    #[arg(long, env = "LIGHTHPC_MAX_WAIT", value_name = "SECONDS", help_heading = "Launching")]
    pub(super) max_wait: Option<String>,
    /// With mix: minimum number of On-Demand nodes
    #[arg(long, env = "LIGHTHPC_ON_DEMAND_FLOOR", value_name = "N", help_heading = "Launching")]
    pub(super) on_demand_floor: Option<String>,
    /// Maximum number of nodes in the deployment, or none (default: the deployment's stored limit; 0 stops all
    /// launches)
    #[arg(long, env = "LIGHTHPC_MAX_NODES", default_value = "", hide_default_value = true, value_parser = NodeLimit::parse, value_name = "N", help_heading = "Launching")]
    pub(super) max_nodes: NodeLimit,
    /// Maximum number of nodes launched in one hour of the clock, or none (default: the deployment's stored limit)
    #[arg(long, env = "LIGHTHPC_MAX_NODES_PER_HOUR", default_value = "", hide_default_value = true, value_parser = NodeLimit::parse, value_name = "N", help_heading = "Launching")]
    pub(super) max_nodes_per_hour: NodeLimit,
    /// Mission of uploads whose key names no mission
    #[arg(long = "default-mission", env = "LIGHTHPC_MISSION", value_name = "ID", help_heading = "Tasks")]
    pub(super) default_mission: Option<String>,
    /// Time after which a task without a heartbeat is taken over; must be the same as on the nodes
    #[arg(long, env = "LIGHTHPC_LEASE", default_value = "90", value_parser = seconds, value_name = "SECONDS", help_heading = "Tasks")]
    pub(super) lease: Duration,
    /// Maximum number of interruptions of a task: one more fails it. Must be the same as on the nodes
    #[arg(long, env = "LIGHTHPC_MAX_INTERRUPTIONS", default_value = "20", value_name = "N", help_heading = "Tasks")]
    pub(super) max_interruptions: u64,
}

/// Reads a time as [`seconds`] does, or 0.
pub(super) fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" { Ok(Duration::ZERO) } else { seconds(text) }
}

/// Parses a time as people write it: `90`, `90s`, `10m`, `2h`, `1d`, each with an optional fraction. It is positive, and
/// at most ten years.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    const TEN_YEARS: f64 = 10.0 * 366.0 * 86_400.0;
    let text = text.trim();
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let factor = match unit {
        "" | "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        "d" => Some(86_400.0),
        _ => None,
    };
    let value = number.trim().parse::<f64>().ok().zip(factor).map(|(number, factor)| number * factor);
    match value {
        Some(value) if value > 0.0 && value <= TEN_YEARS => Ok(Duration::from_secs_f64(value)),
        Some(_) => Err("a time must be more than 0 and no more than ten years".to_owned()),
        None => Err("a time is needed, such as 90 (seconds), 90s, 10m, 2h or 1d".to_owned()),
    }
}

/// Parses an instance type and its price in USD per hour.
pub(super) fn price(text: &str) -> Result<(String, MicroUsd), String> {
    let (name, price) = text.split_once('=').unwrap_or((text, ""));
    match (name.trim(), MicroUsd::parse(price)) {
        (name, Some(price)) if !name.is_empty() => Ok((name.to_owned(), price)),
        _ => Err("an instance type and USD per hour are needed, such as c7i.large=0.08925".to_owned()),
    }
}

/// Parses a number of bytes with an optional unit: `K`, `M`, `G` or `T`, or `KiB` and so on, are powers of 1,024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => Some(0),
        "K" | "KIB" => Some(10),
        "M" | "MIB" => Some(20),
        "G" | "GIB" => Some(30),
        "T" | "TIB" => Some(40),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    match number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift)) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("a number of bytes is needed, such as 500G or 1T (powers of 1,024)".to_owned()),
    }
}

/// Parses `A..B`, or `A` for `A..A`: numbers of seconds, in ascending order.
pub(super) fn range(text: &str) -> Result<(f64, f64), String> {
    const DAY: f64 = 86_400.0;
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let number =
        |part: &str| part.trim().trim_start_matches('=').parse::<f64>().ok().filter(|n| (0.0..=DAY).contains(n));
    match (number(from), number(to)) {
        (Some(from), Some(to)) if from <= to => Ok((from, to)),
        _ => Err("a range of seconds is needed, such as 12..20, within a day".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read() {
        for (text, read) in [("1", 1), ("10K", 10 << 10), ("2 MiB", 2 << 20), ("500g", 500 << 30), ("1T", 1 << 40)] {
            assert_eq!(bytes(text), Ok(read), "{text}");
        }
        for bad in ["", "0", "-1", "1.5G", "G", "1E", "1TB", "99999999999999T", "x"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_and_ranges_are_read() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        for (text, read) in [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1.5 h", 5400)] {
            assert_eq!(seconds(text), Ok(Duration::from_secs(read)), "{text}");
        }
        for bad in ["0", "-1", "nan", "inf", "x", "1e30", "", "s", "10 min", "1w", "1h30m", "0d", "9999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!((seconds_or_zero("0"), seconds_or_zero("1m")), (Ok(Duration::ZERO), Ok(Duration::from_mins(1))));
        assert!(seconds_or_zero("-0").is_err() && seconds_or_zero("").is_err());
        assert_eq!(range("12..20"), Ok((12.0, 20.0)));
        assert_eq!(range("0..0"), Ok((0.0, 0.0)));
        assert_eq!(range("3"), Ok((3.0, 3.0)));
        for bad in ["20..12", "a..b", "1..", "-1..2", ""] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
