//! EC2's notices: the Spot instance will be taken back, or should be given up.
//!
//! ```text
//!   spot/instance-action ── 404 ──► nothing
//!                        ── a notice ──► Notice { deadline }: end the workload, save, hand the task back
//!   events/recommendations/rebalance ── 200 ──► save a checkpoint, go on
//! ```

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backend::{Ledger, Machine, Store};
use crate::clock;
use crate::domain::backoff;

/// EC2 recommends a look every 5 s. Source: EC2 user guide, "Spot Instance interruption notices".
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// The longest pause while IMDS is ill; a notice is given two minutes ahead, so six looks still fit.
const LOOK_PERIOD_MAX: Duration = Duration::from_secs(20);
/// How long a notice is believed to run whose time cannot be read, or has passed already. Short: late is worse than early.
const UNREAD_BUDGET: Duration = Duration::from_secs(20);
/// How long the service is asked for its time: an answer takes some ms, and the notice runs.
const TIME_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest a notice runs.
const BUDGET_MAX: Duration = Duration::from_mins(2);

/// Time kept back from a workload under a Spot notice, for the log and the row.
pub(super) const FINAL_WRITES_TIME: Duration = Duration::from_secs(5);
/// Upload speed that is assumed before a save has shown it, in bytes per second: a tenth of a small instance's.
const SPEED_ASSUMED: u64 = 10_000_000;

/// What IMDS has said, for as long as the node lives. A clone hears the same.
#[derive(Clone)]
pub(super) struct SpotWatcher {
    /// When the machine is taken away, once that is known.
    pub(super) notice: watch::Receiver<Option<Instant>>,
    /// Cancelled when EC2 recommends to leave.
    pub(super) rebalance: CancellationToken,
}

impl SpotWatcher {
    /// Starts to look. Off EC2 there is nothing to see, and nothing is asked. The looks end when the set is shut down, which is
    /// safe at any point: they only read.
    ///
    /// The time of a notice is EC2's, so it is compared with the time that `ledger`'s service says it is: this machine's clock may
    /// be minutes off.
    pub(super) fn start(machine: Machine, ledger: Ledger, is_on_ec2: bool) -> (Self, JoinSet<()>) {
        let (sender, notice) = watch::channel(None);
        let rebalance = CancellationToken::new();
        let mut looks = JoinSet::new();
        if is_on_ec2 {
            let token = rebalance.clone();
            looks.spawn(async move { look(&machine, &ledger, &sender, &token).await }.in_current_span());
        }
        (Self { notice, rebalance }, looks)
    }

    /// Waits for a notice; for ever if none comes.
    pub(super) async fn wait_for_notice(&self) -> Instant {
        let mut notice = self.notice.clone();
        match notice.wait_for(Option::is_some).await.map(|deadline| *deadline) {
            Ok(Some(deadline)) => deadline,
            _ => std::future::pending().await,
        }
    }

    /// Returns whether no new claim should be made here: EC2 takes the instance back, or recommends to leave it.
    pub(super) fn should_stop_claiming(&self) -> bool {
        self.deadline().is_some() || self.rebalance.is_cancelled()
    }

    /// Returns the deadline, if there is one.
    pub(super) fn deadline(&self) -> Option<Instant> {
        *self.notice.borrow()
    }
}

async fn look(
    machine: &Machine,
    ledger: &Ledger,
    notice: &watch::Sender<Option<Instant>>,
    rebalance: &CancellationToken,
) {
    let mut pause = LOOK_PERIOD;
    loop {
        // Jittered by a tenth: many processes of a machine may ask IMDS, which limits how often.
        tokio::time::sleep(backoff::jittered(pause, 0.1, rand::random())).await;
        match machine.spot_notice().await {
            Ok(Some(text)) => {
                let seen_at = Instant::now();
                let budget = budget_of(&text, now(ledger).await);
                tracing::warn!(budget_s = budget.as_secs(), "EC2 takes this instance back in {} s", budget.as_secs());
                notice.send_replace(Some(seen_at + budget));
                return;
            }
            Ok(None) => pause = LOOK_PERIOD,
            Err(error) => {
                tracing::debug!("no word from IMDS: {}", error.source);
                pause = (pause * 2).min(LOOK_PERIOD_MAX);
                continue;
            }
        }
        if !rebalance.is_cancelled() && machine.rebalance_recommended().await.unwrap_or(false) {
            tracing::warn!("EC2 recommends to leave this instance: a checkpoint is saved");
            rebalance.cancel();
        }
    }
}

/// Returns the time as a service of AWS says it is; this machine's own if it does not answer.
async fn now(ledger: &Ledger) -> SystemTime {
    match tokio::time::timeout(TIME_TIMEOUT, ledger.time()).await {
        Ok(Ok(Some(time))) => time,
        _ => clock::now(),
    }
}

/// Reads how long the machine is still ours: of `{"action": …, "time": …}`, or of a bare time, as older software has it. A time
/// that has passed is not believed: the machine still runs, so a clock is wrong.
fn budget_of(text: &str, now: SystemTime) -> Duration {
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let time = json.as_ref().and_then(|json| json.get("time")?.as_str()).unwrap_or(text.trim().trim_matches('"'));
    let left = clock::read(time).and_then(|time| time.duration_since(now).ok());
    left.filter(|left| !left.is_zero()).unwrap_or(UNREAD_BUDGET).min(BUDGET_MAX)
}

/// Returns at how many bytes per second this node uploads: as measured, or as assumed before anything was.
pub(super) fn speed(store: &Store) -> u64 {
    store.upload_speed().unwrap_or(SPEED_ASSUMED)
}

/// Returns how long so many bytes take; ten years are as good as more, which no sum of times must overflow.
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
