//! Any S3 key is a legal task.

use crate::test_cloud::{TestCloud, mission_id, src};
use lighthpc::domain::keys::result_key;

const ODD: &[&str] = &[
    "a b+c.txt",
    "x/../y.txt",
    "../../../etc/passwd",
    "..",
    "/lead",
    "trail/",
    "two//slashes",
    "ünïcödé/文件.dat",
    "100%/a%2Fb",
    "q?x=1&y#z",
    "-rf",
    "new\nline",
    "'quote\"s' $(id) `id`",
    "a",
    "a/b",
];

#[tokio::test]
async fn every_odd_key_makes_its_own_result_and_nothing_else() {
    let cloud = TestCloud::new().await;
    let long = ["x".repeat(1024), "é/".repeat(341), format!("{}/y", "n/".repeat(510))];
    let keys: Vec<&str> = ODD.iter().copied().chain(long.iter().map(String::as_str)).collect();
    for (n, key) in keys.iter().enumerate() {
        cloud.input(key, format!("input {n}\n").as_bytes()).await;
        cloud.row(key, &mission_id("M")).await;
    }
    for key in &keys {
        cloud.node(key, "M").run().await.outcome.unwrap();
    }

    for (n, key) in keys.iter().enumerate() {
        let reversed: String = format!("input {n}").chars().rev().collect();
        let result = cloud.result(&result_key(&src(key)));
        assert_eq!(result, Some(format!("{reversed}\n")), "{key:?}");
    }
    // The nodes' folders are gone, and nothing was written beside them.
    let mut left: Vec<_> = std::fs::read_dir(cloud.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["cloud", "work"]);
    for work in std::fs::read_dir(cloud.dir.path().join("work")).unwrap() {
        assert_eq!(std::fs::read_dir(work.unwrap().path()).unwrap().count(), 0);
    }
}
