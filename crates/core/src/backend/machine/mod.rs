//! EC2 and IMDS: identifies this machine, checks whether another instance is alive, and terminates this one.
//!
//! A machine is terminated or powered off only with an [`EndProof`]: its instance has a tag of ours, or the user who
//! started the process ordered it. Only this folder creates such a proof, and only [`Machine::end`] and
//! [`end_unconnected`] terminate a machine.

mod client;
mod end;
mod place;
mod power_off;
mod proof;

pub use client::{Machine, NodeTags, Options};
pub use end::{EndOrder, MachineEnd, end_unconnected};
pub use place::has_process;
pub use power_off::{EndError, PowerOff};
pub use proof::{EndProof, NODE_TAGS};
