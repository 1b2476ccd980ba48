//! The attributes of a mission's row that are settings, which a node may not change.

use super::item;

/// A mission's workload, number of nodes, and purchase options, which users and schedulers set. A node's role may not
/// use these names in an update of a mission's row, not even in a condition (`cloudformation/stack.yaml`,
/// `SettingsArePeoples`).
pub const SETTINGS: &[&str] = &[
    "bidInstanceType",
    "bidMode",
    "canary",
    "container",
    "env",
    item::EXEC,
    item::FAILURE_NOTIFIED,
    item::IDLE_SEQ,
    item::IDLE_SINCE,
    item::LAUNCH_REQUESTS,
    item::LAUNCH_ROUND,
    "maxAttempts",
    "maxCost",
    "maxFailures",
    "maxUnitprice",
    "maxWaitTime",
    item::NODES,
    item::NODES_LAUNCHED,
    item::NOTIFY_ON,
    "onDemandFloor",
    item::ON_DEMAND_LAUNCHED,
    "refs",
    "retryAppErrors",
    item::SLOTS,
    item::STALL_NOTIFIED,
    item::TALLY_SHARDS,
    "timeLimit",
    "uploads",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What a node may name: its tally, and the announcement of the mission's end. `transNumber` is in the condition of
    /// that.
    const OF_NODES: &[&str] = &[
        item::MISSION_KEY,
        item::TRANS_NUMBER,
        item::TRANS_OK,
        item::TRANS_FAILED,
        item::TIME_COST,
        item::TIME_COST_MS,
        item::NOTIFIED,
        item::NOTIFY_BY,
        item::NOTIFY_TOKEN,
        item::NOTIFY_BEAT,
        item::NOTIFIED_TO,
        item::NOTIFIED_AT,
        item::MANIFEST,
        item::MANIFEST_PROGRESS,
        item::OPENED,
        item::TALLY_BASE,
        item::TALLY_SEQ,
        item::RESULT_LIST,
        item::MISSION_NAME,
        item::CANCELLED_AT,
        item::LATE,
        item::CLOSED,
        item::TIME_CFG,
        // A text for people. A task has an attribute of the same name.
        item::LAUNCH_ERROR,
    ];

    #[test]
    fn each_attribute_of_a_mission_is_either_a_setting_or_a_nodes() {
        for name in item::MISSION_NAMES {
            assert!(SETTINGS.contains(name) != OF_NODES.contains(name), "{name}: may a node change it?");
        }
    }

    #[test]
    fn the_nodes_role_is_denied_the_settings_and_no_other_attribute() {
        let stack = include_str!("../../../../../cloudformation/stack.yaml");
        let denied = stack.split("Sid: SettingsArePeoples").nth(1).unwrap();
        let denied = denied.split("dynamodb:Attributes:").nth(1).unwrap();
        let denied: Vec<&str> =
            denied.lines().skip(1).map_while(|line| line.trim().strip_prefix("- ")).map(str::trim).collect();

        assert_eq!(denied, SETTINGS);
        assert!(SETTINGS.is_sorted());
    }

    #[test]
    fn the_documentation_names_the_settings() {
        let tables = include_str!("../../../../../docs/TABLES.md");
        let sentence =
            tables.split("<!-- settings -->").nth(1).expect("TABLES.md lists the settings between two marks");
        let named: Vec<&str> = sentence.split('`').skip(1).step_by(2).collect();

        assert_eq!(named, SETTINGS);
    }
}
