//! The path of an S3 key below its bucket's folder, and the key of a path.
//!
//! Names only, no file system. Every key of 1 to 1,024 bytes has a path, the map is reversible, and no path leaves the
//! folder. Ordinary names stay as they are, because people read and copy these files:
//!
//! ```text
//! key                      path
//! runs/7/mol 12.sdf        runs/7/mol 12.sdf
//! 100%.txt                 100%25.txt         '%' and control characters: %XX
//! .hidden  ..              %2Ehidden  %2E.    a leading dot would hide, or climb out
//! a//b  a/                 a/%_/b  a/%_       `%_`: an empty segment
//! <300 × x>                <198 × x>%+/<102 × x>   `%+`: the name continues below
//! a  (beside a/b)          a%                 a trailing `%`: a folder has the file's name
//! ```
//!
//! Escaping writes only `%` and two digits, so the three markers are never part of an escaped name.
//! A path has at most three bytes for each byte of the key, plus a marker per 198 bytes. The longest path (3,121 bytes)
//! and a folder of ordinary depth fit Linux's 4,096 bytes. Names differ by case, as keys do: a case-insensitive file
//! system is not supported.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// The longest piece of a name, marker included: under the 255 bytes of a file name with room for a suffix.
const PIECE_BYTES_MAX: usize = 200;
const EMPTY: &str = "%_";
const GOES_ON: &str = "%+";
const ASIDE: &str = "%";
/// `NON_ALPHANUMERIC` contains every byte that is escaped here.
const ALL: &percent_encoding::AsciiSet = percent_encoding::NON_ALPHANUMERIC;

/// Returns the path, relative to the bucket's folder, of the file for `key`.
pub(super) fn path_of(key: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for segment in key.split('/') {
        push_segment(&mut path, segment);
    }
    path
}

/// Returns the file's second name, for when a folder has the first: `a` becomes `a%`.
pub(super) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    PathBuf::from(name)
}

/// Returns the key whose file is at `path` (relative to the bucket's folder), under either of its two names.
///
/// `None`: no key maps there, so the file is not an object.
pub(super) fn key_of(path: &Path) -> Option<String> {
    let names: Vec<&str> = path
        .components()
        .map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let (last, folders) = names.split_last()?;
    let mut key = String::new();
    for name in folders {
        let piece = name.strip_suffix(GOES_ON);
        key.push_str(&unescaped(piece.unwrap_or(name))?);
        if piece.is_none() {
            key.push('/');
        }
    }
    let is_aside = last.ends_with(ASIDE);
    key.push_str(&unescaped(last.strip_suffix(ASIDE).unwrap_or(last))?);

    // A name that escaping does not write (`%41`, a short piece) decodes too, but is not an object.
    let natural = path_of(&key);
    let same = if is_aside { aside(&natural).as_path() == path } else { natural == path };
    same.then_some(key)
}

/// Returns the deepest folder that holds every key with this prefix.
pub(super) fn folder_of_prefix(prefix: &str) -> PathBuf {
    match prefix.rsplit_once('/') {
        Some((folder, _)) => path_of(folder),
        None => PathBuf::new(),
    }
}

fn push_segment(path: &mut PathBuf, segment: &str) {
    if segment.is_empty() {
        path.push(EMPTY);
        return;
    }
    let mut piece = String::new();
    for c in segment.chars() {
        let mut token = escaped(c, piece.is_empty());
        if piece.len() + token.len() > PIECE_BYTES_MAX - GOES_ON.len() {
            piece.push_str(GOES_ON);
            path.push(&piece);
            piece.clear();
            // The character now begins a name, where a dot is escaped.
            token = escaped(c, true);
        }
        piece.push_str(&token);
    }
    path.push(piece);
}

fn escaped(c: char, leads: bool) -> String {
    let mut utf8 = [0; 4];
    let bytes = c.encode_utf8(&mut utf8);
    if c == '%' || c.is_control() || (c == '.' && leads) {
        percent_encoding::percent_encode(bytes.as_bytes(), ALL).to_string()
    } else {
        bytes.to_owned()
    }
}

