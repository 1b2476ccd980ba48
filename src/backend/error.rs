//! What went wrong with a service, sorted by what a caller can do about it.
//!
//! The SDK has an error type per operation; the worker has four questions: may the same call pass later
//! ([`CloudError::is_retryable`]), may it have been applied ([`CloudError::is_ambiguous`]), which exit code is
//! it, and which hint helps. All four are answered from one [`Kind`], found here and nowhere else.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

/// What a caller can do about a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The credential chain found nothing, or what it found does not work.
    NoCredentials,
    /// The credentials have run out; the role's next ones will do.
    Expired,
    /// The service refused: the identity may not do this.
    AccessDenied,
    /// The resource is in another region, or the region is not set.
    WrongRegion,
    /// The table does not exist here.
    NoTable,
    /// The table's key is not the expected one.
    TableKey,
    /// The bucket does not exist.
    NoBucket,
    /// The object, topic, or instance does not exist.
    NotFound,
    /// A condition of the call did not hold; the world is as it was.
    Precondition,
    /// Another transaction was at the same items.
    Conflict,
    /// Too many requests.
    Throttled,
    /// The service failed (5xx). It may have applied the call.
    Unavailable,
    /// No connection, or it broke. It may have been applied.
    Unreachable,
    /// What arrived is not what was sent: a checksum or a length is off.
    Corrupt,
    /// The local cloud's disk is full.
    DiskFull,
    /// The request itself is not acceptable; the same again fails again.
    Invalid,
    /// EC2 does not accept a launch: its template, its types, or its subnets.
    Refused,
}

/// A failed call to a service.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {resource}")]
pub struct CloudError {
    /// What a caller can do.
    pub kind: Kind,
    /// The API operation, `UpdateItem` for example.
    pub operation: &'static str,
    /// The table, bucket and key, topic, or instance.
    pub resource: String,
    /// The service's own words.
    #[source]
    pub source: Box<dyn StdError + Send + Sync>,
}

/// A service's answer in its own words: its error code and message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

impl CloudError {
    /// Makes an error of our own finding.
    pub fn new(kind: Kind, operation: &'static str, resource: impl Into<String>, said: impl Into<String>) -> Self {
        Self { kind, operation, resource: resource.into(), source: Box::new(Said(said.into())) }
    }

    /// Sorts an SDK error.
    pub fn sdk<E>(operation: &'static str, resource: impl Into<String>, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let kind = kind_of(&error);
        let source: Box<dyn StdError + Send + Sync> = match &error {
            SdkError::ServiceError(context) => Box::new(Said(words_of(context.err(), context.raw().status().as_u16()))),
            _ => Box::new(Said(chain_of(&error))),
        };
        Self { kind, operation, resource: resource.into(), source }
    }

    /// Returns whether the same call may succeed later. The SDK has already tried a few times by then.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            Kind::Conflict | Kind::Throttled | Kind::Unavailable | Kind::Unreachable | Kind::Corrupt | Kind::Expired
        )
    }

    /// Returns whether the call may have been applied although it failed. Such a write is re-read, not repeated blindly.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Unreachable)
    }
}

/// Reads the answer to a dry run: EC2 says `DryRunOperation` if it would have done it.
pub(super) fn dry_run<T>(answer: Result<T, CloudError>) -> Result<(), CloudError> {
    match answer {
        Err(error) if error.source.to_string().starts_with("DryRunOperation") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// `CODE: message (HTTP status)`, leaving out what the service did not say.
fn words_of<E: ProvideErrorMetadata>(error: &E, status: u16) -> String {
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => format!("{code} (HTTP {status})"),
        (None, Some(message)) => format!("{message} (HTTP {status})"),
        (None, None) => format!("HTTP {status}"),
    }
}

/// The messages of an error and its sources, each once.
pub(super) fn chain_of(error: &(dyn StdError + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    for link in chain(error) {
        let text = link.to_string();
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
    }
    words.join(": ")
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&link| link.source())
}

fn kind_of<E>(error: &SdkError<E, HttpResponse>) -> Kind
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    match error {
        SdkError::ServiceError(context) => {
            let error = context.err();
            let code = error.code().unwrap_or("");
            kind_of_answer(context.raw().status().as_u16(), code, error.message().unwrap_or(""))
        }
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => kind_of_silence(error),
        _ => Kind::Unreachable,
    }
}

