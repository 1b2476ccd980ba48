//! Reports the state of a node to systemd (ready, alive, current step, stopping). Without systemd it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::worker::{Report, Step};

/// Watchdog notifications per watchdog period: two can be missed.
const BEATS: u32 = 3;
/// The minimum time between two status notifications. The progress can change twice a second at the most.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// Notifies systemd that the node is ready, and from now on that it is alive (the watchdog of `WATCHDOG_USEC`) and
/// which step runs. The notifications use the node's own runtime, so a stuck runtime stops them. Shut down the set at
/// the end.
pub(super) fn report_to_systemd(report: watch::Receiver<Report>) -> JoinSet<()> {
    notify(&[NotifyState::Ready]);
    let mut announcers = JoinSet::new();
    if let Some(period) = sd_notify::watchdog_enabled() {
        announcers.spawn(async move {
            loop {
                notify(&[NotifyState::Watchdog]);
                tokio::time::sleep(period / BEATS).await;
            }
        });
    }
    announcers.spawn(follow(report));
    announcers
}

async fn follow(mut report: watch::Receiver<Report>) {
    loop {
        let now = *report.borrow_and_update();
        let status = match now.step {
            Step::Execute => format!("{}: {}", now.step.as_str(), now.progress),
            step => step.as_str().to_owned(),
        };
        notify(&[NotifyState::Status(&status)]);
        tokio::time::sleep(STATUS_PERIOD).await;
        if report.changed().await.is_err() {
            return;
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // A failure is not handled: systemd acts on missing notifications.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not notified: {error}");
    }
}
