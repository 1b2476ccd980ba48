//! A request's body on its way to disk: streamed into a staged file, its length and checksums checked.
//!
//! `s3s` takes apart the signature and the `aws-chunked` framing, but leaves the checksums in the headers and
//! trailers unchecked; S3 refuses a body that does not match them with `BadDigest`, and so must this.

use http_body_util::BodyExt as _;
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3ErrorCode, S3Result, TrailingHeaders, s3_error};
use tokio::io::AsyncWriteExt as _;

use super::super::layout::Layout;
use super::checksums::{ALGORITHMS, Checksums, Hasher};
use super::object_files::{Staged, io_error};

const HEADER_PREFIX: &str = "x-amz-checksum-";

/// A body that has arrived whole.
pub(super) struct Received {
    pub(super) staged: Staged,
    /// What was claimed of it and is true.
    pub(super) checksums: Checksums,
}

/// What the request says about its body.
pub(super) struct Claims {
    pub(super) length: Option<i64>,
    /// From the headers.
    checksums: Checksums,
    /// Algorithms whose checksums come in the trailer.
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

    /// Adds what the trailer holds, once the body has been read to its end.
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

/// Takes a whole body in, or fails and leaves nothing behind.
pub(super) async fn receive(layout: &Layout, body: Option<StreamingBlob>, claims: Claims) -> S3Result<Received> {
    let staged = Staged::new(layout)?;
    let mut file = tokio::fs::File::from_std(staged.file.try_clone().map_err(|e| io_error("opening", &e))?);
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
            file.write_all(&data).await.map_err(|e| io_error("writing", &e))?;
        }
    }
    file.flush().await.map_err(|e| io_error("writing", &e))?;
    if claims.length.is_some_and(|length| u64::try_from(length) != Ok(size)) {
        return Err(s3_error!(IncompleteBody, "the body has {size} bytes, not the number its header gives"));
    }
    let checksums = claims.finish()?;
    checksums.verify(&hasher.finish())?;
    Ok(Received { staged, checksums })
}
