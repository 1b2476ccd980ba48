//! The fuzz target: the progress file.

use std::path::PathBuf;

use super::progress_file::{ProgressFile, Text};
use crate::domain::progress::Progress;

/// Parses a progress file. The last valid line counts, whether the file is read once or while it grows, and each line
/// is reported once.
pub(crate) fn progress(bytes: &[u8]) {
    let text = |end: usize| Text { bytes: bytes[..end].to_vec(), start: 0 };
    let mut whole = ProgressFile::new(PathBuf::new());
    let newest = whole.newest_of(&text(bytes.len()), true, false);
    let plain = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    if let Some(text) = plain {
        assert_eq!(newest, text.split('\n').rev().find_map(Progress::parse));
    }
    assert!(newest.is_none_or(|newest| newest.pct() <= 99));

    let malformed = whole.malformed();
    assert_eq!(whole.newest_of(&text(bytes.len()), true, true), newest);
    assert_eq!(whole.malformed(), malformed, "a line is counted once");

    let mut growing = ProgressFile::new(PathBuf::new());
    for end in [bytes.len() / 3, bytes.len() / 2] {
        growing.newest_of(&text(end), false, false);
    }
    assert_eq!(growing.newest_of(&text(bytes.len()), true, false), newest);
}
