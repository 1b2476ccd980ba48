//! S3 over plain folders: the protocol is `s3s`'s, the objects are files a person can read.
//!
//! `s3s` reads the requests and checks their signatures; here each operation is taken to the [`ObjectFiles`]. Bodies are
//! streamed both ways. What is not here (versions, copies, access lists) is answered `NotImplemented`.

mod checksums;
mod compare;
mod endpoint;
#[cfg(any(test, fuzzing, feature = "testing"))]
pub(super) mod fuzz;
mod listing;
mod local;
mod multipart;
mod object_files;
mod request_body;
mod response_body;
mod service;
mod uploads;

pub use compare::ObjectState;
#[cfg(any(test, feature = "testing"))]
pub(super) use endpoint::error_reply;
pub(super) use endpoint::{Endpoint, operation};
pub(super) use local::S3Local;
pub(super) use object_files::ObjectFiles;
