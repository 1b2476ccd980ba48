//! The fuzz targets: events, and the bodies of HTTP requests.

use serde_json::{Value, json};

use super::{self as lambda, Event, Parsed, http};
use crate::domain::ids::{KEY_BYTES_MAX, MissionId};

/// Parses a Lambda event. Each record gives exactly one object, or the reason for its refusal.
pub(crate) fn event(bytes: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Value>(bytes) else { return };
    let records = event.get("Records").and_then(Value::as_array).map_or(1, Vec::len);
    let check = |uploads: &[Parsed]| {
        for upload in uploads.iter().flatten() {
            assert!((1..=KEY_BYTES_MAX).contains(&upload.src.as_str().len()), "{upload:?}");
        }
    };
    match lambda::read(&event) {
        Event::Uploads(uploads) => {
            assert_eq!(uploads.len(), records, "{event}");
            check(&uploads);
        }
        Event::Messages(messages) => {
            assert_eq!(messages.len(), records, "{event}");
            for (_, uploads) in &messages {
                check(uploads);
            }
        }
        Event::Http | Event::Instance { .. } | Event::Schedule | Event::Nothing(_) => {}
    }
}

/// Parses the body of a request for a new mission, plain and in base64, and of a request that sets a workload.
pub(crate) fn http(bytes: &[u8]) {
    let encoded = json!({ "body": aws_smithy_types::base64::encode(bytes), "isBase64Encoded": true });
    let decoded = http::body(&encoded).ok();
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert_eq!(decoded, None);
        return;
    };
    assert_eq!(decoded.as_deref(), Some(text));
    assert_eq!(http::body(&json!({ "body": text })).ok().as_deref(), Some(text));
    // The bytes in the place of the base64, too: refused or read, and no more.
    drop(http::body(&json!({ "body": text, "isBase64Encoded": true })));
    drop(http::WorkloadRequest::read(text, &http::Allowed::of_environment()));
    if let Ok(new) = http::read(text) {
        assert!(MissionId::for_a_new_mission(new.id.as_str()).is_ok(), "{new:?}");
        assert!(new.trans_number > 0 && new.nodes.is_none() && new.slots.is_none(), "{new:?}");
    }
}
