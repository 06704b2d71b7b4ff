//! LINEAR, BATCHED_LINEAR and GROUPED_LINEAR: `kernels/{gemv*,gemm_*}.cu`.

use halyard_sdk::{Error, Result, Scheme, TensorSpec, TensorView, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Rows, Strided, address, small},
    elementwise::Gating,
    library::Library,
    matrix::Matrix,
    stage::{GROUP, Read, Scales, Stage},
};
use crate::{
    driver::{Function, Grid},
    memory::ALIGN,
    weights::{Layout, Packed},
};

/// `struct Linear` of `kernels/linear.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: u64,
    y: u64,
    bias: u64,
    offsets: u64,
    weight: Matrix,
    x_stride: i64,
    y_stride: i64,
    x_group: i64,
    y_group: i64,
    rows: u32,
    n: u32,
    k: u32,
    groups: u32,
    bias_type: Float,
    y_type: Float,
    accumulate: u32,
    x_scales: u32,
    x_scale: u64,
}

/// A kernel for many rows and the tile that a block of it computes.
struct Tiled {
    kernel: Function<Params>,
    rows: u32,
    columns: u32,
    threads: u32,
    shared: u32,
}

impl Tiled {
    /// A kernel of `gemm_mma.cu` or `gemm_fp8.cu`.
    fn tensor(op: &Op<'_>, read: Read, tile: u32) -> Result<Self> {
        let module = if read == Read::Fp8 { "gemm_fp8" } else { "gemm_mma" };
        let kernel = op.kernel(module, &format!("gemm_{tile}_{}", suffix(read)))?;
        // Four stages of both operands' tiles, 64 bytes a row; three of 128 bytes.
        let (columns, threads, stages) = match (tile, read) {
            (16, Read::Bytes | Read::Fp8) => (64, 128, 3 * (16 + 64) * 128),
            (16, _) => (16, 256, 0),
            (64, _) => (64, 128, 4 * (64 + 64) * 64),
            _ => (128, 256, 4 * (128 + 128) * 64),
        };
        // Scales of what is multiplied and of what comes next.
        let scales = if read == Read::Fp8 { 2 * (tile + columns) * 4 } else { 0 };
        let shared = stages + scales;
        kernel.allow_shared(shared)?;
        Ok(Self { kernel, rows: tile, columns, threads, shared })
    }

    /// A kernel of `gemm_quant.h`.
    fn quantised(op: &Op<'_>, read: Read, layout: &Layout, tile: u32) -> Result<Self> {
        let f16 = read == Read::Numbers(Float::F16);
        let module = match Family::of(layout.scheme) {
            Family::Scaled if f16 => "gemm_quant_f16",
            Family::Scaled => "gemm_quant_bf16",
            Family::Gguf if f16 => "gemm_gguf_f16",
            Family::Gguf => "gemm_gguf_bf16",
            Family::GgufK if f16 => "gemm_gguf_k_f16",
            Family::GgufK => "gemm_gguf_k_bf16",
        };
        let form = layout.kernel_name();
        let kernel = op.kernel(module, &format!("gemm_{tile}_{}_{form}", suffix(read)))?;
        let (columns, threads) = match tile {
            16 | 64 => (64, 128),
            _ => (128, 256),
        };
        // Three stages of x and two of W, 64 columns of 2 bytes; twice the most scales and minima of W, four of each a row; scales of x.
        let shared = (3 * tile + 2 * columns) * 64 * 2 + 2 * (8 * columns + tile) * 4;
        kernel.allow_shared(shared)?;
        Ok(Self { kernel, rows: tile, columns, threads, shared })
    }

    /// A kernel of `gemm_simt.cu` or `gemm_simt_quant.cu`.
    fn plain(op: &Op<'_>, module: &'static str, form: &str) -> Result<Self> {
        let kernel = op.kernel(module, &format!("gemm_simt_{form}"))?;
        Ok(Self { kernel, rows: 64, columns: 64, threads: 256, shared: 0 })
    }

