//! What a checkpoint is: a list of files, folders, and links, and where the bytes of each file are kept.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};
use serde::{Deserialize, Serialize};

use super::ids::{AttemptNumber, SrcId};
use super::keys::digest_hex;

/// The version of lists that this program writes. It reads version 1 too, which had no number, and only files.
const VERSION: u32 = 2;

/// What is kept of a mode: reading, writing, and executing. Set-user-ID, set-group-ID, and the sticky bit are not.
pub const MODE_KEPT: u32 = 0o777;

/// One saved file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The key it is kept under, perhaps of an earlier save.
    pub key: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The state of the file on this machine that the object has; only ever compared for being the same.
    pub stamp: Stamp,
}

/// What tells one state of a file from another, on one machine. A file that was replaced has another inode; one that
/// was changed has another time of change, even if its size and its time of modification were set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The inode.
    pub inode: u64,
    /// The time of modification: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// The time of the inode's last change: seconds and nanoseconds.
    pub changed: (i64, i64),
}

/// What an entry of a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File(Saved),
    /// A folder, perhaps an empty one.
    Folder,
    /// A symbolic link, with its target as it is.
    Link(Vec<u8>),
}

/// One entry of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub content: Content,
    /// Its permissions; none of a link, nor of what an earlier version saved.
    pub mode: Option<u32>,
}

/// A complete checkpoint. Its list is put after all its files, and named by the task's row after that, so a torn one is
/// never used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The entries by their path below the checkpoint's folder: any bytes that a path may have. A folder comes before
    /// what is in it.
    pub entries: BTreeMap<Vec<u8>, Entry>,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not such a list.
    #[error("the list of a checkpoint cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A later version of lighthpc wrote it.
    #[error("the list of the checkpoint has version {0}, and this program reads up to {VERSION}: update it")]
    Version(u32),
    /// A name leads out of the checkpoint's folder, or through something that is no folder.
    #[error("the list of the checkpoint has the name {0:?}, which is no place in its folder")]
    Name(String),
    /// An entry is not whole.
    #[error("the list of the checkpoint says too little of {0:?}")]
    Entry(String),
}

impl Manifest {
    /// Returns the list as it is stored.
    ///
    /// # Errors
    /// None is known; the serialiser's.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let item = |(name, entry): (&Vec<u8>, &Entry)| {
            let mut item =
                Item { name: encode(name), mode: entry.mode.map(|mode| format!("{mode:03o}")), ..Item::default() };
            match &entry.content {
                Content::File(saved) => (item.key, item.bytes) = (Some(saved.key.clone()), Some(saved.bytes)),
                Content::Folder => item.is_folder = true,
                Content::Link(target) => item.target = Some(encode(target)),
            }
            item
        };
        Ok(serde_json::to_vec(&List { version: VERSION, entries: self.entries.iter().map(item).collect() })?)
    }

    /// Reads a list, of this version or an earlier one, and checks that each entry has a place of its own in the
    /// folder.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn from_json(text: &[u8]) -> Result<Self, ManifestError> {
        let version = serde_json::from_slice::<Versioned>(text)?.version;
        let entries = match version {
            1 => serde_json::from_slice::<ListV1>(text)?.entries(),
            VERSION => serde_json::from_slice::<List>(text)?.entries()?,
            later => return Err(ManifestError::Version(later)),
        };
        let manifest = Self { entries };
        for name in manifest.entries.keys() {
            if !manifest.has_place(name) {
                return Err(ManifestError::Name(encode(name)));
            }
        }
        Ok(manifest)
    }

    /// Returns whether a name is a path below the folder, through nothing but folders.
    fn has_place(&self, name: &[u8]) -> bool {
        let is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        let is_folder = |parent: &[u8]| self.entries.get(parent).is_none_or(|entry| entry.content == Content::Folder);
        name.split(|&byte| byte == b'/').all(is_plain) && parents(name).all(is_folder)
    }

    /// Returns the keys of its files.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.values().filter_map(|entry| match &entry.content {
            Content::File(saved) => Some(saved.key.as_str()),
            Content::Folder | Content::Link(_) => None,
        })
    }

    /// Returns the keys that this has and `newer` has not: they may go once `newer` is the one in use.
    #[must_use]
    pub fn keys_not_in(&self, newer: &Self) -> Vec<String> {
        let used: std::collections::BTreeSet<&str> = newer.keys().collect();
        self.keys().filter(|key| !used.contains(key)).map(ToOwned::to_owned).collect()
    }
}

