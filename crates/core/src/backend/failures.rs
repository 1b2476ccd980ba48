//! The classification of failures. An error code and an operation determine the scope of a failure, whether it is
//! transient, the hint, and the exit code. `docs/FAILURES.md` documents the same table.
//!
//! [`ANSWERS`] maps error codes to kinds; [`NATURES`] maps kinds to consequences. In both, the first matching row
//! applies. A code without a row is classified by its HTTP status, and its scope is at most the task: the smallest
//! scope that is certainly affected.

/// The class of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The credential chain found no credentials, or invalid ones.
    NoCredentials,
    /// The credentials have expired. The role's next ones will be valid.
    Expired,
    /// The machine's clock is wrong: the service refuses the time of the signature.
    Clock,
    /// The service refused: the identity is not permitted to do this.
    AccessDenied,
    /// The KMS key that encrypts an object, a bucket, a table or a topic is disabled, deleted or not permitted.
    KeyUnusable,
    /// The object is archived and must be restored before it can be read.
    Archived,
    /// The resource is in another region, or no region is set.
    WrongRegion,
    /// The table does not exist.
    NoTable,
    /// The table's key differs from the expected key.
    TableKey,
    /// The bucket does not exist.
    NoBucket,
    /// The object, topic, or instance does not exist.
    NotFound,
    /// A condition of the call did not hold; nothing was changed.
    Precondition,
    /// Another transaction used the same items.
    Conflict,
    /// Too many requests.
    Throttled,
    /// The service failed (5xx). It may have applied the request.
    Unavailable,
    /// There was no connection, or it was interrupted. The request may have been applied.
    Unreachable,
    /// The received data differs from the sent data: a checksum or a length is wrong.
    Corrupt,
    /// The local cloud's disk is full.
    DiskFull,
    /// S3 cannot store the object: its key or its size is invalid.
    NotStorable,
    /// The request is invalid; a repetition fails again.
    Invalid,
    /// EC2 refuses a launch because of its template, types or subnets.
    Refused,
}

impl Kind {
    /// All kinds, for tables and tests.
    pub const ALL: [Self; 21] = [
        Self::NoCredentials,
        Self::Expired,
        Self::Clock,
        Self::AccessDenied,
        Self::KeyUnusable,
        Self::Archived,
        Self::WrongRegion,
        Self::NoTable,
        Self::TableKey,
        Self::NoBucket,
        Self::NotFound,
        Self::Precondition,
        Self::Conflict,
        Self::Throttled,
        Self::Unavailable,
        Self::Unreachable,
        Self::Corrupt,
        Self::DiskFull,
        Self::NotStorable,
        Self::Invalid,
        Self::Refused,
    ];
}

/// The scope that a failure certainly affects. It determines the reaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The task: it fails or, if the failure is transient, is released. The node continues.
    Task,
    /// The machine: the task is released, and the node stops.
    Machine,
    /// The deployment: a permission, a bucket, a table. The node stops and prints the hint.
    Deployment,
}

/// The calls that a row applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum On {
    /// All calls.
    Any,
    /// Reading one object.
    Read,
    /// Writing one object.
    Write,
    /// Publishing a message.
    Publish,
}

impl On {
    fn covers(self, operation: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Read => matches!(operation, "GetObject" | "HeadObject"),
            Self::Write => {
                matches!(operation, "PutObject" | "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload")
            }
            Self::Publish => operation == "Publish",
        }
    }
}

/// A row of the table of answers: error codes, an optional part of the message, and their kind.
#[derive(Debug)]
pub(super) struct Answer {
    /// Error codes; with `*` at the end, a prefix.
    codes: &'static [&'static str],
    /// A text that the message must contain, in any case; empty: no condition.
    says: &'static str,
    kind: Kind,
}

const fn answer(codes: &'static [&'static str], says: &'static str, kind: Kind) -> Answer {
    Answer { codes, says, kind }
}

/// Error codes for expired credentials. EC2 uses `RequestExpired` for these and for a wrong clock.
const EXPIRED: &[&str] = &["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"];
/// EC2's error code for a request that is too old, because of the clock or of the credentials.
const REQUEST_EXPIRED: &str = "RequestExpired";

