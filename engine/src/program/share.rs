//! What a rank has of the model: of an extent, of a layer.

use std::ops::Range;

/// One of the ranks that compute a model together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rank {
    pub(crate) index: usize,
    /// Ranks altogether.
    pub(crate) world: usize,
}

/// Elements `start .. start + len` of an extent of `whole`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Share {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) whole: usize,
}

/// A linear layer or table of the checkpoint, and which rows (outputs) and columns (inputs) of it are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Layer {
    /// Its name, without `.weight`.
    pub(crate) name: String,
    pub(crate) rows: Share,
    pub(crate) columns: Share,
}

impl Rank {
    /// The only one.
    #[cfg(test)]
    pub(crate) const ALONE: Self = Self { index: 0, world: 1 };
}

impl Share {
    /// All of it.
    pub(crate) fn all(whole: usize) -> Self {
        Self { start: 0, len: whole, whole }
    }

    /// The same share where each element is `unit` smaller ones: of heads, that of their rows.
    pub(crate) fn of_units(self, unit: usize) -> Self {
        Self { start: self.start * unit, len: self.len * unit, whole: self.whole * unit }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The same for extents in files.
    pub(crate) fn file_range(self) -> Range<u64> {
        self.start as u64..(self.start + self.len) as u64
    }
}

impl Layer {
    pub(crate) fn new(name: impl Into<String>, rows: Share, columns: Share) -> Self {
        Self { name: name.into(), rows, columns }
    }
}
