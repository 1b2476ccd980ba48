//! SIGINT, SIGTERM, and SIGHUP (a closed terminal): the first drains, the second hurries.

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::worker::Stopping;

/// Listens from now on. Dropping the set ends the listening.
pub(super) fn listen(stopping: Stopping) -> std::io::Result<JoinSet<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut listener = JoinSet::new();
    listener.spawn(async move {
        for token in [&stopping.drain, &stopping.hurry] {
            // Signals that arrive together count once; all arms may be dropped.
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(listener)
}
