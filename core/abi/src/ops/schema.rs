//! How an op is described: slots with symbolic shapes, weights, scalars, host arrays and attributes.

use crate::ids::{DType, OpKind};

/// A symbolic dimension. Within one op every use of a symbol has the same value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "the letters are explained where an op uses them")]
pub enum Sym {
    /// Tokens of the whole batch, packed.
    T,
    /// Sequences, or rows of logits.
    B,
    /// Hidden size.
    H,
    /// Rows of a weight (outputs).
    N,
    /// Columns of a weight (inputs).
    K,
    /// Vocabulary.
    V,
    /// Inner size of a gated layer.
    I,
    /// Experts.
    E,
    /// Chosen experts a token, or chosen logits a row.
    Top,
    /// Query heads.
    Hq,
    /// KV heads.
    Hk,
    /// Dimensions of a key.
    Dk,
    /// Dimensions of a value.
    Dv,
    /// Blocks of a cache.
    Blocks,
    /// Tokens a block.
    Block,
    /// Columns of a block table, or of an id list.
    M,
    /// Positions in a table.
    P,
    /// Rotated dimensions.
    R,
    /// Columns of a bit mask.
    Words,
    /// A second list's columns.
    Mb,
    /// Groups of a batched linear layer.
    G,
    /// Dimensions of a latent.
    C,
    /// Tokens of contiguous keys and values, packed.
    Tk,
    /// Scales a row of quantised activations.
    Scales,
    /// Columns of queries, keys and values side by side.
    Qkv,
    /// Free dims of ops without a fixed rank.
    D0,
    D1,
    D2,
    D3,
}

/// Number of symbols.
pub const SYMS: usize = Sym::D3 as usize + 1;

/// A dimension: `mul * symbol + add`, or a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dim {
    /// The symbol.
    Is(Sym),
    /// The symbol plus one.
    PlusOne(Sym),
    /// Twice the symbol.
    Twice(Sym),
    /// This number.
    Const(i64),
}

impl Dim {
    /// The symbol it depends on.
    #[must_use]
    pub fn sym(self) -> Option<Sym> {
        match self {
            Self::Is(s) | Self::PlusOne(s) | Self::Twice(s) => Some(s),
            Self::Const(_) => None,
        }
    }

    /// Its value where the symbol has this one.
    #[must_use]
    pub fn of(self, sym: i64) -> i64 {
        match self {
            Self::Is(_) => sym,
            Self::PlusOne(_) => sym + 1,
            Self::Twice(_) => 2 * sym,
            Self::Const(c) => c,
        }
    }

    /// The symbol's value where the dimension has this one; `None` if there is none.
    #[must_use]
    pub fn solve(self, dim: i64) -> Option<i64> {
        match self {
            Self::Is(_) => Some(dim),
            Self::PlusOne(_) => (dim >= 1).then(|| dim - 1),
            Self::Twice(_) => (dim % 2 == 0).then_some(dim / 2),
            Self::Const(c) => (c == dim).then_some(c),
        }
    }
}

/// The dims of a slot.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Exactly these.
    Dims(&'static [Dim]),
    /// One to four dims, the same in every slot so marked.
    Same,
    /// As `Same`, but leading dims may be missing (broadcast over them).
    Trailing,
}

/// Which strides a slot accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Any, 0 included for inputs.
    Any,
    /// The last dim is contiguous; the others have any stride.
    Rows,
    /// Row-major without gaps.
    Packed,
    /// The backend's own ([`FLAG_OPAQUE`](crate::types::FLAG_OPAQUE)).
    Opaque,
}

/// How a slot is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read.
    In,
    /// Written.
    Out,
    /// Read and written.
    InOut,
}

/// Which dtypes a slot accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Types {
    /// Exactly this.
    Is(DType),
    /// f32, f16, bf16.
    Float,
    /// As `Float`, the same in every slot so marked: the compute type.
    Compute,
    /// A cache: a float dtype, f8e4m3 or i8, the same in every slot so marked.
    Cache,
    /// A cache of a float dtype, the same in every slot so marked.
    FloatCache,
    /// Quantised activations: i8 or f8e4m3.
    Quantised,
    /// Any known dtype with a size of whole bytes.
    Any,
}

/// A tensor argument.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Name in messages.
    pub name: &'static str,
    /// Use.
    pub access: Access,
    /// May be absent.
    pub optional: bool,
    /// Dtypes.
    pub types: Types,
    /// Dims.
    pub shape: Shape,
    /// Strides.
    pub layout: Layout,
}

/// A weight argument.
#[derive(Clone, Copy, Debug)]
pub struct WeightSlot {
    /// Name in messages.
    pub name: &'static str,
    /// Groups (experts), if the op has any.
    pub groups: Option<Dim>,
    /// Rows.
    pub n: Dim,
    /// Columns.
    pub k: Dim,
}

/// An op of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct OpSchema {
    /// Which.
    pub kind: OpKind,
    /// Newest revision.
    pub revision: u32,
    /// Tensors by position.
    pub slots: &'static [Slot],
    /// Weights by position.
    pub weights: &'static [WeightSlot],
    /// Names of the scalars, in order.
    pub scalars: &'static [&'static str],
    /// Names of the host arrays, in order.
    pub host: &'static [&'static str],
    /// Slots that `(output, input)` may share.
    pub may_alias: &'static [(usize, usize)],
}

impl OpSchema {
    /// The catalogue's entry; `None` for an op outside this opset.
    #[must_use]
    pub fn of(kind: OpKind) -> Option<&'static Self> {
        super::catalogue::CATALOGUE.iter().find(|s| s.kind == kind)
    }

    /// Position of the slot with this name.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.name == name)
    }
}

const fn slot(name: &'static str, access: Access, types: Types, shape: Shape) -> Slot {
    Slot { name, access, optional: false, types, shape, layout: Layout::Rows }
}

/// A read slot.
pub(super) const fn input(name: &'static str, types: Types, shape: Shape) -> Slot {
    slot(name, Access::In, types, shape)
}

/// A written slot.
pub(super) const fn output(name: &'static str, types: Types, shape: Shape) -> Slot {
    slot(name, Access::Out, types, shape)
}

/// A slot that is read and written.
pub(super) const fn inout(name: &'static str, types: Types, shape: Shape) -> Slot {
    slot(name, Access::InOut, types, shape)
}

impl Slot {
    pub(super) const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
    pub(super) const fn packed(mut self) -> Self {
        self.layout = Layout::Packed;
        self
    }
    pub(super) const fn any_layout(mut self) -> Self {
        self.layout = Layout::Any;
        self
    }
    pub(super) const fn opaque(mut self) -> Self {
        self.layout = Layout::Opaque;
        self
    }
}

impl Slot {
    /// What each axis of a tensor of this rank in this slot is, axis by axis.
    pub fn axes(&self, rank: usize) -> impl Iterator<Item = Dim> + '_ {
        (0..rank).map(move |axis| match self.shape {
            Shape::Dims(dims) => dims.get(axis).copied().unwrap_or(Dim::Const(0)),
            Shape::Same | Shape::Trailing => Dim::Is(free_sym(rank - 1 - axis)),
        })
    }
}

/// The symbol of an axis without a name of its own, counted from the right: the last is `H`.
#[must_use]
pub fn free_sym(from_right: usize) -> Sym {
    [Sym::H, Sym::D0, Sym::D1, Sym::D2, Sym::D3][from_right.min(4)]
}

/// Most dims of a slot without fixed dims.
pub const MAX_FREE_RANK: usize = 4;
