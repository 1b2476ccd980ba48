//! The `SQLite` library of the tables.

use super::super::LocalCloud;

/// CVE-2025-6965, in 3.50.1 and earlier, can be exploited by the author of a database file that another user opens: a
/// view in place of a table is the author's SQL.
#[test]
fn the_library_that_writes_the_tables_is_none_with_a_known_hole() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalCloud::open(dir.path()).unwrap());

    let file = std::fs::read(dir.path().join(".lighthpc/dynamo.sqlite")).unwrap();

    // The version of the library that last wrote the file. Source: "Database File Format" of SQLite, section 1.3.
    let version = u32::from_be_bytes(file[96..100].try_into().unwrap());
    assert!(version >= 3_050_002, "{version}");
}
