//! The input files of a mission, their keys, and the tasks of a local mission.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::BufRead;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use super::failure::Failure;
use super::forms::{FormArgs, FormTask};
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::work::{Inputs, ObjectName, Work};
use local_cloud::SOURCE_BUCKET;

/// An input file and its key in the source bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) src: SrcId,
    pub(super) file: PathBuf,
}

/// A task of a local mission, with its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalTask {
    pub(super) src: SrcId,
    pub(super) work: Work,
    pub(super) files: Vec<Input>,
}

/// Returns the files that the command line names; for `-`, those that standard input names, one on each line.
pub(super) fn listed(files: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    if files.iter().all(|file| file != Path::new("-")) {
        return Ok(files);
    }
    if files.len() > 1 {
        return Err(Failure::usage("- cannot be combined with other files", "use -, or name the files"));
    }
    let unreadable =
        |error| Failure::usage(format!("standard input cannot be read: {error}"), "write one file on each line");
    let lines = std::io::stdin().lock().split(b'\n').collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    let name = |mut line: Vec<u8>| {
        line.truncate(line.strip_suffix(b"\r").map_or(line.len(), <[u8]>::len));
        PathBuf::from(OsString::from_vec(line))
    };
    let files: Vec<PathBuf> = lines.into_iter().map(name).filter(|file| !file.as_os_str().is_empty()).collect();
    if files.is_empty() {
        return Err(Failure::usage("standard input names no file", "write one file on each line"));
    }
    Ok(files)
}

/// Returns the files among the inputs, with those of folders, as far as they are wanted. Hidden files of folders are not
/// inputs; links to folders are not followed.
pub(super) fn files(inputs: Vec<PathBuf>, form: &FormArgs) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for input in inputs {
        if !input.is_dir() {
            files.extend(Some(input).filter(|file| form.is_wanted(&file.to_string_lossy())));
            continue;
        }
        let before = files.len();
        walk(&input, &mut files).map_err(|error| unusable(&input, &error))?;
        if files.len() == before {
            let message = format!("the folder {} has no files", input.display());
            return Err(Failure::usage(message, "hidden files are no inputs"));
        }
        let is_wanted = |file: &PathBuf| form.is_wanted(&file.strip_prefix(&input).unwrap_or(file).to_string_lossy());
        let found = files.split_off(before);
        files.extend(found.into_iter().filter(is_wanted));
    }
    Ok(files)
}

/// Adds the files below a folder, in the order of their names.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries.into_iter().filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")) {
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else if entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Returns the tasks of a local mission: those without files, the groups of the files, or one for each file. A group is
/// named without the mission's id, which keys of later missions have.
pub(super) fn tasks(
    form: &FormArgs,
    without_files: &[FormTask],
    files: Vec<Input>,
    mission: Option<&MissionId>,
) -> Result<Vec<LocalTask>, Failure> {
    let prefix = mission.map(|mission| format!("{mission}/")).unwrap_or_default();
    let object = |input: &Input| ObjectName { bucket: SOURCE_BUCKET.to_owned(), key: input.src.to_string() };
    let named = |input: &Input| {
        let key = input.src.as_str();
        (key.strip_prefix(&prefix).unwrap_or(key).to_owned(), object(input))
    };
    if let Some(groups) = form.groups(None, files.iter().map(named))? {
        let files: HashMap<String, Input> = files.into_iter().map(|input| (input.src.to_string(), input)).collect();
        let of_group = |FormTask { src, work }| {
            let members = work.objects(&src, SOURCE_BUCKET);
            let files = members.iter().filter_map(|object| files.get(&object.key).cloned()).collect();
            LocalTask { src, work, files }
        };
        return Ok(groups.into_iter().map(of_group).collect());
    }
    let without =
        without_files.iter().cloned().map(|FormTask { src, work }| LocalTask { src, work, files: Vec::new() });
    let of_file = |input: Input| LocalTask { src: input.src.clone(), work: Work::default(), files: vec![input] };
    Ok(without.chain(files.into_iter().map(of_file)).collect())
}

/// Returns the objects of a group's files.
pub(super) fn objects_of(files: &[Input]) -> Inputs {
    let object = |input: &Input| ObjectName { bucket: SOURCE_BUCKET.to_owned(), key: input.src.to_string() };
    let mut objects: Vec<ObjectName> = files.iter().map(object).collect();
    objects.sort();
    Inputs::Several(objects)
}

/// The files that already are inputs: for each, its keys, and whether the task of each is done.
pub(super) type Known = HashMap<PathBuf, Vec<(SrcId, bool)>>;

/// Returns the key of a file that already is an input: of several keys, the one that has its name.
fn known_key<'a>(known: &'a Known, path: &Path) -> Option<&'a (SrcId, bool)> {
    let keys = known.get(path).or_else(|| known.get(&path.canonicalize().ok()?))?;
    let name = path.file_name().and_then(|name| name.to_str());
    keys.iter().find(|(src, _)| src.as_str().rsplit('/').next() == name).or_else(|| keys.first())
}

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
        match known_key(known, &path) {
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
    let taken: HashSet<&str> = known.values().flatten().map(|(src, _)| src.as_str()).collect();
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
        let known = Known::from([(real.join("x/1.fa"), vec![(SrcId::new("1.fa").unwrap(), true)])]);

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
