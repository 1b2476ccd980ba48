//! The history of attempts in a task's row.

use crate::backend::{CloudError, Kind, error_chain};
use crate::domain::task::PastAttempt;

/// Returns whether the row may have no space for the history that a commit contained. The commit is more important, and
/// is repeated without the history.
pub(super) fn takes_no_history(error: &CloudError, history: &[PastAttempt]) -> bool {
    let is_so = error.kind == Kind::Invalid && !history.is_empty();
    if is_so {
        tracing::warn!("the history of the attempt could not be written: {}", error_chain(&error));
    }
    is_so
}
