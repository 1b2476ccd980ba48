//! Builds update expressions from parts. Names are replaced by placeholders, so that reserved words do not matter.

use std::collections::HashMap;

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{ATTEMPT, STATE};
use crate::domain::ids::AttemptNumber;
use crate::domain::task::State;
use crate::domain::value::Form;

/// An update of one item: its assignments, additions, removals and conditions.
#[derive(Clone, Debug, Default)]
pub(super) struct Expression {
    sets: Vec<String>,
    adds: Vec<String>,
    removes: Vec<String>,
    conditions: Vec<String>,
    names: HashMap<String, String>,
    values: HashMap<String, AttributeValue>,
}

impl Expression {
    /// Sets an attribute to a value.
    pub(super) fn set(mut self, name: &str, value: AttributeValue) -> Self {
        let (name, value) = (self.name(name), self.value(value));
        self.sets.push(format!("{name} = {value}"));
        self
    }

    /// Sets an attribute to the previous value of another one.
    pub(super) fn set_from(mut self, name: &str, other: &str) -> Self {
        let (name, other) = (self.name(name), self.name(other));
        self.sets.push(format!("{name} = {other}"));
        self
    }

    /// Sets an attribute if the item does not have it.
    pub(super) fn set_if_absent(mut self, name: &str, value: AttributeValue) -> Self {
        let (name, value) = (self.name(name), self.value(value));
        self.sets.push(format!("{name} = if_not_exists({name}, {value})"));
        self
    }

    /// Adds to an attribute, starting at 0 if the item does not have it.
    pub(super) fn add(mut self, name: &str, amount: i64) -> Self {
        let (name, value) = (self.name(name), self.value(AttributeValue::N(amount.to_string())));
        self.adds.push(format!("{name} {value}"));
        self
    }

    /// Removes an attribute.
    pub(super) fn remove(mut self, name: &str) -> Self {
        let name = self.name(name);
        self.removes.push(name);
        self
    }

    /// Adds a condition. In `pattern`, `{}` stands for the name, and `?` for the value. All conditions must hold.
    pub(super) fn when(mut self, pattern: &str, name: &str, value: Option<AttributeValue>) -> Self {
        let condition = self.condition(pattern, name, value);
        self.conditions.push(condition);
        self
    }

    /// Requires that an attribute has the value that was read, in any form.
    pub(super) fn if_unchanged(self, name: &str, form: &Form) -> Self {
        match form {
            Form::Absent => self.when("attribute_not_exists({})", name, None),
            Form::Number(value) => self.when("{} = ?", name, Some(AttributeValue::N(value.clone()))),
            Form::Text(value) => self.when("{} = ?", name, Some(AttributeValue::S(value.clone()))),
            Form::Other(code) => self.when("attribute_type({}, ?)", name, Some(AttributeValue::S((*code).to_owned()))),
        }
    }

    /// Requires that at least one case holds. Each case is a conjunction of parts as in [`Self::when`].
    pub(super) fn when_any(mut self, cases: Vec<Vec<(&str, &str, Option<AttributeValue>)>>) -> Self {
        let cases: Vec<String> = cases
            .into_iter()
            .map(|parts| {
                let parts: Vec<String> =
                    parts.into_iter().map(|(pattern, name, value)| self.condition(pattern, name, value)).collect();
                format!("({})", parts.join(" AND "))
            })
            .collect();
        // DynamoDB refuses redundant parentheses, which a single case would have.
        self.conditions.push(if cases.len() == 1 { cases.join("") } else { format!("({})", cases.join(" OR ")) });
        self
    }

    /// Requires that the attempt still holds the task: the fence of all writes of an attempt.
    pub(super) fn fence(self, attempt: AttemptNumber) -> Self {
        self.when("{} = ?", STATE, Some(AttributeValue::S(State::Running.as_str().to_owned()))).when(
            "{} = ?",
            ATTEMPT,
            Some(AttributeValue::N(attempt.to_string())),
        )
    }

    fn condition(&mut self, pattern: &str, name: &str, value: Option<AttributeValue>) -> String {
        let mut condition = pattern.replace("{}", &self.name(name));
        if let Some(value) = value {
            condition = condition.replace('?', &self.value(value));
        }
        condition
    }

    fn name(&mut self, name: &str) -> String {
        let placeholder = format!("#{name}");
        self.names.insert(placeholder.clone(), name.to_owned());
        placeholder
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    /// Adds the expression to a call.
    pub(super) fn on(&self, update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
        update
            .update_expression(self.update())
            .set_condition_expression(self.condition_text())
            .set_expression_attribute_names(self.names())
            .set_expression_attribute_values(self.values())
    }

    /// Returns the update expression.
    pub(super) fn update(&self) -> String {
        [("SET", &self.sets), ("ADD", &self.adds), ("REMOVE", &self.removes)]
            .iter()
            .filter(|(_, parts)| !parts.is_empty())
            .map(|(verb, parts)| format!("{verb} {}", parts.join(", ")))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Returns the condition expression, if there is one.
    pub(super) fn condition_text(&self) -> Option<String> {
        (!self.conditions.is_empty()).then(|| self.conditions.join(" AND "))
    }

    /// Returns the names, for `ExpressionAttributeNames`.
    pub(super) fn names(&self) -> Option<HashMap<String, String>> {
        (!self.names.is_empty()).then(|| self.names.clone())
    }

    /// Returns the values, for `ExpressionAttributeValues`. DynamoDB refuses an empty map.
    pub(super) fn values(&self) -> Option<HashMap<String, AttributeValue>> {
        (!self.values.is_empty()).then(|| self.values.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_one_expression() {
        let text = |s: &str| AttributeValue::S(s.to_owned());
        let expression = Expression::default()
            .set("verdict", text("ok"))
            .add("beat", 1)
            .remove("checkpoint")
            .fence(AttemptNumber(3))
            .when_any(vec![vec![("attribute_not_exists({})", "x", None)], vec![("{} < ?", "x", Some(text("1")))]]);

        assert_eq!(expression.update(), "SET #verdict = :v0 ADD #beat :v1 REMOVE #checkpoint");
        assert_eq!(
            expression.condition_text().unwrap(),
            "#state = :v2 AND #attempt = :v3 AND ((attribute_not_exists(#x)) OR (#x < :v4))"
        );
        assert_eq!(expression.values().unwrap()[":v3"], AttributeValue::N("3".to_owned()));
        assert_eq!(expression.names().unwrap()["#state"], "state");
    }
}
