//! Edits of op descriptors, which the catalogue's types do not offer: other slots, other weights, attributes by name.

use halyard_abi::{
    Attr, OpDesc, RSlice,
    ops::{
        AttrSchema,
        schema::{Layout, OpSchema, Slot},
    },
};
use halyard_core::{
    DType, OpBuf, OpKind, TensorSpec, WeightDesc,
    attrs::{
        ActMul, Add, Argmax, BatchedLinear, Copy, Embedding, GatherRows, GroupedLinear,
        KvCopyBlocks, KvGather, KvWrite, Linear, LinearActMul, LinearAllReduce, LogitsProcess,
        Logprobs, MergeAttention, MlaAttention, MlaWrite, MoeExperts, MoePermute, MoeRouter,
        MoeUnpermute, Mul, PagedAttention, QkvPost, QuantAct, RmsNorm, RmsNormQuant, Rope, Sample,
        Topk, VarlenAttention,
    },
    ops::OpAttrs,
};

/// Calls `$f::<A>` with the attribute type of an op.
macro_rules! by_kind {
    ($kind:expr, $f:ident $args:tt) => {
        match $kind {
            OpKind::COPY => $f::<Copy> $args,
            OpKind::ADD => $f::<Add> $args,
            OpKind::MUL => $f::<Mul> $args,
            OpKind::GATHER_ROWS => $f::<GatherRows> $args,
            OpKind::EMBEDDING => $f::<Embedding> $args,
            OpKind::RMS_NORM => $f::<RmsNorm> $args,
            OpKind::ROPE => $f::<Rope> $args,
            OpKind::ACT_MUL => $f::<ActMul> $args,
            OpKind::LINEAR => $f::<Linear> $args,
            OpKind::KV_WRITE => $f::<KvWrite> $args,
            OpKind::PAGED_ATTENTION => $f::<PagedAttention> $args,
            OpKind::KV_COPY_BLOCKS => $f::<KvCopyBlocks> $args,
            OpKind::MOE_ROUTER => $f::<MoeRouter> $args,
            OpKind::MOE_EXPERTS => $f::<MoeExperts> $args,
            OpKind::ARGMAX => $f::<Argmax> $args,
            OpKind::TOPK => $f::<Topk> $args,
            OpKind::LOGPROBS => $f::<Logprobs> $args,
            OpKind::LOGITS_PROCESS => $f::<LogitsProcess> $args,
            OpKind::SAMPLE => $f::<Sample> $args,
            OpKind::BATCHED_LINEAR => $f::<BatchedLinear> $args,
            OpKind::QUANT_ACT => $f::<QuantAct> $args,
            OpKind::MLA_WRITE => $f::<MlaWrite> $args,
            OpKind::MLA_ATTENTION => $f::<MlaAttention> $args,
            OpKind::VARLEN_ATTENTION => $f::<VarlenAttention> $args,
            OpKind::MERGE_ATTENTION => $f::<MergeAttention> $args,
            OpKind::KV_GATHER => $f::<KvGather> $args,
            OpKind::MOE_PERMUTE => $f::<MoePermute> $args,
            OpKind::GROUPED_LINEAR => $f::<GroupedLinear> $args,
            OpKind::MOE_UNPERMUTE => $f::<MoeUnpermute> $args,
            OpKind::QKV_POST => $f::<QkvPost> $args,
            OpKind::LINEAR_ACT_MUL => $f::<LinearActMul> $args,
            OpKind::LINEAR_ALL_REDUCE => $f::<LinearAllReduce> $args,
            OpKind::RMS_NORM_QUANT => $f::<RmsNormQuant> $args,
            other => Err(format!("op {other} is not in the catalogue")),
        }
    };
}

/// The attributes of an op with all defaults.
pub(crate) fn default_attrs(kind: OpKind) -> Result<Vec<Attr>, String> {
    fn typed<A: OpAttrs + Default>() -> Result<Vec<Attr>, String> {
        Ok(A::default().to_attrs())
    }
    by_kind!(kind, typed())
}

/// A descriptor from its parts.
pub(crate) fn build(
    kind: OpKind,
    attrs: &[Attr],
    tensors: Vec<TensorSpec>,
    weights: Vec<WeightDesc<'static>>,
) -> Result<OpBuf, String> {
    fn typed<A: OpAttrs>(
        attrs: &[Attr],
        tensors: Vec<TensorSpec>,
        weights: Vec<WeightDesc<'static>>,
    ) -> Result<OpBuf, String> {
        let desc = OpDesc {
            kind: A::KIND,
            revision: 1,
            tensors: RSlice::EMPTY,
            weights: RSlice::EMPTY,
            attrs: RSlice::from_slice(attrs),
            hints: RSlice::EMPTY,
        };
        let attrs = A::from_desc(&desc).map_err(|e| e.to_string())?;
        Ok(OpBuf::new(&attrs, tensors, weights))
    }
    by_kind!(kind, typed(attrs, tensors, weights))
}

