//! PAGED_ATTENTION: where it reads and writes. What it makes of the logits is in `masks`.

use halyard_sdk::{OpKind, Result};

use super::elementwise::packed;
use crate::{
    call::Call,
    mutant::{Mutant, bug},
};

const ATTENTION: OpKind = OpKind::PAGED_ATTENTION;

/// New tokens of sequence `b`.
fn new_tokens(cu_q: &[i64], b: usize) -> i64 {
    cu_q[b + 1] - cu_q[b]
}

/// Another length for each sequence that is decoded.
fn decode_length(c: &Call<'_>, change: impl Fn(i64) -> i64) -> Result<()> {
    let cu_q = c.ints("cu_q");
    let changed = |b: usize, len: i64| if new_tokens(&cu_q, b) == 1 { change(len) } else { len };
    c.edit().map_ints("kv_len", changed).run()
}

/// Query heads in the order that makes the right kernel pair head `h` with KV head `h % Hk`.
fn wrong_kv_heads(c: &Call<'_>) -> Result<()> {
    let (q, dims) = (c.floats("q"), c.dims("q"));
    let (heads, kv_heads, width) = (dims[1], c.dims("k_cache")[2], c.width("o"));
    let order: Vec<usize> = (0..kv_heads).flat_map(|kv| (kv..heads).step_by(kv_heads)).collect();
    let from = |i: usize, width: usize| {
        let (row, column) = (i / width, i % width);
        (row / heads * heads + order[row % heads]) * width + column
    };
    c.edit().map("q", |i, _| q[from(i, dims[2])]).run()?;
    let o = c.floats("o");
    let mut sorted = o.clone();
    (0..o.len()).for_each(|i| sorted[from(i, width)] = o[i]);
    c.write("o", &sorted);
    Ok(())
}

