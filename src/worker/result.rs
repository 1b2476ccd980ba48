//! Step 5: the result, from the workload's output to the bucket.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::execute::{Stop, Trouble};
use super::insist::insist;
use super::{Node, NodeError};
use crate::backend::ledger::{Fence, Outcome};
use crate::backend::store::{Put, StoreError, Stored, uri};
use crate::backend::{CloudError, Kind};
use crate::domain::keys::{INDEX_NAME, result_key};
use crate::domain::verdict::Verdict;
use crate::workload::Contract;

/// The most files of a directory result. A commit waits for all of them, and each is a request or more.
const FILES_MAX: usize = 100_000;

/// What the workload left in `LIGHTHPC_OUTPUT`.
#[derive(Debug, PartialEq, Eq)]
enum Output {
    Nothing,
    File(PathBuf),
    Files(BTreeMap<String, PathBuf>),
}

/// Uploads the workload's result under the fence.
///
/// A folder goes up file by file under `rslt_<src>/`; last goes an index of them, which is the result's `ETag` and tells
/// the attempt's own files from what a dead attempt may have left.
pub(super) async fn upload(node: &Node, contract: &Contract, fence: &Fence, bucket: &str) -> Result<Outcome, Stop> {
    let key = result_key(&contract.src);
    let (ledger, store, limit) = (&node.backend.ledger, &node.backend.store, node.settings.lease);
    match find(contract).await.map_err(trouble)? {
        Output::Nothing => {
            let error = NodeError::NoResult { output: contract.output() };
            Err(Trouble { exit_code: Some(0), ..Trouble::new(Verdict::NoResult, false, error) }.into())
        }
        Output::File(file) => {
            let put = insist(limit, || store.put_result(ledger, fence, bucket, &key, &file)).await.map_err(trouble)?;
            let Put::Stored(Stored { etag, bytes }) = put else { return Err(Stop::LeaseLost) };
            Ok(Outcome::Done { result: uri(bucket, &key), etag, bytes })
        }
        Output::Files(files) => {
            let prefix = format!("{key}/");
            // A file that is there already is known by its mark, so a repeat costs a look at each.
            let stored = insist(limit, || store.put_results(ledger, fence, bucket, &prefix, files.clone()));
            let stored = stored.await.map_err(trouble)?;
            let Some(stored) = stored else { return Err(Stop::LeaseLost) };
            let index = contract.folder().join("index");
            tokio::fs::write(&index, index_of(&stored, fence))
                .await
                .map_err(|e| trouble(disk("writing", &index, e)))?;
            let index_key = format!("{prefix}{INDEX_NAME}");
            let put = insist(limit, || store.put_result(ledger, fence, bucket, &index_key, &index));
            let put = put.await.map_err(trouble)?;
            let Put::Stored(Stored { etag, .. }) = put else { return Err(Stop::LeaseLost) };
            let bytes = stored.values().map(|file| file.bytes).sum();
            Ok(Outcome::Done { result: uri(bucket, &prefix), etag, bytes })
        }
    }
}

fn index_of(stored: &BTreeMap<String, Stored>, fence: &Fence) -> String {
    let files: BTreeMap<&str, _> = stored
        .iter()
        .map(|(name, file)| (name.as_str(), serde_json::json!({ "bytes": file.bytes, "etag": file.etag })))
        .collect();
    serde_json::json!({ "srcFilename": fence.src.as_str(), "attempt": fence.attempt.0, "files": files }).to_string()
}

fn trouble(error: StoreError) -> Trouble {
    let (verdict, may_pass) = match &error {
        StoreError::DiskFull { .. } | StoreError::Cloud(CloudError { kind: Kind::DiskFull, .. }) => {
            (Verdict::DiskFull, true)
        }
        StoreError::BadResult { .. } => (Verdict::AppError, false),
        StoreError::Cloud(_) | StoreError::Changed { .. } | StoreError::Disk { .. } => (Verdict::Infra, true),
    };
    Trouble::new(verdict, may_pass, NodeError::Store { doing: "uploading the result", source: error })
}

fn disk(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Disk { doing, path: path.to_owned(), source }
}

fn bad(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::BadResult { path: path.to_owned(), reason: reason.into() }
}

/// Returns how many bytes the result has, as far as it can be read.
pub(super) fn bytes(contract: &Contract) -> u64 {
    let size = |path: &PathBuf| path.metadata().map_or(0, |meta| meta.len());
    match find_blocking(&contract.output(), &contract.workspace()) {
        Ok(Output::File(file)) => size(&file),
        Ok(Output::Files(files)) => files.values().map(size).sum(),
        Ok(Output::Nothing) | Err(_) => 0,
    }
}

