//! Steps over an op's tensors and temporary ones.

use halyard_abi::{DType, OpBuf, TensorSpec, TensorView, ops::OpAttrs, types::MAX_RANK};

/// How an op is built.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) temps: Vec<Temp>,
    pub(super) steps: Vec<Step>,
}

/// A launch of another op.
#[derive(Debug)]
pub(super) struct Step {
    op: OpBuf,
    pub(super) args: Vec<Arg>,
    /// Weights of the op that is built, by position.
    pub(super) weights: Vec<usize>,
}

/// A tensor that lives during a launch only, row-major in the workspace.
#[derive(Debug)]
pub(super) struct Temp {
    dtype: DType,
    rows: Rows,
    /// Dims after the first.
    rest: Vec<i64>,
}

/// The first dim of a temporary tensor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// This many.
    Fixed(i64),
    /// So many for each row of a slot.
    Each { slot: usize, times: i64 },
}

/// What stands in a slot of a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// The tensor in a slot of the op that is built, absent if it is.
    Slot(usize),
    /// The same, `[B]` seen as `[B, 1]`.
    Column(usize),
    /// Columns of it, from `first` on, seen as heads: `[T, _]` as `[T, heads, dim]`.
    Heads { slot: usize, first: i64, heads: i64, dim: i64 },
    /// A temporary tensor.
    Temp(usize),
}

/// Makes a recipe for an op.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    op: &'a OpBuf,
    recipe: Recipe,
}

impl<'a> Builder<'a> {
    pub(super) fn new(op: &'a OpBuf) -> Self {
        Self { op, recipe: Recipe { temps: Vec::new(), steps: Vec::new() } }
    }

    /// What a slot of the op holds.
    pub(super) fn spec(&self, slot: usize) -> TensorSpec {
        self.op.tensors().get(slot).copied().unwrap_or(TensorSpec::NONE)
    }

    /// A temporary tensor.
    pub(super) fn temp(&mut self, dtype: DType, rows: Rows, rest: &[i64]) -> Arg {
        self.recipe.temps.push(Temp { dtype, rows, rest: rest.to_vec() });
        Arg::Temp(self.recipe.temps.len() - 1)
    }

    /// Another step.
    pub(super) fn step<A: OpAttrs>(&mut self, attrs: &A, args: &[Arg], weights: &[usize]) {
        let specs: Vec<TensorSpec> =
            args.iter().map(|a| self.recipe.spec(a, self.op.tensors())).collect();
        let descs: Vec<_> = weights.iter().map(|&w| self.op.weights()[w]).collect();
        let op = OpBuf::new(attrs, specs, descs);
        self.recipe.steps.push(Step { op, args: args.to_vec(), weights: weights.to_vec() });
    }

    pub(super) fn finish(self) -> Recipe {
        self.recipe
    }
}

impl Recipe {
    /// The ops of its steps.
    pub(super) fn ops(&self) -> impl Iterator<Item = &OpBuf> {
        self.steps.iter().map(|step| &step.op)
    }

    /// What an argument holds, where the op's slots hold `specs`.
    pub(super) fn spec(&self, arg: &Arg, specs: &[TensorSpec]) -> TensorSpec {
        let slot = |slot: usize| specs.get(slot).copied().unwrap_or(TensorSpec::NONE);
        match *arg {
            Arg::Slot(at) => slot(at),
            Arg::Column(at) => TensorSpec::new(slot(at).dtype, &[slot(at).dims[0], 1]),
            Arg::Heads { slot: at, heads, dim, .. } => {
                TensorSpec::new(slot(at).dtype, &[slot(at).dims[0], heads, dim])
            }
            Arg::Temp(at) => {
                let Temp { dtype, rows, rest } = &self.temps[at];
                let rows = match *rows {
                    Rows::Fixed(rows) => rows,
                    Rows::Each { slot: at, .. } if slot(at).dims[0] < 0 => -1,
                    Rows::Each { slot: at, times } => slot(at).dims[0].saturating_mul(times),
                };
                let mut dims = [rows; MAX_RANK];
                dims[1..=rest.len()].copy_from_slice(rest);
                TensorSpec::new(*dtype, &dims[..=rest.len()])
            }
        }
    }
}

/// An argument that is part of the op's own tensor.
pub(super) fn view(arg: &Arg, views: &[TensorView]) -> TensorView {
    let slot = |slot: usize| views.get(slot).copied().unwrap_or(TensorView::NONE);
    let (mut seen, dims, strides) = match *arg {
        Arg::Slot(at) => return slot(at),
        Arg::Column(at) => (slot(at), [slot(at).dims[0], 1, 0], [slot(at).strides[0], 1, 0]),
        Arg::Heads { slot: at, first, heads, dim } => {
            let mut whole = slot(at);
            let skipped = whole.dtype.bytes(first.cast_unsigned());
            whole.byte_offset += skipped.expect("columns of a tensor that exists");
            (whole, [whole.dims[0], heads, dim], [whole.strides[0], dim, 1])
        }
        Arg::Temp(_) => unreachable!("temporary tensors lie in the workspace"),
    };
    seen.rank = if matches!(arg, Arg::Column(_)) { 2 } else { 3 };
    seen.dims[..3].copy_from_slice(&dims);
    seen.strides[..3].copy_from_slice(&strides);
    seen
}

/// The names of its steps: `add, rms_norm`.
impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, op) in self.ops().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, op.kind())?;
        }
        Ok(())
    }
}
