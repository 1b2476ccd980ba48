//! Items and their keys.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::domain::ids::SrcId;

/// The key attribute of the tasks table.
pub(super) const SRC: &str = "srcFilename";

/// An item of a table.
pub(super) type Item = HashMap<String, AttributeValue>;

/// Returns the key of a task's row.
pub(super) fn task_key(src: &SrcId) -> Item {
    HashMap::from([(SRC.to_owned(), AttributeValue::S(src.as_str().to_owned()))])
}
