//! Names of things, checked once at the edge and trusted from there on.

use std::fmt;

/// The longest S3 key, in bytes of UTF-8.
/// Source: Amazon S3 user guide, "Creating object key names".
pub const KEY_BYTES_MAX: usize = 1024;

/// The longest id of a mission, in bytes of UTF-8: it leaves room for `#tally#<n>` in a key of the missions table.
/// Source: `DynamoDB` developer guide, "Quotas": a partition key has 2,048 bytes at most.
pub const MISSION_BYTES_MAX: usize = 1900;

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
    /// The name has a form that a new mission's must not have.
    #[error("{id:?} cannot be a mission's id: {rule}")]
    Form {
        /// The name.
        id: String,
        /// The rule that it breaks.
        rule: &'static str,
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
    /// A mission's name: the value of `timePush`, of up to [`MISSION_BYTES_MAX`] bytes.
    MissionId,
    "the mission's id",
    MISSION_BYTES_MAX
);
name!(
    /// The owner of an attempt: the id of an EC2 instance, or the name of one process, made by [`process_owner`].
    InstanceId,
    "the instance's id",
    256
);

impl MissionId {
    /// Checks the id of a mission that is about to be made. Stricter than [`Self::new`], which must read every row that
    /// there is: keys of S3, keys of the missions table and a tag of the nodes are made of the id.
    ///
    /// # Errors
    /// [`IdError`] with the rule that the id breaks.
    pub fn for_a_new_mission(id: impl Into<String>) -> Result<Self, IdError> {
        let id = id.into();
        let rule = if id.contains('/') {
            "it has a `/`, which ends the id in the keys of its inputs"
        } else if id.contains("#tally#") {
            "it contains `#tally#`, as the keys of the parts of a tally do"
        } else if id.starts_with('~') {
            "it begins with `~`, as the items do that lighthpc keeps for itself"
        // Source: EC2 user guide, "Tag your Amazon EC2 resources", "Tag restrictions".
        } else if id.chars().count() > 256 {
            "it has more than 256 characters, and its nodes have it in a tag"
        } else if id.chars().any(char::is_control) || id.trim() != id {
            "it has control characters, or blanks around it, and its nodes have it in a tag"
        } else if id.starts_with("aws:") {
            "it begins with `aws:`, and its nodes have it in a tag"
        } else {
            return Self::new(id);
        };
        Err(IdError::Form { id, rule })
    }
}

/// The longest part of a host's name in an owner's: enough to find the machine, and short in a table.
const HOST_CHARS_MAX: usize = 63;

/// Returns whether a name has the form of an EC2 instance's id, such as `i-0123456789abcdef0`.
#[must_use]
pub fn is_ec2_instance(name: &str) -> bool {
    let digits = name.strip_prefix("i-").unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the name of a process that must not be named by an instance: `<host>-<random>`. It is never taken for the id
/// of an instance, whatever the host is called: EC2 names hosts by their instance's id, if it is asked to.
#[must_use]
pub fn process_owner(host: &str, random: u64) -> InstanceId {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let mut clean: String = host.chars().take(HOST_CHARS_MAX).map(|c| if is_plain(c) { c } else { '-' }).collect();
    // A name of one letter is prefixed as well: `i` and a hyphen would be an instance's beginning.
    if clean.get(..2).is_none_or(|start| start.eq_ignore_ascii_case("i-")) {
        clean.insert_str(0, "host-");
    }
    InstanceId(format!("{clean}-{random:016x}"))
}

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

    #[test]
    fn a_new_missions_id_fits_all_that_is_made_of_it() {
        for id in ["a/b", "a#tally#1", "~sweep", "~", "a\nb", " a", "a ", "aws:a", &"x".repeat(257), ""] {
            assert!(MissionId::for_a_new_mission(id).is_err(), "{id:?}");
        }
        for id in ["2026-11-26T08-00-00Z", "a b", "a~", "ü", "a#b", &"ü".repeat(256)] {
            assert!(MissionId::for_a_new_mission(id).is_ok(), "{id:?}");
        }
    }

    #[test]
    fn the_owner_of_a_process_never_looks_like_an_instance() {
        let long = "h".repeat(300);
        for host in
            ["", "a", "i", "i-", "I-0", "i-0123456789abcdef0", "i-0123456789abcdef0.ec2.internal", "ü\n\0 x", &long]
        {
            let owner = process_owner(host, 7);
            assert!(!owner.as_str().starts_with("i-") && !is_ec2_instance(owner.as_str()), "{owner}");
            assert!(owner.as_str().ends_with("-0000000000000007"), "{owner}");
            assert!(
                owner.as_str().len() <= 90 && owner.as_str().bytes().all(|byte| byte.is_ascii_graphic()),
                "{owner}"
            );
        }
        assert_eq!(process_owner("node7.lab", 1).as_str(), "node7.lab-0000000000000001");
        assert!(is_ec2_instance("i-0123456789abcdef0") && is_ec2_instance("i-1"));
        assert!(!is_ec2_instance("i-") && !is_ec2_instance("i-x1") && !is_ec2_instance("xi-1"));
    }
}