    fn blocks(&self, rows: u32, n: u32, groups: u32) -> u32 {
        n.div_ceil(self.columns).saturating_mul(rows.div_ceil(self.rows)).saturating_mul(groups)
    }
}

/// What is read, as names of kernels have it.
fn suffix(read: Read) -> &'static str {
    match read {
        Read::Numbers(float) => float.suffix(),
        Read::Codes => "bf16",
        Read::Bytes => "i8",
        Read::Fp8 => "fp8",
    }
}

/// Schemes whose kernels for many rows are in one module.
#[derive(Clone, Copy)]
enum Family {
    /// With float scales.
    Scaled,
    /// Blocks of 32 columns.
    Gguf,
    /// Blocks of 256 columns.
    GgufK,
}

impl Family {
    fn of(scheme: Scheme) -> Self {
        match scheme.gguf_block() {
            None => Self::Scaled,
            Some((32, _)) => Self::Gguf,
            Some(_) => Self::GgufK,
        }
    }
}

/// The most rows that are multiplied one after the other.
const FEW_ROWS: u32 = 4;

/// What kernels without tensor cores read of what is quantised.
const F32: Read = Read::Numbers(Float::F32);

/// Columns whose products of i8 have a sum in 32 bits.
const MOST_BYTES: u64 = 1 << 17;

/// Columns with one scale that kernels of `gemm_quant.h` multiply at once.
const SCALED_COLUMNS: u64 = 32;

/// A kernel for few rows.
struct Few {
    kernel: Function<Params>,
    /// Outputs of a block.
    outputs: u32,
}

/// `x Wᵀ` of one type of x and one form of W.
pub(super) struct Product {
    layout: Layout,
    groups: u32,
    /// For one row, and for up to four at once.
    few: [Few; 2],
    few_stage: Stage,
    /// For more rows, by growing tiles.
    many: Vec<Tiled>,
    many_stage: Stage,
    /// For many rows in place of these, where it can.
    library: Option<Library>,
    processors: u32,
}

/// What is multiplied and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) x_stride: i64,
    pub(super) x_group: i64,
    pub(super) y: u64,
    pub(super) y_type: Float,
    pub(super) y_stride: i64,
    pub(super) y_group: i64,
    pub(super) rows: u32,
    /// Address and type of the bias, if there is one.
    pub(super) bias: Option<(u64, Float)>,
    pub(super) accumulate: bool,
    /// Address of the groups' first rows, if rows are sorted by group; otherwise each group has all rows.
    pub(super) offsets: Option<u64>,
    /// Of an x that is codes.
    pub(super) scales: Option<Scales>,
}

impl Operands {
    /// One matrix of each, without a bias.
    pub(super) fn new(x: Strided, (y, y_type): (Strided, Float), rows: u32) -> Self {
        Self {
            x: x.data,
            x_stride: x.stride,
            x_group: 0,
            y: y.data,
            y_type,
            y_stride: y.stride,
            y_group: 0,
            rows,
            bias: None,
            accumulate: false,
            offsets: None,
            scales: None,
        }
    }

    /// The same of a launch's tensors, whose first dim is rows.
    fn of(x: &TensorView, y: &TensorView) -> Result<Self> {
        let to = (Strided::of(y), Float::of(y.dtype)?);
        Ok(Self::new(Strided::of(x), to, small("rows", x.dims[0])?))
    }
}

