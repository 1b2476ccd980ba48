//! Multipart uploads: their parts on disk, and the single step that makes them an object.
//!
//! ```text
//! create ──► uploads/ID/upload.json
//!    └── store_part ──► part-00001, note-00001.json (its ETag and checksums), …
//!              ├── complete ──► object; upload.json is removed, then the folder
//!              └── remove (abort) ──► upload.json is removed, then the folder
//! ```
//!
//! A refused condition leaves the upload open, as on S3. After a completion the upload is gone, and completing it again
//! is `NoSuchUpload`. Parts below S3's 5 MiB are refused, so that code that passes here also passes on S3.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use s3s::dto::{CompletedPart, ETag};
use s3s::{S3Error, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checksums::{Checksums, Hasher, checksums_of};
use super::object_files::{Condition, Meta, ObjectFiles, Staged, Stat, io_error};
use super::request_body::Received;

/// S3's minimum size of a part that is not the last.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;
const PART_NUMBER_MAX: i32 = 10_000;
const COPY_BYTES: usize = 1024 * 1024;

/// The request that created the upload.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) meta: Meta,
}

/// A part on disk.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) number: i32,
    pub(super) stat: Stat,
    pub(super) checksums: Checksums,
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct PartNote {
    etag: String,
    checksums: Checksums,
}

/// The parameters of a request to complete.
#[derive(Debug, Default)]
pub(super) struct Completion {
    pub(super) condition: Condition,
    pub(super) size: Option<i64>,
    /// Full-object checksums.
    pub(super) checksums: Checksums,
    /// Whether S3 stores a checksum of the whole object.
    pub(super) is_full: bool,
}

/// Begins an upload and returns its id.
pub(super) fn create(objects: &ObjectFiles, upload: &Upload) -> S3Result<String> {
    objects.bucket(&upload.bucket)?;
    let id = Uuid::new_v4().simple().to_string();
    let folder = objects.layout.uploads().join(&id);
    let text = serde_json::to_vec(upload).map_err(S3Error::internal_error)?;
    fs::create_dir(&folder)
        .and_then(|()| fs::write(folder.join("upload.json"), text))
        .map_err(|e| io_error("beginning the upload", &e))?;
    Ok(id)
}

/// Finds an open upload of this object, and returns its folder.
pub(super) fn find(objects: &ObjectFiles, id: &str, bucket: &str, key: &str) -> S3Result<(PathBuf, Upload)> {
    // The id becomes a path, so only ids of the form that `create` returns.
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let folder = objects.layout.uploads().join(if is_id { id } else { "none" });
    read_upload(&folder)
        .filter(|upload| upload.bucket == bucket && upload.key == key)
        .map(|upload| (folder, upload))
        .ok_or_else(|| s3_error!(NoSuchUpload))
}

