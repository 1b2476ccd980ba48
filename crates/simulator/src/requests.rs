//! What a request to DynamoDB names.

use serde_json::Value;

/// The tables of tasks and missions.
pub(crate) const TASKS: &str = "tblTrans2";
pub(crate) const MISSIONS: &str = "tblMission";
/// The partition keys of the tables of tasks and missions.
const KEYS: [&str; 2] = ["srcFilename", "timePush"];

/// An item that a request names.
pub(crate) struct Item<'a> {
    pub(crate) table: &'a str,
    /// Its partition key.
    pub(crate) key: &'a str,
    /// The part of the request about it.
    pub(crate) part: &'a Value,
}

fn item<'a>(table: &'a str, part: &'a Value) -> Option<Item<'a>> {
    let attributes = ["Key", "Item"].iter().map(|name| &part[*name]).find(|found| found.is_object()).unwrap_or(part);
    let key = KEYS.iter().find_map(|name| attributes[*name]["S"].as_str())?;
    Some(Item { table, key, part })
}

/// Returns the items that a request names: one, those of a transaction, or those of a batch.
pub(crate) fn items(body: &Value) -> Vec<Item<'_>> {
    let named = |part: &'_ Value| part["TableName"].as_str().is_some();
    let of_transaction = body["TransactItems"].as_array().into_iter().flatten().filter_map(Value::as_object);
    let parts = of_transaction.flat_map(|part| part.values()).chain(named(body).then_some(body));
    let single = parts.filter_map(|part| item(part["TableName"].as_str()?, part));
    let batches = body["RequestItems"].as_object().into_iter().flatten();
    let of_batches = batches.flat_map(|(table, requests)| {
        let reads = requests["Keys"].as_array().into_iter().flatten();
        let writes = requests.as_array().into_iter().flatten().filter_map(Value::as_object);
        reads.chain(writes.flat_map(|write| write.values())).filter_map(move |part| item(table, part))
    });
    single.chain(of_batches).collect()
}

/// Returns the partition of the index that a query reads.
pub(crate) fn index_partition(body: &Value) -> Option<&str> {
    body["IndexName"].as_str()?;
    body["ExpressionAttributeValues"][":in"]["S"].as_str()
}
