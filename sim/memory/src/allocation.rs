//! One allocation: its bytes, which of them were written, and which operation used each sector last.

use super::arena::Arena;
use super::past::Order;
use super::writers::Writers;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Bytes that device memory moves at once, and what uses are tracked by.
pub const SECTOR: usize = 32;

/// Where an allocation lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Memory of the device with this index.
    Device(u32),
    /// Pinned memory of the host, at its host address.
    Host,
}

/// A piece of memory.
#[derive(Debug)]
pub struct Allocation {
    /// Its first address.
    pub base: u64,
    /// Its size.
    pub bytes: usize,
    /// Where it lives.
    pub home: Home,
    /// Its bytes.
    pub data: Arena,
    /// A bit a byte.
    written: Arena,
    /// All bits of `written` are set.
    complete: AtomicBool,
    /// Words of `written` before this one are all ones.
    scanned: AtomicUsize,
    /// A pair of `u32` a sector: who wrote it last, who read it last.
    uses: Arena,
    /// Who wrote each word last, where whoever executes operations tells their parts apart.
    pub writers: Writers,
    freed: AtomicBool,
}

/// Sectors that an operation was first to touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fresh {
    /// Sectors read.
    pub read: u64,
    /// Sectors written.
    pub written: u64,
}

/// A use by an operation that is not ordered with this one.
#[derive(Clone, Copy, Debug)]
pub struct Conflict {
    /// The other operation's number.
    pub op: u32,
    /// Whether it wrote.
    pub wrote: bool,
    /// The first byte that both use.
    pub offset: usize,
}

impl Allocation {
    pub(crate) fn new(base: Option<u64>, bytes: usize, home: Home) -> Option<Self> {
        let data = Arena::new(bytes)?;
        let words = bytes.div_ceil(64);
        Some(Self {
            base: base.unwrap_or(data.address()),
            bytes,
            home,
            written: Arena::new(words * 8)?,
            complete: AtomicBool::new(bytes == 0 || home == Home::Host),
            scanned: AtomicUsize::new(0),
            uses: Arena::new(bytes.div_ceil(SECTOR) * 8)?,
            writers: Writers::new(bytes),
            freed: AtomicBool::new(false),
            data,
        })
    }

    /// Whether it was freed meanwhile.
    #[must_use]
    #[inline]
    pub fn is_freed(&self) -> bool {
        self.freed.load(Relaxed)
    }

    pub(crate) fn set_freed(&self) {
        self.freed.store(true, Relaxed);
    }

    /// Whether every byte was written.
    #[must_use]
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Relaxed)
    }

    /// Says that `len` bytes from `at` were written.
    pub fn mark_written(&self, at: usize, len: usize) {
        if self.is_complete() {
            return;
        }
        for (word, mask) in words(at, len) {
            let bits = self.written.atomic64(word * 8);
            if bits.load(Relaxed) & mask != mask {
                bits.fetch_or(mask, Relaxed);
            }
        }
    }

    /// The first of `len` bytes from `at` that was never written.
    #[must_use]
    pub fn unwritten(&self, at: usize, len: usize) -> Option<usize> {
        if self.is_complete() {
            return None;
        }
        words(at, len).find_map(|(word, mask)| {
            let missing = mask & !self.written.atomic64(word * 8).load(Relaxed);
            (missing != 0).then(|| word * 64 + missing.trailing_zeros() as usize)
        })
    }

    /// Looks whether everything is written by now, so that later reads need not ask.
    pub fn settle(&self) {
        if self.is_complete() {
            return;
        }
        let mut word = self.scanned.load(Relaxed);
        while word < self.bytes / 64 && self.written.atomic64(word * 8).load(Relaxed) == u64::MAX {
            word += 1;
        }
        self.scanned.store(word, Relaxed);
        let rest = word * 64;
        if rest >= self.bytes
            || self.bytes - rest < 64 && self.unwritten(rest, self.bytes - rest).is_none()
        {
            self.complete.store(true, Relaxed);
        }
    }

    /// Notes that the operation `order` uses `len` bytes from `at`; says whether it wrote a sector of them before.
    ///
    /// # Errors
    /// Another operation uses some of them, one of the two writes, and nothing orders them.
    #[inline]
    pub fn touch(
        &self,
        (at, len): (usize, usize),
        write: bool,
        order: &Order,
        fresh: &mut Fresh,
    ) -> Result<bool, Conflict> {
        if len == 0 {
            return Ok(false);
        }
        let first = at / SECTOR;
        let uses = self.uses.atomics32(first * 8, ((at + len - 1) / SECTOR - first + 1) * 2);
        // Who used it so before has been checked; whoever came since has checked against that. All sectors are asked at once: mostly
        // each has been used before.
        let (mut others, mut wrote) = (0, false);
        for used in uses.chunks_exact(2) {
            others |= used[usize::from(!write)].load(Relaxed) ^ order.op;
            wrote |= used[0].load(Relaxed) == order.op;
        }
        if others != 0 {
            touch_first(uses, first, write, order, fresh)?;
        }
        Ok(wrote)
    }

    /// A use of any byte by an operation that does not happen before `order`.
    pub(crate) fn unordered_use(&self, order: &Order) -> Option<Conflict> {
        (0..self.bytes.div_ceil(SECTOR)).find_map(|sector| {
            let wrote = self.uses.atomic32(sector * 8).load(Relaxed);
            let read = self.uses.atomic32(sector * 8 + 4).load(Relaxed);
            let offset = sector * SECTOR;
            if !order.follows(wrote) {
                Some(Conflict { op: wrote, wrote: true, offset })
            } else if !order.follows(read) {
                Some(Conflict { op: read, wrote: false, offset })
            } else {
                None
            }
        })
    }
}

