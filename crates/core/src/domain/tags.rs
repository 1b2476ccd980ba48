//! The tags of an instance of ours, and how a name that no tag can hold goes by a short one.

use super::ids::{MissionId, SrcId};
use super::keys::digest_hex;
use super::printable;

/// The tag that names the task.
pub const SRC: &str = "srcID";
/// The tag that names the mission.
pub const MISSION: &str = "missionID";
/// The tag that marks an instance as ours; its value is the name of the tasks table.
pub const OURS: &str = "lighthpc";
/// The tag that EC2's console shows as the instance's name.
pub const NAME: &str = "Name";

/// The tag that says in which epoch of the nodes' count an instance was taken; only where nodes are limited.
pub const EPOCH: &str = "lighthpc-epoch";

/// The longest value of a tag, in characters. Source: EC2 user guide, "Tag your resources", "Tag restrictions".
const VALUE_CHARS_MAX: usize = 256;
/// How a short name begins. No S3 key that begins so goes by itself.
const SHORT: &str = "~key:";
/// How a mission's short name begins. No mission's id begins so.
const SHORT_MISSION: &str = "~mission:";
/// The digits of a short name: 128 bits.
const SHORT_DIGITS: usize = 32;

/// Returns the value of `srcID` for a task: its key, or a short name if a tag cannot hold that.
#[must_use]
pub fn src_value(src: &SrcId) -> String {
    let key = src.as_str();
    if fits(key) && !key.starts_with(SHORT) { key.to_owned() } else { short(src) }
}

/// Returns the value of `missionID` for a mission: its id, or a short name if a tag cannot hold that, as of some older rows.
#[must_use]
pub fn mission_value(mission: &MissionId) -> String {
    let id = mission.as_str();
    if fits(id) { id.to_owned() } else { format!("{SHORT_MISSION}{}", digest_hex(&[id], SHORT_DIGITS)) }
}

/// Returns whether a tag can have the value.
fn fits(value: &str) -> bool {
    value.chars().count() <= VALUE_CHARS_MAX
        && !value.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("aws:"))
        && value.trim() == value
        && !value.chars().any(char::is_control)
}

/// Returns the short name of a task.
#[must_use]
pub fn short(src: &SrcId) -> String {
    format!("{SHORT}{}", digest_hex(&[src.as_str()], SHORT_DIGITS))
}

/// Returns whether a tag's value is a short name, which stands for a key that is written elsewhere.
#[must_use]
pub fn is_short(value: &str) -> bool {
    has_digits(value.strip_prefix(SHORT))
}

/// Returns whether a tag's value is the short name of a mission, whose id is written elsewhere.
#[must_use]
pub fn is_short_mission(value: &str) -> bool {
    has_digits(value.strip_prefix(SHORT_MISSION))
}

fn has_digits(rest: Option<&str>) -> bool {
    rest.is_some_and(|hex| hex.len() == SHORT_DIGITS && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Returns a value of `Name` for people: the beginning of the key.
#[must_use]
pub fn name_value(name: &str) -> String {
    let clean: String = name.chars().map(|c| if printable::is_unsafe(c) { ' ' } else { c }).collect();
    format!("lighthpc {clean}").trim().chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_by_itself_if_a_tag_can_hold_it() {
        let value = |key: &str| src_value(&SrcId::new(key).unwrap());
        for key in ["a b+c.txt", "ünï/文件", "100%", "/lead", "trail/", &"ü".repeat(256)] {
            assert_eq!(value(key), key);
        }
        for key in [&"x".repeat(257), "new\nline", "aws:x", " lead", "~key:00000000000000000000000000000000"] {
            assert!(is_short(&value(key)), "{key}");
            assert!(value(key).len() <= 64);
        }
        assert!(!is_short("~key:x") && !is_short("a"));
    }

    #[test]
    fn a_missions_id_goes_by_itself_if_a_tag_can_hold_it() {
        let value = |id: &str| mission_value(&MissionId::new(id).unwrap());
        for id in ["M001", "a/b#c", "ü", &"ü".repeat(256)] {
            assert_eq!(value(id), id);
            assert!(!is_short_mission(&value(id)));
        }
        for id in [&"x".repeat(257), "new\nline", "aws:x", "Aws:x", " lead", &"文".repeat(600)] {
            assert!(is_short_mission(&value(id)) && !is_short(&value(id)), "{id}");
            assert!(MissionId::new(value(id)).is_err(), "a short name is no mission's id");
        }
        assert_ne!(value(&"x".repeat(257)), value(&"x".repeat(258)));
    }
}
