//! What goes wrong only where there is much of something: rows, columns, experts, heads, tokens.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::through;
use crate::mutant::{Mutant, bug};

const ATTENTION: OpKind = OpKind::PAGED_ATTENTION;
const LINEAR: OpKind = OpKind::LINEAR;

/// Elements that a task of an element-wise op takes.
const TASK: usize = 16_384;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("mul_last_task_missed", OpKind::MUL, "elements after the last whole task are not written")
        .launch(|c| {
            let before = c.floats("y");
            let end = before.len() / TASK * TASK;
            c.then("y", |i, y| if end > 0 && i >= end { before[i] } else { y })
        }),
    bug("copy_rows_of_16_bits", OpKind::COPY, "rows beyond 65535 are not copied").launch(|c| {
        let (before, width) = (c.floats("y"), c.width("y"));
        c.then("y", |i, y| if i / width > 65_535 { before[i] } else { y })
    }),
    bug("rope_positions_of_first_task", OpKind::ROPE, "every task begins with the first position")
        .launch(|c| {
            let pos = c.ints("pos");
            c.edit().map_ints("pos", |i, _| pos[i % 128]).run()
        }),
    bug("norm_sums_1024", OpKind::RMS_NORM, "the mean is taken over 1024 columns at most").launch(
        |c| {
            let n = c.width("x");
            let short = if n > 1024 { (1024.0 / n as f64).sqrt() } else { 1.0 };
            c.then("y", |_, y| y * short)
        },
    ),
    bug("linear_last_panel_of_many", LINEAR, "the last tile of more than 64 is not written")
        .case("linear_wide")
        .launch(|c| {
            let (before, n) = (c.floats("y"), c.width("y"));
            let missed = |column: usize| n > 1024 && column >= (n - 1) / 16 * 16;
            c.then("y", |i, y| if missed(i % n) { before[i] } else { y })
        }),
    bug("linear_second_chunk_of_tokens", LINEAR, "a token between two chunks is missed")
        .case("linear_tall_and_long")
        .launch(|c| {
            let (before, n) = (c.floats("y"), c.width("y"));
            let chunk = (384 * 1024 / (4 * c.width("x").max(1))).max(1);
            c.then("y", |i, y| if i / n > 0 && i / n == chunk { before[i] } else { y })
        }),
    bug("linear_long_k_tail", LINEAR, "rows longer than 4096 lose their last ragged columns")
        .case("linear_long")
        .launch(|c| {
            let k = c.width("x");
            let lost = |column: usize| k > 4096 && column >= k / 128 * 128;
            c.edit().map("x", |i, v| if lost(i % k) { 0.0 } else { v }).run()
        }),
    bug("linear_bf16_sums_when_long", LINEAR, "partial sums of long rows are kept in bf16")
        .case("linear_long")
        .launch(|c| {
            let k = c.width("x");
            if k <= 4096 || c.int(AttrKey::ACCUMULATE) != 0 || c.has("bias") {
                return c.run();
            }
            let mut sums = vec![0.0; c.floats("y").len()];
            for part in 0..2 {
                let here = move |column: usize| (column < k / 2) == (part == 0);
                c.edit().map("x", |i, v| if here(i % k) { v } else { 0.0 }).run()?;
                for (sum, y) in sums.iter_mut().zip(c.floats("y")) {
                    *sum = through(halyard_sdk::DType::BF16, *sum + y);
                }
            }
            c.write("y", &sums);
            Ok(())
        }),
    bug("kv_write_64_tokens", OpKind::KV_WRITE, "tokens after the first 64 are skipped")
        .launch(|c| c.edit().map_ints("slots", |i, slot| if i < 64 { slot } else { -1 }).run()),
    bug("mla_write_64_tokens", OpKind::MLA_WRITE, "tokens after the first 64 are skipped")
        .launch(|c| c.edit().map_ints("slots", |i, slot| if i < 64 { slot } else { -1 }).run()),
    bug(
        "copy_blocks_eight_pairs",
        OpKind::KV_COPY_BLOCKS,
        "pairs after the first eight are skipped",
    )
    .launch(|c| c.edit().map_ints("pairs", |i, id| if i < 16 { id } else { -1 }).run()),
    bug("attention_softcap_in_whole_vectors", ATTENTION, "no soft-cap where blocks are small")
        .case("small_blocks_options")
        .desc(|d| {
            if d.tensors[1].dims[1] < 16 {
                d.set_float(AttrKey::SOFTCAP, |_| 0.0);
            }
        }),
    bug("attention_key_scale_of_first_chunk", ATTENTION, "long sequences lose the scale of keys")
        .case("kv8_long")
        .profile("kv8")
        .launch(|c| {
            let long = c.ints("kv_len").iter().any(|&n| n > 256);
            c.edit().map("k_scale", |_, s| if long { 1.0 } else { s }).run()
        }),
    bug("attention_window_over_chunks", ATTENTION, "a long window is wider by one")
        .case("long_options")
        .desc(|d| {
            d.set(AttrKey::WINDOW, |w| if (256..4096).contains(&w) { w + 1 } else { w });
        }),
    bug("attention_sixteen_sequences", ATTENTION, "sequence 16 has the length of sequence 0")
        .case("decode_many")
        .launch(|c| {
            let lengths = c.ints("kv_len");
            let short = |i: usize, n: i64| if i >= 16 { n.min(lengths[i - 16].max(1)) } else { n };
            c.edit().map_ints("kv_len", short).run()
        }),
    bug("attention_heads_of_eight", ATTENTION, "query heads beyond eight of a group repeat")
        .case("wide_groups")
        .launch(|c| {
            let (q, dims) = (c.floats("q"), c.dims("q"));
            let group = dims[1] / c.dims("k_cache")[2];
            let from = |i: usize| {
                let head = i / dims[2] % dims[1];
                i - (head % group - head % group % 8) * dims[2]
            };
            c.edit().map("q", |i, _| q[from(i)]).run()
        }),
    bug("router_128_experts", OpKind::MOE_ROUTER, "experts after the first 128 are never chosen")
        .launch(|c| {
            let experts = c.width("logits");
            c.edit().map("logits", |i, l| if i % experts < 128 { l } else { -1e30 }).run()
        }),
    bug("experts_of_four_bits", OpKind::MOE_EXPERTS, "expert 16 is expert 0")
        .case("experts_many")
        .launch(|c| c.edit().map_ints("ids", |_, id| if id > 15 { id % 16 } else { id }).run()),
    bug("topk_nan_first", OpKind::TOPK, "a NaN counts as the largest").launch(|c| {
        c.edit().map("logits", |_, l| if l.is_nan() { f64::INFINITY } else { l }).run()
    }),
    bug("sample_without_tail", OpKind::SAMPLE, "ids far below the best one are never drawn")
        .case("sample_")
        .launch(|c| {
            let (logits, width) = (c.floats("logits"), c.width("logits").max(1));
            let best = |row: usize| {
                let row = &logits[row * width..(row + 1) * width];
                row.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            };
            let least: Vec<f64> = (0..logits.len() / width).map(|b| best(b) - 12.0).collect();
            let near = |i: usize, l: f64| if l < least[i / width] { f64::NEG_INFINITY } else { l };
            c.edit().map("logits", near).run()
        }),
];
