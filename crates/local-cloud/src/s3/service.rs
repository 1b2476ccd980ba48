//! The operations on objects and buckets, one method each.

use std::io::{Seek as _, SeekFrom};

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumMode, ChecksumType, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output,
    PutObjectInput, PutObjectOutput, Range, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::super::names::REGION;
use super::checksums::{Checksums, with_checksums};
use super::local::{S3Local, answer, new_meta};
use super::object_files::{Condition, Meta, Stat, io_error};
use super::request_body::{self, Claims};
use super::response_body::body_of;
use super::{listing, multipart};

/// S3's content type for an object that was put without one.
const CONTENT_TYPE: &str = "binary/octet-stream";

fn resolve_range(range: Option<Range>, stat: &Stat) -> S3Result<(u64, u64, Option<String>)> {
    let Some(range) = range else { return Ok((0, stat.size, None)) };
    if stat.size == 0 {
        return Err(s3_error!(InvalidRange));
    }
    let bytes = range.check(stat.size)?;
    let text = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, stat.size);
    Ok((bytes.start, bytes.end - bytes.start, Some(text)))
}

/// Returns the checksums that the answer has, and their type: S3 gives them when asked, and of the whole object only.
fn checksums_for(mode: Option<&ChecksumMode>, is_ranged: bool, meta: &Meta) -> (Checksums, Option<ChecksumType>) {
    let is_wanted = mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED) && !is_ranged;
    if !is_wanted || meta.checksums.is_empty() {
        return (Checksums::default(), None);
    }
    (meta.checksums.clone(), Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT)))
}

fn signed(size: u64) -> Option<i64> {
    i64::try_from(size).ok()
}

#[async_trait::async_trait]
impl S3 for S3Local {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let found = self.run_blocking(move |objects| {
            let (mut file, stat) = objects.open(&input.bucket, &input.key)?;
            Condition { if_match: input.if_match, if_none_match: input.if_none_match }.check_read(&stat)?;
            let (first, length, content_range) = resolve_range(input.range, &stat)?;
            file.seek(SeekFrom::Start(first)).map_err(|e| io_error("seeking", &e))?;
            let meta = objects.meta(&stat.etag);
            let (checksums, checksum_type) =
                checksums_for(input.checksum_mode.as_ref(), content_range.is_some(), &meta);
            let body = body_of(file, &stat, length).map_err(|e| io_error("reading", &e))?;
            let output = GetObjectOutput {
                body: Some(body.into()),
                accept_ranges: Some("bytes".to_owned()),
                content_length: signed(length),
                content_range,
                content_type: Some(meta.content_type.unwrap_or_else(|| CONTENT_TYPE.to_owned())),
                e_tag: Some(stat.etag()),
                last_modified: Some(stat.modified.into()),
                metadata: Some(meta.metadata.into_iter().collect()),
                checksum_type,
                ..GetObjectOutput::default()
            };
            Ok(with_checksums!(checksums, output))
        });
        answer(found.await?)
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let found = self.run_blocking(move |objects| {
            let (_, stat) = objects.open(&input.bucket, &input.key)?;
            Condition { if_match: input.if_match, if_none_match: input.if_none_match }.check_read(&stat)?;
            let meta = objects.meta(&stat.etag);
            let (checksums, checksum_type) = checksums_for(input.checksum_mode.as_ref(), false, &meta);
            let output = HeadObjectOutput {
                accept_ranges: Some("bytes".to_owned()),
                content_length: signed(stat.size),
                content_type: Some(meta.content_type.unwrap_or_else(|| CONTENT_TYPE.to_owned())),
                e_tag: Some(stat.etag()),
                last_modified: Some(stat.modified.into()),
                metadata: Some(meta.metadata.into_iter().collect()),
                checksum_type,
                ..HeadObjectOutput::default()
            };
            Ok(with_checksums!(checksums, output))
        });
        answer(found.await?)
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let claims = Claims::from_headers(&req.headers, req.input.content_length, req.trailing_headers);
        let input = req.input;
        self.objects.bucket(&input.bucket)?;
        let received = request_body::receive(&self.objects.layout, input.body, claims).await?;
        let meta = new_meta(input.content_type, input.metadata, received.checksums);
        let condition = Condition { if_match: input.if_match, if_none_match: input.if_none_match };
        let checksums = meta.checksums.clone();
        let etag = self
            .run_blocking(move |objects| {
                objects.commit((&input.bucket, &input.key), received.staged, &condition, &meta, || Ok(()))
            })
            .await?;
        answer(with_checksums!(checksums, PutObjectOutput { e_tag: Some(etag), ..PutObjectOutput::default() }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = req.input;
        self.run_blocking(move |objects| objects.remove(&input.bucket, &input.key)).await?;
        answer(DeleteObjectOutput::default())
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = req.input;
        let is_quiet = input.delete.quiet.unwrap_or(false);
        let deleted = self
            .run_blocking(move |objects| {
                let mut deleted = Vec::new();
                for object in input.delete.objects {
                    objects.remove(&input.bucket, &object.key)?;
                    deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
                }
                Ok(deleted)
            })
            .await?;
        answer(DeleteObjectsOutput { deleted: (!is_quiet).then_some(deleted), ..DeleteObjectsOutput::default() })
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        answer(self.run_blocking(move |objects| listing::list_page(objects, &req.input)).await?)
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.objects.bucket(&req.input.bucket)?;
        answer(HeadBucketOutput { bucket_region: Some(REGION.to_owned()), ..HeadBucketOutput::default() })
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        multipart::create(self, req).await
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        multipart::upload_part(self, req).await
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(self, req).await
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        multipart::abort(self, req).await
    }
}