/// Stores a part, replacing an earlier one of the same number.
pub(super) fn store_part(objects: &ObjectFiles, folder: &Path, number: i32, part: Received) -> S3Result<ETag> {
    if !(1..=PART_NUMBER_MAX).contains(&number) {
        return Err(s3_error!(InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive"));
    }
    if !folder.is_dir() {
        return Err(s3_error!(NoSuchUpload));
    }
    let etag = objects.store(part.staged, &part_path(folder, number))?;
    let note = PartNote { etag: etag.value().to_owned(), checksums: part.checksums };
    let text = serde_json::to_vec(&note).map_err(S3Error::internal_error)?;
    fs::write(note_path(folder, number), text).map_err(|e| io_error("keeping the part", &e))?;
    Ok(etag)
}

/// Makes the named parts an object.
pub(super) fn complete(
    objects: &ObjectFiles,
    (bucket, key, id): (&str, &str, &str),
    named: &[CompletedPart],
    mut whole: Completion,
) -> S3Result<ETag> {
    let (folder, upload) = find(objects, id, bucket, key)?;
    let parts = select_parts(&folder, named)?;
    let size: u64 = parts.iter().map(|part| part.stat.size).sum();
    if whole.size.is_some_and(|wanted| u64::try_from(wanted) != Ok(size)) {
        return Err(s3_error!(InvalidRequest, "the parts have {size} bytes, not the number the request gives"));
    }
    let staged = Staged::new(&objects.layout)?;
    // For a full-object upload, S3 computes a checksum even if the request names none.
    let own = whole.is_full.then_some("crc32");
    let computed = join_parts(&parts, &staged, whole.checksums.algorithms().chain(own))?;
    whole.checksums.verify(&computed)?;
    if let Some((algorithm, value)) = own.and_then(|own| Some((own, computed.get(own)?))) {
        whole.checksums.insert(algorithm, value);
    }
    let meta = Meta { checksums: std::mem::take(&mut whole.checksums), ..upload.meta };
    let etag = objects.commit((bucket, key), staged, &whole.condition, &meta, || {
        // Another request can have completed or aborted it while the parts were joined.
        find(objects, id, bucket, key).map(drop)?;
        Ok(())
    })?;
    remove(&folder)?;
    Ok(etag)
}

/// Removes an upload and its parts.
pub(super) fn remove(folder: &Path) -> S3Result {
    // This file goes first: without it the upload is no longer open, even if the rest cannot be removed.
    fs::remove_file(folder.join("upload.json"))
        .and_then(|()| fs::remove_dir_all(folder))
        .map_err(|e| io_error("removing the upload", &e))
}

/// Checks the named parts against those on disk, as S3 does.
fn select_parts(folder: &Path, named: &[CompletedPart]) -> S3Result<Vec<Part>> {
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    let mut parts: Vec<Part> = Vec::with_capacity(named.len());
    for part in named {
        let number = part.part_number.unwrap_or_default();
        if parts.last().is_some_and(|last| last.number >= number) {
            return Err(s3_error!(InvalidPartOrder));
        }
        if parts.last().is_some_and(|last| last.stat.size < PART_BYTES_MIN) {
            return Err(s3_error!(EntityTooSmall));
        }
        let found = read_part(folder, number).ok_or_else(|| s3_error!(InvalidPart))?;
        if part.e_tag.as_ref().is_none_or(|etag| etag.value() != found.stat.etag) {
            return Err(s3_error!(InvalidPart));
        }
        let claimed = checksums_of!(part);
        if claimed.first_difference(&found.checksums).is_some() {
            return Err(s3_error!(InvalidPart, "a part's checksum is not the one it was uploaded with"));
        }
        parts.push(found);
    }
    Ok(parts)
}

/// Joins the parts in a staged file and computes the checksums of the algorithms.
fn join_parts<'a>(parts: &[Part], staged: &Staged, algorithms: impl Iterator<Item = &'a str>) -> S3Result<Checksums> {
    let mut hasher = Hasher::new(algorithms);
    let mut buffer = vec![0; COPY_BYTES];
    let mut whole = &staged.file;
    let mut copy = |part: &Part| -> io::Result<()> {
        let mut file = File::open(&part.path)?;
        let mut left = part.stat.size;
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            whole.write_all(&buffer[..count])?;
            left = left.saturating_sub(count as u64);
        }
        if left == 0 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    for part in parts {
        copy(part).map_err(|e| io_error("joining the parts", &e))?;
    }
    Ok(hasher.finish())
}

fn read_upload(folder: &Path) -> Option<Upload> {
    serde_json::from_slice(&fs::read(folder.join("upload.json")).ok()?).ok()
}

pub(super) fn read_part(folder: &Path, number: i32) -> Option<Part> {
    let path = part_path(folder, number);
    let stat = Stat::from_metadata(&fs::metadata(&path).ok()?);
    let note = fs::read(note_path(folder, number)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    // A note with another ETag is of an earlier part with this number.
    let checksums = note.filter(|note: &PartNote| note.etag == stat.etag).map(|note| note.checksums);
    Some(Part { number, stat, checksums: checksums.unwrap_or_default(), path })
}

fn part_path(folder: &Path, number: i32) -> PathBuf {
    folder.join(format!("part-{number:05}"))
}

fn note_path(folder: &Path, number: i32) -> PathBuf {
    folder.join(format!("note-{number:05}.json"))
}
