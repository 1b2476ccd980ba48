//! The workload's output: what it left in `LIGHTHPC_OUTPUT`, and whether S3 and the limits take it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::backend::store::{OBJECT_BYTES_MAX, StoreError};
use crate::domain::budget::SizeLimits;
use crate::domain::ids::KEY_BYTES_MAX;
use crate::domain::keys::{INDEX_NAME, result_key};
use crate::workload::WorkloadEnv;
use crate::workload::walk::{self, DEPTH_MAX, WalkError, open_top};

/// The most bytes of all names of a folder result: they are in memory twice, and once more in its index. A hundred
/// thousand names of 335 bytes.
const NAMES_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the workload left in `LIGHTHPC_OUTPUT`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Nothing,
    File(PathBuf),
    Files(BTreeMap<String, PathBuf>),
}

/// Returns the size of the result in bytes, as far as it can be read.
pub(super) fn output_bytes(env: &WorkloadEnv) -> u64 {
    let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |meta| meta.len());
    match find_blocking(&env.output(), &env.workspace(), &result_key(&env.src), SizeLimits::default()) {
        Ok(Output::File(file)) => size(&file),
        Ok(Output::Files(files)) => sum(files.values().map(size)),
        Ok(Output::Nothing) | Err(_) => 0,
    }
}

/// Adds sizes up. A few sparse files of 7 EiB are more than 64 bits hold.
pub(super) fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Finds the output, off this thread.
pub(super) async fn find(env: &WorkloadEnv, sizes: SizeLimits) -> Result<Output, StoreError> {
    let (output, folder, key) = (env.output(), env.workspace(), result_key(&env.src));
    let found = lighthpc_runtime::blocking(move || find_blocking(&output, &folder, &key, sizes)).await;
    found.map_err(|panic| disk("reading", &env.output(), io::Error::other(panic)))?
}

/// Finds the output. The workload may have made it a link; it must still lead into the attempt's own folder, because
/// the node may read files that the workload may not. `key` is the result's: S3 must take it, and each file's below it.
/// A result that is too large is found here, before anything is uploaded.
fn find_blocking(output: &Path, folder: &Path, key: &str, sizes: SizeLimits) -> Result<Output, StoreError> {
    let real = match output.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Output::Nothing),
        Err(error) => return Err(disk("reading", output, error)),
    };
    let folder = folder.canonicalize().map_err(|e| disk("reading", folder, e))?;
    if !real.starts_with(&folder) {
        return Err(bad(output, format!("it leads to {}, outside the workload's folder", real.display())));
    }
    let meta = real.metadata().map_err(|e| disk("reading", &real, e))?;
    if meta.is_file() {
        check_bytes(output, meta.len(), sizes)?;
        check(&real, key, meta.len())?;
        return Ok(Output::File(real));
    }
    if !meta.is_dir() {
        return Err(bad(output, "it is neither a file nor a folder"));
    }
    let files = walk(&real, &format!("{key}/"), sizes.result_files)?;
    let names = files.keys().map(String::len).sum::<usize>();
    if names > NAMES_BYTES_MAX {
        let reason = format!("the names of its files have {names} bytes, more than {NAMES_BYTES_MAX} in all");
        return Err(StoreError::TooLarge { path: output.to_owned(), reason });
    }
    let size = |path: &PathBuf| path.symlink_metadata().map_or(0, |meta| meta.len());
    check_bytes(output, sum(files.values().map(size)), sizes)?;
    if !files.is_empty() {
        check(&real, &format!("{key}/{INDEX_NAME}"), 0)?;
    }
    Ok(if files.is_empty() { Output::Nothing } else { Output::Files(files) })
}

/// Checks the size of the whole. A hole of a sparse file counts, for its zeros would go up.
fn check_bytes(output: &Path, bytes: u64, sizes: SizeLimits) -> Result<(), StoreError> {
    let most = sizes.result_bytes;
    if bytes <= most {
        return Ok(());
    }
    let reason = format!("the result has {bytes} bytes, holes included, more than the {most} of --max-result-bytes");
    Err(StoreError::TooLarge { path: output.to_owned(), reason })
}

