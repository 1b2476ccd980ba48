//! Limits of a machine: errors that are not caused by a program or a file, and the limit of open files.

use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Returns whether the cause of an error is the machine: it has reached a limit, the program is being written, or the
/// disk does not respond. Other errors are caused by the program or the file.
///
/// Sources: `execve(2)`, `fork(2)`, `open(2)`, `pipe(2)`, and for files on a network file system `errno(3)`.
#[must_use]
pub fn is_of_machine(error: &io::Error) -> bool {
    const TRANSIENT: [Errno; 20] = [
        Errno::AGAIN,
        Errno::BUSY,
        Errno::DQUOT,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::INTR,
        Errno::IO,
        Errno::MFILE,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOLCK,
        Errno::NOMEM,
        Errno::NOSPC,
        Errno::NOTCONN,
        Errno::REMOTEIO,
        Errno::STALE,
        Errno::TIMEDOUT,
        Errno::TXTBSY,
    ];
    Errno::from_io_error(error).is_some_and(|errno| TRANSIENT.contains(&errno))
}

/// Returns whether the machine has reached a limit that may be available again within seconds: open files or memory.
#[must_use]
pub fn is_limit(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR))
}

/// The original limit of open files, if it was raised.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit of open files to this process's maximum. Each slot of a node needs some tens of them. The usual
/// limit of 1,024 exists for programs that use `select(2)`, which this one does not.
pub fn raise_descriptors() {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }) {
        Ok(()) => drop(BEFORE.set(before)),
        Err(error) => tracing::warn!("the limit of open files remains {:?}: {error}", before.current),
    }
}

/// Restores the original limit for a workload. With `select(2)`, a program that gets a descriptor above 1,023 writes
/// beyond its set. Some programs close every descriptor up to the limit, which may be a million.
///
/// The program already runs (code between fork and exec needs `unsafe`). It has none of this process's files, so it
/// would have to open a thousand before this call. In a sandbox, systemd sets the limit.
pub(super) fn give_back_descriptors(pid: Option<Pid>) {
    let (Some(pid), Some(before)) = (pid, BEFORE.get()) else { return };
    if let Err(error) = prlimit(Some(pid), Resource::Nofile, *before) {
        // It may have exited already.
        tracing::debug!("the workload keeps the node's limit of open files: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_lacks_is_transient_and_what_the_program_is_not() {
        for errno in [Errno::TXTBSY, Errno::AGAIN, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::IO] {
            assert!(is_of_machine(&errno.into()), "{errno:?}");
        }
        for errno in
            [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC, Errno::PERM, Errno::TOOBIG, Errno::NOTDIR, Errno::LOOP]
        {
            assert!(!is_of_machine(&errno.into()), "{errno:?}");
        }
        assert!(!is_of_machine(&io::Error::other("203")));
    }
}
