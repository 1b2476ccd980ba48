//! What is fuzzed: a function for each parser of bytes that others wrote.
//!
//! None may panic, and each checks what must hold of whatever it could read. `fuzz/` runs them under libFuzzer
//! (`scripts/fuzz`); the tests here run the corpus, and some changes to it.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;

use crate::backend::ledger::Row;
use crate::domain::checkpoint::{Content, MODE_KEPT, Manifest};
use crate::domain::ids::{AttemptNumber, KEY_BYTES_MAX, MissionId, SrcId};
use crate::domain::mission::{TALLY_SHARDS_MAX, Tally, shard_of};
use crate::domain::task::State;
use crate::domain::{keys, printable};

/// A target: it reads the bytes, and panics if something is wrong.
pub type FuzzTarget = fn(&[u8]);

/// The targets by their names, which are those of their folders in `fuzz/corpus` and of their files in `fuzz/targets`.
pub const TARGETS: [(&str, FuzzTarget); 7] = [
    ("checkpoint", checkpoint),
    ("event", event),
    ("folder", folder),
    ("http", http),
    ("names", names),
    ("progress", progress),
    ("row", row),
];

/// Reads an event of Lambda.
pub fn event(bytes: &[u8]) {
    crate::lambda::fuzz::event(bytes);
}

/// Reads the body of an HTTP request.
pub fn http(bytes: &[u8]) {
    crate::lambda::fuzz::http(bytes);
}

/// Reads a workload's progress file.
pub fn progress(bytes: &[u8]) {
    crate::workload::fuzz::progress(bytes);
}

/// Opens a local mission's folder.
pub fn folder(bytes: &[u8]) {
    local_cloud::fuzz::folder(bytes);
}

/// Reads the list of a checkpoint. Every name in it is a place in the checkpoint's folder, and a list that was read is
/// written and read again as the same.
pub fn checkpoint(bytes: &[u8]) {
    let Ok(manifest) = Manifest::from_json(bytes) else { return };
    for (name, entry) in &manifest.entries {
        let is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        assert!(name.split(|&byte| byte == b'/').all(is_plain), "{name:?}");
        assert!(entry.mode.is_none_or(|mode| mode & !MODE_KEPT == 0), "{entry:?}");
        let mut parents = crate::domain::checkpoint::parents(name).filter_map(|parent| manifest.entries.get(parent));
        assert!(parents.all(|parent| parent.content == Content::Folder), "{name:?}");
    }
    let text = manifest.to_json().expect("a list can be written");
    assert_eq!(Manifest::from_json(&text).expect("a list that was written can be read"), manifest);
}

/// Reads the row of a task, of a mission, and of a part of a tally, from DynamoDB's JSON of an item.
pub fn row(bytes: &[u8]) {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(bytes) else { return };
    let item: HashMap<String, AttributeValue> =
        object.into_iter().filter_map(|(name, value)| Some((name, attribute(value)?))).collect();
    let row = Row(&item);
    let task = row.task(SrcId::new("a").expect("a fixed name"));
    assert!(task.state != State::Running || task.lease().is_some(), "{task:?}");
    let mission = row.mission(MissionId::new("M").expect("a fixed name"));
    assert!((1..=TALLY_SHARDS_MAX).contains(&mission.tally_shards), "{mission:?}");
    assert!(shard_of(&task.src, mission.tally_shards) < mission.tally_shards);
    for sum in [Tally::default(), mission.rolled, Tally { ok: u64::MAX, failed: u64::MAX, ..mission.rolled }] {
        let total = mission.total(sum);
        assert!(!mission.is_complete(total) || mission.trans_number.is_some(), "{mission:?}");
        assert!(!mission.wants_roll_up(total) || total.seq > mission.rolled_seq.unwrap_or(0), "{mission:?}");
        assert!(mission.nodes_wanted(total.ended()) <= mission.nodes.unwrap_or(0), "{mission:?}");
    }
}

/// Reads an attribute as the DynamoDB API writes it; `None` if it is none.
fn attribute(value: Value) -> Option<AttributeValue> {
    let Value::Object(object) = value else { return None };
    let (kind, value) = object.into_iter().next()?;
    let text = |value: Value| value.as_str().map(ToOwned::to_owned);
    let texts = |value: &Value| value.as_array().map(|all| all.iter().cloned().filter_map(text).collect());
    Some(match (kind.as_str(), value) {
        ("S", value) => AttributeValue::S(text(value)?),
        ("N", value) => AttributeValue::N(text(value)?),
        ("B", value) => AttributeValue::B(text(value)?.into_bytes().into()),
        ("BOOL", value) => AttributeValue::Bool(value.as_bool()?),
        ("NULL", _) => AttributeValue::Null(true),
        ("SS", value) => AttributeValue::Ss(texts(&value)?),
        ("NS", value) => AttributeValue::Ns(texts(&value)?),
        ("L", Value::Array(all)) => AttributeValue::L(all.into_iter().filter_map(attribute).collect()),
        ("M", Value::Object(all)) => {
            AttributeValue::M(all.into_iter().filter_map(|(name, value)| Some((name, attribute(value)?))).collect())
        }
        _ => return None,
    })
}

