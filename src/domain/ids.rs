//! Names of things, checked once at the edge and trusted from there on.

use std::fmt;

/// The longest S3 key, in bytes of UTF-8.
/// Source: Amazon S3 user guide, "Creating object key names".
pub const KEY_BYTES_MAX: usize = 1024;

/// Why a name was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// The name has no characters.
    #[error("{what} is empty")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// The name is longer than the service behind it takes.
    #[error("{what} has {bytes} bytes, more than {max}")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        max: usize,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`IdError`] if the name is empty or longer than the service behind it takes.
            pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
                let name = name.into();
                if name.is_empty() {
                    return Err(IdError::Empty { what: $what });
                }
                if name.len() > $max {
                    return Err(IdError::TooLong { what: $what, bytes: name.len(), max: $max });
                }
                Ok(Self(name))
            }

            /// Returns the name as it is written in tables and tags.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A task's name: the decoded S3 key of its input, 1 to 1,024 bytes of any UTF-8.
    SrcId,
    "the task's srcID",
    KEY_BYTES_MAX
);
name!(
    /// A mission's name: the value of `timePush`. 1,900 bytes leave room for `#tally#<n>` in a
    /// DynamoDB partition key of 2,048.
    MissionId,
    "the mission's id",
    1900
);
name!(
    /// The machine that holds an attempt: an EC2 instance id, or a made-up one for a desk.
    InstanceId,
    "the instance's id",
    256
);

/// The n-th time a task is claimed, from 1, only ever growing: the fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        assert_eq!(SrcId::new(""), Err(IdError::Empty { what: "the task's srcID" }));
        assert!(SrcId::new("x".repeat(1024)).is_ok());
        assert!(SrcId::new("x".repeat(1025)).is_err());
        assert_eq!(SrcId::new("a b+c/../ü").map(|s| s.to_string()), Ok("a b+c/../ü".to_owned()));
    }
}