impl Product {
    /// The product of a slot's weight with `x`es of this type, which are quantised before if `act_quant` says so.
    pub(super) fn new(op: &Op<'_>, slot: usize, x: Float, act_quant: i64) -> Result<Self> {
        let layout = op.layouts.get(slot).cloned();
        let layout = layout.ok_or_else(|| Error::invalid(format!("weight {slot} is missing")))?;
        let groups = op.desc.weights.get(slot).map_or(1, |w| w.groups);
        let (few, few_read) = Self::few(op, &layout, x, act_quant)?;
        let (many, many_read) = Self::many(op, &layout, x, act_quant)?;
        let stage = |read: Read| Stage::new(op, &layout, x, read, act_quant);
        let library = match act_quant {
            0 if groups == 1 => Library::new(op, &layout, x)?,
            _ => None,
        };
        Ok(Self {
            library,
            few,
            few_stage: stage(Read::Numbers(few_read))?,
            many,
            many_stage: stage(many_read)?,
            processors: op.shared.limits.processors,
            groups,
            layout,
        })
    }

    /// The kernels for few rows, and the type that they read x as. Those of quantised weights, whose work is elsewhere, are compiled for
    /// one type.
    fn few(op: &Op<'_>, layout: &Layout, x: Float, act_quant: i64) -> Result<([Few; 2], Float)> {
        let (w, quantised) = (layout.kernel_name(), layout.scheme != Scheme::DENSE);
        let read = if quantised || act_quant != 0 { Float::F32 } else { x };
        let (module, form, outputs) = if quantised {
            ("gemv_quant", w, [16, 8])
        } else {
            ("gemv", format!("{}_{w}", read.suffix()), [16, 16])
        };
        let few = |rows: u32, outputs: u32| {
            let kernel = op.kernel(module, &format!("gemv_{rows}_{form}"))?;
            Ok(Few { kernel, outputs })
        };
        Ok(([few(1, outputs[0])?, few(FEW_ROWS, outputs[1])?], read))
    }

    /// The kernels for many rows, and what they read: tensor cores have products of 16-bit types with themselves, and of codes.
    fn many(op: &Op<'_>, layout: &Layout, x: Float, act_quant: i64) -> Result<(Vec<Tiled>, Read)> {
        let (w, quantised) = (layout.kernel_name(), layout.scheme != Scheme::DENSE);
        let read = match act_quant {
            0 => Read::Numbers(x),
            1 if layout.scheme == Scheme::INT8_CHANNEL && layout.k <= MOST_BYTES => Read::Bytes,
            2 if op.shared.kernels.fp8() && Self::scaled_as_activations(layout) => Read::Fp8,
            _ if quantised && Self::scaled_at_once(layout) => Read::Codes,
            _ => Read::Numbers(Float::F32),
        };
        let tiles = [16, 64, 128].into_iter();
        if matches!(read, Read::Bytes | Read::Fp8)
            || (!quantised && read != F32 && w == suffix(read))
        {
            let many = tiles.map(|tile| Tiled::tensor(op, read, tile));
            return Ok((many.collect::<Result<_>>()?, read));
        }
        if quantised && read != F32 && Self::scaled_at_once(layout) {
            let many = tiles.map(|tile| Tiled::quantised(op, read, layout, tile));
            return Ok((many.collect::<Result<_>>()?, read));
        }
        if quantised {
            return Ok((vec![Tiled::plain(op, "gemm_simt_quant", &w)?], F32));
        }
        let form = format!("{}_{w}", suffix(read));
        Ok((vec![Tiled::plain(op, "gemm_simt", &form)?], read))
    }

    /// Whether the columns that kernels of tiles take have one scale.
    fn scaled_at_once(layout: &Layout) -> bool {
        layout.columns >= layout.k || layout.columns.is_multiple_of(SCALED_COLUMNS)
    }

    /// Whether W is codes of f8e4m3 with one scale for columns that share one of x's.
    fn scaled_as_activations(layout: &Layout) -> bool {
        [Scheme::FP8_BLOCK, Scheme::FP8_CHANNEL].contains(&layout.scheme)
            && (layout.columns >= layout.k || layout.columns.is_multiple_of(GROUP))
    }

    /// Bytes of `rows` staged rows of x.
    fn stage_bytes(&self, rows: u64) -> u64 {
        let few = rows.min(u64::from(FEW_ROWS) * u64::from(self.groups));
        self.few_stage.bytes(few).max(self.many_stage.bytes(rows))
    }

