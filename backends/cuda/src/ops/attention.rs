//! PAGED_ATTENTION, VARLEN_ATTENTION, MLA_ATTENTION and MERGE_ATTENTION: `kernels/attention.cu`, and `flash.rs` for those on matrix units.

use halyard_sdk::{
    DType, Error, Result, TensorSpec, TensorView,
    abi::ops::{
        Sym,
        attrs::{self, MlaAttention, PagedAttention, VarlenAttention},
    },
};

use super::{
    Launch, Op, Prepared,
    args::{Args, address, small},
    flash::Flash,
};
use crate::{
    driver::{Function, Grid},
    kv::{Cache, MAX_DIM, Plane, cell},
};

const THREADS: u32 = 128;

/// `struct Heads` of `kernels/attention.h`: a tensor `[tokens, heads, dim]`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heads {
    data: u64,
    token_stride: i64,
    head_stride: i64,
    dim: u32,
}

impl Heads {
    fn of(view: &TensorView) -> Result<Self> {
        Ok(Self {
            data: address(view),
            token_stride: view.strides[0],
            head_stride: view.strides[1],
            dim: small("dims", view.dims[2])?,
        })
    }
}

/// `struct Attention` of `kernels/attention.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Params {
    q: Heads,
    q2: Heads,
    o: Heads,
    k: Plane,
    k2: Plane,
    v: Plane,
    k_scale: u64,
    v_scale: u64,
    sinks: u64,
    lse: u64,
    lse_token_stride: i64,
    lse_head_stride: i64,
    starts: u64,
    lengths: u64,
    table: u64,
    table_stride: i64,
    columns: u32,
    pub(super) sequences: u32,
    pub(super) tokens: u32,
    pub(super) heads: u32,
    pub(super) group: u32,
    scale: f32,
    softcap: f32,
    window: i32,
    causal: u32,
    code: u32,
    aligned: u32,
    pub(super) first_sequence: u32,
    pub(super) last_sequence: u32,
    pub(super) parts: u32,
    pub(super) few_parts: u32,
    pub(super) long_tiles: u32,
    pub(super) partial: u64,
}

/// Where keys and values are.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Paged(Cache),
    Latent(Cache),
    Rows,
}

/// The slots that the three ops have in different places.
struct Slots {
    starts: usize,
    lengths: usize,
    table: Option<usize>,
    o: usize,
    sinks: Option<usize>,
    scales: Option<usize>,
}

impl Source {
    fn slots(self) -> Slots {
        match self {
            Self::Paged(_) => Slots {
                starts: 4,
                lengths: 5,
                table: Some(3),
                o: 6,
                sinks: Some(10),
                scales: Some(8),
            },
            Self::Latent(_) => {
                Slots { starts: 5, lengths: 6, table: Some(4), o: 7, sinks: None, scales: None }
            }
            Self::Rows => {
                Slots { starts: 3, lengths: 4, table: None, o: 5, sinks: Some(7), scales: None }
            }
        }
    }
}

/// The attributes of an attention.
#[derive(Clone, Copy)]
struct Rule {
    scale: f64,
    causal: bool,
    window: i64,
    softcap: f64,
}

macro_rules! rule_of {
    ($($attrs:ident)*) => {$(
        impl From<$attrs> for Rule {
            fn from(a: $attrs) -> Self {
                Self { scale: a.scale, causal: a.causal, window: a.window, softcap: a.softcap }
            }
        }
    )*};
}

rule_of!(PagedAttention VarlenAttention MlaAttention);

struct Attention {
    /// For every type, width and alignment.
    kernel: Function<Params>,
    flash: Option<Flash>,
    source: Source,
    /// What does not change from launch to launch.
    fixed: Params,
}

pub(super) fn paged(op: &Op<'_>) -> Result<Prepared> {
    let rule = op.attrs::<PagedAttention>()?;
    let cache = Cache::of(op.desc, [1, 2], &[8, 9], false)?;
    prepare(op, Source::Paged(cache), rule.into(), [cache.k.dim, cache.v.dim])
}

