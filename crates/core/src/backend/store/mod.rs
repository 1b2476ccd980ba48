//! S3: downloads inputs; uploads results, logs and manifests.
//!
//! A result is written with the fence: the upload is conditional (`If-None-Match: *`, or `If-Match` for the object of a
//! dead attempt), and before it replaces an object, the lease is checked by a consistent read. A stalled attempt
//! therefore can neither overwrite nor precede a committed result unnoticed; see [`Store::put_result`].

mod body;
mod client;
mod disk;
mod download;
mod error;
mod mark;
mod meter;
mod multipart;
mod object;
mod pace;
mod part;
mod sums;
mod upload;
mod writer;

pub use body::Body;
pub use client::{Listed, Store};
pub use disk::{free_bytes, free_inodes, is_no_room, total_bytes};
pub use download::{Downloaded, SPARE_BYTES};
pub use error::StoreError;
pub use mark::Mark;
pub use object::{Object, uri};
pub use part::{OBJECT_BYTES_MAX, connections, files_parallel};
pub use upload::{Holder, Put, Stored};
pub use writer::PutWriter;
