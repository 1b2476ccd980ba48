//! SIGINT, SIGTERM, and SIGHUP (a closed terminal): the first signal drains, the second hurries.
//!
//! ```text
//!   catch()  first call in `main`: signals are recorded only
//!      │
//!      ├─ restore()  not a node: a signal stops the process, as by default; a recorded one does so now
//!      │
//!      └─ listen()   a signal drains, then hurries; a recorded one drains now
//! ```
//!
//! A signal that was ignored when the process started stays ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT
//! for background processes. A signal before `catch`, while the program is loaded, stops the process. On the image,
//! `ExecStopPost=` of the unit then terminates the instance.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use super::failure::Failure;
use crate::command::exit::ExitCode;
use crate::worker::{DRAIN_LIMIT, Stopping};

/// The signals that request the end of a process.
const ENDING: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];

static CAUGHT: OnceLock<Caught> = OnceLock::new();

/// The caught signals.
#[derive(Debug, Default)]
struct Caught {
    /// Each signal, and whether it was received.
    signals: Vec<(i32, Arc<AtomicBool>)>,
    /// Whether a signal stops the process, as by default.
    is_default: Arc<AtomicBool>,
}

/// Records signals from now on, except ignored ones.
pub(super) fn catch() {
    CAUGHT.get_or_init(|| {
        // Read first, because catching a signal resets that it is ignored.
        let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored_in(&status));
        let mut caught = Caught::default();
        for signal in ENDING.into_iter().filter(|signal| ignored & bit(*signal) == 0) {
            let has_come = Arc::new(AtomicBool::new(false));
            // This cannot fail for these signals. If it did, the signal would keep its default effect.
            let noted = flag::register_conditional_default(signal, caught.is_default.clone())
                .and_then(|_| flag::register(signal, has_come.clone()));
            if noted.is_ok() {
                caught.signals.push((signal, has_come));
            }
        }
        caught
    });
}

/// Restores the default: a signal stops the process. A recorded signal does so now.
pub(super) fn restore() {
    let Some(caught) = CAUGHT.get() else { return };
    caught.is_default.store(true, Ordering::SeqCst);
    for (signal, has_come) in &caught.signals {
        if has_come.load(Ordering::SeqCst) {
            low_level::emulate_default_handler(*signal).ok();
        }
    }
}

/// Listens for signals: the first drains, the second hurries. A recorded signal drains at once. Dropping the set stops
/// listening.
pub(super) fn listen(stopping: Stopping) -> std::io::Result<JoinSet<()>> {
    catch();
    let caught = CAUGHT.get().expect("caught above");
    let mut streams = Vec::new();
    for (number, _) in &caught.signals {
        streams.push(signal(SignalKind::from_raw(*number))?);
    }
    // From here the streams receive the signals. Earlier ones were recorded.
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

/// Runs work that only reads, until a signal comes: then it is dropped where it is, and `None` is returned. A service that
/// does not answer thus does not hold up the end of a command.
///
/// # Errors
/// [`Failure`]: the signals cannot be listened for.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<Option<T>, Failure> {
    let stopping = Stopping::default();
    let internal = |error: std::io::Error| Failure { exit: ExitCode::Internal, error: error.into(), hint: None };
    let _listener = listen(stopping.clone()).map_err(internal)?;
    tokio::select! {
        done = work => Ok(Some(done)),
        () = stopping.drain.cancelled() => Ok(None),
    }
}

/// Waits for one of the signals; forever if all are ignored. Signals that arrive at the same time count once.
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

/// Returns the bit mask of the ignored signals from `/proc/<pid>/status`.
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
