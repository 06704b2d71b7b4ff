//! Latent attention: MLA_WRITE, MLA_ATTENTION, BATCHED_LINEAR.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::packed;
use crate::mutant::{Mutant, bug};

const WRITE: OpKind = OpKind::MLA_WRITE;
const MLA: OpKind = OpKind::MLA_ATTENTION;
const BATCHED: OpKind = OpKind::BATCHED_LINEAR;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("mla_write_next_slot", WRITE, "latents go one slot late").launch(|c| {
        let last = c.ints("slots").into_iter().max().unwrap_or(0);
        c.edit().map_ints("slots", |_, s| if s < 0 || s == last { s } else { s + 1 }).run()
    }),
    bug("mla_write_padding_written", WRITE, "a negative slot is slot 0")
        .launch(|c| c.edit().map_ints("slots", |_, s| s.max(0)).run()),
    bug("mla_write_rotated_missed", WRITE, "the rotated part is not written")
        .launch(|c| c.edit().map("r", |_, _| 0.0).run()),
    bug("mla_write_ignores_strides", WRITE, "latents are taken to be packed")
        .launch(|c| c.edit().view("c", packed).run()),
    bug("mla_scale_ignored", MLA, "SCALE counts as 1")
        .desc(|d| d.set_float(AttrKey::SCALE, |_| 1.0)),
    bug("mla_not_causal", MLA, "later tokens of a prompt are seen")
        .desc(|d| d.set(AttrKey::CAUSAL, |_| 0)),
    bug("mla_rotated_ignored", MLA, "the rotated part takes no part in the logits")
        .launch(|c| c.edit().map("qr", |_, _| 0.0).run()),
    bug("mla_latent_ignored", MLA, "the logits come from the rotated part alone")
        .launch(|c| c.edit().map("qc", |_, _| 0.0).run()),
    bug("mla_heads_shifted", MLA, "every head has its neighbour's latent query").launch(|c| {
        let (q, dims) = (c.floats("qc"), c.dims("qc"));
        let (heads, width) = (dims[1], dims[2]);
        let other = |i: usize| {
            let (t, h, d) = (i / (heads * width), i / width % heads, i % width);
            (t * heads + (h + 1) % heads) * width + d
        };
        c.edit().map("qc", |i, _| q[other(i)]).run()
    }),
    bug("mla_last_key_missed", MLA, "the newest key of a sequence is not seen")
        .launch(|c| c.edit().map_ints("kv_len", |_, n| (n - 1).max(0)).run()),
    bug("mla_table_of_row_0", MLA, "every sequence reads the first one's blocks").launch(|c| {
        let (table, width) = (c.ints("block_table"), c.width("block_table").max(1));
        c.edit().map_ints("block_table", |i, _| table[i % width]).run()
    }),
    bug("mla_padding_left", MLA, "rows after the last sequence are not written").launch(|c| {
        let (before, ends) = (c.floats("o"), c.ints("cu_q"));
        let end = ends.last().copied().unwrap_or(0) as usize;
        let row: usize = c.dims("o")[1..].iter().product();
        c.then("o", |i, o| if i / row.max(1) >= end { before[i] } else { o })
    }),
    bug("batched_groups_shifted", BATCHED, "groups are stored one place late")
        .fill(|f, _| f.group = (f.group + 1) % f.groups),
    bug("batched_ignores_strides", BATCHED, "inputs are taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("batched_tail_missed", BATCHED, "the last columns, fewer than a vector, are not summed")
        .launch(|c| {
            let k = c.width("x");
            c.edit().map("x", |i, x| if i % k >= k / 16 * 16 { 0.0 } else { x }).run()
        }),
    bug("batched_first_group_for_all", BATCHED, "every group multiplies the first one's inputs")
        .launch(|c| {
            let (x, dims) = (c.floats("x"), c.dims("x"));
            let row = dims[1] * dims[2];
            c.edit().map("x", |i, _| x[i / row * row + i % dims[2]]).run()
        }),
];
