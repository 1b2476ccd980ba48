//! Measures how much memory a workload uses: the most of all samples while it runs.
//!
//! In a sandbox the kernel counts (`memory.peak` of the unit's cgroup). Without one, the processes are added up: the
//! private memory of each, and the largest shared part once. A peak between two samples counts only as far as one
//! process alone has reached it (`VmHWM`). A workload that ends before the first sample has no value.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::period::period;
use super::processes;

/// When the first sample is taken: later than most programs need to start.
const FIRST: Duration = Duration::from_millis(50);
/// The longest time between two samples.
const PERIOD_MAX: Duration = Duration::from_secs(5);

/// The most memory that was measured so far, in bytes; 0: no sample yet. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct PeakMemory(Arc<AtomicU64>);

impl PeakMemory {
    pub(super) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// What is measured.
#[derive(Clone, Debug)]
pub(super) enum Measured {
    /// A process and its descendants.
    Tree(Pid),
    /// A cgroup (version 2).
    Cgroup(PathBuf),
}

/// Takes samples until `over` is cancelled. May be dropped at any point.
pub(super) async fn measure(what: Measured, peak: PeakMemory, over: CancellationToken) {
    let (mut pause, started) = (FIRST, Instant::now());
    loop {
        // Both arms may be dropped: they hold no resources.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = over.cancelled() => return,
        }
        pause = period(started, PERIOD_MAX);
        let what = what.clone();
        if let Ok(Some(bytes)) = lighthpc_runtime::blocking(move || sample(&what)).await {
            peak.add(bytes);
        }
    }
}

fn sample(what: &Measured) -> Option<u64> {
    match what {
        Measured::Tree(root) => tree(*root),
        Measured::Cgroup(path) => {
            // `memory.peak` exists since Linux 5.19. Source: kernel documentation, "Control Group v2".
            let read = |file: &str| std::fs::read_to_string(path.join(file)).ok()?.trim().parse().ok();
            read("memory.peak").or_else(|| read("memory.current"))
        }
    }
}

fn tree(root: Pid) -> Option<u64> {
    let (mut private, mut shared, mut highest) = (0_u64, 0_u64, 0_u64);
    for process in processes::tree(root) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()));
        let Some(memory) = status.ok().as_deref().and_then(parse) else { continue };
        private = private.saturating_add(memory.private);
        shared = shared.max(memory.shared);
        highest = highest.max(memory.highest);
    }
    Some(private.saturating_add(shared).max(highest)).filter(|&bytes| bytes > 0)
}

/// The memory of one process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    private: u64,
    shared: u64,
    highest: u64,
}

/// Reads `/proc/<pid>/status`; `None` for a process that has ended, which has no memory. Source: proc(5).
fn parse(status: &str) -> Option<Memory> {
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory {
        private: bytes("RssAnon")?,
        shared: bytes("RssFile")?.saturating_add(bytes("RssShmem")?),
        highest: bytes("VmHWM")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read() {
        let text = "Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t 2000 kB\nRssAnon:\t 1000 kB\nRssFile:\t 900 kB\nRssShmem:\t 100 kB\n";
        let memory = Memory { private: 1000 << 10, shared: 1000 << 10, highest: 3000 << 10 };
        assert_eq!(parse(text), Some(memory));
        assert_eq!(parse("Name:\tzombie\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let own = tree(rustix::process::getpid()).unwrap();
        assert!(own > 100_000, "{own}");
        assert_eq!(tree(Pid::from_raw(i32::MAX).unwrap()), None);
    }

    #[tokio::test]
    async fn a_process_that_needs_memory_is_measured() {
        let script = "x=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 100";
        let mut child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let (peak, over) = (PeakMemory::default(), CancellationToken::new());
        let enough = async {
            while peak.get().is_none_or(|bytes| bytes < 30_000_000) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = measure(Measured::Tree(Pid::from_child(&child)), peak.clone(), over) => unreachable!("it is not over"),
            enough = tokio::time::timeout(Duration::from_secs(20), enough) => enough.unwrap(),
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
