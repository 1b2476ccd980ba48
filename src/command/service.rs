//! Reports the state of a node to systemd (ready, alive, current step, stopping). Without systemd it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::worker::{Report, Step};

/// Beats in one watchdog period: two may be missed.
const BEATS: u32 = 3;
/// The time between two words about progress, which may change twice a second.
const STATUS_PERIOD: Duration = Duration::from_secs(1);

/// Says that the node is ready, and from now on that it lives (the watchdog of `WATCHDOG_USEC`) and at which step it is. Both
/// are said by the runtime that the node itself runs on, so that one that is stuck is silent. Shut the set down at the end.
pub(super) fn report_to_systemd(report: watch::Receiver<Report>) -> JoinSet<()> {
    say(&[NotifyState::Ready]);
    let mut announcers = JoinSet::new();
    if let Some(period) = sd_notify::watchdog_enabled() {
        announcers.spawn(async move {
            loop {
                say(&[NotifyState::Watchdog]);
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
        say(&[NotifyState::Status(&status)]);
        tokio::time::sleep(STATUS_PERIOD).await;
        if report.changed().await.is_err() {
            return;
        }
    }
}

fn say(states: &[NotifyState<'_>]) {
    // Where nobody listens there is nobody to tell; systemd that does not hear us acts on that itself.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not notified: {error}");
    }
}