    /// Scratch bytes for `rows` rows of x (counting groups), wherever they lie.
    pub(super) fn scratch_bytes(&self, rows: u64) -> u64 {
        let library = self.library.as_ref().map_or(0, |library| library.workspace_bytes(rows));
        self.stage_bytes(rows).saturating_add(library)
    }

    /// Enqueues the product with the groups of `weight`; `scratch` has [`Self::scratch_bytes`].
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        weight: &Packed,
        o: Operands,
        scratch: u64,
    ) -> Result<()> {
        if o.rows == 0 {
            return Ok(());
        }
        // Sorted rows are spread over the groups; one block more fills the rows of no group.
        let (rows, z) = match o.offsets {
            Some(_) => (o.rows.div_ceil(weight.groups), weight.groups + 1),
            None => (o.rows, weight.groups),
        };
        let stage = if rows <= FEW_ROWS { &self.few_stage } else { &self.many_stage };
        let o = stage.run(args, weight, o, scratch)?;
        if let Some(library) = &self.library
            && library.run(args, weight, &o, scratch + self.stage_bytes(rows.into()))?
        {
            return Ok(());
        }
        let params = Params {
            x: o.x,
            y: o.y,
            bias: o.bias.map_or(0, |(at, _)| at),
            offsets: o.offsets.unwrap_or(0),
            weight: Matrix::of(weight),
            x_stride: o.x_stride,
            y_stride: o.y_stride,
            x_group: o.x_group,
            y_group: o.y_group,
            rows: o.rows,
            n: self.layout.n as u32,
            k: self.layout.k as u32,
            groups: weight.groups,
            bias_type: o.bias.map_or(Float::F32, |(_, float)| float),
            y_type: o.y_type,
            accumulate: u32::from(o.accumulate),
            x_scales: o.scales.map_or(0, |scales| scales.a_row),
            x_scale: o.scales.map_or(0, |scales| scales.start),
        };
        if rows <= FEW_ROWS {
            let few = &self.few[usize::from(rows > 1)];
            let across = params.n.div_ceil(few.outputs);
            let grid = Grid { blocks: [across, 1, z], threads: 128, shared: 0 };
            return args.enqueue(&few.kernel, grid, &params);
        }
        let tiled = self.choose(rows, params.n, weight.groups);
        let (across, down) = (params.n.div_ceil(tiled.columns), o.rows.div_ceil(tiled.rows));
        if down > u32::from(u16::MAX) || z > u32::from(u16::MAX) {
            return Err(Error::unsupported(format!("{} rows and {z} groups", o.rows)));
        }
        let grid = Grid { blocks: [across, down, z], threads: tiled.threads, shared: tiled.shared };
        args.enqueue(&tiled.kernel, grid, &params)
    }

    /// The largest tile that has rows enough and gives every multiprocessor a block.
    fn choose(&self, rows: u32, n: u32, groups: u32) -> &Tiled {
        let first = &self.many[0];
        let fits = |t: &&Tiled| rows > t.rows / 2 && t.blocks(rows, n, groups) >= self.processors;
        let second = self.many.get(1).filter(|t| rows > first.rows && rows * 2 > t.rows);
        self.many.iter().rev().find(fits).or(second).unwrap_or(first)
    }
}

/// A dim of a shape as a size; 0 if it is absent or negative.
pub(super) fn spec_dim(shapes: &[TensorSpec], slot: usize, axis: usize) -> u64 {
    let dim = shapes.get(slot).and_then(|s| s.dims().get(axis));
    dim.and_then(|&d| u64::try_from(d).ok()).unwrap_or(0)
}

fn biased(view: &TensorView) -> Result<(u64, Float)> {
    Ok((address(view), Float::of(view.dtype)?))
}

