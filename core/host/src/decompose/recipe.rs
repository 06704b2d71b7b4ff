//! Steps over an op's tensors and temporary ones.

use halyard_abi::{DType, OpBuf, TensorSpec, TensorView, ops::OpAttrs, types::MAX_RANK};

/// How an op is built.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) temps: Vec<Temp>,
    pub(super) steps: Vec<Step>,
    /// Where the rows of [`Rows::Keys`] begin, if there are such.
    pub(super) starts: Option<Starts>,
}

/// The temporary tensor `[B + 1]` of sums of the lengths that the op's host array tells: it is written before the first step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Starts {
    pub(super) temp: usize,
    /// Which of the op's host arrays has the lengths.
    pub(super) lengths: usize,
    /// The slot of the block table `[B, M]`, and tokens a block: what bounds the sum.
    table: usize,
    block: i64,
}

impl Starts {
    /// Most rows that sequences of these shapes can have.
    pub(super) fn most(self, specs: &[TensorSpec]) -> i64 {
        let table = specs.get(self.table).copied().unwrap_or(TensorSpec::NONE);
        table.dims[0].saturating_mul(table.dims[1]).saturating_mul(self.block)
    }
}

/// What the op's slots hold, and how many rows all sequences have together: -1 is known only at launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shapes<'a> {
    pub(super) specs: &'a [TensorSpec],
    pub(super) keys: i64,
}

/// What is done next.
#[derive(Debug)]
pub(super) enum Step {
    /// A launch of another op.
    Launch(Part),
    /// The sum of a temporary tensor over the ranks of the communicator with this number, in its place.
    AllReduce { temp: usize, number: i64 },
}

/// A launch of another op.
#[derive(Debug)]
pub(super) struct Part {
    op: OpBuf,
    pub(super) args: Vec<Arg>,
    /// Weights of the op that is built, by position; its scalars; host arrays.
    pub(super) weights: Vec<usize>,
    pub(super) scalars: Vec<usize>,
    pub(super) host: Vec<Mirror>,
}

/// A host array of a step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mirror {
    /// The op's own.
    Own(usize),
    /// That of [`Starts`].
    Starts,
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
    /// One more than a slot has.
    OneMore { slot: usize },
    /// Those of all sequences' keys.
    Keys,
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
    /// The same, a cache `[blocks, block, dim]` seen as one of a single head.
    OneHead(usize),
    /// A temporary tensor.
    Temp(usize),
    /// Columns of it, from `first` on: `[rows, heads, _]` as `[rows, heads, dim]`.
    Columns { temp: usize, first: i64, dim: i64 },
}

/// Makes a recipe for an op.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    op: &'a OpBuf,
    recipe: Recipe,
}

impl<'a> Builder<'a> {
    pub(super) fn new(op: &'a OpBuf) -> Self {
        let recipe = Recipe { temps: Vec::new(), steps: Vec::new(), starts: None };
        Self { op, recipe }
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
        let shapes = Shapes { specs: self.op.tensors(), keys: -1 };
        let specs: Vec<TensorSpec> = args.iter().map(|a| self.recipe.spec(a, shapes)).collect();
        let descs: Vec<_> = weights.iter().map(|&w| self.op.weights()[w]).collect();
        let op = OpBuf::new(attrs, specs, descs);
        let (args, weights) = (args.to_vec(), weights.to_vec());
        let part = Part { op, args, weights, scalars: Vec::new(), host: Vec::new() };
        self.recipe.steps.push(Step::Launch(part));
    }

    /// A step over sequences, with scalars of the op's and host arrays.
    pub(super) fn sequences<A: OpAttrs>(
        &mut self,
        attrs: &A,
        args: &[Arg],
        scalars: &[usize],
        host: &[Mirror],
    ) {
        self.step(attrs, args, &[]);
        if let Some(Step::Launch(step)) = self.recipe.steps.last_mut() {
            (step.scalars, step.host) = (scalars.to_vec(), host.to_vec());
        }
    }

    /// A sum over ranks, in place.
    pub(super) fn all_reduce(&mut self, arg: Arg, number: i64) {
        let Arg::Temp(temp) = arg else { unreachable!("only temporary tensors are summed") };
        self.recipe.steps.push(Step::AllReduce { temp, number });
    }

    /// The temporary tensor of where each sequence's keys begin; `lengths` is a slot `[B]` and the host array that mirrors it.
    pub(super) fn starts(&mut self, lengths: (usize, usize), table: usize, block: i64) -> Arg {
        let arg = self.temp(DType::I32, Rows::OneMore { slot: lengths.0 }, &[]);
        let temp = self.recipe.temps.len() - 1;
        self.recipe.starts = Some(Starts { temp, lengths: lengths.1, table, block });
        arg
    }

