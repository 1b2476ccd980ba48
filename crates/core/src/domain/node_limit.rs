//! How many nodes a deployment may have, at a time and in an hour.

/// The limits; `None`: there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLimits {
    /// Nodes at a time.
    pub at_a_time: Option<u64>,
    /// Nodes launched in one hour of the clock, in UTC.
    pub per_hour: Option<u64>,
}

/// A limit as it was set for one scheduler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeLimit {
    /// Nothing was set: what is stored for the deployment counts.
    #[default]
    Stored,
    /// `none`: there is no limit, and a sweep removes a stored one.
    Unlimited,
    /// The most nodes; 0 stops all launches.
    Most(u64),
}

impl NodeLimit {
    /// Reads a limit: a number, `none`, or nothing.
    ///
    /// # Errors
    /// What is needed.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Ok(Self::Stored),
            "none" => Ok(Self::Unlimited),
            text => text.parse().map(Self::Most).map_err(|_| "a number of nodes is needed, or none".to_owned()),
        }
    }

    /// Returns the limit that counts, given the stored one: the lower.
    #[must_use]
    pub fn with(self, stored: Option<u64>) -> Option<u64> {
        match self {
            Self::Stored | Self::Unlimited => stored,
            Self::Most(most) => Some(stored.map_or(most, |stored| stored.min(most))),
        }
    }

    /// Returns what a sweep stores: `None` leaves the stored limit as it is.
    #[must_use]
    pub const fn stores(self) -> Option<Option<u64>> {
        match self {
            Self::Stored => None,
            Self::Unlimited => Some(None),
            Self::Most(most) => Some(Some(most)),
        }
    }
}

impl NodeLimits {
    /// Returns how many nodes fit beside those that are `taken`, of which `in_hour` in this hour.
    #[must_use]
    pub fn room(self, taken: i64, in_hour: i64) -> u64 {
        let left = |most: Option<u64>, taken: i64| {
            let most = most.map_or(i64::MAX, |most| i64::try_from(most).unwrap_or(i64::MAX));
            u64::try_from(most.saturating_sub(taken.max(0))).unwrap_or(0)
        };
        left(self.at_a_time, taken).min(left(self.per_hour, in_hour))
    }

    /// Says which limit holds a launch back.
    #[must_use]
    pub fn reason(self, taken: i64, hour: &str) -> String {
        match (self.at_a_time, self.per_hour) {
            (Some(most), _) if taken >= i64::try_from(most).unwrap_or(i64::MAX) => {
                format!("the deployment's limit of {most} nodes at a time is reached (--max-nodes)")
            }
            (Some(most), None) => {
                format!("the deployment's limit of {most} nodes at a time leaves no room (--max-nodes)")
            }
            (_, Some(most)) => format!(
                "the deployment's limit of {most} nodes an hour is reached in the hour from {hour}:00 UTC (--max-nodes-per-hour)"
            ),
            (None, None) => "other launches are counted at the same moment".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_limit_counts() {
        assert_eq!(NodeLimit::parse(" 3 "), Ok(NodeLimit::Most(3)));
        assert_eq!(NodeLimit::parse("0"), Ok(NodeLimit::Most(0)));
        assert_eq!((NodeLimit::parse("none"), NodeLimit::parse("")), (Ok(NodeLimit::Unlimited), Ok(NodeLimit::Stored)));
        for bad in ["-1", "many", "3.5", "None"] {
            assert!(NodeLimit::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(NodeLimit::Stored.with(Some(3)), Some(3));
        assert_eq!(NodeLimit::Most(100).with(Some(3)), Some(3));
        assert_eq!(NodeLimit::Most(2).with(Some(3)), Some(2));
        assert_eq!(NodeLimit::Most(2).with(None), Some(2));
        assert_eq!((NodeLimit::Unlimited.stores(), NodeLimit::Stored.stores()), (Some(None), None));
    }

    #[test]
    fn room_is_what_both_limits_leave() {
        let limits = |at_a_time, per_hour| NodeLimits { at_a_time, per_hour };
        assert_eq!(limits(Some(3), None).room(1, 99), 2);
        assert_eq!(limits(Some(3), Some(10)).room(1, 9), 1);
        assert_eq!(limits(Some(3), Some(10)).room(5, 0), 0);
        assert_eq!(limits(Some(0), None).room(-2, 0), 0);
        assert_eq!(limits(Some(u64::MAX), None).room(-1, 0), i64::MAX as u64);
        assert!(limits(Some(3), Some(9)).reason(3, "h").contains("3 nodes at a time"));
        assert!(limits(Some(3), Some(9)).reason(2, "h").contains("9 nodes an hour"));
    }
}