struct Linear {
    product: Product,
    accumulate: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs::Linear { accumulate, act_quant } = op.attrs()?;
    op.float(2)?;
    let product = Product::new(op, 0, op.float(0)?, act_quant)?;
    Ok(Prepared::native(Linear { product, accumulate }))
}

impl Launch for Linear {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.product.scratch_bytes(spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let operands = Operands {
            bias: args.optional(1).map(biased).transpose()?,
            accumulate: self.accumulate,
            ..Operands::of(args.view(0)?, args.view(2)?)?
        };
        let scratch = args.workspace(self.product.scratch_bytes(operands.rows.into()))?;
        self.product.run(args, &*args.weight(0)?, operands, scratch)
    }
}

struct Batched(Product);

pub(super) fn batched(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::BatchedLinear>()?;
    op.float(1)?;
    Ok(Prepared::native(Batched(Product::new(op, 0, op.float(0)?, 0)?)))
}

impl Launch for Batched {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.0.scratch_bytes(spec_dim(shapes, 0, 0).saturating_mul(spec_dim(shapes, 0, 1)))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.view(0)?, args.view(1)?);
        let operands =
            Operands { x_group: x.strides[1], y_group: y.strides[1], ..Operands::of(x, y)? };
        let groups = small("groups", x.dims[1])?;
        let rows = u64::from(operands.rows) * u64::from(groups);
        let scratch = args.workspace(self.0.scratch_bytes(rows))?;
        self.0.run(args, &*args.weight(0)?, operands, scratch)
    }
}

struct Grouped(Product);

pub(super) fn grouped(op: &Op<'_>) -> Result<Prepared> {
    let attrs::GroupedLinear { act_quant } = op.attrs()?;
    op.float(2)?;
    Ok(Prepared::native(Grouped(Product::new(op, 0, op.float(0)?, act_quant)?)))
}

impl Launch for Grouped {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.0.scratch_bytes(spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let operands = Operands {
            offsets: Some(address(args.view(1)?)),
            ..Operands::of(args.view(0)?, args.view(2)?)?
        };
        let scratch = args.workspace(self.0.scratch_bytes(operands.rows.into()))?;
        self.0.run(args, &*args.weight(0)?, operands, scratch)
    }
}

/// LINEAR_ACT_MUL: the layer's result in scratch memory, then the gated activation.
struct LinearActMul {
    product: Product,
    gating: Gating,
    x: Float,
}

pub(super) fn act_mul(op: &Op<'_>) -> Result<Prepared> {
    let attrs::LinearActMul { act, limit, act_quant } = op.attrs()?;
    let x = op.float(0)?;
    let product = Product::new(op, 0, x, act_quant)?;
    Ok(Prepared::native(LinearActMul { product, gating: Gating::new(op, x, act, limit)?, x }))
}

impl LinearActMul {
    /// Bytes of the layer's result.
    fn between_bytes(&self, rows: u64) -> u64 {
        let bytes = rows.saturating_mul(self.product.layout.n).saturating_mul(self.x.bytes());
        bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
    }

    fn bytes(&self, rows: u64) -> u64 {
        self.between_bytes(rows).saturating_add(self.product.scratch_bytes(rows))
    }
}

impl Launch for LinearActMul {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.bytes(spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let x = args.view(0)?;
        let rows = small("rows", x.dims[0])?;
        let between = args.workspace(self.bytes(rows.into()))?;
        let width = self.product.layout.n as u32;
        let result = Strided { data: between, stride: i64::from(width) };
        let operands = Operands {
            bias: args.optional(1).map(biased).transpose()?,
            ..Operands::new(Strided::of(x), (result, self.x), rows)
        };
        let scratch = between + self.between_bytes(rows.into());
        self.product.run(args, &*args.weight(0)?, operands, scratch)?;
        let (gu, y) = (Rows::matrix(result.data, result.stride), args.rows(2)?);
        self.gating.run(args, gu, y.rows, rows, y.cols)
    }
}
