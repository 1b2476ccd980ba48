//! What tests alone do to the cloud: faults in front of it, and what happens to its machines.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::LocalCloud;
use super::faults::Faults;
use super::wire::Wire;

impl LocalCloud {
    /// Makes a wire with faults in front, which also keeps their journal.
    #[must_use]
    pub fn faulty_wire(&self, instance: Option<&str>, faults: Faults) -> SharedHttpClient {
        SharedHttpClient::new(Wire::with_faults(self.clone(), instance, faults))
    }

    /// Gives the parameters of every call of EC2's `action` that arrived, in their order.
    #[must_use]
    pub fn requests(&self, action: &str) -> Vec<BTreeMap<String, String>> {
        self.inner.fleet.requests(action)
    }

    /// Makes an instance look as if it had been launched so much earlier.
    pub fn age_instance(&self, id: &str, by: Duration) {
        self.inner.fleet.age(id, by);
    }

    /// Makes a machine stop, as `StopInstances` would: it can be started again, and its volumes bill.
    pub fn halt_instance(&self, id: &str) {
        self.inner.fleet.change(id, |machine| (machine.is_running, machine.is_stopped) = (false, true));
    }

    /// Makes a machine vanish, as a crash or a reclaimed Spot instance would: no call is recorded.
    pub fn stop_instance(&self, id: &str) {
        self.inner.fleet.change(id, |machine| machine.is_running = false);
    }

    /// Sets whether IMDS shows tags; off, a client has to ask `DescribeTags`.
    pub fn set_instance_tags_in_imds(&self, on: bool) {
        self.inner.fleet.set_tags_in_imds(on);
    }

    /// Puts a spot notice (`terminate`, `stop`, or `hibernate`, and its time) where the instance sees it.
    pub fn put_spot_notice(&self, id: &str, action: &str, time_rfc3339: &str) {
        let notice = Some((action.to_owned(), time_rfc3339.to_owned()));
        self.inner.fleet.change(id, |machine| machine.notice = notice);
    }

    /// Puts a rebalance recommendation where the instance sees it.
    pub fn rebalance(&self, id: &str, time_rfc3339: &str) {
        self.inner.fleet.change(id, |machine| machine.rebalance = Some(time_rfc3339.to_owned()));
    }
}
