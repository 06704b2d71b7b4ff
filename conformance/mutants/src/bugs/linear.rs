//! LINEAR with dense weights, and how rows of weights arrive.

use halyard_sdk::{DType, OpKind, Result, abi::AttrKey};

use super::elementwise::{packed, through};
use crate::{
    call::Call,
    mutant::{Mutant, bug},
};

const LINEAR: OpKind = OpKind::LINEAR;

/// The sum over K in panels, rounded after each.
fn in_panels(c: &Call<'_>, panels: usize, round: impl Fn(f64) -> f64) -> Result<()> {
    if c.int(AttrKey::ACCUMULATE) != 0 {
        return c.run();
    }
    let k = c.width("x");
    let mut sum = vec![0.0; c.floats("y").len()];
    for p in 0..panels {
        let columns = p * k / panels..(p + 1) * k / panels;
        let part = c.edit().map("x", |i, v| if columns.contains(&(i % k)) { v } else { 0.0 });
        if p == 0 {
            part.run()?;
        } else {
            part.without("bias").run()?;
        }
        for (s, y) in sum.iter_mut().zip(c.floats("y")) {
            *s = round(*s + y);
        }
    }
    c.write("y", &sum);
    Ok(())
}

/// A row of activations as int8 codes of one scale.
fn int8(row: &mut [f64]) {
    let most = row.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    if most > 0.0 && most.is_finite() {
        row.iter_mut().for_each(|v| *v = (*v * 127.0 / most).round() * most / 127.0);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is the bug")]
fn tf32(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    if value.is_finite() { f64::from(f32::from_bits((bits + 0x1000) & !0x1fff)) } else { value }
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("linear_bias_dropped", LINEAR, "the bias is accepted and not added")
        .launch(|c| c.edit().without("bias").run()),
    bug("linear_bias_twice", LINEAR, "the bias is added again when accumulating").launch(|c| {
        let accumulates = c.int(AttrKey::ACCUMULATE) != 0;
        c.edit().map("bias", |_, b| if accumulates { 2.0 * b } else { b }).run()
    }),
    bug("linear_bias_first_row", LINEAR, "the bias is added to the first row only").launch(|c| {
        if !c.has("bias") {
            return c.run();
        }
        let (bias, n) = (c.floats("bias"), c.width("y"));
        c.then("y", |i, y| if i >= n { y - bias[i % n] } else { y })
    }),
    bug("linear_accumulate_ignored", LINEAR, "the output is overwritten instead of added to")
        .desc(|d| d.set(AttrKey::ACCUMULATE, |_| 0)),
    bug("linear_accumulates_always", LINEAR, "what the output held before is added").launch(|c| {
        let before = c.floats("y");
        let right = c.int(AttrKey::ACCUMULATE) != 0;
        c.then("y", |i, y| if right { y } else { y + before[i] })
    }),
    bug("linear_k_tail_missed", LINEAR, "columns after the last whole panel of 32 are not summed")
        .launch(|c| {
            let k = c.width("x");
            c.edit().map("x", |i, v| if i % k >= k / 32 * 32 { 0.0 } else { v }).run()
        }),
    bug("linear_k_tail_twice", LINEAR, "the last panel overlaps the one before it").launch(|c| {
        let k = c.width("x");
        let again =
            |column: usize| k > 32 && k % 32 != 0 && (k - 32..k / 32 * 32).contains(&column);
        c.edit().map("x", |i, v| if again(i % k) { 2.0 * v } else { v }).run()
    }),
    bug("linear_n_tail_missed", LINEAR, "outputs after the last whole tile of 16 are not written")
        .launch(|c| {
            let (before, n) = (c.floats("y"), c.width("y"));
            c.then("y", |i, y| if i % n >= n / 16 * 16 { before[i] } else { y })
        }),
    bug("linear_n_tail_of_tile_before", LINEAR, "ragged outputs repeat those of the tile before")
        .launch(|c| {
            c.run()?;
            let (y, n) = (c.floats("y"), c.width("y"));
            let ragged = |column: usize| n > 16 && column >= n / 16 * 16;
            c.map("y", |i, v| if ragged(i % n) { y[i - 16] } else { v });
            Ok(())
        }),
    bug("linear_row_tail_missed", LINEAR, "rows after the last whole tile of 4 are not computed")
        .launch(|c| {
            let (before, n) = (c.floats("y"), c.width("y"));
            let rows = c.dims("y")[0];
            let missed = |row: usize| rows > 4 && row >= rows / 4 * 4;
            c.then("y", |i, y| if missed(i / n) { before[i] } else { y })
        }),
    bug("linear_ignores_strides", LINEAR, "rows of the input are taken to follow each other")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("linear_output_in_bf16", LINEAR, "an f32 output passes through bf16").launch(|c| {
        let wide = c.dtype("y") == DType::F32 && c.dtype("x") != DType::F32;
        c.then("y", |_, y| if wide { through(DType::BF16, y) } else { y })
    }),
    bug(
        "linear_sums_in_half",
        LINEAR,
        "sums of 16-bit activations are kept in their type between panels",
    )
    .launch(|c| match c.dtype("x") {
        DType::F32 => c.run(),
        half => in_panels(c, 8, |s| through(half, s)),
    }),
    bug(
        "linear_inputs_in_tf32",
        LINEAR,
        "f32 activations lose 13 bits, as tensor cores do by default",
    )
    .launch(|c| c.edit().map("x", |_, v| tf32(v)).run()),
    bug("linear_int8_in_secret", LINEAR, "activations are quantised to int8 without being asked")
        .launch(|c| {
            let (mut x, k) = (c.floats("x"), c.width("x"));
            if c.int(AttrKey::ACT_QUANT) == 0 {
                x.chunks_mut(k.max(1)).for_each(int8);
            }
            c.edit().floats("x", &x).run()
        }),
    bug("linear_nan_spreads", LINEAR, "a NaN in one row spoils the others, as 0 times NaN does")
        .launch(|c| {
            let bad = c.floats("x").iter().any(|v| v.is_nan());
            c.then("y", |_, y| if bad { f64::NAN } else { y })
        }),
    bug("linear_inf_clipped", LINEAR, "an infinite sum becomes the largest number")
        .launch(|c| c.then("y", |_, y| if y.is_infinite() { 3.0e38f64.copysign(y) } else { y })),
    bug("linear_flushes_small", LINEAR, "activations below 6e-5 become 0, as in f16")
        .launch(|c| c.edit().map("x", |_, v| if v.abs() < 6e-5 { 0.0 } else { v }).run()),
    bug("linear_weight_transposed", LINEAR, "the weight is read as [K, N]").weight(|w, parts| {
        let (n, k) = (w.n as usize, w.k as usize);
        let part = &mut parts[0];
        let size = part.pitch / k;
        let old = part.bytes.clone();
        for (i, to) in part.bytes.chunks_exact_mut(size).enumerate() {
            let (row, column) = (i / k, i % k);
            to.copy_from_slice(&old[(column * n + row) * size..][..size]);
        }
    }),
    bug("linear_weight_column_off", LINEAR, "weights are read one column late").weight(
        |w, parts| {
            let size = parts[0].pitch / w.k as usize;
            parts[0].rows().for_each(|row| row.rotate_left(size));
        },
    ),
    bug("linear_fills_in_order", LINEAR, "rows of a weight are expected to come in order")
        .fill(|f, before| f.row0 = before),
    bug("linear_fill_restarts", LINEAR, "every fill is taken for the first rows")
        .fill(|f, _| f.row0 = 0),
    bug("linear_fill_drops_last_row", LINEAR, "the last row of a fill is lost").fill(|f, _| {
        for part in &mut f.parts {
            let row = part.len() / f.rows as usize;
            part.truncate(part.len() - row);
        }
    }),
];