/// The typed attributes of an op; its defaults if it is of another kind.
pub(crate) fn attrs_of<A: OpAttrs + Default>(op: &OpBuf) -> A {
    A::from_desc(&op.desc()).unwrap_or_default()
}

/// The same op with other slots and weights.
pub(crate) fn with_shapes(
    op: &OpBuf,
    tensors: Vec<TensorSpec>,
    weights: Vec<WeightDesc<'static>>,
) -> Result<OpBuf, String> {
    build(op.kind(), op.attrs(), tensors, weights)
}

/// The same op over a cache of f32, without scales.
pub(crate) fn with_float_cache(op: &OpBuf) -> Result<OpBuf, String> {
    let slots = OpSchema::of(op.kind()).map_or(&[][..], |s| s.slots);
    let change = |(slot, spec): (&Slot, &TensorSpec)| match slot.name {
        "k_scale" | "v_scale" => TensorSpec::NONE,
        _ if slot.layout == Layout::Opaque && !spec.is_none() => {
            TensorSpec { dtype: DType::F32, ..*spec }
        }
        _ => *spec,
    };
    let tensors = slots.iter().zip(op.tensors()).map(change).collect();
    build(op.kind(), op.attrs(), tensors, op.weights().to_vec())
}

/// An op with one attribute more, which no backend knows.
#[derive(Debug)]
pub(crate) struct Odd<A> {
    known: A,
}

impl<A: OpAttrs> OpAttrs for Odd<A> {
    const KIND: OpKind = A::KIND;

    fn schema() -> Vec<AttrSchema> {
        A::schema()
    }

    fn to_attrs(&self) -> Vec<Attr> {
        let mut attrs = self.known.to_attrs();
        attrs.push(Attr { key: halyard_abi::AttrKey(0x7fff_0001), ty: 1, bits: 1 });
        attrs
    }

    fn from_desc(desc: &OpDesc<'_>) -> Result<Self, halyard_abi::AbiError> {
        A::from_desc(desc).map(|known| Self { known })
    }
}

/// The same op with an attribute that no backend knows.
pub(crate) fn with_unknown_attr(op: &OpBuf) -> Result<OpBuf, String> {
    fn typed<A: OpAttrs>(op: &OpBuf) -> Result<OpBuf, String> {
        let odd = Odd::<A>::from_desc(&op.desc()).map_err(|e| e.to_string())?;
        Ok(OpBuf::new(&odd, op.tensors().to_vec(), op.weights().to_vec()))
    }
    by_kind!(op.kind(), typed(op))
}

/// How an op quantises its activations: its ACT_QUANT; 0 if it does not.
pub(crate) fn act_quant(op: &OpBuf) -> u64 {
    let attr = op.attrs().iter().find(|a| a.key == halyard_abi::AttrKey::ACT_QUANT);
    attr.map_or(0, |a| a.bits)
}

/// A slot's spec, by the slot's name.
pub(crate) fn spec<'o>(op: &'o OpBuf, name: &str) -> Option<&'o TensorSpec> {
    let at = OpSchema::of(op.kind())?.slot(name)?;
    op.tensors().get(at).filter(|spec| !spec.is_none())
}

/// The attributes that every attention has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention {
    pub(crate) scale: f64,
    pub(crate) softcap: f64,
    pub(crate) causal: bool,
    pub(crate) window: i64,
}

/// Of PAGED_ATTENTION, MLA_ATTENTION or VARLEN_ATTENTION.
pub(crate) fn attention(op: &OpBuf) -> Attention {
    macro_rules! of {
        ($attrs:ty) => {{
            let attrs: $attrs = attrs_of(op);
            let (scale, softcap) = (attrs.scale, attrs.softcap);
            Attention { scale, softcap, causal: attrs.causal, window: attrs.window }
        }};
    }
    match op.kind() {
        OpKind::MLA_ATTENTION => of!(MlaAttention),
        OpKind::VARLEN_ATTENTION => of!(VarlenAttention),
        _ => of!(PagedAttention),
    }
}
