//! Chooses the pools (instance type × subnet) of a launch: no pool twice, because EC2 refuses such a request as a
//! whole, and only types that the region offers.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backend::{CloudError, Fleet, error_chain};

/// The pause before EC2 is queried again after it did not answer, or did not know a name.
const ASK_PAUSE: Duration = Duration::from_mins(1);

/// EC2's answers about subnets and types. They are kept for the life of a scheduler.
#[derive(Debug, Default)]
pub(super) struct Offers {
    zones: Mutex<Known<String>>,
    types: Mutex<Known<bool>>,
}

/// Answers by name, and the time of the last query.
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
    /// Returns the names to query now.
    fn missing(&self, names: &[String]) -> Vec<String> {
        if self.asked.is_some_and(|asked| asked.elapsed() < ASK_PAUSE) {
            return Vec::new();
        }
        names.iter().filter(|name| !self.answers.contains_key(*name)).cloned().collect()
    }

    /// Logs once that launches continue without an answer.
    fn warn_once(&mut self, error: &CloudError, what: &str) {
        if !std::mem::replace(&mut self.has_said, true) {
            tracing::warn!("EC2 does not report {what}, so launches continue without this: {}", error_chain(&error));
        }
    }
}

impl Offers {
    /// Returns one subnet per zone. If a zone has several, `dice` chooses; it differs between launches, so that a full
    /// subnet does not block them.
    pub(super) async fn subnets(&self, fleet: &Fleet, subnets: &[String], dice: usize) -> Vec<String> {
        if subnets.len() < 2 {
            return subnets.to_vec();
        }
        let mut known = self.zones.lock().await;
        let missing = known.missing(subnets);
        if !missing.is_empty() {
            match fleet.zones(&missing).await {
                Ok(zones) => known.answers.extend(zones),
                Err(error) => known.warn_once(&error, "the zones of the subnets"),
            }
            // If a subnet is unknown or there was no answer, EC2 is queried again after a pause.
            known.asked = subnets.iter().any(|name| !known.answers.contains_key(name)).then(Instant::now);
        }
        one_per_zone(subnets, &known.answers, dice)
    }

    /// Returns the instance types that the region offers. Returns all if EC2 does not answer, or if it offers none of
    /// them.
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
                            tracing::warn!("the region does not offer instance type {name}, so launches do not use it");
                        }
                        known.answers.insert(name, is_offered);
                    }
                    known.asked = None;
                }
                Err(error) => {
                    known.warn_once(&error, "the instance types of the region");
                    known.asked = Some(Instant::now());
                }
            }
        }
        let is_offered = |name: &&String| known.answers.get(*name) != Some(&false);
        let offered: Vec<String> = types.iter().filter(is_offered).cloned().collect();
        if offered.is_empty() { types.to_vec() } else { offered }
    }
}

/// Keeps one subnet per zone, in their order. A subnet whose zone is unknown stays.
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
