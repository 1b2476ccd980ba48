//! Combines the checksum of a whole from its sections, which arrive in any order.

use std::collections::BTreeMap;

use crc_fast::{CrcAlgorithm, checksum_combine};

/// The checksum of every upload: CRC-32, the SDK's default. S3 stores it for the whole object, and can combine it from
/// parts.
pub(super) const CRC: CrcAlgorithm = CrcAlgorithm::Crc32IsoHdlc;

/// A checksum in progress. It stores only sections that arrived early.
#[derive(Debug)]
pub(super) struct Sums {
    algorithm: CrcAlgorithm,
    crc: Option<u64>,
    /// The end of the sections without a gap.
    end: u64,
    early: BTreeMap<u64, (u64, u64)>,
}

impl Sums {
    pub(super) const fn new(algorithm: CrcAlgorithm) -> Self {
        Self { algorithm, crc: None, end: 0, early: BTreeMap::new() }
    }

    /// Adds a section of `bytes` bytes that starts at `start`.
    pub(super) fn add(&mut self, start: u64, bytes: u64, crc: u64) {
        self.early.insert(start, (bytes, crc));
        while let Some((bytes, crc)) = self.early.remove(&self.end) {
            let all = self.crc.map_or(crc, |all| checksum_combine(self.algorithm, all, crc, bytes));
            self.crc = Some(all);
            self.end += bytes;
        }
    }

    /// Returns the checksum of the sections without a gap. Without sections it is 0, the CRC-32 of empty data.
    pub(super) fn total(&self) -> u64 {
        debug_assert!(self.early.is_empty(), "a section is missing");
        self.crc.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sections_in_any_order_make_the_sum_of_the_whole(
            sections in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 1..20),
            order in any::<u64>(),
        ) {
            use rand::{SeedableRng, seq::SliceRandom};
            let mut placed = Vec::new();
            let mut start = 0;
            for section in &sections {
                placed.push((start, section.clone()));
                start += section.len() as u64;
            }
            placed.shuffle(&mut rand::rngs::StdRng::seed_from_u64(order));
            for algorithm in [CrcAlgorithm::Crc32IsoHdlc, CrcAlgorithm::Crc64Nvme, CrcAlgorithm::Crc32Iscsi] {
                let mut sums = Sums::new(algorithm);
                for (start, section) in &placed {
                    sums.add(*start, section.len() as u64, crc_fast::checksum(algorithm, section));
                }
                prop_assert_eq!(sums.total(), crc_fast::checksum(algorithm, &sections.concat()));
            }
        }
    }
}
