//! PAGED_ATTENTION: masks, scale, soft-cap, sinks, softmax.

use halyard_sdk::{DType, OpKind, abi::AttrKey};

use super::elementwise::through;
use crate::{
    attend::{Query, attention, softmax},
    mutant::{Mutant, bug},
};

const ATTENTION: OpKind = OpKind::PAGED_ATTENTION;

/// Keys of a chunk of an online softmax.
const CHUNK: usize = 16;

/// Chunk by chunk with a running maximum; what the sums so far are multiplied by when it grows is given.
fn online(z: &[f64], keep: fn(f64) -> f64, keep_sum: fn(f64) -> f64) -> (Vec<f64>, f64) {
    let (mut most, mut sum) = (f64::NEG_INFINITY, 0.0);
    let mut weights: Vec<f64> = Vec::new();
    for chunk in z.chunks(CHUNK) {
        let now = chunk.iter().copied().fold(most, f64::max);
        let grown = if most.is_finite() { (most - now).exp() } else { 1.0 };
        weights.iter_mut().for_each(|w| *w *= keep(grown));
        sum *= keep_sum(grown);
        for v in chunk {
            weights.push((v - now).exp());
            sum += (v - now).exp();
        }
        most = now;
    }
    (weights.into_iter().map(|w| w / sum).collect(), most + sum.ln())
}

#[expect(clippy::cast_possible_truncation, reason = "what overflows an f32 is the bug")]
fn exp_f32(v: f64) -> f64 {
    f64::from((v as f32).exp())
}

fn right(z: &[f64], sink: Option<f64>) -> (Vec<f64>, f64) {
    softmax(z, sink)
}

