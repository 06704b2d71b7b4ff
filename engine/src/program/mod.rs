//! A model as a list of kernel launches on named buffers: what a forward pass is, before any device is asked.
//!
//! It is recorded once (see [`Graph`]) and says everything needed to load the model: which kernels,
//! which weights, how much memory. Running it is going through the lists.

mod exec;
mod graph;
mod share;
mod source;

use halyard_core::{DType, OpBuf, TensorSpec, WeightDesc};

pub(crate) use exec::{Executable, Lengths, Parts, workspace_bytes};
pub(crate) use graph::{Graph, Inputs};
pub(crate) use share::{Layer, Rank, Share};
pub(crate) use source::{Fallback, Form, Replaced, Source};

/// A model, recorded.
#[derive(Debug, Default)]
pub(crate) struct Program {
    /// Distinct operations; calls refer to them by index.
    pub(crate) ops: Vec<OpBuf>,
    pub(crate) weights: Vec<WeightSpec>,
    pub(crate) buffers: Vec<BufferSpec>,
    /// Layers that have a KV cache.
    pub(crate) kv_layers: usize,
    steps: [Vec<Step>; Section::COUNT],
}

/// A part of the program that runs as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) enum Section {
    /// From token ids to the residual stream, for all tokens of the batch.
    #[default]
    Body,
    /// From the residual stream to logits, for chosen rows.
    Head,
    /// Keeps a copy of the logits as the model gave them.
    Keep,
    /// Bias, penalties and masks.
    Process,
    /// The likeliest token of each row.
    Argmax,
    /// A drawn token for each row.
    Sample,
    /// Log-probabilities of the chosen tokens.
    Chosen,
    /// The likeliest tokens of each row and their log-probabilities.
    Top,
    /// As [`Section::Chosen`], of the kept logits.
    KeptChosen,
    /// As [`Section::Top`], of the kept logits.
    KeptTop,
}

impl Section {
    const COUNT: usize = Self::KeptTop as usize + 1;
}

impl Program {
    /// What a section does.
    pub(crate) fn steps(&self, section: Section) -> &[Step] {
        &self.steps[section as usize]
    }

    /// Bytes of all buffers.
    pub(crate) fn buffer_bytes(&self, limits: &Sizes) -> u64 {
        self.buffers.iter().map(|spec| spec.bytes(limits)).sum()
    }

    /// What all ranks do together, each kind and width once.
    pub(crate) fn exchanges(&self) -> Vec<ExchangeKind> {
        let mut all = Vec::new();
        for step in self.steps.iter().flatten() {
            let Step::Exchange(exchange) = step else { continue };
            let (is_gather, tensor) = match exchange {
                Exchange::AllReduce(x) => (false, x),
                Exchange::AllGather { own, .. } => (true, own),
            };
            let Some(&Size::Fixed(width)) = tensor.dims.last() else {
                unreachable!("rows of fixed width are exchanged: {tensor:?}")
            };
            let known = ExchangeKind { is_gather, dtype: tensor.dtype, width };
            if !all.contains(&known) {
                all.push(known);
            }
        }
        all
    }
}

/// A dimension or a count that changes from step to step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    Fixed(usize),
    /// Tokens of the batch.
    Tokens,
    /// Sequences of the batch.
    Seqs,
    /// Sequences and one.
    SeqEnds,
    /// Columns of the block table.
    TableWidth,
    /// Rows of logits. A tensor that starts with this dimension is shifted to the first of them.
    Rows,
    /// The same number, for tensors that are not shifted and whose strides follow it.
    ListRows,
    /// Columns of the lists of ids that occurred.
    ListWidth,
    /// Columns of the lists of biases.
    BiasWidth,
    /// Blocks of the KV pool: fixed when the model is loaded.
    PoolBlocks,
}

/// The values of [`Size`] in a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) seqs: usize,
    pub(crate) table_width: usize,
    pub(crate) rows: usize,
    pub(crate) first_row: usize,
    pub(crate) list_width: usize,
    pub(crate) bias_width: usize,
    pub(crate) pool_blocks: usize,
}

impl Sizes {
    pub(crate) fn of(&self, size: Size) -> usize {
        match size {
            Size::Fixed(value) => value,
            Size::Tokens => self.tokens,
            Size::Seqs => self.seqs,
            Size::SeqEnds => self.seqs + 1,
            Size::TableWidth => self.table_width,
            Size::Rows | Size::ListRows => self.rows,
            Size::ListWidth => self.list_width,
            Size::BiasWidth => self.bias_width,
            Size::PoolBlocks => self.pool_blocks,
        }
    }
}

/// Where a tensor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Index into [`Program::buffers`].
    Buffer(usize),
    /// Keys (`plane` 0) or values (1) of a layer, arranged as the backend likes.
    Cache { layer: usize, plane: usize },
}

/// A view of a buffer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tensor {
    pub(crate) place: Place,
    pub(crate) dtype: DType,
    /// Elements from the start of the buffer.
    pub(crate) offset: usize,
    pub(crate) dims: Vec<Size>,
    /// Elements between neighbours; `None` if there are no gaps.
    pub(crate) strides: Option<Vec<usize>>,
}