/// Makes all that is made of a name that somebody else chose: keys of S3, file names, and text for a terminal.
///
/// The bytes are two names with a line break between them: what is made of one is never made of the other.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let mut stream = printable::Stream::default();
        let (one, other) = bytes.split_at(bytes.len() / 2);
        let shown = stream.push(one) + &stream.push(other);
        assert!(!shown.contains(|c: char| printable::is_unsafe(c) && c != '\n' && c != '\t'), "{shown:?}");
        return;
    };
    assert!(!printable::one_line(text).contains(printable::is_unsafe));
    local_cloud::fuzz::names(text);
    let file = keys::file_name(text);
    assert!(!file.is_empty() && file.len() <= 255 && !file.contains(['/', '\0']) && file != "." && file != "..");
    let (one, other) = text.split_once('\n').unwrap_or((text, ""));
    let made = |name: &str| {
        let src = SrcId::new(name).ok()?;
        let made = [keys::result_key(&src), keys::log_key(&src, AttemptNumber(u64::MAX))];
        assert!(made.iter().all(|key| key.len() <= KEY_BYTES_MAX), "{made:?}");
        Some(made)
    };
    if let (Some(one), Some(other)) = (made(one), made(other)) {
        assert_eq!(one == other, text.split_once('\n').is_some_and(|(one, other)| one == other));
        assert!(one == other || (one[0] != other[0] && one[1] != other[1]), "{one:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use proptest::sample::Index;
    use proptest::test_runner::{Config, TestRunner};

    use super::*;

    fn folder_of_fuzz() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn names_in(folder: &str) -> BTreeSet<String> {
        let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
        files(&folder_of_fuzz().join(folder)).into_iter().map(stem).collect()
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        files(&folder_of_fuzz().join("corpus").join(target)).iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    /// One change to the bytes of a corpus: at a place, take some away, and put something in.
    #[derive(Clone, Debug)]
    struct Edit {
        at: Index,
        removed: usize,
        put: Vec<u8>,
    }

    fn any_edit(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
        let words = std::fs::read_to_string(folder_of_fuzz().join("words")).unwrap();
        let words: Vec<Vec<u8>> = words.lines().skip(1).map(|word| word.trim_matches('"').into()).collect();
        let piece = (proptest::sample::select(seeds), any::<Index>(), 0..40_usize).prop_map(|(seed, at, len)| {
            let start = at.index(seed.len() + 1);
            seed[start..(start + len).min(seed.len())].to_vec()
        });
        let put = prop_oneof![
            Just(Vec::new()),
            proptest::collection::vec(any::<u8>(), 1..4),
            proptest::sample::select(words),
            piece,
            (any::<u8>(), 1..5_000_usize).prop_map(|(byte, times)| vec![byte; times]),
        ];
        (any::<Index>(), 0..12_usize, put).prop_map(|(at, removed, put)| Edit { at, removed, put })
    }

    /// Runs a target over its corpus, and over `cases` changes to it.
    fn run(name: &str, cases: u32) {
        let target = TARGETS.iter().find(|(it, _)| *it == name).unwrap().1;
        let seeds = corpus(name);
        for seed in &seeds {
            target(seed);
        }
        let edits = proptest::collection::vec(any_edit(seeds.clone()), 1..6);
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let inputs = (proptest::sample::select(seeds), edits).prop_map(|(mut bytes, edits)| {
            for edit in edits {
                let at = edit.at.index(bytes.len() + 1);
                let end = (at + edit.removed).min(bytes.len());
                bytes.splice(at..end, edit.put);
            }
            bytes
        });
        let checked = TestRunner::new(config).run(&inputs, |bytes| {
            target(&bytes);
            Ok(())
        });
        checked.unwrap_or_else(|failure| panic!("{name}: {failure}"));
    }

    #[test]
    fn every_target_has_its_program_and_its_corpus() {
        let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names_in("targets"), names);
        assert_eq!(names_in("corpus"), names);
        let cargo = std::fs::read_to_string(folder_of_fuzz().join("Cargo.toml")).unwrap();
        for name in names {
            let target = std::fs::read_to_string(folder_of_fuzz().join(format!("targets/{name}.rs"))).unwrap();
            assert!(target.contains(&format!("lighthpc::fuzz::{name}(")), "{target}");
            assert!(cargo.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
            assert!(!corpus(&name).is_empty());
        }
    }

    #[test]
    fn changed_lists_of_checkpoints_are_read_or_refused() {
        run("checkpoint", 20_000);
    }

    #[test]
    fn changed_events_are_read_or_refused() {
        run("event", 20_000);
    }

    #[test]
    fn changed_folders_of_local_missions_are_opened_or_refused() {
        // Each case makes and removes a folder.
        run("folder", 400);
    }

    #[test]
    fn changed_bodies_are_read_or_refused() {
        run("http", 20_000);
    }

    #[test]
    fn changed_names_stay_in_their_places() {
        run("names", 10_000);
    }

    #[test]
    fn changed_progress_files_are_read_as_the_same_lines() {
        run("progress", 10_000);
    }

    #[test]
    fn changed_rows_are_read() {
        run("row", 20_000);
    }
}
