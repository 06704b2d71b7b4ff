//! The op catalogue: what each operation takes, means and returns.
//!
//! - [`schema`]: how an op's slots, shapes and attributes are described
//! - [`catalogue`]: the description of every op of this opset, beside its formula
//! - [`attrs`]: a typed struct an op's attributes, which builds and parses them
//! - [`check`]: validation of descriptors and launch arguments against the catalogue, and against the `relations` of dims and attributes
//!
//! Reference semantics of every op: inputs are widened to f32, arithmetic is f32 with accumulation in f32 or better (the oracle:
//! f64), and each written tensor is rounded once, to nearest even. Rows whose index is negative are padding: their outputs are 0.

pub mod attrs;
pub mod catalogue;
pub mod check;
mod relations;
pub mod schema;

use abi_stable::std_types::RSlice;

use crate::{
    ids::OpKind,
    types::{Attr, OpDesc, TensorSpec, WeightDesc},
};
pub use attrs::{Act, AttrSchema, OpAttrs};
pub use schema::{Access, OpSchema, Sym};

/// An owned [`OpDesc`].
#[derive(Clone, Debug)]
pub struct OpBuf {
    kind: OpKind,
    revision: u32,
    tensors: Vec<TensorSpec>,
    weights: Vec<WeightDesc<'static>>,
    attrs: Vec<Attr>,
}

impl OpBuf {
    /// The op that `attrs` belongs to, with these slots; trailing absent slots are dropped.
    pub fn new<A: OpAttrs>(
        attrs: &A,
        tensors: impl Into<Vec<TensorSpec>>,
        weights: impl Into<Vec<WeightDesc<'static>>>,
    ) -> Self {
        let mut tensors = tensors.into();
        while tensors.last().is_some_and(TensorSpec::is_none) {
            tensors.pop();
        }
        Self {
            kind: A::KIND,
            revision: attrs.revision(),
            tensors,
            weights: weights.into(),
            attrs: attrs.to_attrs(),
        }
    }

    /// Which op.
    #[must_use]
    pub fn kind(&self) -> OpKind {
        self.kind
    }

    /// The slots.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The weights.
    #[must_use]
    pub fn weights(&self) -> &[WeightDesc<'static>] {
        &self.weights
    }

    /// The attributes, sorted by key.
    #[must_use]
    pub fn attrs(&self) -> &[Attr] {
        &self.attrs
    }

    /// The descriptor that crosses the boundary.
    #[must_use]
    pub fn desc(&self) -> OpDesc<'_> {
        OpDesc {
            kind: self.kind,
            revision: self.revision,
            tensors: RSlice::from_slice(&self.tensors),
            weights: RSlice::from_slice(&self.weights),
            attrs: RSlice::from_slice(&self.attrs),
            hints: RSlice::EMPTY,
        }
    }
}

/// A stable one-line form: equal ops print equal, so it serves as cache key and in messages.
///
/// `linear x:bf16[*,576] y:bf16[*,960] w0:q4_1[960,576] accumulate=false act_quant=0`
impl core::fmt::Display for OpBuf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        fmt_desc(&self.desc(), f)
    }
}

/// Writes a descriptor in the form of [`OpBuf`]'s `Display`.
///
/// # Errors
/// If the writer fails.
pub fn fmt_desc(desc: &OpDesc<'_>, f: &mut impl core::fmt::Write) -> core::fmt::Result {
    write!(f, "{}", desc.kind)?;
    let schema = OpSchema::of(desc.kind);
    for (i, t) in desc.tensors.iter().enumerate().filter(|(_, t)| !t.is_none()) {
        match schema.and_then(|s| s.slots.get(i)) {
            Some(slot) => write!(f, " {}:", slot.name)?,
            None => write!(f, " t{i}:")?,
        }
        write!(f, "{}[", t.dtype)?;
        for (axis, &d) in t.dims().iter().enumerate() {
            let comma = if axis == 0 { "" } else { "," };
            if d < 0 { write!(f, "{comma}*")? } else { write!(f, "{comma}{d}")? }
        }
        write!(f, "]")?;
    }
    for (i, w) in desc.weights.iter().enumerate() {
        write!(f, " w{i}:{}", w.scheme)?;
        if w.dtype != crate::DType::NONE {
            write!(f, ":{}", w.dtype)?;
        }
        if w.groups > 1 {
            write!(f, "[{},{},{}]", w.groups, w.n, w.k)?;
        } else {
            write!(f, "[{},{}]", w.n, w.k)?;
        }
    }
    for a in desc.attrs.iter() {
        write!(f, " {}={}", a.key, attrs::Value::of(a))?;
    }
    Ok(())
}
