//! Huge pages for weights.
//!
//! Decoding streams all weights once a token. With 4 KiB pages address translation and the prefetcher's
//! stop at every page boundary cost more than half of the memory's bandwidth.

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Asks the system to put memory on huge pages now, data included. Windows of 2 MiB that are not wholly
/// mapped stay as they are; so does everything where the system has no such request.
#[cfg(target_os = "linux")]
pub(crate) fn collapse(start: *const u8, bytes: usize) {
    /// Since Linux 6.1; not in every version of the `libc` crate's headers.
    const MADV_COLLAPSE: libc::c_int = 25;
    let first = start.addr() / HUGE;
    let last = (start.addr() + bytes).div_ceil(HUGE);
    for window in first..last {
        let at = start.with_addr(window * HUGE).cast_mut().cast();
        // SAFETY: the request changes which pages back the range, never its contents; a range that is not
        // mapped is refused. The answer does not matter: it is only about speed.
        unsafe { libc::madvise(at, HUGE, MADV_COLLAPSE) };
    }
}

/// Nothing to ask for here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn collapse(_start: *const u8, _bytes: usize) {}
