//! Objects: odd keys, conditions, ranges, links, lists.

use std::fs;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{ChecksumMode, Delete, ObjectIdentifier};
use tokio::task::JoinSet;

use super::*;

async fn keys(cloud: &TestCloud, prefix: &str, page: i32) -> Vec<String> {
    let pages =
        cloud.s3().list_objects_v2().bucket(SOURCE_BUCKET).prefix(prefix).max_keys(page).into_paginator().send();
    let pages: Vec<_> = pages.collect::<Result<_, _>>().await.unwrap();
    pages.iter().flat_map(ListObjectsV2Output::contents).map(|object| object.key().unwrap().to_owned()).collect()
}

fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "plain",
        "a b+c&d=e?f#g.txt",
        "100%",
        "%2F",
        "a",
        "a/b",
        "a/b/c",
        "a/",
        "a//b",
        "/lead",
        "//",
        ".",
        "..",
        "../../../etc/passwd",
        "./x",
        "x/./y",
        ".lighthpc/lock",
        "new\nline",
        "tab\t",
        "日本語/🧬",
        "trailing ",
        " lead",
        "back\\slash",
        "quote\"'<>&",
        "a%",
        "a%_",
        "é",
        "e\u{301}",
        "~",
        "*",
        "x/%+/y",
    ]
    .map(str::to_owned)
    .into();
    keys.extend(["z".repeat(1024), "q/".repeat(512), "/".repeat(1000), format!("{}/x", "y".repeat(300))]);
    keys
}

