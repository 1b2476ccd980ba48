//! The Spot watcher: polls IMDS for the interruption notice and the rebalance recommendation.
//!
//! ```text
//!   spot/instance-action ── 404 ──► nothing
//!                        ── a notice ──► a deadline: stop the workload, save, release the task
//!   events/recommendations/rebalance ── 200 ──► save a checkpoint, claim nothing new
//! ```

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backend::{Ledger, Machine, Store};
use crate::clock;
use crate::domain::backoff;

/// EC2 recommends a poll every 5 s. Source: EC2 user guide, "Spot Instance interruption notices".
const POLL_PERIOD: Duration = Duration::from_secs(5);
/// The longest pause while IMDS fails; a notice comes two minutes ahead, so six polls still fit.
const POLL_PERIOD_MAX: Duration = Duration::from_secs(20);
/// The time that is assumed for a notice whose own time cannot be read, or has passed. Short: late is worse than early.
const UNREAD_BUDGET: Duration = Duration::from_secs(20);
/// How long to wait for the service's time: an answer takes some ms, and the notice's time runs.
const TIME_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time of a notice.
const BUDGET_MAX: Duration = Duration::from_mins(2);

/// Time that is reserved under a Spot notice for the final writes: the log and the row.
pub(super) const FINAL_WRITES_TIME: Duration = Duration::from_secs(5);
/// The upload speed that is assumed before one was measured, in bytes per second: a tenth of a small instance's.
const SPEED_ASSUMED: u64 = 10_000_000;

/// Spot notices for this machine. A clone has the same.
#[derive(Clone)]
pub(super) struct SpotWatcher {
    /// When EC2 takes the machine back, once that is known.
    pub(super) notice: watch::Receiver<Option<Instant>>,
    /// When the notice was seen, RFC 3339 UTC.
    pub(super) seen_at: Arc<OnceLock<String>>,
    /// Cancelled when EC2 recommends a rebalance.
    pub(super) rebalance: CancellationToken,
}

impl SpotWatcher {
    /// Starts polling; off EC2, nothing is polled. The polls end when the set is shut down, which is safe at any point:
    /// they only read.
    ///
    /// The time of a notice is EC2's, so it is compared with the time of `ledger`'s service: this machine's clock may
    /// be minutes off.
    pub(super) fn start(machine: Machine, ledger: Ledger, is_on_ec2: bool) -> (Self, JoinSet<()>) {
        let (sender, notice) = watch::channel(None);
        let (rebalance, seen_at) = (CancellationToken::new(), Arc::new(OnceLock::new()));
        let mut polls = JoinSet::new();
        if is_on_ec2 {
            let (token, seen) = (rebalance.clone(), seen_at.clone());
            let polled = async move { poll(&machine, &ledger, (&sender, &seen), &token).await };
            lighthpc_runtime::spawn(&mut polls, polled.in_current_span());
        }
        (Self { notice, seen_at, rebalance }, polls)
    }

    /// Waits for a notice; forever if none comes.
    pub(super) async fn wait_for_notice(&self) -> Instant {
        let mut notice = self.notice.clone();
        match notice.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            _ => std::future::pending().await,
        }
    }

    /// Returns whether no new claim should be made here: EC2 takes the instance back, or recommends a rebalance.
    pub(super) fn should_stop_claiming(&self) -> bool {
        self.deadline().is_some() || self.rebalance.is_cancelled()
    }

    /// Returns the deadline, if there is one.
    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.notice.borrow()
    }
}

async fn poll(
    machine: &Machine,
    ledger: &Ledger,
    (notice, notice_seen_at): (&watch::Sender<Option<Instant>>, &OnceLock<String>),
    rebalance: &CancellationToken,
) {
    let mut pause = POLL_PERIOD;
    loop {
        // Jittered by a tenth: many processes of a machine may ask IMDS, which limits how often.
        tokio::time::sleep(backoff::jittered(pause, 0.1, rand::random())).await;
        match machine.spot_notice().await {
            Ok(Some(text)) => {
                let seen_at = Instant::now();
                notice_seen_at.get_or_init(clock::now_rfc3339);
                let budget = budget_of(&text, now(ledger).await);
                tracing::warn!(budget_s = budget.as_secs(), "EC2 takes this instance back in {} s", budget.as_secs());
                notice.send_replace(Some(seen_at + budget));
                return;
            }
            Ok(None) => pause = POLL_PERIOD,
            Err(error) => {
                tracing::debug!("IMDS does not answer: {}", error.source);
                pause = (pause * 2).min(POLL_PERIOD_MAX);
                continue;
            }
        }
        if !rebalance.is_cancelled() && machine.rebalance_recommended().await.unwrap_or(false) {
            tracing::warn!("EC2 recommends a rebalance of this instance: a checkpoint is saved");
            rebalance.cancel();
        }
    }
}

/// Returns the time of an AWS service; this machine's own if the service does not answer.
async fn now(ledger: &Ledger) -> SystemTime {
    match tokio::time::timeout(TIME_TIMEOUT, ledger.time()).await {
        Ok(Ok(Some(time))) => time,
        _ => clock::now(),
    }
}

/// Reads how long the machine remains, from `{"action": …, "time": …}`, or from a bare time, as older software has it.
/// A time that has passed is not used: the machine still runs, so a clock is wrong.
fn budget_of(text: &str, now: SystemTime) -> Duration {
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let time = json.as_ref().and_then(|json| json.get("time")?.as_str()).unwrap_or(text.trim().trim_matches('"'));
    let left = clock::read(time).and_then(|time| time.duration_since(now).ok());
    left.filter(|left| !left.is_zero()).unwrap_or(UNREAD_BUDGET).min(BUDGET_MAX)
}

/// Returns the node's upload speed in bytes per second: as measured, or as assumed before that.
pub(super) fn speed(store: &Store) -> u64 {
    store.upload_speed().unwrap_or(SPEED_ASSUMED)
}

/// Returns how long an upload takes, at most ten years: sums of times must not overflow.
pub(super) fn upload_time(bytes: u64, speed: u64) -> Duration {
    Duration::from_secs((bytes / speed.max(1)).min(315_360_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-01-01T00:02:00Z";

    fn before(seconds: u64) -> SystemTime {
        clock::read(TIME).unwrap() - Duration::from_secs(seconds)
    }

    #[test]
    fn both_forms_of_a_notice_are_read() {
        for text in [
            r#"{"action": "terminate", "time": "2026-01-01T00:02:00Z"}"#,
            r#"{"action":"stop","time":"2026-01-01T00:02:00Z"}"#,
            "2026-01-01T00:02:00Z\n",
        ] {
            assert_eq!(budget_of(text, before(90)), Duration::from_secs(90), "{text}");
        }
        assert_eq!(budget_of("{}", before(90)), UNREAD_BUDGET);
        assert_eq!(budget_of(TIME, before(9_999)), BUDGET_MAX);
    }

    #[test]
    fn a_deadline_in_the_past_is_not_believed() {
        for seconds in [0, 1, 120, 86_400] {
            let now = clock::read(TIME).unwrap() + Duration::from_secs(seconds);
            assert_eq!(budget_of(TIME, now), UNREAD_BUDGET, "{seconds} s ago");
        }
    }
}
