//! Measures the speed of uploads, to predict what can be saved after a Spot notice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The minimum size of a measured body. Smaller ones measure the latency.
const BODY_BYTES_MIN: u64 = 256 * 1024;
/// The number of bytes at which the measurement is halved, so that old values lose weight.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The meter of all uploads of a process.
#[derive(Debug, Default)]
pub(super) struct Meter {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The running uploads, and the time since when there is at least one.
    under_way: u32,
    since: Option<Instant>,
    busy: Duration,
    bytes: u64,
    total: u64,
}

impl State {
    fn begin(&mut self, bytes: u64, now: Instant) {
        if bytes >= BODY_BYTES_MIN {
            self.under_way += 1;
            self.since.get_or_insert(now);
        }
    }

    fn end(&mut self, bytes: u64, is_done: bool, now: Instant) {
        if is_done {
            self.total += bytes;
        }
        if bytes < BODY_BYTES_MIN {
            return;
        }
        if is_done {
            self.bytes += bytes;
        }
        self.under_way -= 1;
        if self.under_way == 0 {
            self.busy += self.since.take().map_or(Duration::ZERO, |since| now - since);
        }
        if self.bytes > BYTES_MAX {
            self.bytes /= 2;
            self.busy /= 2;
        }
    }

    fn speed(&self, now: Instant) -> Option<u64> {
        let busy = self.busy + self.since.map_or(Duration::ZERO, |since| now - since);
        if self.bytes < BODY_BYTES_MIN || busy.is_zero() {
            return None;
        }
        let speed = u128::from(self.bytes) * 1000 / busy.as_millis().max(1);
        Some(u64::try_from(speed).unwrap_or(u64::MAX).max(1))
    }
}

/// A running upload. If it is dropped before it is done, only its time counts.
pub(super) struct Transfer {
    meter: Arc<Meter>,
    bytes: u64,
    is_done: bool,
}

impl Meter {
    /// Records the start of an upload of `bytes`.
    pub(super) fn begin(self: &Arc<Self>, bytes: u64) -> Transfer {
        self.locked().begin(bytes, Instant::now());
        Transfer { meter: self.clone(), bytes, is_done: false }
    }

    /// Returns the speed of all uploads together, in bytes per second while there were some; `None` if too little was
    /// measured.
    pub(super) fn speed(&self) -> Option<u64> {
        self.locked().speed(Instant::now())
    }

    /// Returns the bytes of all finished uploads.
    pub(super) fn total(&self) -> u64 {
        self.locked().total
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// Records the end of the upload.
    pub(super) fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.meter.locked().end(self.bytes, self.is_done, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn parallel_bodies_are_one_line() {
        let (mut state, start) = (State::default(), Instant::now());
        assert_eq!(state.speed(start), None);
        state.begin(10 * MIB, start);
        state.begin(10 * MIB, start);
        state.end(10 * MIB, true, start + 2 * SECOND);
        state.end(10 * MIB, true, start + 2 * SECOND);
        assert_eq!(state.speed(start + 2 * SECOND), Some(10 * MIB));
        // Idle time does not count, nor does what is small.
        state.begin(100, start + 60 * SECOND);
        state.end(100, true, start + 61 * SECOND);
        assert_eq!((state.speed(start + 61 * SECOND), state.total), (Some(10 * MIB), 20 * MIB + 100));
        // What never arrived took its time.
        state.begin(10 * MIB, start + 70 * SECOND);
        state.end(10 * MIB, false, start + 72 * SECOND);
        assert_eq!(state.speed(start + 72 * SECOND), Some(5 * MIB));
    }

    #[test]
    fn an_old_speed_fades() {
        let (mut state, mut now) = (State::default(), Instant::now());
        for (seconds, count) in [(1, 30), (10, 60)] {
            for _ in 0..count {
                state.begin(10 * MIB, now);
                now += seconds * SECOND;
                state.end(10 * MIB, true, now);
            }
        }
        let speed = state.speed(now).unwrap();
        assert!((MIB..MIB * 3 / 2).contains(&speed), "{speed}");
    }
}
