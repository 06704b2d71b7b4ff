//! In place on dims `OFFSET..OFFSET + R`: the pair `(a, b)` becomes `(a cos_i - b sin_i, b cos_i + a sin_i)`.

use halyard_sdk::{HostTensor, Result, abi::ops::attrs::Rope};

use crate::{glue::Args, rows};

pub(super) fn run(attrs: &Rope, args: &Args) -> Result<()> {
    let (q, k) = (args.tensor(0)?, args.optional(1)?);
    let angles = angles("rope", &args.tensor(2)?, &args.tensor(3)?)?;
    for (t, angles) in angles.into_iter().enumerate() {
        let Some(angles) = angles else { continue };
        for x in [Some(&q), k.as_ref()].into_iter().flatten() {
            for head in 0..x.dim(1) {
                let mut row = rows::read(x, &[t, head]);
                rotate(attrs, &mut row, &angles);
                x.set_row(&[t, head], row);
            }
        }
    }
    Ok(())
}

/// The table's row for each position, checked; `None` for a negative one.
pub(super) fn angles(
    op: &str,
    pos: &HostTensor,
    table: &HostTensor,
) -> Result<Vec<Option<Vec<f64>>>> {
    let what = format!("{op}: pos");
    let row = |p| Ok(rows::read(table, &[rows::checked(&what, p, table.dim(0))?]));
    rows::ints(pos).into_iter().map(|p| (p >= 0).then(|| row(p)).transpose()).collect()
}

/// The formula on one head.
pub(super) fn rotate(attrs: &Rope, x: &mut [f64], angles: &[f64]) {
    let half = angles.len() / 2;
    let offset = usize::try_from(attrs.offset).expect("the host checked it");
    for i in 0..half {
        let (first, second) = if attrs.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (cos, sin) = (angles[i], angles[half + i]);
        let (a, b) = (x[offset + first], x[offset + second]);
        x[offset + first] = a * cos - b * sin;
        x[offset + second] = b * cos + a * sin;
    }
}
