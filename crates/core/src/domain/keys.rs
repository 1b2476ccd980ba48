//! Where a task's things are: keys in the result bucket, and names on the node's disk.
//!
//! Keys are other people's text. A key becomes a file name only through [`file_name`], which cannot
//! name anything outside the folder it is put in.

use sha2::{Digest, Sha256};

use super::ids::{AttemptNumber, IdError, KEY_BYTES_MAX, MissionId, SrcId};

/// The name of the file that lists a directory result, beside the result's own files.
pub const INDEX_NAME: &str = "_lighthpc_index.json";

/// The longest file name that is made of a key, in bytes: Linux allows 255.
const FILE_NAME_BYTES_MAX: usize = 200;

/// Returns the name of a task of a mission: `<mission>/<name>`, or the name alone. A name with more than 1,024 bytes is
/// cut, as in [`result_key`].
///
/// # Errors
/// [`IdError`] if the name is empty.
pub fn task_name(mission: Option<&MissionId>, name: &str) -> Result<SrcId, IdError> {
    let prefix = mission.map(|mission| format!("{mission}/")).unwrap_or_default();
    let is_empty = name.is_empty();
    SrcId::new(if is_empty { String::new() } else { bounded(&prefix, name, "") })
}

/// Returns the key of a task's result: `rslt_<srcFilename>`.
///
/// A key may have 1,024 bytes, so a source key of more than 1,019 has no such result key. It gets its beginning, `~`,
/// and the 64 hexadecimal digits of its SHA-256 instead: still one key for one source, whoever chooses the names. A source key
/// that looks like such a cut one is cut itself, so that no name is another's shortened form. Earlier versions cut to 16
/// digits; names that look like that are cut, too. What they stored is found by its name in the row.
#[must_use]
pub fn result_key(src: &SrcId) -> String {
    bounded("rslt_", src.as_str(), "")
}

/// Returns the key of an attempt's log in the result bucket: `logs/<srcFilename>.<attempt>.log`.
#[must_use]
pub fn log_key(src: &SrcId, attempt: AttemptNumber) -> String {
    bounded("logs/", src.as_str(), &format!(".{attempt}.log"))
}

/// Returns the key of a mission's manifest in the result bucket: `manifests/<mission>.json`.
#[must_use]
pub fn manifest_key(mission: &MissionId) -> String {
    bounded("manifests/", mission.as_str(), ".json")
}

/// Returns the key of a mission's report, beside its manifest: `manifests/<mission>.html`.
#[must_use]
pub fn report_key(mission: &MissionId) -> String {
    bounded("manifests/", mission.as_str(), ".html")
}

fn bounded(prefix: &str, name: &str, suffix: &str) -> String {
    let room = KEY_BYTES_MAX - prefix.len() - suffix.len();
    if name.len() <= room && !looks_cut(name, room) {
        return format!("{prefix}{name}{suffix}");
    }
    let digest = digest_hex(&[name], CUT_DIGITS);
    let head = head_of(name, room - digest.len() - 1);
    format!("{prefix}{head}~{digest}{suffix}")
}

/// The digits that a cut name ends with: all of them. Of 16, somebody who may choose names finds two that are equal in 2^32 tries.
const CUT_DIGITS: usize = 64;
/// And as many as earlier versions gave it.
const CUT_DIGITS_BEFORE: usize = 16;

/// Returns whether a name could be what another is cut to: it fills the room, but for a character that did not fit
/// whole, and ends with `~` and digits.
fn looks_cut(name: &str, room: usize) -> bool {
    // The head ends at a whole character of at most 4 bytes.
    let is_as_long = name.len() + 3 >= room;
    let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let ends_so = |digits: usize| {
        let tail = name.len().checked_sub(digits + 1).and_then(|at| name.get(at..));
        tail.and_then(|tail| tail.strip_prefix('~')).is_some_and(|digits| digits.bytes().all(is_digit))
    };
    is_as_long && (ends_so(CUT_DIGITS) || ends_so(CUT_DIGITS_BEFORE))
}

/// Returns the first `digits` hexadecimal digits of the SHA-256 over the parts, each ended by a zero byte.
#[must_use]
pub fn digest_hex(parts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(digits);
    hex
}

