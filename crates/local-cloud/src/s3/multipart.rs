//! The operations on multipart uploads, one function each.

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, ChecksumType, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3Request, S3Response, S3Result};

use super::checksums::{Checksums, checksums_of, with_checksums};
use super::local::{S3Local, answer, new_meta};
use super::object_files::Condition;
use super::request_body::{self, Claims};
use super::uploads::{self, Completion, Upload};

pub(super) async fn create(
    local: &S3Local,
    req: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let input = req.input;
    let upload = Upload {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        meta: new_meta(input.content_type, input.metadata, Checksums::default()),
    };
    let id = local.run_blocking(move |objects| uploads::create(objects, &upload)).await?;
    answer(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(id),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: input.checksum_type,
        ..CreateMultipartUploadOutput::default()
    })
}

pub(super) async fn upload_part(
    local: &S3Local,
    req: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let claims = Claims::from_headers(&req.headers, req.input.content_length, req.trailing_headers);
    let input = req.input;
    let objects = &local.objects;
    objects.bucket(&input.bucket)?;
    let (folder, _) = uploads::find(objects, &input.upload_id, &input.bucket, &input.key)?;
    let received = request_body::receive(&objects.layout, input.body, claims).await?;
    let checksums = received.checksums.clone();
    let etag =
        local.run_blocking(move |objects| uploads::store_part(objects, &folder, input.part_number, received)).await?;
    answer(with_checksums!(checksums, UploadPartOutput { e_tag: Some(etag), ..UploadPartOutput::default() }))
}

pub(super) async fn complete(
    local: &S3Local,
    req: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = req.input;
    let mut checksums = checksums_of!(input);
    // CRC-64/NVME is always of the whole object. For a composite checksum (`…-3`), the parts were checked on arrival.
    let is_full = input.checksum_type.as_ref().is_some_and(|kind| kind.as_str() == ChecksumType::FULL_OBJECT);
    checksums.retain(|algorithm| is_full || algorithm == "crc64nvme");
    let whole = Completion {
        condition: Condition { if_match: input.if_match, if_none_match: input.if_none_match },
        size: input.mpu_object_size,
        checksums: checksums.clone(),
        is_full,
    };
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id);
    let etag =
        local.run_blocking(move |objects| uploads::complete(objects, (&bucket, &key, &id), &named, whole)).await?;
    let output = CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag),
        ..CompleteMultipartUploadOutput::default()
    };
    answer(with_checksums!(checksums, output))
}

pub(super) async fn abort(
    local: &S3Local,
    req: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = req.input;
    local
        .run_blocking(move |objects| {
            objects.bucket(&input.bucket)?;
            let (folder, _) = uploads::find(objects, &input.upload_id, &input.bucket, &input.key)?;
            uploads::remove(&folder)
        })
        .await?;
    answer(AbortMultipartUploadOutput::default())
}
