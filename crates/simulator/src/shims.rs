//! Time and randomness of the process come from the simulation.
//!
//! Crates get their entropy from the C library's `getrandom`, and the time from its `clock_gettime`. The program's own
//! functions of these names come before it. `build.rs` exports them for those that look them up at run time.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use crate::plan::mix;

static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);

/// Sets the seed. Called before any other thread or hash map exists.
pub(crate) fn seed(seed: u64) {
    STATE.store(mix(seed ^ 0xa076_1d64_78bd_642f), Ordering::SeqCst);
    fastrand::seed(seed);
}

/// Fills a buffer from the seed. The signature is that of getrandom(2).
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[expect(unreachable_pub, reason = "the linker needs it")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        let value = mix(STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst));
        // SAFETY: `at` is below `length`.
        unsafe { buffer.cast::<u8>().add(at).write(value.to_le_bytes()[7]) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Returns the time of the simulation, or the kernel's before it starts. The signature is that of clock_gettime(2).
///
/// # Safety
/// `time` points to a `timespec` that may be written.
#[expect(unreachable_pub, reason = "the linker needs it")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int {
    let Some(elapsed) = lighthpc_runtime::elapsed() else {
        // SAFETY: the arguments are those of the system call.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, c_long::from(clock), time) };
        return -c_int::from(result != 0);
    };
    let since = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => {
            lighthpc_runtime::true_now().duration_since(UNIX_EPOCH).unwrap_or_default()
        }
        // Later than any reading of the kernel's clock before the simulation: some 30 years of uptime.
        _ => Duration::from_secs(1_000_000_000) + elapsed,
    };
    let read = libc::timespec { tv_sec: since.as_secs().try_into().unwrap_or(0), tv_nsec: since.subsec_nanos().into() };
    // SAFETY: the caller's promise.
    unsafe { time.write(read) };
    0
}
