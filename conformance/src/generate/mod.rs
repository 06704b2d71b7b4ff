//! Inputs of a launch: random, seeded, and chosen so that mistakes show.

mod attention;
mod cache;
mod fill;
mod ids;
mod moe;
mod part;

use std::collections::BTreeMap;

use halyard_abi::{Attr, AttrKey, ops::schema::Layout};
use halyard_core::{
    DType, OpBuf, OpKind, Sym,
    ops::{Access, OpSchema},
};
use serde::Deserialize;

use crate::{
    array::{Array, is_float},
    execute,
    rng::Rng,
    symbols::Symbols,
};
pub(crate) use attention::lengths;
pub(crate) use cache::{CacheContents, KvWriteBatch, is_latent};
pub(crate) use fill::Fill;
pub(crate) use part::parts;

/// What a case says about its inputs beyond their shapes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recipe {
    /// How a float slot is filled, by name.
    pub(crate) fills: BTreeMap<String, Fill>,
    /// Sequences of an attention batch: new tokens and length with them.
    pub(crate) batch: Vec<[usize; 2]>,
    /// Rows of padding after the last sequence.
    pub(crate) padding: usize,
    /// Which experts tokens go to.
    pub(crate) routing: Routing,
    /// Query heads a KV head when a changed cache is looked at; 0 counts as 1.
    pub(crate) probe_group: usize,
}

/// Which experts the tokens of a mixture go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Routing {
    /// Different random experts for each token.
    #[default]
    Random,
    /// Every token to the last expert alone.
    AllToOne,
    /// Some ids below or above the local slice, or negative.
    Outside,
    /// No token to any expert.
    None,
    /// All tokens among a few experts, as many as a token has and one more, the last of all among them.
    Few,
}

/// The arguments of one launch.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) slots: Vec<Slot>,
    pub(crate) scalars: Vec<u64>,
    pub(crate) host: Vec<Vec<i32>>,
    pub(crate) cache: Option<CacheContents>,
    /// Sequences of an attention batch.
    pub(crate) batch: Vec<[usize; 2]>,
}

/// One slot's argument.
#[derive(Clone, Debug)]
pub(crate) enum Slot {
    Absent,
    /// For a written slot: what it holds before.
    Array(Array),
    Keys,
    Values,
}

