//! KV_WRITE and KV_COPY_BLOCKS.

use halyard_sdk::{DType, OpKind};

use super::elementwise::{packed, through};
use crate::mutant::{Mutant, bug};

const WRITE: OpKind = OpKind::KV_WRITE;
const COPY: OpKind = OpKind::KV_COPY_BLOCKS;

/// What a failure of these says: caches are looked at through attention.
const SEEN: &str = "the cache, seen by attention";

pub(super) const MUTANTS: &[Mutant] = &[
    bug("kv_write_padding_written", WRITE, "a token without a slot goes to slot 0")
        .told(SEEN)
        .launch(|c| c.edit().map_ints("slots", |_, s| s.max(0)).run()),
    bug("kv_write_block_and_offset_swapped", WRITE, "a slot is read as offset * blocks + block")
        .told(SEEN)
        .launch(|c| {
            let dims = c.dims("k_cache");
            let (blocks, block) = (dims[0] as i64, dims[1] as i64);
            let moved = |s: i64| if s < 0 { s } else { s % blocks * block + s / blocks };
            c.edit().map_ints("slots", |_, s| moved(s)).run()
        }),
    bug("kv_write_slots_of_32_bits", WRITE, "slots are read as 32-bit numbers").told(SEEN).launch(
        |c| {
            let slots = c.ints("slots");
            let word =
                |i: usize| if i.is_multiple_of(2) { slots[i / 2] } else { slots[i / 2] >> 32 };
            c.edit().map_ints("slots", |i, _| word(i)).run()
        },
    ),
    bug("kv_write_last_token_lost", WRITE, "the last token is not written").told(SEEN).launch(
        |c| {
            let last = c.dims("slots")[0];
            c.edit().map_ints("slots", |i, s| if i + 1 == last { -1 } else { s }).run()
        },
    ),
    bug("kv_write_values_forgotten", WRITE, "values are not written").told(SEEN).launch(|c| {
        let before = c.floats("v_cache");
        c.run()?;
        c.write("v_cache", &before);
        Ok(())
    }),
    bug("kv_write_heads_swapped", WRITE, "neighbouring KV heads are written in each other's place")
        .told(SEEN)
        .launch(|c| {
            let (k, dims) = (c.floats("k"), c.dims("k"));
            let other = |i: usize| {
                let head = i / dims[2] % dims[1];
                let to = if head ^ 1 < dims[1] { head ^ 1 } else { head };
                i + to * dims[2] - head * dims[2]
            };
            c.edit().map("k", |i, _| k[other(i)]).run()
        }),
    bug("kv_write_clears_block", WRITE, "what follows a new token in its block is zeroed")
        .told(SEEN)
        .launch(|c| {
            let (slots, dims) = (c.ints("slots"), c.dims("k_cache"));
            let (block, row) = (dims[1], dims[2] * dims[3]);
            let after = |i: usize| {
                let slot = (i / row) as i64;
                let same = |s: i64| s >= 0 && s / block as i64 == slot / block as i64;
                slots.iter().any(|&s| same(s) && slot > s) && !slots.contains(&slot)
            };
            c.then("k_cache", |i, k| if after(i) { 0.0 } else { k })
        }),
    bug("kv_write_in_bf16", WRITE, "an f32 cache holds bf16").told(SEEN).launch(|c| {
        c.edit()
            .map("k", |_, k| through(DType::BF16, k))
            .map("v", |_, v| through(DType::BF16, v))
            .run()
    }),
    bug("kv_write_ignores_strides", WRITE, "keys are taken to be packed")
        .launch(|c| c.edit().view("k", packed).run()),
    bug("kv_write_key_for_value", WRITE, "keys are written as values where both are as wide")
        .told(SEEN)
        .launch(|c| {
            let same = c.dims("k") == c.dims("v");
            let k = c.floats("k");
            c.edit().map("v", |i, v| if same { k[i] } else { v }).run()
        }),
    bug("kv_write_width_tail_lost", WRITE, "dims after the last 32 of a head are not written")
        .told(SEEN)
        .launch(|c| {
            let (before, width) = (c.floats("k_cache"), c.width("k_cache"));
            c.then("k_cache", |i, k| {
                if width > 32 && i % width >= width / 32 * 32 { before[i] } else { k }
            })
        }),
    bug("kv_copy_backwards", COPY, "the second of a pair is copied to the first")
        .told(SEEN)
        .launch(|c| {
            let pairs = c.ints("pairs");
            c.edit().map_ints("pairs", |i, _| pairs[i ^ 1]).run()
        }),
    bug("kv_copy_negative_is_block_0", COPY, "a negative member counts as block 0")
        .told(SEEN)
        .launch(|c| c.edit().map_ints("pairs", |_, p| p.max(0)).run()),
    bug("kv_copy_values_forgotten", COPY, "values are not copied").told(SEEN).launch(|c| {
        let before = c.floats("v_cache");
        c.run()?;
        c.write("v_cache", &before);
        Ok(())
    }),
    bug("kv_copy_last_token_missed", COPY, "the last token of a block of several is not copied")
        .told(SEEN)
        .launch(|c| {
            let (before, dims) = (c.floats("k_cache"), c.dims("k_cache"));
            let token = |i: usize| i / (dims[2] * dims[3]) % dims[1];
            let last = |i: usize| dims[1] > 1 && token(i) == dims[1] - 1;
            c.then("k_cache", |i, k| if last(i) { before[i] } else { k })
        }),
    bug("kv_copy_last_pair_missed", COPY, "the last of several pairs is not copied")
        .told(SEEN)
        .launch(|c| {
            let pairs = c.dims("pairs")[0];
            let last = |i: usize| pairs > 1 && i / 2 == pairs - 1;
            c.edit().map_ints("pairs", |i, p| if last(i) { -1 } else { p }).run()
        }),
    bug("kv_copy_first_head_only", COPY, "heads after the first are not copied").told(SEEN).launch(
        |c| {
            let (before, dims) = (c.floats("k_cache"), c.dims("k_cache"));
            c.then("k_cache", |i, k| if i / dims[3] % dims[2] > 0 { before[i] } else { k })
        },
    ),
];
