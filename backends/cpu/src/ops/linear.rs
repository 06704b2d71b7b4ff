//! LINEAR, and its fusion with a gated activation.

use halyard_sdk::{
    Result, TensorSpec,
    abi::ops::{
        Act,
        attrs::{Linear, LinearActMul},
    },
};

use super::args::Args;
use super::elementwise::{Gate, GateRows};
use super::product::{Inputs, Product};
use super::{Launch, Op, Prepared, for_rows, same, spec_dim};
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::gemm::Output;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Linear { accumulate, act_quant } = op.attrs()?;
    let product = Product::new(op, 0, op.elem(0)?, act_quant)?;
    Ok(Prepared::tuned(Affine { accumulate, product }))
}

/// `y = x Wᵀ + bias (+ y)`.
struct Affine {
    accumulate: bool,
    product: Product,
}

impl Launch for Affine {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        self.product.scratch_bytes(context, spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (y, y_tokens, n) = args.rows_mut(2)?;
        let (x, bias) = inputs(&self.product, args)?;
        same("tokens", x.tokens, y_tokens)?;
        same("y columns", n, self.product.n())?;
        let w = self.product.weight(args, 0)?;
        let scratch = args.workspace(self.product.scratch_bytes(args.context, x.tokens))?;
        let out = Output { y, bias, accumulate: self.accumulate };
        // SAFETY: the host has checked the views, sizes match as just checked, and the workspace is this
        // launch's own.
        unsafe { self.product.run(args.context, w.matrix(0), x, out, scratch) };
        Ok(())
    }
}

/// `x` and `bias`, which are slots 0 and 1.
fn inputs(product: &Product, args: &Args<'_>) -> Result<(Inputs, Option<Rows>)> {
    let (x, tokens, k) = args.rows(0)?;
    same("x columns", k, product.k())?;
    let bias = args.optional(1).map(|_| args.vector(1)).transpose()?;
    if let Some((_, len)) = bias {
        same("bias", len, product.n())?;
    }
    Ok((Inputs { x, gather: None, tokens }, bias.map(|(bias, _)| bias)))
}

pub(super) fn act_mul(op: &Op<'_>) -> Result<Prepared> {
    let LinearActMul { act, limit, act_quant } = op.attrs()?;
    let product = Product::new(op, 0, op.elem(0)?, act_quant)?;
    let gated = Gated { product, gate: Gate { act, limit: limit as f32 } };
    if act == Act::GeluErf {
        return Ok(Prepared::slow("the exact GELU is computed one element at a time", gated));
    }
    Ok(Prepared::tuned(gated))
}

/// `y = act_mul(x Wᵀ + bias)`; what lies between is f32.
struct Gated {
    product: Product,
    gate: Gate,
}

impl Gated {
    /// Bytes of gates and ups, and with the product's scratch memory.
    fn space(&self, context: &Context, tokens: usize) -> (usize, usize) {
        let between = tokens.saturating_mul(self.product.n()).div_ceil(16).saturating_mul(64);
        (between, between.saturating_add(self.product.scratch_bytes(context, tokens)))
    }
}

impl Launch for Gated {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        self.space(context, spec_dim(shapes, 0, 0)).1
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (y, y_tokens, n) = args.rows_mut(2)?;
        let (x, bias) = inputs(&self.product, args)?;
        same("tokens", x.tokens, y_tokens)?;
        same("gate and up columns", self.product.n(), 2 * n)?;
        let w = self.product.weight(args, 0)?;
        let (between, bytes) = self.space(args.context, x.tokens);
        let space = args.workspace(bytes)?;
        let gate_up = RowsMut::dense(space.cast(), 2 * n);
        let out = Output { y: gate_up, bias, accumulate: false };
        let scratch = space.wrapping_add(between);
        // SAFETY: the host has checked the views, sizes match as just checked, and the workspace is this
        // launch's own.
        unsafe { self.product.run(args.context, w.matrix(0), x, out, scratch) };
        for_rows(&args.context.pool, x.tokens, 4 * n, |rows| {
            let gu = gate_up.as_rows();
            args.context.isa.dispatch(GateRows { gate: self.gate, gu, y, n, rows });
        });
        Ok(())
    }
}
