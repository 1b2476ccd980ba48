//! The workload's log, from the node's disk to the result bucket: at the end of an attempt, and every minute while the
//! workload runs, so that a machine that vanishes leaves all but its last minute.

use std::time::Duration;

use super::Node;
use crate::backend::ledger::Fence;
use crate::backend::store::{Mark, uri};
use crate::backend::{Backend, error_chain};
use crate::domain::ids::{AttemptNumber, SrcId};
use crate::domain::keys::log_key;
use crate::workload::WorkloadEnv;

/// Uploads the whole log as it is now, and returns where it is. Its key is the attempt's own; another deployment that
/// shares the bucket may have the same key, and its log is not overwritten. A failure is only logged.
pub(super) async fn save(node: &Node, env: &WorkloadEnv, fence: &Fence, limit: Duration) -> Option<String> {
    let bucket = node.settings.result_bucket.as_deref()?;
    let log = read(env).await;
    if log.is_empty() {
        return None;
    }
    let key = log_key(&fence.src, fence.attempt);
    let mark = Mark::of_attempt(node.backend.ledger.tables(), fence);
    let put = tokio::time::timeout(limit, node.backend.store.put_own(&mark, bucket, &key, log)).await;
    match put {
        Ok(Ok(_)) => return Some(uri(bucket, &key)),
        Ok(Err(error)) => tracing::warn!("the log was not saved: {}", error_chain(&error)),
        Err(_) => tracing::warn!("the log was not saved within {limit:?}"),
    }
    None
}

/// Returns where the log will be, if there is anything to save.
pub(super) async fn uri_if_any(node: &Node, env: &WorkloadEnv, fence: &Fence) -> Option<String> {
    let bucket = node.settings.result_bucket.as_deref()?;
    (!read(env).await.is_empty()).then(|| uri(bucket, &log_key(&fence.src, fence.attempt)))
}

/// Saves the log every minute, if it has grown. Never ends; may be dropped at any point.
pub(super) async fn save_periodically(node: &Node, env: &WorkloadEnv, fence: &Fence) {
    let mut saved_bytes = 0;
    loop {
        tokio::time::sleep(node.settings.log_every).await;
        let bytes = read(env).await.len();
        if bytes != saved_bytes && save(node, env, fence, node.stopping.write_limit()).await.is_some() {
            saved_bytes = bytes;
        }
    }
}

/// Reads the log as it is now, off this thread: it has up to 6 MiB. A log that cannot be read is empty.
pub(super) async fn read(env: &WorkloadEnv) -> Vec<u8> {
    let env = env.clone();
    let log = lighthpc_runtime::blocking(move || env.log()).await;
    log.map_err(std::io::Error::other).flatten().unwrap_or_default()
}

/// How long to search for the log of a lost attempt: one round trip, which must not delay a drain.
const FIND_TIMEOUT: Duration = Duration::from_secs(2);

/// Returns where the log of a lost attempt is, if it left one: its node saves it while the workload runs.
pub(crate) async fn find_lost(
    backend: &Backend,
    bucket: Option<&str>,
    src: &SrcId,
    attempt: AttemptNumber,
) -> Option<String> {
    let (bucket, key) = (bucket?, log_key(src, attempt));
    let found = match tokio::time::timeout(FIND_TIMEOUT, backend.store.head(bucket, &key)).await {
        Ok(Ok(found)) => found?,
        Ok(Err(error)) => {
            tracing::info!("whether {key} exists is not known: {}", error_chain(&error));
            return None;
        }
        Err(_) => {
            tracing::info!("whether {key} exists is not known after {FIND_TIMEOUT:?}");
            return None;
        }
    };
    // Another deployment's log of the same name is not this task's.
    let mark = Mark::of_task(backend.ledger.tables(), src);
    (!found.is_of_another(&mark)).then(|| uri(bucket, &key))
}
