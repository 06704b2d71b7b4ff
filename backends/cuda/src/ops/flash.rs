//! The attentions of 16-bit activations on matrix units: `kernels/flash.h`.
//!
//! Leading sequences with one new token are decoded: their keys are shared among as many blocks as the device needs to be busy, whose
//! partial results a second kernel merges. The other sequences go in tiles of rows. Blocks find lengths in device memory. What a launch, and
//! so a graph that captured it, fixes is how many sequences are decoded, the number of parts, and the dims: lengths may grow as long as the
//! first `num_decodes` sequences go on having one new token.

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
    /// `None` if the device has not enough shared memory.
    fn new(
        op: &Op<'_>,
        stem: &str,
        float: Float,
        shape: &Shape,
        rows: u32,
    ) -> Result<Option<Self>> {
        let shared = shape.shared(rows);
        if shared > op.shared.limits.shared_bytes {
            return Ok(None);
        }
        let suffix = float.suffix();
        let module = if float == Float::F16 { "flash_f16" } else { "flash_bf16" };
        let kernel = op.kernel(module, &format!("flash_{stem}_{}_{suffix}", shape.name))?;
        let _bound = op.shared.bind()?;
        kernel.allow_shared(shared)?;
        Ok(Some(Self { kernel, rows, shared }))
    }

    fn enqueue(&self, args: &Args<'_>, blocks: [u32; 3], params: &Params) -> Result<()> {
        args.enqueue(&self.kernel, Grid { blocks, threads: THREADS, shared: self.shared }, params)
    }
}

/// The dims that a kernel is made for.
struct Shape {
    name: String,
    keys: u32,
    /// `None` if they are part of the keys.
    values: Option<u32>,
    /// Row tiles of a prefill.
    row_tiles: u32,
}

impl Shape {
    fn of(source: &Source, [k, v]: [u32; 2]) -> Option<Self> {
        if let Source::Latent(cache) = source {
            let fits = cache.k.dim <= LATENT[0] && cache.v.dim <= LATENT[1];
            let keys = LATENT[0] + LATENT[1];
            return fits.then(|| Self { name: "latent".into(), keys, values: None, row_tiles: 1 });
        }
        let (width, row_tiles) = *WIDTHS.iter().find(|(width, _)| k.max(v) <= *width)?;
        Some(Self { name: width.to_string(), keys: width, values: Some(width), row_tiles })
    }

    /// Bytes of shared memory for so many rows of queries: queries, keys, values, weights, four numbers a row, places of two tiles' rows.
    fn shared(&self, rows: u32) -> u32 {
        let pitch = |dims: u32| ((dims / 8) | 1) * 16;
        let values = self.values.map_or(0, pitch);
        rows * (pitch(self.keys) + pitch(KEYS) + 16)
            + KEYS * (pitch(self.keys) + values + 2 * 2 * 8)
    }
}

pub(super) struct Flash {
    prefill: Tiled,
    decode: Tiled,
    merge: Function<Params>,
    pad: Function<Params>,
    /// Blocks that a decoded sequence takes if it is not split, and those that keep the device busy.
    decode_blocks: u32,
    busy_blocks: u32,
    /// Bytes of a partial result.
    part_bytes: u64,
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
        let Some(shape) = Shape::of(source, dims).filter(|_| float != Float::F32) else {
            return Ok(None);
        };
        let prefill = Tiled::new(op, "prefill", float, &shape, 16 * shape.row_tiles)?;
        let decode = Tiled::new(op, "decode", float, &shape, 16)?;
        let (Some(prefill), Some(decode)) = (prefill, decode) else { return Ok(None) };
        let after = |stem: &str| op.kernel("attention", &format!("{stem}_{}", float.suffix()));
        Ok(Some(Self {
            prefill,
            decode,
            merge: after("attention_parts")?,
            pad: after("attention_padding")?,
            decode_blocks: fixed.heads / fixed.group * fixed.group.div_ceil(16),
            busy_blocks: 2 * op.shared.limits.processors,
            part_bytes: u64::from(fixed.heads) * (u64::from(dims[1]) + 2) * 4,
        }))
    }

    /// Parts of each of `sequences` decoded ones.
    fn parts(&self, sequences: u32, max_kv: u64) -> u32 {
        let wanted = self.busy_blocks.div_ceil((self.decode_blocks * sequences).max(1));
        wanted.min(max_kv.div_ceil(PART_KEYS).try_into().unwrap_or(u32::MAX)).max(1)
    }

    /// Upper bound of the partial results' bytes, whatever the dims: sequences are only split while they keep too few blocks busy.
    pub(super) fn workspace_bytes(&self) -> u64 {
        let most = u64::from((2 * self.busy_blocks).div_ceil(self.decode_blocks));
        (most * self.part_bytes).next_multiple_of(ALIGN)
    }

    /// `decodes` leading sequences have one new token, none has more than `max_kv` keys.
    pub(super) fn launch(
        &self,
        args: &Args<'_>,
        params: &Params,
        decodes: u32,
        max_kv: u64,
    ) -> Result<()> {
        let parts = self.parts(decodes, max_kv);
        let partial = if parts > 1 { args.workspace(self.workspace_bytes())? } else { 0 };
        let mut first = *params;
        (first.last_sequence, first.parts, first.partial) = (decodes, parts, partial);
        self.decode.enqueue(args, [decodes, self.decode_blocks, parts], &first)?;
        if parts > 1 {
            let blocks = [decodes, params.heads, 1];
            args.enqueue(&self.merge, Grid { blocks, threads: THREADS, shared: 0 }, &first)?;
        }
        let (rest, tokens) = (params.sequences - decodes, params.tokens.saturating_sub(decodes));
        if rest == 0 && tokens == 0 {
            return Ok(());
        }
        if rest > 0 {
            let rows = i64::from(tokens) * i64::from(params.group);
            let blocks = small("rows of queries", rows)? / self.prefill.rows + rest;
            let mut others = *params;
            (others.first_sequence, others.last_sequence) = (decodes, params.sequences);
            self.prefill.enqueue(args, [blocks, params.heads / params.group, 1], &others)?;
        }
        args.enqueue(&self.pad, Grid::line(tokens.min(PADDING_BLOCKS), THREADS), params)
    }
}
