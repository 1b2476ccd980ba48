//! What a mission may cost: which instances are launched for it, and how they are paid for.
//!
//! The words of the first version's configuration keep their meaning: `bidMode`, `bidInstanceType`, `maxUnitprice` (USD for
//! an instance-hour), `maxWaitTime` (seconds).

use std::fmt;
use std::time::Duration;

/// How instances are paid for: `bidMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BidMode {
    /// Spot, where it is least likely to be interrupted among the cheap: `spot`, or the first version's `lowerPrice`.
    #[default]
    Spot,
    /// On-Demand only.
    OnDemand,
    /// Spot, but at least so many of a mission's nodes On-Demand: `mix`, with `onDemandFloor`.
    Mix,
    /// Spot, and On-Demand for what has waited for `maxWaitTime`: `spot-then-on-demand`.
    SpotThenOnDemand,
}

impl BidMode {
    const WORDS: [(&'static str, Self); 5] = [
        ("spot", Self::Spot),
        ("lowerprice", Self::Spot),
        ("on-demand", Self::OnDemand),
        ("mix", Self::Mix),
        ("spot-then-on-demand", Self::SpotThenOnDemand),
    ];

    /// Reads a word, whatever its case.
    ///
    /// # Errors
    /// [`PolicyError::BidMode`] names the words there are.
    pub fn parse(word: &str) -> Result<Self, PolicyError> {
        let plain = word.trim().to_ascii_lowercase();
        let found = Self::WORDS.into_iter().find(|(name, _)| *name == plain).map(|(_, mode)| mode);
        found.ok_or_else(|| PolicyError::BidMode(word.to_owned()))
    }

    /// Returns the word that is written in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
            Self::Mix => "mix",
            Self::SpotThenOnDemand => "spot-then-on-demand",
        }
    }
}

/// How one instance is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purchase {
    /// Spot.
    Spot,
    /// On-Demand.
    OnDemand,
}

impl Purchase {
    /// Returns the word that is written in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
        }
    }

    /// Reads that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Spot, Self::OnDemand].into_iter().find(|purchase| purchase.as_str() == word)
    }
}

/// A price in USD for an instance-hour, as it was written: positive, with up to 6 digits after the point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price(String);

impl Price {
    /// Reads a price.
    ///
    /// # Errors
    /// [`PolicyError::Price`] if it is not a positive number.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let plain = text.trim();
        let is_number = plain.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        match plain.parse::<f64>() {
            Ok(price) if is_number && price > 0.0 && price < 10_000.0 => Ok(Self(plain.to_owned())),
            _ => Err(PolicyError::Price(text.to_owned())),
        }
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a policy.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// An unknown `bidMode`.
    #[error("bidMode {0:?} is none of spot (or lowerPrice), on-demand, mix, spot-then-on-demand")]
    BidMode(String),
    /// A price that is not a number.
    #[error("maxUnitprice {0:?} is not a price: a positive number of USD for an instance-hour is needed, such as 0.08")]
    Price(String),
    /// A time that is not a number.
    #[error("maxWaitTime {0:?} is not a number of seconds")]
    Wait(String),
    /// `mix` without a floor.
    #[error("bidMode mix needs onDemandFloor: how many nodes are On-Demand at least")]
    NoFloor,
    /// `spot-then-on-demand` without a time.
    #[error("bidMode spot-then-on-demand needs maxWaitTime: after how many seconds a task no longer waits for Spot")]
    NoWait,
}

/// A mission's policy, as its row or the settings have it. What is `None` is left to the settings, or to the launch template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How instances are paid for.
    pub bid_mode: Option<BidMode>,
    /// The instance types, any of which will do: `bidInstanceType`, separated by commas. Empty: the template's.
    pub instance_types: Vec<String>,
    /// The most that a Spot instance may cost. A lower price than EC2's own limit (the On-Demand price) only makes
    /// interruptions more likely.
    pub max_price: Option<Price>,
    /// How long a task waits for Spot, with [`BidMode::SpotThenOnDemand`].
    pub max_wait: Option<Duration>,
    /// How many nodes are On-Demand at least, with [`BidMode::Mix`].
    pub on_demand_floor: Option<u32>,
}

