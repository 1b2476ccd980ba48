//! The real machine.

use std::time::SystemTime;

use tokio::task::{JoinError, JoinSet};

pub use tokio::fs::{File, metadata, read, write};

/// Returns the current time of the wall clock.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Returns the current time of the wall clock. (In a simulation, machines have clocks of their own.)
#[must_use]
pub fn true_now() -> SystemTime {
    now()
}

/// Returns the size and the free space of a folder's file system. Source: statvfs(3).
///
/// # Errors
/// The system's.
pub fn disk(folder: &std::path::Path) -> std::io::Result<rustix::fs::StatVfs> {
    Ok(rustix::fs::statvfs(folder)?)
}

/// Returns the number of cores that this process may use: by its affinity, and its cgroup's quota.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Writes bytes at their place in a file. Blocks.
///
/// # Errors
/// The system's.
pub fn write_at(file: &std::fs::File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

/// Runs a function that waits for the disk, off this thread.
///
/// # Errors
/// [`JoinError`] if it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// Starts a task in a set.
pub fn spawn<T: Send + 'static>(set: &mut JoinSet<T>, task: impl Future<Output = T> + Send + 'static) {
    set.spawn(task);
}
