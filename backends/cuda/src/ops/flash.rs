//! The attentions of 16-bit activations on matrix units: `kernels/flash.h`.
//!
//! Leading sequences with one new token are decoded, the others go in tiles of rows. Where that gives too few blocks to keep the device busy,
//! keys are split, and a second kernel merges the parts' results. Blocks find lengths in device memory. What a launch, and so a graph that
//! captured it, fixes is how many sequences are decoded, the number of parts, and the dims: lengths may grow as long as the first
//! `num_decodes` sequences go on having one new token.

use halyard_sdk::Result;

use super::{
    Op,
    args::{Args, Float, small},
    attention::{Params, Source},
};
use crate::{
    driver::{Function, Grid},
    memory::ALIGN,
};

const THREADS: u32 = 128;

/// Keys of a tile.
const KEYS: u32 = 64;

/// Fewest keys that are worth a part.
const PART_KEYS: u64 = 256;

/// Most parts.
const MAX_PARTS: u32 = 256;

/// Bytes of partial results that any op has room for.
const LEAST_ROOM: u64 = 2 << 20;

/// Blocks that zero the padding.
const PADDING_BLOCKS: u32 = 64;

/// Dims that kernels are made for, and row tiles of 16 of a prefill.
const WIDTHS: [(u32, u32); 6] = [(64, 4), (80, 4), (96, 4), (128, 4), (192, 4), (256, 2)];

/// Dims of a latent and of its rotated part.
const LATENT: [u32; 2] = [512, 64];

/// A kernel for tiles of rows.
struct Tiled {
    kernel: Function<Params>,
    rows: u32,
    shared: u32,
}

impl Tiled {
    /// The kernel of the first shape for which the device has enough shared memory.
    fn new(op: &Op<'_>, stem: &str, float: Float, shapes: &[Shape]) -> Result<Option<Self>> {
        let fits = |shape: &&Shape| shape.shared() <= op.shared.limits.shared_bytes;
        let Some(shape) = shapes.iter().find(fits) else { return Ok(None) };
        let suffix = float.suffix();
        let module = if float == Float::F16 { "flash_f16" } else { "flash_bf16" };
        let kernel = op.kernel(module, &format!("flash_{stem}_{}_{suffix}", shape.name))?;
        let _bound = op.shared.bind()?;
        kernel.allow_shared(shape.shared())?;
        Ok(Some(Self { kernel, rows: shape.rows, shared: shape.shared() }))
    }
}

/// What a kernel is made for.
struct Shape {
    name: String,
    keys: u32,
    /// `None` if they are part of the keys.
    values: Option<u32>,
    /// Rows of queries of a block.
    rows: u32,
}

impl Shape {
    /// The kernels for keys and values of these dims, the best first: of a prefill, and of a decode with `group` heads a KV head.
    fn of(source: &Source, [k, v]: [u32; 2], group: u32) -> [Vec<Self>; 2] {
        if let Source::Latent(cache) = source {
            let fits = cache.k.dim <= LATENT[0] && cache.v.dim <= LATENT[1];
            let shapes = |least_rows: u32| {
                let rows = [(32, "latent32"), (16, "latent")].into_iter();
                let wanted = rows.filter(|(rows, _)| fits && (*rows == 16 || least_rows > 16));
                let keys = LATENT[0] + LATENT[1];
                wanted
                    .map(|(rows, name)| Self { name: name.into(), keys, values: None, rows })
                    .collect()
            };
            return [shapes(u32::MAX), shapes(group)];
        }
        let shapes = |rows: Option<u32>| {
            let width = WIDTHS.iter().find(|(width, _)| k.max(v) <= *width);
            let shape = width.map(|&(width, row_tiles)| Self {
                name: width.to_string(),
                keys: width,
                values: Some(width),
                rows: rows.unwrap_or(16 * row_tiles),
            });
            shape.into_iter().collect()
        };
        [shapes(None), shapes(Some(16))]
    }

    /// Bytes of shared memory: queries, keys, values, weights, four numbers a row, places of two tiles' rows.
    fn shared(&self) -> u32 {
        let pitch = |dims: u32| ((dims / 8) | 1) * 16;
        let values = self.values.map_or(0, pitch);
        self.rows * (pitch(self.keys) + pitch(KEYS) + 16)
            + KEYS * (pitch(self.keys) + values + 2 * 2 * 8)
    }
}

/// How keys are split.
struct Split {
    /// Blocks that keep the device busy.
    busy_blocks: u32,
    /// Bytes of a partial result of all heads.
    part_bytes: u64,
    /// Bytes of partial results beyond which there are fewer parts.
    room: u64,
}

impl Split {
    /// With room for decodes of `decode_blocks` each to keep the device busy.
    fn new(busy_blocks: u32, decode_blocks: u32, part_bytes: u64) -> Self {
        let most = u64::from((2 * busy_blocks).div_ceil(decode_blocks));
        Self { busy_blocks, part_bytes, room: LEAST_ROOM.max(most * part_bytes) }
    }

    /// Parts for a launch of so many blocks over so many tokens.
    fn parts(&self, blocks: u32, tokens: u32, max_kv: u64) -> u32 {
        let wanted = self.busy_blocks.div_ceil(blocks.max(1)).min(MAX_PARTS);
        let worth = max_kv.div_ceil(PART_KEYS);
        let room = self.room / (u64::from(tokens.max(1)) * self.part_bytes);
        u64::from(wanted).min(worth).min(room).max(1) as u32
    }

