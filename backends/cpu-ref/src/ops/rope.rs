//! In place on dims `OFFSET..OFFSET + R`: the pair `(a, b)` becomes `(a cos_i - b sin_i, b cos_i + a sin_i)`.

use halyard_sdk::{
    Error, HostTensor, OpDesc, Result,
    abi::ops::{Sym, attrs::Rope, check::Bindings},
};

use crate::{glue::Args, rows};

pub(super) fn check(attrs: &Rope, _: &OpDesc<'_>, bindings: &Bindings) -> Result<()> {
    let (d, r) = (bindings.get(Sym::Dk).unwrap_or(-1), bindings.get(Sym::R).unwrap_or(-1));
    if d < 0 || r < 0 {
        return Err(Error::unsupported("rope: head and table widths must be fixed"));
    }
    let inside = attrs.offset >= 0 && attrs.offset.checked_add(r).is_some_and(|end| end <= d);
    if r % 2 != 0 || !inside {
        return Err(Error::invalid(format!(
            "rope: {r} dims from {} of a head of {d}, expected an even number inside the head",
            attrs.offset
        )));
    }
    Ok(())
}

pub(super) fn run(attrs: &Rope, args: &Args) -> Result<()> {
    let (q, k, pos, table) = (args.tensor(0)?, args.optional(1)?, args.tensor(2)?, args.tensor(3)?);
    let positions = rows::ints(&pos);
    for &p in positions.iter().filter(|&&p| p >= 0) {
        rows::checked("rope: pos", p, table.dim(0))?;
    }
    for (t, p) in positions.into_iter().enumerate() {
        let Ok(p) = usize::try_from(p) else { continue };
        let angles = rows::read(&table, &[p]);
        for x in [Some(&q), k.as_ref()].into_iter().flatten() {
            for head in 0..x.dim(1) {
                rotate(attrs, x, [t, head], &angles);
            }
        }
    }
    Ok(())
}

fn rotate(attrs: &Rope, x: &HostTensor, [t, head]: [usize; 2], angles: &[f64]) {
    let half = angles.len() / 2;
    let offset = usize::try_from(attrs.offset).expect("checked at prepare");
    for i in 0..half {
        let (first, second) = if attrs.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (cos, sin) = (angles[i], angles[half + i]);
        let (at_a, at_b) = ([t, head, offset + first], [t, head, offset + second]);
        let (a, b) = (x.get(&at_a), x.get(&at_b));
        x.set(&at_a, a * cos - b * sin);
        x.set(&at_b, b * cos + a * sin);
    }
}
