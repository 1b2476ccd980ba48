//! A request to launch instances, and what a row keeps of it so that a repeat after a lost answer is equal.
//!
//! EC2 launches once for one client token, if the repeat has equal parameters; else it refuses. What may change between two
//! schedulers (the template's version, the subnets that were chosen, how it is paid for) is therefore in the row, and a digest
//! of everything. The rest comes from the settings again: whoever may write a row must not choose what is launched.

use super::keys::digest_hex;
use super::policy::{BidMode, Policy, Price, Purchase};
use super::tags;

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
    /// The subnets.
    pub subnets: Vec<String>,
    /// How it is paid for.
    pub purchase: Purchase,
    /// How many instances.
    pub count: u32,
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

    /// Returns what a row keeps of it.
    #[must_use]
    pub fn reserved(&self, number: u64, epoch: Option<u64>) -> Reserved {
        Reserved {
            number,
            token: self.token.clone(),
            version: self.template.version.clone(),
            subnets: self.subnets.clone(),
            purchase: self.purchase,
            count: self.count,
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
    /// `None` if it would be another: a type, the price, the template, or a subnet has changed, or the row was edited.
    #[must_use]
    pub fn again(&self, now: Request, policy: &Policy, subnets: &[String]) -> Option<Request> {
        let may_pay = match policy.bid_mode.unwrap_or_default() {
            BidMode::OnDemand => self.purchase == Purchase::OnDemand,
            BidMode::Spot => self.purchase == Purchase::Spot,
            BidMode::Mix | BidMode::SpotThenOnDemand => true,
        };
        let is_known = self.subnets.iter().all(|subnet| subnets.contains(subnet));
        let again = Request {
            template: Template { version: self.version.clone(), ..now.template },
            subnets: self.subnets.clone(),
            purchase: self.purchase,
            count: self.count,
            token: self.token.clone(),
            ..now
        }
        .in_epoch(self.epoch);
        (may_pay && is_known && again.digest() == self.digest).then_some(again)
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
    fn a_repeat_is_equal_whatever_version_and_subnet_are_chosen_now() {
        let policy = Policy::default();
        let subnets = ["subnet-1".to_owned(), "subnet-2".to_owned()];
        let first = request().in_epoch(Some(7));
        let reserved = first.reserved(2, Some(7));
        let mut now = Request { subnets: vec!["subnet-2".to_owned()], token: "other".to_owned(), ..request() };
        now.template.version = "4".to_owned();
        assert_eq!(reserved.again(now.clone(), &policy, &subnets), Some(first));

        let others: [fn(&mut Request); 5] = [
            |now| now.instance_types.swap(0, 1),
            |now| now.instance_types.truncate(1),
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
        let paid = Policy { bid_mode: Some(BidMode::OnDemand), ..Policy::default() };
        assert_eq!(reserved.again(now.clone(), &paid, &subnets), None);
        let edited = Reserved { count: 1000, ..reserved };
        assert_eq!(edited.again(now, &policy, &subnets), None);
    }
}
