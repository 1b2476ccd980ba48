//! Marks: an object's metadata contain the task or the mission that it belongs to.
//!
//! Two names can give one key: file `x` in the result folder of task `d`, and the result of task `d/x`. Two deployments
//! can share a bucket. The mark distinguishes such objects. User metadata are limited to 2 KB of ASCII, so the mark is
//! a digest of table and name. The name itself, shortened if needed, is for users and for finding the other task's row.

use std::collections::HashMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::backend::Tables;
use crate::backend::ledger::Fence;
use crate::domain::ids::{MissionId, SrcId};
use crate::domain::keys::digest_hex;

/// The digest of table and task.
const META_TASK: &str = "lighthpc-task";
/// The digest of tables and mission, for a manifest.
const META_MISSION: &str = "lighthpc-mission";
/// The percent-encoded name of the task or the mission, shortened if it does not fit.
const META_NAME: &str = "lighthpc-name";
/// The attempt that wrote an object. After a lost answer, the attempt recognizes its own object by it.
const META_ATTEMPT: &str = "lighthpc-attempt";
/// The instance that wrote an object.
const META_OWNER: &str = "lighthpc-owner";

/// The maximum size in bytes of all user metadata, names and values together.
/// Source: Amazon S3 user guide, "Working with object metadata": 2 KB.
const META_BYTES_MAX: usize = 2048;
/// The prefix of each name in the request's headers. It is counted too, for safety.
const META_PREFIX: &str = "x-amz-meta-";
/// The characters that are not encoded: a header contains ASCII, loses spaces at its ends, and S3 decodes `=?…?=`.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b'+')
    .remove(b':')
    .remove(b'@');

/// The kind of owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Task,
    Mission,
}

/// The mark of an uploaded object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    holder: Holder,
    digest: String,
    name: String,
    attempt: Option<(String, String)>,
}

impl Mark {
    /// Creates the mark of an attempt.
    #[must_use]
    pub fn of_attempt(tables: &Tables, fence: &Fence) -> Self {
        let attempt = Some((fence.attempt.to_string(), encoded(fence.owner.as_str())));
        let name = fence.src.as_str().to_owned();
        Self { holder: Holder::Task, digest: task_digest(&tables.tasks, &fence.src), name, attempt }
    }

    /// Creates the mark of a task, without an attempt.
    #[must_use]
    pub fn of_task(tables: &Tables, src: &SrcId) -> Self {
        let name = src.as_str().to_owned();
        Self { holder: Holder::Task, digest: task_digest(&tables.tasks, src), name, attempt: None }
    }

    /// Creates the mark of a mission.
    #[must_use]
    pub fn of_mission(tables: &Tables, mission: &MissionId) -> Self {
        let digest = digest_hex(&[&tables.tasks, &tables.missions, mission.as_str()], 64);
        Self { holder: Holder::Mission, digest, name: mission.as_str().to_owned(), attempt: None }
    }

    /// Returns the owner, for an error message.
    pub(super) fn holder(&self) -> String {
        match self.holder {
            Holder::Task => format!("task {}", self.name),
            Holder::Mission => format!("mission {}", self.name),
        }
    }

    /// Returns the metadata.
    pub(super) fn metadata(&self) -> HashMap<String, String> {
        let holder = match self.holder {
            Holder::Task => META_TASK,
            Holder::Mission => META_MISSION,
        };
        let mut meta = HashMap::from([(holder.to_owned(), self.digest.clone())]);
        if let Some((attempt, owner)) = &self.attempt {
            meta.insert(META_ATTEMPT.to_owned(), attempt.clone());
            meta.insert(META_OWNER.to_owned(), owner.clone());
        }
        let used: usize = meta.iter().map(|(name, value)| META_PREFIX.len() + name.len() + value.len()).sum();
        let room = META_BYTES_MAX.saturating_sub(used + META_PREFIX.len() + META_NAME.len());
        meta.insert(META_NAME.to_owned(), encoded_within(&self.name, room));
        meta
    }
}

/// The owner of an object, from its metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MarkedObject {
    holder: Option<(Holder, String)>,
    name: Option<String>,
    attempt: Option<(String, String)>,
}

impl MarkedObject {
    /// Parses the metadata of an object.
    pub(super) fn read(meta: Option<&HashMap<String, String>>) -> Self {
        let value = |name: &str| meta.and_then(|meta| meta.get(name)).cloned();
        let task = value(META_TASK).map(|digest| (Holder::Task, digest));
        Self {
            holder: task.or_else(|| value(META_MISSION).map(|digest| (Holder::Mission, digest))),
            name: value(META_NAME),
            attempt: value(META_ATTEMPT).zip(value(META_OWNER)),
        }
    }