impl Slot {
    pub(crate) fn array(&self) -> Option<&Array> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl Inputs {
    /// A slot's data by the slot's name.
    pub(crate) fn named(&self, op: &OpBuf, name: &str) -> Option<&Array> {
        let at = OpSchema::of(op.kind())?.slot(name)?;
        self.slots.get(at)?.array()
    }

    /// What a launch with this arrangement reads: it may repeat rows.
    pub(crate) fn shown(mut self, op: &OpBuf, layout: execute::Layout) -> Self {
        let schema = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
        for (schema, slot) in schema.iter().zip(&mut self.slots) {
            if let Slot::Array(array) = slot {
                *array = layout.shown(schema, array);
            }
        }
        self
    }
}

/// Gives values to symbols that follow from others.
pub(crate) fn complete(op: OpKind, attrs: &[Attr], symbols: &mut Symbols, recipe: &Recipe) {
    let n = |symbols: &Symbols, sym: Sym| symbols.get(sym);
    match op {
        OpKind::PAGED_ATTENTION
        | OpKind::MLA_ATTENTION
        | OpKind::VARLEN_ATTENTION
        | OpKind::KV_GATHER => attention::complete(symbols, recipe),
        OpKind::LOGITS_PROCESS => symbols.or(Sym::Words, symbols.get(Sym::V).div_ceil(32)),
        OpKind::KV_WRITE | OpKind::KV_COPY_BLOCKS | OpKind::MLA_WRITE | OpKind::QKV_POST => {
            let tokens = symbols.get(Sym::T).max(1);
            symbols.or(Sym::Blocks, tokens.div_ceil(symbols.get(Sym::Block).max(1)) + 3);
            // A backend that keeps values with the keys has no slot to tell their width.
            symbols.or(Sym::Dv, symbols.get(Sym::Dk));
            let keys = (n(symbols, Sym::Hq) + n(symbols, Sym::Hk)) * n(symbols, Sym::Dk);
            symbols.or(Sym::Qkv, keys + n(symbols, Sym::Hk) * n(symbols, Sym::Dv));
        }
        OpKind::MOE_PERMUTE | OpKind::MOE_UNPERMUTE => {
            symbols.or(Sym::P, n(symbols, Sym::T) * n(symbols, Sym::Top));
        }
        OpKind::QUANT_ACT | OpKind::RMS_NORM_QUANT => {
            let grouped = attrs.iter().any(|a| a.key == AttrKey::MODE && a.bits == 2);
            let groups = if grouped { n(symbols, Sym::K).div_ceil(128) } else { 1 };
            symbols.or(Sym::Scales, groups);
        }
        _ => {}
    }
}

/// Inputs for an op whose every dynamic symbol has a value.
pub(crate) fn inputs(
    op: &OpBuf,
    symbols: &Symbols,
    recipe: &Recipe,
    rng: &mut Rng,
) -> Result<Inputs, String> {
    let schema = OpSchema::of(op.kind()).ok_or_else(|| format!("op {}", op.kind()))?;
    let mut inputs = Inputs {
        slots: Vec::new(),
        scalars: Vec::new(),
        host: Vec::new(),
        cache: None,
        batch: recipe.batch.clone(),
    };
    let planned = match op.kind() {
        OpKind::PAGED_ATTENTION | OpKind::MLA_ATTENTION | OpKind::KV_GATHER => {
            attention::paged(op, symbols, recipe, rng, &mut inputs)?
        }
        OpKind::VARLEN_ATTENTION => attention::contiguous(op, symbols, recipe, rng, &mut inputs),
        OpKind::KV_WRITE | OpKind::KV_COPY_BLOCKS | OpKind::MLA_WRITE | OpKind::QKV_POST => {
            cache::background(op, symbols, recipe, rng, &mut inputs)
        }
        _ => BTreeMap::new(),
    };
    for (i, (slot, spec)) in schema.slots.iter().zip(op.tensors()).enumerate() {
        if spec.is_none() {
            inputs.slots.push(Slot::Absent);
            continue;
        }
        if slot.layout == Layout::Opaque {
            inputs.slots.push(if slot.name.starts_with(['k', 'c']) {
                Slot::Keys
            } else {
                Slot::Values
            });
            continue;
        }
        let dims = symbols.dims(schema, i, spec);
        let array = if slot.access == Access::Out {
            Array::poison(spec.dtype, &dims)
        } else if let Some(array) = planned.get(slot.name) {
            array.clone()
        } else if let Some(fill) = recipe.fills.get(slot.name) {
            fill.array(spec.dtype, &dims, rng)
        } else if is_float(spec.dtype) {
            floats(op, slot.name, spec.dtype, &dims, rng)
        } else {
            ids::array(op, slot.name, (spec.dtype, &dims), (symbols, recipe), rng)?
        };
        inputs.slots.push(Slot::Array(array));
    }
    ids::settle(op, &mut inputs);
    Ok(inputs)
}

/// The usual values of a float slot.
fn floats(op: &OpBuf, name: &str, dtype: DType, dims: &[usize], rng: &mut Rng) -> Array {
    let pick = |rng: &mut Rng, of: &[f64]| of[rng.below(of.len())];
    match (op.kind(), name) {
        (_, "gamma" | "q_gamma" | "k_gamma") => {
            Array::floats(dtype, dims, |_| 1.0 + 0.2 * rng.normal())
        }
        // Any angle at any place, so that a wrong entry is seen: cosines, then sines.
        (_, "table") => {
            let width = dims.last().copied().unwrap_or(0);
            let angles: Vec<f64> =
                (0..dims[0] * width / 2).map(|_| rng.between(-3.2, 3.2)).collect();
            Array::floats(dtype, dims, |i| {
                let (row, column) = (i / width, i % width);
                let angle = angles[row * (width / 2) + column % (width / 2)];
                if column < width / 2 { angle.cos() } else { angle.sin() }
            })
        }
        // Sharp enough that each key counts.
        (_, "q" | "qc" | "qr") => Array::floats(dtype, dims, |_| 2.0 * rng.normal()),
        (OpKind::MOE_EXPERTS | OpKind::MOE_UNPERMUTE, "weight") => {
            Array::floats(dtype, dims, |_| rng.between(0.05, 1.0))
        }
        (OpKind::MOE_ROUTER, "bias") => Array::floats(dtype, dims, |_| 0.3 * rng.normal()),
        (OpKind::LOGITS_PROCESS, "params") => Array::floats(dtype, dims, |i| match i % 3 {
            0 => rng.between(0.8, 2.0),
            _ => rng.between(-1.0, 1.0),
        }),
        // Parts that saw nothing among the others.
        (_, "lse1" | "lse2") => Array::floats(dtype, dims, |_| match rng.below(5) {
            0 => f64::NEG_INFINITY,
            _ => 3.0 * rng.normal(),
        }),
        (_, "temperature") => Array::floats(dtype, dims, |i| match i {
            0 => 0.8,
            1 => 0.0,
            _ => pick(rng, &[0.0, 0.3, 0.8, 1.0, 2.0]),
        }),
        (_, "top_p") => Array::floats(dtype, dims, |_| pick(rng, &[1.0, 1.0, 0.95, 0.5, 0.1, 0.0])),
        (_, "min_p") => Array::floats(dtype, dims, |_| pick(rng, &[0.0, 0.0, 0.05, 0.3, 1.0])),
        (_, "logits") => Array::floats(dtype, dims, |_| 3.0 * rng.normal()),
        _ => Fill::Normal.array(dtype, dims, rng),
    }
}