/// The error codes and their kinds.
///
/// Sources: "Common errors" in each service's API reference; for S3 "List of error codes"; for EC2 "Error codes for the
/// Amazon EC2 API". KMS errors have the prefix `KMS.` in S3, and `KMS` in SNS.
pub(super) const ANSWERS: &[Answer] = &[
    answer(
        &[
            "ConditionalCheckFailedException",
            "PreconditionFailed",
            "ConditionalRequestConflict",
            "IdempotentParameterMismatch",
        ],
        "",
        Kind::Precondition,
    ),
    answer(&["TransactionConflictException", "TransactionInProgressException", "OperationAborted"], "", Kind::Conflict),
    answer(&["TransactionCanceledException"], "TransactionConflict", Kind::Conflict),
    answer(&["TransactionCanceledException"], "ThrottlingError", Kind::Throttled),
    answer(&["TransactionCanceledException"], "ProvisionedThroughputExceeded", Kind::Throttled),
    answer(
        &[
            "ThrottlingException",
            "Throttling",
            "ThrottledException",
            "RequestThrottled",
            "RequestThrottledException",
            "EC2ThrottledException",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "PriorRequestNotComplete",
            "SlowDown",
            "ProvisionedThroughputExceededException",
            "LimitExceededException",
            "TooManyRequestsException",
            "KMS.ThrottlingException",
            "KMSThrottling",
            "KMSThrottlingException",
        ],
        "",
        Kind::Throttled,
    ),
    answer(
        &[
            "KMS.KMSInternalException",
            "KMS.InternalException",
            "KMS.DependencyTimeoutException",
            "KMS.KeyUnavailableException",
        ],
        "",
        Kind::Unavailable,
    ),
    answer(&["KMS*"], "", Kind::KeyUnusable),
    answer(&["AccessDenied", "AccessDeniedException"], "kms:", Kind::KeyUnusable),
    answer(&["AccessDenied", "AccessDeniedException"], "KMS key", Kind::KeyUnusable),
    answer(&["InvalidObjectState"], "", Kind::Archived),
    answer(&["RequestTimeTooSkewed", "RequestInTheFuture", REQUEST_EXPIRED], "", Kind::Clock),
    answer(&["InvalidSignatureException", "SignatureDoesNotMatch"], "Signature expired", Kind::Clock),
    answer(&["InvalidSignatureException", "SignatureDoesNotMatch"], "Signature not yet current", Kind::Clock),
    answer(EXPIRED, "", Kind::Expired),
    answer(
        &[
            "UnrecognizedClientException",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidClientTokenId",
            "AuthFailure",
            "InvalidToken",
            "InvalidSignatureException",
            "MissingAuthenticationToken",
        ],
        "",
        Kind::NoCredentials,
    ),
    answer(
        &[
            "AccessDenied",
            "AccessDeniedException",
            "UnauthorizedOperation",
            "AuthorizationError",
            "AuthorizationErrorException",
            "OptInRequired",
            "AllAccessDisabled",
        ],
        "",
        Kind::AccessDenied,
    ),
    answer(
        &["PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"],
        "",
        Kind::WrongRegion,
    ),
    answer(&["InsufficientStorage"], "", Kind::DiskFull),
    answer(&["NoSuchBucket", "InvalidBucketName"], "", Kind::NoBucket),
    answer(&["ResourceNotFoundException"], "", Kind::NoTable),
    answer(&["ValidationException"], "does not match the schema", Kind::TableKey),
    answer(&["ValidationException"], "ssing the key", Kind::TableKey),
    answer(&["KeyTooLongError", "KeyTooLong", "InvalidURI", "EntityTooLarge"], "", Kind::NotStorable),
    answer(
        &[
            "InvalidParameterValue",
            "InvalidInstanceType",
            "InvalidFleetConfiguration",
            "InvalidFleetConfig",
            "Unsupported",
            "UnsupportedOperation",
            "InvalidSubnetID.NotFound",
            "InvalidSubnetId.NotFound",
            "InvalidAMIID.NotFound",
            "InvalidSecurityGroupID.NotFound",
            "InvalidLaunchTemplate*",
        ],
        "",
        Kind::Refused,
    ),
    answer(
        &["NoSuchKey", "NotFound", "NotFoundException", "NoSuchUpload", "InvalidInstanceID.NotFound"],
        "",
        Kind::NotFound,
    ),
    answer(
        &[
            "BadDigest",
            "InvalidDigest",
            "XAmzContentChecksumMismatch",
            "XAmzContentSHA256Mismatch",
            "IncompleteBody",
            // The part does not exist any more, or its checksum differs from the stored one.
            "InvalidPart",
            "InvalidPartOrder",
        ],
        "",
        Kind::Corrupt,
    ),
    answer(&["RequestTimeout", "RequestTimeoutException"], "", Kind::Unreachable),
];

