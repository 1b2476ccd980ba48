//! The proof that this process may terminate its machine.

use crate::domain::tags;

/// The tags that identify an instance as a node. One of them is enough, with any value.
pub const NODE_TAGS: [&str; 3] = [tags::SRC, tags::MISSION, tags::OURS];

/// Proof that this process may terminate its machine. Only the modules of this folder create it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndProof(pub(super) Ground);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// [`EndOrder::Terminate`].
    Ordered,
    /// This instance has a tag of ours.
    Tagged { instance: String },
}

impl EndProof {
    pub(super) fn of_tags<'a>(instance: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        keys.into_iter().find(|key| NODE_TAGS.contains(key))?;
        Some(Self(Ground::Tagged { instance: instance.to_owned() }))
    }

    /// Returns whether the proof applies to this machine. Tags prove nothing about another instance.
    pub(super) fn covers(&self, instance: Option<&str>) -> bool {
        match &self.0 {
            Ground::Ordered => true,
            Ground::Tagged { instance: tagged } => instance == Some(tagged.as_str()),
        }
    }
}
