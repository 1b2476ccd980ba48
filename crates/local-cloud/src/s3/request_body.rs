//! A request's body on its way to disk: streamed into a staged file, its length and checksums checked.
//!
//! `s3s` takes apart the signature and the `aws-chunked` framing, but leaves the checksums in the headers and
//! trailers unchecked; S3 refuses a body that does not match them with `BadDigest`, and so must this.

use std::collections::BTreeMap;

use http_body_util::BodyExt as _;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{Body, S3Error, S3ErrorCode, S3Result, TrailingHeaders, s3_error};
use tokio::io::AsyncWriteExt as _;

use super::super::layout::Layout;
use super::object_files::{Staged, broken};

const HEADER_PREFIX: &str = "x-amz-checksum-";
const ALGORITHMS: [&str; 5] = ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"];

/// A body that has arrived whole.
pub(super) struct Received {
    pub(super) staged: Staged,
    /// What was claimed of it and is true, by algorithm.
    pub(super) checksums: BTreeMap<String, String>,
}

/// What the request says about its body.
pub(super) struct Claims {
    pub(super) length: Option<i64>,
    /// By algorithm, from the headers.
    checksums: BTreeMap<String, String>,
    /// Algorithms whose checksums come in the trailer.
    announced: Vec<&'static str>,
    trailers: Option<TrailingHeaders>,
}

impl Claims {
    pub(super) fn read(headers: &http::HeaderMap, length: Option<i64>, trailers: Option<TrailingHeaders>) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let announced = text("x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
        let is_announced = |algorithm: &&str| {
            announced.split(',').any(|name| name.trim().strip_prefix(HEADER_PREFIX) == Some(algorithm))
        };
        Self {
            length,
            checksums: ALGORITHMS
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), text(&format!("{HEADER_PREFIX}{name}"))?.to_owned())))
                .collect(),
            announced: ALGORITHMS.into_iter().filter(is_announced).collect(),
            trailers,
        }
    }

    /// Adds what the trailer holds, once the body has been read to its end.
    fn finish(mut self) -> S3Result<BTreeMap<String, String>> {
        let trailers = self.trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
        for algorithm in self.announced {
            let value = trailers.get(format!("{HEADER_PREFIX}{algorithm}")).and_then(|value| value.to_str().ok());
            let Some(value) = value else {
                return Err(s3_error!(InvalidRequest, "the trailer lacks the {algorithm} checksum it announced"));
            };
            self.checksums.insert(algorithm.to_owned(), value.to_owned());
        }
        Ok(self.checksums)
    }
}

/// Takes a whole body in, or fails and leaves nothing behind.
pub(super) async fn receive(layout: &Layout, body: Option<StreamingBlob>, claims: Claims) -> S3Result<Received> {
    let staged = Staged::new(layout)?;
    let mut file = tokio::fs::File::from_std(staged.file.try_clone().map_err(|e| broken("opening", &e))?);
    let mut hasher = hasher(claims.checksums.keys().map(String::as_str).chain(claims.announced.iter().copied()));
    let mut body = body.map(Body::from).unwrap_or_default();
    let mut size = 0_u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            S3Error::with_message(S3ErrorCode::IncompleteBody, format!("the body broke off: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            hasher.update(&data);
            size += data.len() as u64;
            file.write_all(&data).await.map_err(|e| broken("writing", &e))?;
        }
    }
    file.flush().await.map_err(|e| broken("writing", &e))?;
    if claims.length.is_some_and(|length| u64::try_from(length) != Ok(size)) {
        return Err(s3_error!(IncompleteBody, "the body has {size} bytes, not the number its header gives"));
    }
    let checksums = claims.finish()?;
    compare(&checksums, &by_name(hasher.finalize()))?;
    Ok(Received { staged, checksums })
}

/// Makes a hasher for these algorithms.
pub(super) fn hasher<'a>(algorithms: impl IntoIterator<Item = &'a str>) -> ChecksumHasher {
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
    hasher
}

/// Gives the checksums that are there, by algorithm.
pub(super) fn by_name(checksum: Checksum) -> BTreeMap<String, String> {
    let all = [
        checksum.checksum_crc32,
        checksum.checksum_crc32c,
        checksum.checksum_crc64nvme,
        checksum.checksum_sha1,
        checksum.checksum_sha256,
    ];
    ALGORITHMS.iter().zip(all).filter_map(|(name, value)| Some(((*name).to_owned(), value?))).collect()
}

/// Refuses bytes whose checksum is not the one claimed.
pub(super) fn compare(claimed: &BTreeMap<String, String>, computed: &BTreeMap<String, String>) -> S3Result {
    for (algorithm, value) in claimed {
        if computed.get(algorithm) != Some(value) {
            return Err(s3_error!(BadDigest, "The {algorithm} you specified did not match the calculated checksum."));
        }
    }
    Ok(())
}
