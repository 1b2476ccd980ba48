//! Updates that instances are denied, as by their role on AWS.
//!
//! IAM checks every attribute that an update names, also in its condition.
//! Source: DynamoDB developer guide, "Using IAM policy conditions for fine-grained access control",
//! `dynamodb:Attributes`.

use serde_json::Value;

/// Updates of one table that instances are denied.
#[derive(Clone)]
pub(super) struct DeniedUpdates {
    table: String,
    names: &'static [&'static str],
}

impl DeniedUpdates {
    pub(super) fn new(table: &str, names: &'static [&'static str]) -> Self {
        Self { table: table.to_owned(), names }
    }

    /// Returns why a call is denied; `None`: it is allowed.
    pub(super) fn denial(&self, operation: &str, body: &[u8]) -> Option<String> {
        let request: Value = serde_json::from_slice(body).ok()?;
        let updates: Vec<&Value> = match operation {
            "UpdateItem" => vec![&request],
            "TransactWriteItems" => {
                request["TransactItems"].as_array()?.iter().filter_map(|item| item.get("Update")).collect()
            }
            _ => return None,
        };
        let mut ours = updates.into_iter().filter(|update| update["TableName"] == self.table.as_str());
        ours.find_map(|update| self.denial_of(update))
    }

    fn denial_of(&self, update: &Value) -> Option<String> {
        let strings = |value: &Value| -> Vec<String> {
            let values = value.as_object().into_iter().flat_map(serde_json::Map::values);
            values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let named = strings(&update["ExpressionAttributeNames"]);
        let keys = update["Key"].as_object().into_iter().flat_map(serde_json::Map::values).flat_map(&strings);
        let is_denied = |name: &String| self.names.contains(&name.as_str());
        let what = named.into_iter().find(is_denied).or_else(|| keys.into_iter().find(|key| key.starts_with('~')))?;
        Some(format!("a node's role is not authorized to perform: dynamodb:UpdateItem of {} with {what}", self.table))
    }
}
