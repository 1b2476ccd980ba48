//! What a submission will cost, as far as that is known before it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::screen;
use crate::backend::error_chain;
use crate::backend::fleet::Request;
use crate::domain::machine_info::MicroUsd;
use crate::domain::policy::Purchase;
use crate::scheduler::Scheduler;

/// The time of a node that is no workload: boot, and termination.
const NODE_EXTRA: Duration = Duration::from_mins(2);

/// The work to estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlannedWork {
    pub(super) tasks: u64,
    /// How many nodes are launched.
    pub(super) nodes: u64,
    /// Tasks at a time on a node.
    pub(super) slots: u64,
    /// The time of a task, if the user expects one.
    pub(super) task_time: Option<Duration>,
}

/// An estimate. Prices are USD per instance-hour; a range is from the cheapest to the dearest type.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Estimate {
    /// Spot prices by type, in the cheapest zone now.
    pub(super) spot: BTreeMap<String, f64>,
    /// On-Demand prices by type, as they were given.
    pub(super) on_demand: BTreeMap<String, f64>,
    /// Types whose price is not known.
    pub(super) unknown: Vec<String>,
    /// The price of all nodes together for an hour.
    pub(super) per_hour: Option<(f64, f64)>,
    /// The price of the whole work, if the time of a task is expected.
    pub(super) in_all: Option<(f64, f64)>,
    /// Why nodes may cost more than is allowed.
    pub(super) warnings: Vec<String>,
}

impl Estimate {
    /// Looks the prices up, and estimates. If the Spot prices cannot be read, they are unknown.
    pub(super) async fn read(
        scheduler: &Scheduler,
        requests: &[Request],
        on_demand: &[(String, MicroUsd)],
        work: PlannedWork,
    ) -> Self {
        let types = |purchase: Purchase| {
            let of_purchase = requests.iter().filter(move |request| request.purchase == purchase);
            let mut types: Vec<String> = of_purchase.flat_map(|request| request.instance_types.clone()).collect();
            types.sort();
            types.dedup();
            types
        };
        let spot_types = types(Purchase::Spot);
        let spot = if spot_types.is_empty() {
            BTreeMap::new()
        } else {
            scheduler.backend.fleet.spot_prices(&spot_types).await.unwrap_or_else(|error| {
                screen::to_stderr(&format!("note: the Spot prices are not known: {}\n", error_chain(&error)));
                BTreeMap::new()
            })
        };
        let known: BTreeMap<&str, f64> = on_demand.iter().map(|(name, price)| (name.as_str(), price.usd())).collect();
        let limit = requests.iter().find_map(|request| request.max_price.as_ref()?.to_string().parse().ok());
        Self::of(spot, &spot_types, &types(Purchase::OnDemand), &known, limit, work)
    }

