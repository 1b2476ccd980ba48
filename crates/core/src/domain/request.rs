//! A request to launch instances, and what a row keeps of it so that a repeat after a lost answer is equal.
//!
//! EC2 launches once for one client token, if the repeat has equal parameters; else it refuses. What may change between two
//! schedulers (the template's version, the types and subnets that were chosen, how it is paid for) is therefore in the row, and
//! a digest of everything. The rest comes from the settings again: whoever may write a row must not choose what is launched.

use std::time::Duration;

use super::keys::digest_hex;
use super::policy::{BidMode, Policy, Price, Purchase};
use super::tags;

/// The longest that a scheduler waits for EC2's answer to a launch, its repeats included.
pub const LAUNCH_MAX: Duration = Duration::from_secs(150);
/// How long EC2 may not show an instance that it has launched.
pub const HIDDEN_MAX: Duration = Duration::from_mins(5);
/// How far apart two readings of DynamoDB's clock may be, for its machines have one each. A time further ahead was edited.
const SKEW_MAX_S: u64 = 60;

/// A launch template, by id (`lt-…`) or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its id or name.
    pub name: String,
    /// Its version: a number, `$Latest`, or `$Default`.
    pub version: String,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The template.
    pub template: Template,
    /// The instance types, any of which will do; empty: the template's.
    pub instance_types: Vec<String>,
    /// The subnets, any of which will do; empty: the template's.
    pub subnets: Vec<String>,
    /// How it is paid for.
    pub purchase: Purchase,
    /// The most a Spot instance may cost, in USD for an hour.
    pub max_price: Option<Price>,
    /// How many instances.
    pub count: u32,
    /// The instances' tags.
    pub tags: Vec<(String, String)>,
    /// The same for a repeat of the same launch: EC2 then launches once.
    pub token: String,
}

/// What a row keeps of a launch whose answer is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// What the launch is for: the task's attempt, or the mission's round.
    pub number: u64,
    /// The client token.
    pub token: String,
    /// The template's version.
    pub version: String,
    /// The instance types.
    pub types: Vec<String>,
    /// The subnets.
    pub subnets: Vec<String>,
    /// How it is paid for.
    pub purchase: Purchase,
    /// How many instances.
    pub count: u32,
    /// When EC2 was last asked, in seconds of DynamoDB's clock; 0: not known.
    pub asked_at: u64,
    /// Whether its answer was lost, so that nobody waits for it any more.
    pub is_lost: bool,
    /// The epoch of the nodes' count in which they were taken, if they were counted.
    pub epoch: Option<u64>,
    /// [`Request::digest`].
    pub digest: String,
}

impl Request {
    /// Returns a digest of all parameters but the token.
    #[must_use]
    pub fn digest(&self) -> String {
        let price = self.max_price.as_ref().map(ToString::to_string).unwrap_or_default();
        let count = self.count.to_string();
        let (template, purchase) = (&self.template, self.purchase.as_str());
        let mut parts = vec![template.name.as_str(), &template.version, purchase, &price, &count, "types"];
        parts.extend(self.instance_types.iter().map(String::as_str));
        parts.push("subnets");
        parts.extend(self.subnets.iter().map(String::as_str));
        parts.push("tags");
        parts.extend(self.tags.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]));
        digest_hex(&parts, 32)
    }

    /// Returns what a row keeps of it, if EC2 is asked `now`.
    #[must_use]
    pub fn reserved(&self, number: u64, epoch: Option<u64>, now: u64) -> Reserved {
        Reserved {
            number,
            token: self.token.clone(),
            version: self.template.version.clone(),
            types: self.instance_types.clone(),
            subnets: self.subnets.clone(),
            purchase: self.purchase,
            count: self.count,
            asked_at: now,
            is_lost: false,
            epoch,
            digest: self.digest(),
        }
    }

    /// Counts the instances in an epoch: by a tag.
    #[must_use]
    pub fn in_epoch(mut self, epoch: Option<u64>) -> Self {
        self.tags.extend(epoch.map(|epoch| (tags::EPOCH.to_owned(), epoch.to_string())));
        self
    }
}

