//! Errors of service calls, classified by what a caller can do about them.
//!
//! The SDK has one error type per operation. Callers need five answers: whether the same call may succeed later
//! ([`CloudError::is_retryable`]), whether it may have been applied ([`CloudError::is_ambiguous`]), what it affects
//! ([`CloudError::scope`]), the exit code, and the hint. The table in `failures` has all of them.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

pub use super::failures::{Kind, Nature, Scope};
use super::failures::{kind_of_answer, nature_of};

/// A failed call to a service.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {resource}")]
pub struct CloudError {
    /// The class of the failure.
    pub kind: Kind,
    /// The API operation, such as `UpdateItem`.
    pub operation: &'static str,
    /// The table, bucket and key, topic, or instance.
    pub resource: String,
    /// The error of the service.
    #[source]
    pub source: Box<dyn StdError + Send + Sync>,
}

/// The error code and message of a service.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServiceMessage(pub String);

impl CloudError {
    /// Creates an error that this program detected itself.
    pub fn new(kind: Kind, operation: &'static str, resource: impl Into<String>, said: impl Into<String>) -> Self {
        Self { kind, operation, resource: resource.into(), source: Box::new(ServiceMessage(said.into())) }
    }

    /// Classifies an SDK error.
    pub fn sdk<E>(operation: &'static str, resource: impl Into<String>, error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let kind = kind_of(&error);
        let source: Box<dyn StdError + Send + Sync> = match &error {
            SdkError::ServiceError(context) => {
                Box::new(ServiceMessage(words_of(context.err(), context.raw().status().as_u16())))
            }
            _ => Box::new(ServiceMessage(error_chain(&error))),
        };
        Self { kind, operation, resource: resource.into(), source }
    }

    /// Returns the row of the table for this failure.
    #[must_use]
    pub fn nature(&self) -> &'static Nature {
        nature_of(self.kind, self.operation)
    }

    /// Returns whether the same call may succeed later. The SDK has already retried it a few times.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.nature().is_transient
    }

    /// Returns whether the failed call may have been applied. Such a write is read back before it is repeated.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Unreachable)
    }

    /// Returns the scope that the failure certainly affects.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.nature().scope
    }

    /// Returns the hint.
    #[must_use]
    pub fn hint(&self) -> String {
        // The resource comes last, because it is untrusted text and may contain braces.
        self.nature().hint.replace("{operation}", self.operation).replace("{resource}", &self.resource)
    }

    /// Returns whether the service sent neither a code nor a message. The answer to a HEAD request has neither.
    pub(super) fn is_without_words(&self) -> bool {
        self.source.to_string().starts_with("HTTP ")
    }
}

/// Converts the answer to a dry run. EC2 returns `DryRunOperation` if it would have executed the request.
pub(super) fn dry_run<T>(answer: Result<T, CloudError>) -> Result<(), CloudError> {
    match answer {
        Err(error) if error.source.to_string().starts_with("DryRunOperation") => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Ok(()),
    }
}

/// Formats `CODE: message (HTTP status)` without the missing parts.
fn words_of<E: ProvideErrorMetadata>(error: &E, status: u16) -> String {
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => format!("{code} (HTTP {status})"),
        (None, Some(message)) => format!("{message} (HTTP {status})"),
        (None, None) => format!("HTTP {status}"),
    }
}

/// Returns the texts of an error and of its causes, joined by colons. A text that an earlier one contains is left out.
#[must_use]
pub fn error_chain(error: &dyn StdError) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !texts.iter().any(|earlier| earlier.contains(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    texts.join(": ")
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

/// Classifies a call without an answer: either the request was not sent, or the connection failed.
fn kind_of_silence(error: &(dyn StdError + 'static)) -> Kind {
    if chain(error).any(<dyn StdError + 'static>::is::<CredentialsError>) {
        return Kind::NoCredentials;
    }
    let words = error_chain(error);
    // The SDK has no types for these three failures, only their messages.
    if words.contains("identity cache") || words.contains("no providers in chain provided credentials") {
        return Kind::NoCredentials;
    }
    if words.contains("egion must be set") || words.contains("Missing Region") {
        return Kind::WrongRegion;
    }
    let dispatched = words.contains("dispatch failure");
    if dispatched { Kind::Unreachable } else { Kind::Invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The SDK's errors repeat the text of their causes.
    #[test]
    fn an_error_chain_has_each_text_once() {
        let cause = || CloudError::new(Kind::Invalid, "GetItem", "table t", "ValidationException: no");
        assert_eq!(error_chain(&cause()), "GetItem on table t: ValidationException: no");
        let outer = std::io::Error::other(cause());
        assert_eq!(error_chain(&outer), "GetItem on table t: ValidationException: no");
        assert_eq!(error_chain(&std::io::Error::other("alone")), "alone");
    }

    #[test]
    fn only_an_answer_that_may_be_lost_is_ambiguous() {
        let ambiguous = |kind| CloudError::new(kind, "Op", "r", "").is_ambiguous();
        assert!(ambiguous(Kind::Unavailable) && ambiguous(Kind::Unreachable));
        assert!(!ambiguous(Kind::Throttled) && !ambiguous(Kind::Precondition) && !ambiguous(Kind::Conflict));
    }
}
