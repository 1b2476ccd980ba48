//! DynamoDB: the service's JSON protocol in front of `dynoxide`.
//!
//! The engine decides conditions and transactions; `tokens.rs` knows the tokens of transactions. An operation that this
//! file does not name is answered as DynamoDB answers an unknown one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use dynoxide::actions::transact_write_items::{TransactWriteItemsRequest, TransactWriteItemsResponse};
use dynoxide::{Database, DynoxideError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layout::{Layout, OpenError};
use super::lock::locked;
use super::query::reply;
use super::snapshot::Snapshot;
use super::tokens::{Seen, Tokens, digest};

const CONTENT_TYPE: &str = "application/x-amz-json-1.0";
/// The longest token. Source: Amazon DynamoDB API Reference, `TransactWriteItems`.
const TOKEN_LEN_MAX: usize = 36;
const TARGET_PREFIX: &str = "DynamoDB_20120810.";
/// The calls for one item, and the transactions of a few: each takes some tenths of a millisecond.
const BRIEF: [&str; 5] = ["DeleteItem", "GetItem", "PutItem", "TransactWriteItems", "UpdateItem"];

/// The tables.
#[derive(Clone)]
pub(super) struct Dynamo {
    database: Database,
    tokens: Arc<Mutex<Tokens>>,
    /// The copy of the file, removed when the value is dropped.
    _copy: Option<Arc<Snapshot>>,
}

impl Dynamo {
    /// Opens the tables in the layout's file, which two processes can have open at once.
    pub(super) fn open(layout: &Layout) -> Result<Self, OpenError> {
        Self::open_file(&layout.database())
    }

    /// Opens a copy of the tables as of now: the engine cannot open a file without writing beside it.
    pub(super) fn open_copy(layout: &Layout) -> Result<Self, OpenError> {
        let copy = Snapshot::take(&layout.database())?;
        let opened = Self::open_file(&copy.database())?;
        Ok(Self { _copy: Some(Arc::new(copy)), ..opened })
    }

    fn open_file(path: &Path) -> Result<Self, OpenError> {
        let state = |reason: String| OpenError::State { path: path.to_owned(), reason };
        let name = path.to_str().ok_or_else(|| state("the folder's name is not UTF-8".into()))?;
        let database = Database::new(name).map_err(|error| state(error.to_string()))?;
        // The engine opens in WAL mode: a killed process loses no acknowledged write. This call, the only one that
        // the engine's interface has for it, sets `synchronous = NORMAL`: no fsync for each write. That matters only
        // if the machine loses power, and then the objects beside the file are as old.
        database.disable_bulk_loading().map_err(|error| state(error.to_string()))?;
        Ok(Self { database, tokens: Arc::default(), _copy: None })
    }

    /// Opens tables that live as long as the value.
    pub(super) fn in_memory() -> Result<Self, OpenError> {
        let database = Database::memory()
            .map_err(|error| OpenError::State { path: ":memory:".into(), reason: error.to_string() })?;
        Ok(Self { database, tokens: Arc::default(), _copy: None })
    }

    /// Answers one call. A call that has started finishes even if the caller gives up, as a request that has reached AWS
    /// does.
    ///
    /// A call for one item takes less time than the switch to a blocking thread and back. What reads many items runs on
    /// such a thread.
    pub(super) async fn answer(&self, operation: String, body: Bytes) -> http::Response<SdkBody> {
        let is_brief = BRIEF.contains(&operation.as_str());
        let (database, tokens) = (self.database.clone(), self.tokens.clone());
        let call = move || dispatch(&database, &tokens, &operation, &body);
        let outcome = if is_brief {
            catch_unwind(AssertUnwindSafe(call)).map_err(|_| "the engine panicked".to_owned())
        } else {
            lighthpc_runtime::blocking(call).await.map_err(|panic| panic.to_string())
        };
        match outcome {
            Ok(Ok(json)) => reply(200, CONTENT_TYPE, json),
            Ok(Err(DynoxideError::UnsupportedCapability(what))) => {
                error_reply(400, "UnknownOperationException", &format!("the local cloud's DynamoDB has no {what}"))
            }
            Ok(Err(error)) if error.to_string().contains("disk is full") => {
                error_reply(400, "InsufficientStorage", &error.to_string())
            }
            Ok(Err(error)) => reply(error.status_code(), CONTENT_TYPE, error.to_json()),
            Err(panic) => error_reply(500, "InternalServerError", &panic),
        }
    }
}

/// Returns the operation's name from the `X-Amz-Target` header, without the version.
pub(super) fn operation(headers: &http::HeaderMap) -> String {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    target.strip_prefix(TARGET_PREFIX).unwrap_or(target).to_owned()
}

/// Builds an error answer from which the SDK reads the code.
pub(super) fn error_reply(status: u16, code: &str, message: &str) -> http::Response<SdkBody> {
    let body = serde_json::json!({
        "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"),
        "message": message,
    });
    reply(status, CONTENT_TYPE, body.to_string())
}

