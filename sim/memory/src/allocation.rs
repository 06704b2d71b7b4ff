//! One allocation: its bytes, which of them were written, and which operation used each sector last.

use super::arena::Arena;
use super::marks::Marks;
use super::past::Order;
use super::writers::Writers;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

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
    /// Who wrote each sector last.
    wrote: Marks,
    /// Who read it last.
    read: Marks,
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
            wrote: Marks::new(bytes)?,
            read: Marks::new(bytes)?,
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

    /// Says that `len` bytes from `at` will soon be read, if they are inside.
    #[inline(always)]
    pub fn prefetch(&self, at: usize, len: usize) {
        self.data.prefetch(at, len);
        // Nobody looks at marks of writers that are all done.
        self.read.prefetch(at / SECTOR);
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
        let sectors = at / SECTOR..(at + len).div_ceil(SECTOR);
        let written = self.wrote.look(&sectors, order);
        let settled = written.settled && (!write || self.read.look(&sectors, order).settled);
        if settled {
            let (marks, count) = self.marks(write, fresh);
            *count += marks.set(&sectors, order.op);
        } else {
            self.touch_each(sectors, write, order, fresh)?;
        }
        Ok(written.own)
    }

    /// What a use changes.
    #[inline(always)]
    fn marks<'f>(&self, write: bool, fresh: &'f mut Fresh) -> (&Marks, &'f mut u64) {
        if write { (&self.wrote, &mut fresh.written) } else { (&self.read, &mut fresh.read) }
    }

    /// The same sector by sector.
    #[inline(never)]
    fn touch_each(
        &self,
        sectors: Range<usize>,
        write: bool,
        order: &Order,
        fresh: &mut Fresh,
    ) -> Result<(), Conflict> {
        let (marks, count) = self.marks(write, fresh);
        for sector in sectors {
            // Who used it so before has been checked; whoever came since has checked against that.
            if marks.of(sector) == order.op {
                continue;
            }
            let conflict = |op, wrote| Err(Conflict { op, wrote, offset: sector * SECTOR });
            let (wrote, read) = (self.wrote.of(sector), self.read.of(sector));
            if !order.follows(wrote) {
                return conflict(wrote, true);
            }
            if write && !order.follows(read) {
                return conflict(read, false);
            }
            *count += marks.set(&(sector..sector + 1), order.op);
        }
        Ok(())
    }

    /// A use of any byte by an operation that does not happen before `order`.
    pub(crate) fn unordered_use(&self, order: &Order) -> Option<Conflict> {
        (0..self.bytes.div_ceil(SECTOR)).find_map(|sector| {
            let (wrote, read) = (self.wrote.of(sector), self.read.of(sector));
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
