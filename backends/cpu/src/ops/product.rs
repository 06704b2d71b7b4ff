//! What the ops with weights have in common: inputs, passed through ACT_QUANT, times one of a weight's matrices.

use std::sync::Arc;

use halyard_sdk::{Error, Result};

use super::Op;
use super::args::Args;
use super::quant::{Mode, quantise_inputs};
use crate::device::Context;
use crate::elem::{Elem, Rows};
use crate::gemm::{Gemm, Layout, Matrix, Output, Path, prep};
use crate::weights::Packed;

/// Products of a kernel with one of its weights.
#[derive(Clone, Copy)]
pub(super) struct Product {
    layout: Layout,
    groups: usize,
    path: Path,
    quantise: Option<Mode>,
}

/// Rows to multiply: row `t` is row `t` of `x`, or row `gather[t]`.
#[derive(Clone, Copy)]
pub(super) struct Inputs {
    pub(super) x: Rows,
    pub(super) gather: Option<*const u32>,
    pub(super) tokens: usize,
}

impl Product {
    /// Of inputs of type `x` with weight `slot`.
    ///
    /// # Errors
    /// `UNSUPPORTED` for an ACT_QUANT that this backend does not have.
    pub(super) fn new(op: &Op<'_>, slot: usize, x: Elem, act_quant: i64) -> Result<Self> {
        let quantise = Mode::of_inputs(op, act_quant)?;
        // Quantised inputs are numbers of f32.
        let x = if quantise.is_some() { Elem::F32 } else { x };
        Ok(Self {
            layout: op.layouts[slot],
            groups: op.desc.weights[slot].groups as usize,
            path: Path::new(op.context.isa, &op.layouts[slot], x),
            quantise,
        })
    }

    pub(super) fn n(&self) -> usize {
        self.layout.n()
    }

    pub(super) fn k(&self) -> usize {
        self.layout.k()
    }

    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// The weight of a launch, which must have the form that the kernel was prepared for.
    pub(super) fn weight(&self, args: &Args<'_>, slot: usize) -> Result<Arc<Packed>> {
        let w = args.weight(slot)?;
        if *w.layout() != self.layout || w.groups() != self.groups {
            return Err(Error::invalid(
                "a weight of another form than the kernel was prepared for",
            ));
        }
        Ok(w)
    }

    /// Bytes of scratch memory for the product of `tokens` rows: a multiple of 64.
    pub(super) fn scratch_bytes(&self, context: &Context, tokens: usize) -> usize {
        let prepared = prep::bytes(context.isa, self.path, &self.layout, tokens);
        prepared.saturating_add(self.quantised_bytes(tokens)).div_ceil(64).saturating_mul(64)
    }

    /// Bytes of the quantised inputs, which lie before the prepared ones.
    fn quantised_bytes(&self, tokens: usize) -> usize {
        if self.quantise.is_none() {
            return 0;
        }
        tokens.saturating_mul(self.k()).div_ceil(16).saturating_mul(64)
    }

    /// Computes one product.
    ///
    /// # Safety
    /// As [`Gemm::run`]; `w` has the layout, and the scratch memory [`Self::scratch_bytes`].
    pub(super) unsafe fn run(
        &self,
        context: &Context,
        w: Matrix,
        inputs: Inputs,
        out: Output,
        scratch: *mut u8,
    ) {
        let Inputs { mut x, mut gather, tokens } = inputs;
        if let Some(mode) = self.quantise {
            // SAFETY: the caller's promise.
            x = unsafe {
                quantise_inputs(context, mode, (x, gather), (tokens, self.k()), scratch.cast())
            };
            gather = None;
        }
        let gemm = Gemm {
            isa: context.isa,
            path: self.path,
            w,
            tokens,
            x,
            gather,
            out,
            scratch: scratch.wrapping_add(self.quantised_bytes(tokens)),
        };
        // SAFETY: the caller's promise.
        unsafe { gemm.run(&context.pool) };
    }
}
