//! The input files of a local mission, and their keys.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use super::failure::Failure;
use crate::domain::ids::SrcId;

/// An input file and its key in the source bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) src: SrcId,
    pub(super) file: PathBuf,
}

/// The files that already are tasks: for each, its key, and whether the task is done.
pub(super) type Known = HashMap<PathBuf, (SrcId, bool)>;

/// Checks the files and assigns keys. A file that already is a task keeps its key. New files get their file names if
/// these differ, else their paths below the common folder of all files. A file that is given twice counts once.
pub(super) fn read(files: &[PathBuf], known: &Known) -> Result<Vec<Input>, Failure> {
    let mut inputs = Vec::new();
    let mut new = Vec::new();
    let mut seen = HashSet::new();
    for file in files {
        let path = plain_path(file)?;
        if !seen.insert(path.clone()) {
            continue;
        }
        let task = known.get(&path).or_else(|| known.get(&path.canonicalize().ok()?));
        match task {
            // A finished task does not need its input. The review reports that the file is missing.
            Some((src, true)) if !path.exists() => {
                inputs.push(Input { src: src.clone(), file: path });
            }
            Some((src, _)) => {
                check(file)?;
                inputs.push(Input { src: src.clone(), file: path });
            }
            None => {
                check(file)?;
                new.push(path);
            }
        }
    }
    let taken: HashSet<&str> = known.values().map(|(src, _)| src.as_str()).collect();
    let mut names = HashSet::new();
    let mut by_name = true;
    for path in &new {
        let name = key_of(path, Path::new("/"), true)?;
        by_name &= !taken.contains(name.as_str()) && names.insert(name);
    }
    let common = common_folder(new.iter().chain(known.keys()));
    for file in new {
        let key = key_of(&file, &common, by_name)?;
        let src = SrcId::new(key).map_err(|error| Failure::usage(error, "give the file a shorter name"))?;
        inputs.push(Input { src, file });
    }
    Ok(inputs)
}

/// Returns the real path of the file's folder with the file's own name: `x` and `y/../x` are one file. A link keeps its
/// own name.
fn plain_path(file: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(file).map_err(|error| unusable(file, &error))?;
    match (path.parent(), path.file_name()) {
        (Some(folder), Some(name)) => {
            let folder = folder.canonicalize().map_err(|error| unusable(file, &error))?;
            Ok(folder.join(name))
        }
        _ => path.canonicalize().map_err(|error| unusable(file, &error)),
    }
}

fn unusable(file: &Path, error: &std::io::Error) -> Failure {
    let message = format!("the input {} cannot be used: {error}", file.display());
    Failure::usage(message, "check its path and its permissions")
}

fn check(file: &Path) -> Result<(), Failure> {
    let name = file.display();
    let meta = file.metadata().map_err(|error| unusable(file, &error))?;
    if meta.is_dir() {
        return Err(Failure::usage(format!("the input {name} is a folder"), format!("name its files: {name}/*")));
    }
    if !meta.is_file() {
        return Err(Failure::usage(
            format!("the input {name} is not a regular file"),
            "copy its content to a regular file",
        ));
    }
    std::fs::File::open(file).map(drop).map_err(|error| unusable(file, &error))
}

fn key_of(file: &Path, common: &Path, by_name: bool) -> Result<String, Failure> {
    let part = if by_name { file.file_name().map(Path::new) } else { file.strip_prefix(common).ok() };
    let parts = part.unwrap_or(file).components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_str()),
        _ => None,
    });
    let parts: Option<Vec<&str>> = parts.collect();
    parts.map(|parts| parts.join("/")).ok_or_else(|| {
        Failure::usage(format!("the name of {} is not UTF-8, which S3 keys require", file.display()), "rename the file")
    })
}

fn common_folder<'a>(files: impl Iterator<Item = &'a PathBuf>) -> PathBuf {
    let mut folders = files.filter_map(|file| file.parent());
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
        read(&files, &Known::new()).unwrap().into_iter().map(|input| input.src.to_string()).collect()
    }

    #[test]
    fn files_are_named_as_shortly_as_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(keys(dir.path(), &["x/1.fa", "y/2.fa"]), ["1.fa", "2.fa"]);
        assert_eq!(keys(dir.path(), &["x/1.fa", "y/1.fa"]), ["x/1.fa", "y/1.fa"]);
        assert_eq!(keys(dir.path(), &["x/1.fa", "x/1.fa"]), ["1.fa"]);
    }

    #[test]
    fn a_file_keeps_the_key_it_got_first() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(keys(&real, &["x/1.fa", "y/1.fa"]), ["x/1.fa", "y/1.fa"]);
        let known = Known::from([(real.join("x/1.fa"), (SrcId::new("1.fa").unwrap(), true))]);

        let files = [real.join("x/../x/1.fa"), real.join("y/1.fa")];
        let named: Vec<String> = read(&files, &known).unwrap().iter().map(|input| input.src.to_string()).collect();
        assert_eq!(named[0], "1.fa");
        assert_eq!(named[1], "y/1.fa");

        std::fs::remove_file(&files[0]).unwrap();
        assert_eq!(read(&files[..1], &known).unwrap()[0].src.as_str(), "1.fa");
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [dir.path().to_owned(), dir.path().join("none.fa"), "/dev/null".into()] {
            let failure = read(std::slice::from_ref(&bad), &Known::new()).unwrap_err();
            assert!(failure.error.to_string().contains(&bad.display().to_string()));
        }
    }
}
