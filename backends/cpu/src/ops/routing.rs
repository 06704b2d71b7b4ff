//! Which tokens each expert gets, and the sum of what comes back.
//!
//! A *visit* is a token's `j`-th expert. Visits are sorted by expert, so that each expert's weights are read once.

use std::ops::Range;

use halyard_sdk::{Error, Result};

use super::args::Table;
use super::for_rows;
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::isa;
use crate::simd::{LANES, Simd};

/// The experts that are here: ids `start..start + experts`.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) start: i64,
    pub(super) experts: usize,
}

/// Visits of `tokens` tokens with `top` experts each.
///
/// # Errors
/// `INVALID_ARGUMENT` if an i32 cannot count them.
pub(super) fn visits(tokens: usize, top: usize) -> Result<usize> {
    tokens
        .checked_mul(top)
        .filter(|&visits| i32::try_from(visits).is_ok())
        .ok_or_else(|| Error::invalid(format!("{tokens} tokens of {top} experts are too many")))
}

impl Slice {
    /// The place of an id in the slice.
    fn local(&self, id: i32) -> Option<usize> {
        let local = i64::from(id).checked_sub(self.start).filter(|_| id >= 0)?;
        usize::try_from(local).ok().filter(|&e| e < self.experts)
    }

    /// Sorts visits by expert, then token, then `j` (a counting sort): those of expert `e` are `offsets[e]..offsets[e + 1]`.
    /// `place[t, j]` becomes a visit's number, -1 if its expert is not here.
    ///
    /// # Safety
    /// `ids` and `place` have the same rows and columns, no more than [`visits`] allows; `offsets` has a number an expert, and one.
    pub(super) unsafe fn sort(&self, ids: &Table<i32>, offsets: &mut [i32], place: &Table<i32>) {
        offsets.fill(0);
        // SAFETY: the caller's promise, here and below.
        let row = |t: usize| unsafe { ids.row(t) };
        for t in 0..ids.rows {
            for e in row(t).iter().filter_map(|&id| self.local(id)) {
                offsets[e + 1] += 1;
            }
        }
        for e in 0..self.experts {
            offsets[e + 1] += offsets[e];
        }
        // `offsets[e]` walks to the end of expert `e` while its visits are placed.
        for t in 0..ids.rows {
            // SAFETY: the caller's promise.
            let place = unsafe { place.row_mut(t) };
            for (at, &id) in place.iter_mut().zip(row(t)) {
                *at = self.local(id).map_or(-1, |e| {
                    offsets[e] += 1;
                    offsets[e] - 1
                });
            }
        }
        offsets.copy_within(0..self.experts, 1);
        offsets[0] = 0;
    }
}

/// `y[t] = add[t] + Σ_j weight[t, j] yp[place[t, j]]`, ascending `j`; a negative place adds nothing, no weights are ones.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) yp: Rows,
    pub(super) place: Table<i32>,
    pub(super) weight: Option<Table<f32>>,
    pub(super) add: Option<Rows>,
    pub(super) y: RowsMut,
    /// Columns.
    pub(super) h: usize,
}

impl Sum {
    /// Computes all rows.
    ///
    /// # Safety
    /// `place`, `weight`, `add` and `y` have a row a token, `yp` one for each place; nobody else touches `y`.
    pub(super) unsafe fn run(&self, context: &Context) {
        let cost = (self.place.cols + 1) * self.h;
        for_rows(&context.pool, self.place.rows, cost, |rows| {
            context.isa.dispatch(SumRows { sum: self, rows });
        });
    }
}

/// Some rows; only made in [`Sum::run`].
struct SumRows<'a> {
    sum: &'a Sum,
    rows: Range<usize>,
}

impl isa::Op for SumRows<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Sum { yp, place, weight, add, y, h } = self.sum;
        for t in self.rows {
            // SAFETY: promised to `Sum::run`.
            let (places, weights) = unsafe { (place.row(t), weight.as_ref().map(|w| w.row(t))) };
            for col in (0..*h).step_by(LANES) {
                // SAFETY: as above.
                unsafe {
                    let mut v = add.map_or(s.splat(0.0), |a| a.load_upto(s, t, col, *h));
                    for (j, &at) in places.iter().enumerate() {
                        let Ok(at) = usize::try_from(at) else { continue };
                        let weight = weights.map_or(1.0, |w| w[j]);
                        v = s.fma(yp.load_upto(s, at, col, *h), s.splat(weight), v);
                    }
                    y.store_upto(s, t, col, *h, v);
                }
            }
        }
    }
}
