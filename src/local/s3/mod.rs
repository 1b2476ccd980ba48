//! S3 over plain folders: the protocol is `s3s`'s, the objects are files a person can read.
//!
//! `s3s` reads the requests and checks their signatures; here each operation is taken to the [`Shelf`]. Bodies are
//! streamed both ways. What is not here (versions, copies, access lists) is answered `NotImplemented`.

mod front;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod intake;
mod kept;
mod listing;
mod multipart;
mod outflow;
mod service;
mod shelf;
mod uploads;

pub(super) use front::{Front, error_reply, operation};
pub use kept::Kept;
pub(super) use outflow::CutBody;
pub(super) use service::S3Local;
pub(super) use shelf::Shelf;
