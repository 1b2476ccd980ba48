//! `lighthpc fetch`: downloads the committed results of a mission.
//!
//! ```text
//!   DIR/<task's name without the mission>          a result that is a file
//!   DIR/<task's name without the mission>/<file>   a result that is a folder
//!   DIR/.lighthpc-fetch                            a line per file that is complete: ETag, bytes, path
//! ```
//!
//! A file is downloaded beside its place, checked, and renamed: what has its final name is whole. A repeated call skips
//! files that are recorded and have their size.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::failure::Failure;
use super::place::{MissionPlace, PlaceArgs};
use super::screen;
use crate::backend::Kind;
use crate::backend::parallel::Parallel;
use crate::backend::store::{Store, StoreError, files_parallel};
use crate::command::exit::ExitCode;
use crate::domain::keys::{INDEX_NAME, digest_hex, result_key};
use crate::domain::task::{State, Task};
use crate::render::SCHEMA;
use crate::summary::Selection;

/// The arguments of `fetch`.
#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// Folder for the results; it is created
    #[arg(long, value_name = "DIR")]
    pub(super) to: PathBuf,
    /// Only results of tasks whose name matches, such as 'M001/sample*.txt'
    #[arg(long, value_name = "PATTERN")]
    pub(super) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

/// Indexes of folder results that are read at the same time: one may have tens of MB.
const INDEXES_PARALLEL: usize = 8;
/// The longest name of a file or folder, in bytes: Linux allows 255, and a file that is not whole has a longer name.
const NAME_BYTES_MAX: usize = 240;
/// The list of complete files.
const RECORD: &str = ".lighthpc-fetch";
/// The folder of incomplete files.
const PARTS: &str = ".lighthpc-parts";

/// The index of a result that is a folder.
#[derive(Debug, Deserialize)]
struct Index {
    files: BTreeMap<String, IndexedFile>,
}

#[derive(Debug, Deserialize)]
struct IndexedFile {
    bytes: u64,
    etag: String,
}

/// One object to download.
#[derive(Clone, Debug)]
struct Download {
    bucket: String,
    key: String,
    etag: Option<String>,
    bytes: Option<u64>,
    path: PathBuf,
}

pub(super) async fn run(args: FetchArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let mission = place.mission(&args.mission).await?;
    // The place of each result follows from the names of all tasks, so that it is the same whatever is fetched when.
    let selection = Selection { states: vec![State::Done], name: args.name.clone(), ..Selection::default() };
    let (mut srcs, mut tasks) = (Vec::new(), Vec::new());
    let each = |task: Task| {
        srcs.push(task.src.to_string());
        if selection.takes(&task, &mission) {
            tasks.push(Task { history: Vec::new(), ..task });
        }
    };
    place.backend.ledger.each_task(Some(&mission.id), each).await?;
    tasks.sort_by(|a, b| a.src.cmp(&b.src));
    if tasks.is_empty() && args.name.is_some() {
        screen::to_stderr("note: no task that is done has such a name (* is any text, ? any character)\n");
    }
    let names = names(srcs.iter().map(String::as_str), mission.id.as_str());
    std::fs::create_dir_all(&args.to).map_err(|error| disk(&args.to, &error))?;
    let record = Record::open(&args.to)?;
    let (downloads, mut refused) = plan(&place, &names, &tasks).await?;
    let files = downloads.len();
    let wanted: Vec<Download> = downloads.into_iter().filter(|download| !record.has(download, &args.to)).collect();
    let there = files - wanted.len();
    let (fetched, bytes, failures) = fetch(&place.backend.store, &args.to, wanted, record).await?;
    refused.extend(failures);
    for line in &refused {
        screen::to_stderr(&format!("error: {line}\n"));
    }
    // Left only by a call that was killed.
    std::fs::remove_dir(args.to.join(PARTS)).ok();
    let total = mission.total(place.backend.ledger.tally(&mission).await?);
    let missing = mission.trans_number.map_or(0, |number| number.saturating_sub(total.ok));
    let end = if refused.is_empty() { ExitCode::Ok } else { ExitCode::ResultChanged };
    if args.json {
        screen::json_to_stdout(&json!({
            "schema": SCHEMA, "mission": mission.id.as_str(), "results": tasks.len(), "files": files,
            "fetched": fetched, "there": there, "bytes": bytes, "missing": missing, "errors": refused,
        }));
        return Ok(end);
    }
    let mut line = format!(
        "{} of {}: {} fetched ({bytes} bytes), {there} there already\n",
        screen::count(files as u64, "file"),
        screen::count(tasks.len() as u64, "result"),
        fetched
    );
    if missing > 0 && args.name.is_none() {
        line.push_str(&format!("{} without a result\n", screen::count(missing, "task")));
    }
    screen::to_stdout(&line);
    Ok(end)
}

