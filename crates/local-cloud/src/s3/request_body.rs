//! Streams a request's body into a staged file, and checks its length and checksums.
//!
//! `s3s` checks the signature and decodes the `aws-chunked` framing, but does not check the checksums in headers and
//! trailers. S3 refuses a body that does not match them with `BadDigest`, and so does this module.

use std::io::Write as _;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3ErrorCode, S3Result, TrailingHeaders, s3_error};
use tokio::io::AsyncWriteExt as _;

use super::super::layout::Layout;
use super::checksums::{ALGORITHMS, Checksums, Hasher};
use super::local::SMALL_BYTES;
use super::object_files::{Staged, io_error};

const HEADER_PREFIX: &str = "x-amz-checksum-";

/// A complete body.
pub(super) struct Received {
    pub(super) staged: Staged,
    /// The checksums of the request, verified.
    pub(super) checksums: Checksums,
}

/// The length and the checksums that a request declares.
pub(super) struct Claims {
    pub(super) length: Option<i64>,
    /// From the headers.
    checksums: Checksums,
    /// The algorithms whose checksums are in the trailer.
    announced: Vec<&'static str>,
    trailers: Option<TrailingHeaders>,
}

impl Claims {
    pub(super) fn from_headers(
        headers: &http::HeaderMap,
        length: Option<i64>,
        trailers: Option<TrailingHeaders>,
    ) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let announced = text("x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
        let is_announced = |algorithm: &&str| {
            announced.split(',').any(|name| name.trim().strip_prefix(HEADER_PREFIX) == Some(algorithm))
        };
        Self {
            length,
            checksums: ALGORITHMS
                .iter()
                .filter_map(|name| Some((*name, text(&format!("{HEADER_PREFIX}{name}"))?.to_owned())))
                .collect(),
            announced: ALGORITHMS.into_iter().filter(is_announced).collect(),
            trailers,
        }
    }

    /// Adds the checksums of the trailer, after the body.
    fn finish(mut self) -> S3Result<Checksums> {
        let trailers = self.trailers.and_then(|trailers| trailers.take()).unwrap_or_default();
        for algorithm in self.announced {
            let value = trailers.get(format!("{HEADER_PREFIX}{algorithm}")).and_then(|value| value.to_str().ok());
            let Some(value) = value else {
                return Err(s3_error!(InvalidRequest, "the trailer lacks the {algorithm} checksum it announced"));
            };
            self.checksums.insert(algorithm, value.to_owned());
        }
        Ok(self.checksums)
    }
}

/// Receives a complete body, or fails and leaves no file.
pub(super) async fn receive(layout: &Layout, body: Option<StreamingBlob>, claims: Claims) -> S3Result<Received> {
    let mut staged = Staged::new(layout)?;
    let mut file = lighthpc_runtime::File::from_std(staged.file.try_clone().map_err(|e| io_error("opening", &e))?);
    // Not written yet, while it is small.
    let mut held = Vec::new();
    let mut hasher = Hasher::new(claims.checksums.algorithms().chain(claims.announced.iter().copied()));
    let mut body = body.map(Body::from).unwrap_or_default();
    let mut size = 0_u64;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            S3Error::with_message(S3ErrorCode::IncompleteBody, format!("the body broke off: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            hasher.update(&data);
            size += data.len() as u64;
            if size <= SMALL_BYTES {
                held.extend_from_slice(&data);
                continue;
            }
            for block in [Bytes::from(std::mem::take(&mut held)), data] {
                file.write_all(&block).await.map_err(|e| io_error("writing", &e))?;
            }
        }
    }
    file.flush().await.map_err(|e| io_error("writing", &e))?;
    staged.file.write_all(&held).map_err(|e| io_error("writing", &e))?;
    if claims.length.is_some_and(|length| u64::try_from(length) != Ok(size)) {
        return Err(s3_error!(IncompleteBody, "the body has {size} bytes, not the number its header gives"));
    }
    let checksums = claims.finish()?;
    checksums.verify(&hasher.finish())?;
    Ok(Received { staged, checksums })
}
