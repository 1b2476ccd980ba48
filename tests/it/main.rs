//! The whole worker on the cloud in the process: one binary, one folder per test, no network, no sleep.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod cli;
mod crashes;
mod disk;
mod drains;
mod errors;
mod faults;
mod folders;
mod ground;
mod hostile;
mod interruption;
mod keys;
mod launches;
mod lease;
mod limits;
mod mission;
mod names;
mod odd_rows;
mod operators;
mod ownership;
mod pull;
mod queries;
mod races;
mod reasons;
mod refusals;
mod results;
mod rights;
mod rounds;
mod scheduler;
mod sizes;
mod steps;
mod submit;
mod sweep;
mod test_cloud;
mod workload;
