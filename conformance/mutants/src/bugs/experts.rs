//! MOE_EXPERTS.

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use super::elementwise::{packed, through};
use crate::mutant::{Mutant, bug};

const EXPERTS: OpKind = OpKind::MOE_EXPERTS;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("experts_start_ignored", EXPERTS, "every rank takes its experts for the first ones")
        .desc(|d| d.set(AttrKey::EXPERT_START, |_| 0)),
    bug(
        "experts_weight_on_input_ignored",
        EXPERTS,
        "the routing weight always multiplies the output",
    )
    .desc(|d| d.set(AttrKey::WEIGHT_ON_INPUT, |_| 0)),
    bug("experts_weights_ignored", EXPERTS, "experts are summed with weight 1")
        .launch(|c| c.edit().map("weight", |_, _| 1.0).run()),
    bug("experts_weights_of_row_0", EXPERTS, "every token has the first one's weights").launch(
        |c| {
            let (weight, top) = (c.floats("weight"), c.width("weight"));
            c.edit().map("weight", |i, _| weight[i % top]).run()
        },
    ),
    bug("experts_add_ignored", EXPERTS, "what is to be added is ignored")
        .launch(|c| c.edit().without("add").run()),
    bug("experts_clear_output_first", EXPERTS, "the output is zeroed before what is added is read")
        .launch(|c| {
            c.map("y", |_, _| 0.0);
            c.run()
        }),
    bug("experts_last_missed", EXPERTS, "the last expert is never computed").launch(|c| {
        let (start, ids) = (c.int(AttrKey::EXPERT_START), c.ints("ids"));
        let last = ids.iter().copied().filter(|&e| e >= start && e < start + 6).max().unwrap_or(-1);
        c.edit().map_ints("ids", |_, e| if e == last { -1 } else { e }).run()
    }),
    bug("experts_negative_is_first", EXPERTS, "a negative id counts as the first expert").launch(
        |c| {
            let start = c.int(AttrKey::EXPERT_START);
            c.edit().map_ints("ids", |_, e| if e < 0 { start } else { e }).run()
        },
    ),
    bug("experts_outside_wraps", EXPERTS, "an id below the slice counts as the first expert")
        .launch(|c| {
            let start = c.int(AttrKey::EXPERT_START);
            c.edit().map_ints("ids", |_, e| if e >= 0 { e.max(start) } else { e }).run()
        }),
    bug("experts_first_choice_only", EXPERTS, "only the first choice of a token is computed")
        .launch(|c| {
            let top = c.width("ids");
            c.edit().map_ints("ids", |i, e| if i % top > 0 { -1 } else { e }).run()
        }),
    bug("experts_capacity", EXPERTS, "an expert takes 16 tokens at most").launch(|c| {
        let ids = c.ints("ids");
        let before = |i: usize| ids[..i].iter().filter(|&&e| e == ids[i]).count();
        c.edit().map_ints("ids", |i, e| if before(i) >= 16 { -1 } else { e }).run()
    }),
    bug("experts_weights_normed", EXPERTS, "routing weights are divided by their sum").launch(
        |c| {
            let (weight, top) = (c.floats("weight"), c.width("weight").max(1));
            let sum = |i: usize| weight[i / top * top..][..top].iter().sum::<f64>();
            c.edit().map("weight", |i, w| w / sum(i)).run()
        },
    ),
    bug("experts_weights_in_bf16", EXPERTS, "routing weights are rounded to bf16")
        .launch(|c| c.edit().map("weight", |_, w| through(DType::BF16, w)).run()),
    bug("experts_always_silu", EXPERTS, "the activation is always silu")
        .desc(|d| d.set(AttrKey::ACT, |_| 0)),
    bug("experts_limit_ignored", EXPERTS, "LIMIT is accepted and not applied")
        .desc(|d| d.set_float(AttrKey::LIMIT, |_| 0.0)),
    bug("experts_shifted", EXPERTS, "experts are stored one place late")
        .fill(|f, _| f.group = (f.group + 1) % f.groups),
    bug("experts_ignore_strides", EXPERTS, "inputs are taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("experts_nan_spreads", EXPERTS, "a NaN in one token spoils all").launch(|c| {
        let bad = c.floats("x").iter().any(|v| v.is_nan());
        c.then("y", |_, y| if bad { f64::NAN } else { y })
    }),
    bug("experts_idle_token_left", EXPERTS, "a token without experts is not written").launch(|c| {
        let (before, ids, top) = (c.floats("y"), c.ints("ids"), c.width("ids"));
        let row = c.width("y");
        let idle = |t: usize| ids[t * top..][..top].iter().all(|&e| e < 0);
        c.then("y", |i, y| if idle(i / row) { before[i] } else { y })
    }),
];
