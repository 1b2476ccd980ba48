//! Which pools (instance type × subnet) a launch names: none twice, for EC2 refuses such a request as a whole, and none that
//! the region does not offer.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backend::{CloudError, Fleet, error_chain};

/// How long EC2 is not asked again after it did not answer, or did not know a name.
const ASK_PAUSE: Duration = Duration::from_mins(1);

/// What EC2 has said of subnets and types. It stays so for the life of a scheduler.
#[derive(Debug, Default)]
pub(super) struct Offers {
    zones: Mutex<Known<String>>,
    types: Mutex<Known<bool>>,
}

/// Answers by name, and when the last question was asked.
#[derive(Debug)]
struct Known<T> {
    answers: HashMap<String, T>,
    asked: Option<Instant>,
    has_said: bool,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { answers: HashMap::new(), asked: None, has_said: false }
    }
}

impl<T> Known<T> {
    /// The names that are to be asked for now.
    fn missing(&self, names: &[String]) -> Vec<String> {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_PAUSE) {
            return Vec::new();
        }
        names.iter().filter(|name| !self.answers.contains_key(*name)).cloned().collect()
    }

    /// Says once that launches go on without an answer.
    fn say(&mut self, error: &CloudError, what: &str) {
        if !std::mem::replace(&mut self.has_said, true) {
            tracing::warn!("EC2 does not say {what}, so launches do without it: {}", error_chain(&error));
        }
    }
}

impl Offers {
    /// Returns one subnet of each zone. Of several in a zone, `dice` chooses: it differs from launch to launch, so that a full
    /// subnet does not block.
    pub(super) async fn subnets(&self, fleet: &Fleet, subnets: &[String], dice: usize) -> Vec<String> {
        if subnets.len() < 2 {
            return subnets.to_vec();
        }
        let mut known = self.zones.lock().await;
        let missing = known.missing(subnets);
        if !missing.is_empty() {
            match fleet.zones(&missing).await {
                Ok(zones) => known.answers.extend(zones),
                Err(error) => known.say(&error, "in which zones the subnets are"),
            }
            // A subnet that is not there, or no answer: asked again after a pause.
            known.asked = subnets.iter().any(|name| !known.answers.contains_key(name)).then(Instant::now);
        }
        one_per_zone(subnets, &known.answers, dice)
    }

    /// Returns the instance types that the region offers; all, if EC2 does not say, or offers none of them.
    pub(super) async fn types(&self, fleet: &Fleet, types: &[String]) -> Vec<String> {
        if types.len() < 2 {
            return types.to_vec();
        }
        let mut known = self.types.lock().await;
        let missing = known.missing(types);
        if !missing.is_empty() {
            match fleet.offered(&missing).await {
                Ok(offered) => {
                    for name in missing {
                        let is_offered = offered.contains(&name);
                        if !is_offered {
                            tracing::warn!("the region does not offer instance type {name}: launches do without it");
                        }
                        known.answers.insert(name, is_offered);
                    }
                    known.asked = None;
                }
                Err(error) => {
                    known.say(&error, "which instance types the region offers");
                    known.asked = Some(Instant::now());
                }
            }
        }
        let is_offered = |name: &&String| known.answers.get(*name) != Some(&false);
        let offered: Vec<String> = types.iter().filter(is_offered).cloned().collect();
        if offered.is_empty() { types.to_vec() } else { offered }
    }
}

/// Keeps one subnet of each zone, in their order. One whose zone is not known stays.
fn one_per_zone(subnets: &[String], zones: &HashMap<String, String>, dice: usize) -> Vec<String> {
    let mut by_zone: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for subnet in subnets {
        by_zone.entry(zones.get(subnet).unwrap_or(subnet)).or_default().push(subnet);
    }
    let is_chosen = |subnet: &&String| by_zone.values().any(|some| some[dice % some.len()] == *subnet);
    subnets.iter().filter(is_chosen).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_zone_has_one_subnet_and_another_at_another_launch() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let zones = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, zone)| (name.to_owned(), zone.to_owned()));
        let zones = HashMap::from(zones);
        let subnets = names(&["a1", "b1", "a2", "unknown"]);
        assert_eq!(one_per_zone(&subnets, &zones, 0), names(&["a1", "b1", "unknown"]));
        assert_eq!(one_per_zone(&subnets, &zones, 1), names(&["b1", "a2", "unknown"]));
        assert_eq!(one_per_zone(&subnets, &HashMap::new(), 1), subnets);
    }
}