impl Reserved {
    /// Makes the same request again, from one that the settings of now make (without an epoch) and the subnets that they have.
    /// `None` if it would be another: a type or a subnet is not among those of now, the price or the template has changed, or
    /// the row was edited.
    #[must_use]
    pub fn again(&self, now: Request, policy: &Policy, subnets: &[String]) -> Option<Request> {
        let may_pay = match policy.bid_mode.unwrap_or_default() {
            BidMode::OnDemand => self.purchase == Purchase::OnDemand,
            BidMode::Spot => self.purchase == Purchase::Spot,
            BidMode::Mix | BidMode::SpotThenOnDemand => true,
        };
        // None is the template's own: another choice than some.
        let is_known = self.subnets.is_empty() == subnets.is_empty()
            && self.types.is_empty() == policy.instance_types.is_empty()
            && self.subnets.iter().all(|subnet| subnets.contains(subnet))
            && self.types.iter().all(|name| policy.instance_types.contains(name));
        let again = Request {
            template: Template { version: self.version.clone(), ..now.template },
            instance_types: self.types.clone(),
            subnets: self.subnets.clone(),
            purchase: self.purchase,
            count: self.count,
            token: self.token.clone(),
            ..now
        }
        .in_epoch(self.epoch);
        (may_pay && is_known && again.digest() == self.digest).then_some(again)
    }

    /// Returns whether another scheduler may still wait for EC2's answer.
    #[must_use]
    pub fn is_under_way(&self, now: u64) -> bool {
        !self.is_lost && self.age(now) < LAUNCH_MAX
    }

    /// Returns whether what it launched may not show yet.
    #[must_use]
    pub fn may_be_hidden(&self, now: u64) -> bool {
        self.age(now) < HIDDEN_MAX
    }

    fn age(&self, now: u64) -> Duration {
        let is_edited = self.asked_at > now.saturating_add(SKEW_MAX_S);
        if is_edited { Duration::MAX } else { Duration::from_secs(now.saturating_sub(self.asked_at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            template: Template { name: "nodes".to_owned(), version: "3".to_owned() },
            instance_types: vec!["a".to_owned(), "b".to_owned()],
            subnets: vec!["subnet-1".to_owned()],
            purchase: Purchase::Spot,
            max_price: None,
            count: 1,
            tags: vec![(tags::SRC.to_owned(), "x".to_owned())],
            token: "token".to_owned(),
        }
    }

    #[test]
    fn a_repeat_is_equal_whatever_version_type_and_subnet_are_chosen_now() {
        let policy =
            Policy { instance_types: vec!["b".to_owned(), "a".to_owned(), "c".to_owned()], ..Policy::default() };
        let subnets = ["subnet-1".to_owned(), "subnet-2".to_owned()];
        let first = request().in_epoch(Some(7));
        let reserved = first.reserved(2, Some(7), 1000);
        let mut now = Request { subnets: vec!["subnet-2".to_owned()], token: "other".to_owned(), ..request() };
        now.template.version = "4".to_owned();
        now.instance_types = vec!["c".to_owned()];
        assert_eq!(reserved.again(now.clone(), &policy, &subnets), Some(first.clone()));

        let others: [fn(&mut Request); 3] = [
            |now| now.max_price = Price::parse("0.08").ok(),
            |now| now.template.name = "others".to_owned(),
            |now| now.tags.push(("missionID".to_owned(), "M".to_owned())),
        ];
        for change in others {
            let mut other = now.clone();
            change(&mut other);
            assert_eq!(reserved.again(other, &policy, &subnets), None);
        }
        assert_eq!(reserved.again(now.clone(), &policy, &subnets[1..]), None, "a subnet that is not ours");
        let types = Policy { instance_types: vec!["a".to_owned(), "c".to_owned()], ..Policy::default() };
        assert_eq!(reserved.again(now.clone(), &types, &subnets), None, "a type that is not ours any more");
        let paid = Policy { bid_mode: Some(BidMode::OnDemand), ..policy.clone() };
        assert_eq!(reserved.again(now.clone(), &paid, &subnets), None);
        let edited = [
            Reserved { count: 1000, ..reserved.clone() },
            Reserved { types: vec!["a".to_owned()], ..reserved.clone() },
            Reserved {
                types: Vec::new(),
                digest: Request { instance_types: Vec::new(), ..first.clone() }.digest(),
                ..reserved.clone()
            },
            Reserved {
                subnets: Vec::new(),
                digest: Request { subnets: Vec::new(), ..first.clone() }.digest(),
                ..reserved.clone()
            },
            Reserved { epoch: Some(8), ..reserved },
        ];
        for edited in edited {
            assert_eq!(edited.again(now.clone(), &policy, &subnets), None, "{edited:?}");
        }
    }

    #[test]
    fn a_time_that_is_ahead_holds_nothing_back() {
        let reserved = request().reserved(1, None, 10_000);
        for (now, is_under_way, may_be_hidden) in [
            (9_990, true, true),
            (10_149, true, true),
            (10_150, false, true),
            (10_300, false, false),
            (9_000, false, false),
        ] {
            assert_eq!(
                (reserved.is_under_way(now), reserved.may_be_hidden(now)),
                (is_under_way, may_be_hidden),
                "{now}"
            );
        }
        assert!(!Reserved { is_lost: true, ..reserved }.is_under_way(10_000));
    }
}
