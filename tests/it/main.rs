//! The whole worker on the cloud in the process: one binary, one folder per test, no network, no sleep.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod cli;
mod faults;
mod interruption;
mod keys;
mod lab;
mod launches;
mod lease;
mod limits;
mod mission;
mod odd_rows;
mod operators;
mod ownership;
mod pull;
mod races;
mod refusals;
mod results;
mod scheduler;
mod steps;
mod submit;
mod sweep;
mod workload;
