//! BATCHED_LINEAR.

use halyard_sdk::{Result, TensorSpec, abi::ops::attrs::BatchedLinear};

use super::args::Args;
use super::product::{Inputs, Product};
use super::{Launch, Op, Prepared, same, spec_dim};
use crate::attention::Out;
use crate::device::Context;
use crate::elem::{Rows, RowsMut};
use crate::gemm::Output;
use crate::kv::Heads;

/// Up to so many tokens a group's product is too small to share: threads take whole groups.
const FEW_TOKENS: usize = 64;

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let BatchedLinear {} = op.attrs()?;
    Ok(Prepared::tuned(Batched { product: Product::new(op, 0, op.elem(0)?, 0)? }))
}

/// `y[t, g] = W_g x[t, g]`.
struct Batched {
    product: Product,
}

impl Launch for Batched {
    /// Of all groups for few tokens, of one for more.
    fn workspace_bytes(&self, shapes: &[TensorSpec], context: &Context) -> usize {
        let tokens = spec_dim(shapes, 0, 0);
        let each = self.product.scratch_bytes(context, tokens.min(FEW_TOKENS));
        let all = each.saturating_mul(self.product.groups());
        all.max(self.product.scratch_bytes(context, tokens))
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, tokens, groups, k) = args.heads(0)?;
        let (y, y_tokens, y_groups, n) = args.heads_mut(1)?;
        for (what, a, b) in [
            ("tokens", tokens, y_tokens),
            ("groups", groups, self.product.groups()),
            ("groups", groups, y_groups),
            ("x columns", k, self.product.k()),
            ("y columns", n, self.product.n()),
        ] {
            same(what, a, b)?;
        }
        let w = self.product.weight(args, 0)?;
        let context = args.context;
        let each = self.product.scratch_bytes(context, tokens);
        let few = tokens <= FEW_TOKENS;
        let scratch = args.workspace(if few { each * groups } else { each })?;
        let scratch = RowsMut::dense(scratch.cast(), each / 4);
        let run = |group: usize| {
            let inputs = Inputs { x: group_of(&x, group), gather: None, tokens };
            let out = Output { y: group_to(&y, group), bias: None, accumulate: false };
            // SAFETY: the host has checked the views, sizes match as just checked; groups write different columns, and
            // those that run at a time have scratch memory of their own.
            unsafe {
                let scratch = scratch.at(if few { group } else { 0 }, 0);
                self.product.run(context, w.matrix(group), inputs, out, scratch);
            }
        };
        if few {
            context.pool.run(groups, &run);
        } else {
            (0..groups).for_each(run);
        }
        Ok(())
    }
}

/// One group's inputs.
fn group_of(x: &Heads, group: usize) -> Rows {
    Rows { base: x.rows.base.wrapping_add(group * x.head_stride), ..x.rows }
}

/// One group's outputs.
fn group_to(y: &Out, group: usize) -> RowsMut {
    RowsMut { base: y.rows.base.wrapping_add(group * y.head_stride), ..y.rows }
}
