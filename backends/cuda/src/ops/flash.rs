//! The attentions of 16-bit activations on matrix units: `kernels/flash.h`.
//!
//! Leading sequences with one new token are decoded, the others go in tiles of rows. Where that gives too few blocks to keep the device busy,
//! keys are split, and a second kernel merges the parts' results. Blocks find lengths in device memory, and decodes from them how many of
//! the launch's parts they use. What a launch, and so a graph that captured it, fixes is how many sequences are decoded, the most parts, and
//! the dims: lengths may grow as long as the first `num_decodes` sequences go on having one new token.
//!
//! What a decode waits for is the memory, and a part's result, which is written and read in f32, is traffic, too. So there are as many parts
//! as give each processor a block, of at least `SHORT_TILES` tiles; twice as many, which hides more of the memory's latency, only where
//! results stay a small share of what is read.

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

/// Fewest tiles that are worth a part; `kernels/attention.h` has it, too.
const SHORT_TILES: u32 = 4;

/// A decode's parts beyond those that fill the device read at least so many times the bytes of their results, written and read.
const RESULTS_SHARE: u64 = 24;

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
    /// Blocks that fill the device; twice as many keep it busy.
    processors: u32,
    /// From how many tiles a decode's part costs what its result does.
    long_tiles: u32,
    /// Bytes of a partial result of all heads.
    part_bytes: u64,
    /// Bytes of partial results beyond which there are fewer parts.
    room: u64,
}

impl Split {
    /// With room for decodes of `decode_blocks` each to keep the device busy; all KV heads of a key have `key_bytes`.
    fn new(processors: u32, decode_blocks: u32, part_bytes: u64, key_bytes: u64) -> Self {
        let most = u64::from((4 * processors).div_ceil(decode_blocks));
        let tile_bytes = key_bytes.max(1) * u64::from(KEYS);
        let long_tiles = (RESULTS_SHARE * 2 * part_bytes).div_ceil(tile_bytes);
        Self {
            processors,
            long_tiles: u32::try_from(long_tiles).unwrap_or(u32::MAX),
            part_bytes,
            room: LEAST_ROOM.max(most * part_bytes),
        }
    }

    /// As many parts as fill the device, of a launch of so many blocks each.
    fn few(&self, blocks: u32) -> u32 {
        self.processors.div_ceil(blocks.max(1))
    }

    /// Most parts for a launch of so many blocks over so many tokens.
    fn most(&self, blocks: u32, tokens: u32) -> u32 {
        let busy = (2 * self.processors).div_ceil(blocks.max(1)).min(MAX_PARTS);
        let room = self.room / (u64::from(tokens.max(1)) * self.part_bytes);
        u64::from(busy).min(room).max(1) as u32
    }

    /// Parts of a prefill.
    fn prefill(&self, blocks: u32, tokens: u32, max_kv: u64) -> u32 {
        let worth = tiles(max_kv).div_ceil(SHORT_TILES);
        self.most(blocks, tokens).min(worth).max(1)
    }

    /// Parts of the longest sequence of a decode: `parts_of` in `kernels/attention.h`.
    fn decode(&self, blocks: u32, tokens: u32, max_kv: u64) -> u32 {
        let tiles = tiles(max_kv);
        let wanted = self.few(blocks).max(tiles / self.long_tiles);
        wanted.min(tiles.div_ceil(SHORT_TILES)).min(self.most(blocks, tokens)).max(1)
    }

    /// Upper bound of the partial results' bytes.
    fn workspace_bytes(&self, tokens: u64) -> u64 {
        let all = tokens.saturating_mul(MAX_PARTS.into()).saturating_mul(self.part_bytes);
        all.min(self.room).next_multiple_of(ALIGN)
    }
}

fn tiles(keys: u64) -> u32 {
    u32::try_from(keys.div_ceil(KEYS.into())).unwrap_or(u32::MAX)
}

pub(super) struct Flash {
    prefill: Tiled,
    decode: Tiled,
    merge: Function<Params>,
    pad: Function<Params>,
    split: Split,
}

impl Flash {
    /// `None` if the op's types or dims are not those of the kernels. A key and its value have `key_bytes` in a KV head.
    pub(super) fn of(
        op: &Op<'_>,
        source: &Source,
        dims: [u32; 2],
        key_bytes: u64,
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
        let all_heads = key_bytes * u64::from(fixed.heads / fixed.group);
        let split = Split::new(op.shared.limits.processors, decode_blocks, part_bytes, all_heads);
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
        let each = blocks[0].saturating_mul(blocks[1]);
        first.parts = self.split.decode(each, decodes, max_kv);
        (first.few_parts, first.long_tiles) = (self.split.few(each), self.split.long_tiles);
        self.enqueue(args, &self.decode, blocks, decodes, first)?;
        let (rest, tokens) = (params.sequences - decodes, params.tokens.saturating_sub(decodes));
        if rest == 0 && tokens == 0 {
            return Ok(());
        }
        if rest > 0 {
            let mut others = *params;
            (others.first_sequence, others.last_sequence) = (decodes, params.sequences);
            let rows = i64::from(tokens) * i64::from(params.group);
            let tiles = small("rows of queries", rows)? / self.prefill.rows + rest;
            others.parts = self.split.prefill(tiles.saturating_mul(kv_heads), tokens, max_kv);
            self.enqueue(args, &self.prefill, [tiles, kv_heads], tokens, others)?;
        }
        args.enqueue(&self.pad, Grid::line(tokens.min(PADDING_BLOCKS), THREADS), params)
    }

    /// A launch for so many tokens, and what merges its parts.
    fn enqueue(
        &self,
        args: &Args<'_>,
        kernel: &Tiled,
        [x, y]: [u32; 2],
        tokens: u32,
        mut params: Params,
    ) -> Result<()> {
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
            let split = Split::new(108, blocks, part_bytes, 1000);
            for tokens in 1..3000 {
                let all = tokens * blocks;
                let parts =
                    [split.prefill(all, tokens, 1 << 30), split.decode(all, tokens, 1 << 30)];
                for parts in parts {
                    let bytes = u64::from(tokens) * u64::from(parts) * part_bytes;
                    assert!(parts == 1 || bytes <= split.workspace_bytes(tokens.into()));
                    assert!(all * parts >= 216, "{tokens} of {blocks} blocks");
                }
            }
        }
    }

    #[test]
    fn short_sequences_are_whole() {
        let split = Split::new(108, 2, 1000, 1000);
        let keys = [0, 1, 256, 257, 1024];
        assert_eq!(keys.map(|keys| split.prefill(2, 1, keys)), [1, 1, 1, 2, 4]);
        assert_eq!(keys.map(|keys| split.decode(2, 1, keys)), [1, 1, 1, 2, 4]);
    }

    /// DeepSeek's 16 heads of one of eight ranks: a result is worth 1371 keys.
    #[test]
    fn parts_beyond_those_that_fill_the_device_are_long() {
        let split = Split::new(132, 1, 16 * 514 * 4, 1152);
        let parts = |sequences, keys| split.decode(sequences, sequences, keys);
        assert_eq!(split.long_tiles, 22);
        // One block a processor, then parts of 22 tiles, then two blocks a processor.
        assert_eq!([8192, 24576, 32768, 65536].map(|keys| parts(8, keys)), [17, 17, 23, 33]);
        assert_eq!([132, 263, 264].map(|n| parts(n, 4096)), [2, 2, 1]);
        assert_eq!([1, 4].map(|n| parts(n, 4096)), [16, 16]);
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
