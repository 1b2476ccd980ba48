//! Objects and their metadata.

use std::collections::HashMap;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_smithy_types::base64;
use crc_fast::CrcAlgorithm;

use super::mark::{Mark, MarkedObject};

/// An object, from the headers of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The size in bytes.
    pub bytes: u64,
    /// The `ETag` with quotes, as conditions need it.
    pub etag: String,
    /// The base64 CRC-64/NVME or CRC-32 of the whole object, if S3 stores one.
    pub(super) checksum: Option<Checksum>,
    /// The owner.
    pub(super) found: MarkedObject,
}

impl Object {
    /// Returns whether the object has another owner's mark. An object without a mark, of an earlier version, does not.
    #[must_use]
    pub fn is_of_another(&self, mark: &Mark) -> bool {
        self.found.is_of_another(mark)
    }
}

/// A checksum that S3 stores for a whole object, and that can be combined from ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checksum {
    pub(super) name: &'static str,
    pub(super) base64: String,
}

impl Checksum {
    pub(super) fn algorithm(&self) -> CrcAlgorithm {
        match self.name {
            "CRC-64/NVME" => CrcAlgorithm::Crc64Nvme,
            "CRC-32C" => CrcAlgorithm::Crc32Iscsi,
            _ => CrcAlgorithm::Crc32IsoHdlc,
        }
    }

    /// Returns whether the checksum is `crc`.
    pub(super) fn is(&self, crc: u64) -> bool {
        self.encode(crc) == self.base64
    }

    pub(super) fn encode(&self, crc: u64) -> String {
        match self.algorithm() {
            CrcAlgorithm::Crc64Nvme => base64::encode(crc.to_be_bytes()),
            _ => base64::encode(&crc.to_be_bytes()[4..]),
        }
    }
}

/// Converts the answer to a `HEAD` request.
pub(super) fn read_head(head: &HeadObjectOutput) -> Object {
    let checksums = [head.checksum_crc64_nvme(), head.checksum_crc32_c(), head.checksum_crc32()];
    object(head.content_length(), head.e_tag(), checksums, head.metadata())
}

/// Converts the answer to a `GET` request of a whole object.
pub(super) fn read_get(get: &GetObjectOutput) -> Object {
    let checksums = [get.checksum_crc64_nvme(), get.checksum_crc32_c(), get.checksum_crc32()];
    object(get.content_length(), get.e_tag(), checksums, get.metadata())
}

/// Makes an object of an answer's headers. A checksum with `-` is one of the parts' checksums, and cannot be used for
/// ranges.
fn object(
    bytes: Option<i64>,
    etag: Option<&str>,
    checksums: [Option<&str>; 3],
    metadata: Option<&HashMap<String, String>>,
) -> Object {
    let mut named = ["CRC-64/NVME", "CRC-32C", "CRC-32"].into_iter().zip(checksums);
    let whole = |(name, value): (_, Option<&str>)| {
        value.filter(|value| !value.contains('-')).map(|value| Checksum { name, base64: value.to_owned() })
    };
    Object {
        bytes: bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
        etag: etag.unwrap_or_default().to_owned(),
        checksum: named.find_map(whole),
        found: MarkedObject::read(metadata),
    }
}

/// Returns `s3://bucket/key`.
#[must_use]
pub fn uri(bucket: &str, key: &str) -> String {
    format!("s3://{bucket}/{key}")
}