/// Checks what S3 takes: a key of 1,024 bytes, an object of 48.8 TiB.
fn check(path: &Path, key: &str, bytes: u64) -> Result<(), StoreError> {
    if key.len() > KEY_BYTES_MAX {
        let reason = format!("its key in S3 would have {} bytes, more than {KEY_BYTES_MAX}: {key}", key.len());
        return Err(bad(path, reason));
    }
    if bytes > OBJECT_BYTES_MAX {
        let reason = format!("it has {bytes} bytes, more than the {OBJECT_BYTES_MAX} that S3 takes");
        return Err(StoreError::TooLarge { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Finds the files of a result folder. `prefix` is what their keys begin with.
fn walk(folder: &Path, prefix: &str, files_max: usize) -> Result<BTreeMap<String, PathBuf>, StoreError> {
    let top = open_top(folder).map_err(|error| disk("reading", folder, error.into()))?;
    let too_many = |what: &str| {
        let reason = format!("the result has more than the {files_max} {what} of --max-result-files");
        StoreError::TooLarge { path: folder.to_owned(), reason }
    };
    let (mut files, mut folders) = (BTreeMap::new(), 0);
    let walked = walk::each(&top, DEPTH_MAX, |found| -> Result<(), Halt> {
        let kind = found.kind();
        if kind == FileType::Directory {
            // A folder is nothing in S3, and takes the time of the walk.
            folders += 1;
            return if folders > files_max { Err(too_many("folders").into()) } else { Ok(()) };
        }
        let path = folder.join(OsStr::from_bytes(found.path));
        let name =
            String::from_utf8(found.path.to_vec()).map_err(|_| bad(&path, "its name is not UTF-8, as S3 keys are"))?;
        if name == INDEX_NAME {
            return Err(bad(&path, "this name is taken: lighthpc writes its own index there").into());
        }
        if kind != FileType::RegularFile {
            let reason = "it is neither a file nor a folder (links in a result folder are not followed)";
            return Err(bad(&path, reason).into());
        }
        check(&path, &format!("{prefix}{name}"), u64::try_from(found.meta.st_size).unwrap_or(0))?;
        files.insert(name, path);
        if files.len() > files_max {
            return Err(too_many("files").into());
        }
        Ok(())
    });
    match walked {
        Ok(()) => Ok(files),
        Err(Halt::Refused(error)) => Err(error),
        Err(Halt::Walk(WalkError::System { path, source })) => Err(disk("reading", &folder.join(path), source)),
        Err(Halt::Walk(error)) => Err(bad(folder, error.to_string())),
    }
}

/// Why the walk over a result folder ends early.
enum Halt {
    Walk(WalkError),
    Refused(StoreError),
}

impl From<WalkError> for Halt {
    fn from(error: WalkError) -> Self {
        Self::Walk(error)
    }
}

impl From<StoreError> for Halt {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// Makes an error of the node's own disk.
pub(super) fn disk(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Disk { doing, path: path.to_owned(), source }
}

/// Makes an error of a result that cannot be taken.
pub(super) fn bad(path: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::BadResult { path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn env() -> (tempfile::TempDir, WorkloadEnv) {
        let dir = tempfile::tempdir().unwrap();
        let src = crate::domain::ids::SrcId::new("a").unwrap();
        let env = WorkloadEnv::prepare(dir.path(), "t", src, None, crate::domain::ids::AttemptNumber(1)).unwrap();
        (dir, env)
    }

    #[test]
    fn no_output_and_an_empty_folder_are_no_result() {
        let (_dir, env) = env();
        assert_eq!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap(),
            Output::Nothing
        );
        std::fs::create_dir(env.output()).unwrap();
        assert_eq!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap(),
            Output::Nothing
        );
    }

    #[test]
    fn a_link_may_only_lead_into_the_attempts_folder() {
        let (_dir, env) = env();
        symlink("/etc/hostname", env.output()).unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Err(StoreError::BadResult { .. })
        ));

        std::fs::remove_file(env.output()).unwrap();
        let real = env.scratch().join("out");
        std::fs::write(&real, "x").unwrap();
        symlink(&real, env.output()).unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Ok(Output::File(_))
        ));
    }

    #[test]
    fn a_folder_is_all_its_files() {
        let (_dir, env) = env();
        std::fs::create_dir_all(env.output().join("b/c")).unwrap();
        std::fs::write(env.output().join("a.txt"), "1").unwrap();
        std::fs::write(env.output().join("b/c/ü d"), "2").unwrap();
        let Output::Files(files) =
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()).unwrap()
        else {
            panic!()
        };
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.txt", "b/c/ü d"]);

        std::fs::write(env.output().join(INDEX_NAME), "x").unwrap();
        assert!(matches!(
            find_blocking(&env.output(), &env.workspace(), "rslt_a", SizeLimits::default()),
            Err(StoreError::BadResult { .. })
        ));
    }
}