fn dispatch(db: &Database, tokens: &Mutex<Tokens>, operation: &str, body: &[u8]) -> dynoxide::Result<String> {
    match operation {
        "CreateTable" => run(body, |request| db.create_table(request)),
        // Called only by the tests of this crate, to see that tables survive a restart.
        "ListTables" => run(body, |request| db.list_tables(request)),
        "PutItem" => run(body, |request| db.put_item(request)),
        "GetItem" => run(body, |request| db.get_item(request)),
        "UpdateItem" => run(body, |request| db.update_item(request)),
        "DeleteItem" => run(body, |request| db.delete_item(request)),
        "Query" => run(body, |request| db.query(request)),
        "Scan" => run(body, |request| db.scan(request)),
        "BatchGetItem" => run(body, |request| db.batch_get_item(request)),
        "TransactWriteItems" => run(body, |request| transact(db, tokens, request)),
        other => Err(DynoxideError::UnsupportedCapability(other.to_owned())),
    }
}

/// Applies a transaction, unless one with the same token was applied. A token that DynamoDB would refuse goes on to the
/// engine, which refuses it.
fn transact(
    db: &Database,
    tokens: &Mutex<Tokens>,
    mut request: TransactWriteItemsRequest,
) -> dynoxide::Result<TransactWriteItemsResponse> {
    let is_valid = |token: &mut String| (1..=TOKEN_LEN_MAX).contains(&token.len());
    let Some(token) = request.client_request_token.take_if(is_valid) else { return db.transact_write_items(request) };
    let items = serde_json::to_value(&request.transact_items);
    let digest = digest(&items.map_err(|error| DynoxideError::InternalServerError(error.to_string()))?);
    // Until the transaction has ended: its repetition waits for it.
    let mut tokens = locked(tokens);
    match tokens.look(&token, digest) {
        Seen::Same => Ok(TransactWriteItemsResponse::default()),
        Seen::Other => Err(DynoxideError::IdempotentParameterMismatchException(
            "the token was used with other parameters".to_owned(),
        )),
        Seen::Never => {
            let answer = db.transact_write_items(request)?;
            tokens.note(token, digest);
            Ok(answer)
        }
    }
}

fn run<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    call: impl FnOnce(Q) -> dynoxide::Result<A>,
) -> dynoxide::Result<String> {
    let request = serde_json::from_slice(body).map_err(|error| request_error(&error))?;
    let answer = call(request)?;
    serde_json::to_string(&answer).map_err(|error| DynoxideError::InternalServerError(error.to_string()))
}

/// Classifies a request that the engine's types refused, by the markers that its deserializers put first.
fn request_error(error: &serde_json::Error) -> DynoxideError {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    for marker in ["VALIDATION_REQUEST:", "VALIDATION_AS_READ:", "VALIDATION:"] {
        if let Some(message) = text.strip_prefix(marker) {
            return DynoxideError::ValidationException(message.to_owned());
        }
    }
    for marker in ["SERIALIZATION_AS_READ:", "SERIALIZATION:"] {
        if let Some(message) = text.strip_prefix(marker) {
            return DynoxideError::SerializationException(message.to_owned());
        }
    }
    if text.contains("missing field") || text.contains("AttributeValue") || text.contains("unknown variant") {
        return DynoxideError::ValidationException(text.to_owned());
    }
    DynoxideError::SerializationException(text.to_owned())
}
