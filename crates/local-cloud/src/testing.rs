//! What tests alone do to the cloud: faults in front of it, and what happens to its machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::LocalCloud;
use super::connector::Connector;
use super::faults::Faults;
use super::lock::locked;
use super::rights::DeniedUpdates;

impl LocalCloud {
    /// Makes a wire with faults in front, which also keeps their journal.
    #[must_use]
    pub fn faulty_http_client(&self, instance: Option<&str>, faults: Faults) -> SharedHttpClient {
        SharedHttpClient::new(Connector::with_faults(Arc::clone(&self.services), instance, faults))
    }

    /// Gives the parameters of every call of EC2's `action` that arrived, in their order.
    #[must_use]
    pub fn requests(&self, action: &str) -> Vec<BTreeMap<String, String>> {
        self.services.fleet.requests(action)
    }

    /// Makes an instance look as if it had been launched so much earlier.
    pub fn age_instance(&self, id: &str, by: Duration) {
        self.services.fleet.age(id, by);
    }

    /// Makes a machine stop, as `StopInstances` would: it can be started again, and its volumes bill.
    pub fn halt_instance(&self, id: &str) {
        self.services.fleet.change(id, |machine| (machine.is_running, machine.is_stopped) = (false, true));
    }

    /// Makes EC2 end a machine for a reason of its own: code and message.
    pub fn fail_instance(&self, id: &str, code: &str, message: &str) {
        self.services.fleet.change(id, |machine| {
            machine.is_running = false;
            machine.reason = Some((code.to_owned(), message.to_owned()));
        });
    }

    /// Sets whether EC2 shows a machine: a new one may be unknown for a while.
    pub fn show_instance(&self, id: &str, is_shown: bool) {
        self.services.fleet.change(id, |machine| machine.is_hidden = !is_shown);
    }

    /// Says in which availability zone a subnet is. One of which nothing is said is in a zone of its own.
    pub fn put_subnet(&self, id: &str, zone: &str) {
        self.services.fleet.put_subnet(id, zone);
    }

    /// Says which instance types the region offers; before that, all.
    pub fn offer_types(&self, types: &[&str]) {
        self.services.fleet.offer(types);
    }

    /// Denies instances, as a node's role does, updates of a table that name one of these attributes, or an item whose key begins
    /// with `~`.
    pub fn deny_instances(&self, table: &str, names: &'static [&'static str]) {
        *locked(&self.services.denied) = Some(DeniedUpdates::new(table, names));
    }

    /// Makes a machine vanish, as a crash or a reclaimed Spot instance would: no call is recorded.
    pub fn stop_instance(&self, id: &str) {
        self.services.fleet.change(id, |machine| machine.is_running = false);
    }

    /// Sets whether IMDS shows tags; off, a client has to ask `DescribeTags`.
    pub fn set_instance_tags_in_imds(&self, on: bool) {
        self.services.fleet.set_tags_in_imds(on);
    }

    /// Puts a spot notice (`terminate`, `stop`, or `hibernate`, and its time) where the instance sees it.
    pub fn put_spot_notice(&self, id: &str, action: &str, time_rfc3339: &str) {
        let notice = Some((action.to_owned(), time_rfc3339.to_owned()));
        self.services.fleet.change(id, |machine| machine.notice = notice);
    }

    /// Puts a rebalance recommendation where the instance sees it.
    pub fn rebalance(&self, id: &str, time_rfc3339: &str) {
        self.services.fleet.change(id, |machine| machine.rebalance = Some(time_rfc3339.to_owned()));
    }
}
