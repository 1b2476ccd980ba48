//! EC2's offers: the zones of subnets, the instance types of the region, and the current Spot prices.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Filter, InstanceType, LocationType};

use super::error::CloudError;
use super::fleet::Fleet;
use crate::clock;
use crate::domain::machine_info::MicroUsd;

/// The maximum number of values in a filter. Source: EC2 API reference, "Filtering", 200 values per request.
const FILTER_VALUES_MAX: usize = 200;

impl Fleet {
    /// Reads the availability zones of subnets. Unknown subnets are not in the result.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn zones(&self, subnets: &[String]) -> Result<BTreeMap<String, String>, CloudError> {
        let mut zones = BTreeMap::new();
        for some in subnets.chunks(FILTER_VALUES_MAX) {
            // A filter, because one unknown id makes EC2 refuse the whole call.
            let filter = Filter::builder().name("subnet-id").set_values(Some(some.to_vec())).build();
            let mut pages = self.client().describe_subnets().filters(filter).into_paginator().send();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| CloudError::sdk("DescribeSubnets", subnets.join(", "), e))?;
                let zone = |subnet: &aws_sdk_ec2::types::Subnet| {
                    Some((subnet.subnet_id()?.to_owned(), subnet.availability_zone()?.to_owned()))
                };
                zones.extend(page.subnets().iter().filter_map(zone));
            }
        }
        Ok(zones)
    }

    /// Reads which of these instance types the region offers.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn offered(&self, instance_types: &[String]) -> Result<BTreeSet<String>, CloudError> {
        let mut offered = BTreeSet::new();
        for some in instance_types.chunks(FILTER_VALUES_MAX) {
            let filter = Filter::builder().name("instance-type").set_values(Some(some.to_vec())).build();
            let describe = self.client().describe_instance_type_offerings().location_type(LocationType::Region);
            let mut pages = describe.filters(filter).into_paginator().send();
            while let Some(page) = pages.next().await {
                let page =
                    page.map_err(|e| CloudError::sdk("DescribeInstanceTypeOfferings", instance_types.join(", "), e))?;
                let names = page.instance_type_offerings().iter().filter_map(|offering| offering.instance_type());
                offered.extend(names.map(|name| name.as_str().to_owned()));
            }
        }
        Ok(offered)
    }

    /// Reads the current Spot price of an instance type in a zone, per hour, for Linux; `None` if EC2 has none.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn spot_price(&self, instance_type: &str, zone: &str) -> Result<Option<MicroUsd>, CloudError> {
        let answer = self
            .client()
            .describe_spot_price_history()
            .instance_types(InstanceType::from(instance_type))
            .availability_zone(zone)
            .product_descriptions("Linux/UNIX")
            // From now on: only the price that is in effect.
            .start_time(aws_smithy_types::DateTime::from(clock::now()))
            .send()
            .await;
        let resource = || format!("{instance_type} in {zone}");
        let answer = answer.map_err(|e| CloudError::sdk("DescribeSpotPriceHistory", resource(), e))?;
        Ok(answer.spot_price_history().iter().find_map(|entry| MicroUsd::parse(entry.spot_price()?)))
    }

    /// Reads the current Spot price by instance type: USD per instance-hour in the cheapest zone.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn spot_prices(&self, instance_types: &[String]) -> Result<BTreeMap<String, f64>, CloudError> {
        let types = instance_types.iter().map(|name| InstanceType::from(name.as_str())).collect();
        let now = aws_smithy_types::DateTime::from(clock::now());
        let mut pages = self
            .client()
            .describe_spot_price_history()
            .set_instance_types(Some(types))
            .product_descriptions("Linux/UNIX")
            .start_time(now)
            .into_paginator()
            .send();
        let mut prices: BTreeMap<String, f64> = BTreeMap::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| CloudError::sdk("DescribeSpotPriceHistory", instance_types.join(", "), e))?;
            for entry in page.spot_price_history() {
                let (Some(name), Some(price)) = (entry.instance_type(), entry.spot_price()) else { continue };
                let Ok(price) = price.parse::<f64>() else { continue };
                let lowest = prices.entry(name.as_str().to_owned()).or_insert(price);
                *lowest = lowest.min(price);
            }
        }
        Ok(prices)
    }
}
