//! Rows of a weight in f32, whatever it is made of: what operators do not multiply as it is.

use halyard_sdk::Result;

use super::args::{Args, Kind, Place, scratch_bytes};
use crate::weights::{Form, Packed};

/// Bytes of rows that are widened at a time.
const WIDENED: i64 = 64 << 20;

/// Rows that are widened at a time.
pub(super) fn rows_at_a_time(w: &Packed) -> i64 {
    (WIDENED / 4 / w.k.max(1)).clamp(1, w.n.max(1))
}

/// Scratch bytes of [`rows`] of so many.
pub(super) fn row_bytes(w: &Packed, rows: i64) -> u64 {
    let wide = scratch_bytes(Kind::F32, &[rows, w.k]);
    match w.form {
        Form::Dense => wide,
        // Codes, and the scales.
        Form::Int8 => wide,
        Form::Int4 { .. } => 2 * wide + 2 * scratch_bytes(Kind::F32, &[rows, w.scales()]),
    }
}

/// Some rows of a group's matrix, f32 `[rows, k]`, in scratch memory.
pub(super) fn rows(
    args: &Args<'_>,
    w: &Packed,
    group: i64,
    (first, rows): (i64, i64),
) -> Result<Place> {
    let part = |start: u64, kind: Kind, width: i64| {
        let all = Place::contiguous(start, kind, &[w.groups * w.n, width]);
        all.slice(0, group * w.n + first, rows)
    };
    let floats = Kind::of(w.dtype)?;
    let scales = w.scales();
    match w.form {
        Form::Dense => args.cast(&part(w.start, floats, w.k), Kind::F32),
        Form::Int8 => {
            let codes = part(w.start, Kind::I8, w.k);
            let codes = match w.fractals() {
                // Its rows are in pieces of 32 columns, each for all rows before the next.
                Some([stripes, _, _, width]) => Place::contiguous(w.start, Kind::I8, &[w.n, width])
                    .slice(0, first, rows)
                    .seen(&[rows, stripes, width], &[width, w.n * width, 1]),
                None => codes,
            };
            let wide = args.cast(&codes, Kind::F32)?.reshaped(&[rows, w.k]);
            args.mul(&wide, &part(w.scale, Kind::F32, 1), &wide)?;
            Ok(wide)
        }
        Form::Int4 { group: size, offset, .. } => {
            let codes = part(w.start, Kind::U8, w.k / 2);
            let at = args.cast(&codes, Kind::I32)?.reshaped(&[rows * w.k / 2]);
            let table = Place::contiguous(w.codes, Kind::F32, &[256, 2]);
            let wide = args.scratch(Kind::F32, &[rows * w.k / 2, 2])?;
            super::index::select(args, &table, &at, &wide)?;
            let by_group = wide.reshaped(&[rows, scales, size]);
            if offset {
                let offsets = args.cast(&part(w.offset, floats, scales), Kind::F32)?;
                args.add_to(&by_group, &offsets.column())?;
            }
            let scale = args.cast(&part(w.scale, floats, scales), Kind::F32)?;
            args.mul(&by_group, &scale.column(), &by_group)?;
            Ok(wide.reshaped(&[rows, w.k]))
        }
    }
}

/// Inputs in the order of a group's columns: as they are, or rearranged in scratch memory, of [`scratch_bytes`] of theirs.
pub(super) fn arranged(args: &Args<'_>, w: &Packed, group: i64, x: &Place) -> Result<Place> {
    if !matches!(w.form, Form::Int4 { perm: true, .. }) {
        return Ok(x.clone());
    }
    let order = Place::contiguous(w.perm, Kind::I32, &[w.groups, w.k]);
    let order = order.slice(0, group, 1).reshaped(&[w.k]);
    let to = args.scratch(x.kind, &x.dims)?;
    let (from, order, out) = (args.tensor(x), args.tensor(&order), args.tensor(&to));
    enqueue!(args.on, IndexSelect(&from, 1, &order, &out))?;
    Ok(to)
}
