//! What a task works on, in its row: `sourceKey`, `sources`, `index`, and `params`.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{self, Row, text};
use crate::domain::ids::KEY_BYTES_MAX;
use crate::domain::value::{Form, integer};
use crate::domain::work::{Inputs, ObjectName, Work};

/// Returns the attributes of a new row.
pub(super) fn attributes(work: &Work) -> impl Iterator<Item = (String, AttributeValue)> {
    let mut attributes = Vec::new();
    match &work.inputs {
        Inputs::Named | Inputs::None => {}
        Inputs::Key(key) => attributes.push((item::SOURCE_KEY, text(key))),
        Inputs::Several(sources) => {
            let sources = sources.iter().map(|source| text(source.uri())).collect();
            attributes.push((item::SOURCES, AttributeValue::L(sources)));
        }
    }
    // Without `sourceKey` and `sources`, a map, even an empty one, says that there is no object.
    if !work.params.is_empty() || work.inputs == Inputs::None {
        let params = work.params.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        attributes.push((item::PARAMS, AttributeValue::M(params)));
    }
    if let Some(index) = work.index {
        attributes.push((item::INDEX_NUMBER, AttributeValue::N(index.to_string())));
    }
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value))
}

/// Reads the attributes. The error says what is wrong with one of them.
pub(super) fn read(row: Row<'_>) -> Result<Work, String> {
    let key = match row.form(item::SOURCE_KEY) {
        Form::Absent => None,
        Form::Text(key) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(key),
        other => return Err(format!("its sourceKey is {}, which is no key of an object", other.shown())),
    };
    let params = params(row)?;
    let inputs = match (key, sources(row)?) {
        (None, None) if params.is_some() => Inputs::None,
        // Another program's `index`, if there is one, is not ours.
        (None, None) => return Ok(Work::default()),
        (Some(key), None) => Inputs::Key(key),
        (None, Some(sources)) => Inputs::Several(sources),
        (Some(_), Some(_)) => return Err("it has both a sourceKey and sources".to_owned()),
    };
    let index = match row.form(item::INDEX_NUMBER) {
        Form::Absent => None,
        Form::Number(number) | Form::Text(number) if integer(&number).is_some() => integer(&number),
        other => return Err(format!("its index is {}, which is no whole number", other.shown())),
    };
    let work = Work { inputs, params: params.unwrap_or_default(), index };
    work.check().map(|()| work)
}

fn sources(row: Row<'_>) -> Result<Option<Vec<ObjectName>>, String> {
    let values = match row.0.get(item::SOURCES) {
        None => return Ok(None),
        Some(AttributeValue::L(values)) if !values.is_empty() => values,
        Some(_) => {
            let form = row.form(item::SOURCES).shown();
            return Err(format!("its sources are {form}, which is no list of s3://BUCKET/KEY"));
        }
    };
    let source = |value: &AttributeValue| value.as_s().ok().and_then(|uri| ObjectName::parse(uri));
    let sources: Option<Vec<ObjectName>> = values.iter().map(source).collect();
    sources.map(Some).ok_or_else(|| "one of its sources is not s3://BUCKET/KEY".to_owned())
}

fn params(row: Row<'_>) -> Result<Option<BTreeMap<String, String>>, String> {
    let values = match row.0.get(item::PARAMS) {
        None => return Ok(None),
        Some(AttributeValue::M(values)) => values,
        Some(_) => return Err(format!("its params are {}, which is no map", row.form(item::PARAMS).shown())),
    };
    let param = |(name, value): (&String, &AttributeValue)| match value {
        AttributeValue::S(value) | AttributeValue::N(value) => Ok((name.clone(), value.clone())),
        _ => Err(format!("the value of its parameter {name} is neither text nor a number")),
    };
    values.iter().map(param).collect::<Result<_, _>>().map(Some)
}
