//! What a checkpoint is: a list of files, and where each of them is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ids::{Attempt, SrcId};
use super::keys::digest_hex;

/// One saved file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The key it is kept under, perhaps of an earlier save.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its time of change in ns since 1970, by its machine's clock; only ever compared for being the same.
    pub changed_ns: u128,
}

/// A complete checkpoint. It is put after all its files, and named by the task's row after that, so a torn one is never used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files by their path below the checkpoint's folder.
    pub files: BTreeMap<String, Saved>,
}

impl Manifest {
    /// Returns the keys that this has and `newer` has not: they may go once `newer` is the one in use.
    #[must_use]
    pub fn keys_not_in(&self, newer: &Self) -> Vec<String> {
        let used: std::collections::BTreeSet<&str> = newer.files.values().map(|file| file.key.as_str()).collect();
        self.files.values().map(|file| &file.key).filter(|key| !used.contains(key.as_str())).cloned().collect()
    }
}

/// Returns the folder of a task's checkpoints in the result bucket. By a digest: a source key may be as long as keys may be.
#[must_use]
pub fn folder(src: &SrcId) -> String {
    format!("checkpoints/{}/", digest_hex(&[src.as_str()], 32))
}

/// Returns the folder of one save. No two saves share one, so no save touches another's files.
#[must_use]
pub fn save_folder(src: &SrcId, attempt: Attempt, save: u32) -> String {
    format!("{}{attempt}.{save}/", folder(src))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(keys: &[(&str, &str)]) -> Manifest {
        let saved = |key: &str| Saved { key: key.to_owned(), bytes: 1, changed_ns: 1 };
        Manifest { files: keys.iter().map(|(name, key)| ((*name).to_owned(), saved(key))).collect() }
    }

    #[test]
    fn only_what_no_file_needs_any_more_may_go() {
        let old = manifest(&[("a", "1/a"), ("b", "1/b"), ("c", "1/c")]);
        let new = manifest(&[("a", "1/a"), ("b", "2/b")]);
        assert_eq!(old.keys_not_in(&new), ["1/b", "1/c"]);
        assert!(new.keys_not_in(&new).is_empty());
    }
}
