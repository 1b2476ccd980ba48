//! Names of things, checked once at the edge and trusted from there on.

use std::fmt;

use super::printable;

/// The longest S3 key, in bytes of UTF-8.
/// Source: Amazon S3 user guide, "Creating object key names".
pub const KEY_BYTES_MAX: usize = 1024;

/// The longest id of a mission, in bytes of UTF-8: it leaves room for `#tally#<n>` in a key of the missions table.
/// Source: `DynamoDB` developer guide, "Quotas": a partition key has 2,048 bytes at most.
pub const MISSION_BYTES_MAX: usize = 1900;

/// The longest id of a new mission, in bytes of UTF-8: below the 256 characters of a tag's value, and short enough that the
/// keys of its inputs have room for their own names.
pub const NEW_MISSION_BYTES_MAX: usize = 200;

/// What the key of a tally item has after the mission's id, before the item's number.
pub const TALLY: &str = "#tally#";

/// What the keys of all other items of the missions table begin with that are no missions.
pub const OWN: &str = "~";

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
    /// The name has a form that a mission's must not have.
    #[error("{id:?} cannot be a mission's id: {rule}")]
    Form {
        /// The name, or its beginning.
        id: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`IdError`] if the name is empty, longer than the service behind it takes, or not a name of this kind.
            pub fn new(name: impl Into<String>) -> Result<Self, IdError> {
                let name = name.into();
                if name.is_empty() {
                    return Err(IdError::Empty { what: $what });
                }
                if name.len() > $max {
                    return Err(IdError::TooLong { what: $what, bytes: name.len(), max: $max });
                }
                let broken: Option<&'static str> = $rule(&name);
                if let Some(rule) = broken {
                    return Err(IdError::Form { id: beginning(&name), rule });
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
    KEY_BYTES_MAX,
    |_: &str| None
);
name!(
    /// A mission's name: the value of `timePush`, of up to [`MISSION_BYTES_MAX`] bytes. Never the key of an item of that table
    /// that is no mission: of a part of a tally, or of one that lighthpc keeps for itself. So no text, wherever it comes from,
    /// makes such an item a mission.
    MissionId,
    "the mission's id",
    MISSION_BYTES_MAX,
    broken_by_any
);
name!(
    /// The owner of an attempt: the id of an EC2 instance, or the name of one process, made by [`process_owner`].
    InstanceId,
    "the instance's id",
    256,
    |_: &str| None
);

impl MissionId {
    /// Checks the id of a mission that is about to be made. Stricter than [`Self::new`], which must read every row that
    /// there is: keys of S3, keys of the missions table, paths of the HTTP interface, a tag of the nodes, and words of
    /// command lines are made of the id.
    ///
    /// # Errors
    /// [`IdError`] with the rule that the id breaks.
    pub fn for_a_new_mission(id: impl Into<String>) -> Result<Self, IdError> {
        let id = Self::new(id)?;
        match id.unfit() {
            None => Ok(id),
            Some(rule) => Err(IdError::Form { id: beginning(&id.0), rule }),
        }
    }

    /// Returns the rule for ids of new missions that this one breaks. An older row may have such an id, and is worked at.
    #[must_use]
    pub fn unfit(&self) -> Option<&'static str> {
        let id = self.as_str();
        let rules: [(bool, &'static str); 9] = [
            (id.len() > NEW_MISSION_BYTES_MAX, "it has more than 200 bytes"),
            (id.contains('/'), "it has a `/`, which ends the id in the keys of its inputs"),
            (id.contains('#'), "it has a `#`, which ends the id in keys of the tables"),
            (id.contains(OWN), "it has a `~`, which marks what lighthpc keeps for itself, and cut names"),
            (
                id.contains(['%', '?']),
                "it has a `%` or a `?`, which mean something else in the paths of the HTTP interface",
            ),
            (id.trim() != id, "it has blanks around it"),
            (
                id.contains(|c| printable::is_unsafe(c) || printable::is_joiner(c) || c.is_control()),
                "it has characters that are not seen",
            ),
            (id == "." || id == ".." || id.starts_with('-'), "it is `.` or `..`, or begins with `-` as an option does"),
            (
                id.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:")),
                "it begins with `aws:`, and its nodes have it in a tag",
            ),
        ];
        rules.into_iter().find(|(is_broken, _)| *is_broken).map(|(_, rule)| rule)
    }
}

/// Returns the rule that no mission's id breaks, a new one's or an old one's.
fn broken_by_any(id: &str) -> Option<&'static str> {
    if id.contains(TALLY) {
        Some("it contains `#tally#`, as the keys of the parts of a tally do")
    } else if id.starts_with(OWN) {
        Some("it begins with `~`, as the items do that lighthpc keeps for itself")
    } else {
        None
    }
}

/// Returns as much of a refused name as a message shows.
fn beginning(name: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut shown: String = name.chars().take(CHARS_MAX).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown
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
pub struct AttemptNumber(pub u64);

impl fmt::Display for AttemptNumber {
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
        let unfit = [
            "a/b",
            "a#b",
            "a~",
            "a%b",
            "a?",
            "a\nb",
            " a",
            "a\u{a0}",
            "aws:a",
            "AWS:a",
            ".",
            "..",
            "-a",
            "a\u{202e}b",
            "a\u{200b}",
            "a\u{200d}b",
            "a\u{3164}",
            "a\u{0}",
            &"x".repeat(201),
            &"ü".repeat(101),
        ];
        for id in unfit {
            assert!(MissionId::for_a_new_mission(id).is_err(), "{id:?}");
            // Of an older row it is read, and reported.
            assert!(MissionId::new(id).unwrap().unfit().is_some(), "{id:?}");
        }
        for id in ["2026-11-26T08-00-00Z", "a b", "ü", "a.b", "a:b", "M001", "文件", &"x".repeat(200)] {
            assert_eq!(MissionId::for_a_new_mission(id).map(|id| id.unfit()), Ok(None), "{id:?}");
        }
    }

    #[test]
    fn an_item_that_is_no_mission_never_becomes_one() {
        for key in ["", "a#tally#1", "#tally#", "M001#tally#0", "~sweep", "~", "~key:0", "~nodes"] {
            assert!(MissionId::new(key).is_err() && MissionId::for_a_new_mission(key).is_err(), "{key:?}");
        }
        let Err(IdError::Form { id, .. }) = MissionId::new(format!("~{}", "x".repeat(1800))) else { panic!() };
        assert!(id.len() < 100);
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
