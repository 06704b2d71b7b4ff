//! The paged cache's arrangement, and what writes, copies and gathers it.
//!
//! A cache is two *planes*. Keys lie `[heads, dim, block]` in a block: the same dimension of neighbouring
//! tokens lies together, so that sixteen keys are scored at once without summing across lanes. Values lie
//! `[heads, block, dim]`, with `dim` padded to whole vectors by zeros. A latent is key and value, and is kept
//! once, as a value: attention turns the keys of a chunk over while they are in the processor's cache.

mod gather;
mod view;
mod write;

use crate::cell::Cell;
use crate::elem::{Elem, Rows};
use crate::simd::{LANES, Simd};
pub(crate) use gather::KvGather;
pub(crate) use view::View;
pub(crate) use write::KvWrite;

/// What lies together in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A dimension of all tokens: `[heads, dim, block]`.
    Dims,
    /// A token's dimensions: `[heads, block, dim]`, `dim` padded to whole vectors.
    Tokens,
}

/// Shape of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaneShape {
    pub(crate) cell: Cell,
    pub(crate) order: Order,
    /// Tokens a block.
    pub(crate) block: usize,
    pub(crate) heads: usize,
    pub(crate) dim: usize,
}

impl PlaneShape {
    /// Dimensions in memory.
    pub(crate) fn padded(&self) -> usize {
        match self.order {
            Order::Dims => self.dim,
            Order::Tokens => self.dim.next_multiple_of(LANES),
        }
    }

    /// Bytes of a block; `None` if they overflow.
    pub(crate) fn block_bytes(&self) -> Option<usize> {
        let elements = self.heads.checked_mul(self.padded())?.checked_mul(self.block)?;
        elements.checked_mul(self.cell.bytes())
    }

    /// Bytes of a head within a block.
    pub(crate) fn head_bytes(&self) -> usize {
        self.padded() * self.block * self.cell.bytes()
    }

    /// Bytes from a token to the next.
    pub(crate) fn token_stride(&self) -> usize {
        match self.order {
            Order::Dims => self.cell.bytes(),
            Order::Tokens => self.padded() * self.cell.bytes(),
        }
    }

    /// Bytes from a dimension to the next.
    pub(crate) fn dim_stride(&self) -> usize {
        match self.order {
            Order::Dims => self.block * self.cell.bytes(),
            Order::Tokens => self.cell.bytes(),
        }
    }
}

/// Shape of a paged cache: keys and values, or latents and rotated parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) k: PlaneShape,
    pub(crate) v: PlaneShape,
}

impl KvShape {
    /// Keys and values of `dim_k` and `dim_v`.
    pub(crate) fn standard(cell: Cell, block: usize, heads: usize, dims: [usize; 2]) -> Self {
        let plane = |order, dim| PlaneShape { cell, order, block, heads, dim };
        Self { k: plane(Order::Dims, dims[0]), v: plane(Order::Tokens, dims[1]) }
    }

    /// Latents and rotated parts.
    pub(crate) fn latent(elem: Elem, block: usize, dims: [usize; 2]) -> Self {
        let order = Order::Tokens;
        let plane = |dim| PlaneShape { cell: Cell::Float(elem), order, block, heads: 1, dim };
        Self { k: plane(dims[0]), v: plane(dims[1]) }
    }

    /// Whether this is a cache of latents.
    pub(crate) fn is_latent(&self) -> bool {
        self.k.order == Order::Tokens
    }
}

/// One plane in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plane {
    pub(crate) shape: PlaneShape,
    pub(crate) base: *mut u8,
    pub(crate) block_bytes: usize,
}

/// A paged cache in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    /// Blocks.
    pub(crate) blocks: usize,
    pub(crate) k: Plane,
    pub(crate) v: Plane,
}

// SAFETY: an address with a shape; its users keep the rules of reading and writing.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Plane {
    /// Writes a token's numbers, `x / scale` if they have 8 bits, and its padding.
    ///
    /// # Safety
    /// The slot and head are inside the plane and nobody else touches them; row 0 of `x` has the plane's
    /// dims.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd>(&self, s: S, slot: usize, head: usize, scale: f32, x: &Rows) {
        let shape = &self.shape;
        let at = slot / shape.block * self.block_bytes
            + head * shape.head_bytes()
            + slot % shape.block * shape.token_stride();
        let token = self.base.wrapping_add(at);
        for d in (0..shape.dim).step_by(LANES) {
            let to = token.wrapping_add(d * shape.dim_stride());
            // SAFETY: the caller's promise; rows are padded to whole vectors.
            unsafe {
                let v = x.load_upto(s, 0, d, shape.dim);
                match (shape.order, shape.cell) {
                    (Order::Tokens, Cell::Float(Elem::F32)) => s.store(to.cast(), v),
                    (Order::Tokens, Cell::Float(Elem::F16)) => s.store_f16(to.cast(), v),
                    (Order::Tokens, Cell::Float(Elem::Bf16)) => s.store_bf16(to.cast(), v),
                    _ => {
                        let v = s.to_array(v);
                        for (i, &x) in v.iter().enumerate().take(shape.padded() - d) {
                            shape.cell.write(to.wrapping_add(i * shape.dim_stride()), x, scale);
                        }
                    }
                }
            }
        }
    }
}

impl Cache {
    /// Copies a block over another.
    ///
    /// # Safety
    /// Both are below `blocks` and different; nobody else writes them.
    pub(crate) unsafe fn copy_block(&self, from: usize, to: usize) {
        for Plane { base, block_bytes: bytes, .. } in [self.k, self.v] {
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(base.add(from * bytes), base.add(to * bytes), bytes);
            }
        }
    }
}

/// A scale a head, for keys and for values; none is 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scales<'a> {
    pub(crate) k: Option<&'a [f32]>,
    pub(crate) v: Option<&'a [f32]>,
}

/// The scale of a head.
#[inline(always)]
pub(crate) fn scale_of(scales: Option<&[f32]>, head: usize) -> f32 {
    scales.map_or(1.0, |s| s[head])
}

/// A `[tokens, heads, dim]` tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Head 0: a row a token.
    pub(crate) rows: Rows,
    /// Bytes from a head to the next.
    pub(crate) head_stride: usize,
}

impl Heads {
    /// The rows of one head.
    #[inline(always)]
    pub(crate) fn head(&self, head: usize) -> Rows {
        Rows { base: self.rows.base.wrapping_add(head * self.head_stride), ..self.rows }
    }
}
