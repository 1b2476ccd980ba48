//! What this node costs: its time, from the boot of its machine, in the tally of the mission that it serves.
//!
//! EC2 bills an instance from its start until it terminates, not the time of workloads. So the node adds the time since
//! its last addition, and its price, once a minute and at its end. A node that vanishes leaves out its last minute, and
//! the seconds of its termination are in no addition. A process that is started again on the same machine continues
//! where the one before it stopped: the time that was added is in a file of the work folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lighthpc_runtime::{boot_id, uptime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::identity::Instance;
use super::settings::Pricing;
use crate::backend::error_chain;
use crate::backend::ledger::{NodeCost, fresh_token};
use crate::domain::machine_info::MicroUsd;
use crate::domain::mission::Mission;

/// The time between two additions: one write of 1 kB a minute.
const PERIOD: Duration = Duration::from_mins(1);
/// How long the last addition may take: the termination of the machine waits for it.
const LAST_TIMEOUT: Duration = Duration::from_secs(5);

/// Adds what the node costs until `stop` is cancelled, and then once more. Does nothing off EC2.
pub(super) async fn count(node: Node, instance: Instance, stop: CancellationToken) {
    let Pricing::Ec2 { billed_before, .. } = &node.settings.pricing else { return };
    // Only the process that is the machine's node counts the machine; others on it would count it again.
    if !instance.is_machines_own() {
        return;
    }
    let mut meter = Meter {
        started: Instant::now(),
        billed_before: *billed_before,
        added: Duration::ZERO,
        open: None,
        file: billed_file(&node.settings.work_dir),
    };
    loop {
        // Both arms may be dropped: neither holds anything.
        let is_last = tokio::select! {
            () = tokio::time::sleep(PERIOD) => false,
            () = stop.cancelled() => true,
        };
        let mission = instance.serves.borrow().clone();
        if let Some(mission) = mission {
            let limit = if is_last { LAST_TIMEOUT } else { PERIOD };
            if tokio::time::timeout(limit, meter.add(&node, &instance, &mission)).await.is_err() {
                tracing::warn!("the cost of this node was not added: no answer in time");
            }
        }
        if is_last {
            return;
        }
    }
}

struct Meter {
    started: Instant,
    /// The machine's time before this process that nobody has added.
    billed_before: Duration,
    /// What this process has added.
    added: Duration,
    /// An addition whose answer is not known: it is repeated as it was, so that it counts once.
    open: Option<OpenAddition>,
    file: PathBuf,
}

/// An addition that was sent.
struct OpenAddition {
    token: String,
    cost: NodeCost,
    sent: Instant,
}

/// DynamoDB knows a token for ten minutes. Source: DynamoDB API reference, `TransactWriteItems`.
const TOKEN_KNOWN: Duration = Duration::from_mins(9);

impl Meter {
    async fn add(&mut self, node: &Node, instance: &Instance, mission: &Mission) {
        let had_open = self.open.is_some();
        self.add_once(node, instance, mission).await;
        if had_open && self.open.is_none() {
            self.add_once(node, instance, mission).await;
        }
    }

    async fn add_once(&mut self, node: &Node, instance: &Instance, mission: &Mission) {
        let total = self.billed_before + self.started.elapsed();
        let time = total.saturating_sub(self.added);
        let price = instance.machine_info().usd_per_hour;
        let cost = NodeCost {
            time_s: time.as_secs(),
            unpriced_s: if price.is_none() { time.as_secs() } else { 0 },
            cost: price.map_or(MicroUsd::default(), |price| price.for_time(Duration::from_secs(time.as_secs()))),
        };
        if cost.time_s == 0 {
            return;
        }
        let open = match self.open.take() {
            Some(open) if open.sent.elapsed() < TOKEN_KNOWN => open,
            old => {
                if let Some(old) = old {
                    // Whether it was counted is not known any more: too little is better than twice.
                    self.added += Duration::from_secs(old.cost.time_s);
                    return;
                }
                OpenAddition { token: fresh_token(), cost, sent: Instant::now() }
            }
        };
        // Kept until it is answered, also if this future is dropped.
        let (token, cost) = (open.token.clone(), open.cost);
        self.open = Some(open);
        match node.backend.ledger.add_cost(mission, instance.id.as_str(), &cost, &token).await {
            Ok(()) => {
                self.open = None;
                self.added += Duration::from_secs(cost.time_s);
                note_billed(&self.file, uptime());
            }
            // The same addition comes again, and the next one has the rest.
            Err(error) => tracing::warn!("the cost of this node was not added: {}", error_chain(&error)),
        }
    }
}

fn billed_file(work_dir: &Path) -> PathBuf {
    work_dir.join(".lighthpc-billed")
}

/// Returns the time of this machine that was not added to a tally yet: since its boot, or since an earlier process of
/// the same boot added it.
#[must_use]
pub fn billed_before(work_dir: &Path) -> Duration {
    let uptime = lighthpc_runtime::uptime();
    let text = std::fs::read_to_string(billed_file(work_dir)).unwrap_or_default();
    let noted = text.split_once(' ').filter(|(boot, _)| *boot == boot_id());
    let noted = noted.and_then(|(_, ms)| ms.trim().parse().ok()).map(Duration::from_millis);
    uptime.saturating_sub(noted.unwrap_or_default())
}

/// Notes the machine's time up to which everything was added. Without the note, a process that is started again adds
/// it once more.
fn note_billed(file: &Path, uptime: Duration) {
    let part = file.with_extension("part");
    let written = std::fs::write(&part, format!("{} {}\n", boot_id(), uptime.as_millis()))
        .and_then(|()| std::fs::rename(&part, file));
    if let Err(error) = written {
        tracing::debug!("noting the time that was added failed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_started_again_adds_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let all = billed_before(dir.path());
        assert!(all > Duration::ZERO);
        note_billed(&billed_file(dir.path()), uptime());
        assert!(billed_before(dir.path()) < Duration::from_mins(1));
        // Of another boot, or damaged: nothing was added in this one.
        for text in ["another-boot 5\n", "", "x", &format!("{} y", boot_id())] {
            std::fs::write(billed_file(dir.path()), text).unwrap();
            assert!(billed_before(dir.path()) >= all, "{text}");
        }
    }
}
