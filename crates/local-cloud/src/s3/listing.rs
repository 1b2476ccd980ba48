//! `ListObjectsV2`: finds the objects in a bucket's folder and returns them in pages.
//!
//! Keys are in the order of their UTF-8 bytes, which is not the order of the names on disk, so every page walks the
//! folder of its prefix again. Files to which no key maps and links to folders are skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use s3s::dto::{CommonPrefix, EncodingType, ListObjectsV2Input, ListObjectsV2Output, Object, ObjectStorageClass};
use s3s::{S3Result, s3_error};

use super::super::keys;
use super::object_files::{ObjectFiles, Stat, io_error};

/// S3's own page: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>.
const PAGE_KEYS_MAX: i32 = 1000;
const URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b'/');

/// The parameters of a request.
struct ListRequest<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    /// The last key or group of the previous page, or the key to start after.
    after: &'a str,
    continues: bool,
    size: usize,
}

/// One page of objects and groups.
#[derive(Default)]
struct Page {
    contents: Vec<(String, Stat)>,
    groups: Vec<String>,
    /// The last key or group.
    last: String,
    is_truncated: bool,
}

/// Returns one page.
pub(super) fn list_page(objects: &ObjectFiles, input: &ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let root = objects.bucket(&input.bucket)?;
    let token = input.continuation_token.as_deref().map(read_token).transpose()?;
    let wanted = ListRequest {
        prefix: input.prefix.as_deref().unwrap_or_default(),
        delimiter: input.delimiter.as_deref().filter(|delimiter| !delimiter.is_empty()),
        after: token.as_deref().or(input.start_after.as_deref()).unwrap_or_default(),
        continues: token.is_some(),
        size: usize::try_from(input.max_keys.unwrap_or(PAGE_KEYS_MAX).clamp(0, PAGE_KEYS_MAX)).unwrap_or(0),
    };
    let page = objects.with_lock(|| cut_page(&find_objects(&root, wanted.prefix)?, &wanted))?;

    let url = input.encoding_type.as_ref().is_some_and(|encoding| encoding.as_str() == EncodingType::URL);
    let name = |text: &str| if url { utf8_percent_encode(text, URL).to_string() } else { text.to_owned() };
    let key_count = page.contents.len() + page.groups.len();
    Ok(ListObjectsV2Output {
        name: Some(input.bucket.clone()),
        prefix: Some(name(wanted.prefix)),
        delimiter: wanted.delimiter.map(name),
        start_after: input.start_after.as_deref().map(name),
        encoding_type: input.encoding_type.clone(),
        max_keys: i32::try_from(wanted.size).ok(),
        key_count: i32::try_from(key_count).ok(),
        continuation_token: input.continuation_token.clone(),
        is_truncated: Some(page.is_truncated),
        next_continuation_token: page.is_truncated.then(|| write_token(&page.last)),
        contents: Some(page.contents.iter().map(|(key, stat)| object(name(key), stat)).collect()),
        common_prefixes: Some(page.groups.iter().map(|group| CommonPrefix { prefix: Some(name(group)) }).collect()),
        ..ListObjectsV2Output::default()
    })
}

fn cut_page(all: &BTreeMap<String, PathBuf>, wanted: &ListRequest<'_>) -> S3Result<Page> {
    let mut page = Page::default();
    for (key, place) in all {
        let group = wanted.delimiter.and_then(|delimiter| {
            let at = key[wanted.prefix.len()..].find(delimiter)?;
            Some(&key[..wanted.prefix.len() + at + delimiter.len()])
        });
        // If the previous page ended with a group, the rest of its keys are skipped.
        let is_past = key.as_str() <= wanted.after || (wanted.continues && group == Some(wanted.after));
        if is_past || group.is_some_and(|group| page.groups.last().is_some_and(|last| last == group)) {
            continue;
        }
        let stat = match fs::metadata(place) {
            Ok(found) if found.is_file() => Stat::from_metadata(&found),
            // A link to a missing file, or to something that is not a file, is not an object.
            Ok(_) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("listing", &e)),
        };
        if page.contents.len() + page.groups.len() == wanted.size {
            page.is_truncated = wanted.size > 0;
            break;
        }
        group.unwrap_or(key).clone_into(&mut page.last);
        match group {
            Some(group) => page.groups.push(group.to_owned()),
            None => page.contents.push((key.clone(), stat)),
        }
    }
    Ok(page)
}

fn object(key: String, stat: &Stat) -> Object {
    Object {
        key: Some(key),
        e_tag: Some(stat.etag()),
        size: i64::try_from(stat.size).ok(),
        last_modified: Some(stat.modified.into()),
        storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
        ..Object::default()
    }
}

/// A token is the last key or group, so a page continues after it, whatever has changed in between.
fn write_token(last: &str) -> String {
    utf8_percent_encode(last, NON_ALPHANUMERIC).to_string()
}

fn read_token(token: &str) -> S3Result<String> {
    match percent_decode_str(token).decode_utf8() {
        Ok(last) => Ok(last.into_owned()),
        Err(_) => Err(s3_error!(InvalidArgument, "The continuation token provided is incorrect")),
    }
}

/// Finds every object with the prefix. If a key has both its files, its natural one counts.
fn find_objects(root: &Path, prefix: &str) -> S3Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let start = keys::folder_of_prefix(prefix);
    let mut folders = vec![start];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Ok(entries) => entries,
            // A prefix whose folder does not exist, or is a file, has no keys.
            Err(_) if folder == keys::folder_of_prefix(prefix) => continue,
            Err(e) => return Err(io_error("listing", &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| io_error("listing", &e))?;
            let path = folder.join(entry.file_name());
            // The type of the entry itself: a link to a folder is not followed.
            let is_folder = entry.file_type().map_err(|e| io_error("listing", &e))?.is_dir();
            if is_folder {
                if keys::is_folder_name(&entry.file_name()) {
                    folders.push(path);
                }
            } else if let Some(key) = keys::key_of(&path).filter(|key| key.starts_with(prefix)) {
                let is_natural = keys::path_of(&key) == path;
                let place = root.join(path);
                if is_natural {
                    found.insert(key, place);
                } else {
                    found.entry(key).or_insert(place);
                }
            }
        }
    }
    Ok(found)
}
