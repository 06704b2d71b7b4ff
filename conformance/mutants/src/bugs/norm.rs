//! RMS_NORM.

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use super::elementwise::{packed, through};
use crate::{
    call::Call,
    mutant::{Mutant, bug},
};

const NORM: OpKind = OpKind::RMS_NORM;

/// The mean of squares of each row of `s`, a row's elements counted as `count`.
fn mean_squares(s: &[f64], width: usize, count: f64) -> Vec<f64> {
    s.chunks(width.max(1)).map(|row| row.iter().map(|v| v * v).sum::<f64>() / count).collect()
}

/// What is normalised: the sum if there is a residual.
fn summed(c: &Call<'_>) -> Vec<f64> {
    c.floats(if c.has("r") { "r" } else { "x" })
}

/// Runs, then scales each row of `y` as if `1 / root` had been another one.
fn with_root(
    c: &Call<'_>,
    count: impl Fn(usize) -> usize,
    root: impl Fn(f64, f64) -> f64,
) -> halyard_sdk::Result<()> {
    let (eps, width) = (c.float(AttrKey::EPS), c.width("x"));
    // In place, x is gone after the run; with a residual it is wanted after it.
    let x = c.floats("x");
    c.run()?;
    let s = if c.has("r") { summed(c) } else { x };
    let right = mean_squares(&s, width, width as f64);
    let wrong = mean_squares(&s, width, count(width) as f64);
    c.map("y", |i, y| y * (right[i / width] + eps).sqrt() / root(wrong[i / width], eps));
    Ok(())
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("norm_eps_dropped", NORM, "the norm divides by the root mean square alone")
        .desc(|d| d.set_float(AttrKey::EPS, |_| 1e-12)),
    bug("norm_eps_outside_root", NORM, "EPS is added to the root")
        .launch(|c| with_root(c, |n| n, |mean, eps| mean.sqrt() + eps)),
    bug("norm_eps_is_default", NORM, "EPS is 1e-6 whatever is asked for")
        .desc(|d| d.set_float(AttrKey::EPS, |_| 1e-6)),
    bug("norm_padded_mean", NORM, "the mean counts the columns of whole vectors")
        .launch(|c| with_root(c, |n| n.next_multiple_of(8), |mean, eps| (mean + eps).sqrt())),
    bug("norm_mean_removed", NORM, "a layer norm: the mean is taken off first").launch(|c| {
        let (x, width) = (c.floats("x"), c.width("x"));
        let mean = |i: usize| {
            let row = &x[i / width * width..][..width];
            row.iter().sum::<f64>() / width as f64
        };
        c.edit().map("x", |i, v| if width > 1 { v - mean(i) } else { v }).run()
    }),
    bug("norm_plus_one_ignored", NORM, "PLUS_ONE is ignored")
        .desc(|d| d.set(AttrKey::PLUS_ONE, |_| 0)),
    bug("norm_gamma_shifted", NORM, "gamma is read one element late").launch(|c| {
        let gamma = c.floats("gamma");
        c.edit().map("gamma", |i, _| gamma[(i + 1) % gamma.len()]).run()
    }),
    bug("norm_gamma_in_bf16", NORM, "gamma is rounded to bf16")
        .launch(|c| c.edit().map("gamma", |_, g| through(DType::BF16, g)).run()),
    bug("norm_residual_kept", NORM, "the sum is not written back to r").launch(|c| {
        if !c.has("r") {
            return c.run();
        }
        let r = c.floats("r");
        c.run()?;
        c.write("r", &r);
        Ok(())
    }),
    bug("norm_residual_is_output", NORM, "r gets the normalised values").launch(|c| {
        c.run()?;
        if c.has("r") {
            c.write("r", &c.floats("y"));
        }
        Ok(())
    }),
    bug("norm_overflows_in_f16", NORM, "squares are summed in f16").launch(|c| {
        let (x, width) = (c.floats("x"), c.width("x"));
        let half = c.dtype("x") == DType::F16;
        let sums = mean_squares(&x, width, 1.0);
        c.then("y", |i, y| if half && sums[i / width] > 65504.0 { 0.0 } else { y })
    }),
    bug("norm_input_is_scratch", NORM, "the input serves as scratch")
        .told("x was changed, although the op only reads it")
        .launch(|c| {
            c.run()?;
            let y = c.floats("y");
            if !c.has("r") {
                c.map("x", |i, x| if i == 0 { y[0] } else { x });
            }
            Ok(())
        }),
    bug("norm_ignores_residual_strides", NORM, "the residual is taken to be packed")
        .launch(|c| if c.has("r") { c.edit().view("r", packed).run() } else { c.run() }),
    bug("norm_heads_as_one", NORM, "a row of several heads has one norm").launch(|c| {
        let (x, dims, width) = (c.floats("x"), c.dims("x"), c.width("x"));
        c.run()?;
        if dims.len() == 3 && !c.has("r") {
            let mean = mean_squares(&x, width, width as f64);
            let heads = dims[1];
            let all = |row: usize| {
                mean[row / heads * heads..][..heads].iter().sum::<f64>() / heads as f64
            };
            c.map("y", |i, y| y * (mean[i / width] / all(i / width)).sqrt());
        }
        Ok(())
    }),
    bug("norm_nan_spreads", NORM, "one NaN spoils every row").launch(|c| {
        let bad = c.floats("x").iter().any(|v| v.is_nan());
        c.then("y", |_, y| if bad { f64::NAN } else { y })
    }),
];
