//! VARLEN_ATTENTION, MERGE_ATTENTION, KV_GATHER.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::packed;
use crate::mutant::{Mutant, bug};

const VARLEN: OpKind = OpKind::VARLEN_ATTENTION;
const MERGE: OpKind = OpKind::MERGE_ATTENTION;
const GATHER: OpKind = OpKind::KV_GATHER;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("varlen_scale_ignored", VARLEN, "SCALE counts as 1")
        .desc(|d| d.set_float(AttrKey::SCALE, |_| 1.0)),
    bug("varlen_not_causal", VARLEN, "later keys are seen").desc(|d| d.set(AttrKey::CAUSAL, |_| 0)),
    bug("varlen_always_causal", VARLEN, "CAUSAL is taken for granted")
        .desc(|d| d.set(AttrKey::CAUSAL, |_| 1)),
    bug("varlen_window_ignored", VARLEN, "WINDOW is accepted and not applied")
        .desc(|d| d.set(AttrKey::WINDOW, |_| (-1i64).cast_unsigned())),
    bug("varlen_window_one_short", VARLEN, "the window reaches one key less")
        .desc(|d| d.set(AttrKey::WINDOW, |w| if w.cast_signed() > 0 { w - 1 } else { w })),
    bug("varlen_softcap_ignored", VARLEN, "SOFTCAP is accepted and not applied")
        .desc(|d| d.set_float(AttrKey::SOFTCAP, |_| 0.0)),
    bug("varlen_sinks_zero", VARLEN, "every sink has the logit 0")
        .launch(|c| c.edit().map("sinks", |_, _| 0.0).run()),
    bug("varlen_values_are_keys", VARLEN, "a value's first element is taken for all").launch(|c| {
        let (v, width) = (c.floats("v"), c.width("v").max(1));
        c.edit().map("v", |i, _| v[i / width * width]).run()
    }),
    bug("varlen_keys_packed", VARLEN, "keys are taken to be packed")
        .launch(|c| c.edit().view("k", packed).run()),
    bug("varlen_values_packed", VARLEN, "values are taken to be packed")
        .launch(|c| c.edit().view("v", packed).run()),
    bug("merge_takes_the_first", MERGE, "the second part is left out").launch(|c| {
        let o1 = c.floats("o1");
        c.then("o", |i, _| o1[i])
    }),
    bug("merge_halves", MERGE, "both parts count the same").launch(|c| {
        let (o1, o2) = (c.floats("o1"), c.floats("o2"));
        c.then("o", |i, _| f64::midpoint(o1[i], o2[i]))
    }),
    bug("merge_empty_is_nan", MERGE, "two empty parts give NaN").launch(|c| {
        let (a, b) = (c.floats("lse1"), c.floats("lse2"));
        let width = c.width("o").max(1);
        let empty = |i: usize| [a[i], b[i]].iter().all(|&l| l == f64::NEG_INFINITY);
        c.then("o", |i, o| if empty(i / width) { f64::NAN } else { o })
    }),
    bug("merge_lse_is_largest", MERGE, "lse is the larger of both").launch(|c| {
        let (a, b) = (c.floats("lse1"), c.floats("lse2"));
        c.then("lse", |i, _| a[i].max(b[i]))
    }),
    bug("merge_base_2", MERGE, "lse is taken for a logarithm to base 2").launch(|c| {
        let ln2 = std::f64::consts::LN_2;
        c.edit().map("lse1", |_, l| l * ln2).map("lse2", |_, l| l * ln2).run()
    }),
    bug("kv_gather_table_of_row_0", GATHER, "every sequence reads the first one's blocks").launch(
        |c| {
            let (table, width) = (c.ints("block_table"), c.width("block_table").max(1));
            c.edit().map_ints("block_table", |i, _| table[i % width]).run()
        },
    ),
    bug("kv_gather_padding_left", GATHER, "rows after the last sequence are not written").launch(
        |c| {
            let (before, ends) = (c.floats("k"), c.ints("cu_k"));
            let end = ends.last().copied().unwrap_or(0) as usize;
            let row: usize = c.dims("k")[1..].iter().product();
            c.then("k", |i, k| if i / row.max(1) >= end { before[i] } else { k })
        },
    ),
    bug("kv_gather_scales_ignored", GATHER, "codes of an 8-bit cache are not scaled")
        .launch(|c| c.edit().map("k_scale", |_, _| 1.0).map("v_scale", |_, _| 1.0).run()),
    bug("kv_gather_scale_of_head_0", GATHER, "all heads have the first one's scale").launch(|c| {
        let first = if c.has("k_scale") { c.floats("k_scale")[0] } else { 1.0 };
        c.edit().map("k_scale", |_, _| first).run()
    }),
    bug("kv_gather_ignores_strides", GATHER, "values are written packed")
        .launch(|c| c.edit().view("v", packed).run()),
];
