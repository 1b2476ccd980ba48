//! All randomness of the process comes from the seed: the order of hash maps, ids, jitter.
//!
//! Libraries get their entropy from the C library's `getrandom`. The program's own function of this name comes before
//! it. `build.rs` exports it for those that look it up at run time.

use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);

/// Sets the seed. Called before any other thread or hash map exists.
pub(crate) fn seed(seed: u64) {
    STATE.store(mix(seed ^ 0xa076_1d64_78bd_642f), Ordering::SeqCst);
    fastrand::seed(seed);
}

/// The finalizer of SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Fills a buffer from the seed. The signature is that of getrandom(2).
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for at in 0..length {
        let value = mix(STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst));
        // SAFETY: `at` is below `length`.
        unsafe { buffer.cast::<u8>().add(at).write(value.to_le_bytes()[7]) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