/// Notes that `order` uses the sectors from `first`, used by `uses` before.
#[inline(never)]
fn touch_first(
    uses: &[AtomicU32],
    first: usize,
    write: bool,
    order: &Order,
    fresh: &mut Fresh,
) -> Result<(), Conflict> {
    for (sector, used) in uses.chunks_exact(2).enumerate() {
        if used[usize::from(!write)].load(Relaxed) != order.op {
            let conflict = |(op, wrote)| Conflict { op, wrote, offset: (first + sector) * SECTOR };
            note(&used[0], &used[1], write, order).map_err(conflict)?;
            *(if write { &mut fresh.written } else { &mut fresh.read }) += 1;
        }
    }
    Ok(())
}

/// Notes that `order` uses a sector that `writer` and `reader` used last; else who of them conflicts, and whether it wrote.
fn note(
    writer: &AtomicU32,
    reader: &AtomicU32,
    write: bool,
    order: &Order,
) -> Result<(), (u32, bool)> {
    let (wrote, read) = (writer.load(Relaxed), reader.load(Relaxed));
    if !order.follows(wrote) {
        return Err((wrote, true));
    }
    if write && !order.follows(read) {
        return Err((read, false));
    }
    (if write { writer } else { reader }).store(order.op, Relaxed);
    Ok(())
}

/// The 64-bit words that hold bits `at` to `at + len`, each with the mask of those bits.
fn words(at: usize, len: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = at + len;
    (at / 64..end.div_ceil(64)).map(move |word| {
        let from = at.saturating_sub(word * 64);
        let to = (end - word * 64).min(64);
        (word, u64::MAX >> (64 - (to - from)) << from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_bytes_are_known_one_by_one() {
        let memory = Allocation::new(Some(1 << 48), 200, Home::Device(0)).unwrap();
        memory.mark_written(0, 70);
        assert_eq!(memory.unwritten(0, 70), None);
        assert_eq!(memory.unwritten(60, 20), Some(70));
        memory.settle();
        assert!(!memory.is_complete());
        memory.mark_written(70, 130);
        memory.settle();
        assert!(memory.is_complete());
    }

    #[test]
    fn uses_that_nothing_orders_conflict() {
        let memory = Allocation::new(Some(1 << 48), 64, Home::Device(0)).unwrap();
        let mut fresh = Fresh::default();
        let mut order = Order { op: 1, ..Order::default() };
        memory.touch((0, 64), true, &order, &mut fresh).unwrap();
        assert_eq!(fresh.written, 2);
        order.op = 2;
        let conflict = memory.touch((40, 4), false, &order, &mut fresh).unwrap_err();
        assert_eq!((conflict.op, conflict.wrote, conflict.offset), (1, true, 32));
        order.past.insert(1);
        memory.touch((40, 4), false, &order, &mut fresh).unwrap();
        let third = Order {
            op: 3,
            past: {
                let mut past = order.past.clone();
                past.insert(1);
                past
            },
        };
        assert_eq!(memory.unordered_use(&third).unwrap().op, 2);
    }
}