/// Returns the longest beginning of `text` that has at most `bytes_max` bytes and whole characters.
fn head_of(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Returns a plain file name for a key: its last part, so that a program still sees the extension it knows.
///
/// The name never holds `/`, a control character, or only dots, and never has more than 200 bytes; of a
/// longer one the end is kept, for the extension's sake.
#[must_use]
pub fn file_name(key: &str) -> String {
    let last = key.rsplit('/').find(|part| !part.is_empty()).unwrap_or("");
    let clean: String = last.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    let start = clean.ceil_char_boundary(clean.len().saturating_sub(FILE_NAME_BYTES_MAX));
    let name = &clean[start..];
    if name.chars().all(|c| c == '.') { "input".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn src(key: &str) -> SrcId {
        SrcId::new(key).unwrap()
    }

    #[test]
    fn keys_keep_the_first_versions_names() {
        assert_eq!(result_key(&src("a b+c.txt")), "rslt_a b+c.txt");
        assert_eq!(log_key(&src("x/y"), AttemptNumber(3)), "logs/x/y.3.log");
    }

    #[test]
    fn names_that_are_too_long_are_cut_and_differ() {
        let mission = MissionId::new("M").unwrap();
        let name = |name: &str| task_name(Some(&mission), name).unwrap().as_str().to_owned();
        assert_eq!((name("a b"), task_name(None, "7").unwrap().as_str()), ("M/a b".to_owned(), "7"));
        let (one, other) = (name(&"é".repeat(600)), name(&format!("{}x", "é".repeat(600))));
        assert!(one.len() <= KEY_BYTES_MAX && other.len() <= KEY_BYTES_MAX && one != other);
        assert_ne!(name(one.strip_prefix("M/").unwrap()), one, "no name is another's cut form");
        assert!(task_name(Some(&mission), "").is_err());
    }

    #[test]
    fn a_source_key_of_full_length_still_has_one_result_key() {
        let one = result_key(&src(&"x".repeat(1024)));
        let other = result_key(&src(&format!("{}y", "x".repeat(1023))));
        assert_eq!(one.len(), 1024);
        assert_ne!(one, other);
        assert_eq!(result_key(&src(&"x".repeat(1019))).len(), 1024);
        assert!(!result_key(&src(&"x".repeat(1019))).contains('~'));
    }

    #[test]
    fn no_name_is_another_ones_shortened_form() {
        for long in
            ["x".repeat(1024), "é".repeat(512), format!("a{}", "文".repeat(341)), format!("ab{}", "😀".repeat(255))]
        {
            let cut = result_key(&src(&long));
            let literal = cut.strip_prefix("rslt_").unwrap();
            let again = result_key(&src(literal));
            assert_ne!(again, cut, "{literal}");
            assert!(again.len() <= 1024 && result_key(&src(again.strip_prefix("rslt_").unwrap())) != again);
            for attempt in [1, 99_999] {
                let log = log_key(&src(&long), AttemptNumber(attempt));
                let end = format!(".{attempt}.log");
                let literal = log.strip_prefix("logs/").and_then(|log| log.strip_suffix(&end)).unwrap();
                assert_ne!(log_key(&src(literal), AttemptNumber(attempt)), log);
            }
        }
        // What an earlier version cut a name to is the key of no other task, either.
        let before = format!("{}~{}", "x".repeat(1024 - 5 - 17), "0".repeat(16));
        assert_ne!(result_key(&src(&before)), format!("rslt_{before}"));
        // A short one keeps its name, whatever it ends with.
        assert_eq!(result_key(&src("a~0123456789abcdef")), "rslt_a~0123456789abcdef");
        let mission = MissionId::new("m".repeat(1500)).unwrap();
        let cut = manifest_key(&mission);
        let literal = cut.strip_prefix("manifests/").and_then(|key| key.strip_suffix(".json")).unwrap();
        assert_ne!(manifest_key(&MissionId::new(literal).unwrap()), cut);
    }

    #[test]
    fn file_names_keep_the_extension() {
        assert_eq!(file_name("in/sample 1.fasta"), "sample 1.fasta");
        assert_eq!(file_name("../.."), "input");
        assert_eq!(file_name("/"), "input");
        assert_eq!(file_name("x/a\nb"), "a_b");
        assert!(file_name(&format!("{}.fa", "x".repeat(1000))).ends_with("x.fa"));
    }

    proptest! {
        #[test]
        fn no_key_names_anything_outside_its_folder(key in "\\PC{1,300}|[./\\x00-\\x20]{1,20}") {
            let name = file_name(&key);
            prop_assert!(!name.is_empty() && name.len() <= FILE_NAME_BYTES_MAX);
            prop_assert!(!name.contains('/') && name != "." && name != ".." && !name.contains('\0'));
        }

        /// Long names that differ a little, and names that are made of the keys of others: each has keys of its own.
        #[test]
        fn no_two_names_have_one_key(
            head in 0..8_usize,
            unit in prop::sample::select(vec!["x", "é", "文", "😀", "~", "0", "/", "a/"]),
            bytes in 940..1024_usize,
            tail in "[0-9a-f~]{0,3}",
            attempt in prop::sample::select(vec![1_u64, 9, 10, 12_345]),
        ) {
            let mut names = vec![format!("{}{}{tail}", "h".repeat(head), unit.repeat(bytes / unit.len()))];
            names.push(format!("{}{}", names[0], "y"));
            names.push(names[0].replacen(unit, "z", 1));
            let keys_of = |name: &str| {
                let name = src(name);
                [result_key(&name), log_key(&name, AttemptNumber(attempt))]
            };
            // What the key of one says, taken for a name; and that once more.
            for round in 0..2 {
                for name in names.clone() {
                    if SrcId::new(&name).is_ok() {
                        let [result, log] = keys_of(&name);
                        names.push(result.strip_prefix("rslt_").unwrap().to_owned());
                        let end = format!(".{attempt}.log");
                        names.push(log.strip_prefix("logs/").and_then(|log| log.strip_suffix(&end)).unwrap().to_owned());
                    }
                }
                prop_assert!(names.len() < 100, "{round}");
            }
            names.retain(|name| SrcId::new(name).is_ok());
            names.sort();
            names.dedup();
            let mut seen = std::collections::HashMap::new();
            for name in &names {
                for key in keys_of(name) {
                    prop_assert!(key.len() <= KEY_BYTES_MAX);
                    let other = seen.insert(key.clone(), name);
                    prop_assert!(other.is_none(), "{other:?} and {name:?} at {key}");
                }
            }
        }

        #[test]
        fn result_keys_are_legal(key in "\\PC{1,1024}") {
            prop_assume!(key.len() <= 1024);
            prop_assert!(result_key(&src(&key)).len() <= KEY_BYTES_MAX);
        }
    }
}