#[tokio::test]
async fn every_key_is_stored_listed_and_deleted() {
    let cloud = TestCloud::new();
    let mut expected = odd_keys();
    for key in &expected {
        cloud.put(key, key.as_bytes()).await;
    }
    // Again, in the other order: a file that was moved aside is found under its second name.
    for key in expected.iter().rev() {
        cloud.put(key, format!("{key}2").as_bytes()).await;
    }

    for key in &expected {
        assert_eq!(cloud.get(key).await, format!("{key}2").as_bytes(), "{key:?}");
        assert!(cloud.object_path(SOURCE_BUCKET, key).starts_with(cloud.dir().join("source")), "{key:?}");
    }
    expected.sort();
    for page in [1, 7, 1000] {
        assert_eq!(keys(&cloud, "", page).await, expected, "in pages of {page}");
    }
    for prefix in ["a", "a/", "a//", "z", "zz", "..", "nothing/here", "plain/x"] {
        let some: Vec<_> = expected.iter().filter(|key| key.starts_with(prefix)).cloned().collect();
        assert_eq!(keys(&cloud, prefix, 2).await, some, "below {prefix:?}");
    }

    for key in &expected {
        cloud.s3().delete_object().bucket(SOURCE_BUCKET).key(key).send().await.unwrap();
        assert_eq!(get(&cloud.s3(), key).await.unwrap_err(), "NoSuchKey", "{key:?}");
    }
    assert!(keys(&cloud, "", 1000).await.is_empty());
    assert_eq!(fs::read_dir(cloud.dir().join("source")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(cloud.dir().join(".lighthpc/meta")).unwrap().count(), 0);
}

#[tokio::test]
async fn keys_can_be_listed_url_encoded_and_grouped() {
    let cloud = TestCloud::new();
    for key in ["a", "a/1", "a/2", "b/1", "c\u{1}", "d"] {
        cloud.put(key, b"").await;
    }
    let list = || cloud.s3().list_objects_v2().bucket(SOURCE_BUCKET);

    let encoded = list().encoding_type("url".into()).prefix("c").send().await.unwrap();
    assert_eq!(encoded.contents()[0].key(), Some("c%01"));
    // A raw control character is not valid XML: without the encoding the list cannot be parsed, here as on S3.
    list().send().await.unwrap_err();
    cloud.s3().delete_object().bucket(SOURCE_BUCKET).key("c\u{1}").send().await.unwrap();
    for page in [1, 2, 100] {
        let pages = list().delimiter("/").max_keys(page).into_paginator().send();
        let pages: Vec<_> = pages.collect::<Result<_, _>>().await.unwrap();
        let groups: Vec<_> =
            pages.iter().flat_map(ListObjectsV2Output::common_prefixes).map(|g| g.prefix().unwrap()).collect();
        let plain: Vec<_> = pages.iter().flat_map(ListObjectsV2Output::contents).map(|o| o.key().unwrap()).collect();
        assert_eq!((groups, plain), (vec!["a/", "b/"], vec!["a", "d"]), "in pages of {page}");
    }
    let after = list().start_after("a/1").send().await.unwrap();
    assert_eq!(after.contents()[0].key(), Some("a/2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_putters_if_none_match_lets_one() {
    let cloud = TestCloud::new();
    let s3 = cloud.s3();
    let mut puts = JoinSet::new();
    for index in 0..100 {
        for putter in 0..8 {
            let put = s3
                .put_object()
                .bucket(RESULT_BUCKET)
                .key(format!("k{index}"))
                .if_none_match("*")
                .body(ByteStream::from(format!("{putter}").into_bytes()));
            puts.spawn(async move { (index, putter, put.send().await) });
        }
    }
    let mut winners = vec![Vec::new(); 100];
    for (index, putter, outcome) in puts.join_all().await {
        match outcome {
            Ok(_) => winners[index].push(putter),
            Err(error) => assert_eq!(code(&error), "PreconditionFailed"),
        }
    }

    for (index, winners) in winners.iter().enumerate() {
        assert_eq!(winners.len(), 1, "k{index}");
        let body = fs::read_to_string(cloud.object_path(RESULT_BUCKET, &format!("k{index}"))).unwrap();
        assert_eq!(body, winners[0].to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_writers_if_match_lets_one_and_no_etag_comes_twice() {
    let cloud = TestCloud::new();
    let s3 = cloud.s3();
    let mut seen = std::collections::HashSet::new();
    let mut etag = cloud.put("k", b"x").await;
    for _ in 0..30 {
        assert!(seen.insert(etag.clone()));
        let mut puts = JoinSet::new();
        for _ in 0..8 {
            let body = ByteStream::from_static(b"x");
            puts.spawn(s3.put_object().bucket(SOURCE_BUCKET).key("k").if_match(&etag).body(body).send());
        }
        let mut won: Vec<_> = puts.join_all().await.into_iter().filter_map(Result::ok).collect();
        assert_eq!(won.len(), 1);
        etag = won.remove(0).e_tag.unwrap();
    }
    let gone = s3.put_object().bucket(SOURCE_BUCKET).key("none").if_match(&etag).send().await.unwrap_err();
    assert_eq!(code(&gone), "NoSuchKey");
    let head = s3.head_object().bucket(SOURCE_BUCKET).key("k").send().await.unwrap();
    assert_eq!(head.e_tag(), Some(etag.as_str()));
    assert_eq!(fs::read_dir(cloud.dir().join(".lighthpc/meta")).unwrap().count(), 1);
}

#[tokio::test]
async fn reads_are_conditional_and_ranged() {
    let cloud = TestCloud::new();
    let etag = cloud.put("k", b"0123456789").await;
    cloud.put("empty", b"").await;
    let get = || cloud.s3().get_object().bucket(SOURCE_BUCKET).key("k");

    let same = get().if_none_match(&etag).send().await.unwrap_err();
    assert_eq!(same.raw_response().unwrap().status().as_u16(), 304);
    let other = get().if_match("\"other\"").send().await.unwrap_err();
    assert_eq!(code(&other), "PreconditionFailed");
    for (range, bytes, header) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=5-100", "56789", "bytes 5-9/10"),
    ] {
        let part = get().range(range).if_match(&etag).send().await.unwrap();
        assert_eq!(part.content_range(), Some(header));
        assert_eq!(part.content_length(), i64::try_from(bytes.len()).ok());
        assert_eq!(part.body.collect().await.unwrap().to_vec(), bytes.as_bytes());
    }
    let beyond = get().range("bytes=10-").send().await.unwrap_err();
    assert_eq!((code(&beyond).as_str(), beyond.raw_response().unwrap().status().as_u16()), ("InvalidRange", 416));
    assert!(cloud.get("empty").await.is_empty());
    let head = cloud.s3().head_object().bucket(SOURCE_BUCKET).key("empty").send().await.unwrap();
    assert_eq!(head.content_length(), Some(0));
    let missing = cloud.s3().head_object().bucket(SOURCE_BUCKET).key("none").send().await.unwrap_err();
    assert!(missing.into_service_error().is_not_found());
    let missing = cloud.s3().get_object().bucket("elsewhere").key("k").send().await.unwrap_err();
    assert_eq!(code(&missing), "NoSuchBucket");
    let missing = cloud.s3().put_object().bucket("elsewhere").key("k").send().await.unwrap_err();
    assert_eq!(code(&missing), "NoSuchBucket");
    cloud.s3().head_bucket().bucket(SOURCE_BUCKET).send().await.unwrap();
    assert!(cloud.s3().head_bucket().bucket("elsewhere").send().await.unwrap_err().into_service_error().is_not_found());
}

#[tokio::test]
async fn metadata_of_an_object_are_returned() {
    let cloud = TestCloud::new();
    let put = cloud.s3().put_object().bucket(SOURCE_BUCKET).key("k").content_type("text/x").metadata("attempt", "3");
    put.body(ByteStream::from_static(b"hello")).send().await.unwrap();

    let head = cloud.s3().head_object().bucket(SOURCE_BUCKET).key("k").checksum_mode(ChecksumMode::Enabled);
    let head = head.send().await.unwrap();

    assert_eq!(head.content_type(), Some("text/x"));
    assert_eq!(head.metadata().unwrap()["attempt"], "3");
    assert_eq!(head.checksum_crc32(), Some("NhCmhg=="));
    assert!(head.last_modified().unwrap().secs() > 1_700_000_000);
}

#[tokio::test]
async fn bytes_that_do_not_match_their_checksum_are_refused() {
    let cloud = TestCloud::new();
    let put = || cloud.s3().put_object().bucket(SOURCE_BUCKET).key("k").body(ByteStream::from_static(b"hello"));

    let error = put().checksum_crc32("AAAAAA==").send().await.unwrap_err();
    assert_eq!(code(&error), "BadDigest");
    let error = put().checksum_crc64_nvme("AAAAAAAAAAA=").send().await.unwrap_err();
    assert_eq!(code(&error), "BadDigest");

    assert_eq!(get(&cloud.s3(), "k").await.unwrap_err(), "NoSuchKey");
    assert_eq!(fs::read_dir(cloud.dir().join(".lighthpc/tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_is_streamed_with_its_checksum_in_the_trailer() {
    let cloud = TestCloud::new();
    let path = cloud.temp_dir.path().join("big");
    let bytes: Vec<u8> = (0..3_000_017_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    fs::write(&path, &bytes).unwrap();

    for algorithm in ["CRC32", "CRC64NVME", "SHA256"] {
        let body = ByteStream::from_path(&path).await.unwrap();
        let put = cloud.s3().put_object().bucket(SOURCE_BUCKET).key("big").checksum_algorithm(algorithm.into());
        put.body(body).send().await.unwrap();
        assert!(cloud.get("big").await == bytes, "{algorithm}");
    }
}

#[tokio::test]
async fn a_linked_file_is_read_in_place_and_never_written() {
    let cloud = TestCloud::new();
    let file = cloud.temp_dir.path().join("mine.sdf");
    fs::write(&file, "my own").unwrap();
    cloud.link_object(SOURCE_BUCKET, "in/mine.sdf", &file).unwrap();
    assert!(cloud.link_object(SOURCE_BUCKET, "x", std::path::Path::new("relative")).is_err());
    assert!(cloud.link_object(SOURCE_BUCKET, "x", cloud.temp_dir.path()).is_err());

    assert_eq!(cloud.get("in/mine.sdf").await, b"my own");
    let etag = async || cloud.s3().head_object().bucket(SOURCE_BUCKET).key("in/mine.sdf").send().await.unwrap().e_tag;
    let before = etag().await;
    fs::write(&file, "my own, changed").unwrap();
    assert_ne!(etag().await, before);
    assert_eq!(keys(&cloud, "in/", 10).await, ["in/mine.sdf"]);

    cloud.put("in/mine.sdf/below", b"").await;
    assert_eq!(cloud.get("in/mine.sdf").await, b"my own, changed");
    cloud.put("in/mine.sdf", b"theirs").await;
    assert_eq!(cloud.get("in/mine.sdf").await, b"theirs");
    cloud.link_object(SOURCE_BUCKET, "in/mine.sdf", &file).unwrap();
    cloud.s3().delete_object().bucket(SOURCE_BUCKET).key("in/mine.sdf").send().await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "my own, changed");

    cloud.link_object(SOURCE_BUCKET, "gone", &file).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(get(&cloud.s3(), "gone").await.unwrap_err(), "NoSuchKey");
    assert_eq!(keys(&cloud, "gone", 10).await, [""; 0]);
}

#[tokio::test]
async fn a_folder_that_is_a_link_is_never_followed() {
    let cloud = TestCloud::new();
    let outside = cloud.temp_dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "precious").unwrap();
    std::os::unix::fs::symlink(&outside, cloud.dir().join("source/out")).unwrap();
    fs::write(cloud.dir().join("source/%41"), "not a key").unwrap();

    assert_eq!(keys(&cloud, "", 10).await, [""; 0]);
    assert_eq!(get(&cloud.s3(), "out/precious").await.unwrap_err(), "NoSuchKey");
    cloud.s3().delete_object().bucket(SOURCE_BUCKET).key("out/precious").send().await.unwrap();
    cloud.put("out/precious", b"new").await;

    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "precious");
    assert_eq!(cloud.get("out/precious").await, b"new");
}

#[tokio::test]
async fn a_file_that_shrinks_or_changes_while_it_is_read_is_an_error() {
    let cloud = TestCloud::new();
    let file = cloud.temp_dir.path().join("mine");
    for change in ["shrink", "edit"] {
        fs::write(&file, vec![7; 4_000_000]).unwrap();
        cloud.link_object(SOURCE_BUCKET, "k", &file).unwrap();
        let mut answer = cloud.s3().get_object().bucket(SOURCE_BUCKET).key("k").send().await.unwrap();
        answer.body.next().await.unwrap().unwrap();

        let open = fs::File::options().write(true).open(&file).unwrap();
        if change == "shrink" { open.set_len(2_000_000) } else { open.set_modified(std::time::UNIX_EPOCH) }.unwrap();

        assert!(answer.body.collect().await.is_err(), "{change}");
    }
}

#[tokio::test]
async fn an_object_renamed_over_is_read_to_its_end() {
    let cloud = TestCloud::new();
    cloud.put("k", &vec![1; 3_000_000]).await;
    let answer = cloud.s3().get_object().bucket(SOURCE_BUCKET).key("k").send().await.unwrap();

    cloud.put("k", b"short").await;

    assert!(answer.body.collect().await.unwrap().to_vec() == vec![1; 3_000_000]);
}

#[tokio::test]
async fn many_objects_are_deleted_in_one_call() {
    let cloud = TestCloud::new();
    for key in ["a", "a/b", "c"] {
        cloud.put(key, b"").await;
    }
    let objects = ["a", "a/b", "none"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(objects.into())).build().unwrap();

    let deleted = cloud.s3().delete_objects().bucket(SOURCE_BUCKET).delete(delete).send().await.unwrap();

    assert_eq!(deleted.deleted().len(), 3);
    assert_eq!(keys(&cloud, "", 10).await, ["c"]);
}

#[tokio::test]
async fn the_bucket_can_be_in_the_host() {
    let cloud = TestCloud::new();
    let virtual_hosted = aws_sdk_s3::Client::new(&config(cloud.http_client(None)));

    put(&virtual_hosted, "a/b", b"x").await;

    assert_eq!(cloud.get("a/b").await, b"x");
}