/// Classifies an answer by its error code, its message, and its HTTP status.
pub(super) fn kind_of_answer(status: u16, code: &str, message: &str) -> Kind {
    let message = message.to_ascii_lowercase();
    let fits = |answer: &&Answer| {
        let is_code = answer.codes.iter().any(|known| match known.strip_suffix('*') {
            Some(beginning) => code.starts_with(beginning),
            None => code == *known,
        });
        is_code && message.contains(&answer.says.to_ascii_lowercase())
    };
    ANSWERS.iter().find(fits).map_or_else(|| kind_of_status(status), |answer| answer.kind)
}

/// Classifies an answer without a code, such as the answer to a HEAD request, by its status.
const fn kind_of_status(status: u16) -> Kind {
    match status {
        301 | 307 => Kind::WrongRegion,
        401 | 403 => Kind::AccessDenied,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        412 => Kind::Precondition,
        429 => Kind::Throttled,
        500..=599 => Kind::Unavailable,
        // A successful answer that cannot be parsed: the request may have been applied.
        200..=299 => Kind::Unreachable,
        _ => Kind::Invalid,
    }
}

/// Returns whether a refusal may mean expired credentials: by its code or, for a HEAD request, by status 400, which S3
/// returns in this case.
pub(super) fn may_be_expired(status: u16, is_head: bool, body: &[u8]) -> bool {
    if !(400..500).contains(&status) {
        return false;
    }
    let body = String::from_utf8_lossy(body);
    let has_code = EXPIRED.iter().chain([&REQUEST_EXPIRED]).any(|code| body.contains(code));
    has_code || is_head && status == 400
}

/// A row of the table of kinds: the consequences of a failure.
#[derive(Debug)]
pub struct Nature {
    pub(super) kind: Kind,
    pub(super) on: On,
    /// The scope.
    pub scope: Scope,
    /// Whether the same call may succeed later.
    pub is_transient: bool,
    /// The program's exit code.
    pub exit: u8,
    /// The hint, with the placeholders `{operation}` and `{resource}`.
    pub hint: &'static str,
}

const fn nature(kind: Kind, on: On, scope: Scope, is_transient: bool, exit: u8, hint: &'static str) -> Nature {
    Nature { kind, on, scope, is_transient, exit, hint }
}

const CREDENTIALS: &str = "on EC2 give the instance a profile with a role; on your computer run `aws configure` or set \
     AWS_PROFILE; if they have expired, log in again";
const CONTENT: &str = "check the content of {resource}: lighthpc cannot process it";
const REGION: &str = "set AWS_REGION to the region of the tables and buckets; to stay on this machine, use --local";
const OUTAGE: &str = "try again; if the error persists, check the network, the region, and AWS_ENDPOINT_URL";

