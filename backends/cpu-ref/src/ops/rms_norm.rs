//! With a residual `r`: `s = round(x + r)`, `r := s`; without: `s = x`.
//! `y = s rsqrt(mean(s²) + EPS) (gamma + PLUS_ONE)`.

use halyard_sdk::{HostTensor, Result, abi::ops::attrs::RmsNorm};

use crate::{glue::Args, rows};

pub(super) fn run(attrs: &RmsNorm, args: &Args) -> Result<()> {
    let (x, gamma, y, r) = (args.tensor(0)?, args.tensor(1)?, args.tensor(2)?, args.optional(3)?);
    let gamma = rows::read(&gamma, &[]);
    for lead in rows::leads(&x) {
        y.set_row(&lead, normed(attrs, &summed(&x, r.as_ref(), &lead), &gamma));
    }
    Ok(())
}

/// A row of `x`, added to the residual if there is one, which becomes the sum.
pub(super) fn summed(x: &HostTensor, r: Option<&HostTensor>, lead: &[usize]) -> Vec<f64> {
    let mut s = rows::read(x, lead);
    if let Some(r) = r {
        for (s, r_i) in s.iter_mut().zip(rows::read(r, lead)) {
            *s = r.rounded(*s + r_i);
        }
        r.set_row(lead, s.iter().copied());
    }
    s
}

/// The formula on one row.
pub(super) fn normed(attrs: &RmsNorm, s: &[f64], gamma: &[f64]) -> Vec<f64> {
    let one = if attrs.plus_one { 1.0 } else { 0.0 };
    let mean_square = rows::dot(s, s) / s.len() as f64;
    let scale = 1.0 / (mean_square + attrs.eps).sqrt();
    s.iter().zip(gamma).map(|(s, g)| s * scale * (g + one)).collect()
}
