//! Fuzz target: the files beside an object, an upload, and its parts.

use std::fs;

use super::super::layout::Layout;
use super::ObjectState;
use super::object_files::{ObjectFiles, stat};
use super::uploads::{self, Upload};

/// Reads an object whose metadata are these bytes, and an incomplete upload with these notes.
pub(crate) fn metadata(layout: Layout, bucket: &str, bytes: &[u8]) {
    let write = |path: std::path::PathBuf, bytes: &[u8]| fs::write(path, bytes).expect("the folder can be written");
    let objects = ObjectFiles::new(layout);
    let root = objects.layout.bucket(bucket);
    write(root.join("a"), b"object");
    let etag = stat(&root, "a").ok().flatten().expect("the object is there").etag;
    write(objects.layout.meta().join(format!("{etag}.json")), bytes);
    drop(objects.meta(&etag));
    // The same object under another ETag, as after its folder was copied.
    let copied = format!("0-0-{:x}", b"object".len());
    write(objects.layout.meta().join(format!("{copied}.json")), bytes);
    let compare = |etag: &str| objects.compare(bucket, "a", etag, &mut 1_000);
    assert_eq!(compare(&etag), ObjectState::Unchanged);
    assert_ne!(compare(&copied), ObjectState::Missing);
    if let Ok(etag) = std::str::from_utf8(bytes) {
        assert_ne!(compare(&etag.replace(['/', '\0'], "")), ObjectState::Missing);
    }

    let id = "0123456789abcdef0123456789abcdef";
    let upload = objects.layout.uploads().join(id);
    fs::create_dir(&upload).expect("the folder can be written");
    write(upload.join("upload.json"), bytes);
    write(upload.join("part-00001"), b"part");
    write(upload.join("note-00001.json"), bytes);
    // The upload is found by the names that its note has, and by no others.
    if let Ok(open) = serde_json::from_slice::<Upload>(bytes) {
        assert!(uploads::find(&objects, id, &open.bucket, &open.key).is_ok());
        assert!(uploads::find(&objects, id, bucket, &format!("{}x", open.key)).is_err());
    }
    assert!(uploads::read_part(&upload, 1).is_some(), "a part whose note is broken is a part without checksums");
}
