//! The rules, without effects: what a task, a lease, a mission, and a verdict are.
//!
//! Nothing here is `async`, knows AWS, reads a clock, or draws a random number: `now` and `rng` are
//! arguments. That is what makes the rules testable to the last branch.

pub mod backoff;
pub mod budget;
pub mod checkpoint;
pub mod ids;
pub mod keys;
pub mod lease;
pub mod machine_info;
pub mod mission;
pub mod node_limit;
pub mod policy;
pub mod printable;
pub mod progress;
pub mod request;
pub mod tags;
pub mod task;
pub mod value;
pub mod verdict;
pub mod work;
