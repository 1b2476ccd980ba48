//! The operations on multipart uploads, one function each.

use std::collections::BTreeMap;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Checksum, ChecksumType, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, ListMultipartUploadsInput,
    ListMultipartUploadsOutput, ListPartsInput, ListPartsOutput, MultipartUpload, Part, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3Request, S3Response, S3Result};

use super::local::{S3Local, answer, meta_of};
use super::object_files::{Condition, Meta};
use super::request_body::{self, Claims};
use super::uploads::{self, Upload, Whole};

/// S3's own pages.
const PAGE_MAX: i32 = 1000;

pub(super) async fn create(
    local: &S3Local,
    req: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let input = req.input;
    let upload = Upload {
        bucket: input.bucket.clone(),
        key: input.key.clone(),
        meta: meta_of(input.content_type, input.metadata, BTreeMap::new()),
    };
    let id = local.on_disk(move |objects| uploads::create(objects, &upload)).await?;
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
    let claims = Claims::read(&req.headers, req.input.content_length, req.trailing_headers);
    let input = req.input;
    let objects = &local.objects;
    objects.bucket(&input.bucket)?;
    let (folder, _) = uploads::find(objects, &input.upload_id, &input.bucket, &input.key)?;
    let received = request_body::receive(&objects.layout, input.body, claims).await?;
    let checksum = Meta { checksums: received.checksums.clone(), ..Meta::default() }.checksum();
    let etag = local.on_disk(move |objects| uploads::keep_part(objects, &folder, input.part_number, received)).await?;
    answer(UploadPartOutput {
        e_tag: Some(etag),
        checksum_crc32: checksum.checksum_crc32,
        checksum_crc32c: checksum.checksum_crc32c,
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        checksum_sha1: checksum.checksum_sha1,
        checksum_sha256: checksum.checksum_sha256,
        ..UploadPartOutput::default()
    })
}

pub(super) async fn complete(
    local: &S3Local,
    req: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let input = req.input;
    let claimed = request_body::by_name(Checksum {
        checksum_crc32: input.checksum_crc32,
        checksum_crc32c: input.checksum_crc32c,
        checksum_crc64nvme: input.checksum_crc64nvme,
        checksum_sha1: input.checksum_sha1,
        checksum_sha256: input.checksum_sha256,
        checksum_type: None,
    });
    // CRC-64/NVME is always of the whole; of a composite one (`…-3`) the parts were checked as they came.
    let is_full = input.checksum_type.as_ref().is_some_and(|kind| kind.as_str() == ChecksumType::FULL_OBJECT);
    let checksums: BTreeMap<_, _> =
        claimed.into_iter().filter(|(algorithm, _)| is_full || algorithm == "crc64nvme").collect();
    let checksum = Meta { checksums: checksums.clone(), ..Meta::default() }.checksum();
    let whole = Whole {
        condition: Condition { if_match: input.if_match, if_none_match: input.if_none_match },
        size: input.mpu_object_size,
        checksums,
        is_full,
    };
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id);
    let etag = local.on_disk(move |objects| uploads::complete(objects, (&bucket, &key, &id), &named, whole)).await?;
    answer(CompleteMultipartUploadOutput {
        location: Some(format!("/{}/{}", input.bucket, input.key)),
        bucket: Some(input.bucket),
        key: Some(input.key),
        e_tag: Some(etag),
        checksum_crc32: checksum.checksum_crc32,
        checksum_crc32c: checksum.checksum_crc32c,
        checksum_crc64nvme: checksum.checksum_crc64nvme,
        checksum_sha1: checksum.checksum_sha1,
        checksum_sha256: checksum.checksum_sha256,
        ..CompleteMultipartUploadOutput::default()
    })
}

pub(super) async fn abort(
    local: &S3Local,
    req: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let input = req.input;
    local
        .on_disk(move |objects| {
            objects.bucket(&input.bucket)?;
            let (folder, _) = uploads::find(objects, &input.upload_id, &input.bucket, &input.key)?;
            uploads::remove(&folder)
        })
        .await?;
    answer(AbortMultipartUploadOutput::default())
}

pub(super) async fn list_parts(
    local: &S3Local,
    req: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let input = req.input;
    let (bucket, key, id) = (input.bucket.clone(), input.key.clone(), input.upload_id.clone());
    let mut parts = local
        .on_disk(move |objects| {
            objects.bucket(&bucket)?;
            let (folder, _) = uploads::find(objects, &id, &bucket, &key)?;
            uploads::parts(&folder)
        })
        .await?;
    let marker = input.part_number_marker.unwrap_or(0);
    parts.retain(|part| part.number > marker);
    let page = page_size(input.max_parts);
    let is_truncated = parts.len() > page;
    parts.truncate(page);
    let part = |part: &uploads::Part| {
        let checksum = Meta { checksums: part.checksums.clone(), ..Meta::default() }.checksum();
        Part {
            part_number: Some(part.number),
            e_tag: Some(part.stat.etag()),
            size: i64::try_from(part.stat.size).ok(),
            last_modified: Some(part.stat.modified.into()),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
        }
    };
    answer(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        part_number_marker: input.part_number_marker,
        max_parts: input.max_parts,
        is_truncated: Some(is_truncated),
        next_part_number_marker: parts.last().filter(|_| is_truncated).map(|last| last.number),
        parts: Some(parts.iter().map(part).collect()),
        ..ListPartsOutput::default()
    })
}

pub(super) async fn list_uploads(
    local: &S3Local,
    req: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let input = req.input;
    let bucket = input.bucket.clone();
    let mut all = local.on_disk(move |objects| uploads::all(objects, &bucket)).await?;
    let prefix = input.prefix.as_deref().unwrap_or_default();
    let marker = (input.key_marker.as_deref().unwrap_or_default(), input.upload_id_marker.as_deref());
    all.retain(|(key, id, _)| {
        // With a key alone, all of that key's uploads are past.
        let is_past = match marker {
            (after, None) => key.as_str() <= after,
            (after, Some(after_id)) => (key.as_str(), id.as_str()) <= (after, after_id),
        };
        key.starts_with(prefix) && !is_past
    });
    let page = page_size(input.max_uploads);
    let is_truncated = all.len() > page;
    all.truncate(page);
    let last = all.last().filter(|_| is_truncated);
    answer(ListMultipartUploadsOutput {
        next_key_marker: last.map(|(key, ..)| key.clone()),
        next_upload_id_marker: last.map(|(_, id, _)| id.clone()),
        bucket: Some(input.bucket),
        prefix: input.prefix,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        max_uploads: input.max_uploads,
        is_truncated: Some(is_truncated),
        uploads: Some(
            all.into_iter()
                .map(|(key, id, began)| MultipartUpload {
                    key: Some(key),
                    upload_id: Some(id),
                    initiated: Some(began.into()),
                    ..MultipartUpload::default()
                })
                .collect(),
        ),
        ..ListMultipartUploadsOutput::default()
    })
}

fn page_size(wanted: Option<i32>) -> usize {
    usize::try_from(wanted.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX)).unwrap_or(1)
}
