//! Tests: hostile names and wrong types in events and in the bodies of requests.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{self as lambda, Event, http};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::printable;
use crate::domain::tags;
use crate::hostile_names::names;

/// Returns values of types other than text.
fn other_types() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!([]),
        json!(["a", "b"]),
        json!({}),
        json!({ "key": "a" }),
    ]
}

fn record(key: &Value) -> Value {
    json!({
        "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-01-01T00:00:00.000Z",
        "s3": { "bucket": { "name": "in" }, "object": { "key": key, "size": 3 } },
    })
}

/// Returns the keys of an event's records; `None` for a refused record.
fn keys(event: &Value) -> Vec<Option<String>> {
    match lambda::read(event) {
        Event::Uploads(uploads) => uploads.into_iter().map(|one| one.ok().map(|up| up.src.to_string())).collect(),
        Event::Messages(all) => {
            let uploads = all.into_iter().flat_map(|(_, uploads)| uploads);
            uploads.map(|one| one.ok().map(|up| up.src.to_string())).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_arrives_as_it_is_or_is_refused_and_spoils_no_neighbour() {
    let good = record(&json!("good"));
    for name in names() {
        let expected = SrcId::new(&name).ok().map(|src| src.to_string());
        let encoded = utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string();
        let records = json!({ "Records": [record(&json!(encoded)), good] });
        assert_eq!(keys(&records), [expected.clone(), Some("good".to_owned())], "{name:?}");
        let queued =
            json!({ "Records": [{ "eventSource": "aws:sqs", "messageId": name, "body": records.to_string() }] });
        assert_eq!(keys(&queued), [expected.clone(), Some("good".to_owned())], "{name:?}");
        let bridged = json!({
            "source": "aws.s3", "detail-type": "Object Created", "time": name,
            "detail": { "bucket": { "name": "in" }, "object": { "key": name, "size": name }, "reason": name },
        });
        assert_eq!(keys(&bridged), [expected], "{name:?}");
        // The raw name in the place of an encoded key: parsed or refused.
        keys(&json!({ "Records": [record(&json!(name)), good] }));
    }
    for other in other_types() {
        assert_eq!(keys(&json!({ "Records": [record(&other), good] })), [None, Some("good".to_owned())], "{other}");
        assert_eq!(keys(&json!({ "Records": [good, other] }))[0], Some("good".to_owned()), "{other}");
    }
}

#[test]
fn a_request_makes_a_mission_of_a_fit_id_alone() {
    let allowed = http::Allowed::of_environment();
    for name in names() {
        let body = json!({ "mission": name, "transNumber": 1, "name": name });
        assert_eq!(http::read(&body.to_string()).is_ok(), MissionId::for_a_new_mission(&name).is_ok(), "{name:?}");
        let workload = |field: &str| http::WorkloadRequest::read(&json!({ (field): name }).to_string(), &allowed);
        assert!(workload("exec").is_ok(), "{name:?}");
        drop((workload("nodes"), workload("slots")));
        for field in ["transNumber", "uploads", "bidMode", "maxUnitprice", "maxWaitTime", "onDemandFloor"] {
            let mut body = json!({ "mission": "M", "transNumber": 1 });
            body[field] = json!(name);
            if let Ok(new) = http::read(&body.to_string()) {
                assert!(new.trans_number > 0, "{field} {name:?}: {new:?}");
            }
        }
        drop((http::read(&name), http::body(&json!({ "body": name, "isBase64Encoded": true }))));
    }
    for other in other_types() {
        let body = json!({ "mission": other, "transNumber": 1 });
        assert!(http::read(&body.to_string()).is_err(), "{other}");
        drop((http::read(&other.to_string()), http::body(&other), http::body(&json!({ "body": other }))));
    }
}

#[test]
fn a_tag_can_hold_what_names_a_task_a_mission_or_an_instance() {
    let fits = |value: &str| {
        assert!(
            value.chars().count() <= 256 && !value.contains(char::is_control) && value.trim() == value,
            "{value:?}"
        );
        assert!(!value.to_ascii_lowercase().starts_with("aws:"), "{value:?}");
    };
    let mut seen = std::collections::HashSet::new();
    for name in names() {
        fits(&tags::name_value(&name));
        if let Ok(id) = MissionId::new(&name) {
            fits(&tags::mission_value(&id));
        }
        if let Ok(src) = SrcId::new(&name) {
            fits(&tags::src_value(&src));
            assert!(seen.insert(tags::src_value(&src)), "{name:?}");
        }
    }
}

#[test]
fn whatever_is_printed_is_plain_and_means_the_same() {
    for name in names() {
        let line = printable::one_line(&name);
        assert!(!line.contains(printable::is_unsafe) && line.lines().count() <= 1, "{name:?}");
        let body = json!({ "error": name, "mission": { name.clone(): name } });
        let shown = printable::json(&body.to_string());
        assert!(!shown.contains(printable::is_unsafe), "{name:?}");
        assert_eq!(serde_json::from_str::<Value>(&shown).ok(), Some(body), "{name:?}");
        assert!(!printable::shell(&name).contains(printable::is_unsafe), "{name:?}");
    }
}
