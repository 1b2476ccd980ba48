//! What this machine is and costs, for the history of its attempts.
//!
//! It is looked up in the background, once per node, and never delays a task. What is not known when an attempt ends is
//! not in its history.

use std::time::Duration;

use super::Node;
use super::identity::Instance;
use super::settings::Pricing;
use crate::backend::error_chain;
use crate::domain::machine_info::PurchaseOption;

/// The time for the lookup: IMDS answers in some ms, EC2 in less than a second. The SDK's retries fit twice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Looks up this machine's type, zone, purchase option, and price. May be dropped at any point: it only reads.
pub(super) async fn look_up(node: Node, instance: Instance) {
    let Pricing::Ec2 { on_demand, .. } = &node.settings.pricing else { return };
    if !instance.is_on_ec2() {
        return;
    }
    let lookup = async {
        let known = match node.backend.machine.describe().await {
            Ok(known) => known,
            Err(error) => return tracing::warn!("the type of this instance is unknown: {}", error_chain(&error)),
        };
        instance.info.send_replace(known.clone());
        let (Some(name), Some(zone)) = (&known.instance_type, &known.zone) else { return };
        let usd_per_hour = match known.purchase {
            Some(PurchaseOption::Spot) => node.backend.fleet.spot_price(name, zone).await,
            _ => Ok(on_demand.get(name).copied()),
        };
        match usd_per_hour {
            Ok(Some(price)) => {
                tracing::info!(usd_per_hour = price.usd(), "this instance costs {price} USD per hour");
                instance.info.send_modify(|info| info.usd_per_hour = Some(price));
            }
            Ok(None) => tracing::info!(
                "the price of this instance is unknown (hint: set LIGHTHPC_ON_DEMAND_PRICES={name}=USD_PER_HOUR)"
            ),
            Err(error) => tracing::warn!("the price of this instance is unknown: {}", error_chain(&error)),
        }
    };
    if tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await.is_err() {
        tracing::warn!("the price of this instance is unknown: no answer within {LOOKUP_TIMEOUT:?}");
    }
}
