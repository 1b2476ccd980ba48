//! SIGINT, SIGTERM, and SIGHUP (a closed terminal): the first drains, the second hurries.
//!
//! ```text
//!   catch()  the first thing in `main`: signals are noted, and end nothing
//!      │
//!      ├─ restore()  no node: a signal ends the process, as by default; one that was noted before does so now
//!      │
//!      └─ listen()   a signal drains, then hurries; one that was noted before drains at once
//! ```
//!
//! A signal that was ignored when the process started stays ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT
//! for what it starts in the background. What comes before `catch`, while the program is being loaded, cannot be noted:
//! it ends the process, and on the image `ExecStopPost=` of the unit ends the machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::worker::{DRAIN_LIMIT, Stopping};

/// The signals that ask a process to end.
const ENDING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

static CAUGHT: OnceLock<Caught> = OnceLock::new();

/// The signals that are caught.
#[derive(Debug, Default)]
struct Caught {
    /// Each with whether it has come.
    signals: Vec<(i32, Arc<AtomicBool>)>,
    /// Whether a signal ends the process, as by default.
    is_default: Arc<AtomicBool>,
}

/// Catches the signals from now on, except those that are ignored. They are noted, and end nothing.
pub(super) fn catch() {
    CAUGHT.get_or_init(|| {
        // Asked first: a signal that is caught is not ignored any more.
        let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_in(&status));
        let mut caught = Caught::default();
        for signal in ENDING.into_iter().filter(|signal| ignored & bit(*signal) == 0) {
            let has_come = Arc::new(AtomicBool::new(false));
            // Neither fails for these signals; one that cannot be caught does what it did before.
            let noted = flag::register_conditional_default(signal, caught.is_default.clone())
                .and_then(|_| flag::register(signal, has_come.clone()));
            if noted.is_ok() {
                caught.signals.push((signal, has_come));
            }
        }
        caught
    });
}

/// Lets signals end the process, as by default. One that was noted before does so now.
pub(super) fn restore() {
    let Some(caught) = CAUGHT.get() else { return };
    caught.is_default.store(true, Ordering::SeqCst);
    for (signal, has_come) in &caught.signals {
        if has_come.load(Ordering::SeqCst) {
            low_level::emulate_default_handler(*signal).ok();
        }
    }
}

/// Listens from now on: the first signal drains, the second hurries. One that was noted before drains at once. Dropping
/// the set ends the listening.
pub(super) fn listen(stopping: Stopping) -> std::io::Result<JoinSet<()>> {
    catch();
    let caught = CAUGHT.get().expect("caught above");
    let mut streams = Vec::new();
    for (number, _) in &caught.signals {
        streams.push(signal(SignalKind::from_raw(*number))?);
    }
    // From here on the streams have them. What came before they did was noted.
    caught.is_default.store(false, Ordering::SeqCst);
    if caught.signals.iter().any(|(_, has_come)| has_come.load(Ordering::SeqCst)) {
        stopping.drain_within(DRAIN_LIMIT);
    }
    let mut listener = JoinSet::new();
    listener.spawn(async move {
        next_of(&mut streams).await;
        stopping.drain_within(DRAIN_LIMIT);
        next_of(&mut streams).await;
        stopping.hurry.cancel();
    });
    Ok(listener)
}

/// Waits for any of the signals; for ever if all are ignored. Signals that arrive together count once.
async fn next_of(streams: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let mut has_come = false;
        for stream in &mut *streams {
            has_come |= stream.poll_recv(context).is_ready();
        }
        if has_come { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Returns the signals that a process ignores, a bit for each, by its `/proc/<pid>/status`.
fn ignored_in(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status =
            "Name:\tlighthpc\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000100004402\n";
        let ignored = ignored_in(status);
        assert_ne!(ignored & bit(SIGHUP), 0);
        assert_eq!(ignored & (bit(SIGINT) | bit(SIGTERM)), 0);
        assert_eq!((ignored_in(""), ignored_in("SigIgn:\tnonsense\n")), (0, 0));
    }
}
