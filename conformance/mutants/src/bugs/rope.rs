//! ROPE.

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use super::elementwise::{packed, through};
use crate::mutant::{Mutant, bug};

const ROPE: OpKind = OpKind::ROPE;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("rope_next_position", ROPE, "positions count from 1").launch(|c| {
        let most = c.dims("table")[0] as i64 - 1;
        c.edit().map_ints("pos", |_, p| if p < 0 { p } else { (p + 1).min(most) }).run()
    }),
    bug("rope_positions_by_row", ROPE, "the row number serves as position").launch(|c| {
        let most = c.dims("table")[0] as i64 - 1;
        c.edit().map_ints("pos", |i, p| if p < 0 { p } else { (i as i64).min(most) }).run()
    }),
    bug("rope_padding_rotated", ROPE, "a negative position counts as 0")
        .launch(|c| c.edit().map_ints("pos", |_, p| p.max(0)).run()),
    bug("rope_style_ignored", ROPE, "pairs are always half a width apart")
        .desc(|d| d.set(AttrKey::STYLE, |_| 0)),
    bug("rope_style_swapped", ROPE, "the two styles are confused")
        .desc(|d| d.set(AttrKey::STYLE, |s| 1 - s)),
    bug("rope_offset_ignored", ROPE, "OFFSET counts as 0").desc(|d| d.set(AttrKey::OFFSET, |_| 0)),
    bug("rope_backwards", ROPE, "the sine has the wrong sign").launch(|c| {
        let width = c.width("table");
        c.edit().map("table", |i, t| if i % width >= width / 2 { -t } else { t }).run()
    }),
    bug("rope_halves_of_table_swapped", ROPE, "sines are read as cosines").launch(|c| {
        let (table, width) = (c.floats("table"), c.width("table"));
        let other = |i: usize| i / width * width + (i + width / 2) % width;
        c.edit().map("table", |i, _| table[other(i)]).run()
    }),
    bug("rope_table_pitch", ROPE, "rows of the table are taken to be half as long").launch(|c| {
        let (table, width) = (c.floats("table"), c.width("table"));
        c.edit().map("table", |i, _| table[i / width * (width / 2) + i % width]).run()
    }),
    bug("rope_table_in_bf16", ROPE, "cosines and sines are rounded to bf16")
        .launch(|c| c.edit().map("table", |_, t| through(DType::BF16, t)).run()),
    bug("rope_keys_forgotten", ROPE, "keys are not rotated")
        .launch(|c| c.edit().without("k").run()),
    bug("rope_first_key_only", ROPE, "only the first key head is rotated").launch(|c| {
        if !c.has("k") {
            return c.run();
        }
        let (before, dims) = (c.floats("k"), c.dims("k"));
        c.then("k", |i, k| if i / dims[2] % dims[1] > 0 { before[i] } else { k })
    }),
    bug("rope_last_head_forgotten", ROPE, "the last query head is not rotated").launch(|c| {
        let (before, dims) = (c.floats("q"), c.dims("q"));
        let last = |i: usize| dims[1] > 1 && i / dims[2] % dims[1] == dims[1] - 1;
        c.then("q", |i, q| if last(i) { before[i] } else { q })
    }),
    bug("rope_pairs_over_the_head", ROPE, "a partial rotation pairs dims half a head apart")
        .launch(|c| {
            let (q, width, r) = (c.floats("q"), c.width("q"), c.width("table"));
            let style = c.int(AttrKey::STYLE);
            // The dims of the second half of the rotation come from the second half of the head.
            let at = |i: usize| {
                let column = i % width;
                let from =
                    if (r / 2..r).contains(&column) { column - r / 2 + width / 2 } else { column };
                i - column + from
            };
            if style == 1 || r == width || c.int(AttrKey::OFFSET) > 0 {
                return c.run();
            }
            let moved: Vec<f64> = (0..q.len()).map(|i| q[at(i)]).collect();
            c.write("q", &moved);
            c.run()?;
            let turned = c.floats("q");
            let mut out = q;
            for i in 0..out.len() {
                if i % width < r {
                    out[at(i)] = turned[i];
                }
            }
            c.write("q", &out);
            Ok(())
        }),
    bug("rope_rest_cleared", ROPE, "dims that are not rotated become 0").launch(|c| {
        let (width, r) = (c.width("q"), c.width("table"));
        let first = usize::try_from(c.int(AttrKey::OFFSET)).unwrap_or(0);
        c.then("q", |i, q| if (first..first + r).contains(&(i % width)) { q } else { 0.0 })
    }),
    bug("rope_ignores_strides", ROPE, "queries are taken to be packed")
        .launch(|c| c.edit().view("q", packed).run()),
    bug("rope_second_sees_first", ROPE, "the second of a pair is computed from the rotated first")
        .launch(|c| {
            let (q, width, r) = (c.floats("q"), c.width("q"), c.width("table"));
            let (table, pos) = (c.floats("table"), c.ints("pos"));
            let row = c.dims("q")[1] * width;
            if c.int(AttrKey::STYLE) == 1 || c.int(AttrKey::OFFSET) > 0 {
                return c.run();
            }
            c.run()?;
            let turned = c.floats("q");
            c.map("q", |i, v| {
                let (column, p) = (i % width, pos[i / row]);
                if p < 0 || !(r / 2..r).contains(&column) {
                    return v;
                }
                let angles = &table[usize::try_from(p).unwrap_or(0) * r..][..r];
                let pair = column - r / 2;
                q[i] * angles[pair] + turned[i - r / 2] * angles[column]
            });
            Ok(())
        }),
];
