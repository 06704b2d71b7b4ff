//! Which axis of queries, keys and values is which.

use crate::refusal::{Refusal, code, ensure};
use crate::view::View;

/// The axes of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axes {
    Bsh,
    Bsnd,
    Bnsd,
    Nbsd,
    Tnd,
    Ntd,
}

/// The axes of what goes in and of the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) input: Axes,
    pub(super) output: Axes,
}

const LAYOUTS: &[(&str, Axes, Axes)] = &[
    ("BSH", Axes::Bsh, Axes::Bsh),
    ("BSND", Axes::Bsnd, Axes::Bsnd),
    ("BNSD", Axes::Bnsd, Axes::Bnsd),
    ("TND", Axes::Tnd, Axes::Tnd),
    ("BNSD_BSND", Axes::Bnsd, Axes::Bsnd),
    ("NTD_TND", Axes::Ntd, Axes::Tnd),
    ("TND_NTD", Axes::Tnd, Axes::Ntd),
    ("BSH_NBSD", Axes::Bsh, Axes::Nbsd),
    ("BSND_NBSD", Axes::Bsnd, Axes::Nbsd),
    ("BNSD_NBSD", Axes::Bnsd, Axes::Nbsd),
];

impl Layout {
    pub(super) fn parse(name: &str) -> Result<Self, Refusal> {
        let row = LAYOUTS.iter().find(|row| row.0 == name);
        let names: Vec<&str> = LAYOUTS.iter().map(|row| row.0).collect();
        row.map(|&(_, input, output)| Self { input, output }).ok_or_else(|| {
            let text = format!("inputLayout: {name:?}, expected one of {}", names.join(", "));
            Refusal::new(code::INVALID, text)
        })
    }

    /// Sequences lie behind each other, without a batch axis.
    pub(super) fn packed(self) -> bool {
        matches!(self.input, Axes::Tnd | Axes::Ntd)
    }

    /// `[T, N, D]` or `[B, S, N, D]` of what goes in.
    pub(super) fn of_query(self, view: &View, heads: usize) -> Result<View, Refusal> {
        self.input.canonical(view, heads)
    }

    pub(super) fn of_output(self, view: &View, heads: usize) -> Result<View, Refusal> {
        self.output.canonical(view, heads)
    }
}

impl Axes {
    /// `[T, N, D]` or `[B, S, N, D]`.
    fn canonical(self, view: &View, heads: usize) -> Result<View, Refusal> {
        let rank = if matches!(self, Self::Bsh | Self::Tnd | Self::Ntd) { 3 } else { 4 };
        view.expect_rank(rank, rank)?;
        let view = match self {
            Self::Bsh => split_last(view, heads)?,
            Self::Bsnd | Self::Tnd => view.clone(),
            Self::Bnsd => view.permuted(&[0, 2, 1, 3]),
            Self::Nbsd => view.permuted(&[1, 2, 0, 3]),
            Self::Ntd => view.permuted(&[1, 0, 2]),
        };
        let found = view.dims[view.rank() - 2];
        ensure!(found == heads, "{}: {found} heads, expected {heads}", view.name);
        Ok(view)
    }
}

/// The last axis as heads and their width.
pub(super) fn split_last(view: &View, heads: usize) -> Result<View, Refusal> {
    let width = view.last();
    ensure!(
        width.is_multiple_of(heads),
        "{}: {width} along the last axis, expected a multiple of {heads} heads",
        view.name
    );
    let mut split = view.clone();
    split.dims.pop();
    let stride = split.strides.pop().unwrap_or(1);
    split.dims.extend([heads, width / heads]);
    split.strides.extend([width / heads * stride, stride]);
    Ok(split)
}