async fn find(contract: &Contract) -> Result<Output, StoreError> {
    let (output, folder) = (contract.output(), contract.workspace());
    let found = tokio::task::spawn_blocking(move || find_blocking(&output, &folder)).await;
    found.map_err(|panic| disk("reading", &contract.output(), io::Error::other(panic)))?
}

/// Looks at the output. The workload may have made it a link; it must still lead into the attempt's own folder, for the
/// node may read what the workload may not.
fn find_blocking(output: &Path, folder: &Path) -> Result<Output, StoreError> {
    let real = match output.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Output::Nothing),
        Err(error) => return Err(disk("reading", output, error)),
    };
    let folder = folder.canonicalize().map_err(|e| disk("reading", folder, e))?;
    if !real.starts_with(&folder) {
        return Err(bad(output, format!("it leads to {}, outside the workload's folder", real.display())));
    }
    let kind = real.metadata().map_err(|e| disk("reading", &real, e))?.file_type();
    if kind.is_file() {
        return Ok(Output::File(real));
    }
    if !kind.is_dir() {
        return Err(bad(output, "it is neither a file nor a folder"));
    }
    let mut files = BTreeMap::new();
    walk(&real, "", &mut files)?;
    Ok(if files.is_empty() { Output::Nothing } else { Output::Files(files) })
}

fn walk(folder: &Path, prefix: &str, files: &mut BTreeMap<String, PathBuf>) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(folder).map_err(|e| disk("reading", folder, e))? {
        let entry = entry.map_err(|e| disk("reading", folder, e))?;
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| bad(&path, "its name is not UTF-8, as S3 keys are"))?;
        let key = format!("{prefix}{name}");
        let kind = entry.file_type().map_err(|e| disk("reading", &path, e))?;
        if key == INDEX_NAME {
            return Err(bad(&path, "this name is taken: lighthpc writes its own index there"));
        } else if kind.is_dir() {
            walk(&path, &format!("{key}/"), files)?;
        } else if kind.is_file() {
            files.insert(key, path);
        } else {
            return Err(bad(&path, "it is neither a file nor a folder (links in a result folder are not followed)"));
        }
        if files.len() > FILES_MAX {
            return Err(bad(folder, format!("the result has more than {FILES_MAX} files: pack them")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn contract() -> (tempfile::TempDir, Contract) {
        let dir = tempfile::tempdir().unwrap();
        let src = crate::domain::ids::SrcId::new("a").unwrap();
        let contract = Contract::prepare(dir.path(), "t", src, None, crate::domain::ids::Attempt(1)).unwrap();
        (dir, contract)
    }

    #[test]
    fn no_output_and_an_empty_folder_are_no_result() {
        let (_dir, contract) = contract();
        assert_eq!(find_blocking(&contract.output(), &contract.workspace()).unwrap(), Output::Nothing);
        std::fs::create_dir(contract.output()).unwrap();
        assert_eq!(find_blocking(&contract.output(), &contract.workspace()).unwrap(), Output::Nothing);
    }

    #[test]
    fn a_link_may_only_lead_into_the_attempts_folder() {
        let (_dir, contract) = contract();
        symlink("/etc/hostname", contract.output()).unwrap();
        assert!(matches!(find_blocking(&contract.output(), &contract.workspace()), Err(StoreError::BadResult { .. })));

        std::fs::remove_file(contract.output()).unwrap();
        let real = contract.scratch().join("out");
        std::fs::write(&real, "x").unwrap();
        symlink(&real, contract.output()).unwrap();
        assert!(matches!(find_blocking(&contract.output(), &contract.workspace()), Ok(Output::File(_))));
    }

    #[test]
    fn a_folder_is_all_its_files() {
        let (_dir, contract) = contract();
        std::fs::create_dir_all(contract.output().join("b/c")).unwrap();
        std::fs::write(contract.output().join("a.txt"), "1").unwrap();
        std::fs::write(contract.output().join("b/c/ü d"), "2").unwrap();
        let Output::Files(files) = find_blocking(&contract.output(), &contract.workspace()).unwrap() else { panic!() };
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.txt", "b/c/ü d"]);

        std::fs::write(contract.output().join(INDEX_NAME), "x").unwrap();
        assert!(matches!(find_blocking(&contract.output(), &contract.workspace()), Err(StoreError::BadResult { .. })));
    }
}
