//! Experts in parts: MOE_PERMUTE, GROUPED_LINEAR, MOE_UNPERMUTE.

use halyard_sdk::{OpKind, abi::AttrKey};

use super::elementwise::packed;
use crate::mutant::{Mutant, bug};

const PERMUTE: OpKind = OpKind::MOE_PERMUTE;
const GROUPED: OpKind = OpKind::GROUPED_LINEAR;
const UNPERMUTE: OpKind = OpKind::MOE_UNPERMUTE;

pub(super) const MUTANTS: &[Mutant] = &[
    bug("permute_start_ignored", PERMUTE, "EXPERT_START counts as 0")
        .desc(|d| d.set(AttrKey::EXPERT_START, |_| 0)),
    bug("permute_negative_is_first", PERMUTE, "a negative id counts as the first expert").launch(
        |c| {
            let start = c.int(AttrKey::EXPERT_START);
            c.edit().map_ints("ids", |_, e| if e < 0 { start } else { e }).run()
        },
    ),
    bug("permute_absent_is_pair_0", PERMUTE, "a pair without expert has the inverse 0")
        .launch(|c| c.then("inverse", |_, p| p.max(0.0))),
    bug("permute_offsets_inclusive", PERMUTE, "offsets are the ends of the experts").launch(|c| {
        c.run()?;
        let offsets = c.floats("offsets");
        c.map("offsets", |e, _| offsets[(e + 1).min(offsets.len() - 1)]);
        Ok(())
    }),
    bug("permute_rest_left", PERMUTE, "rows after the last pair are not written").launch(|c| {
        let (before, width) = (c.floats("xp"), c.width("xp").max(1));
        c.run()?;
        let end = c.floats("offsets").last().copied().unwrap_or(0.0) as usize;
        c.map("xp", |i, x| if i / width >= end { before[i] } else { x });
        Ok(())
    }),
    bug("permute_unstable", PERMUTE, "the tokens of an expert come last first").launch(|c| {
        c.run()?;
        let (offsets, inverse) = (c.floats("offsets"), c.floats("inverse"));
        let (xp, width) = (c.floats("xp"), c.width("xp").max(1));
        let mirrored = |p: usize| {
            let of = offsets.windows(2).find(|w| w[0] as usize <= p && p < w[1] as usize);
            of.map_or(p, |w| (w[0] + w[1]) as usize - 1 - p)
        };
        c.map("xp", |i, _| xp[mirrored(i / width) * width + i % width]);
        c.map("inverse", |i, p| if p < 0.0 { p } else { mirrored(inverse[i] as usize) as f64 });
        Ok(())
    }),
    bug("permute_ignores_strides", PERMUTE, "tokens are taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("grouped_experts_shifted", GROUPED, "experts are stored one place late")
        .fill(|f, _| f.group = (f.group + 1) % f.groups),
    bug("grouped_rest_left", GROUPED, "rows after the last expert are not written").launch(|c| {
        let (before, width) = (c.floats("y"), c.width("y").max(1));
        let end = c.ints("offsets").last().copied().unwrap_or(0) as usize;
        c.then("y", |i, y| if i / width >= end { before[i] } else { y })
    }),
    bug("grouped_empty_takes_one", GROUPED, "an expert without rows takes its successor's first")
        .launch(|c| {
            let offsets = c.ints("offsets");
            let grown = |e: usize| e > 0 && e + 1 < offsets.len() && offsets[e] == offsets[e - 1];
            c.edit()
                .map_ints("offsets", |e, o| if grown(e) { (o + 1).min(offsets[e + 1]) } else { o })
                .run()
        }),
    bug("grouped_ignores_strides", GROUPED, "inputs are taken to be packed")
        .launch(|c| c.edit().view("x", packed).run()),
    bug("unpermute_weights_ignored", UNPERMUTE, "pairs are summed with weight 1")
        .launch(|c| c.edit().map("weight", |_, _| 1.0).run()),
    bug("unpermute_negative_is_pair_0", UNPERMUTE, "a negative inverse counts as pair 0")
        .launch(|c| c.edit().map_ints("inverse", |_, p| p.max(0)).run()),
    bug("unpermute_add_ignored", UNPERMUTE, "what is to be added is ignored")
        .launch(|c| if c.has("add") { c.edit().map("add", |_, _| 0.0).run() } else { c.run() }),
    bug("unpermute_first_only", UNPERMUTE, "only the first pair of a token counts").launch(|c| {
        let top = c.width("inverse").max(1);
        c.edit().map_ints("inverse", |i, p| if i % top > 0 { -1 } else { p }).run()
    }),
];
