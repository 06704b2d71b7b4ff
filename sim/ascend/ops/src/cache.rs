//! Paged caches of keys and values.

use crate::dtype::{DType, HALVES, INDICES};
use crate::index::checked;
use crate::launch::{Fault, Launch};
use crate::norm::normed;
use crate::nz::fractal_columns;
use crate::op::{Args, Op, Since, Work, flag, float, ints, tensor, text};
use crate::refusal::{Refusal, ensure};
use crate::rope::rotate_deinterleaved;
use crate::view::View;

/// Operators of this family.
pub(crate) const OPS: &[Op] = &[
    Op {
        name: "ScatterPaKvCache",
        since: Since::V9_1,
        params: &[
            tensor("key"),
            tensor("keyCacheRef").out(),
            tensor("slotMapping"),
            tensor("value"),
            tensor("valueCacheRef").out(),
            tensor("compressLens").or_null(),
            tensor("compressSeqOffset").or_null(),
            tensor("seqLens").or_null(),
            text("cacheMode").or_null(),
            text("scatterMode").or_null(),
            ints("strides").or_null(),
            ints("offsets").or_null(),
        ],
        plan: scatter,
    },
    Op {
        name: "GatherPaKvCache",
        since: Since::V9_1,
        params: &[
            tensor("keyCache"),
            tensor("valueCache"),
            tensor("blockTables"),
            tensor("seqLens"),
            tensor("keyRef").out(),
            tensor("valueRef").out(),
            tensor("seqOffset").or_null(),
            text("cacheMode"),
            flag("isSeqLensCumsum"),
        ],
        plan: gather,
    },
    Op {
        name: "KvRmsNormRopeCache",
        since: Since::V9_1,
        params: &[
            tensor("kv"),
            tensor("gamma"),
            tensor("cos"),
            tensor("sin"),
            tensor("index"),
            tensor("kCacheRef").out(),
            tensor("ckvCacheRef").out(),
            tensor("kRopeScale").or_null(),
            tensor("cKvScale").or_null(),
            tensor("kRopeOffset").or_null(),
            tensor("cKvOffset").or_null(),
            float("epsilon"),
            text("cacheMode").or_null(),
            flag("isOutputKv"),
            tensor("kRopeOut").or_null().out(),
            tensor("cKvOut").or_null().out(),
        ],
        plan: norm_rope,
    },
];

/// How a cache holds the heads `[N, D]` of a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// `[blocks, blockSize, N, D]`
    Norm,
    /// `[blocks, N, blockSize, D]`
    Nhsd,
    /// `[blocks, N·D/C0, blockSize, C0]`, `C0` elements being 32 bytes
    Nz,
}

/// A cache whose shape fits its mode.
struct Cache {
    view: View,
    mode: Mode,
    block: usize,
}

impl Cache {
    /// Of heads `[N, D]`.
    fn of(view: View, mode: Mode, [heads, width]: [usize; 2]) -> Result<Self, Refusal> {
        view.expect_rank(4, 4)?;
        let c0 = fractal_columns(view.dtype);
        let (block, expected) = match mode {
            Mode::Norm => (view.dims[1], vec![view.dims[0], view.dims[1], heads, width]),
            Mode::Nhsd => (view.dims[2], vec![view.dims[0], heads, view.dims[2], width]),
            Mode::Nz => (view.dims[2], vec![view.dims[0], heads * width / c0, view.dims[2], c0]),
        };
        ensure!(
            mode != Mode::Nz || (heads * width).is_multiple_of(c0),
            "{}: heads of {heads}·{width} elements in mode PA_NZ, expected a multiple of {c0}",
            view.name
        );
        view.expect_dims(&expected)?;
        Ok(Self { view, mode, block })
    }

    fn slots(&self) -> usize {
        self.view.dims[0] * self.block
    }

