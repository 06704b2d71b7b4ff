//! Where keys and values come from.

use crate::kv::{Cache, Heads, Order, Scales, View, scale_of};
use crate::simd::LANES;

/// A paged cache with the lengths and blocks of sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paged<'a> {
    pub(crate) cache: Cache,
    pub(crate) scales: Scales<'a>,
    /// Cached tokens of each sequence, the new ones included; not negative.
    pub(crate) kv_len: &'a [i32],
    /// Blocks of sequence `b` from `b * table_stride` on; those within `kv_len` are inside the cache.
    pub(crate) block_table: &'a [i32],
    pub(crate) table_stride: usize,
}

/// Keys and values of all sequences.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// A cache of keys and values.
    Paged(Paged<'a>),
    /// A cache of latents and rotated parts, with the queries' rotated parts: a key is a latent and its
    /// rotated part, a value the latent.
    Latent(Paged<'a>, Heads),
    /// Tensors of `heads` heads: rows `cu_k[b] .. cu_k[b + 1]` are sequence `b`'s; rising from 0.
    Rows { k: Heads, v: Heads, heads: usize, dims: [usize; 2], cu_k: &'a [i32] },
}

impl<'a> Source<'a> {
    /// KV heads.
    pub(crate) fn heads(&self) -> usize {
        match self {
            Self::Paged(p) | Self::Latent(p, _) => p.cache.k.shape.heads,
            Self::Rows { heads, .. } => *heads,
        }
    }

    /// Dimensions of a key.
    pub(crate) fn dim_k(&self) -> usize {
        match self {
            Self::Paged(p) => p.cache.k.shape.dim,
            Self::Latent(p, _) => p.cache.k.shape.dim + p.cache.v.shape.dim,
            Self::Rows { dims, .. } => dims[0],
        }
    }

    /// Dimensions of a value.
    pub(crate) fn dim_v(&self) -> usize {
        match self {
            Self::Paged(p) => p.cache.v.shape.dim,
            Self::Latent(p, _) => p.cache.k.shape.dim,
            Self::Rows { dims, .. } => dims[1],
        }
    }

    /// Dimensions of a value, in whole vectors.
    pub(crate) fn padded_v(&self) -> usize {
        self.dim_v().next_multiple_of(LANES)
    }

    /// Keys of a sequence.
    #[inline(always)]
    pub(crate) fn kv_len(&self, b: usize) -> usize {
        match self {
            Self::Paged(p) | Self::Latent(p, _) => p.kv_len[b] as usize,
            Self::Rows { cu_k, .. } => (cu_k[b + 1] - cu_k[b]) as usize,
        }
    }

    /// A head's keys of a sequence, and for latents what their dimensions go on with.
    pub(super) fn keys(&self, b: usize, head: usize) -> (View<'a>, Option<View<'a>>) {
        match self {
            Self::Paged(p) => (p.keys(b, head), None),
            Self::Latent(p, _) => (p.keys(b, head), Some(p.values(b, head))),
            Self::Rows { k, dims, cu_k, .. } => {
                (View::rows(k.head(head).row(cu_k[b] as usize), dims[0]), None)
            }
        }
    }

    /// A head's values of a sequence.
    pub(super) fn values(&self, b: usize, head: usize) -> View<'a> {
        match self {
            Self::Paged(p) => p.values(b, head),
            Self::Latent(p, _) => p.keys(b, head),
            Self::Rows { v, dims, cu_k, .. } => {
                View::rows(v.head(head).row(cu_k[b] as usize), dims[1])
            }
        }
    }

    /// Whether keys, and whether values, need staging.
    pub(super) fn staged(&self) -> [bool; 2] {
        match self {
            Self::Paged(Paged { cache, .. }) | Self::Latent(Paged { cache, .. }, _) => {
                let scaled = cache.k.shape.cell.float().is_none();
                [scaled || cache.k.shape.order != Order::Dims, scaled]
            }
            Self::Rows { .. } => [true, true],
        }
    }
}

impl<'a> Paged<'a> {
    fn blocks(&self, b: usize) -> &'a [i32] {
        // A sequence without keys may have no row of the table.
        self.block_table.get(b * self.table_stride..).unwrap_or(&[])
    }

    fn keys(&self, b: usize, head: usize) -> View<'a> {
        View::paged(&self.cache.k, head, self.blocks(b), scale_of(self.scales.k, head))
    }

    fn values(&self, b: usize, head: usize) -> View<'a> {
        View::paged(&self.cache.v, head, self.blocks(b), scale_of(self.scales.v, head))
    }
}
