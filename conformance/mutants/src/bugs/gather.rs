//! GATHER_ROWS and EMBEDDING.

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use super::elementwise::{packed, through};
use crate::mutant::{Mutant, bug};

const GATHER: OpKind = OpKind::GATHER_ROWS;
const EMBEDDING: OpKind = OpKind::EMBEDDING;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("gather_negative_is_first", GATHER, "a negative index gives row 0")
        .launch(|c| c.edit().map_ints("idx", |_, i| i.max(0)).run()),
    bug("gather_negative_left", GATHER, "a row of a negative index is not written").launch(|c| {
        let (before, idx, width) = (c.floats("y"), c.ints("idx"), c.width("y"));
        c.then("y", |i, y| if idx[i / width] < 0 { before[i] } else { y })
    }),
    bug("gather_ignores_strides", GATHER, "the source is taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("gather_last_row_clamped", GATHER, "the largest index is one too small").launch(|c| {
        let last = c.dims("x")[0] as i64 - 2;
        c.edit().map_ints("idx", |_, i| i.min(last)).run()
    }),
    bug("gather_tail_missed", GATHER, "the last columns, fewer than a vector, are not copied")
        .launch(|c| {
            let (before, width) = (c.floats("y"), c.width("y"));
            c.then("y", |i, y| if i % width >= width / 16 * 16 { before[i] } else { y })
        }),
    bug("embedding_start_ignored", EMBEDDING, "VOCAB_START counts as 0")
        .desc(|d| d.set(AttrKey::VOCAB_START, |_| 0)),
    bug("embedding_scale_ignored", EMBEDDING, "SCALE counts as 1")
        .desc(|d| d.set_float(AttrKey::SCALE, |_| 1.0)),
    bug("embedding_scale_in_bf16", EMBEDDING, "SCALE is rounded to bf16")
        .desc(|d| d.set_float(AttrKey::SCALE, |s| through(DType::BF16, s))),
    bug("embedding_beyond_is_last", EMBEDDING, "an id above the shard gives its last row").launch(
        |c| {
            // The first id of every case is the last row's.
            let last = c.ints("ids").first().copied().unwrap_or(0);
            c.edit().map_ints("ids", |_, id| id.min(last)).run()
        },
    ),
    bug("embedding_below_is_first", EMBEDDING, "an id below the shard gives its first row").launch(
        |c| {
            let start = c.int(AttrKey::VOCAB_START);
            c.edit().map_ints("ids", |_, id| if id >= 0 { id.max(start) } else { id }).run()
        },
    ),
    bug("embedding_padding_left", EMBEDDING, "the row of a negative id is not written").launch(
        |c| {
            let (before, ids, width) = (c.floats("y"), c.ints("ids"), c.width("y"));
            c.then("y", |i, y| if ids[i / width] < 0 { before[i] } else { y })
        },
    ),
    bug("embedding_next_row", EMBEDDING, "every row is that of the next id")
        .launch(|c| c.edit().map_ints("ids", |_, id| if id < 0 { id } else { id + 1 }).run()),
];