/// Lists the objects of all results, and the results that cannot be fetched.
async fn plan(
    place: &MissionPlace,
    names: &HashMap<&str, PathBuf>,
    tasks: &[Task],
) -> Result<(Vec<Download>, Vec<String>), Failure> {
    let (mut downloads, mut refused) = (Vec::new(), Vec::new());
    let mut folders = Vec::new();
    for task in tasks {
        let uri = task.result.as_deref().unwrap_or_default();
        let Some((bucket, key)) = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
            refused.push(format!("task {}: its row names no result", screen::plain(task.src.as_str())));
            continue;
        };
        let Some(path) = names.get(task.src.as_str()).cloned() else { continue };
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        // A key that ends with `/` may be a file's: a task's own name may end so.
        if key == format!("{}/", result_key(&task.src)) {
            folders.push((task.src.clone(), task.result_etag.clone(), bucket, key, path));
        } else {
            downloads.push(Download { bucket, key, etag: task.result_etag.clone(), bytes: task.result_bytes, path });
        }
    }
    let reads = folders.into_iter().map(|(src, etag, bucket, key, path)| {
        let store = place.backend.store.clone();
        async move {
            let index = read_index(&store, &bucket, &format!("{key}{INDEX_NAME}"), etag.as_deref()).await;
            (src, bucket, key, path, index)
        }
    });
    let mut reads = Parallel::new(INDEXES_PARALLEL, reads);
    while let Some(read) = reads.next().await {
        let (src, bucket, key, path, index) = read.map_err(internal)?;
        let index = match index? {
            Ok(index) => index,
            Err(why) => {
                refused.push(format!("task {}: the index of its result {why}", screen::plain(src.as_str())));
                continue;
            }
        };
        for (name, file) in index.files {
            let path = path.join(safe(&name));
            let key = format!("{key}{name}");
            downloads.push(Download {
                bucket: bucket.clone(),
                key,
                etag: Some(file.etag),
                bytes: Some(file.bytes),
                path,
            });
        }
    }
    make_unique(&mut downloads);
    Ok((downloads, refused))
}

/// Reads the index of a folder that was committed with an `ETag`. The inner error says what is wrong with it.
async fn read_index(
    store: &Store,
    bucket: &str,
    key: &str,
    etag: Option<&str>,
) -> Result<Result<Index, &'static str>, Failure> {
    let Some(found) = store.head(bucket, key).await? else { return Ok(Err("is missing")) };
    if etag.is_some_and(|etag| etag != found.etag) {
        return Ok(Err("is not the one that was committed"));
    }
    let bytes = match store.read(bucket, key).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind == Kind::NotFound => return Ok(Err("is missing")),
        Err(error) => return Err(error.into()),
    };
    Ok(serde_json::from_slice(&bytes).map_err(|_| "is damaged"))
}

/// Gives files of a folder result whose encoded names are equal places of their own.
fn make_unique(downloads: &mut [Download]) {
    let mut taken = HashSet::new();
    for download in downloads {
        if !taken.insert(download.path.clone()) {
            let name = download.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            download.path = download.path.with_file_name(format!("{name}.{}", digest_hex(&[&download.key], 8)));
            taken.insert(download.path.clone());
        }
    }
}