pub(super) fn mla(op: &Op<'_>) -> Result<Prepared> {
    let rule = op.attrs::<MlaAttention>()?;
    let cache = Cache::of(op.desc, [2, 3], &[], true)?;
    prepare(op, Source::Latent(cache), rule.into(), [cache.k.dim + cache.v.dim, cache.k.dim])
}

pub(super) fn varlen(op: &Op<'_>) -> Result<Prepared> {
    let rule = op.attrs::<VarlenAttention>()?;
    let width = |sym| {
        let dim = op.dim(sym);
        let fits = (1..=i64::from(MAX_DIM)).contains(&dim);
        fits.then_some(dim as u32).ok_or_else(|| {
            Error::unsupported(format!(
                "varlen_attention: heads of {dim} dims; supported: fixed numbers up to {MAX_DIM}"
            ))
        })
    };
    prepare(op, Source::Rows, rule.into(), [width(Sym::Dk)?, width(Sym::Dv)?])
}

fn prepare(op: &Op<'_>, source: Source, rule: Rule, dims: [u32; 2]) -> Result<Prepared> {
    let heads = op.dim(Sym::Hq);
    let kv_heads = if let Source::Latent(_) = source { 1 } else { op.dim(Sym::Hk) };
    if heads < 1 || heads > i64::from(u16::MAX) || kv_heads < 1 || heads % kv_heads != 0 {
        return Err(Error::invalid(format!(
            "{}: {heads} query heads on {kv_heads} KV heads, expected fixed numbers and a multiple",
            op.desc.kind
        )));
    }
    let cells = match &source {
        Source::Paged(cache) | Source::Latent(cache) => cache.k.dtype,
        Source::Rows => op.dtype(0),
    };
    // Of the kernels on matrix units; `None` is a cache that they do not read.
    let code = [op.dtype(0), DType::F8E4M3, DType::I8].iter().position(|&known| known == cells);
    let fixed = Params {
        heads: heads as u32,
        group: (heads / kv_heads) as u32,
        scale: rule.scale as f32,
        softcap: rule.softcap as f32,
        window: i32::try_from(rule.window).unwrap_or(i32::MAX).max(-1),
        causal: u32::from(rule.causal),
        code: code.unwrap_or(0) as u32,
        ..Params::default()
    };
    let all = if let Source::Latent(_) = source { dims[0] } else { dims[0] + dims[1] };
    let key_bytes = u64::from(all) * cells.bytes(1).unwrap_or(0);
    let flash = match code {
        Some(_) => Flash::of(op, &source, dims, key_bytes, &fixed)?,
        None => None,
    };
    let kernel = format!("attention_{}_{}", op.float(0)?.suffix(), cell(cells)?);
    let kernel = op.kernel("attention", &kernel)?;
    Ok(Prepared::native(Attention { kernel, flash, source, fixed }))
}

/// A tensor `[rows, KV heads, dim]` as a plane.
fn plane_of_rows(view: &TensorView) -> Result<Plane> {
    let bytes = view.dtype.bytes(1).unwrap_or(0).cast_signed();
    Ok(Plane {
        data: address(view),
        head_bytes: view.strides[1] * bytes,
        token_bytes: view.strides[0] * bytes,
        dim: small("dims", view.dims[2])?,
        rows: small("rows", view.dims[0])?,
        ..Plane::default()
    })
}

impl Attention {
    fn params(&self, args: &Args<'_>) -> Result<Params> {
        let slots = self.source.slots();
        let mut p = Params { q: Heads::of(args.view(0)?)?, ..self.fixed };
        match &self.source {
            Source::Paged(cache) => {
                p.k = cache.k.plane(args.view(1)?)?;
                p.v = cache.v.plane(args.view(2)?)?;
            }
            Source::Latent(cache) => {
                p.q2 = Heads::of(args.view(1)?)?;
                p.k = cache.k.plane(args.view(2)?)?;
                p.k2 = cache.v.plane(args.view(3)?)?;
                p.v = p.k;
            }
            Source::Rows => {
                p.k = plane_of_rows(args.view(1)?)?;
                p.v = plane_of_rows(args.view(2)?)?;
            }
        }
        let vector = |slot: Option<usize>| slot.and_then(|s| args.optional(s)).map_or(0, address);
        p.k_scale = vector(slots.scales);
        p.v_scale = vector(slots.scales.map(|s| s + 1));
        p.sinks = vector(slots.sinks);
        let starts = args.view(slots.starts)?;
        p.starts = address(starts);
        p.sequences = small("sequences", (starts.dims[0] - 1).max(0))?;
        p.lengths = address(args.view(slots.lengths)?);
        if let Some(slot) = slots.table {
            let table = args.view(slot)?;
            p.table = address(table);
            p.table_stride = table.strides[0];
            p.columns = small("columns of the block table", table.dims[1])?;
        }
        p.o = Heads::of(args.view(slots.o)?)?;
        p.tokens = small("tokens", args.view(slots.o)?.dims[0])?;
        if let Some(lse) = args.optional(slots.o + 1) {
            p.lse = address(lse);
            [p.lse_token_stride, p.lse_head_stride] = [lse.strides[0], lse.strides[1]];
        }
        Ok(p)
    }
}

