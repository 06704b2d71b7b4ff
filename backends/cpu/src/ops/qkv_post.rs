//! QKV_POST: queries, keys and values taken apart, normalised, rotated, and the latter two into the cache.

use std::ops::Range;

use halyard_sdk::{
    Result,
    abi::ops::{Sym, attrs::QkvPost},
};

use super::args::{Args, Table};
use super::kv::{Named, cache_shape, open, scales, slots};
use super::norm::Norm;
use super::rope::Rotate;
use super::{Launch, Op, Prepared, for_rows, same};
use crate::attention::{MAX_DIM, Out};
use crate::elem::{Rows, RowsMut};
use crate::isa;
use crate::kv::{Cache, KvShape, Scales, scale_of};
use crate::simd::{LANES, Simd};

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let QkvPost { eps, plus_one, interleaved, offset } = op.attrs()?;
    let shape = cache_shape(op, Named::Standard, [7, 8], &[9, 10])?;
    let rotate = Rotate::new(op, interleaved, offset)?;
    let q_heads = usize::try_from(op.dim(Sym::Hq)).unwrap_or(0);
    let width = (q_heads + shape.k.heads) * shape.k.dim + shape.v.heads * shape.v.dim;
    Ok(Prepared::tuned(Post { norm: Norm::new(eps, plus_one), rotate, shape, q_heads, width }))
}

struct Post {
    norm: Norm,
    rotate: Rotate,
    shape: KvShape,
    q_heads: usize,
    /// Columns of a row.
    width: usize,
}

impl Launch for Post {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (qkv, tokens, width) = args.rows(0)?;
        // SAFETY: the host has checked the view.
        let pos: &[i32] = unsafe { args.slice(3)? };
        let table = self.rotate.table(args, 4, pos)?;
        let cache = open(args, self.shape, Named::Standard, [7, 8])?;
        let slots = slots(args, 5, &cache)?;
        let (q, q_tokens, q_heads, q_dim) = args.heads_mut(6)?;
        for (what, a, b) in [
            ("columns", width, self.width),
            ("tokens", pos.len(), tokens),
            ("tokens", slots.len(), tokens),
            ("tokens", q_tokens, tokens),
            ("heads", q_heads, self.q_heads),
            ("query dims", q_dim, self.shape.k.dim),
        ] {
            same(what, a, b)?;
        }
        let gamma = |slot: usize| -> Result<Option<Rows>> {
            let Some(_) = args.optional(slot) else { return Ok(None) };
            let (gamma, dim) = args.vector(slot)?;
            same("columns of a norm", dim, self.shape.k.dim)?;
            Ok(Some(gamma))
        };
        let gammas = [gamma(1)?, gamma(2)?];
        let scales = scales(args, [9, 10], self.shape.k.heads)?;
        for_rows(&args.context.pool, tokens, 2 * width, |range| {
            let post = self;
            args.context.isa.dispatch(PostRows {
                post,
                qkv,
                gammas,
                pos,
                table,
                slots,
                q,
                cache,
                scales,
                range,
            });
        });
        Ok(())
    }
}

/// Some tokens of a launch whose sizes, positions and slots are checked.
struct PostRows<'a> {
    post: &'a Post,
    qkv: Rows,
    /// For queries and keys.
    gammas: [Option<Rows>; 2],
    pos: &'a [i32],
    table: Table<f32>,
    slots: &'a [i64],
    q: Out,
    cache: Cache,
    scales: Scales<'a>,
    range: Range<usize>,
}

impl isa::Op for PostRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for t in self.range.clone() {
            let slot = usize::try_from(self.slots[t]).ok();
            // SAFETY: the launch has checked sizes, positions and slots, the host the views.
            unsafe { self.token(s, t, slot) };
        }
    }
}

impl PostRows<'_> {
    /// # Safety
    /// The token exists, and nobody else has it.
    #[inline(always)]
    unsafe fn token<S: Simd>(&self, s: S, t: usize, slot: Option<usize>) {
        let KvShape { k, v } = self.post.shape;
        let q_heads = self.post.q_heads;
        let columns = |from: usize| {
            let row = self.qkv.row(t);
            Rows { base: row.base.wrapping_add(from * row.col_stride), ..row }
        };
        let mut numbers = [0.0; MAX_DIM];
        let head = RowsMut::dense(numbers.as_mut_ptr(), k.dim);
        for h in 0..q_heads + k.heads {
            let x = columns(h * k.dim);
            // SAFETY: the caller's promise.
            unsafe {
                if h < q_heads {
                    self.turn(s, &x, self.gammas[0].as_ref(), t, &head);
                    let q = self.q.head(h);
                    for d in (0..k.dim).step_by(LANES) {
                        let x = head.as_rows().load_upto(s, 0, d, k.dim);
                        q.store_upto(s, t, d, k.dim, x);
                    }
                } else if let Some(slot) = slot {
                    self.turn(s, &x, self.gammas[1].as_ref(), t, &head);
                    let scale = scale_of(self.scales.k, h - q_heads);
                    self.cache.k.put(s, slot, h - q_heads, scale, &head.as_rows());
                }
            }
        }
        let Some(slot) = slot else { return };
        for h in 0..v.heads {
            let x = columns((q_heads + k.heads) * k.dim + h * v.dim);
            // SAFETY: the caller's promise.
            unsafe { self.cache.v.put(s, slot, h, scale_of(self.scales.v, h), &x) };
        }
    }

    /// A head's numbers, normalised and rotated, to `to`.
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, s: S, x: &Rows, gamma: Option<&Rows>, t: usize, to: &RowsMut) {
        let dim = self.post.shape.k.dim;
        // SAFETY: the caller's promise; a position is inside the table.
        unsafe {
            match gamma {
                Some(gamma) => self.post.norm.row(s, x, gamma, to, dim),
                None => {
                    for d in (0..dim).step_by(LANES) {
                        to.store_upto(s, 0, d, dim, x.load_upto(s, 0, d, dim));
                    }
                }
            }
            if let Ok(p) = usize::try_from(self.pos[t]) {
                self.post.rotate.head(s, to, 0, self.table.row(p));
            }
        }
    }
}