/// Downloads files. Returns how many, their bytes, and the failures.
async fn fetch(
    store: &Store,
    to: &Path,
    wanted: Vec<Download>,
    mut record: Record,
) -> Result<(usize, u64, Vec<String>), Failure> {
    let bar = screen::bar("files", wanted.len() as u64);
    let downloads = wanted.into_iter().map(|download| {
        let (store, to) = (store.clone(), to.to_owned());
        async move {
            let fetched = fetch_one(&store, &to, &download).await;
            (download, fetched)
        }
    });
    let (mut count, mut bytes, mut failures) = (0, 0, Vec::new());
    let mut downloads = Parallel::new(files_parallel(), downloads);
    while let Some(download) = downloads.next().await {
        let (download, fetched) = download.map_err(internal)?;
        bar.inc(1);
        match fetched {
            Ok((size, etag)) => {
                count += 1;
                bytes += size;
                record.add(&etag, size, &download.path).map_err(|error| disk(&record.path, &error))?;
            }
            Err(Fetched::Failed(failure)) => return Err(failure),
            Err(Fetched::Changed(why)) => failures.push(why),
        }
    }
    bar.finish_and_clear();
    Ok((count, bytes, failures))
}

/// Why a file was not fetched.
enum Fetched {
    /// The result is not the committed one any more.
    Changed(String),
    /// The command cannot go on.
    Failed(Failure),
}

async fn fetch_one(store: &Store, to: &Path, download: &Download) -> Result<(u64, String), Fetched> {
    let path = to.join(&download.path);
    let failed = |path: &Path, error: &std::io::Error| Fetched::Failed(disk(path, error));
    let folder = path.parent().unwrap_or(to);
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    // No encoded name leads into this folder.
    let parts = to.join(PARTS);
    std::fs::create_dir_all(&parts).map_err(|error| failed(&parts, &error))?;
    let part = parts.join(digest_hex(&[&download.path.to_string_lossy()], 32));
    let result = store.download(&download.bucket, &download.key, &part).await;
    let place = format!("s3://{}/{}", download.bucket, screen::plain(&download.key));
    let result = match result {
        Ok(result) => result,
        Err(error) => {
            std::fs::remove_file(&part).ok();
            if matches!(&error, StoreError::Cloud(error) if error.kind == Kind::NotFound) {
                return Err(Fetched::Changed(format!("{place} is missing")));
            }
            return Err(Fetched::Failed(error.into()));
        }
    };
    let is_other = download.etag.as_ref().is_some_and(|etag| *etag != result.etag);
    if is_other || download.bytes.is_some_and(|bytes| bytes != result.bytes) {
        std::fs::remove_file(&part).ok();
        return Err(Fetched::Changed(format!("{place} is not the object that was committed")));
    }
    std::fs::rename(&part, &path).map_err(|error| failed(&path, &error))?;
    Ok((result.bytes, result.etag))
}

/// The list of complete files.
struct Record {
    path: PathBuf,
    file: std::fs::File,
    complete: HashMap<PathBuf, (String, u64)>,
}

impl Record {
    fn open(to: &Path) -> Result<Self, Failure> {
        let path = to.join(RECORD);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let complete = text.lines().filter_map(|line| {
            let (etag, rest) = line.split_once(' ')?;
            let (bytes, path) = rest.split_once(' ')?;
            Some((PathBuf::from(serde_json::from_str::<String>(path).ok()?), (etag.to_owned(), bytes.parse().ok()?)))
        });
        let complete = complete.collect();
        let file =
            std::fs::File::options().create(true).append(true).open(&path).map_err(|error| disk(&path, &error))?;
        Ok(Self { path, file, complete })
    }

    fn has(&self, download: &Download, to: &Path) -> bool {
        let Some((etag, bytes)) = self.complete.get(&download.path) else { return false };
        let is_same = download.etag.as_ref().is_none_or(|wanted| wanted == etag);
        is_same && to.join(&download.path).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == *bytes)
    }

    fn add(&mut self, etag: &str, bytes: u64, path: &Path) -> std::io::Result<()> {
        let path = serde_json::Value::from(path.to_string_lossy()).to_string();
        self.file.write_all(format!("{etag} {bytes} {path}\n").as_bytes())
    }
}

