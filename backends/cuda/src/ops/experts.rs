//! MOE_EXPERTS: rows sorted by expert through two grouped products, with what is between them.

use halyard_sdk::{Error, Result, Scheme, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Rows, small},
    elementwise::Gating,
    linear::{Operands, Product, refuse_act_quant, spec_dim},
    permute::{Pairs, Permutation, Strided, Sums},
};
use crate::{
    memory::ALIGN,
    weights::{EIGHT, Packed},
};

/// Tokens that go through the experts at once, so that scratch memory stays within bounds.
const MOST_TOKENS: u64 = 4096;

struct Experts {
    permutation: Permutation,
    first: Product,
    gating: Gating,
    second: Product,
    sums: Sums,
    x: Float,
    /// What is between the products.
    between: Float,
    weight_on_input: bool,
    groups: u32,
    h: u64,
    i: u64,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let attrs::MoeExperts { expert_start, act, limit, act_quant, weight_on_input } = op.attrs()?;
    refuse_act_quant(act_quant)?;
    let [w0, w1] = &op.layouts[..] else {
        return Err(Error::invalid("moe_experts: expected two weights"));
    };
    let x = op.float(0)?;
    // Kernels of quantised weights read f32.
    let between = if w1.scheme == Scheme::DENSE { x } else { Float::F32 };
    let (h, i) = (w0.k, w1.k);
    Ok(Prepared::native(Experts {
        permutation: Permutation::new(op, x, expert_start, weight_on_input)?,
        first: Product::new(op, 0, x)?,
        gating: Gating::new(op, between, act, limit)?,
        second: Product::new(op, 1, between)?,
        sums: Sums::new(op, Float::F32, x)?,
        x,
        between,
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
        let gates_end = after(gates, pairs, 2 * self.i, self.between.bytes());
        let gated = gates_end.max(after(sorted, pairs, self.h, 4));
        let scratch = after(gated, pairs, self.i.next_multiple_of(EIGHT), self.between.bytes());
        let staged = self.first.scratch_bytes(pairs).max(self.second.scratch_bytes(pairs));
        let bytes = scratch.saturating_add(staged);
        Parts { inverse, sorted, gates, outputs: sorted, gated, scratch, bytes }
    }

    /// The experts on some tokens.
    fn run(&self, args: &Args<'_>, weights: [&Packed; 2], t: &Tokens) -> Result<()> {
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
            offsets: Some(pairs.offsets),
        };
        let (h, i) = (self.h as u32, self.i as u32);
        self.permutation.run(args, &pairs, (t.x, sorted, h), t.weight)?;
        let scratch = memory + parts.scratch;
        self.first.run(args, weights[0], product(sorted, gates, self.between), scratch)?;
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
            let of = |m: Strided, bytes: u64| m.from_row(first, bytes);
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
