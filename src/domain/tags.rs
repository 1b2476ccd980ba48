//! The tags of an instance of ours, and how a key that no tag can hold goes by a short name.

use super::ids::SrcId;
use super::keys::digest_hex;

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

/// Returns the value of `srcID` for a task: its key, or a short name if a tag cannot hold that.
#[must_use]
pub fn src_value(src: &SrcId) -> String {
    let key = src.as_str();
    let fits = key.chars().count() <= VALUE_CHARS_MAX
        && !key.starts_with(SHORT)
        && !key.starts_with("aws:")
        && key.trim() == key
        && !key.chars().any(char::is_control);
    if fits { key.to_owned() } else { short(src) }
}

/// Returns the short name of a task.
#[must_use]
pub fn short(src: &SrcId) -> String {
    format!("{SHORT}{}", digest_hex(&[src.as_str()], 32))
}

/// Returns whether a tag's value is a short name, which stands for a key that is written elsewhere.
#[must_use]
pub fn is_short(value: &str) -> bool {
    value.strip_prefix(SHORT).is_some_and(|hex| hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Returns a value of `Name` for people: the beginning of the key.
#[must_use]
pub fn name_value(name: &str) -> String {
    let clean: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
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
}
