//! What is wrong with the deployment is found before the first workload, not after it: once for all slots of a node,
//! and with `run --local` for all of its nodes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::OnceCell;

/// How many inputs a node must find refused, one after another and before it could read any, to take that for the
/// deployment's fault. A HEAD is refused without a reason: one refusal may be the object's.
const REFUSED_MAX: u32 = 3;

/// What has been found of the deployment. Only what is well is remembered: a failure may be over by the next task.
#[derive(Debug, Default)]
pub struct Preflight {
    pub(super) results: OnceCell<()>,
    pub(super) sources: OnceCell<()>,
    pub(super) work_dir: OnceCell<()>,
    has_read: AtomicBool,
    refused: AtomicU32,
}

impl Preflight {
    /// Makes one that takes the buckets for well, for a cloud in this process: its buckets are folders that it has just
    /// made, so the checks prove nothing and cost three calls.
    #[must_use]
    pub fn passed() -> Self {
        Self { results: OnceCell::new_with(Some(())), sources: OnceCell::new_with(Some(())), ..Self::default() }
    }

    /// Notes that an input was read.
    pub(super) fn note_read(&self) {
        self.has_read.store(true, Ordering::SeqCst);
    }

    /// Notes that an input was refused. Returns whether that is now taken for the deployment's fault.
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