/// Whether rows with such strides in bytes begin at multiples of 16.
fn begin_at_16(data: u64, strides: [i64; 2]) -> bool {
    data.is_multiple_of(16) && strides.iter().all(|s| s.unsigned_abs().is_multiple_of(16))
}

impl Heads {
    /// Whether rows of 16-bit elements begin at multiples of 16 bytes.
    fn begins_at_16(&self) -> bool {
        begin_at_16(self.data, [self.token_stride * 2, self.head_stride * 2])
    }
}

impl Params {
    /// Whether keys and values can be read 16 bytes at a time; those of caches always can.
    fn keys_aligned(&self) -> bool {
        let aligned = |p: &Plane| {
            p.dim.is_multiple_of(8) && begin_at_16(p.data, [p.head_bytes, p.token_bytes])
        };
        self.table != 0 || aligned(&self.k) && aligned(&self.v)
    }
}

impl Launch for Attention {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let tokens = u64::try_from(shapes[0].dims[0]).unwrap_or(0);
        self.flash.as_ref().map_or(0, |flash| flash.workspace_bytes(tokens))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let mut params = self.params(args)?;
        if let Some(flash) = self.flash.as_ref().filter(|_| params.keys_aligned()) {
            let aligned = [params.q, params.q2, params.o].iter().all(Heads::begins_at_16);
            params.aligned = u32::from(aligned);
            let scalar = |at: usize| args.args.scalars.as_slice().get(at).copied().unwrap_or(0);
            let decodes = scalar(2).min(params.sequences.into()) as u32;
            return flash.launch(args, &params, decodes, scalar(1));
        }
        let blocks = [params.tokens, params.heads, 1];
        args.enqueue(&self.kernel, Grid { blocks, threads: THREADS, shared: 0 }, &params)
    }
}

/// `struct Merge` of `kernels/attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MergeParams {
    o1: Heads,
    o2: Heads,
    o: Heads,
    lse1: u64,
    lse2: u64,
    lse: u64,
    lse1_strides: [i64; 2],
    lse2_strides: [i64; 2],
    lse_strides: [i64; 2],
}

struct Merge(Function<MergeParams>);

pub(super) fn merge(op: &Op<'_>) -> Result<Prepared> {
    op.attrs::<attrs::MergeAttention>()?;
    let kernel = format!("merge_attention_{}", op.float(0)?.suffix());
    Ok(Prepared::native(Merge(op.kernel("attention", &kernel)?)))
}

impl Launch for Merge {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (lse1, lse2, lse) = (args.view(1)?, args.view(3)?, args.view(5)?);
        let strides = |view: &TensorView| [view.strides[0], view.strides[1]];
        let o = args.view(4)?;
        let params = MergeParams {
            o1: Heads::of(args.view(0)?)?,
            o2: Heads::of(args.view(2)?)?,
            o: Heads::of(o)?,
            lse1: address(lse1),
            lse2: address(lse2),
            lse: address(lse),
            lse1_strides: strides(lse1),
            lse2_strides: strides(lse2),
            lse_strides: strides(lse),
        };
        let (tokens, heads) = (small("tokens", o.dims[0])?, small("heads", o.dims[1])?);
        let grid = Grid { blocks: [tokens, heads, 1], threads: THREADS, shared: 0 };
        args.enqueue(&self.0, grid, &params)
    }
}