    /// Returns whether the object certainly belongs to another owner. An object without a mark is from an earlier
    /// version, and does not.
    pub(super) fn is_of_another(&self, mark: &Mark) -> bool {
        self.holder.as_ref().is_some_and(|(holder, digest)| *holder != mark.holder || *digest != mark.digest)
    }

    /// Returns whether this same attempt wrote the object.
    pub(super) fn is_of_attempt(&self, mark: &Mark) -> bool {
        mark.attempt.is_some() && self.attempt == mark.attempt && !self.is_of_another(mark)
    }

    /// Returns the task of this table in the mark, if the metadata contain its whole name and the digest matches.
    pub(super) fn task_of(&self, table: &str) -> Option<SrcId> {
        let Some((Holder::Task, digest)) = &self.holder else { return None };
        let src = SrcId::new(self.decoded_name()?).ok()?;
        (task_digest(table, &src) == *digest).then_some(src)
    }

    /// Returns the owner, for an error message.
    pub(super) fn holder(&self, table: &str) -> String {
        let name = self.decoded_name().unwrap_or_else(|| "without a name".to_owned());
        match &self.holder {
            Some((Holder::Task, _)) if self.task_of(table).is_some() => format!("task {name}"),
            Some((Holder::Task, _)) => format!("task {name} (of another tasks table, or with a shortened name)"),
            Some((Holder::Mission, _)) => format!("mission {name} (of other tables)"),
            None => "an unknown owner".to_owned(),
        }
    }

    fn decoded_name(&self) -> Option<String> {
        percent_decode_str(self.name.as_deref()?).decode_utf8().ok().map(std::borrow::Cow::into_owned)
    }
}

fn task_digest(table: &str, src: &SrcId) -> String {
    digest_hex(&[table, src.as_str()], 64)
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// Encodes the longest prefix of `text`, in whole characters, that fits into `room` bytes.
fn encoded_within(text: &str, room: usize) -> String {
    let mut all = String::new();
    for c in text.chars() {
        let mut utf8 = [0; 4];
        let before = all.len();
        all.extend(utf8_percent_encode(c.encode_utf8(&mut utf8), PLAIN));
        if all.len() > room {
            all.truncate(before);
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::{AttemptNumber, InstanceId};
    use proptest::prelude::*;

    fn mark(table: &str, name: &str, owner: &str) -> Mark {
        let tables = Tables { tasks: table.to_owned(), missions: "m".to_owned() };
        let owner = InstanceId::new(owner).unwrap();
        Mark::of_attempt(&tables, &Fence { src: SrcId::new(name).unwrap(), attempt: AttemptNumber(u64::MAX), owner })
    }

    #[test]
    fn a_mark_names_table_and_task_and_nothing_else_has_it() {
        let found = MarkedObject::read(Some(&mark("t", "d/x", "i-1").metadata()));
        assert!(!found.is_of_another(&mark("t", "d/x", "i-2")) && !found.is_of_attempt(&mark("t", "d/x", "i-2")));
        assert!(found.is_of_attempt(&mark("t", "d/x", "i-1")));
        // Another task, another table, and a pair that only joins to the same text.
        for other in [mark("t", "d", "i-1"), mark("u", "d/x", "i-1"), mark("td", "/x", "i-1")] {
            assert!(found.is_of_another(&other) && !found.is_of_attempt(&other));
        }
        assert_eq!(found.task_of("t").unwrap().as_str(), "d/x");
        assert_eq!(found.task_of("u"), None);
        let tables = Tables { tasks: "t".to_owned(), missions: "m".to_owned() };
        assert!(found.is_of_another(&Mark::of_mission(&tables, &MissionId::new("d/x").unwrap())));
        assert!(!MarkedObject::read(None).is_of_another(&mark("t", "d/x", "i-1")), "an earlier version's");
    }

    proptest! {
        #[test]
        fn metadata_are_short_ascii_whatever_the_names(name in "\\PC{1,1024}|[\\x01-\\x20=?%]{1,40}", owner in "\\PC{1,256}") {
            prop_assume!(name.len() <= 1024 && owner.len() <= 256);
            let meta = mark("tblTrans2", &name, &owner).metadata();
            let bytes: usize = meta.iter().map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes + 4 * META_PREFIX.len() <= 2048, "{bytes}");
            prop_assert!(meta.values().all(|value| value.bytes().all(|b| b.is_ascii_graphic())));
            let found = MarkedObject::read(Some(&meta));
            prop_assert!(name.starts_with(&found.decoded_name().unwrap()));
            prop_assert!(found.is_of_attempt(&mark("tblTrans2", &name, &owner)));
        }
    }
}
