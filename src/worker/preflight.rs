//! What is wrong with the deployment is found before the first workload, not after it: once for all slots of a node,
//! and with `run --local` for all of its nodes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::OnceCell;

use super::retry::retry_transient;
use super::{Node, NodeError};
use crate::backend::Kind;
use crate::backend::store::StoreError;
use crate::domain::ids::SrcId;
use crate::domain::keys::result_key;

/// How many inputs a node must find refused, one after another and before it could read any, to take that for the
/// deployment's fault. A HEAD is refused without a reason: one refusal may be the object's.
const REFUSED_MAX: u32 = 3;
/// A key that no input has: where a bucket says that there is no such object, its objects may be read in general.
const PROBE_KEY: &str = "lighthpc-probe/~";

/// What has been found of the deployment. Only what is well is remembered: a failure may be over by the next task.
#[derive(Debug, Default)]
pub struct Preflight {
    results: OnceCell<()>,
    sources: OnceCell<()>,
    work_dir: OnceCell<()>,
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
    fn note_refused(&self) -> bool {
        let refused = self.refused.fetch_add(1, Ordering::SeqCst) + 1;
        refused >= REFUSED_MAX && !self.has_read.load(Ordering::SeqCst)
    }
}

/// Checks that the work folder can have folders, that the result bucket may be written, by an upload that is begun and
/// aborted at the task's own key, and that the source bucket is there, if one is set. May be dropped at any point.
pub(super) async fn check(node: &Node, bucket: &str, src: &SrcId) -> Result<(), NodeError> {
    let (store, preflight, limit) = (&node.backend.store, &node.settings.preflight, node.settings.max_idle);
    let key = result_key(src);
    let work_dir = &node.settings.work_dir;
    // First, for it asks nobody.
    let tried = preflight.work_dir.get_or_try_init(|| async {
        let folder = work_dir.clone();
        let tried = tokio::task::spawn_blocking(move || crate::workload::try_folder(&folder)).await;
        tried.map_err(std::io::Error::other).flatten()
    });
    let disk = |source| NodeError::Disk { doing: "trying the work folder", path: work_dir.clone(), source };
    tried.await.map_err(disk)?;
    let sources = async {
        let Some(source) = &node.settings.source_bucket else { return Ok(()) };
        let check = || preflight.sources.get_or_try_init(|| store.check_bucket(source));
        retry_transient(limit, check).await.map(drop).map_err(NodeError::cloud("looking at the source bucket"))
    };
    let results = async {
        let check = || preflight.results.get_or_try_init(|| store.check_write(bucket, &key));
        retry_transient(limit, check).await.map(drop).map_err(NodeError::cloud("checking that results can be written"))
    };
    tokio::try_join!(sources, results).map(drop)
}

/// Says whose fault it is that an input cannot be read: the object's, unless the first inputs of this node are all
/// refused.
pub(super) async fn blame(node: &Node, bucket: &str, error: StoreError) -> NodeError {
    let StoreError::Cloud(refusal) = &error else { return of_task(error) };
    let is_refusal = match refusal.kind {
        Kind::NoBucket | Kind::WrongRegion | Kind::KeyUnusable => true,
        // A bucket whose other objects may be read has said no to this one.
        Kind::AccessDenied => !matches!(node.backend.store.head(bucket, PROBE_KEY).await, Ok(None)),
        _ => false,
    };
    if is_refusal && node.settings.preflight.note_refused() {
        return NodeError::InputsRefused { source: error };
    }
    of_task(error)
}

fn of_task(source: StoreError) -> NodeError {
    NodeError::Store { doing: "downloading the input", source }
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
