//! S3 over plain folders: `s3s` speaks the protocol, and the objects are files that a person can read.
//!
//! `s3s` parses the requests and checks their signatures; the operations here act on the [`ObjectFiles`]. Bodies are
//! streamed both ways. Missing operations (versions, copies, access lists) are answered `NotImplemented`.

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