    pub(super) fn finish(self) -> Recipe {
        self.recipe
    }
}

impl Recipe {
    /// The ops that it launches.
    pub(super) fn ops(&self) -> impl Iterator<Item = &OpBuf> {
        self.steps.iter().filter_map(|step| match step {
            Step::Launch(part) => Some(&part.op),
            Step::AllReduce { .. } => None,
        })
    }

    /// The numbers of the communicators that it uses.
    pub(super) fn communicators(&self) -> impl Iterator<Item = i64> {
        self.steps.iter().filter_map(|step| match *step {
            Step::AllReduce { number, .. } => Some(number),
            Step::Launch(_) => None,
        })
    }

    /// What an argument holds, where the op's slots hold `shapes`.
    pub(super) fn spec(&self, arg: &Arg, shapes: Shapes<'_>) -> TensorSpec {
        let slot = |slot: usize| shapes.specs.get(slot).copied().unwrap_or(TensorSpec::NONE);
        match *arg {
            Arg::Slot(at) => slot(at),
            Arg::Column(at) => TensorSpec::new(slot(at).dtype, &[slot(at).dims[0], 1]),
            Arg::Heads { slot: at, heads, dim, .. } => {
                TensorSpec::new(slot(at).dtype, &[slot(at).dims[0], heads, dim])
            }
            Arg::OneHead(at) => one_head(slot(at)),
            Arg::Columns { temp, dim, .. } => {
                let mut part = self.spec(&Arg::Temp(temp), shapes);
                part.dims[usize::from(part.rank) - 1] = dim;
                part
            }
            Arg::Temp(at) => {
                let Temp { dtype, rows, rest } = &self.temps[at];
                let rows = match *rows {
                    Rows::Fixed(rows) => rows,
                    Rows::Keys => shapes.keys,
                    Rows::Each { slot: at, .. } | Rows::OneMore { slot: at }
                        if slot(at).dims[0] < 0 =>
                    {
                        -1
                    }
                    Rows::OneMore { slot: at } => slot(at).dims[0].saturating_add(1),
                    Rows::Each { slot: at, times } => slot(at).dims[0].saturating_mul(times),
                };
                let mut dims = [rows; MAX_RANK];
                dims[1..=rest.len()].copy_from_slice(rest);
                TensorSpec::new(*dtype, &dims[..=rest.len()])
            }
        }
    }
}

/// `[blocks, block, dim]` as `[blocks, block, 1, dim]`; an absent one stays so.
fn one_head(mut cache: TensorSpec) -> TensorSpec {
    if !cache.is_none() {
        (cache.rank, cache.dims[3], cache.dims[2]) = (4, cache.dims[2], 1);
    }
    cache
}

/// The view of an argument: of the op's own tensors, or of a temporary one.
pub(super) fn view(arg: &Arg, views: &[TensorView], temps: &[TensorView]) -> TensorView {
    let slot = |slot: usize| views.get(slot).copied().unwrap_or(TensorView::NONE);
    match *arg {
        Arg::Slot(at) => slot(at),
        Arg::Temp(at) => temps[at],
        Arg::Column(at) => {
            let mut column = slot(at);
            (column.rank, column.dims[1], column.strides[1]) = (2, 1, 1);
            column
        }
        Arg::Heads { slot: at, first, heads, dim } => {
            let mut part = skip(slot(at), first);
            (part.rank, part.dims[1], part.dims[2]) = (3, heads, dim);
            (part.strides[1], part.strides[2]) = (dim, 1);
            part
        }
        Arg::OneHead(at) => {
            let cache = slot(at);
            TensorView::contiguous(cache.data, cache.byte_offset, &one_head(cache.spec()))
        }
        Arg::Columns { temp, first, dim } => {
            let mut part = skip(temps[temp], first);
            part.dims[usize::from(part.rank) - 1] = dim;
            part
        }
    }
}

/// The same view, some elements on.
fn skip(mut view: TensorView, elements: i64) -> TensorView {
    let bytes = view.dtype.bytes(elements.cast_unsigned());
    view.byte_offset += bytes.expect("elements of a tensor that exists");
    view
}

/// The names of its steps: `add, rms_norm`.
impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            match step {
                Step::Launch(part) => write!(f, "{}", part.op.kind())?,
                Step::AllReduce { .. } => f.write_str("all_reduce")?,
            }
        }
        Ok(())
    }
}