/// What a buffer is and what is in it before the first step.
#[derive(Debug)]
pub(crate) struct BufferSpec {
    pub(crate) dtype: DType,
    pub(crate) dims: Vec<Size>,
    pub(crate) content: Content,
}

/// A buffer's initial content.
#[derive(Debug)]
pub(crate) enum Content {
    /// Written by the program, or from outside before each step.
    Nothing,
    /// These vectors of the checkpoint one after the other, as f32.
    Vectors(Vec<VectorPart>),
    /// The rotary table.
    RopeTable,
}

/// A weight and where its rows come from.
#[derive(Debug)]
pub(crate) struct WeightSpec {
    pub(crate) desc: WeightDesc<'static>,
    pub(crate) parts: Vec<WeightPart>,
    /// ACT_QUANT of the operations that multiply with it.
    pub(crate) act_quant: i64,
}

/// Rows of a weight that come from one layer of the checkpoint, as many as that says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct WeightPart {
    pub(crate) layer: Layer,
    pub(crate) group: u32,
    pub(crate) first_row: u64,
}

/// Elements of a vector of the checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct VectorPart {
    pub(crate) name: String,
    pub(crate) share: Share,
}

/// What a section does, one after the other.
#[derive(Debug)]
pub(crate) enum Step {
    Launch(Call),
    Exchange(Exchange),
}

/// What all ranks do together.
#[derive(Clone, Debug)]
pub(crate) enum Exchange {
    /// The sum over the ranks, in place.
    AllReduce(Tensor),
    /// `all`, `[ranks, ..]`, is every rank's `own`, `[1, ..]`.
    AllGather { own: Tensor, all: Tensor },
}

/// A kernel launch.
#[derive(Debug)]
pub(crate) struct Call {
    /// Index into [`Program::ops`].
    pub(crate) op: usize,
    /// By slot; `None` where an optional one is absent.
    pub(crate) tensors: Vec<Option<Tensor>>,
    /// Indices into [`Program::weights`].
    pub(crate) weights: Vec<usize>,
}

/// A kind of call that all ranks make together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExchangeKind {
    /// The ranks' rows are put side by side; if not, they are added up.
    pub is_gather: bool,
    /// Of the elements.
    pub dtype: DType,
    /// Elements of a row; rows are as many as a step has.
    pub width: usize,
}

impl BufferSpec {
    /// Bytes at the largest sizes.
    pub(crate) fn bytes(&self, limits: &Sizes) -> u64 {
        let elements: usize = self.dims.iter().map(|&size| limits.of(size)).product();
        self.dtype.bytes(elements as u64).expect("far below the address space")
    }
}

impl Tensor {
    /// The view's type and shape; sizes that change are -1.
    pub(crate) fn spec(&self) -> TensorSpec {
        self.spec_by(|size| match size {
            Size::Fixed(value) => Some(value),
            _ => None,
        })
    }

    /// The view's type and shape where the sizes are these.
    pub(crate) fn spec_at(&self, sizes: &Sizes) -> TensorSpec {
        self.spec_by(|size| Some(sizes.of(size)))
    }

    fn spec_by(&self, value: impl Fn(Size) -> Option<usize>) -> TensorSpec {
        let signed = |value| i64::try_from(value).expect("checked with the configuration");
        let dim = |&size: &Size| value(size).map_or(-1, signed);
        let dims: Vec<i64> = self.dims.iter().map(dim).collect();
        let spec = TensorSpec::new(self.dtype, &dims);
        match self.place {
            Place::Buffer(_) => spec,
            Place::Cache { .. } => spec.opaque(),
        }
    }

    /// Columns of a matrix.
    pub(crate) fn width(&self) -> usize {
        let [_, Size::Fixed(columns)] = self.dims[..] else {
            unreachable!("only matrices of fixed width have columns: {self:?}")
        };
        columns
    }

    /// Columns `first .. first + width` of a matrix.
    pub(crate) fn columns(&self, first: usize, width: usize) -> Self {
        let stride = self.strides.as_ref().map_or(self.width(), |strides| strides[0]);
        Self {
            offset: self.offset + first,
            dims: vec![self.dims[0], Size::Fixed(width)],
            strides: Some(vec![stride, 1]),
            ..self.clone()
        }
    }

    /// A matrix's columns as `heads` heads of `head_dim`.
    pub(crate) fn heads(&self, heads: usize, head_dim: usize) -> Self {
        let matrix = self.columns(0, heads * head_dim);
        let stride = matrix.strides.as_ref().map_or(0, |strides| strides[0]);
        Self {
            dims: vec![matrix.dims[0], Size::Fixed(heads), Size::Fixed(head_dim)],
            strides: Some(vec![stride, head_dim, 1]),
            ..matrix
        }
    }

    /// Elements `first .. first + len` of a vector.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        Self { offset: self.offset + first, dims: vec![Size::Fixed(len)], ..self.clone() }
    }
}
