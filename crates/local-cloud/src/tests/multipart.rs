//! Multipart uploads.

use std::fs;
use std::slice;

use aws_sdk_s3::operation::complete_multipart_upload::builders::CompleteMultipartUploadFluentBuilder;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};

use super::*;

const MIB: usize = 1024 * 1024;

async fn create(s3: &aws_sdk_s3::Client, key: &str) -> String {
    let create = s3
        .create_multipart_upload()
        .bucket(RESULT_BUCKET)
        .key(key)
        .metadata("attempt", "2")
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .checksum_type(ChecksumType::FullObject);
    create.send().await.unwrap().upload_id.unwrap()
}

async fn part(s3: &aws_sdk_s3::Client, key: &str, id: &str, number: i32, bytes: Vec<u8>) -> CompletedPart {
    let part = s3
        .upload_part()
        .bucket(RESULT_BUCKET)
        .key(key)
        .upload_id(id)
        .part_number(number)
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .body(bytes.into())
        .send()
        .await
        .unwrap();
    assert!(part.checksum_crc64_nvme().is_some());
    CompletedPart::builder().part_number(number).set_e_tag(part.e_tag).build()
}

fn complete(
    s3: &aws_sdk_s3::Client,
    key: &str,
    id: &str,
    parts: &[CompletedPart],
) -> CompleteMultipartUploadFluentBuilder {
    let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
    s3.complete_multipart_upload().bucket(RESULT_BUCKET).key(key).upload_id(id).multipart_upload(parts)
}

fn open_uploads(cloud: &TestCloud) -> usize {
    fs::read_dir(cloud.dir().join(".lighthpc/uploads")).unwrap().count()
}

fn crc64(bytes: &[u8]) -> String {
    use s3s::crypto::{Checksum as _, Crc64Nvme};
    let sum = Crc64Nvme::checksum(bytes);
    aws_smithy_types::base64::encode(sum)
}

#[tokio::test]
async fn parts_become_an_object_once() {
    let cloud = TestCloud::new();
    let s3 = cloud.s3();
    let key = "dir/big result";
    let id = create(&s3, key).await;
    let bytes = [vec![1; 5 * MIB], vec![2; 6 * MIB], vec![3; 10]];
    let mut parts = Vec::new();
    // Out of order, and part 1 twice: the last upload of a number counts.
    part(&s3, key, &id, 1, vec![9; 100]).await;
    for number in [3, 1, 2] {
        let bytes = bytes[usize::try_from(number).unwrap() - 1].clone();
        parts.push(part(&s3, key, &id, number, bytes).await);
    }
    parts.sort_by_key(CompletedPart::part_number);
    assert_eq!(open_uploads(&cloud), 1);

    let whole = bytes.concat();
    let size = i64::try_from(whole.len()).unwrap();
    let done = complete(&s3, key, &id, &parts).checksum_type(ChecksumType::FullObject);
    let wrong = done.clone().checksum_crc64_nvme(crc64(b"other")).send().await.unwrap_err();
    assert_eq!(code(&wrong), "BadDigest");
    let wrong = done.clone().mpu_object_size(size + 1).send().await.unwrap_err();
    assert_eq!(code(&wrong), "InvalidRequest");
    let done = done.checksum_crc64_nvme(crc64(&whole)).mpu_object_size(size).if_none_match("*");
    let answer = done.clone().send().await.unwrap();

    let object = s3.get_object().bucket(RESULT_BUCKET).key(key).send().await.unwrap();
    assert_eq!(object.e_tag(), answer.e_tag());
    assert_eq!(object.metadata().unwrap()["attempt"], "2");
    assert_eq!(object.checksum_crc64_nvme(), Some(crc64(&whole).as_str()));
    assert!(object.body.collect().await.unwrap().to_vec() == whole);
    assert!(fs::read(cloud.object_path(RESULT_BUCKET, key)).unwrap() == whole);
    assert_eq!(code(&done.send().await.unwrap_err()), "NoSuchUpload");
    assert_eq!(open_uploads(&cloud), 0);
    assert_eq!(fs::read_dir(cloud.dir().join(".lighthpc/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_s3_would_refuse_is_refused() {
    let cloud = TestCloud::new();
    let s3 = cloud.s3();
    let id = create(&s3, "k").await;
    let small = part(&s3, "k", &id, 1, vec![1; 10]).await;
    let last = part(&s3, "k", &id, 2, vec![2; 10]).await;
    let refused = async |parts: &[CompletedPart]| code(&complete(&s3, "k", &id, parts).send().await.unwrap_err());

    assert_eq!(refused(&[small.clone(), last.clone()]).await, "EntityTooSmall");
    assert_eq!(refused(&[last.clone(), small.clone()]).await, "InvalidPartOrder");
    assert_eq!(refused(&[CompletedPart::builder().part_number(7).e_tag("\"x\"").build()]).await, "InvalidPart");
    assert_eq!(refused(&[CompletedPart::builder().part_number(1).e_tag("\"x\"").build()]).await, "InvalidPart");
    let wrong = complete(&s3, "other", &id, slice::from_ref(&small)).send().await.unwrap_err();
    assert_eq!(code(&wrong), "NoSuchUpload");
    let wrong = complete(&s3, "k", "../../etc", slice::from_ref(&small)).send().await.unwrap_err();
    assert_eq!(code(&wrong), "NoSuchUpload");

    // A refused condition leaves the upload open.
    s3.put_object().bucket(RESULT_BUCKET).key("k").send().await.unwrap();
    let taken = complete(&s3, "k", &id, slice::from_ref(&small)).if_none_match("*").send().await.unwrap_err();
    assert_eq!(code(&taken), "PreconditionFailed");
    assert_eq!(open_uploads(&cloud), 1);

    s3.abort_multipart_upload().bucket(RESULT_BUCKET).key("k").upload_id(&id).send().await.unwrap();
    assert_eq!(open_uploads(&cloud), 0);
    assert_eq!(refused(&[small]).await, "NoSuchUpload");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_completions_one_wins() {
    let cloud = TestCloud::new();
    let s3 = cloud.s3();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let id = create(&s3, "k").await;
        let parts = [part(&s3, "k", &id, 1, vec![1; MIB]).await];
        set.spawn(complete(&s3, "k", &id, &parts).if_none_match("*").send());
    }
    let outcomes = set.join_all().await;

    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let refused = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    assert!(refused.map(code).all(|code| code == "PreconditionFailed"));
    assert_eq!(open_uploads(&cloud), 7);
}
