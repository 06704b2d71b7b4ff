//! MOE_EXPERTS: rows sorted by expert through two grouped products, with what is between them; few tokens without sorting, by
//! `kernels/experts.cu`.

use halyard_sdk::{Error, Result, Scheme, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Rows, Strided, small},
    elementwise::{Gate, Gating},
    linear::{Operands, Product, spec_dim},
    matrix::Matrix,
    permute::{Pairs, Permutation, Sums},
};
use crate::{
    driver::{Function, Grid},
    memory::ALIGN,
    weights::{EIGHT, Layout, Packed},
};

/// Tokens that go through the experts at once, so that scratch memory stays within bounds.
const MOST_TOKENS: u64 = 4096;

/// Pairs of tokens and experts of which each takes its expert's weights on its own.
const FEW_PAIRS: u32 = 64;

/// Threads a block of the kernels for few pairs, and rows of a weight that it takes.
const THREADS: u32 = 128;
const OUTPUTS: u32 = 8;

/// `struct Experts` of `kernels/experts.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: u64,
    ids: u64,
    weight: u64,
    gated: u64,
    y: u64,
    add: u64,
    w0: Matrix,
    w1: Matrix,
    x_stride: i64,
    ids_stride: i64,
    weight_stride: i64,
    gated_stride: i64,
    y_stride: i64,
    add_stride: i64,
    first_expert: i64,
    top: u32,
    experts: u32,
    h: u32,
    i: u32,
    weight_on_input: u32,
    gate: Gate,
}

/// The kernels for few pairs.
struct Few {
    gates: Function<Params>,
    sums: Function<Params>,
    gate: Gate,
    first_expert: i64,
}

impl Few {
    /// There are none for weights of another type than x's, and for quantised activations.
    fn new(op: &Op<'_>, x: Float, attrs: &attrs::MoeExperts) -> Result<Option<Self>> {
        let same = |w: &Layout| w.scheme == Scheme::DENSE && Float::of(w.dtype) == Ok(x);
        if !op.layouts.iter().all(same) || attrs.act_quant != 0 {
            return Ok(None);
        }
        let kernel = |stem: &str| op.kernel("experts", &format!("experts_{stem}_{}", x.suffix()));
        let gate = Gate::new(attrs.act, attrs.limit);
        let first_expert = attrs.expert_start;
        Ok(Some(Self { gates: kernel("gates")?, sums: kernel("sums")?, gate, first_expert }))
    }
}

struct Experts {
    few: Option<Few>,
    permutation: Permutation,
    first: Product,
    gating: Gating,
    second: Product,
    sums: Sums,
    /// What x is, and what is between the products.
    x: Float,
    weight_on_input: bool,
    groups: u32,
    h: u64,
    i: u64,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs: attrs::MoeExperts = op.attrs()?;
    let attrs::MoeExperts { expert_start, act, limit, weight_on_input, .. } = attrs;
    let [w0, w1] = &op.layouts[..] else {
        return Err(Error::invalid("moe_experts: expected two weights"));
    };
    let x = op.float(0)?;
    let (h, i) = (w0.k, w1.k);
    Ok(Prepared::native(Experts {
        few: Few::new(op, x, &attrs)?,
        permutation: Permutation::new(op, x, expert_start, weight_on_input)?,
        first: Product::new(op, 0, x, attrs.act_quant)?,
        gating: Gating::new(op, x, act, limit)?,
        second: Product::new(op, 1, x, attrs.act_quant)?,
        sums: Sums::new(op, Float::F32, x)?,
        x,
        weight_on_input,
        groups: op.desc.weights[0].groups,
        h,
        i,
    }))
}

/// Where the parts of scratch memory begin.
struct Parts {
    inverse: u64,
    sorted: u64,
    gates: u64,
    /// In place of the sorted rows and the gates.
    outputs: u64,
    gated: u64,
    scratch: u64,
    bytes: u64,
}

impl Experts {
    fn parts(&self, tokens: u64, top: u64) -> Parts {
        let pairs = tokens.min(MOST_TOKENS).saturating_mul(top);
        let after = |start: u64, count: u64, width: u64, bytes: u64| {
            let part = count.saturating_mul(width).saturating_mul(bytes);
            start.saturating_add(part).checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
        };
        let inverse = after(0, u64::from(self.groups) + 1, 1, 4);
        let sorted = after(inverse, pairs, 1, 4);
        let gates = after(sorted, pairs, self.h.next_multiple_of(EIGHT), self.x.bytes());
        let gates_end = after(gates, pairs, 2 * self.i, self.x.bytes());
        let gated = gates_end.max(after(sorted, pairs, self.h, 4));
        let scratch = after(gated, pairs, self.i.next_multiple_of(EIGHT), self.x.bytes());
        let staged = self.first.scratch_bytes(pairs).max(self.second.scratch_bytes(pairs));
        let few = after(0, pairs.min(FEW_PAIRS.into()), self.i.next_multiple_of(EIGHT), 4);
        let bytes = scratch.saturating_add(staged).max(few);
        Parts { inverse, sorted, gates, outputs: sorted, gated, scratch, bytes }
    }

