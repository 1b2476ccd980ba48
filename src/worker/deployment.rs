//! Checks of the deployment before the first workload, and whether a refused input is the deployment's fault.

use super::retry::retry_transient;
use super::{Node, NodeError};
use crate::backend::Kind;
use crate::backend::store::StoreError;
use crate::domain::ids::SrcId;
use crate::domain::keys::result_key;

/// A key that no input has. If the bucket answers that there is no such object, its objects can be read in general.
const PROBE_KEY: &str = "lighthpc-probe/~";

/// Checks that folders can be made in the work folder, that the result bucket can be written, and that the source
/// bucket exists, if one is set. The write is checked by an upload that is begun and aborted at the task's own key. May
/// be dropped at any point.
pub(super) async fn check(node: &Node, bucket: &str, src: &SrcId) -> Result<(), NodeError> {
    let (store, preflight, limit) = (&node.backend.store, &node.settings.preflight, node.settings.max_idle);
    let key = result_key(src);
    let work_dir = &node.settings.work_dir;
    // First, because it makes no call.
    let tried = preflight.work_dir.get_or_try_init(|| async {
        let folder = work_dir.clone();
        let tried = lighthpc_runtime::blocking(move || crate::workload::try_folder(&folder)).await;
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

/// Decides whether an input that cannot be read is the object's fault, or the deployment's: the deployment's if the
/// first inputs of this node are all refused.
pub(super) async fn attribute_refusal(node: &Node, bucket: &str, error: StoreError) -> NodeError {
    let StoreError::Cloud(refusal) = &error else { return of_task(error) };
    let is_refusal = match refusal.kind {
        Kind::NoBucket | Kind::WrongRegion | Kind::KeyUnusable => true,
        // If other objects of the bucket can be read, the refusal is this object's.
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
