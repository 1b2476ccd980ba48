//! Opening a cloud: its lock, a restart, and refused folders.

use std::fs;

use super::*;

async fn tables(cloud: &LocalCloud) -> Vec<String> {
    let client = aws_sdk_dynamodb::Client::new(&config(cloud.http_client(None)));
    client.list_tables().send().await.unwrap().table_names.unwrap_or_default()
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("new/cloud");
    {
        let cloud = LocalCloud::open(&root).unwrap();
        dynamo::make_table(&aws_sdk_dynamodb::Client::new(&config(cloud.http_client(None)))).await;
        put(&s3(cloud.http_client(None)), "a/b", b"bytes").await;
        instances::publish(&cloud, "one").await.unwrap();
        instances::publish(&cloud, "two\n").await.unwrap();
        // The remains of a process that was killed while writing.
        fs::write(root.join(".lighthpc/tmp/half"), "half an object").unwrap();
        let mut log = fs::read(root.join(".lighthpc/notifications.jsonl")).unwrap();
        log.extend_from_slice(b"{\"topic_arn\":\"ar");
        fs::write(root.join(".lighthpc/notifications.jsonl"), log).unwrap();
    }

    let cloud = LocalCloud::open(&root).unwrap();

    assert_eq!(tables(&cloud).await, ["tasks"]);
    assert_eq!(get(&s3(cloud.http_client(None)), "a/b").await.unwrap(), b"bytes");
    let messages: Vec<_> = cloud.published().into_iter().map(|published| published.message).collect();
    assert_eq!(messages, ["one", "two\n"]);
    assert_eq!(fs::read_dir(root.join(".lighthpc/tmp")).unwrap().count(), 0);
    assert_eq!(fs::read(root.join("source/a/b")).unwrap(), b"bytes");
    assert!(cloud.instances().is_empty());
    instances::publish(&cloud, "three").await.unwrap();
    assert_eq!(fs::read_to_string(root.join(".lighthpc/notifications.jsonl")).unwrap().lines().count(), 3);
}

#[tokio::test]
async fn a_cloud_in_use_can_only_be_attached_to() {
    let dir = TempDir::new().unwrap();
    let cloud = LocalCloud::open(dir.path()).unwrap();
    dynamo::make_table(&aws_sdk_dynamodb::Client::new(&config(cloud.http_client(None)))).await;

    assert!(matches!(LocalCloud::open(dir.path()), Err(OpenError::InUse { .. })));
    let attached = LocalCloud::attach(dir.path()).unwrap();
    assert_eq!(tables(&attached).await, ["tasks"]);
    drop(attached);
    assert!(matches!(LocalCloud::open(dir.path()), Err(OpenError::InUse { .. })));
    drop(cloud);
    LocalCloud::open(dir.path()).unwrap();
}

#[test]
fn a_folder_that_is_not_ours_is_left_alone() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("thesis.tex"), "mine").unwrap();

    assert!(matches!(LocalCloud::open(dir.path()), Err(OpenError::NotOurs { .. })));
    assert!(matches!(LocalCloud::attach(dir.path()), Err(OpenError::NotOurs { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(LocalCloud::open(&dir.path().join("thesis.tex")), Err(OpenError::Io { .. })));
    assert!(matches!(LocalCloud::attach(&dir.path().join("nowhere")), Err(OpenError::NotFound { .. })));
}

#[test]
fn another_layout_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(LocalCloud::open(dir.path()).unwrap());
    fs::write(dir.path().join(".lighthpc/version"), "2\n").unwrap();

    let error = LocalCloud::open(dir.path()).unwrap_err();

    assert!(matches!(error, OpenError::State { .. }), "{error}");
}

/// Rows written in one transaction are read together, whenever the copy is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_a_writer_is_of_one_moment() {
    const COPIES: usize = 20;
    let dir = TempDir::new().unwrap();
    let cloud = LocalCloud::open(dir.path()).unwrap();
    let client = aws_sdk_dynamodb::Client::new(&config(cloud.http_client(None)));
    dynamo::make_table(&client).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writer = tokio::task::JoinSet::new();
    writer.spawn({
        let stop = stop.clone();
        async move {
            // Large rows, so that there are several checkpoints and restarts of the log.
            for number in 1_u64.. {
                dynamo::put_both(&client, number, &"x".repeat(100_000)).await;
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return number;
                }
            }
            unreachable!("the numbers do not end")
        }
    });
    let mut last = 0;
    let mut copies = 0;
    while copies < COPIES {
        let root = dir.path().to_owned();
        let attached = tokio::task::spawn_blocking(move || LocalCloud::attach(&root)).await.unwrap().unwrap();
        let client = aws_sdk_dynamodb::Client::new(&config(attached.http_client(None)));
        let (a, b) = dynamo::read_both(&client).await;
        assert_eq!(a, b);
        assert!(a >= last, "{a} after {last}");
        last = a;
        copies += usize::from(a > 0);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.join_next().await.unwrap().unwrap() > 1);
}

#[tokio::test]
async fn an_attached_cloud_writes_nothing_and_publishes_nothing() {
    let dir = TempDir::new().unwrap();
    drop(LocalCloud::open(dir.path()).unwrap());
    let own = dir.path().join(".lighthpc");
    fs::remove_file(own.join("notifications.jsonl")).unwrap();
    fs::remove_file(own.join("version")).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();

    let attached = LocalCloud::attach(dir.path()).unwrap();

    assert!(tables(&attached).await.is_empty());
    instances::publish(&attached, "one").await.unwrap_err();
    assert_eq!(names(), before);
}
