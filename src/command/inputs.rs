//! The input files of a local mission, and the keys they get.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::Failure;
use crate::domain::ids::SrcId;

/// An input file and its key in the source bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) src: SrcId,
    pub(super) file: PathBuf,
}

/// Checks the files and names them: by their file names if these differ, else by their paths below the folder they have
/// in common. A file that is named twice counts once.
pub(super) fn read(files: &[PathBuf]) -> Result<Vec<Input>, Failure> {
    let mut real = Vec::new();
    let mut seen = HashSet::new();
    for file in files {
        let path = check(file)?;
        if seen.insert(path.clone()) {
            real.push(path);
        }
    }
    let mut by_name: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in &real {
        by_name.insert(key_of(path, Path::new("/"), true)?, path.clone());
    }
    let common = common_folder(&real);
    let whole_names = by_name.len() == real.len();
    real.into_iter()
        .map(|file| {
            let key = key_of(&file, &common, whole_names)?;
            let src = SrcId::new(key).map_err(|error| Failure::usage(error, "give the file a shorter name"))?;
            Ok(Input { src, file })
        })
        .collect()
}

fn check(file: &Path) -> Result<PathBuf, Failure> {
    let name = file.display();
    let real = file.canonicalize().map_err(|error| {
        Failure::usage(format!("the input {name} cannot be used: {error}"), "look at its path and its permissions")
    })?;
    if real.is_dir() {
        return Err(Failure::usage(format!("the input {name} is a folder"), format!("name its files: {name}/*")));
    }
    if !real.is_file() {
        return Err(Failure::usage(format!("the input {name} is not a regular file"), "copy it to one"));
    }
    std::fs::File::open(&real).map_err(|error| {
        Failure::usage(format!("the input {name} cannot be read: {error}"), "look at its permissions")
    })?;
    // The name is the user's own, of the link if it is one; the file is the real one.
    std::path::absolute(file).map_err(|error| Failure::usage(format!("{name}: {error}"), "give its whole path"))
}

fn key_of(file: &Path, common: &Path, by_name: bool) -> Result<String, Failure> {
    let part = if by_name { file.file_name().map(Path::new) } else { file.strip_prefix(common).ok() };
    let parts = part.unwrap_or(file).components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_str()),
        _ => None,
    });
    let parts: Option<Vec<&str>> = parts.collect();
    parts.map(|parts| parts.join("/")).ok_or_else(|| {
        Failure::usage(format!("the name of {} is not UTF-8, as S3 keys are", file.display()), "rename it")
    })
}

fn common_folder(files: &[PathBuf]) -> PathBuf {
    let mut folders = files.iter().filter_map(|file| file.parent());
    let Some(first) = folders.next() else { return PathBuf::new() };
    folders.fold(first.to_owned(), |common, folder| {
        common.components().zip(folder.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dir: &Path, names: &[&str]) -> Vec<String> {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
        read(&files).unwrap().into_iter().map(|input| input.src.to_string()).collect()
    }

    #[test]
    fn files_are_named_as_shortly_as_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(keys(dir.path(), &["x/1.fa", "y/2.fa"]), ["1.fa", "2.fa"]);
        assert_eq!(keys(dir.path(), &["x/1.fa", "y/1.fa"]), ["x/1.fa", "y/1.fa"]);
        assert_eq!(keys(dir.path(), &["x/1.fa", "x/1.fa"]), ["1.fa"]);
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [dir.path().to_owned(), dir.path().join("none.fa"), "/dev/null".into()] {
            let failure = read(std::slice::from_ref(&bad)).unwrap_err();
            assert!(failure.error.to_string().contains(&bad.display().to_string()));
        }
    }
}