/// No answer came: either no request went out, or the connection failed.
fn kind_of_silence(error: &(dyn StdError + 'static)) -> Kind {
    if chain(error).any(<dyn StdError + 'static>::is::<CredentialsError>) {
        return Kind::NoCredentials;
    }
    let words = chain_of(error);
    // The SDK has no types for these three; its texts are the only sign.
    if words.contains("identity cache") || words.contains("no providers in chain provided credentials") {
        return Kind::NoCredentials;
    }
    if words.contains("egion must be set") || words.contains("Missing Region") {
        return Kind::WrongRegion;
    }
    let dispatched = words.contains("dispatch failure");
    if dispatched { Kind::Unreachable } else { Kind::Invalid }
}

/// Sorts an answer by HTTP status and AWS error code.
///
/// Codes: "Common errors" of each service's API reference; for S3 "List of error codes".
fn kind_of_answer(status: u16, code: &str, message: &str) -> Kind {
    match code {
        "ConditionalCheckFailedException" | "PreconditionFailed" | "ConditionalRequestConflict" => Kind::Precondition,
        "TransactionConflictException" | "TransactionInProgressException" | "OperationAborted" => Kind::Conflict,
        "TransactionCanceledException" if message.contains("TransactionConflict") => Kind::Conflict,
        "TransactionCanceledException" if message.contains("ThrottlingError") => Kind::Throttled,
        "TransactionCanceledException" if message.contains("ProvisionedThroughputExceeded") => Kind::Throttled,
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "ProvisionedThroughputExceededException"
        | "LimitExceededException"
        | "TooManyRequestsException" => Kind::Throttled,
        "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidClientTokenId"
        | "AuthFailure"
        | "InvalidToken"
        | "InvalidSignatureException"
        | "MissingAuthenticationToken" => Kind::NoCredentials,
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => Kind::Expired,
        "AccessDenied"
        | "AccessDeniedException"
        | "UnauthorizedOperation"
        | "AuthorizationError"
        | "AuthorizationErrorException"
        | "OptInRequired"
        | "AllAccessDisabled" => Kind::AccessDenied,
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            Kind::WrongRegion
        }
        "InsufficientStorage" => Kind::DiskFull,
        "NoSuchBucket" | "InvalidBucketName" => Kind::NoBucket,
        "ResourceNotFoundException" => Kind::NoTable,
        "ValidationException" if message.contains("does not match the schema") || message.contains("ssing the key") => {
            Kind::TableKey
        }
        "InvalidParameterValue"
        | "InvalidInstanceType"
        | "InvalidFleetConfiguration"
        | "InvalidFleetConfig"
        | "Unsupported"
        | "UnsupportedOperation"
        | "InvalidSubnetID.NotFound"
        | "InvalidSubnetId.NotFound"
        | "InvalidAMIID.NotFound"
        | "InvalidSecurityGroupID.NotFound" => Kind::Refused,
        code if code.starts_with("InvalidLaunchTemplate") => Kind::Refused,
        "NoSuchKey" | "NotFound" | "NotFoundException" | "NoSuchUpload" | "InvalidInstanceID.NotFound" => {
            Kind::NotFound
        }
        "BadDigest" | "InvalidDigest" | "XAmzContentChecksumMismatch" | "IncompleteBody" => Kind::Corrupt,
        "RequestTimeout" | "RequestTimeoutException" => Kind::Unreachable,
        _ => kind_of_status(status),
    }
}

/// A HEAD has no body, so no code: only the status speaks.
const fn kind_of_status(status: u16) -> Kind {
    match status {
        301 | 307 => Kind::WrongRegion,
        401 | 403 => Kind::AccessDenied,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        412 => Kind::Precondition,
        429 => Kind::Throttled,
        500..=599 => Kind::Unavailable,
        // An answer of success that cannot be read: it was applied, or it was not.
        200..=299 => Kind::Unreachable,
        _ => Kind::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_what_can_be_done() {
        for (status, code, message, kind) in [
            (400, "ConditionalCheckFailedException", "", Kind::Precondition),
            (412, "PreconditionFailed", "", Kind::Precondition),
            (400, "TransactionCanceledException", "reasons [TransactionConflict, None]", Kind::Conflict),
            (400, "ThrottlingException", "", Kind::Throttled),
            (503, "SlowDown", "", Kind::Throttled),
            (500, "InternalServerError", "", Kind::Unavailable),
            (400, "ResourceNotFoundException", "Cannot do operations on a non-existent table", Kind::NoTable),
            (400, "ValidationException", "The provided key element does not match the schema", Kind::TableKey),
            (400, "ValidationException", "One of the required keys was not given a value", Kind::Invalid),
            (403, "", "", Kind::AccessDenied),
            (404, "NoSuchBucket", "", Kind::NoBucket),
            (404, "", "", Kind::NotFound),
            (301, "PermanentRedirect", "", Kind::WrongRegion),
            (400, "ExpiredTokenException", "", Kind::Expired),
        ] {
            assert_eq!(kind_of_answer(status, code, message), kind, "{status} {code} {message}");
        }
    }

    #[test]
    fn only_an_answer_that_may_be_lost_is_ambiguous() {
        let ambiguous = |kind| CloudError::new(kind, "Op", "r", "").is_ambiguous();
        assert!(ambiguous(Kind::Unavailable) && ambiguous(Kind::Unreachable));
        assert!(!ambiguous(Kind::Throttled) && !ambiguous(Kind::Precondition) && !ambiguous(Kind::Conflict));
    }
}
