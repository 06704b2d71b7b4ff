//! Bytes that many threads use at once, as a device's memory is used.
//!
//! The one place of this crate with raw pointers. A place outside an arena panics. Simulated threads may race, as real ones may: a race gives the
//! simulated program undefined *values*, which plain bytes can take, and is reported where the checks see it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Zeroed bytes at a fixed place, aligned to [`Arena::ALIGN`].
#[derive(Debug)]
pub struct Arena {
    /// What the allocator gave, at most [`Arena::ALIGN`] before the first byte.
    given: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an arena owns its bytes, and bytes may go to another thread.
unsafe impl Send for Arena {}
// SAFETY: shared use is by copies in and out of plain bytes and by atomics, checked to lie inside; no reference to the
// bytes other than to atomics is ever made, so racing threads see unspecified bytes and nothing else.
unsafe impl Sync for Arena {}

impl Arena {
    /// What its first byte is aligned to.
    pub const ALIGN: usize = 256;

    /// `bytes` zeros, which take real memory only once they are used; none if the host has no such memory.
    #[must_use]
    pub fn new(bytes: usize) -> Option<Self> {
        // Aligned here: the allocator would write zeros to align more than it does by itself.
        let layout = Layout::from_size_align(bytes.checked_add(Self::ALIGN)?, 1).ok()?;
        // SAFETY: the size is not zero.
        let given = unsafe { alloc_zeroed(layout) };
        let given = NonNull::new(given)?;
        let skip = given.as_ptr().addr().wrapping_neg() % Self::ALIGN;
        // SAFETY: there are `ALIGN` bytes more than `bytes`.
        let start = unsafe { given.add(skip) };
        Some(Self { given, layout, start, bytes })
    }

    /// The first byte's address in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    /// A pointer to `len` bytes from `at`.
    #[inline(always)]
    fn pointer(&self, at: usize, len: usize) -> *mut u8 {
        assert!(at <= self.bytes && len <= self.bytes - at, "inside the arena");
        // SAFETY: `at` is inside the allocation, or its end.
        unsafe { self.start.as_ptr().add(at) }
    }

    /// The `N` bytes from `at`.
    #[must_use]
    #[inline(always)]
    pub fn load<const N: usize>(&self, at: usize) -> [u8; N] {
        let from = self.pointer(at, N).cast::<[u8; N]>();
        // SAFETY: `N` bytes are there (checked by `pointer`), bytes have no alignment and any value.
        unsafe { from.read() }
    }

    /// Where the `N` bytes from `at` are, for code that reads them by itself while the arena lives.
    #[must_use]
    #[inline(always)]
    pub fn pointer_to<const N: usize>(&self, at: usize) -> *const [u8; N] {
        self.pointer(at, N).cast_const().cast()
    }

    /// Sets the `N` bytes from `at`.
    #[inline(always)]
    pub fn store<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        let to = self.pointer(at, N).cast::<[u8; N]>();
        // SAFETY: `N` bytes are there (checked by `pointer`), and bytes have no alignment.
        unsafe { to.write(bytes) }
    }

    /// Says that the `len` bytes from `at` will soon be used, if they are inside.
    #[inline(always)]
    pub fn prefetch(&self, at: usize, len: usize) {
        if cfg!(target_arch = "x86_64") && at.saturating_add(len) <= self.bytes {
            let from = self.pointer(at, len);
            (0..len).step_by(64).for_each(|line| prefetch(from.wrapping_add(line)));
        }
    }

    /// Copies bytes from `at` out.
    #[inline(always)]
    pub fn load_slice(&self, at: usize, into: &mut [u8]) {
        let from = self.pointer(at, into.len());
        // SAFETY: the source was checked by `pointer`; nobody holds a slice of an arena, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies bytes to `at`.
    #[inline(always)]
    pub fn store_slice(&self, at: usize, from: &[u8]) {
        let to = self.pointer(at, from.len());
        // SAFETY: the destination was checked by `pointer`; nobody holds a slice of an arena, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Sets `len` bytes from `at`.
    pub fn fill(&self, at: usize, len: usize, byte: u8) {
        let to = self.pointer(at, len);
        // SAFETY: the bytes are there, checked by `pointer`.
        unsafe { ptr::write_bytes(to, byte, len) }
    }

    /// The 32-bit word at `at`, a multiple of 4.
    ///
    /// # Panics
    /// `at` is none, or outside.
    #[inline(always)]
    pub fn atomic32(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4), "aligned");
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the start is aligned to 256, `at` was checked"
        )]
        let word = self.pointer(at, 4).cast::<u32>();
        // SAFETY: it is inside and aligned, and lives as long as the arena, whose borrow the reference keeps.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// The 64-bit word at `at`, a multiple of 8.
    ///
    /// # Panics
    /// `at` is none, or outside.
    #[inline(always)]
    pub fn atomic64(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8), "aligned");
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the start is aligned to 256, `at` was checked"
        )]
        let word = self.pointer(at, 8).cast::<u64>();
        // SAFETY: it is inside and aligned, and lives as long as the arena, whose borrow the reference keeps.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// `count` 64-bit words from `at`, a multiple of 8.
    ///
    /// # Panics
    /// `at` is none, or some are outside.
    #[inline(always)]
    pub fn atomics64(&self, at: usize, count: usize) -> &[AtomicU64] {
        assert!(at.is_multiple_of(8) && count <= self.bytes, "aligned, and not too many");
        #[expect(
            clippy::cast_ptr_alignment,
            reason = "the start is aligned to 256, `at` was checked"
        )]
        let words = self.pointer(at, count * 8).cast::<AtomicU64>();
        // SAFETY: they are inside and aligned, atomics are laid out as their numbers, and they live as long as the arena,
        // whose borrow the reference keeps.
        unsafe { std::slice::from_raw_parts(words, count) }
    }
}

#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "there is no such hint"))]
fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint reads nothing, and SSE, which has it, is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `new` got it with this layout, and nothing else frees it.
        unsafe { dealloc(self.given.as_ptr(), self.layout) }
    }
}
