//! The history of attempts in a task's row.

use aws_sdk_dynamodb::types::AttributeValue;

use super::item::{Row, number, text};
use super::key::Item;
use crate::backend::{CloudError, Kind, error_chain};
use crate::domain::ids::AttemptNumber;
use crate::domain::task::PastAttempt;
use crate::domain::verdict::Verdict;

/// Returns whether the row may have no space for the history that a commit contained. The commit is more important, and
/// is repeated without the history.
pub(super) fn takes_no_history(error: &CloudError, history: &[PastAttempt]) -> bool {
    let is_so = error.kind == Kind::Invalid && !history.is_empty();
    if is_so {
        tracing::warn!("the history of the attempt could not be written: {}", error_chain(&error));
    }
    is_so
}

/// Parses an entry of `history`; `None` if another program wrote something else.
pub(super) fn past_attempt(value: &AttributeValue) -> Option<PastAttempt> {
    let row = Row(value.as_m().ok()?);
    Some(PastAttempt {
        attempt: AttemptNumber(row.number("attempt")?),
        instance: row.text("instance").unwrap_or_default(),
        started: row.text("started").unwrap_or_default(),
        ended: row.text("ended").unwrap_or_default(),
        verdict: row.text("verdict").as_deref().and_then(Verdict::parse)?,
        exit_code: row.signed("exitCode").and_then(|code| i32::try_from(code).ok()),
        log: row.text("log"),
    })
}

/// Returns the value of `history`.
pub(super) fn history(attempts: &[PastAttempt]) -> AttributeValue {
    let entry = |past: &PastAttempt| {
        let mut map = Item::from([
            ("attempt".to_owned(), number(past.attempt.0)),
            ("instance".to_owned(), text(&past.instance)),
            ("started".to_owned(), text(&past.started)),
            ("ended".to_owned(), text(&past.ended)),
            ("verdict".to_owned(), text(past.verdict.as_str())),
        ]);
        if let Some(code) = past.exit_code {
            map.insert("exitCode".to_owned(), AttributeValue::N(code.to_string()));
        }
        if let Some(log) = &past.log {
            map.insert("log".to_owned(), text(log));
        }
        AttributeValue::M(map)
    };
    AttributeValue::L(attempts.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_reads_back() {
        let past = PastAttempt {
            attempt: AttemptNumber(2),
            instance: "i-1".to_owned(),
            started: "2026-01-01T00:00:00Z".to_owned(),
            ended: "2026-01-01T00:01:00Z".to_owned(),
            verdict: Verdict::AppError,
            exit_code: Some(-9),
            log: None,
        };
        let value = history(std::slice::from_ref(&past));
        assert_eq!(value.as_l().unwrap().iter().filter_map(past_attempt).collect::<Vec<_>>(), [past]);
    }
}
