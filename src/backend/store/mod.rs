//! S3: inputs come down, results, logs, and manifests go up.
//!
//! A result is put under the fence: the lease is checked with a consistent read, then the put itself is conditional
//! (`If-None-Match: *`, or `If-Match` on what a dead attempt left). A stalled attempt can therefore neither
//! overwrite nor precede a committed result unnoticed; see [`Store::put_result`].

mod body;
mod client;
mod disk;
mod download;
mod error;
mod mark;
mod meter;
mod multipart;
mod object;
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
pub use part::OBJECT_BYTES_MAX;
pub use upload::{Put, Stored};
pub use writer::PutWriter;
