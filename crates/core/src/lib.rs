//! What every part of lighthpc uses: the rules (`domain`), the services of AWS (`backend`), and the wall clock.
//!
//! The crate `lighthpc` re-exports these modules, and has the layers above them.

pub mod backend;
pub mod clock;
pub mod domain;
