//! The checksums of an object or a part: in headers, in the types of `s3s`, and on disk.

use std::collections::BTreeMap;

use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};

/// The algorithms, by their names in the headers.
pub(super) const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

/// Base64 values by the algorithm's name in the headers (`crc64nvme`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Checksums(BTreeMap<String, String>);

/// Reads the five fields for checksums that many types of `s3s` have.
macro_rules! checksums_of {
    ($from:expr) => {
        $crate::s3::checksums::Checksums::from_fields([
            &$from.checksum_crc32,
            &$from.checksum_crc32c,
            &$from.checksum_crc64nvme,
            &$from.checksum_sha1,
            &$from.checksum_sha256,
        ])
    };
}

/// Sets the five fields for checksums that many types of `s3s` have, and returns the value.
macro_rules! with_checksums {
    ($checksums:expr, $output:expr) => {{
        let (mut output, checksums) = ($output, &$checksums);
        output.checksum_crc32 = checksums.get("crc32");
        output.checksum_crc32c = checksums.get("crc32c");
        output.checksum_crc64nvme = checksums.get("crc64nvme");
        output.checksum_sha1 = checksums.get("sha1");
        output.checksum_sha256 = checksums.get("sha256");
        output
    }};
}

pub(super) use {checksums_of, with_checksums};

impl Checksums {
    /// Builds the value from fields in the order of [`ALGORITHMS`].
    pub(super) fn from_fields(values: [&Option<String>; ALGORITHMS.len()]) -> Self {
        ALGORITHMS.into_iter().zip(values).filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, algorithm: &str) -> Option<String> {
        self.0.get(algorithm).cloned()
    }

    pub(super) fn insert(&mut self, algorithm: &str, value: String) {
        self.0.insert(algorithm.to_owned(), value);
    }

    /// Keeps the values of the algorithms that `is_kept` accepts.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.0.retain(|algorithm, _| is_kept(algorithm));
    }

    pub(super) fn algorithms(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns the first algorithm for which `other` has another value or none.
    pub(super) fn first_difference(&self, other: &Self) -> Option<&str> {
        self.algorithms().find(|algorithm| self.0.get(*algorithm) != other.0.get(*algorithm))
    }

    /// Refuses bytes whose checksums, as `computed`, are not the claimed ones.
    pub(super) fn verify(&self, computed: &Self) -> S3Result {
        match self.first_difference(computed) {
            None => Ok(()),
            Some(algorithm) => {
                Err(s3_error!(BadDigest, "The {algorithm} you specified did not match the calculated checksum."))
            }
        }
    }
}

impl<'a> FromIterator<(&'a str, String)> for Checksums {
    fn from_iter<I: IntoIterator<Item = (&'a str, String)>>(values: I) -> Self {
        Self(values.into_iter().map(|(algorithm, value)| (algorithm.to_owned(), value)).collect())
    }
}

/// Computes the checksums of some algorithms.
pub(super) struct Hasher(ChecksumHasher);

impl Hasher {
    pub(super) fn new<'a>(algorithms: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = ChecksumHasher::default();
        for algorithm in algorithms {
            match algorithm {
                "crc32" => hasher.crc32 = Some(Crc32::new()),
                "crc32c" => hasher.crc32c = Some(Crc32c::new()),
                "crc64nvme" => hasher.crc64nvme = Some(Crc64Nvme::new()),
                "sha1" => hasher.sha1 = Some(Sha1::new()),
                _ => hasher.sha256 = Some(Sha256::new()),
            }
        }
        Self(hasher)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> Checksums {
        let computed = self.0.finalize();
        checksums_of!(computed)
    }
}
