//! Which operation last used each sector of an allocation in one way, to read it or to write it.

use super::SECTOR;
use super::arena::Arena;
use super::past::Order;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// The number of an operation for each sector, 0 for none; two of them in a word, so that a long use has half as many to look at.
#[derive(Debug)]
pub(crate) struct Marks {
    words: Arena,
    /// No mark is higher.
    highest: AtomicU32,
}

/// What the marks of some sectors say to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// All are of operations that [`Order::follows`] soon tells to happen before it, or its own.
    pub(crate) settled: bool,
    /// Some are its own.
    pub(crate) own: bool,
}

impl Seen {
    #[inline(always)]
    fn of(mark: u32, order: &Order) -> Self {
        let own = mark == order.op;
        Self { settled: own || mark <= order.past.begun(), own }
    }
}

impl Marks {
    /// For an allocation of so many bytes.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let words = Arena::new(bytes.div_ceil(2 * SECTOR) * 8)?;
        Some(Self { words, highest: AtomicU32::new(0) })
    }

    #[inline(always)]
    pub(crate) fn of(&self, sector: usize) -> u32 {
        halves(self.words.atomic64(sector / 2 * 8).load(Relaxed))[sector % 2]
    }

    /// Says that the mark of `sector` and those behind it will soon be looked at, if there are such.
    #[inline(always)]
    pub(crate) fn prefetch(&self, sector: usize) {
        self.words.prefetch(sector / 2 * 8, 8);
    }

    /// Looks at the marks of `sectors`, of which there are some.
    #[inline(always)]
    pub(crate) fn look(&self, sectors: &Range<usize>, order: &Order) -> Seen {
        let highest = self.highest.load(Relaxed);
        if highest != order.op && highest <= order.past.begun() {
            return Seen { settled: true, own: false };
        }
        let mark = self.of(sectors.start);
        let (both, mut apart) = (double(mark), 0);
        self.each(sectors, |word, mask| apart |= (word.load(Relaxed) ^ both) & mask);
        // Mostly one operation has used all of them.
        if apart == 0 { Seen::of(mark, order) } else { self.look_each(sectors, order) }
    }

    #[inline(never)]
    fn look_each(&self, sectors: &Range<usize>, order: &Order) -> Seen {
        let seen = sectors.clone().map(|sector| Seen::of(self.of(sector), order));
        seen.fold(Seen { settled: true, own: false }, |all, one| Seen {
            settled: all.settled & one.settled,
            own: all.own | one.own,
        })
    }

    /// Marks `sectors` as used by `op`; how many of them were not.
    #[inline(always)]
    pub(crate) fn set(&self, sectors: &Range<usize>, op: u32) -> u64 {
        let (both, mut new) = (double(op), 0);
        if self.highest.load(Relaxed) < op {
            self.highest.fetch_max(op, Relaxed);
        }
        self.each(sectors, |word, mask| {
            let differs = (word.load(Relaxed) ^ both) & mask;
            if differs == 0 {
                return;
            }
            new += halves(differs).map(|half| u64::from(half != 0)).iter().sum::<u64>();
            if mask == u64::MAX {
                word.store(both, Relaxed);
            } else {
                // The other sector of the word may be marked at the same time.
                _ = word.fetch_update(Relaxed, Relaxed, |word| Some(word & !mask | both & mask));
            }
        });
        new
    }

    /// Shows `look` the words of `sectors`, each with a mask of its part of them.
    #[inline(always)]
    fn each(&self, sectors: &Range<usize>, mut look: impl FnMut(&AtomicU64, u64)) {
        let first = sectors.start / 2;
        let mut words = self.words.atomics64(first * 8, sectors.end.div_ceil(2) - first);
        let head = if sectors.start.is_multiple_of(2) { u64::MAX } else { u64::MAX << 32 };
        let tail = if sectors.end.is_multiple_of(2) { u64::MAX } else { u64::MAX >> 32 };
        if let [word] = words {
            return look(word, head & tail);
        }
        // The words between, which are most of them, are used whole.
        if head != u64::MAX
            && let Some((word, rest)) = words.split_first()
        {
            look(word, head);
            words = rest;
        }
        let last = words.split_last().filter(|_| tail != u64::MAX);
        let between = last.map_or(words, |(_, between)| between);
        between.iter().for_each(|word| look(word, u64::MAX));
        if let Some((word, _)) = last {
            look(word, tail);
        }
    }
}

/// A word with twice the same mark.
#[inline(always)]
fn double(mark: u32) -> u64 {
    u64::from(mark) << 32 | u64::from(mark)
}

/// The marks, or masks, of a word.
#[expect(clippy::cast_possible_truncation, reason = "each half by itself")]
#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_of_a_word_are_marked_apart() {
        let marks = Marks::new(5 * SECTOR).unwrap();
        assert_eq!(marks.set(&(1..4), 7), 3);
        assert_eq!(marks.set(&(0..2), 9), 2);
        assert_eq!([0, 1, 2, 3, 4].map(|sector| marks.of(sector)), [9, 9, 7, 7, 0]);
        assert_eq!(marks.set(&(0..5), 9), 3);
    }

    #[test]
    fn marks_of_neighbours_are_not_looked_at() {
        let marks = Marks::new(4 * SECTOR).unwrap();
        marks.set(&(1..3), 3);
        let order = |op| Order { op, ..Order::default() };
        let seen = |sectors, op| marks.look(&sectors, &order(op));
        assert_eq!(seen(0..1, 5), Seen { settled: true, own: false });
        assert_eq!(seen(3..4, 3), Seen { settled: true, own: false });
        assert_eq!(seen(0..2, 5), Seen { settled: false, own: false });
        assert_eq!(seen(2..4, 3), Seen { settled: true, own: true });
        let mut later = order(5);
        later.past.insert(3);
        // Not of a past that has a gap before.
        assert!(!marks.look(&(1..3), &later).settled);
        later.past.insert(1);
        later.past.insert(2);
        assert!(marks.look(&(1..3), &later).settled);
    }
}