fn unescaped(name: &str) -> Option<String> {
    if name == EMPTY {
        return Some(String::new());
    }
    percent_encoding::percent_decode_str(name).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Returns whether a folder of this name can contain objects.
pub(super) fn is_folder_name(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| !name.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_round_trip(key: &str) {
        let path = path_of(key);
        assert_eq!(key_of(&path).as_deref(), Some(key), "{path:?}");
        assert_eq!(key_of(&aside(&path)).as_deref(), Some(key), "{path:?} aside");
        assert!(path.as_os_str().len() <= 3 * 1024 + 64, "{} bytes", path.as_os_str().len());
        for component in path.components() {
            let Component::Normal(name) = component else { panic!("{component:?} in {path:?}") };
            assert!((1..=PIECE_BYTES_MAX).contains(&name.len()), "{name:?}");
            assert!(!name.to_str().unwrap().starts_with('.'), "{name:?}");
        }
    }

    #[test]
    fn ordinary_keys_keep_their_names() {
        for key in ["a", "runs/7/mol 12+3.sdf", "ümlaut/日本/🧬.txt", "a/b.c..d", "x=1&y=?#", "C:\\x"] {
            assert_eq!(path_of(key), PathBuf::from(key));
            assert_round_trip(key);
        }
    }

    #[test]
    fn awkward_keys_have_the_documented_names() {
        let long = "x".repeat(300);
        let cases = [
            ("100%.txt", "100%25.txt".to_owned()),
            (".hidden", "%2Ehidden".to_owned()),
            ("..", "%2E.".to_owned()),
            ("../../etc/passwd", "%2E./%2E./etc/passwd".to_owned()),
            ("/abs", "%_/abs".to_owned()),
            ("a//b", "a/%_/b".to_owned()),
            ("a/", "a/%_".to_owned()),
            ("new\nline", "new%0Aline".to_owned()),
            (long.as_str(), format!("{}%+/{}", "x".repeat(198), "x".repeat(102))),
        ];
        for (key, path) in cases {
            assert_eq!(path_of(key), PathBuf::from(path));
            assert_round_trip(key);
        }
    }

    #[test]
    fn the_largest_keys_fit_a_path() {
        let dots_after_a_full_piece = format!("{}../x", "y".repeat(198));
        for key in [
            "/".repeat(1024),
            "a/".repeat(512),
            "./".repeat(512),
            "\u{1}".repeat(1024),
            "%".repeat(1024),
            "é".repeat(512),
            "🧬".repeat(256),
            "\u{85}".repeat(512),
            "z".repeat(1024),
            dots_after_a_full_piece,
        ] {
            assert_round_trip(&key);
        }
    }

    #[test]
    fn what_escaping_never_writes_is_no_object() {
        for path in ["%41", "a%2fb", ".lock", "a/../b", "short%+/x", "%", "x%%", "%GG", "a%2Eb", "%ff"] {
            assert_eq!(key_of(Path::new(path)), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_key_comes_back(key in "\\PC{1,300}|[a./%\\x00-\\x20]{1,1024}|([a-c]{0,2}/){0,300}|.{1,250}") {
            prop_assume!(!key.is_empty() && key.len() <= 1024);
            assert_round_trip(&key);
        }

        #[test]
        fn two_keys_never_share_a_place(a in "[a%./+_]{1,6}", b in "[a%./+_]{1,6}") {
            prop_assume!(a != b);
            let places = |key: &str| [path_of(key), aside(&path_of(key))];
            for place in places(&a) {
                prop_assert!(!places(&b).contains(&place), "{a:?} and {b:?} at {place:?}");
            }
        }

        #[test]
        fn a_path_found_on_disk_is_read_back_or_left_alone(path in "[a%.+_2E]{1,5}(/[a%.+_2E]{1,5}){0,3}") {
            if let Some(key) = key_of(Path::new(&path)) {
                let natural = path_of(&key);
                prop_assert!(natural == Path::new(&path) || aside(&natural) == Path::new(&path));
            }
        }
    }
}
