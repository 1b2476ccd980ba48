//! Whether an object is still the one with an earlier `ETag`: people see these folders, and change files.

use std::fs::File;
use std::io::{self, Read as _};

use super::checksums::{Checksums, Hasher};
use super::object_files::{ObjectFiles, locate, stat};

const BUFFER_BYTES: usize = 256 * 1024;

/// An object, compared with an earlier `ETag`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectState {
    /// Its `ETag` or its bytes are the same.
    Unchanged,
    /// There is no object.
    Missing,
    /// Its bytes are other ones.
    Changed,
}

impl ObjectFiles {
    /// Compares an object with an earlier `ETag`.
    ///
    /// Another `ETag` can be the same content in another file, if the folder was copied or the file was touched. Then
    /// the bytes are compared, by the checksum that was stored under the earlier `ETag`, as long as `budget_bytes`
    /// lasts. After that, a file of the same size counts as unchanged.
    pub(crate) fn compare(&self, bucket: &str, key: &str, etag: &str, budget_bytes: &mut u64) -> ObjectState {
        let etag = etag.trim_matches('"');
        let root = self.layout.bucket(bucket);
        let found = self.with_lock(|| stat(&root, key).ok().flatten());
        let Some(found) = found else { return ObjectState::Missing };
        if found.etag == etag {
            return ObjectState::Unchanged;
        }
        let bytes = etag.rsplit_once('-').and_then(|(_, bytes)| u64::from_str_radix(bytes, 16).ok());
        if bytes != Some(found.size) {
            return ObjectState::Changed;
        }
        let then = self.meta(etag).checksums;
        if then.is_empty() {
            return ObjectState::Changed;
        }
        let Some(left) = budget_bytes.checked_sub(found.size) else { return ObjectState::Unchanged };
        *budget_bytes = left;
        let place = self.with_lock(|| locate(&root, key));
        let now = place.map(|place| compute_checksums(&place, then.algorithms()));
        match now {
            Some(Ok(now)) if then.first_difference(&now).is_none() => ObjectState::Unchanged,
            Some(_) => ObjectState::Changed,
            None => ObjectState::Missing,
        }
    }

    /// Returns an object's `ETag`, if there is an object.
    pub(crate) fn etag(&self, bucket: &str, key: &str) -> Option<String> {
        let root = self.layout.bucket(bucket);
        self.with_lock(|| stat(&root, key)).ok().flatten().map(|found| found.etag)
    }
}

fn compute_checksums<'a>(place: &std::path::Path, algorithms: impl Iterator<Item = &'a str>) -> io::Result<Checksums> {
    let mut hasher = Hasher::new(algorithms);
    let mut file = File::open(place)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
    }
}
