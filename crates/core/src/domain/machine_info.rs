//! What a machine is, and what it costs: as the history of a task keeps it for each attempt.

use std::fmt;
use std::time::Duration;

/// How a machine was bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PurchaseOption {
    /// An EC2 Spot instance.
    Spot,
    /// An EC2 On-Demand instance.
    OnDemand,
    /// A computer that is not an EC2 instance. It costs nothing here.
    Local,
}

impl PurchaseOption {
    /// Returns the word that is written in the table.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Spot => "spot",
            Self::OnDemand => "on-demand",
            Self::Local => "local",
        }
    }

    /// Reads a word of the table, or of IMDS (`instance-life-cycle`); `None` for any other word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Spot, Self::OnDemand, Self::Local].into_iter().find(|purchase| purchase.as_str() == word.trim())
    }
}

/// A sum of money, or a price per hour, in millionths of a US dollar. EC2's prices have up to six decimals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MicroUsd(pub u64);

/// The highest price that is read: a million USD.
const USD_MAX: f64 = 1e6;

impl MicroUsd {
    /// Reads a decimal number of US dollars, such as `0.0725`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let usd: f64 = text.trim().parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 10^12")]
        (0.0..=USD_MAX).contains(&usd).then(|| Self((usd * 1e6).round() as u64))
    }

    /// Returns what a time costs at this price per hour, rounded to the nearest millionth.
    #[must_use]
    pub fn for_time(self, time: Duration) -> Self {
        let cost = (u128::from(self.0) * time.as_millis() + 1_800_000) / 3_600_000;
        Self(u64::try_from(cost).unwrap_or(u64::MAX))
    }

    /// Returns the number of US dollars.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people: 15 digits are exact")]
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

/// The number of US dollars without needless zeros: `0.0725`, `12`.
impl fmt::Display for MicroUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// What is known of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineInfo {
    /// The instance type, such as `c7i.large`.
    pub instance_type: Option<String>,
    /// The availability zone, such as `us-east-1a`.
    pub zone: Option<String>,
    /// How it was bought.
    pub purchase: Option<PurchaseOption>,
    /// Its price per hour; `None`: unknown.
    pub usd_per_hour: Option<MicroUsd>,
}

impl MachineInfo {
    /// Returns the information about a computer that is not an EC2 instance.
    #[must_use]
    pub const fn local() -> Self {
        Self { instance_type: None, zone: None, purchase: Some(PurchaseOption::Local), usd_per_hour: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_written() {
        for (text, micro, written) in
            [("0.0725", 72_500, "0.0725"), ("12", 12_000_000, "12"), (" 0.000001 ", 1, "0.000001"), ("0", 0, "0")]
        {
            let price = MicroUsd::parse(text);
            assert_eq!(price, Some(MicroUsd(micro)), "{text}");
            assert_eq!(price.unwrap().to_string(), written);
        }
        for bad in ["", "-1", "nan", "inf", "1e7", "free", "0,07"] {
            assert_eq!(MicroUsd::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_time_costs_its_part_of_an_hour() {
        let price = MicroUsd(72_500);
        assert_eq!(price.for_time(Duration::from_hours(2)), MicroUsd(145_000));
        assert_eq!(price.for_time(Duration::from_millis(100)), MicroUsd(2));
        assert_eq!(MicroUsd(u64::MAX).for_time(Duration::from_secs(u64::MAX)), MicroUsd(u64::MAX));
    }

    #[test]
    fn every_purchase_reads_back() {
        for purchase in [PurchaseOption::Spot, PurchaseOption::OnDemand, PurchaseOption::Local] {
            assert_eq!(PurchaseOption::parse(purchase.as_str()), Some(purchase));
        }
        assert_eq!(PurchaseOption::parse("scheduled"), None);
    }
}