/// Keeps what rows at or after the last sequence held.
fn padding_kept(c: &Call<'_>, slot: &str, row: usize) -> Result<()> {
    if !c.has(slot) {
        return c.run();
    }
    let (before, cu_q) = (c.floats(slot), c.ints("cu_q"));
    let end = usize::try_from(cu_q[cu_q.len() - 1]).unwrap_or(0) * row;
    c.then(slot, |i, v| if i >= end { before[i] } else { v })
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("attention_kv_heads_alternate", ATTENTION, "query head h reads KV head h % Hk")
        .launch(wrong_kv_heads),
    bug("attention_first_kv_head_only", ATTENTION, "every query head reads KV head 0").launch(
        |c| {
            let (k, dims) = (c.floats("k_cache"), c.dims("k_cache"));
            let head = |i: usize| i / dims[3] % dims[2];
            c.edit().map("k_cache", |i, _| k[i - head(i) * dims[3]]).run()
        },
    ),
    bug("attention_last_block_missed", ATTENTION, "only whole blocks are read, once there is one")
        .launch(|c| {
            let block = c.dims("k_cache")[1] as i64;
            decode_length(c, |len| if len > block { len / block * block } else { len })
        }),
    bug(
        "attention_first_block_missed",
        ATTENTION,
        "the first of several blocks is read as the second",
    )
    .launch(|c| {
        let (table, columns) = (c.ints("block_table"), c.width("block_table"));
        let (kv_len, block) = (c.ints("kv_len"), c.dims("k_cache")[1] as i64);
        let several = |b: usize| kv_len[b] >= 2 * block;
        let first = |i: usize| i.is_multiple_of(columns) && several(i / columns);
        c.edit().map_ints("block_table", |i, id| if first(i) { table[i + 1] } else { id }).run()
    }),
    bug("attention_decode_one_short", ATTENTION, "a decoded token does not see itself")
        .launch(|c| decode_length(c, |len| if len > 1 { len - 1 } else { len })),
    bug(
        "attention_table_stride",
        ATTENTION,
        "rows of the block table are as long as the longest sequence needs",
    )
    .launch(|c| {
        let block = c.dims("k_cache")[1] as i64;
        let most = c.ints("kv_len").into_iter().max().unwrap_or(0);
        let columns = ((most + block - 1) / block).max(1);
        let (table, width) = (c.ints("block_table"), c.width("block_table"));
        let at = |i: usize| i / width * columns as usize + i % width;
        let blocks = c.dims("k_cache")[0] as i64;
        // What was garbage may be read now: a block that exists, so that the number is what is wrong.
        let id = |i: usize| Some(table[at(i)]).filter(|id| (0..blocks).contains(id)).unwrap_or(0);
        c.edit().map_ints("block_table", |i, _| id(i)).run()
    }),
    bug("attention_other_sequence", ATTENTION, "the first block is that of the sequence before")
        .launch(|c| {
            let (table, columns) = (c.ints("block_table"), c.width("block_table"));
            let kv_len = c.ints("kv_len");
            let stolen = |b: usize| b > 0 && kv_len[b - 1] > 0 && kv_len[b] > 0;
            let first = |i: usize| i.is_multiple_of(columns) && stolen(i / columns);
            c.edit()
                .map_ints("block_table", |i, id| if first(i) { table[i - columns] } else { id })
                .run()
        }),
    bug("attention_last_sequence_missed", ATTENTION, "the last of several sequences gives zeros")
        .launch(|c| {
            let last = c.dims("kv_len")[0] - 1;
            c.edit().map_ints("kv_len", |b, len| if b > 0 && b == last { 0 } else { len }).run()
        }),
    bug("attention_long_truncated", ATTENTION, "a decode sees 512 keys at most")
        .launch(|c| decode_length(c, |len| len.min(512))),
    bug(
        "attention_key_tail_ignored",
        ATTENTION,
        "dims of a head after the last whole 32 do not count",
    )
    .launch(|c| {
        let width = c.width("q");
        let tail = |column: usize| width > 32 && column >= width / 32 * 32;
        c.edit().map("q", |i, q| if tail(i % width) { 0.0 } else { q }).run()
    }),
    bug(
        "attention_values_as_wide_as_keys",
        ATTENTION,
        "dims of a value beyond a key's are not computed",
    )
    .launch(|c| {
        let (before, width, keys) = (c.floats("o"), c.width("o"), c.width("q"));
        c.then("o", |i, o| if i % width >= keys { before[i] } else { o })
    }),
    bug("attention_padding_left", ATTENTION, "outputs of padding tokens are not written")
        .launch(|c| padding_kept(c, "o", c.dims("o")[1] * c.width("o"))),
    bug("attention_padding_lse_left", ATTENTION, "lse of padding tokens is not written")
        .launch(|c| padding_kept(c, "lse", c.dims("o")[1])),
    bug("attention_empty_is_nan", ATTENTION, "a sequence of no keys divides by zero").launch(|c| {
        let (cu_q, kv_len) = (c.ints("cu_q"), c.ints("kv_len"));
        let row = c.dims("o")[1] * c.width("o");
        let empty = |i: usize| {
            let t = (i / row) as i64;
            (0..kv_len.len()).any(|b| (cu_q[b]..cu_q[b + 1]).contains(&t) && kv_len[b] == 0)
        };
        c.then("o", |i, o| if empty(i) { f64::NAN } else { o })
    }),
    bug("attention_ignores_query_strides", ATTENTION, "queries are taken to be packed")
        .launch(|c| c.edit().view("q", packed).run()),
    bug("attention_writes_packed", ATTENTION, "outputs are taken to be packed")
        .launch(|c| c.edit().view("o", packed).run()),
    bug("attention_heads_of_row_0", ATTENTION, "prefill takes each query from the row before")
        .launch(|c| {
            let (q, cu_q) = (c.floats("q"), c.ints("cu_q"));
            let row = c.dims("q")[1] * c.width("q");
            let first = |i: usize| cu_q.contains(&((i / row) as i64));
            c.edit().map("q", |i, v| if first(i) { v } else { q[i - row] }).run()
        }),
];