/// Returns the places of results below the folder. No two are the same, and none is a folder of another.
fn names<'a>(srcs: impl Iterator<Item = &'a str>, mission: &str) -> HashMap<&'a str, PathBuf> {
    let prefix = format!("{mission}/");
    let mut srcs: Vec<&str> = srcs.collect();
    srcs.sort_unstable();
    let paths: Vec<PathBuf> =
        srcs.iter().map(|src| safe(src.strip_prefix(&prefix).filter(|rest| !rest.is_empty()).unwrap_or(src))).collect();
    let folders: HashSet<PathBuf> =
        paths.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>()).collect();
    let mut taken = BTreeSet::new();
    let mut names = HashMap::new();
    for (src, path) in srcs.into_iter().zip(paths) {
        let mut name = path.clone();
        if folders.contains(&name) || taken.contains(&name) {
            // A key `a` beside a key `a/b`, or two names that differ in what a file name cannot hold.
            let mark = digest_hex(&[src], 8);
            name = path.with_file_name(format!("{}.{mark}", path.file_name().unwrap_or_default().to_string_lossy()));
        }
        taken.insert(name.clone());
        names.insert(src, name);
    }
    names
}

/// Returns a key as a relative path that leads nowhere else: parts that have a meaning for a file system are encoded.
fn safe(key: &str) -> PathBuf {
    let part = |part: &str| {
        let text: String = part.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
        match text.as_str() {
            "" => "%".to_owned(),
            "." => "%2E".to_owned(),
            ".." => "%2E%2E".to_owned(),
            RECORD | PARTS => format!("%{text}"),
            _ if text.len() > NAME_BYTES_MAX => {
                let start = text.floor_char_boundary(NAME_BYTES_MAX - 10);
                format!("{}~{}", &text[..start], digest_hex(&[part], 8))
            }
            _ => text,
        }
    };
    key.split('/').map(part).collect()
}

fn disk(path: &Path, error: &std::io::Error) -> Failure {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        return Failure {
            exit: ExitCode::DiskFull,
            ..Failure::usage(
                format!("{}: {error}", path.display()),
                "free space, or give another folder with --to DIR; a repeated call continues",
            )
        };
    }
    Failure::usage(format!("{}: {error}", path.display()), "give a folder that this user can write to, with --to DIR")
}

fn internal(error: tokio::task::JoinError) -> Failure {
    Failure { exit: ExitCode::Internal, error: error.into(), hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        for (key, path) in [
            ("a/b.txt", "a/b.txt"),
            ("../../etc/passwd", "%2E%2E/%2E%2E/etc/passwd"),
            ("/abs", "%/abs"),
            ("a//b", "a/%/b"),
            ("a/./b/", "a/%2E/b/%"),
            ("a\nb", "a_b"),
            (".lighthpc-fetch", "%.lighthpc-fetch"),
            (".lighthpc-parts/x", "%.lighthpc-parts/x"),
        ] {
            assert_eq!(safe(key), PathBuf::from(path), "{key}");
        }
        let long = safe(&"x".repeat(1000));
        assert!(long.as_os_str().len() <= NAME_BYTES_MAX && long != safe(&"x".repeat(1001)));
    }

    #[test]
    fn files_of_a_folder_have_places_of_their_own() {
        let download = |key: &str| Download {
            bucket: "b".to_owned(),
            key: key.to_owned(),
            etag: None,
            bytes: None,
            path: PathBuf::from("a").join(safe(key)),
        };
        let mut downloads = vec![download("c\n"), download("c_"), download("d")];
        make_unique(&mut downloads);
        let places: HashSet<&PathBuf> = downloads.iter().map(|download| &download.path).collect();
        assert_eq!(places.len(), 3, "{places:?}");
    }

    #[test]
    fn every_result_has_a_place_of_its_own() {
        let keys = ["M/a", "M/a/b", "M/c\n", "M/c_", "other", "M/"];
        let names = names(keys.into_iter(), "M");
        let places: HashSet<&PathBuf> = names.values().collect();
        assert_eq!(places.len(), keys.len(), "{names:?}");
        assert_eq!(names["M/a/b"], PathBuf::from("a/b"));
        assert_eq!(names["other"], PathBuf::from("other"));
        assert!(names["M/a"].to_string_lossy().starts_with("a."));
        assert!(places.iter().all(|one| !places.iter().any(|other| other != one && other.starts_with(one))));
    }
}
