//! LINEAR.

use halyard_sdk::{Error, Result, TensorSpec, abi::ops::attrs::Linear};

use super::args::Args;
use super::{Launch, Op, Prepared, same, spec_dim};
use crate::device::Context;
use crate::gemm::{Gemm, Layout, Output, Path, prep};

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Linear { accumulate, act_quant } = op.attrs()?;
    if act_quant != 0 {
        return Err(Error::unsupported(format!(
            "linear: activation quantisation {act_quant}; supported: 0 (none)"
        )));
    }
    let path = op.path(0, op.elem(0)?);
    Ok(Prepared::tuned(Product { accumulate, layout: op.layouts[0], path }))
}

/// `y = x Wᵀ + bias (+ y)`.
struct Product {
    accumulate: bool,
    layout: Layout,
    path: Path,
}

impl Launch for Product {
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        prep::bytes(context.isa, self.path, &self.layout, spec_dim(shapes, 0, 0))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, tokens, k) = args.rows(0)?;
        let (y, y_tokens, n) = args.rows_mut(2)?;
        let w = args.weight(0)?;
        if *w.layout() != self.layout || w.groups() != 1 {
            return Err(Error::invalid(
                "a weight of another form than the kernel was prepared for",
            ));
        }
        same("tokens", tokens, y_tokens)?;
        same("x columns", k, self.layout.k())?;
        same("y columns", n, self.layout.n())?;
        let bias = match args.optional(1) {
            None => None,
            Some(_) => {
                let (bias, len) = args.vector(1)?;
                same("bias", len, n)?;
                Some(bias)
            }
        };
        let isa = args.context.isa;
        let gemm = Gemm {
            isa,
            path: self.path,
            w: w.matrix(0),
            tokens,
            x,
            gather: None,
            out: Output { y, bias, accumulate: self.accumulate },
            scratch: args.workspace(prep::bytes(isa, self.path, &self.layout, tokens))?,
        };
        // SAFETY: the host has checked the views, sizes match as just checked, and the workspace is this
        // launch's own.
        unsafe { gemm.run(&args.context.pool) };
        Ok(())
    }
}