pub(super) const MUTANTS: &[Mutant] = &[
    bug("mask_hides_itself", ATTENTION, "a token of a prefill does not see itself")
        .launch(|c| attention(c, |q| q.sees().start..q.p.max(1), right)),
    bug("mask_shows_next", ATTENTION, "a token of a prefill sees the next one")
        .launch(|c| attention(c, |q| q.sees().start..(q.p + 2).min(q.kv_len), right)),
    bug(
        "mask_counts_from_chunk",
        ATTENTION,
        "a chunk's tokens are taken for the first of their sequence",
    )
    .launch(|c| attention(c, |q| Query { p: q.i, ..q }.sees(), right)),
    bug("mask_ignored", ATTENTION, "every token sees all keys of its sequence")
        .desc(|d| d.set(AttrKey::CAUSAL, |_| 0)),
    bug("mask_always_causal", ATTENTION, "CAUSAL = 0 is ignored")
        .desc(|d| d.set(AttrKey::CAUSAL, |_| 1)),
    bug("mask_whole_blocks", ATTENTION, "the mask is that of the block's last token").launch(|c| {
        attention(c, |q| q.sees().start..((q.p / q.block + 1) * q.block).min(q.kv_len), right)
    }),
    bug("window_one_longer", ATTENTION, "the window reaches one further")
        .desc(|d| d.set(AttrKey::WINDOW, |w| if w.cast_signed() < 0 { w } else { w + 1 })),
    bug("window_one_shorter", ATTENTION, "the window includes the token itself").desc(|d| {
        d.set(AttrKey::WINDOW, |w| if w.cast_signed() < 1 { w } else { w - 1 });
    }),
    bug("window_ignored", ATTENTION, "WINDOW is accepted and ignored")
        .desc(|d| d.set(AttrKey::WINDOW, |_| u64::MAX)),
    bug("window_of_whole_blocks", ATTENTION, "the window begins at a block's start")
        .launch(|c| attention(c, |q| q.sees().start / q.block * q.block..q.sees().end, right)),
    bug("window_of_0_is_none", ATTENTION, "a window of 0 counts as none")
        .desc(|d| d.set(AttrKey::WINDOW, |w| if w == 0 { u64::MAX } else { w })),
    bug("window_of_last_query", ATTENTION, "every token of a chunk has the last one's window")
        .launch(|c| {
            attention(
                c,
                |q| Query { p: q.kv_len - 1, ..q }.sees().start.min(q.p)..q.sees().end,
                right,
            )
        }),
    bug("scale_is_of_the_width", ATTENTION, "SCALE is 1 / sqrt(Dk) whatever is asked for").desc(
        |d| {
            let width = d.tensors[0].dims[2] as f64;
            d.set_float(AttrKey::SCALE, |_| 1.0 / width.sqrt());
        },
    ),
    bug("scale_in_bf16", ATTENTION, "SCALE is rounded to bf16")
        .desc(|d| d.set_float(AttrKey::SCALE, |s| through(DType::BF16, s))),
    bug("softcap_ignored", ATTENTION, "SOFTCAP is accepted and ignored")
        .desc(|d| d.set_float(AttrKey::SOFTCAP, |_| 0.0)),
    bug("softcap_before_scale", ATTENTION, "the soft-cap is applied before SCALE").desc(|d| {
        // s (c tanh(x / c)) is what the right kernel makes of a cap of s c and a scale of s.
        let scale = d.float(AttrKey::SCALE);
        d.set_float(AttrKey::SOFTCAP, |cap| cap * scale);
    }),
    bug("softcap_twice", ATTENTION, "the cap is put on capped logits again").launch(|c| {
        if c.float(AttrKey::SOFTCAP) <= 0.0 {
            return c.run();
        }
        // tanh(tanh(x)) with the cap of the cases, 2.
        let again = |z: &[f64], sink| {
            softmax(&z.iter().map(|v| 2.0 * (v / 2.0).tanh()).collect::<Vec<_>>(), sink)
        };
        attention(c, |q| q.sees(), again)
    }),
    bug("sinks_ignored", ATTENTION, "sinks are accepted and ignored")
        .launch(|c| c.edit().without("sinks").run()),
    bug("sinks_doubled", ATTENTION, "the sink is added to the denominator twice")
        .launch(|c| c.edit().map("sinks", |_, s| s + std::f64::consts::LN_2).run()),
    bug("sinks_scaled", ATTENTION, "SCALE multiplies the sinks, too").launch(|c| {
        let scale = c.float(AttrKey::SCALE);
        c.edit().map("sinks", |_, s| s * scale).run()
    }),
    bug("sinks_by_kv_head", ATTENTION, "sinks are read by KV head").launch(|c| {
        if !c.has("sinks") {
            return c.run();
        }
        let (sinks, group) = (c.floats("sinks"), c.dims("q")[1] / c.dims("k_cache")[2]);
        c.edit().map("sinks", |h, _| sinks[h / group]).run()
    }),
    bug("lse_without_sink", ATTENTION, "lse leaves the sink out").launch(|c| {
        c.run()?;
        if c.has("lse") && c.has("sinks") {
            let sinks = c.floats("sinks");
            c.map("lse", |i, l| {
                let sink = sinks[i % sinks.len()];
                if l.is_finite() { l + (1.0 - (sink - l).exp()).ln() } else { l }
            });
        }
        Ok(())
    }),
    bug("lse_of_base_2", ATTENTION, "lse is a logarithm of base 2").launch(|c| {
        c.run()?;
        if c.has("lse") {
            c.map("lse", |_, l| l / std::f64::consts::LN_2);
        }
        Ok(())
    }),
    bug("lse_of_nothing_is_0", ATTENTION, "lse is 0 where nothing is seen").launch(|c| {
        c.run()?;
        if c.has("lse") {
            c.map("lse", |_, l| if l.is_infinite() { 0.0 } else { l });
        }
        Ok(())
    }),
    bug("softmax_without_maximum", ATTENTION, "the largest logit is not taken off").launch(|c| {
        attention(
            c,
            |q| q.sees(),
            |z, sink| {
                let sum: f64 = z.iter().copied().chain(sink).map(exp_f32).sum();
                (z.iter().map(|&v| exp_f32(v) / sum).collect(), sum.ln())
            },
        )
    }),
    bug(
        "softmax_chunks_not_rescaled",
        ATTENTION,
        "sums of values keep the scale of an earlier maximum",
    )
    .launch(|c| attention(c, |q| q.sees(), |z, _| online(z, |_| 1.0, |grown| grown))),
    bug(
        "softmax_sum_not_rescaled",
        ATTENTION,
        "the denominator keeps the scale of an earlier maximum",
    )
    .launch(|c| attention(c, |q| q.sees(), |z, _| online(z, |grown| grown, |_| 1.0))),
    bug("softmax_chunks_averaged", ATTENTION, "chunks of 256 keys are merged with equal weights")
        .launch(|c| {
            attention(
                c,
                |q| q.sees(),
                |z, sink| {
                    let (parts, lse) = (z.chunks(256).count() as f64, softmax(z, sink).1);
                    let weights = z.chunks(256).flat_map(|part| softmax(part, sink).0);
                    (weights.map(|w| w / parts).collect(), lse)
                },
            )
        }),
    bug(
        "softmax_last_chunk_dropped",
        ATTENTION,
        "the last of several chunks of 256 keys is not merged",
    )
    .launch(|c| {
        attention(
            c,
            |q| q.sees(),
            |z, sink| {
                let kept = if z.len() > 256 { (z.len() - 1) / 256 * 256 } else { z.len() };
                let (mut weights, lse) = softmax(&z[..kept], sink);
                weights.resize(z.len(), 0.0);
                (weights, lse)
            },
        )
    }),
    bug("softmax_sum_in_bf16", ATTENTION, "the denominator is summed in bf16").launch(|c| {
        attention(
            c,
            |q| q.sees(),
            |z, sink| {
                let (weights, lse) = softmax(z, sink);
                let sum = weights.iter().fold(0.0, |s, w| through(DType::BF16, s + w));
                (weights.iter().map(|w| w / sum.max(1e-9)).collect(), lse)
            },
        )
    }),
    bug("exponential_in_bf16", ATTENTION, "logits are rounded to bf16").launch(|c| {
        attention(
            c,
            |q| q.sees(),
            |z, sink| {
                let round = |v: &f64| through(DType::BF16, *v);
                softmax(&z.iter().map(round).collect::<Vec<_>>(), sink)
            },
        )
    }),
];
