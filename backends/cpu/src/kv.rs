//! The paged cache's arrangement, and what writes it.
//!
//! A block of the key cache is `[heads, dim_k, block]`: the same dimension of neighbouring tokens lies
//! together, so that sixteen keys are scored at once without summing across lanes. A block of the value
//! cache is `[heads, block, dim_v]`, with `dim_v` padded to whole vectors by zeros.

use crate::elem::{Elem, Rows};
use crate::isa::{Isa, Op};
use crate::pool::Pool;
use crate::simd::{LANES, Simd};

/// Shape of a paged cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) elem: Elem,
    /// Tokens a block.
    pub(crate) block: usize,
    pub(crate) heads: usize,
    pub(crate) dim_k: usize,
    pub(crate) dim_v: usize,
}

impl KvShape {
    /// `dim_v` padded to whole vectors.
    pub(crate) fn padded_v(&self) -> usize {
        self.dim_v.next_multiple_of(LANES)
    }

    /// Bytes of a block of keys; `None` if they overflow.
    pub(crate) fn k_block_bytes(&self) -> Option<usize> {
        let elements = self.heads.checked_mul(self.dim_k)?.checked_mul(self.block)?;
        elements.checked_mul(self.elem.bytes())
    }

    /// Bytes of a block of values; `None` if they overflow.
    pub(crate) fn v_block_bytes(&self) -> Option<usize> {
        let padded = self.dim_v.checked_next_multiple_of(LANES)?;
        let elements = self.heads.checked_mul(padded)?.checked_mul(self.block)?;
        elements.checked_mul(self.elem.bytes())
    }
}

/// A paged cache in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    pub(crate) shape: KvShape,
    /// Blocks.
    pub(crate) blocks: usize,
    pub(crate) k: *mut u8,
    pub(crate) v: *mut u8,
    pub(crate) k_block_bytes: usize,
    pub(crate) v_block_bytes: usize,
}

// SAFETY: an address with a shape; its users keep the rules of reading and writing.
unsafe impl Send for Cache {}
// SAFETY: as above.
unsafe impl Sync for Cache {}

impl Cache {
    /// Dimension 0 of the first key of a block's head.
    ///
    /// # Safety
    /// `block < blocks` and `head < heads`.
    #[inline(always)]
    pub(crate) unsafe fn keys(&self, block: usize, head: usize) -> *mut u8 {
        let s = &self.shape;
        // SAFETY: the caller's promise.
        unsafe {
            self.k.add(block * self.k_block_bytes + head * s.dim_k * s.block * s.elem.bytes())
        }
    }

    /// The first value of a block's head.
    ///
    /// # Safety
    /// `block < blocks` and `head < heads`.
    #[inline(always)]
    pub(crate) unsafe fn values(&self, block: usize, head: usize) -> *mut u8 {
        let s = &self.shape;
        // SAFETY: the caller's promise.
        unsafe {
            self.v.add(block * self.v_block_bytes + head * s.block * s.padded_v() * s.elem.bytes())
        }
    }

    /// Copies a block over another.
    ///
    /// # Safety
    /// Both are below `blocks` and different; nobody else writes them.
    pub(crate) unsafe fn copy_block(&self, from: usize, to: usize) {
        for (base, bytes) in [(self.k, self.k_block_bytes), (self.v, self.v_block_bytes)] {
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(base.add(from * bytes), base.add(to * bytes), bytes);
            }
        }
    }
}

/// New keys and values and where they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvWrite<'a> {
    pub(crate) cache: Cache,
    /// Row `t * heads + h` is head `h` of token `t`, if `heads_stride` is one row; see `row`.
    pub(crate) k: Heads,
    pub(crate) v: Heads,
    /// Slot of each token; negative ones are skipped, others are inside the cache.
    pub(crate) slots: &'a [i64],
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

/// Tokens a task writes: about as much work as waking a thread.
const TOKENS_PER_TASK: usize = 16;

impl KvWrite<'_> {
    /// Writes all tokens.
    ///
    /// # Safety
    /// The tensors span a row a slot and the cache's heads and dims; every slot that is not negative is
    /// inside the cache, none twice.
    pub(crate) unsafe fn run(&self, isa: Isa, pool: &Pool) {
        let tokens = self.slots.len();
        pool.run(tokens.div_ceil(TOKENS_PER_TASK), &|task| {
            let start = task * TOKENS_PER_TASK;
            let end = (start + TOKENS_PER_TASK).min(tokens);
            isa.dispatch(WriteTokens { write: self, start, end });
        });
    }
}

struct WriteTokens<'a> {
    write: &'a KvWrite<'a>,
    start: usize,
    end: usize,
}

impl Op for WriteTokens<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (w, shape) = (self.write, self.write.cache.shape);
        let es = shape.elem.bytes();
        for t in self.start..self.end {
            let Ok(slot) = usize::try_from(w.slots[t]) else { continue };
            let (block, offset) = (slot / shape.block, slot % shape.block);
            for head in 0..shape.heads {
                // SAFETY: promised to `KvWrite::run`; offsets are inside the block.
                unsafe {
                    let keys = w.cache.keys(block, head).add(offset * es);
                    put_key(s, &w.k.head(head), t, &shape, keys);
                    let value = w.cache.values(block, head).add(offset * shape.padded_v() * es);
                    put_value(s, &w.v.head(head), t, &shape, value);
                }
            }
        }
    }
}

/// Scatters one key: its dimensions are `block` elements apart.
///
/// # Safety
/// As [`KvWrite::run`].
#[inline(always)]
unsafe fn put_key<S: Simd>(s: S, k: &Rows, t: usize, shape: &KvShape, to: *mut u8) {
    let stride = shape.block * shape.elem.bytes();
    for d in (0..shape.dim_k).step_by(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let v = s.to_array(k.load_upto(s, t, d, shape.dim_k));
            for (i, &x) in v.iter().enumerate().take(shape.dim_k - d) {
                shape.elem.write(to.add((d + i) * stride), x);
            }
        }
    }
}

/// Writes one value and its padding.
///
/// # Safety
/// As [`KvWrite::run`].
#[inline(always)]
unsafe fn put_value<S: Simd>(s: S, v: &Rows, t: usize, shape: &KvShape, to: *mut u8) {
    let es = shape.elem.bytes();
    for d in (0..shape.dim_v).step_by(LANES) {
        // SAFETY: the caller's promise; rows are padded to whole vectors.
        unsafe {
            let x = v.load_upto(s, t, d, shape.dim_v);
            let p = to.add(d * es);
            match shape.elem {
                Elem::F32 => s.store(p.cast(), x),
                Elem::F16 => s.store_f16(p.cast(), x),
                Elem::Bf16 => s.store_bf16(p.cast(), x),
            }
        }
    }
}
