//! ROPE.

use std::ops::Range;

use halyard_sdk::{
    Error, Result,
    abi::ops::{Sym, attrs::Rope},
};

use super::args::{Args, Table};
use super::{Launch, Op, Prepared, checked_row, for_rows, same};
use crate::attention::Out;
use crate::elem::RowsMut;
use crate::isa;
use crate::simd::{LANES, Simd};

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Rope { interleaved, offset } = op.attrs()?;
    Ok(Prepared::tuned(Rotate::new(op, interleaved, offset)?))
}

/// The pair `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
#[derive(Clone, Copy)]
pub(super) struct Rotate {
    interleaved: bool,
    offset: usize,
    /// Pairs a head.
    half: usize,
}

impl Rotate {
    /// The rotation of an op with heads of `Dk` and a table of `R` columns.
    pub(super) fn new(op: &Op<'_>, interleaved: bool, offset: i64) -> Result<Self> {
        let (kind, d, r) = (op.desc.kind, op.dim(Sym::Dk), op.dim(Sym::R));
        if d < 0 || r < 0 {
            return Err(Error::unsupported(format!("{kind}: head and table widths must be fixed")));
        }
        Ok(Self { interleaved, offset: offset as usize, half: r as usize / 2 })
    }

    /// The table in a slot, in which every position that is not negative has a row.
    pub(super) fn table(&self, args: &Args<'_>, slot: usize, pos: &[i32]) -> Result<Table<f32>> {
        let table = args.table::<f32>(slot)?;
        same("table columns", table.cols, 2 * self.half)?;
        for &p in pos.iter().filter(|&&p| p >= 0) {
            checked_row("pos", i64::from(p), table.rows)?;
        }
        Ok(table)
    }
}

impl Launch for Rotate {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        // SAFETY: the host has checked the view.
        let pos: &[i32] = unsafe { args.slice(2)? };
        let table = self.table(args, 3, pos)?;
        for slot in [0, 1] {
            if args.optional(slot).is_none() {
                continue;
            }
            let (x, tokens, heads, dim) = args.heads_mut(slot)?;
            same("tokens", tokens, pos.len())?;
            if self.offset + 2 * self.half > dim {
                return Err(Error::invalid(format!("a head of {dim} dims")));
            }
            for_rows(&args.context.pool, tokens, heads * dim, |range| {
                let rows = RotateRows { rotate: *self, x, heads, pos, table, range };
                args.context.isa.dispatch(rows);
            });
        }
        Ok(())
    }
}

struct RotateRows<'a> {
    rotate: Rotate,
    x: Out,
    heads: usize,
    pos: &'a [i32],
    table: Table<f32>,
    range: Range<usize>,
}

impl isa::Op for RotateRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for t in self.range {
            let Ok(p) = usize::try_from(self.pos[t]) else { continue };
            // SAFETY: the position is inside the table, which the host has checked.
            let angles = unsafe { self.table.row(p) };
            for head in 0..self.heads {
                let base = self.x.rows.base.wrapping_add(head * self.x.head_stride);
                let x = RowsMut { base, ..self.x.rows };
                // SAFETY: the host has checked the view; the rotated dims are inside the head.
                unsafe { self.rotate.head(s, &x, t, angles) };
            }
        }
    }
}

impl Rotate {
    /// # Safety
    /// Row `t` of `x` is a head with the rotated dims.
    #[inline(always)]
    pub(super) unsafe fn head<S: Simd>(&self, s: S, x: &RowsMut, t: usize, angles: &[f32]) {
        let half = self.half;
        let mut i = 0;
        // SAFETY: the caller's promise; `angles` has `2 half` numbers.
        unsafe {
            if !self.interleaved {
                while i + LANES <= half {
                    let (first, second) = (self.offset + i, self.offset + half + i);
                    let rows = x.as_rows();
                    let (a, b) = (rows.load(s, t, first), rows.load(s, t, second));
                    let cos = s.load(angles.as_ptr().add(i));
                    let sin = s.load(angles.as_ptr().add(half + i));
                    let minus = s.sub(s.splat(0.0), s.mul(b, sin));
                    x.store_upto(s, t, first, usize::MAX, s.fma(a, cos, minus));
                    x.store_upto(s, t, second, usize::MAX, s.fma(b, cos, s.mul(a, sin)));
                    i += LANES;
                }
            }
            while i < half {
                let (first, second) =
                    if self.interleaved { (2 * i, 2 * i + 1) } else { (i, half + i) };
                let (first, second) = (self.offset + first, self.offset + second);
                let (a, b) = (x.as_rows().get(t, first), x.as_rows().get(t, second));
                let (cos, sin) = (angles[i], angles[half + i]);
                x.set(t, first, a * cos - b * sin);
                x.set(t, second, b * cos + a * sin);
                i += 1;
            }
        }
    }
}
