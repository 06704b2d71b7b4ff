//! Quantised activations and fusions: QUANT_ACT, RMS_NORM_QUANT, LINEAR_ACT_MUL, QKV_POST.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::packed;
use crate::mutant::{Mutant, bug};

const QUANT: OpKind = OpKind::QUANT_ACT;
const NORM: OpKind = OpKind::RMS_NORM_QUANT;
const ACT: OpKind = OpKind::LINEAR_ACT_MUL;
const QKV: OpKind = OpKind::QKV_POST;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("quant_act_truncates", QUANT, "quotients are cut off, not rounded").launch(|c| {
        let (x, width) = (c.floats("x"), c.width("x").max(1));
        c.run()?;
        let (scale, groups) = (c.floats("scale"), c.width("scale").max(1));
        if groups > 1 || width > 128 && c.dtype("q") != halyard_sdk::DType::I8 {
            return Ok(());
        }
        c.map("q", |i, _| (x[i] / scale[i / width]).trunc());
        Ok(())
    }),
    bug("quant_act_scale_is_double", QUANT, "scales are twice too large")
        .launch(|c| c.then("scale", |_, s| 2.0 * s)),
    bug("quant_act_scale_of_row_0", QUANT, "every row has the first one's scale").launch(|c| {
        c.run()?;
        let (scale, groups) = (c.floats("scale"), c.width("scale").max(1));
        c.map("scale", |i, _| scale[i % groups]);
        Ok(())
    }),
    bug("quant_act_zero_scale", QUANT, "a row of zeros has the scale 0").launch(|c| {
        let (x, width) = (c.floats("x"), c.width("x").max(1));
        c.run()?;
        let groups = c.width("scale").max(1);
        let row = |i: usize| &x[i / groups * width..][..width];
        c.map("scale", |i, s| if row(i).iter().all(|&v| v == 0.0) { 0.0 } else { s });
        Ok(())
    }),
    bug("quant_act_ignores_strides", QUANT, "rows are taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("norm_quant_eps_dropped", NORM, "EPS is not added")
        .desc(|d| d.set_float(AttrKey::EPS, |_| 0.0)),
    bug("norm_quant_plus_one_ignored", NORM, "PLUS_ONE is ignored")
        .desc(|d| d.set(AttrKey::PLUS_ONE, |_| 0)),
    bug("norm_quant_residual_left", NORM, "the residual is not written back").launch(|c| {
        if !c.has("r") {
            return c.run();
        }
        let before = c.floats("r");
        c.then("r", |i, _| before[i])
    }),
    bug("norm_quant_gamma_ignored", NORM, "gamma counts as 1")
        .launch(|c| c.edit().map("gamma", |_, _| 1.0).run()),
    bug("linear_act_bias_dropped", ACT, "the bias is ignored")
        .launch(|c| c.edit().map("bias", |_, _| 0.0).run()),
    bug("linear_act_always_silu", ACT, "the activation is always silu")
        .desc(|d| d.set(AttrKey::ACT, |_| 0)),
    bug("linear_act_limit_ignored", ACT, "LIMIT is accepted and not applied")
        .desc(|d| d.set_float(AttrKey::LIMIT, |_| 0.0)),
    bug("linear_act_ups_first", ACT, "the ups are taken for the gates").weight(|_, parts| {
        let half = parts[0].bytes.len() / 2;
        parts[0].bytes.rotate_left(half);
    }),
    bug("qkv_post_eps_dropped", QKV, "EPS is not added")
        .desc(|d| d.set_float(AttrKey::EPS, |_| 0.0)),
    bug("qkv_post_style_ignored", QKV, "pairs are always (i, i + R/2)")
        .desc(|d| d.set(AttrKey::STYLE, |_| 0)),
    bug("qkv_post_offset_ignored", QKV, "rotation always begins at dim 0")
        .desc(|d| d.set(AttrKey::OFFSET, |_| 0)),
    bug("qkv_post_q_not_normed", QKV, "gamma of the queries counts as 1")
        .launch(|c| c.edit().map("q_gamma", |_, _| 1.0).run()),
    bug("qkv_post_k_not_normed", QKV, "gamma of the keys counts as 1")
        .launch(|c| c.edit().map("k_gamma", |_, _| 1.0).run()),
    bug("qkv_post_positions_shifted", QKV, "every token is rotated as its successor").launch(|c| {
        let last = c.dims("table")[0] as i64 - 1;
        c.edit().map_ints("pos", |_, p| if p < 0 || p == last { p } else { p + 1 }).run()
    }),
    bug("qkv_post_padding_written", QKV, "a negative slot is slot 0")
        .launch(|c| c.edit().map_ints("slots", |_, s| s.max(0)).run()),
    bug("qkv_post_ignores_strides", QKV, "rows are taken to be packed")
        .launch(|c| c.edit().view("qkv", packed).run()),
];