/// The consequences of each kind of failure. The last row of each kind applies to any call.
pub(super) const NATURES: &[Nature] = &[
    nature(Kind::NoCredentials, On::Any, Scope::Deployment, false, 10, CREDENTIALS),
    nature(Kind::Expired, On::Any, Scope::Machine, true, 10, CREDENTIALS),
    nature(
        Kind::Clock,
        On::Any,
        Scope::Machine,
        true,
        29,
        "synchronize this machine's clock with chrony or systemd-timesyncd (Amazon Time Sync: 169.254.169.123); if it \
         is correct, the credentials have expired",
    ),
    nature(
        Kind::AccessDenied,
        On::Read,
        Scope::Task,
        false,
        11,
        "allow s3:GetObject on {resource} in the role's policy, and check the bucket's policy; then redrive the task",
    ),
    nature(
        Kind::AccessDenied,
        On::Any,
        Scope::Deployment,
        false,
        11,
        "allow {operation} on {resource} in the role's policy",
    ),
    nature(
        Kind::KeyUnusable,
        On::Read,
        Scope::Task,
        false,
        28,
        "enable the KMS key that {resource} is encrypted with, and allow kms:Decrypt with it in the role's and the \
         key's policy; then redrive the task",
    ),
    nature(
        Kind::KeyUnusable,
        On::Any,
        Scope::Deployment,
        false,
        11,
        "enable the KMS key of {resource}, and allow kms:GenerateDataKey and kms:Decrypt with it in the role's and the \
         key's policy",
    ),
    nature(
        Kind::Archived,
        On::Any,
        Scope::Task,
        false,
        28,
        "{resource} is archived: restore it with `aws s3api restore-object`, wait until this is complete, then redrive \
         the task",
    ),
    nature(Kind::WrongRegion, On::Read, Scope::Task, false, 12, REGION),
    nature(Kind::WrongRegion, On::Any, Scope::Deployment, false, 12, REGION),
    nature(
        Kind::NoTable,
        On::Any,
        Scope::Deployment,
        false,
        13,
        "create {resource}, set another one with --tasks-table or --missions-table, or set AWS_REGION to its region",
    ),
    nature(
        Kind::TableKey,
        On::Any,
        Scope::Deployment,
        false,
        15,
        "use a tasks table with the partition key srcFilename (S), and a missions table with timePush (S), both \
         without a sort key",
    ),
    nature(
        Kind::NoBucket,
        On::Read,
        Scope::Task,
        false,
        14,
        "create {resource}, or set another one with --source-bucket or bucketname in the task's row; then redrive \
         the task",
    ),
    nature(
        Kind::NoBucket,
        On::Any,
        Scope::Deployment,
        false,
        14,
        "create {resource}, or set another one with --source-bucket or --result-bucket",
    ),
    nature(
        Kind::NotFound,
        On::Publish,
        Scope::Deployment,
        false,
        14,
        "create {resource}, or set another one with --topic-arn; the results are safe, and the next node or sweep \
         sends the notification",
    ),
    // An upload that was aborted, or an object that another process changes at the same time.
    nature(Kind::NotFound, On::Write, Scope::Task, true, 1, CONTENT),
    nature(Kind::Precondition, On::Write, Scope::Task, true, 1, CONTENT),
    nature(Kind::NotFound, On::Any, Scope::Task, false, 1, CONTENT),
    nature(Kind::Precondition, On::Any, Scope::Task, false, 1, CONTENT),
    nature(Kind::Conflict, On::Any, Scope::Task, true, 40, OUTAGE),
    nature(Kind::Throttled, On::Any, Scope::Machine, true, 40, OUTAGE),
    nature(Kind::Unavailable, On::Any, Scope::Machine, true, 40, OUTAGE),
    nature(Kind::Unreachable, On::Any, Scope::Machine, true, 40, OUTAGE),
    nature(Kind::Corrupt, On::Any, Scope::Task, true, 1, CONTENT),
    nature(
        Kind::DiskFull,
        On::Any,
        Scope::Machine,
        false,
        18,
        "free some space, or use a larger disk: a larger volume or --work-dir on a node, --local=DIR on this computer",
    ),
    nature(
        Kind::NotStorable,
        On::Any,
        Scope::Task,
        false,
        20,
        "S3 stores keys of at most 1,024 bytes and objects of at most 48.8 TiB (5 TiB in some regions): shorten the \
         names in the result, or split it",
    ),
    nature(Kind::Invalid, On::Any, Scope::Task, false, 1, CONTENT),
    nature(
        Kind::Refused,
        On::Any,
        Scope::Deployment,
        false,
        26,
        "check the launch template and its version, the instance types (the region must offer them), and the subnets",
    ),
];

