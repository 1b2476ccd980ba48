//! What is known of the deployment. All slots of a node share it, and all nodes of `run --local`, so that each check
//! (`deployment.rs`) is made once, before the first workload.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::OnceCell;

/// Number of refused inputs, before any input could be read, that is taken for a fault of the deployment. S3 refuses a
/// HEAD without a reason, so one refusal may be the object's.
const REFUSED_MAX: u32 = 3;

/// The checks of the deployment that have passed. Failures are not remembered: the next task may not see them.
#[derive(Debug, Default)]
pub struct Preflight {
    pub(super) results: OnceCell<()>,
    pub(super) sources: OnceCell<()>,
    pub(super) work_dir: OnceCell<()>,
    has_read: AtomicBool,
    refused: AtomicU32,
}

impl Preflight {
    /// Returns one whose bucket checks have passed, for the in-process cloud: its buckets are folders that it has just
    /// made, so the checks would prove nothing and cost three calls.
    #[must_use]
    pub fn passed() -> Self {
        Self { results: OnceCell::new_with(Some(())), sources: OnceCell::new_with(Some(())), ..Self::default() }
    }

    /// Notes that an input was read.
    pub(super) fn note_read(&self) {
        self.has_read.store(true, Ordering::SeqCst);
    }

    /// Notes that an input was refused. Returns whether this is now taken for a fault of the deployment.
    pub(super) fn note_refused(&self) -> bool {
        let refused = self.refused.fetch_add(1, Ordering::SeqCst) + 1;
        refused >= REFUSED_MAX && !self.has_read.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_refusals_are_the_deployments_fault_and_later_ones_are_not() {
        let preflight = Preflight::default();
        assert_eq!([(); 4].map(|()| preflight.note_refused()), [false, false, true, true]);

        let preflight = Preflight::default();
        assert!(!preflight.note_refused());
        preflight.note_read();
        assert_eq!([(); 4].map(|()| preflight.note_refused()), [false; 4]);
    }
}
