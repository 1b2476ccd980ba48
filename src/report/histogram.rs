//! Histograms with bins of growing width: a value needs no more than its exponent and two bits.

use std::collections::BTreeMap;

/// Counts values in bins that are a quarter of a power of two wide: 19 % from one to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    bins: BTreeMap<u16, u64>,
    /// How many values there are.
    pub count: u64,
    /// The sum of all.
    pub sum: u128,
    /// The smallest and the largest.
    pub range: Option<(u64, u64)>,
}

impl Histogram {
    /// Adds a value.
    pub fn add(&mut self, value: u64) {
        *self.bins.entry(bin(value)).or_default() += 1;
        self.count += 1;
        self.sum += u128::from(value);
        let (low, high) = self.range.unwrap_or((value, value));
        self.range = Some((low.min(value), high.max(value)));
    }

    /// Returns the mean; 0 without values.
    #[must_use]
    pub fn mean(&self) -> u64 {
        u64::try_from(self.sum.checked_div(u128::from(self.count)).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Returns the value below which a share of the values lies, in percent: the upper end of its bin.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = u128::from(self.count) * u128::from(percent);
        let mut seen = 0;
        for (&bin, &count) in &self.bins {
            seen += u128::from(count) * 100;
            if seen >= wanted {
                return start(bin + 1).min(self.range.map_or(0, |(_, high)| high));
            }
        }
        0
    }

    /// Returns at most `most` neighbouring bars: from, to, and count. Bins without a value are among them.
    #[must_use]
    pub fn bars(&self, most: u16) -> Vec<(u64, u64, u64)> {
        let (Some(&first), Some(&last)) = (self.bins.keys().next(), self.bins.keys().next_back()) else {
            return Vec::new();
        };
        let width = (last - first + 1).div_ceil(most.max(1)).max(1);
        let bars = (first..=last).step_by(usize::from(width));
        bars.map(|from| {
            let to = from.saturating_add(width);
            (start(from), start(to), self.bins.range(from..to).map(|(_, count)| count).sum())
        })
        .collect()
    }
}

/// Returns the bin of a value: values up to 4 have a bin each.
fn bin(value: u64) -> u16 {
    if value < 4 {
        return u16::try_from(value).unwrap_or(0);
    }
    let exponent = value.ilog2();
    let quarter = (value >> (exponent - 2)) & 3;
    u16::try_from(u64::from(exponent) * 4 + quarter - 4).unwrap_or(u16::MAX)
}

/// Returns the smallest value of a bin.
fn start(bin: u16) -> u64 {
    if bin < 4 {
        return u64::from(bin);
    }
    let (exponent, quarter) = (u32::from(bin + 4) / 4, u64::from((bin + 4) % 4));
    if exponent >= 64 { u64::MAX } else { (4 + quarter) << (exponent - 2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_its_bin() {
        for value in (0..2000).chain([u64::MAX, u64::MAX / 2, 1 << 40, (1 << 40) - 1]) {
            let bin = bin(value);
            assert!(start(bin) <= value, "{value}");
            assert!(value < start(bin + 1) || value == u64::MAX, "{value}");
        }
    }

    #[test]
    fn percentiles_and_bars_cover_all_values() {
        let mut histogram = Histogram::default();
        assert!(histogram.bars(30).is_empty() && histogram.percentile(50) == 0 && histogram.mean() == 0);
        for value in 1..=1000 {
            histogram.add(value);
        }
        assert_eq!((histogram.mean(), histogram.range), (500, Some((1, 1000))));
        assert!((500..640).contains(&histogram.percentile(50)) && histogram.percentile(100) == 1000);
        let bars = histogram.bars(10);
        assert!(bars.len() <= 10);
        assert_eq!(bars.iter().map(|(_, _, count)| count).sum::<u64>(), 1000);
        assert!(bars.windows(2).all(|pair| pair[0].1 == pair[1].0), "{bars:?}");
    }
}