    fn of(
        spot: BTreeMap<String, f64>,
        spot_types: &[String],
        on_demand_types: &[String],
        on_demand: &BTreeMap<&str, f64>,
        limit: Option<f64>,
        work: PlannedWork,
    ) -> Self {
        let on_demand: BTreeMap<String, f64> =
            on_demand_types.iter().filter_map(|name| Some((name.clone(), *on_demand.get(name.as_str())?))).collect();
        let is_unknown = |name: &&String| !spot.contains_key(*name) && !on_demand.contains_key(*name);
        let unknown: Vec<String> = spot_types.iter().chain(on_demand_types).filter(is_unknown).cloned().collect();
        let prices = || spot.values().chain(on_demand.values()).copied();
        let range = prices().reduce(f64::min).zip(prices().reduce(f64::max));
        let times = |hours: f64| range.map(|(low, high)| (low * hours, high * hours));
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let node_hours = work.task_time.map(|time| {
            let work_s = time.as_secs_f64() * work.tasks as f64 / work.slots.max(1) as f64;
            (work_s + NODE_EXTRA.as_secs_f64() * work.nodes as f64) / 3600.0
        });
        let mut warnings = Vec::new();
        if let (Some(limit), Some(lowest)) = (limit, spot.values().copied().reduce(f64::min))
            && lowest > limit
        {
            warnings.push(format!(
                "the maximum price {limit} USD per hour is below every Spot price now (the lowest is {lowest:.4}): no Spot \
                 node will be launched"
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
        let per_hour = times(work.nodes as f64).filter(|_| work.nodes > 0);
        Self {
            per_hour,
            in_all: node_hours.and_then(times).filter(|_| work.nodes > 0),
            spot,
            on_demand,
            unknown,
            warnings,
        }
    }

    /// Returns the lines for people.
    pub(super) fn text(&self, work: PlannedWork) -> String {
        let mut text = String::new();
        for (name, price) in &self.spot {
            text.push_str(&format!("price: {name} costs {price:.4} USD per hour as Spot in the cheapest zone now\n"));
        }
        for (name, price) in &self.on_demand {
            text.push_str(&format!("price: {name} costs {price:.4} USD per hour On-Demand\n"));
        }
        if !self.unknown.is_empty() {
            text.push_str(&format!(
                "price: not known for {} (On-Demand prices: --on-demand-prices)\n",
                screen::plain(&self.unknown.join(", "))
            ));
        }
        text.push_str(&self.sums(work));
        text
    }

    /// Returns the lines with the sums.
    pub(super) fn sums(&self, work: PlannedWork) -> String {
        let mut text = String::new();
        if let Some((low, high)) = self.per_hour {
            let nodes = screen::counted(work.nodes, "node", screen::grouped);
            let verb = if work.nodes == 1 { "runs" } else { "run" };
            text.push_str(&format!("estimate: {} USD per hour while {nodes} {verb}\n", span(low, high)));
        }
        if let (Some((low, high)), Some(time)) = (self.in_all, work.task_time) {
            text.push_str(&format!(
                "estimate: {} USD in all, if a task takes {}\n",
                span(low, high),
                screen::duration(time)
            ));
        }
        for warning in &self.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        text
    }

    /// Returns the estimate for scripts.
    pub(super) fn json(&self) -> Value {
        let range = |range: Option<(f64, f64)>| range.map(|(low, high)| json!({ "low": low, "high": high }));
        json!({
            "usdPerHour": range(self.per_hour), "usdInAll": range(self.in_all), "unknownPrices": self.unknown,
            "warnings": self.warnings,
        })
    }
}

fn span(low: f64, high: f64) -> String {
    let digits = if high < 1.0 { 4 } else { 2 };
    let (low, high) = (format!("{low:.digits$}"), format!("{high:.digits$}"));
    if low == high { low } else { format!("{low} to {high}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_sum_is_the_time_of_nodes_times_their_price() {
        let spot = BTreeMap::from([("a".to_owned(), 0.03), ("b".to_owned(), 0.06)]);
        let work = PlannedWork { tasks: 1000, nodes: 10, slots: 2, task_time: Some(Duration::from_mins(36)) };
        let estimate = Estimate::of(spot, &names(&["a", "b"]), &[], &BTreeMap::new(), Some(0.01), work);
        let near = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 1e-9 && (b - d).abs() < 1e-9;
        assert!(near(estimate.per_hour.unwrap(), (0.3, 0.6)));
        // 300 hours of work, and 20 minutes of boots.
        let hours = 300.0 + 1.0 / 3.0;
        assert!(near(estimate.in_all.unwrap(), (0.03 * hours, 0.06 * hours)));
        assert!(estimate.warnings[0].contains("below every Spot price"), "{:?}", estimate.warnings);
        let text = estimate.text(work);
        assert!(text.contains("estimate: 0.3000 to 0.6000 USD per hour while 10 nodes run\n"), "{text}");
        assert!(text.contains("estimate: 9.01 to 18.02 USD in all, if a task takes 36 min 0 s\n"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let work = PlannedWork { tasks: 1, nodes: 1, slots: 1, task_time: None };
        let estimate =
            Estimate::of(BTreeMap::new(), &[], &names(&["a", "b"]), &BTreeMap::from([("a", 1.0)]), None, work);
        assert_eq!(
            (estimate.unknown.clone(), estimate.per_hour, estimate.in_all),
            (names(&["b"]), Some((1.0, 1.0)), None)
        );
        assert!(estimate.text(work).contains("price: not known for b"), "{}", estimate.text(work));
        let nothing = Estimate::of(
            BTreeMap::new(),
            &names(&["a"]),
            &[],
            &BTreeMap::new(),
            Some(1.0),
            PlannedWork { nodes: 0, ..work },
        );
        assert_eq!((nothing.per_hour, nothing.in_all, nothing.warnings.len()), (None, None, 0));
    }
}
