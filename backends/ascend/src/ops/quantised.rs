//! Products with weights in codes, with inputs quantised on the way or as they are.

use halyard_sdk::{DType, Result};

use super::{
    Op,
    args::{Args, Kind, Place},
    widen::arranged,
};
use crate::{
    driver::{self, NO_TENSOR},
    weights::{Form, Packed},
};

/// Sides that `WeightQuantBatchMatmulV2` takes.
const MAX_SIDE: i64 = 65535;

/// Refuses a release without the operators of [`both`].
pub(super) fn check(op: &Op<'_>) -> Result<()> {
    let found = &driver::start()?.operators;
    let product = found.QuantMatmulV5.is_some() || found.QuantMatmulV4.is_some();
    if product && found.DynamicQuant.is_some() {
        return Ok(());
    }
    Err(op.refuse("the installed CANN has no aclnnDynamicQuant or aclnnQuantMatmulV4"))
}

/// Whether [`weight_only`] takes a weight with inputs of a type.
///
/// Its scales have the type of the inputs. Those of groups must be so, since what rounding them loses does not go with the sum. One of a row may
/// be rounded: all of the sum is off by at most half a unit in the last place then, and its rounding by one. f16 has not the range for it.
pub(super) fn takes(w: &Packed, x: DType) -> bool {
    let there = driver::start().is_ok_and(|d| d.operators.WeightQuantBatchMatmulV2.is_some());
    let fits = match w.form {
        Form::Dense => false,
        Form::Int8 => x == DType::BF16,
        Form::Int4 { group, .. } => {
            w.dtype == x && (group == w.k || group % 32 == 0 && (32..w.k).contains(&group))
        }
    };
    there && fits && w.n <= MAX_SIDE && w.k <= MAX_SIDE
}

fn packed(args: &Args<'_>, x: &Place) -> Result<Place> {
    if x.is_contiguous() { Ok(x.clone()) } else { args.cast(x, x.kind) }
}

/// Where an operator writes that wants no gaps.
fn result(args: &Args<'_>, y: &Place) -> Result<Place> {
    if y.is_contiguous() { Ok(y.clone()) } else { args.scratch(y.kind, &y.dims) }
}

/// Puts a result where it belongs.
fn finish(args: &Args<'_>, y: &Place, out: &Place) -> Result<()> {
    if y.is_contiguous() { Ok(()) } else { args.copy(y, out) }
}

/// `y = round(x / s) s Wᵀ + bias` with a scale a row of `x`, rounded once.
pub(super) fn both(
    args: &Args<'_>,
    x: &Place,
    w: &Packed,
    (bias, y): (Option<&Place>, &Place),
) -> Result<()> {
    let (rows, out) = (x.dims[0], result(args, y)?);
    let (codes, scales) = (args.scratch(Kind::I8, &x.dims)?, args.scratch(Kind::F32, &[rows])?);
    args.quantise(&packed(args, x)?, &codes, &scales)?;
    let weight = args.tensor(&Place::contiguous(w.start, Kind::I8, &[w.n, w.k]));
    let weight = weight.stored(w.fractals());
    let columns = args.tensor(&Place::contiguous(w.scale, Kind::F32, &[w.n]));
    let bias = bias.map(|b| args.cast(b, Kind::F32)).transpose()?.map(|b| args.tensor(&b));
    let bias = bias.as_ref();
    let (codes, scales, to) = (args.tensor(&codes), args.tensor(&scales), args.tensor(&out));
    let (x, weight, to) = (&codes, &weight, &to);
    let (columns, scales, no) = (&columns, &scales, NO_TENSOR);
    if w.fractals().is_some() {
        #[rustfmt::skip]
        enqueue!(args.on, QuantMatmulWeightNz(
            x, weight, scales, columns, no, no, no, no, bias, false, true, 0, to,
        ))?;
    } else if args.on.driver().operators.QuantMatmulV5.is_some() {
        #[rustfmt::skip]
        enqueue!(args.on, QuantMatmulV5(
            x, weight, scales, columns, no, no, no, no, bias, false, true, 0, to,
        ))?;
    } else {
        enqueue!(args.on, QuantMatmulV4(x, weight, columns, no, scales, bias, false, true, to))?;
    }
    finish(args, y, &out)
}

/// `y = x Wᵀ + bias` with a weight that [`takes`] takes.
pub(super) fn weight_only(
    args: &Args<'_>,
    x: &Place,
    w: &Packed,
    (bias, y): (Option<&Place>, &Place),
) -> Result<()> {
    let (x, out) = (packed(args, &arranged(args, w, 0, x)?)?, result(args, y)?);
    let scales = w.scales();
    // Transposed: columns of the operator's matrix are the rows here.
    let by_column = |start: u64, kind: Kind, width: i64| {
        args.tensor(&Place::contiguous(start, kind, &[w.n, width]).exchanged(0, 1))
    };
    let (codes, scale, offset, group) = match w.form {
        Form::Int4 { group, offset, .. } => {
            let offset = offset.then(|| by_column(w.offset, x.kind, scales));
            // One scale a row is the operator's form without groups.
            let group = if group == w.k { 0 } else { group as i32 };
            (Kind::I4, w.scale, offset, group)
        }
        _ => (Kind::I8, w.rounded, None, 0),
    };
    let codes = by_column(w.start, codes, w.k).stored(w.fractals());
    let scale = by_column(scale, x.kind, scales);
    let offset = offset.as_ref();
    let wanted = if x.kind == Kind::of(DType::BF16)? { Kind::F32 } else { x.kind };
    let bias = bias.map(|b| args.cast(b, wanted)).transpose()?.map(|b| args.tensor(&b));
    let bias = bias.as_ref();
    let (x, to, no) = (args.tensor(&x), args.tensor(&out), NO_TENSOR);
    let (x, codes, scale, to) = (&x, &codes, &scale, &to);
    enqueue!(args.on, WeightQuantBatchMatmulV2(x, codes, scale, offset, no, no, bias, group, to))?;
    finish(args, y, &out)
}
