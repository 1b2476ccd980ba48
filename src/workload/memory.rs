//! Whether the kernel ended something because memory ran out: its own counters, before and after.

/// A reading of the kernel's counter. Only a difference of two readings says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OomCounter {
    count: u64,
    /// Whether it counts this process's own group, not the whole machine.
    is_own: bool,
}

impl OomCounter {
    /// Reads how many processes the kernel has ended because memory ran out: in this process's cgroup (version 2, or 1) if that is
    /// counted, else on the whole machine.
    ///
    /// Sources: kernel documentation, "Control Group v2" (`memory.events`), "Memory Resource Controller" (`memory.oom_control`),
    /// and `/proc/vmstat` since 4.13; all have a line `oom_kill`.
    pub(super) fn read() -> Self {
        let own = own_group().as_deref().and_then(counted);
        let all = || std::fs::read_to_string("/proc/vmstat").ok().as_deref().and_then(counted);
        Self { count: own.or_else(all).unwrap_or(0), is_own: own.is_some() }
    }

    /// Returns whether a process that ended so after this reading was ended because memory ran out, or failed for the loss of a
    /// child that was. A stranger's end, of which the whole machine's counter tells, says nothing of a process that was not killed.
    pub(super) fn explain(self, code: Option<i32>, signal: Option<i32>) -> bool {
        let now = Self::read();
        // 137 is the shell's word for a child that SIGKILL ended.
        let was_killed = signal == Some(9) || code == Some(137);
        now.count > self.count && now.is_own == self.is_own && (self.is_own || was_killed)
    }
}

fn own_group() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    // The root is nobody's own, and does not count.
    let path = |version: fn(&str) -> Option<&str>| groups.lines().find_map(version).filter(|path| *path != "/");
    let v2 = path(|line| line.strip_prefix("0::")).map(|path| format!("/sys/fs/cgroup{path}/memory.events"));
    let v1 = path(|line| line.split_once(":memory:").map(|(_, path)| path));
    let v1 = v1.map(|path| format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
    [v2, v1].into_iter().flatten().find_map(|file| std::fs::read_to_string(file).ok())
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