    /// The experts on few tokens.
    fn run_few(&self, args: &Args<'_>, few: &Few, weights: [&Packed; 2], t: &Tokens) -> Result<()> {
        let gated = self.i.next_multiple_of(EIGHT);
        let params = Params {
            x: t.x.data,
            ids: t.ids.data,
            weight: t.weight.data,
            gated: args.workspace(self.parts(t.count.into(), t.top.into()).bytes)?,
            y: t.y.data,
            add: t.add.map_or(0, |add| add.data),
            w0: Matrix::of(weights[0]),
            w1: Matrix::of(weights[1]),
            x_stride: t.x.stride,
            ids_stride: t.ids.stride,
            weight_stride: t.weight.stride,
            gated_stride: gated.cast_signed(),
            y_stride: t.y.stride,
            add_stride: t.add.map_or(0, |add| add.stride),
            first_expert: few.first_expert,
            top: t.top,
            experts: self.groups,
            h: self.h as u32,
            i: self.i as u32,
            weight_on_input: u32::from(self.weight_on_input),
            gate: few.gate,
        };
        let grid = |outputs: u64, down: u32| Grid {
            blocks: [(outputs as u32).div_ceil(OUTPUTS), down, 1],
            threads: THREADS,
            shared: 0,
        };
        args.enqueue(&few.gates, grid(gated, t.count * t.top), &params)?;
        args.enqueue(&few.sums, grid(self.h, t.count), &params)
    }

    /// The experts on some tokens.
    fn run(&self, args: &Args<'_>, weights: [&Packed; 2], t: &Tokens) -> Result<()> {
        let readable = t.x.aligned(self.h as u32, self.x.bytes()) && self.h.is_multiple_of(EIGHT);
        if let Some(few) = &self.few
            && u64::from(t.count) * u64::from(t.top) <= FEW_PAIRS.into()
            && readable
        {
            return self.run_few(args, few, weights, t);
        }
        let parts = self.parts(t.count.into(), t.top.into());
        let memory = args.workspace(parts.bytes)?;
        let at =
            |part: u64, width: u64| Strided { data: memory + part, stride: width.cast_signed() };
        let pairs = Pairs {
            ids: t.ids,
            offsets: memory,
            inverse: at(parts.inverse, t.top.into()),
            tokens: t.count,
            top: t.top,
            experts: self.groups,
        };
        let rows = pairs.count()?;
        let sorted = at(parts.sorted, self.h.next_multiple_of(EIGHT));
        let gates = at(parts.gates, 2 * self.i);
        let gated = at(parts.gated, self.i.next_multiple_of(EIGHT));
        let outputs = at(parts.outputs, self.h);
        let product = |x: Strided, y: Strided, y_type: Float| Operands {
            offsets: Some(pairs.offsets),
            ..Operands::new(x, (y, y_type), rows)
        };
        let (h, i) = (self.h as u32, self.i as u32);
        self.permutation.run(args, &pairs, (t.x, sorted, h), t.weight)?;
        let scratch = memory + parts.scratch;
        self.first.run(args, weights[0], product(sorted, gates, self.x), scratch)?;
        let matrix = |m: Strided| Rows::matrix(m.data, m.stride);
        self.gating.run(args, matrix(gates), matrix(gated), rows, i)?;
        self.second.run(args, weights[1], product(gated, outputs, Float::F32), scratch)?;
        let weight = (!self.weight_on_input).then_some(t.weight);
        self.sums.run(args, &pairs, (outputs, rows), weight, (t.y, t.add, h))
    }
}

/// Some of a launch's tokens.
#[derive(Clone, Copy)]
struct Tokens {
    x: Strided,
    ids: Strided,
    weight: Strided,
    y: Strided,
    add: Option<Strided>,
    count: u32,
    top: u32,
}

impl Launch for Experts {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.parts(spec_dim(shapes, 0, 0), spec_dim(shapes, 1, 1)).bytes
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, ids, weight) = (args.view(0)?, args.view(1)?, args.view(2)?);
        let (y, add) = (args.view(3)?, args.optional(4));
        let tokens = small("tokens", x.dims[0])?;
        let top = small("chosen experts", ids.dims[1])?;
        let (w0, w1) = (args.weight(0)?, args.weight(1)?);
        for first in (0..tokens).step_by(MOST_TOKENS as usize) {
            let of = |m: Strided, bytes: u64| m.starting_at(first, bytes);
            let float = self.x.bytes();
            let part = Tokens {
                x: of(Strided::of(x), float),
                ids: of(Strided::of(ids), 4),
                weight: of(Strided::of(weight), 4),
                y: of(Strided::of(y), float),
                add: add.map(|add| of(Strided::of(add), float)),
                count: (tokens - first).min(MOST_TOKENS as u32),
                top,
            };
            self.run(args, [&*w0, &*w1], &part)?;
        }
        Ok(())
    }
}
