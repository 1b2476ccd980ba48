//! Operations for tests: faults in front of the services, and events of instances.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::SharedHttpClient;

use super::LocalCloud;
use super::connector::Connector;
use super::faults::Faults;
use super::fleet::LaunchHook;
use super::lock::locked;
use super::network::Network;
use super::rights::DeniedUpdates;

impl LocalCloud {
    /// Returns an HTTP client with faults, which also keeps their journal.
    #[must_use]
    pub fn faulty_http_client(&self, instance: Option<&str>, faults: Faults) -> SharedHttpClient {
        SharedHttpClient::new(Connector::with_faults(Arc::clone(&self.services), instance, faults))
    }

    /// Returns the HTTP client of an instance, whose requests a network carries.
    #[must_use]
    pub fn http_client_via(&self, instance: Option<&str>, network: Arc<dyn Network>) -> SharedHttpClient {
        SharedHttpClient::new(Connector::via(Arc::clone(&self.services), instance, network))
    }

    /// Sets what decides about launches.
    pub fn set_launch_hook(&self, hook: LaunchHook) {
        self.services.fleet.set_launch_hook(hook);
    }

    /// Returns a counter of launched instances.
    #[must_use]
    pub fn launches(&self) -> tokio::sync::watch::Receiver<u64> {
        self.services.fleet.launches()
    }

    /// Returns whether an instance runs.
    #[must_use]
    pub fn is_running(&self, id: &str) -> bool {
        self.services.fleet.is_running(id)
    }

    /// Returns the parameters of every call of EC2's `action`, in the order of arrival.
    #[must_use]
    pub fn requests(&self, action: &str) -> Vec<BTreeMap<String, String>> {
        self.services.fleet.requests(action)
    }

    /// Moves an instance's launch time back.
    pub fn age_instance(&self, id: &str, by: Duration) {
        self.services.fleet.age(id, by);
    }

    /// Stops an instance, as `StopInstances` does: it could be started again, and its volumes cost money.
    pub fn stop_instance(&self, id: &str) {
        self.services.fleet.change(id, |machine| (machine.is_running, machine.is_stopped) = (false, true));
    }

    /// Terminates an instance for a reason of EC2's: code and message.
    pub fn fail_instance(&self, id: &str, code: &str, message: &str) {
        self.services.fleet.change(id, |machine| {
            machine.is_running = false;
            machine.reason = Some((code.to_owned(), message.to_owned()));
        });
    }

    /// Sets whether EC2 shows an instance: a new one can be unknown for a while.
    pub fn show_instance(&self, id: &str, is_shown: bool) {
        self.services.fleet.change(id, |machine| machine.is_hidden = !is_shown);
    }

    /// Sets the availability zone of a subnet. By default, each subnet is in a zone of its own.
    pub fn put_subnet(&self, id: &str, zone: &str) {
        self.services.fleet.put_subnet(id, zone);
    }

    /// Sets the instance types that the region offers; by default, all.
    pub fn offer_types(&self, types: &[&str]) {
        self.services.fleet.offer(types);
    }

    /// Denies instances, as a node's role does, the updates of a table that name one of these attributes, or an item
    /// whose key begins with `~`.
    pub fn deny_instances(&self, table: &str, names: &'static [&'static str]) {
        *locked(&self.services.denied) = Some(DeniedUpdates::new(table, names));
    }

    /// Terminates an instance without a call, as when a Spot instance is reclaimed.
    pub fn reclaim_instance(&self, id: &str) {
        self.services.fleet.change(id, |machine| machine.is_running = false);
    }

    /// Sets whether IMDS shows tags. Without them, a client must call `DescribeTags`.
    pub fn set_instance_tags_in_imds(&self, on: bool) {
        self.services.fleet.set_tags_in_imds(on);
    }

    /// Shows the instance a Spot notice: `terminate`, `stop`, or `hibernate`, and its time.
    pub fn put_spot_notice(&self, id: &str, action: &str, time_rfc3339: &str) {
        let notice = Some((action.to_owned(), time_rfc3339.to_owned()));
        self.services.fleet.change(id, |machine| machine.notice = notice);
    }

    /// Shows the instance a rebalance recommendation.
    pub fn rebalance(&self, id: &str, time_rfc3339: &str) {
        self.services.fleet.change(id, |machine| machine.rebalance = Some(time_rfc3339.to_owned()));
    }
}
