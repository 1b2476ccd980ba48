//! Whether the kernel ended something for want of memory: its own counters, before and after.

/// Returns how many processes the kernel has ended for want of memory: in this process's cgroup (version 2) if that is
/// counted, else on the whole machine. Only a difference of two readings says something.
///
/// Sources: kernel documentation, "Control Group v2" (`memory.events`, `oom_kill`), and `/proc/vmstat` since 4.13.
pub(super) fn kills() -> u64 {
    cgroup_events().or_else(|| std::fs::read_to_string("/proc/vmstat").ok()).as_deref().and_then(counted).unwrap_or(0)
}

fn cgroup_events() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    std::fs::read_to_string(format!("/sys/fs/cgroup{}/memory.events", path.trim_end_matches('/'))).ok()
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
        assert_eq!(counted("oom_kill_disable 0\n"), None);
    }
}