    /// Upper bound of the partial results' bytes.
    fn workspace_bytes(&self, tokens: u64) -> u64 {
        let all = tokens.saturating_mul(MAX_PARTS.into()).saturating_mul(self.part_bytes);
        all.min(self.room).next_multiple_of(ALIGN)
    }
}

pub(super) struct Flash {
    prefill: Tiled,
    decode: Tiled,
    merge: Function<Params>,
    pad: Function<Params>,
    split: Split,
}

impl Flash {
    /// `None` if the op's types or dims are not those of the kernels.
    pub(super) fn of(
        op: &Op<'_>,
        source: &Source,
        dims: [u32; 2],
        fixed: &Params,
    ) -> Result<Option<Self>> {
        let float = op.float(0)?;
        if float == Float::F32 {
            return Ok(None);
        }
        let [prefill, decode] = Shape::of(source, dims, fixed.group);
        let prefill = Tiled::new(op, "prefill", float, &prefill)?;
        let decode = Tiled::new(op, "decode", float, &decode)?;
        let (Some(prefill), Some(decode)) = (prefill, decode) else { return Ok(None) };
        let decode_blocks = fixed.heads / fixed.group * fixed.group.div_ceil(decode.rows);
        let part_bytes = u64::from(fixed.heads) * (u64::from(dims[1]) + 2) * 4;
        let split = Split::new(2 * op.shared.limits.processors, decode_blocks, part_bytes);
        let after = |stem: &str| op.kernel("attention", &format!("{stem}_{}", float.suffix()));
        let (merge, pad) = (after("attention_parts")?, after("attention_padding")?);
        Ok(Some(Self { prefill, decode, merge, pad, split }))
    }

    /// Upper bound of scratch bytes for so many tokens.
    pub(super) fn workspace_bytes(&self, tokens: u64) -> u64 {
        self.split.workspace_bytes(tokens)
    }

    /// `decodes` leading sequences have one new token, none has more than `max_kv` keys.
    pub(super) fn launch(
        &self,
        args: &Args<'_>,
        params: &Params,
        decodes: u32,
        max_kv: u64,
    ) -> Result<()> {
        let kv_heads = params.heads / params.group;
        let mut first = *params;
        first.last_sequence = decodes;
        let blocks = [decodes, kv_heads * params.group.div_ceil(self.decode.rows)];
        self.enqueue(args, &self.decode, blocks, (decodes, max_kv), first)?;
        let (rest, tokens) = (params.sequences - decodes, params.tokens.saturating_sub(decodes));
        if rest == 0 && tokens == 0 {
            return Ok(());
        }
        if rest > 0 {
            let mut others = *params;
            (others.first_sequence, others.last_sequence) = (decodes, params.sequences);
            let rows = i64::from(tokens) * i64::from(params.group);
            let tiles = small("rows of queries", rows)? / self.prefill.rows + rest;
            self.enqueue(args, &self.prefill, [tiles, kv_heads], (tokens, max_kv), others)?;
        }
        args.enqueue(&self.pad, Grid::line(tokens.min(PADDING_BLOCKS), THREADS), params)
    }

    /// A launch for so many tokens, of which none sees more than `max_kv` keys, and what merges its parts.
    fn enqueue(
        &self,
        args: &Args<'_>,
        kernel: &Tiled,
        [x, y]: [u32; 2],
        (tokens, max_kv): (u32, u64),
        mut params: Params,
    ) -> Result<()> {
        params.parts = self.split.parts(x.saturating_mul(y), tokens, max_kv);
        if params.parts > 1 {
            params.partial = args.workspace(self.workspace_bytes(tokens.into()))?;
        }
        let grid = Grid { blocks: [x, y, params.parts], threads: THREADS, shared: kernel.shared };
        args.enqueue(&kernel.kernel, grid, &params)?;
        if params.parts > 1 {
            let blocks = [tokens, params.heads, 1];
            args.enqueue(&self.merge, Grid { blocks, threads: THREADS, shared: 0 }, &params)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_the_device_busy_and_fit_the_workspace() {
        for (blocks, part_bytes) in [(1, 40), (2, 2064), (4, 263_168), (300, 66_560)] {
            let split = Split::new(216, blocks, part_bytes);
            for tokens in 1..3000 {
                let parts = split.parts(tokens * blocks, tokens, 1 << 30);
                let bytes = u64::from(tokens) * u64::from(parts) * part_bytes;
                assert!(parts == 1 || bytes <= split.workspace_bytes(tokens.into()), "{tokens}");
                assert!(tokens * blocks * parts >= 216, "{tokens} of {blocks} blocks");
            }
        }
    }

    #[test]
    fn short_sequences_are_whole() {
        let split = Split::new(216, 2, 1000);
        assert_eq!([0, 1, 256, 257, 1024].map(|keys| split.parts(2, 1, keys)), [1, 1, 1, 2, 4]);
    }

    #[test]
    fn every_width_has_a_kernel_that_an_l20_has_room_for() {
        for dims in [[1, 1], [64, 80], [128, 128], [192, 128], [256, 256]] {
            let [prefill, decode] = Shape::of(&Source::Rows, dims, 4);
            assert!(
                prefill.iter().chain(&decode).all(|shape| shape.shared() <= 101_376),
                "{dims:?}"
            );
        }
        assert!(Shape::of(&Source::Rows, [257, 64], 4).iter().all(Vec::is_empty));
    }
}
