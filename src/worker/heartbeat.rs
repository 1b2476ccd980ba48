//! The heartbeat: renews the lease and reports progress, from the claim to the end of the attempt.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backend::ledger::{Beat, Fence};
use crate::backend::{Ledger, error_chain};
use crate::domain::backoff;
use crate::domain::lease::hold_limit;
use crate::domain::progress::Progress;

/// The workload's time: that of earlier attempts, and since when this one runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimeCost {
    base_ms: u64,
    running_since: Option<Instant>,
    spent: Duration,
}

impl TimeCost {
    pub(super) const fn new(base_ms: u64) -> Self {
        Self { base_ms, running_since: None, spent: Duration::ZERO }
    }

    pub(super) fn start(&mut self) {
        self.running_since = Some(Instant::now());
    }

    pub(super) fn stop(&mut self) {
        self.spent += self.running_since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    /// Returns the time of all attempts together, in milliseconds.
    pub(super) fn ms(&self) -> u64 {
        let running = self.running_since.map_or(Duration::ZERO, |since| since.elapsed());
        let ms = u64::try_from((self.spent + running).as_millis()).unwrap_or(u64::MAX);
        self.base_ms.saturating_add(ms)
    }
}

/// What a holder knows of its lease without a read of the row.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    /// When the last confirmed renewal, or the claim, was sent.
    renewed: watch::Receiver<Instant>,
    lease: Duration,
}

impl Hold {
    /// Returns whether the lease cannot have expired. (Somebody may hold the task nevertheless: if EC2 says that this
    /// machine is gone, nobody waits for the lease to expire.)
    pub(super) fn is_sure(&self) -> bool {
        self.renewed.borrow().elapsed() < hold_limit(self.lease)
    }
}

/// A held lease that renews itself until it is stopped or lost.
pub(super) struct Heartbeat {
    beats: JoinSet<()>,
    stop: CancellationToken,
    /// Cancelled when the lease is lost.
    pub(super) lost: CancellationToken,
    /// Cancelled when the mission was cancelled.
    pub(super) cancelled: CancellationToken,
    /// The workload's newest progress, sent with the next beat.
    pub(super) progress: watch::Sender<Progress>,
    /// The workload's time.
    pub(super) time_cost: watch::Sender<TimeCost>,
    /// Whether the lease is certainly held.
    pub(super) hold: Hold,
}

/// The periods of a heartbeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Periods {
    pub(super) lease: Duration,
    pub(super) heartbeat: Duration,
}

impl Heartbeat {
    /// Starts renewing. `claimed` is the instant before the claim was sent.
    pub(super) fn start(ledger: Ledger, fence: Fence, periods: Periods, claimed: Instant, time_cost: TimeCost) -> Self {
        let (progress, progress_now) = watch::channel(Progress::default());
        let (time_cost, time_cost_now) = watch::channel(time_cost);
        let (stop, lost, cancelled) = <(CancellationToken, CancellationToken, CancellationToken)>::default();
        let mut beats = JoinSet::new();
        let tokens = (stop.clone(), lost.clone(), cancelled.clone());
        let (renewed, renewed_now) = watch::channel(claimed);
        let hold = Hold { renewed: renewed_now, lease: periods.lease };
        let beater = Beater { ledger, fence, periods, progress: progress_now, time_cost: time_cost_now };
        let beating = beater.run(renewed, tokens.0, tokens.1, tokens.2).in_current_span();
        lighthpc_runtime::spawn(&mut beats, beating);
        Self { beats, stop, lost, cancelled, progress, time_cost, hold }
    }

    /// Stops renewing, and waits for a beat that is under way. Nothing is sent after this.
    pub(super) async fn stop(&mut self) {
        self.stop.cancel();
        while self.beats.join_next().await.is_some() {}
    }
}

struct Beater {
    ledger: Ledger,
    fence: Fence,
    periods: Periods,
    progress: watch::Receiver<Progress>,
    time_cost: watch::Receiver<TimeCost>,
}

impl Beater {
    /// Writes once per period, with the newest progress at that moment.
    async fn run(
        self,
        confirmed: watch::Sender<Instant>,
        stop: CancellationToken,
        lost: CancellationToken,
        cancelled: CancellationToken,
    ) {
        let mut renewed = *confirmed.borrow();
        let mut stop_if_cancelled = true;
        // A slow claim has used a part of its lease.
        let mut pause = self.pause().saturating_sub(renewed.elapsed());
        loop {
            // Both arms may be dropped: neither holds anything.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            pause = self.pause();
            let asked = Instant::now();
            let left = hold_limit(self.periods.lease).saturating_sub(renewed.elapsed());
            // A process that was frozen for longer still tries once: the row says who holds the task.
            let limit = if left.is_zero() { self.try_limit() } else { left.min(self.try_limit()) };
            let (progress, ms) = (*self.progress.borrow(), self.time_cost.borrow().ms());
            let beat = self.ledger.beat(&self.fence, progress, ms, stop_if_cancelled);
            match tokio::time::timeout(limit, beat).await {
                Ok(Ok(Beat::Renewed)) => {
                    renewed = asked;
                    confirmed.send_replace(asked);
                }
                Ok(Ok(Beat::Lost)) => return lost.cancel(),
                Ok(Ok(Beat::Cancelled)) => {
                    // The lease is kept for the remaining steps: the end of the workload, the log, or a finished
                    // result.
                    cancelled.cancel();
                    stop_if_cancelled = false;
                    pause = Duration::ZERO;
                }
                Ok(Err(error)) => {
                    tracing::warn!("the lease could not be renewed: {}", error_chain(&error));
                    pause = pause.min(self.retry_pause());
                }
                Err(_) => {
                    tracing::warn!("no answer to a heartbeat within {limit:?}");
                    pause = pause.min(self.retry_pause());
                }
            }
            if renewed.elapsed() >= hold_limit(self.periods.lease) {
                tracing::error!("the lease could not be renewed for {:?}: the attempt ends", renewed.elapsed());
                return lost.cancel();
            }
        }
    }

    /// Returns how long one try may take: five of them fit before the holder must stop.
    fn try_limit(&self) -> Duration {
        self.periods.lease / 6
    }

    /// Returns the pause after a failed try, up to a half shorter by chance: 3 s of a lease of 90 s.
    fn retry_pause(&self) -> Duration {
        let longest = self.periods.lease / 30;
        backoff::between(longest / 2, longest, rand::random())
    }

    /// Returns the period, up to 10 % shorter or longer by chance: a thousand nodes that boot together do not beat
    /// together.
    fn pause(&self) -> Duration {
        backoff::jittered(self.periods.heartbeat, 0.1, rand::random())
    }
}