/// Returns the paths of the folders that a name is in, the innermost first.
pub fn parents(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    (1..name.len()).rev().filter(|&end| name[end] == b'/').map(|end| &name[..end])
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_version")]
    version: u32,
}

const fn first_version() -> u32 {
    1
}

#[derive(Serialize, Deserialize)]
struct List {
    version: u32,
    entries: Vec<Item>,
}

/// An entry as it is stored: a file has a key, a folder says so, a link has a target.
#[derive(Default, Serialize, Deserialize)]
struct Item {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(default, rename = "folder", skip_serializing_if = "std::ops::Not::not")]
    is_folder: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl List {
    fn entries(self) -> Result<BTreeMap<Vec<u8>, Entry>, ManifestError> {
        let mut entries = BTreeMap::new();
        for item in self.entries {
            let incomplete = || ManifestError::Entry(item.name.clone());
            let mode = item.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8));
            let mode = mode.transpose().map_err(|_| incomplete())?.map(|mode| mode & MODE_KEPT);
            let content = match (&item.key, &item.target, item.is_folder) {
                (Some(key), None, false) => {
                    let bytes = item.bytes.ok_or_else(incomplete)?;
                    Content::File(Saved { key: key.clone(), bytes, stamp: Stamp::default() })
                }
                (None, Some(target), false) => Content::Link(decode(target)),
                (None, None, true) => Content::Folder,
                _ => return Err(incomplete()),
            };
            if entries.insert(decode(&item.name), Entry { content, mode }).is_some() {
                return Err(ManifestError::Name(item.name));
            }
        }
        Ok(entries)
    }
}

/// The list of the versions before links, folders, and modes were kept.
#[derive(Deserialize)]
struct ListV1 {
    files: BTreeMap<String, SavedV1>,
}

#[derive(Deserialize)]
struct SavedV1 {
    key: String,
    bytes: u64,
}

impl ListV1 {
    fn entries(self) -> BTreeMap<Vec<u8>, Entry> {
        let entry = |(name, saved): (String, SavedV1)| {
            let saved = Saved { key: saved.key, bytes: saved.bytes, stamp: Stamp::default() };
            (name.into_bytes(), Entry { content: Content::File(saved), mode: None })
        };
        self.files.into_iter().map(entry).collect()
    }
}

/// What is encoded of a name: what decoding would mistake, and what a person could not read.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Writes a path of any bytes as text; of text, what is not ASCII stays as it is.
#[must_use]
pub fn encode(name: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(name) else { return percent_encode(name, ENCODED).to_string() };
    let mut encoded = String::with_capacity(text.len());
    for part in text.split_inclusive(|c: char| !c.is_ascii()) {
        let ascii = part.trim_end_matches(|c: char| !c.is_ascii());
        encoded.extend(percent_encode(ascii.as_bytes(), ENCODED));
        encoded.push_str(&part[ascii.len()..]);
    }
    encoded
}

fn decode(text: &str) -> Vec<u8> {
    percent_decode_str(text).collect()
}

/// The folder of all checkpoints in the result bucket.
pub const FOLDER: &str = "checkpoints/";

/// Returns the folder of a task's checkpoints in the result bucket. By a digest: a source key may be as long as keys
/// may be. It is of the deployment (the name of its tasks table) and the task: deployments may share a bucket.
#[must_use]
pub fn folder(deployment: &str, src: &SrcId) -> String {
    format!("{FOLDER}{}/", digest_hex(&[deployment, src.as_str()], 32))
}

/// Returns the folder of a task's checkpoints that versions before the deployment was in the name used. Another
/// deployment's may be in it too.
#[must_use]
pub fn earlier_folder(src: &SrcId) -> String {
    format!("{FOLDER}{}/", digest_hex(&[src.as_str()], 32))
}

/// Returns the folder of one save. No two saves share one, so no save touches another's files.
#[must_use]
pub fn save_folder(deployment: &str, src: &SrcId, attempt: AttemptNumber, save: u32) -> String {
    format!("{}{attempt}.{save}/", folder(deployment, src))
}

