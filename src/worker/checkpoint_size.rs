//! The size of a checkpoint, and its limits.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::backend::store::total_bytes;
use crate::domain::budget::SizeLimits;
use crate::workload::WorkloadEnv;
use crate::workload::tree::{self, EntryKind};

/// Returns how many bytes a save of everything would upload now: none if it would be refused.
pub(super) async fn bytes_to_save(env: &WorkloadEnv, sizes: SizeLimits) -> u64 {
    let dir = env.checkpoint();
    let found = lighthpc_runtime::blocking(move || tree::walk(&dir, sizes.checkpoint_files)).await;
    let found = found.map_err(io::Error::other).flatten().unwrap_or_default();
    Some(bytes_of(&found)).filter(|&bytes| bytes <= sizes.checkpoint_bytes).unwrap_or(0)
}

/// Returns the bytes of all files, holes included. A few sparse files of 7 EiB are more than 64 bits hold.
pub(super) fn bytes_of(found: &BTreeMap<Vec<u8>, EntryKind>) -> u64 {
    let bytes = |seen: &EntryKind| if let EntryKind::File { bytes, .. } = seen { *bytes } else { 0 };
    found.values().map(bytes).fold(0, u64::saturating_add)
}

/// Checks that a checkpoint is no larger than its limit, or than its disk: holes come back as zeros, so a sparse file
/// that is larger than the disk could be saved, but never restored.
pub(super) fn check_bytes(dir: &Path, bytes: u64, sizes: SizeLimits) -> io::Result<()> {
    let most = sizes.checkpoint_bytes;
    if bytes > most {
        let refusal = format!("it has {bytes} bytes, holes included, more than the {most} of --max-checkpoint-bytes");
        return Err(io::Error::other(refusal));
    }
    let disk = total_bytes(dir)?;
    if bytes > disk {
        let refusal =
            format!("it has {bytes} bytes, holes included, and could not be restored on a disk of {disk} bytes");
        return Err(io::Error::other(refusal));
    }
    Ok(())
}
