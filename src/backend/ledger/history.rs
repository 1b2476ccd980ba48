//! The history of attempts in a task's row.

use crate::backend::{CloudError, Kind, error_chain};
use crate::domain::task::PastAttempt;

/// Returns whether a row has no room for the history that was to be written with a task's end, or may have none: the end counts
/// more, and is written without it.
pub(super) fn takes_no_history(error: &CloudError, history: &[PastAttempt]) -> bool {
    let is_so = error.kind == Kind::Invalid && !history.is_empty();
    if is_so {
        tracing::warn!("the history of an attempt is not written: {}", error_chain(error));
    }
    is_so
}