/// Returns the key of the `n`-th file of a save. By a number: a file may have any name, that of the list too, and any
/// length.
#[must_use]
pub fn file_key(save_folder: &str, n: usize) -> String {
    format!("{save_folder}f/{n}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(key: &str) -> Entry {
        let saved = Saved { key: key.to_owned(), bytes: 1, stamp: Stamp::default() };
        Entry { content: Content::File(saved), mode: Some(0o640) }
    }

    fn manifest(keys: &[(&str, &str)]) -> Manifest {
        Manifest { entries: keys.iter().map(|(name, key)| ((*name).as_bytes().to_vec(), file(key))).collect() }
    }

    #[test]
    fn only_what_no_file_needs_any_more_may_go() {
        let old = manifest(&[("a", "1/a"), ("b", "1/b"), ("c", "1/c")]);
        let new = manifest(&[("a", "1/a"), ("b", "2/b")]);
        assert_eq!(old.keys_not_in(&new), ["1/b", "1/c"]);
        assert!(new.keys_not_in(&new).is_empty());
    }

    #[test]
    fn a_list_of_the_first_version_is_read() {
        let text = br#"{"files":{"a/b":{"key":"checkpoints/x/1.1/a/b","bytes":7,"changed_ns":12}}}"#;
        let manifest = Manifest::from_json(text).unwrap();
        let Content::File(saved) = &manifest.entries[b"a/b".as_slice()].content else { panic!() };
        assert_eq!((saved.key.as_str(), saved.bytes), ("checkpoints/x/1.1/a/b", 7));
        assert_eq!(manifest.entries[b"a/b".as_slice()].mode, None);
    }

    /// An earlier version must not take a list of this one for an empty one.
    #[test]
    fn a_list_has_no_field_of_the_first_version() {
        let text = manifest(&[("a", "1/a")]).to_json().unwrap();
        assert!(serde_json::from_slice::<ListV1>(&text).is_err());
    }

    #[test]
    fn what_has_no_place_in_the_folder_is_refused() {
        let read = |entries: &str| Manifest::from_json(format!(r#"{{"version":2,"entries":[{entries}]}}"#).as_bytes());
        assert!(read(r#"{"name":"a/b","key":"k","bytes":1},{"name":"a","folder":true}"#).is_ok());
        for name in
            ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a//b", "a/", "./a", "a%2F..%2Fb", "a%00b", "%2e%2e"]
        {
            assert!(read(&format!(r#"{{"name":"{name}","key":"k","bytes":1}}"#)).is_err(), "{name}");
        }
        for entries in [
            // Through a link, through a file, twice, of two kinds, of none.
            r#"{"name":"a","target":"/etc"},{"name":"a/b","key":"k","bytes":1}"#,
            r#"{"name":"a","target":"/etc"},{"name":"a/b/c","folder":true}"#,
            r#"{"name":"a","key":"k","bytes":1},{"name":"a/b","target":"x"}"#,
            r#"{"name":"a","key":"k","bytes":1},{"name":"%61","key":"k","bytes":1}"#,
            r#"{"name":"a","key":"k","bytes":1,"target":"x"}"#,
            r#"{"name":"a","key":"k"}"#,
            r#"{"name":"a"}"#,
            r#"{"name":"a","folder":true,"mode":"rwx"}"#,
        ] {
            assert!(read(entries).is_err(), "{entries}");
        }
        assert!(matches!(Manifest::from_json(br#"{"version":3,"entries":[]}"#), Err(ManifestError::Version(3))));
        assert!(Manifest::from_json(b"{}").is_err());
    }

    #[test]
    fn text_stays_readable() {
        assert_eq!(encode("ü/100%.txt".as_bytes()), "ü/100%25.txt");
        assert_eq!(encode(b"a\xff"), "a%FF");
    }

    #[test]
    fn deployments_do_not_share_a_folder() {
        let src = SrcId::new("a").unwrap();
        assert_ne!(folder("one", &src), folder("other", &src));
        assert_ne!(folder("one", &src), earlier_folder(&src));
    }

    proptest! {
        #[test]
        fn every_name_reads_back(names in proptest::collection::btree_set("[^/\\x00]{1,40}|\\PC{1,20}", 0..5),
                                 odd in proptest::collection::vec(1_u8..=255, 1..300),
                                 target in proptest::collection::vec(1_u8..=255, 1..300)) {
            let mut manifest = Manifest::default();
            for name in names.iter().filter(|name| !matches!(name.as_str(), "." | "..") && !name.contains('/')) {
                manifest.entries.insert(name.as_bytes().to_vec(), file("k"));
            }
            let odd: Vec<u8> = odd.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect();
            prop_assume!(!matches!(odd.as_slice(), b"." | b".."));
            manifest.entries.insert(odd, Entry { content: Content::Link(target), mode: None });
            let read = Manifest::from_json(&manifest.to_json().unwrap()).unwrap();
            prop_assert_eq!(read, manifest);
        }
    }
}
