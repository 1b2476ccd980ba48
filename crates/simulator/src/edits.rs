//! Rows that a person edits by hand.

use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::check;
use crate::plan::Edit;
use crate::tasks::name_of;
use crate::who::Who;
use crate::world::World;

/// Edits the row of a task, if it is in a state that the edit is for.
pub(crate) async fn edit(world: &Arc<World>, task: u64, edit: Edit) {
    let src = name_of(&world.plan.mission, task);
    let row = check::task_row(world, src.as_str());
    let (state, attempt) = (check::text(&row, "state").to_owned(), check::number(&row, "attempt"));
    let is_open = matches!(state.as_str(), "pending" | "running");
    let text = |value: &str| AttributeValue::S(value.to_owned());
    let values: Vec<(&str, AttributeValue)> = match edit {
        Edit::AttemptAsText if is_open && attempt > 0 => vec![("attempt", text(&attempt.to_string()))],
        Edit::BeatAsText if state == "running" => vec![("beat", text(&check::number(&row, "beat").to_string()))],
        Edit::UpperCase if is_open => vec![("state", text(&state.to_uppercase()))],
        Edit::PutBack if state == "running" => {
            vec![("state", text("pending")), ("openAs", text("pending#2026-01-01T00:00:00Z"))]
        }
        Edit::OddIndex if is_open => vec![("openAs", text("waiting"))],
        Edit::Note if !state.is_empty() => vec![("note", text("by hand"))],
        _ => return,
    };
    world.saw(crate::plan::Act::Edit(task, edit).name());
    let client = aws_sdk_dynamodb::Client::new(world.wire(Who::Hand, None).sdk_config());
    let mut update = client.update_item().table_name(check::TASKS).key("srcFilename", text(src.as_str()));
    let mut sets = Vec::new();
    for (number, (name, value)) in values.into_iter().enumerate() {
        sets.push(format!("#n{number} = :v{number}"));
        update = update.expression_attribute_names(format!("#n{number}"), name);
        update = update.expression_attribute_values(format!(":v{number}"), value);
    }
    // As it was a moment ago: nobody edits a row of another state on purpose.
    let update = update
        .update_expression(format!("SET {}", sets.join(", ")))
        .condition_expression("#s = :s AND (attribute_not_exists(#a) OR #a = :a)")
        .expression_attribute_names("#s", "state")
        .expression_attribute_names("#a", "attempt")
        .expression_attribute_values(":s", text(&state))
        .expression_attribute_values(":a", AttributeValue::N(attempt.to_string()));
    if update.send().await.is_err() {
        world.note(&format!("the row of task {task} has changed: no edit"));
    }
}
