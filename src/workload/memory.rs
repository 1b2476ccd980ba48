//! Detects whether the kernel killed a process because memory ran out, by its counters before and after.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// A reading of the kernel's counter. Only the difference of two readings is meaningful.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OomCounter {
    count: u64,
    /// Whether it counts this process's own group, and not the whole machine.
    is_own: bool,
}

impl OomCounter {
    /// Reads the number of processes that the kernel killed because memory ran out: in this process's cgroup (version 2
    /// or 1) if it has a counter, else on the whole machine.
    ///
    /// Sources: kernel documentation, "Control Group v2" (`memory.events`), "Memory Resource Controller"
    /// (`memory.oom_control`), and `/proc/vmstat` since 4.13; all have a line `oom_kill`.
    pub(super) fn read() -> Self {
        static OWN: OnceLock<Option<File>> = OnceLock::new();
        let own = OWN.get_or_init(own_group).as_ref().and_then(counter_in);
        let all = || std::fs::read_to_string("/proc/vmstat").ok().as_deref().and_then(counted);
        Self { count: own.or_else(all).unwrap_or(0), is_own: own.is_some() }
    }

    /// Returns whether memory ran out for a process with this exit after this reading, or for its child. The host-wide
    /// counter also counts other processes, so it is ignored unless this process was killed.
    pub(super) fn explain(self, code: Option<i32>, signal: Option<i32>) -> bool {
        let now = Self::read();
        // 137 is the shell's exit code for a child that was killed by SIGKILL.
        let was_killed = signal == Some(9) || code == Some(137);
        now.count > self.count && now.is_own == self.is_own && (self.is_own || was_killed)
    }
}

/// Opens the file with the counter of this process's group. It stays open: each attempt reads it twice.
fn own_group() -> Option<File> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    // The root group has no counter of its own.
    let path = |version: fn(&str) -> Option<&str>| groups.lines().find_map(version).filter(|path| *path != "/");
    let v2 = path(|line| line.strip_prefix("0::")).map(|path| format!("/sys/fs/cgroup{path}/memory.events"));
    let v1 = path(|line| line.split_once(":memory:").map(|(_, path)| path));
    let v1 = v1.map(|path| format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
    [v2, v1].into_iter().flatten().find_map(|file| File::open(file).ok())
}

fn counter_in(file: &File) -> Option<u64> {
    // The longest of these files has about 200 bytes.
    let mut text = [0; 4096];
    let count = file.read_at(&mut text, 0).ok()?;
    counted(std::str::from_utf8(&text[..count]).ok()?)
}

fn counted(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counter_is_read() {
        assert_eq!(counted("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(counted("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"), Some(4));
        assert_eq!(counted("oom_kill_disable 0\n"), None);
    }

    #[test]
    fn without_a_new_kill_nothing_is_explained() {
        assert!(!OomCounter::read().explain(Some(3), None));
        let before = OomCounter { count: 0, is_own: false };
        assert!(!before.explain(Some(3), None), "a stranger's, or none of this counter");
    }
}
