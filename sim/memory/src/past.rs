//! Which operations happen before an operation, by streams, events and synchronisation.

/// A set of operations, by number. Operations are numbered from 1 as they are enqueued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Ascending, apart, both ends included.
    runs: Vec<(u32, u32)>,
}

impl Past {
    /// Whether it has `op`. Number 0, that of no operation, is in every past.
    #[must_use]
    #[inline]
    pub fn contains(&self, op: u32) -> bool {
        op == 0 || self.runs.iter().rev().find(|run| run.0 <= op).is_some_and(|run| op <= run.1)
    }

    /// It has every operation up to this one.
    #[must_use]
    #[inline]
    pub fn begun(&self) -> u32 {
        self.runs.first().filter(|run| run.0 <= 1).map_or(0, |run| run.1)
    }

    /// Whether it has every operation before `op`: nothing runs beside it.
    #[must_use]
    pub fn is_whole(&self, op: u32) -> bool {
        op <= 1 || self.begun() >= op - 1
    }

    /// Adds `op`.
    pub fn insert(&mut self, op: u32) {
        self.union(&Self { runs: vec![(op, op)] });
    }

    /// The same set, every number higher by `by`.
    #[must_use]
    pub fn shifted(&self, by: u32) -> Self {
        Self { runs: self.runs.iter().map(|run| (run.0 + by, run.1 + by)).collect() }
    }

    /// Adds all of `other`.
    pub fn union(&mut self, other: &Self) {
        if other.runs.is_empty() || self.runs == other.runs {
            return;
        }
        self.runs.extend_from_slice(&other.runs);
        self.runs.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(self.runs.len());
        for (start, end) in self.runs.drain(..) {
            match merged.last_mut() {
                Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        self.runs = merged;
    }
}

/// An operation and what happens before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Its number, from 1.
    pub op: u32,
    /// What happens before it.
    pub past: Past,
}

impl Order {
    /// Whether `other` is this operation or happens before it.
    #[must_use]
    #[inline]
    pub fn follows(&self, other: u32) -> bool {
        other == self.op || self.past.contains(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge_and_keep_their_gaps() {
        let mut past = Past::default();
        for op in [1, 2, 5, 3, 7, 6] {
            past.insert(op);
        }
        assert_eq!(past.runs, [(1, 3), (5, 7)]);
        assert!(past.contains(0) && past.contains(6) && !past.contains(4) && !past.contains(8));
        assert!(past.is_whole(4) && !past.is_whole(6));
        past.insert(4);
        assert!(past.is_whole(8));
    }
}
