//! Fuzz targets: the files of a folder that another program wrote, and names in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::names::RESULT_BUCKET;
use super::{keys, s3, sns};

/// A folder that is removed with its content.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the fuzzed folder can be removed");
    }
}

/// Opens a folder in which each small file beside the objects has these bytes.
pub fn folder(bytes: &[u8]) {
    let scratch = Scratch(std::env::temp_dir().join(format!("lighthpc-fuzz-{}", uuid::Uuid::new_v4())));
    let (layout, lock) = Layout::open(&scratch.0).expect("a new folder can be opened");
    s3::fuzz::metadata(layout.clone(), RESULT_BUCKET, bytes);

    fs::write(layout.notifications(), bytes).expect("the scratch folder can be written");
    if let Ok((messages, whole)) = sns::read_messages(&layout.notifications()) {
        assert_eq!(messages.len() + 1, bytes.split(|&byte| byte == b'\n').count());
        assert!(usize::try_from(whole).is_ok_and(|whole| whole <= bytes.len()));
    }

    drop(lock);
    fs::write(scratch.0.join(".lighthpc/version"), bytes).expect("the scratch folder can be written");
    let is_ours = std::str::from_utf8(bytes).is_ok_and(|text| text.trim() == "1");
    assert_eq!(Layout::open(&scratch.0).is_ok(), is_ours, "only this version's layout is opened");
}

/// Maps a key to a path and a path to a key. Both are inverse, and no path leaves its folder.
pub fn names(text: &str) {
    if (1..=1024).contains(&text.len()) {
        let path = keys::path_of(text);
        assert_eq!(keys::key_of(&path).as_deref(), Some(text), "{}", path.display());
        assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{}", path.display());
    }
    if let Some(key) = keys::key_of(Path::new(text)) {
        let natural = keys::path_of(&key);
        assert!(natural == Path::new(text) || keys::aside(&natural) == Path::new(text), "{key:?}");
    }
}