impl Policy {
    /// Reads a policy from its words.
    ///
    /// # Errors
    /// [`PolicyError`]: the first word that cannot be read.
    pub fn read<'a>(word: impl Fn(&str) -> Option<&'a str>) -> Result<Self, PolicyError> {
        let word = |name: &str| word(name).map(str::trim).filter(|word| !word.is_empty());
        let seconds = |text: &str| text.parse::<f64>().ok().filter(|s| (0.0..=3.2e8).contains(s));
        let max_wait = word("maxWaitTime")
            .map(|text| seconds(text).map(Duration::from_secs_f64).ok_or_else(|| PolicyError::Wait(text.to_owned())));
        Ok(Self {
            bid_mode: word("bidMode").map(BidMode::parse).transpose()?,
            instance_types: word("bidInstanceType").map(words).unwrap_or_default(),
            max_price: word("maxUnitprice").map(Price::parse).transpose()?,
            max_wait: max_wait.transpose()?,
            on_demand_floor: word("onDemandFloor").and_then(|text| text.parse().ok()),
        })
    }

    /// Returns this policy with what it leaves open taken from `other`.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            bid_mode: self.bid_mode.or(other.bid_mode),
            instance_types: if self.instance_types.is_empty() {
                other.instance_types.clone()
            } else {
                self.instance_types
            },
            max_price: self.max_price.or_else(|| other.max_price.clone()),
            max_wait: self.max_wait.or(other.max_wait),
            on_demand_floor: self.on_demand_floor.or(other.on_demand_floor),
        }
    }

    /// Checks that what the mode needs is there.
    ///
    /// # Errors
    /// [`PolicyError::NoFloor`], [`PolicyError::NoWait`].
    pub fn check(&self) -> Result<(), PolicyError> {
        match self.bid_mode.unwrap_or_default() {
            BidMode::Mix if self.on_demand_floor.is_none() => Err(PolicyError::NoFloor),
            BidMode::SpotThenOnDemand if self.max_wait.is_none() => Err(PolicyError::NoWait),
            BidMode::Spot | BidMode::OnDemand | BidMode::Mix | BidMode::SpotThenOnDemand => Ok(()),
        }
    }

    /// Decides how the node of one task is paid for, given how long the task has waited. `None`: by the mission's count of
    /// On-Demand launches, against [`Self::on_demand_floor`].
    #[must_use]
    pub fn purchase(&self, waited: Duration) -> Option<Purchase> {
        match self.bid_mode.unwrap_or_default() {
            BidMode::Mix => None,
            BidMode::OnDemand => Some(Purchase::OnDemand),
            BidMode::SpotThenOnDemand if self.max_wait.is_some_and(|limit| waited >= limit) => Some(Purchase::OnDemand),
            BidMode::Spot | BidMode::SpotThenOnDemand => Some(Purchase::Spot),
        }
    }

    /// Decides how `count` nodes that serve a whole mission are paid for: (On-Demand, Spot). `on_demand` are On-Demand
    /// already.
    #[must_use]
    pub fn split(&self, count: u32, on_demand: u32, waited: Duration) -> (u32, u32) {
        match self.bid_mode.unwrap_or_default() {
            BidMode::OnDemand => (count, 0),
            BidMode::SpotThenOnDemand if self.max_wait.is_some_and(|limit| waited >= limit) => (count, 0),
            BidMode::Mix => {
                let missing = self.on_demand_floor.unwrap_or(0).saturating_sub(on_demand).min(count);
                (missing, count - missing)
            }
            BidMode::Spot | BidMode::SpotThenOnDemand => (0, count),
        }
    }
}

/// Splits a list at its commas; of what is named twice, only the first stays.
#[must_use]
pub fn words(list: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Policy, PolicyError> {
        let pairs: Vec<(String, String)> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Policy::read(|name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()))
    }

    #[test]
    fn the_first_versions_words_keep_their_meaning() {
        let policy = read(&[
            ("bidMode", "lowerPrice"),
            ("bidInstanceType", "m4.large"),
            ("maxUnitprice", "0.08"),
            ("maxWaitTime", "600"),
        ])
        .unwrap();
        assert_eq!(policy.bid_mode, Some(BidMode::Spot));
        assert_eq!(policy.instance_types, ["m4.large"]);
        assert_eq!(policy.max_price.unwrap().to_string(), "0.08");
        assert_eq!(policy.max_wait, Some(Duration::from_mins(10)));
    }

    #[test]
    fn wrong_words_are_named() {
        assert!(matches!(read(&[("bidMode", "cheap")]), Err(PolicyError::BidMode(word)) if word == "cheap"));
        for price in ["a lot", "-1", "0", "1e9", "nan", "inf", "0.0.1"] {
            assert!(matches!(read(&[("maxUnitprice", price)]), Err(PolicyError::Price(_))), "{price}");
        }
        assert!(matches!(read(&[("maxWaitTime", "soon")]), Err(PolicyError::Wait(_))));
        assert_eq!(read(&[("bidMode", "mix")]).unwrap().check(), Err(PolicyError::NoFloor));
        assert_eq!(read(&[("bidMode", "spot-then-on-demand")]).unwrap().check(), Err(PolicyError::NoWait));
    }

    #[test]
    fn the_mode_decides_what_is_bought() {
        let (none, long) = (Duration::ZERO, Duration::from_secs(601));
        let spot_first = read(&[("bidMode", "spot-then-on-demand"), ("maxWaitTime", "600")]).unwrap();
        assert_eq!(spot_first.purchase(none), Some(Purchase::Spot));
        assert_eq!(spot_first.purchase(long), Some(Purchase::OnDemand));
        assert_eq!(spot_first.split(5, 0, long), (5, 0));

        let mix = read(&[("bidMode", "mix"), ("onDemandFloor", "100")]).unwrap();
        assert_eq!(mix.purchase(long), None);
        assert_eq!(mix.split(150, 30, none), (70, 80));
        assert_eq!(mix.split(50, 30, none), (50, 0));
        assert_eq!(Policy::default().split(3, 0, long), (0, 3));
    }
}
