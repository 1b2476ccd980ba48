//! Files beside the objects, as another program could have written them.

use aws_sdk_s3::types::ChecksumMode;

use super::*;

/// Metadata that an answer cannot carry are an error of the service; all others are ignored or returned. There is never
/// a panic, or a header that the metadata inject.
#[tokio::test]
async fn foreign_metadata_give_the_object_or_an_error() {
    let cloud = TestCloud::new();
    let etag = cloud.put("a", b"object").await;
    let file = cloud.dir().join(format!(".lighthpc/meta/{}.json", etag.trim_matches('"')));
    let meta = |metadata: &str, checksums: &str, kind: &str| {
        format!(r#"{{"content_type": {kind}, "metadata": {metadata}, "checksums": {checksums}}}"#)
    };
    let long = format!(r#"{{"k": "{}"}}"#, "v".repeat(1_000_000));
    for (text, is_read) in [
        (String::new(), true),
        ("[]".to_owned(), true),
        ("[".repeat(100_000), true),
        (meta("{}", "{}", "null"), true),
        (meta(r#"{"k": "v"}"#, r#"{"crc32": "not base64", "unknown": "x"}"#, r#""text/plain""#), false),
        (meta(r#"{"k": "v\r\netag: evil"}"#, "{}", "null"), false),
        (meta(r#"{"k\r\netag: evil": "v"}"#, "{}", "null"), false),
        (meta(r#"{"": "v"}"#, "{}", "null"), false),
        (meta("{}", "{}", r#""a\nb""#), false),
        (meta("{}", r#"{"crc32": "\u0000"}"#, "null"), false),
        (meta(&long, "{}", "null"), false),
    ] {
        std::fs::write(&file, &text).unwrap();
        let get =
            cloud.s3().get_object().bucket(SOURCE_BUCKET).key("a").checksum_mode(ChecksumMode::Enabled).send().await;
        let head = cloud.s3().head_object().bucket(SOURCE_BUCKET).key("a").send().await;

        let shown = &text[..text.len().min(80)];
        assert!(head.is_ok() || !is_read, "{shown}");
        let Ok(got) = get else {
            assert!(!is_read, "{shown}");
            continue;
        };
        assert_eq!(got.e_tag(), Some(etag.as_str()), "{shown}");
        if let Ok(body) = got.body.collect().await {
            assert_eq!(body.to_vec(), b"object", "{shown}");
        }
    }
}
