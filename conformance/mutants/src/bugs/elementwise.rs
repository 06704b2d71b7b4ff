//! COPY, ADD, MUL, ACT_MUL.

use halyard_sdk::{DType, OpKind, TensorView, abi::AttrKey};

use crate::mutant::{Mutant, bug};

const COPY: OpKind = OpKind::COPY;
const ADD: OpKind = OpKind::ADD;
const MUL: OpKind = OpKind::MUL;
const ACT_MUL: OpKind = OpKind::ACT_MUL;

/// Rows without gaps.
pub(super) fn packed(v: &mut TensorView) {
    *v = TensorView::contiguous(v.data, v.byte_offset, &v.spec());
}

/// A float that is rounded to another type on its way.
pub(super) fn through(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::from_f64(value)),
        _ => f64::from(half::bf16::from_f64(value)),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "cutting bits off is the bug")]
fn cut(value: f64) -> f64 {
    f64::from(f32::from_bits((value as f32).to_bits() & 0xffff_0000))
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("copy_cuts_bits_off", COPY, "f32 to bf16 drops the low bits instead of rounding").launch(
        |c| {
            let x = c.floats("x");
            let cuts = c.dtype("y") == DType::BF16;
            c.then("y", |i, y| if cuts && x[i].is_finite() { cut(x[i]) } else { y })
        },
    ),
    bug("copy_ignores_strides", COPY, "the source is taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("copy_writes_packed", COPY, "the destination is taken to be packed")
        .launch(|c| c.edit().view("y", packed).run()),
    bug("copy_saturates", COPY, "what is too large for f16 becomes its largest number").launch(
        |c| {
            let x = c.floats("x");
            let most = f64::from(half::f16::MAX);
            c.then(
                "y",
                |i, y| if y.is_infinite() && x[i].is_finite() { most.copysign(y) } else { y },
            )
        },
    ),
    bug("copy_flushes_subnormals", COPY, "numbers below the normal range become 0").launch(|c| {
        let least = if c.dtype("x") == DType::F16 { 6.1e-5 } else { 1.18e-38 };
        c.then("y", |_, y| if y.abs() < least { 0.0 } else { y })
    }),
    bug("copy_rounds_half_up", COPY, "floats to integers round half away from zero").launch(|c| {
        let x = c.floats("x");
        let rounds = c.dtype("y") == DType::I32;
        c.then("y", |i, y| if rounds && !x[i].is_nan() { x[i].round() } else { y })
    }),
    bug("copy_nan_to_least", COPY, "NaN becomes the least integer, as the x86 instruction gives")
        .launch(|c| {
            let x = c.floats("x");
            let least = f64::from(i32::MIN);
            let converts = c.dtype("y") == DType::I32;
            c.then("y", |i, y| if converts && x[i].is_nan() { least } else { y })
        }),
    bug("copy_aligns_start", COPY, "the byte offset is rounded down to 16")
        .launch(|c| c.edit().view("x", |v| v.byte_offset &= !15).run()),
    bug("add_alpha_ignored", ADD, "ALPHA counts as 1")
        .desc(|d| d.set_float(AttrKey::ALPHA, |_| 1.0)),
    bug("add_alpha_on_a", ADD, "ALPHA multiplies the first operand").launch(|c| {
        let alpha = c.float(AttrKey::ALPHA);
        c.edit().map("a", |_, a| a * alpha).map("b", |_, b| b / alpha).run()
    }),
    bug(
        "add_broadcast_first_row",
        ADD,
        "a second operand without leading dims gives its first row only",
    )
    .launch(|c| {
        let width = c.width("b");
        let b = c.floats("b");
        let repeats = c.dims("b").len() < c.dims("a").len();
        c.edit().map("b", |i, v| if repeats { b[i % width] } else { v }).run()
    }),
    bug("add_clears_output_first", ADD, "the output is zeroed before the inputs are read").launch(
        |c| {
            c.map("y", |_, _| 0.0);
            c.run()
        },
    ),
    bug("add_in_bf16", ADD, "the sum passes through bf16")
        .launch(|c| c.then("y", |_, y| through(DType::BF16, y))),
    bug("add_drops_nan", ADD, "NaN in a sum counts as 0")
        .launch(|c| c.then("y", |_, y| if y.is_nan() { 0.0 } else { y })),
    bug("add_ignores_b_strides", ADD, "the second operand is taken to be packed")
        .launch(|c| c.edit().view("b", packed).run()),
    bug("mul_past_the_end", MUL, "a whole vector is stored where the last columns are fewer")
        .told("y was written past its end")
        .launch(|c| {
            c.run()?;
            if !c.width("y").is_multiple_of(8) {
                c.scribble("y", c.view("y").extent_bytes().unwrap_or(0));
            }
            Ok(())
        }),
    bug("mul_into_gaps", MUL, "rows are stored as if there were no gaps between them")
        .told("gap")
        .launch(|c| {
            c.run()?;
            let y = c.view("y");
            let row = y.dtype.bytes(c.width("y") as u64).unwrap_or(0);
            let pitched = c.dims("y").len() == 3 && y.strides[1] > y.dims[2];
            if pitched && row > 0 {
                c.scribble("y", row);
            }
            Ok(())
        }),
    bug("mul_before_the_start", MUL, "a store is aligned down").told("before its start").launch(
        |c| {
            c.run()?;
            let y = c.view("y");
            if !y.byte_offset.is_multiple_of(64) {
                c.edit().view("y", |v| v.byte_offset &= !63).run()?;
            }
            Ok(())
        },
    ),
    bug("mul_without_broadcast", MUL, "the second operand of a lower rank is its first element")
        .launch(|c| {
            let b = c.floats("b");
            let lower = c.dims("b").len() < c.dims("a").len();
            c.edit().map("b", |_, v| if lower { b[0] } else { v }).run()
        }),
    bug("mul_tail_missed", MUL, "the last columns, fewer than a vector, are not computed").launch(
        |c| {
            let width = c.width("y");
            let before = c.floats("y");
            c.then("y", |i, y| if i % width >= width / 8 * 8 { before[i] } else { y })
        },
    ),
    bug("act_mul_halves_swapped", ACT_MUL, "the first half is taken for the ups").launch(|c| {
        let (gu, width) = (c.floats("gu"), c.width("gu"));
        let other = |i: usize| i / width * width + (i + width / 2) % width;
        c.edit().map("gu", |i, _| gu[other(i)]).run()
    }),
    bug("act_mul_interleaved", ACT_MUL, "gates and ups are taken to alternate").launch(|c| {
        let (gu, width) = (c.floats("gu"), c.width("gu"));
        let at = |i: usize| {
            let (row, column) = (i / width * width, i % width);
            if column < width / 2 { row + 2 * column } else { row + 2 * (column - width / 2) + 1 }
        };
        c.edit().map("gu", |i, _| gu[at(i)]).run()
    }),
    bug("act_mul_gelu_confused", ACT_MUL, "gelu with erf is computed with tanh")
        .desc(|d| d.set(AttrKey::ACT, |act| act.min(1))),
    bug("act_mul_always_silu", ACT_MUL, "the activation is always silu")
        .desc(|d| d.set(AttrKey::ACT, |_| 0)),
    bug("act_mul_limit_ignored", ACT_MUL, "LIMIT is accepted and not applied")
        .desc(|d| d.set_float(AttrKey::LIMIT, |_| 0.0)),
    bug("act_mul_gate_clamped_below", ACT_MUL, "the gate is clamped on both sides").launch(|c| {
        let (limit, width) = (c.float(AttrKey::LIMIT), c.width("gu"));
        let gate = |i: usize| i % width < width / 2 && limit > 0.0;
        c.edit().map("gu", |i, v| if gate(i) { v.max(-limit) } else { v }).run()
    }),
    bug("act_mul_up_clamped_above_only", ACT_MUL, "the up is clamped above only").launch(|c| {
        let (gu, width, limit) = (c.floats("gu"), c.width("gu"), c.float(AttrKey::LIMIT));
        let up = |i: usize| gu[i / (width / 2) * width + width / 2 + i % (width / 2)];
        c.then("y", |i, y| {
            let below = limit > 0.0 && up(i) < -limit;
            if below { y / -limit * up(i) } else { y }
        })
    }),
    bug(
        "act_mul_overflows",
        ACT_MUL,
        "silu is e^g / (1 + e^g): infinity by infinity for a large gate",
    )
    .launch(|c| {
        let (gu, width) = (c.floats("gu"), c.width("gu"));
        let gate = |i: usize| gu[i / (width / 2) * width + i % (width / 2)];
        let silu = c.int(AttrKey::ACT) == 0;
        c.then("y", |i, y| if silu && gate(i) > 88.8 { f64::NAN } else { y })
    }),
    bug("act_mul_ignores_strides", ACT_MUL, "rows are taken to follow each other without gaps")
        .launch(|c| c.edit().view("gu", packed).view("y", packed).run()),
    bug("act_mul_panics", ACT_MUL, "a panic at one width").told("panic").launch(|c| {
        assert!(c.width("gu") != 16, "eight columns");
        c.run()
    }),
    bug("act_mul_exp_of_bf16", ACT_MUL, "the gate is rounded to bf16 before the exponential")
        .launch(|c| {
            let width = c.width("gu");
            let gate = |i: usize| i % width < width / 2;
            c.edit().map("gu", |i, v| if gate(i) { through(DType::BF16, v) } else { v }).run()
        }),
];
