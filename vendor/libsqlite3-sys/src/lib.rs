//! A later libsqlite3-sys under the version that rusqlite 0.36 asks for.

#![no_std]

pub use later::*;