/// Returns the consequences of a failure of this kind in this operation.
pub(super) fn nature_of(kind: Kind, operation: &str) -> &'static Nature {
    let fits = |nature: &&Nature| nature.kind == kind && nature.on.covers(operation);
    NATURES.iter().find(fits).expect("each kind has a row for any call")
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::*;
    use Scope::*;

    /// Status, code, message, operation; kind, scope, whether it is transient, exit code.
    type Row = (u16, &'static str, &'static str, &'static str, Kind, Scope, bool, u8);

    const ROWS: &[Row] = &[
        // Inputs: one object says nothing of the next.
        (
            403,
            "InvalidObjectState",
            "The operation is not valid for the object's storage class",
            "GetObject",
            Archived,
            Task,
            false,
            28,
        ),
        (400, "KMS.DisabledException", "arn:… is disabled.", "GetObject", KeyUnusable, Task, false, 28),
        (400, "KMS.NotFoundException", "Key 'arn:…' does not exist", "GetObject", KeyUnusable, Task, false, 28),
        (400, "KMS.KMSInvalidStateException", "arn:… is pending deletion.", "HeadObject", KeyUnusable, Task, false, 28),
        (
            403,
            "AccessDenied",
            "User: … is not authorized to perform: kms:Decrypt on …",
            "GetObject",
            KeyUnusable,
            Task,
            false,
            28,
        ),
        (403, "AccessDenied", "Access Denied", "GetObject", AccessDenied, Task, false, 11),
        (403, "", "", "HeadObject", AccessDenied, Task, false, 11),
        (404, "NoSuchBucket", "", "GetObject", NoBucket, Task, false, 14),
        (301, "PermanentRedirect", "", "GetObject", WrongRegion, Task, false, 12),
        (301, "", "", "HeadObject", WrongRegion, Task, false, 12),
        (400, "", "", "HeadObject", Invalid, Task, false, 1),
        (
            400,
            "InvalidRequest",
            "The object was stored using a form of Server Side Encryption.",
            "GetObject",
            Invalid,
            Task,
            false,
            1,
        ),
        (404, "NoSuchKey", "", "GetObject", NotFound, Task, false, 1),
        (404, "", "", "HeadObject", NotFound, Task, false, 1),
        // Results: what a put is refused for is everybody's, but for its name and its size.
        (403, "AccessDenied", "Access Denied", "PutObject", AccessDenied, Deployment, false, 11),
        (
            403,
            "AccessDenied",
            "… not authorized to perform: kms:GenerateDataKey …",
            "PutObject",
            KeyUnusable,
            Deployment,
            false,
            11,
        ),
        (400, "KMS.DisabledException", "", "CreateMultipartUpload", KeyUnusable, Deployment, false, 11),
        (404, "NoSuchBucket", "", "PutObject", NoBucket, Deployment, false, 14),
        (400, "KeyTooLongError", "Your key is too long", "PutObject", NotStorable, Task, false, 20),
        (400, "InvalidURI", "", "PutObject", NotStorable, Task, false, 20),
        (400, "EntityTooLarge", "", "CompleteMultipartUpload", NotStorable, Task, false, 20),
        (400, "BadDigest", "", "UploadPart", Corrupt, Task, true, 1),
        (400, "InvalidPart", "", "CompleteMultipartUpload", Corrupt, Task, true, 1),
        (400, "InvalidPartOrder", "", "CompleteMultipartUpload", Corrupt, Task, true, 1),
        (400, "XAmzContentSHA256Mismatch", "", "PutObject", Corrupt, Task, true, 1),
        (412, "PreconditionFailed", "", "PutObject", Precondition, Task, true, 1),
        (409, "ConditionalRequestConflict", "", "PutObject", Precondition, Task, true, 1),
        (412, "PreconditionFailed", "", "GetObject", Precondition, Task, false, 1),
        (400, "ConditionalCheckFailedException", "", "UpdateItem", Precondition, Task, false, 1),
        (404, "NoSuchUpload", "", "UploadPart", NotFound, Task, true, 1),
        (507, "InsufficientStorage", "", "PutObject", DiskFull, Machine, false, 18),
        // Time.
        (
            403,
            "RequestTimeTooSkewed",
            "The difference between the request time and …",
            "PutObject",
            Clock,
            Machine,
            true,
            29,
        ),
        (
            400,
            "InvalidSignatureException",
            "Signature expired: 2026… is now earlier than 2026…",
            "UpdateItem",
            Clock,
            Machine,
            true,
            29,
        ),
        (400, "InvalidSignatureException", "Signature not yet current: 2026…", "UpdateItem", Clock, Machine, true, 29),
        (
            403,
            "SignatureDoesNotMatch",
            "Signature expired: 2026… is now earlier than …",
            "Publish",
            Clock,
            Machine,
            true,
            29,
        ),
        (400, "RequestExpired", "Request has expired.", "TerminateInstances", Clock, Machine, true, 29),
        // Credentials.
        (
            403,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match",
            "PutObject",
            NoCredentials,
            Deployment,
            false,
            10,
        ),
        (
            400,
            "InvalidSignatureException",
            "The request signature we calculated …",
            "UpdateItem",
            NoCredentials,
            Deployment,
            false,
            10,
        ),
        (403, "InvalidAccessKeyId", "", "HeadObject", NoCredentials, Deployment, false, 10),
        (400, "UnrecognizedClientException", "", "UpdateItem", NoCredentials, Deployment, false, 10),
        (401, "AuthFailure", "", "DescribeTags", NoCredentials, Deployment, false, 10),
        (400, "ExpiredToken", "The provided token has expired.", "GetObject", Expired, Machine, true, 10),
        (400, "ExpiredTokenException", "", "UpdateItem", Expired, Machine, true, 10),
        (400, "TokenRefreshRequired", "", "PutObject", Expired, Machine, true, 10),
        // Rights and resources.
        (
            400,
            "AccessDeniedException",
            "… not authorized to perform: dynamodb:UpdateItem …",
            "UpdateItem",
            AccessDenied,
            Deployment,
            false,
            11,
        ),
        (
            400,
            "AccessDeniedException",
            "The KMS key is not accessible",
            "UpdateItem",
            KeyUnusable,
            Deployment,
            false,
            11,
        ),
        (403, "UnauthorizedOperation", "", "TerminateInstances", AccessDenied, Deployment, false, 11),
        (403, "AuthorizationError", "", "Publish", AccessDenied, Deployment, false, 11),
        (400, "KMSDisabled", "", "Publish", KeyUnusable, Deployment, false, 11),
        (400, "ResourceNotFoundException", "", "UpdateItem", NoTable, Deployment, false, 13),
        (
            400,
            "ValidationException",
            "The provided key element does not match the schema",
            "GetItem",
            TableKey,
            Deployment,
            false,
            15,
        ),
        (
            400,
            "ValidationException",
            "Item size to update has exceeded the maximum allowed size",
            "UpdateItem",
            Invalid,
            Task,
            false,
            1,
        ),
        (404, "NotFound", "Topic does not exist", "Publish", NotFound, Deployment, false, 14),
        (301, "PermanentRedirect", "", "PutObject", WrongRegion, Deployment, false, 12),
        (400, "AuthorizationHeaderMalformed", "", "HeadBucket", WrongRegion, Deployment, false, 12),
        (400, "InvalidLaunchTemplateId.NotFound", "", "CreateFleet", Refused, Deployment, false, 26),
        (400, "InvalidInstanceID.NotFound", "", "DescribeInstances", NotFound, Task, false, 1),
        // What passes.
        (503, "SlowDown", "", "PutObject", Throttled, Machine, true, 40),
        (400, "KMS.ThrottlingException", "", "GetObject", Throttled, Machine, true, 40),
        (400, "KMSThrottling", "", "Publish", Throttled, Machine, true, 40),
        (400, "KMS.KMSInternalException", "", "GetObject", Unavailable, Machine, true, 40),
        (400, "ThrottlingException", "", "UpdateItem", Throttled, Machine, true, 40),
        (503, "RequestLimitExceeded", "", "CreateFleet", Throttled, Machine, true, 40),
        (400, "ProvisionedThroughputExceededException", "", "UpdateItem", Throttled, Machine, true, 40),
        (400, "RequestTimeout", "", "PutObject", Unreachable, Machine, true, 40),
        (200, "", "", "CompleteMultipartUpload", Unreachable, Machine, true, 40),
        (500, "InternalError", "", "CompleteMultipartUpload", Unavailable, Machine, true, 40),
        (500, "InternalServerError", "", "UpdateItem", Unavailable, Machine, true, 40),
        (
            400,
            "TransactionCanceledException",
            "reasons [TransactionConflict, None]",
            "TransactWriteItems",
            Conflict,
            Task,
            true,
            40,
        ),
        (
            400,
            "TransactionCanceledException",
            "reasons [None, ThrottlingError]",
            "TransactWriteItems",
            Throttled,
            Machine,
            true,
            40,
        ),
        (409, "OperationAborted", "", "PutObject", Conflict, Task, true, 40),
        // What nobody has classified is at most the task's.
        (400, "SomethingNew", "", "GetObject", Invalid, Task, false, 1),
        (418, "SomethingNew", "", "UpdateItem", Invalid, Task, false, 1),
        (403, "SomethingNew", "", "GetObject", AccessDenied, Task, false, 11),
        (503, "SomethingNew", "", "GetObject", Unavailable, Machine, true, 40),
    ];

    #[test]
    fn each_answer_has_its_kind_scope_and_exit_code() {
        for &(status, code, message, operation, kind, scope, is_transient, exit) in ROWS {
            let context = format!("{status} {code} {message} in {operation}");
            let found = kind_of_answer(status, code, message);
            assert_eq!(found, kind, "{context}");
            let nature = nature_of(found, operation);
            assert_eq!((nature.scope, nature.is_transient, nature.exit), (scope, is_transient, exit), "{context}");
        }
    }

    #[test]
    fn every_code_of_the_table_is_reached_and_every_kind_has_a_row() {
        for answer in ANSWERS {
            for code in answer.codes {
                let code = code.trim_end_matches('*');
                assert_eq!(kind_of_answer(400, code, answer.says), answer.kind, "{code} {}", answer.says);
            }
        }
        for kind in Kind::ALL {
            assert!(NATURES.iter().any(|nature| nature.kind == kind && nature.on == On::Any), "{kind:?}");
            let tested = ROWS.iter().any(|row| row.4 == kind);
            assert!(tested, "{kind:?} has no test");
        }
        for nature in NATURES {
            assert!(!nature.hint.is_empty() && !nature.hint.ends_with('.'), "{nature:?}");
        }
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../../docs/FAILURES.md");
        for code in ANSWERS.iter().flat_map(|answer| answer.codes) {
            assert!(page.contains(&format!("`{}", code.trim_end_matches('*'))), "{code} is not in docs/FAILURES.md");
        }
        for exit in NATURES.iter().map(|nature| nature.exit) {
            assert!(
                include_str!("../../../../docs/exit-codes.md").contains(&format!("\n| {exit} |")),
                "{exit} is not listed"
            );
        }
    }

    #[test]
    fn only_a_refusal_for_its_time_asks_for_new_credentials() {
        let body = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>").into_bytes();
        for code in ["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"] {
            assert!(may_be_expired(400, false, &body(code)), "{code}");
        }
        assert!(may_be_expired(400, true, b""), "S3 says no more of a HEAD");
        assert!(!may_be_expired(403, true, b"") && !may_be_expired(400, false, b""));
        assert!(
            !may_be_expired(403, false, &body("AccessDenied")) && !may_be_expired(500, false, &body("ExpiredToken"))
        );
    }
}
