//! What a machine may lack: errors that say nothing of a program or a file, and the limit of open files.

use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Returns whether the system refused for a reason that says nothing of the program or the file: the machine has
/// reached a limit, the program is just being written, or the disk does not answer. Anything else is the program's or
/// the file's own.
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

/// Returns whether the machine has reached a limit that may be free again within seconds: of open files, or of memory.
#[must_use]
pub fn is_limit(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::INTR))
}

/// The limit of open files that this process was started with, if it was raised.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the limit of open files as far as this process may: each slot of a node has some tens of them, and the usual
/// limit of 1,024 is there only for programs that use `select(2)`, which this one does not.
pub fn raise_descriptors() {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: before.maximum, ..before }) {
        Ok(()) => drop(BEFORE.set(before)),
        Err(error) => tracing::warn!("the limit of open files stays at {:?}: {error}", before.current),
    }
}

/// Gives a workload the limit that this process was started with: with `select(2)` a program that gets a descriptor
/// above 1,023 writes beyond its set, and some programs close every descriptor up to the limit, which may be a million.
///
/// The program runs already (code between fork and exec is not possible without `unsafe`). It has none of this process's
/// files, so it would have to open a thousand before this call. In a sandbox systemd sets the limit.
pub(super) fn give_back_descriptors(pid: Option<Pid>) {
    let (Some(pid), Some(before)) = (pid, BEFORE.get()) else { return };
    if let Err(error) = prlimit(Some(pid), Resource::Nofile, *before) {
        // It may have ended already.
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
