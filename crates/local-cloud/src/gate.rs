//! A gate at which calls wait until a test lets them go on: how a test makes an attempt stall at one exact point.

use std::sync::Arc;

use tokio::sync::watch;

/// A closed gate; a clone is the same gate. Calls that are held when the last clone outside the rules is dropped stay held.
#[derive(Debug, Clone)]
pub struct Gate {
    arrived: Arc<watch::Sender<u32>>,
    open: Arc<watch::Sender<bool>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { arrived: Arc::new(watch::Sender::new(0)), open: Arc::new(watch::Sender::new(false)) }
    }

    /// Waits until `n` calls in all have come to the gate. Cancel-safe.
    pub async fn arrived(&self, n: u32) {
        let mut arrived = self.arrived.subscribe();
        // The sender is this value's own, so it cannot have gone.
        arrived.wait_for(|count| *count >= n).await.map(drop).unwrap_or_default();
    }

    /// Opens the gate for good; may be called again.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    pub(super) async fn pass(&self) {
        let mut open = self.open.subscribe();
        self.arrived.send_modify(|count| *count += 1);
        open.wait_for(|open| *open).await.map(drop).unwrap_or_default();
    }
}