    /// The heads of a slot, `[N, D]`, or `[N·D/C0, C0]` which is as many elements in the same order.
    fn slot(&self, slot: usize) -> View {
        let block = self.view.select(0, slot / self.block);
        block.select(usize::from(self.mode != Mode::Norm), slot % self.block)
    }
}

fn scatter(a: &Args<'_>) -> Result<Work, Refusal> {
    let mode = match a.text("cacheMode")? {
        "" | "Norm" => Mode::Norm,
        "NHSD" => Mode::Nhsd,
        "PA_NZ" => Mode::Nz,
        other => {
            let text = format!("cacheMode: {other:?}, expected \"Norm\", \"PA_NZ\" or \"NHSD\"");
            return Err(Refusal::new(crate::code::INVALID, text));
        }
    };
    let scatter = a.text("scatterMode")?;
    ensure!(["", "None"].contains(&scatter), "scatterMode: {scatter:?}, expected \"None\" here");
    a.expect_null(
        &["compressLens", "compressSeqOffset", "seqLens", "strides", "offsets"],
        "where scatterMode is \"None\"",
    )?;
    let slots = a.tensor("slotMapping")?;
    slots.expect_dtype(INDICES)?.expect_rank(1, 1)?;
    let mut pairs = Vec::new();
    for (from, to) in [("key", "keyCacheRef"), ("value", "valueCacheRef")] {
        let (rows, cache) = (a.tensor(from)?, a.tensor(to)?);
        rows.expect_rank(3, 3)?.expect_dtype(&[DType::F16, DType::BF16, DType::I8])?;
        cache.expect_dtype(&[rows.dtype])?;
        let tokens = rows.dims[0];
        ensure!(
            slots.len() == tokens,
            "slotMapping: {} slots, expected {tokens} for {from}",
            slots.len()
        );
        let cache = Cache::of(cache, mode, [rows.dims[1], rows.dims[2]])?;
        pairs.push((rows, cache));
    }
    let blocks = [&pairs[0].1, &pairs[1].1].map(|cache| (cache.view.dims[0], cache.block));
    ensure!(
        blocks[0] == blocks[1],
        "valueCacheRef: {:?} blocks and blockSize, keyCacheRef has {:?}",
        blocks[1],
        blocks[0]
    );
    Ok(Work::new(move |launch| write_slots(launch, &slots, &pairs))
        .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

fn write_slots(launch: &Launch<'_>, slots: &View, pairs: &[(View, Cache)]) -> Result<(), Fault> {
    let numbers: Vec<i64> = launch.read(slots)?;
    let mut seen = std::collections::HashSet::new();
    for (token, &number) in numbers.iter().enumerate() {
        if !seen.insert(number) {
            return Err(Fault::exception(format!(
                "{}: {number} twice, expected each slot once",
                slots.name
            )));
        }
        for (rows, cache) in pairs {
            let slot = cache.slot(checked(slots, number, cache.slots())?);
            let row: Vec<f32> = launch.read(&rows.select(0, token))?;
            launch.write(&slot, &row)?;
        }
    }
    Ok(())
}

fn gather(a: &Args<'_>) -> Result<Work, Refusal> {
    let mode = match a.text("cacheMode")? {
        "Norm" => Mode::Norm,
        "PA_NZ" => Mode::Nz,
        other => {
            let text = format!("cacheMode: {other:?}, expected \"Norm\" or \"PA_NZ\"");
            return Err(Refusal::new(crate::code::INVALID, text));
        }
    };
    let (tables, lens, offsets) =
        (a.tensor("blockTables")?, a.tensor("seqLens")?, a.optional("seqOffset")?);
    tables.expect_dtype(&[DType::I32])?.expect_rank(2, 2)?;
    let batch = tables.dims[0];
    let cumulative = a.flag("isSeqLensCumsum")?;
    lens.expect_dtype(&[DType::I32])?.expect_dims(&[batch + usize::from(cumulative)])?;
    if let Some(offsets) = &offsets {
        offsets.expect_dtype(&[DType::I32])?.expect_dims(&[batch])?;
    }
    let mut pairs = Vec::new();
    for (from, to) in [("keyCache", "keyRef"), ("valueCache", "valueRef")] {
        let (cache, rows) = (a.tensor(from)?, a.tensor(to)?);
        rows.expect_rank(3, 3)?.expect_dtype(&[DType::F16, DType::BF16, DType::I8])?;
        cache.expect_dtype(&[rows.dtype])?;
        pairs.push((Cache::of(cache, mode, [rows.dims[1], rows.dims[2]])?, rows));
    }
    let pages = Pages { tables, lens, cumulative, offsets };
    Ok(Work::new(move |launch| pages.run(launch, &pairs))
        .with_workspace(u64::from(a.soc.vector_cores) * 64))
}

/// Which pages of a cache belong to which sequence.
struct Pages {
    tables: View,
    lens: View,
    cumulative: bool,
    offsets: Option<View>,
}

impl Pages {
    fn run(&self, launch: &Launch<'_>, pairs: &[(Cache, View)]) -> Result<(), Fault> {
        let mut lens: Vec<i64> = launch.read(&self.lens)?;
        if self.cumulative {
            lens = lens.windows(2).map(|pair| pair[1] - pair[0]).collect();
        }
        let offsets: Option<Vec<i64>> =
            self.offsets.as_ref().map(|o| launch.read(o)).transpose()?;
        for (cache, rows) in pairs {
            let mut row = 0;
            for (batch, &len) in lens.iter().enumerate() {
                let start = offsets.as_ref().map_or(0, |o| o[batch]);
                for position in start..start + len {
                    let bound = self.tables.dims[1] * cache.block;
                    let position = checked(&self.lens, position, bound)?;
                    let entry = self.tables.select(0, batch).select(0, position / cache.block);
                    let page = launch.read::<i64>(&entry)?[0];
                    let page = checked(&self.tables, page, cache.view.dims[0])?;
                    let to = rows.select(0, checked(&self.lens, row, rows.dims[0])?);
                    let values: Vec<f32> =
                        launch.read(&cache.slot(page * cache.block + position % cache.block))?;
                    launch.write(&to, &values)?;
                    row += 1;
                }
            }
        }
        Ok(())
    }
}

/// The compressed part of a token's keys and values, and the part that is rotated.
const LATENT: usize = 512;
const ROPE: usize = 64;

/// Where a token's two parts go.
enum Place {
    /// Positions of each batch's own rows: `[B, 1, S, D]`.
    Contiguous(View, View),
    Paged(Cache, Cache),
}

struct NormRope {
    kv: View,
    gamma: View,
    angles: [View; 2],
    index: View,
    epsilon: f32,
    place: Place,
    outputs: Option<[View; 2]>,
}

fn norm_rope(a: &Args<'_>) -> Result<Work, Refusal> {
    a.expect_null(
        &["kRopeScale", "cKvScale", "kRopeOffset", "cKvOffset"],
        "with a cache that is not quantised",
    )?;
    let (kv, gamma, index) = (a.tensor("kv")?, a.tensor("gamma")?, a.tensor("index")?);
    kv.expect_dtype(HALVES)?.expect_rank(4, 4)?;
    let (batch, tokens) = (kv.dims[0], kv.dims[2]);
    kv.expect_dims(&[batch, 1, tokens, LATENT + ROPE])?;
    gamma.expect_dtype(&[kv.dtype])?.expect_dims(&[LATENT])?;
    let angles = [a.tensor("cos")?, a.tensor("sin")?];
    for view in &angles {
        view.expect_dtype(&[kv.dtype])?.expect_dims(&[batch, 1, tokens, ROPE])?;
    }
    index.expect_dtype(&[DType::I64])?;
    let (rope, latent) = (a.tensor("kCacheRef")?, a.tensor("ckvCacheRef")?);
    for view in [&rope, &latent] {
        view.expect_dtype(&[kv.dtype])?.expect_rank(4, 4)?;
    }
    let mode = a.text("cacheMode")?;
    let place = match mode {
        "" | "Norm" => {
            index.expect_dims(&[batch, tokens])?;
            rope.expect_dims(&[batch, 1, rope.dims[2], ROPE])?;
            latent.expect_dims(&[batch, 1, rope.dims[2], LATENT])?;
            Place::Contiguous(latent, rope)
        }
        "PA" | "PA_BNSD" | "PA_NZ" => {
            index.expect_dims(&[batch * tokens])?;
            let mode = if mode == "PA_NZ" { Mode::Nz } else { Mode::Norm };
            Place::Paged(Cache::of(latent, mode, [1, LATENT])?, Cache::of(rope, mode, [1, ROPE])?)
        }
        _ => {
            let text = format!(
                "cacheMode: {mode:?}, expected \"Norm\", \"PA\", \"PA_BNSD\" or \"PA_NZ\" here"
            );
            return Err(Refusal::new(crate::code::INVALID, text));
        }
    };
    let outputs = if a.flag("isOutputKv")? {
        let outputs = [a.tensor("kRopeOut")?, a.tensor("cKvOut")?];
        outputs[0].expect_dtype(&[kv.dtype])?.expect_dims(&[batch, 1, tokens, ROPE])?;
        outputs[1].expect_dtype(&[kv.dtype])?.expect_dims(&[batch, 1, tokens, LATENT])?;
        Some(outputs)
    } else {
        None
    };
    let epsilon = a.float("epsilon")? as f32;
    let work = NormRope { kv, gamma, angles, index, epsilon, place, outputs };
    Ok(Work::new(move |launch| work.run(launch)).with_workspace(u64::from(a.soc.vector_cores) * 64))
}

impl NormRope {
    fn run(&self, launch: &Launch<'_>) -> Result<(), Fault> {
        let rows: Vec<f32> = launch.read(&self.kv)?;
        let angles: Vec<Vec<f32>> =
            self.angles.iter().map(|v| launch.read(v)).collect::<Result<_, _>>()?;
        let gamma: Vec<f32> = launch.read(&self.gamma)?;
        let index: Vec<i64> = launch.read(&self.index)?;
        let tokens = self.kv.dims[2];
        for (number, row) in rows.chunks_exact(LATENT + ROPE).enumerate() {
            let latent = normed(&row[..LATENT], &gamma, self.epsilon).0;
            let mut rope = row[LATENT..].to_vec();
            let angle = |i: usize| &angles[i][number * ROPE..][..ROPE];
            rotate_deinterleaved(&mut rope, angle(0), angle(1));
            let (batch, token) = (number / tokens, number % tokens);
            if index[number] != -1 {
                let [to_latent, to_rope] = self.place.of(&self.index, batch, index[number])?;
                launch.write(&to_latent, &latent)?;
                launch.write(&to_rope, &rope)?;
            }
            if let Some([rope_out, latent_out]) = &self.outputs {
                let row = |view: &View| view.select(0, batch).narrow(1, token, 1);
                launch.write(&row(rope_out), &rope)?;
                launch.write(&row(latent_out), &latent)?;
            }
        }
        Ok(())
    }
}

impl Place {
    fn of(&self, index: &View, batch: usize, number: i64) -> Result<[View; 2], Fault> {
        match self {
            Self::Contiguous(latent, rope) => {
                let position = checked(index, number, latent.dims[2])?;
                Ok([latent, rope].map(|view| view.select(0, batch).narrow(1, position, 1)))
            }
            Self::Paged(latent, rope) => {
                let slot = checked(index, number, latent.slots().min(rope.slots()))?;
                Ok([latent.slot(slot), rope.slot(slot)])
            }
        }
    }
}
