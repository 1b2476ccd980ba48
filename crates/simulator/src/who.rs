//! Who sends a request.

use std::fmt;

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// The n-th process of a machine.
    Node { machine: u64, start: u32 },
    /// An invocation of the function, or a command.
    Caller(u64),
    /// A person who edits rows: no faults.
    Hand,
    /// The simulator itself: no faults, and no checks.
    Observer,
}

impl Who {
    /// Returns the machine, or the caller: processes of one machine share their numbers of requests, and their faults.
    pub(crate) const fn place(self) -> Self {
        match self {
            Self::Node { machine, .. } => Self::Node { machine, start: 0 },
            other => other,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { machine, start: 0 } => write!(f, "node {machine}"),
            Self::Node { machine, start } => write!(f, "node {machine}, process {start}"),
            Self::Caller(number) => write!(f, "caller {number}"),
            Self::Hand => f.write_str("a person"),
            Self::Observer => f.write_str("the simulator"),
        }
    }
}
