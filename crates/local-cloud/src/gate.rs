//! A gate at which calls wait until a test opens it, so that an attempt stalls at one exact point.

use std::sync::Arc;

use tokio::sync::watch;

/// A gate, closed at first; a clone is the same gate. If it is never opened, its calls wait for ever.
#[derive(Debug, Clone)]
pub struct Gate {
    arrived: Arc<watch::Sender<u32>>,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { arrived: Arc::new(watch::Sender::new(0)), open: Arc::new(watch::Sender::new(false)) }
    }

    /// Waits until `n` calls in total have reached the gate. Cancel-safe.
    pub async fn arrived(&self, n: u32) {
        let mut arrived = self.arrived.subscribe();
        // This value owns the sender, so the channel is open.
        arrived.wait_for(|count| *count >= n).await.map(drop).unwrap_or_default();
    }

    /// Opens the gate, which stays open. A second call changes nothing.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    pub(super) async fn wait_until_open(&self) {
        let mut open = self.open.subscribe();
        self.arrived.send_modify(|count| *count += 1);
        open.wait_for(|open| *open).await.map(drop).unwrap_or_default();
    }
}
