//! One head's keys (or values) of one sequence, wherever they lie.

use super::{Order, Plane};
use crate::cell::Cell;
use crate::elem::Rows;
use crate::simd::{LANES, Simd};

/// Tokens of a sequence, found by their number. Strides are in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) base: *const u8,
    pub(crate) cell: Cell,
    /// Multiplies what is read; 1 for floats.
    pub(crate) scale: f32,
    pub(crate) dim: usize,
    pub(crate) token_stride: usize,
    pub(crate) dim_stride: usize,
    /// How a cache arranges them; `None`: rows of a tensor, of `dim` numbers.
    pub(crate) order: Option<Order>,
    /// `None`: all tokens follow each other.
    pub(crate) pages: Option<Pages<'a>>,
}

/// The blocks of a sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages<'a> {
    pub(crate) blocks: &'a [i32],
    /// Tokens a block.
    pub(crate) block: usize,
    pub(crate) block_bytes: usize,
}

impl<'a> View<'a> {
    /// One head of a plane, for a sequence with these blocks.
    pub(crate) fn paged(plane: &Plane, head: usize, blocks: &'a [i32], scale: f32) -> Self {
        let shape = plane.shape;
        Self {
            base: plane.base.wrapping_add(head * shape.head_bytes()),
            cell: shape.cell,
            scale,
            dim: shape.dim,
            token_stride: shape.token_stride(),
            dim_stride: shape.dim_stride(),
            order: Some(shape.order),
            pages: Some(Pages { blocks, block: shape.block, block_bytes: plane.block_bytes }),
        }
    }

    /// Rows of a tensor, the sequence's first token in front.
    pub(crate) fn rows(rows: Rows, dim: usize) -> Self {
        Self {
            base: rows.base,
            cell: Cell::Float(rows.elem),
            scale: 1.0,
            dim,
            token_stride: rows.row_stride,
            dim_stride: rows.col_stride,
            order: None,
            pages: None,
        }
    }

    /// Dimension 0 of token `j`.
    ///
    /// # Safety
    /// The token exists.
    #[inline(always)]
    pub(crate) unsafe fn token(&self, j: usize) -> *const u8 {
        let offset = match &self.pages {
            Some(p) => {
                p.blocks[j / p.block] as usize * p.block_bytes + j % p.block * self.token_stride
            }
            None => j * self.token_stride,
        };
        self.base.wrapping_add(offset)
    }

    /// The first token after `j` that does not follow its predecessor in memory.
    #[inline(always)]
    pub(crate) fn run_end(&self, j: usize) -> usize {
        self.pages.map_or(usize::MAX, |p| j / p.block * p.block + p.block)
    }

    /// Whether sixteen tokens from a multiple of sixteen on follow each other.
    #[inline(always)]
    pub(crate) fn has_whole_vectors(&self) -> bool {
        self.pages.is_none_or(|p| p.block >= LANES)
    }

    /// Dimensions `d .. d + 16` of a token, as many as there are, the rest 0; times the scale.
    ///
    /// # Safety
    /// `token` is [`Self::token`] of one that exists, and `d < dim`.
    #[inline(always)]
    pub(crate) unsafe fn dims<S: Simd>(&self, s: S, token: *const u8, d: usize) -> S::F {
        let bytes = self.cell.bytes();
        let padded = self.order == Some(Order::Tokens);
        let at = |i: usize| token.wrapping_add((d + i) * self.dim_stride);
        // SAFETY: the caller's promise; a cache pads its tokens to whole vectors.
        let v = unsafe {
            if self.dim_stride == bytes && (padded || d + LANES <= self.dim) {
                self.cell.load(s, at(0))
            } else {
                let mut v = [0.0; LANES];
                for (i, v) in v.iter_mut().enumerate().take(self.dim - d) {
                    *v = self.cell.read(at(i));
                }
                s.from_array(v)
            }
        };
        s.mul(v, s.splat(self.scale))
    }
}
