//! Typed attributes: one struct an op, which builds and parses the open `Attr` list.
//!
//! An attribute that is left out has its default. An attribute that the op does not know is refused: an old backend must not
//! compute plain attention when asked for a soft-cap. So attributes that came after the op's first revision are written only where
//! they differ from their default: an old backend goes on with everything that it knows.

use crate::{
    error::AbiError,
    ids::{AttrKey, OpKind},
    types::{Attr, OpDesc},
};

/// The attributes of one op.
pub trait OpAttrs: Sized {
    /// Which op.
    const KIND: OpKind;

    /// What attributes the op has.
    fn schema() -> Vec<AttrSchema>;

    /// The attributes, sorted by key: all of the op's first revision, of later ones those that are not at their default.
    fn to_attrs(&self) -> Vec<Attr>;

    /// The oldest revision of the op that has all of [`to_attrs`](Self::to_attrs).
    fn revision(&self) -> u32 {
        let (attrs, schema) = (self.to_attrs(), Self::schema());
        let since = |attr: &Attr| schema.iter().find(|s| s.key == attr.key).map(|s| s.since);
        attrs.iter().filter_map(since).max().unwrap_or(1)
    }

    /// Reads a descriptor's attributes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the descriptor is of another op, or a value has the wrong type; `UNSUPPORTED` for a newer revision
    /// or an attribute that this op does not have.
    fn from_desc(desc: &OpDesc<'_>) -> Result<Self, AbiError>;
}

/// What an attribute is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttrSchema {
    /// Its key.
    pub key: AttrKey,
    /// Its [`Attr::ty`].
    pub ty: u32,
    /// What leaving it out means.
    pub default: Value,
    /// The revision of the op that brought it.
    pub since: u32,
    /// What it does.
    pub doc: &'static str,
}

/// An attribute's value by type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Type 1.
    Int(i64),
    /// Type 2.
    Float(f64),
    /// Type 3.
    Bool(bool),
    /// Type 4, or a type this build does not know.
    Id(u64),
}

impl Value {
    /// The value of an attribute.
    #[must_use]
    pub fn of(attr: &Attr) -> Self {
        match attr.ty {
            1 => Self::Int(attr.bits.cast_signed()),
            2 => Self::Float(f64::from_bits(attr.bits)),
            3 => Self::Bool(attr.bits != 0),
            _ => Self::Id(attr.bits),
        }
    }
}

impl core::fmt::Display for Value {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Int(v) => write!(f, "{v}"),
            Self::Float(v) => write!(f, "{v}"),
            Self::Bool(v) => write!(f, "{v}"),
            Self::Id(v) => write!(f, "#{v}"),
        }
    }
}

/// A Rust type that an attribute can have.
trait AttrType: Sized {
    const TY: u32;
    fn bits(&self) -> u64;
    fn from_bits(bits: u64) -> Option<Self>;
}

impl AttrType for i64 {
    const TY: u32 = 1;
    fn bits(&self) -> u64 {
        self.cast_unsigned()
    }
    fn from_bits(bits: u64) -> Option<Self> {
        Some(bits.cast_signed())
    }
}

impl AttrType for f64 {
    const TY: u32 = 2;
    fn bits(&self) -> u64 {
        self.to_bits()
    }
    fn from_bits(bits: u64) -> Option<Self> {
        Some(Self::from_bits(bits))
    }
}

impl AttrType for bool {
    const TY: u32 = 3;
    fn bits(&self) -> u64 {
        u64::from(*self)
    }
    fn from_bits(bits: u64) -> Option<Self> {
        (bits <= 1).then_some(bits == 1)
    }
}

impl AttrType for Act {
    const TY: u32 = 1;
    fn bits(&self) -> u64 {
        u64::from(*self as u32)
    }
    fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Silu,
            1 => Self::GeluTanh,
            2 => Self::GeluErf,
            _ => return None,
        })
    }
}

/// A gated layer's activation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Act {
    /// `g / (1 + e^-g)`.
    #[default]
    Silu = 0,
    /// `g/2 (1 + tanh(√(2/π) (g + 0.044715 g³)))`.
    GeluTanh = 1,
    /// `g/2 (1 + erf(g/√2))`.
    GeluErf = 2,
}

fn read<T: AttrType>(desc: &OpDesc<'_>, attr: &Attr) -> Result<T, AbiError> {
    let bad = || {
        AbiError::invalid(format!(
            "{}: attribute {} has type {} and bits {:#x}, expected type {}",
            desc.kind,
            attr.key,
            attr.ty,
            attr.bits,
            T::TY
        ))
    };
    if attr.ty != T::TY {
        return Err(bad());
    }
    T::from_bits(attr.bits).ok_or_else(bad)
}

/// The attribute as it crosses the boundary; `None` where an older side need not hear of it.
fn written<T: AttrType>(key: AttrKey, value: &T, default: &T, since: u32) -> Option<Attr> {
    let attr = Attr { key, ty: T::TY, bits: value.bits() };
    (since <= 1 || attr.bits != default.bits()).then_some(attr)
}

fn check_head(desc: &OpDesc<'_>, kind: OpKind) -> Result<(), AbiError> {
    if desc.kind != kind {
        return Err(AbiError::invalid(format!("a descriptor of {}, expected {kind}", desc.kind)));
    }
    let newest = super::OpSchema::of(kind).map_or(1, |s| s.revision);
    if desc.revision == 0 || desc.revision > newest {
        return Err(AbiError::unsupported(format!(
            "{kind} revision {}, this build knows 1 to {newest}",
            desc.revision
        )));
    }
    if desc.attrs.windows(2).any(|w| w[0].key >= w[1].key) {
        return Err(AbiError::invalid(format!("{kind}: attributes are not sorted and unique")));
    }
    Ok(())
}

macro_rules! op_attrs {
    ($($(#[$meta:meta])* $name:ident = $kind:ident {
        $($(#[doc = $doc:literal])* $field:ident: $ty:ty = $key:ident or $default:expr
            $(; since $since:literal)?,)*
    })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl OpAttrs for $name {
            const KIND: OpKind = OpKind::$kind;

            fn schema() -> Vec<AttrSchema> {
                let _default = Self::default();
                vec![$({
                    let (key, ty) = (AttrKey::$key, <$ty as AttrType>::TY);
                    AttrSchema {
                        key,
                        ty,
                        default: Value::of(&Attr { key, ty, bits: _default.$field.bits() }),
                        since: since!($($since)?),
                        doc: concat!($($doc),*).trim_ascii(),
                    }
                }),*]
            }

            fn to_attrs(&self) -> Vec<Attr> {
                let _default = Self::default();
                let mut attrs: Vec<Attr> = Vec::new();
                $(attrs.extend(written(
                    AttrKey::$key,
                    &self.$field,
                    &_default.$field,
                    since!($($since)?),
                ));)*
                attrs.sort_by_key(|a| a.key);
                attrs
            }

            fn from_desc(desc: &OpDesc<'_>) -> Result<Self, AbiError> {
                check_head(desc, Self::KIND)?;
                #[allow(unused_mut, reason = "an op without attributes changes nothing")]
                let mut this = Self::default();
                for attr in desc.attrs.iter() {
                    match attr.key {
                        $(AttrKey::$key => this.$field = read(desc, attr)?,)*
                        key => {
                            return Err(AbiError::unsupported(format!(
                                "{}: attribute {key} is not known",
                                desc.kind
                            )));
                        }
                    }
                }
                Ok(this)
            }
        }
    )*

        /// What attributes an op has, in no order; none if the op is outside this opset.
        #[must_use]
        pub fn schema(kind: OpKind) -> Vec<AttrSchema> {
            match kind {
                $(OpKind::$kind => $name::schema(),)*
                _ => Vec::new(),
            }
        }
    };
}

macro_rules! since {
    () => {
        1
    };
    ($revision:literal) => {
        $revision
    };
}

op_attrs! {
    /// [`OpKind::COPY`].
    Copy = COPY {}
    /// [`OpKind::ADD`].
    Add = ADD {
        /// Multiplier of `b`.
        alpha: f64 = ALPHA or 1.0,
    }
    /// [`OpKind::MUL`].
    Mul = MUL {}
    /// [`OpKind::GATHER_ROWS`].
    GatherRows = GATHER_ROWS {}
    /// [`OpKind::EMBEDDING`].
    Embedding = EMBEDDING {
        /// Multiplier of the row.
        scale: f64 = SCALE or 1.0,
        /// First id of the shard.
        vocab_start: i64 = VOCAB_START or 0,
    }
    /// [`OpKind::RMS_NORM`].
    RmsNorm = RMS_NORM {
        /// Added to the mean square.
        eps: f64 = EPS or 1e-6,
        /// The weight is `gamma + 1`.
        plus_one: bool = PLUS_ONE or false,
    }
    /// [`OpKind::ROPE`].
    Rope = ROPE {
        /// Pairs `(2i, 2i + 1)` instead of `(i, i + R/2)`.
        interleaved: bool = STYLE or false,
        /// First rotated dim.
        offset: i64 = OFFSET or 0,
    }
    /// [`OpKind::ACT_MUL`].
    ActMul = ACT_MUL {
        /// Activation of the gate: 0 silu, 1 gelu (tanh), 2 gelu (erf).
        act: Act = ACT or Act::Silu,
        /// Clamp; 0 is off.
        limit: f64 = LIMIT or 0.0,
    }
    /// [`OpKind::LINEAR`].
    Linear = LINEAR {
        /// Adds to `y`.
        accumulate: bool = ACCUMULATE or false,
        /// Activation quantisation: 0 none, 1 int8 a token, 2 fp8 a 1×128 group, 3 static.
        act_quant: i64 = ACT_QUANT or 0,
    }
    /// [`OpKind::BATCHED_LINEAR`].
    BatchedLinear = BATCHED_LINEAR {}
    /// [`OpKind::QUANT_ACT`].
    QuantAct = QUANT_ACT {
        /// 1 int8 a token, 2 fp8 a 1×128 group.
        mode: i64 = MODE or 1,
    }
    /// [`OpKind::KV_WRITE`].
    KvWrite = KV_WRITE {}
    /// [`OpKind::PAGED_ATTENTION`].
    PagedAttention = PAGED_ATTENTION {
        /// Multiplier of `q·k`.
        scale: f64 = SCALE or 1.0,
        /// Keys after the query are hidden.
        causal: bool = CAUSAL or true,
        /// Left reach; -1 is all.
        window: i64 = WINDOW or -1,
        /// Soft-cap; 0 is off.
        softcap: f64 = SOFTCAP or 0.0,
    }
    /// [`OpKind::MLA_WRITE`].
    MlaWrite = MLA_WRITE {}
    /// [`OpKind::MLA_ATTENTION`].
    MlaAttention = MLA_ATTENTION {
        /// Multiplier of `q·k`.
        scale: f64 = SCALE or 1.0,
        /// Keys after the query are hidden.
        causal: bool = CAUSAL or true,
        /// Left reach; -1 is all.
        window: i64 = WINDOW or -1,
        /// Soft-cap; 0 is off.
        softcap: f64 = SOFTCAP or 0.0,
    }
    /// [`OpKind::VARLEN_ATTENTION`].
    VarlenAttention = VARLEN_ATTENTION {
        /// Multiplier of `q·k`.
        scale: f64 = SCALE or 1.0,
        /// Keys after the query are hidden.
        causal: bool = CAUSAL or true,
        /// Left reach; -1 is all.
        window: i64 = WINDOW or -1,
        /// Soft-cap; 0 is off.
        softcap: f64 = SOFTCAP or 0.0,
    }
    /// [`OpKind::MERGE_ATTENTION`].
    MergeAttention = MERGE_ATTENTION {}
    /// [`OpKind::KV_GATHER`].
    KvGather = KV_GATHER {
        /// The cache is one of latents and rotated parts.
        latent: bool = LATENT or false,
    }
    /// [`OpKind::KV_COPY_BLOCKS`].
    KvCopyBlocks = KV_COPY_BLOCKS {
        /// The cache is one of latents and rotated parts.
        latent: bool = LATENT or false,
    }
    /// [`OpKind::MOE_ROUTER`].
    MoeRouter = MOE_ROUTER {
        /// Sigmoid instead of softmax.
        sigmoid: bool = SCORE or false,
        /// Expert groups.
        n_group: i64 = N_GROUP or 1,
        /// Groups kept.
        topk_group: i64 = TOPK_GROUP or 1,
        /// A group's score is the sum of its best two instead of its best.
        group_sum_of_two: bool = GROUP_SCORE or false,
        /// Weights are divided by their sum.
        norm: bool = NORM or false,
        /// Multiplier of the weights.
        scale: f64 = SCALE or 1.0,
    }
    /// [`OpKind::MOE_EXPERTS`].
    MoeExperts = MOE_EXPERTS {
        /// First expert of the local slice.
        expert_start: i64 = EXPERT_START or 0,
        /// Activation of the gate: 0 silu, 1 gelu (tanh), 2 gelu (erf).
        act: Act = ACT or Act::Silu,
        /// Clamp; 0 is off.
        limit: f64 = LIMIT or 0.0,
        /// Activation quantisation, as in [`Linear`].
        act_quant: i64 = ACT_QUANT or 0,
        /// The routing weight multiplies the input.
        weight_on_input: bool = WEIGHT_ON_INPUT or false,
    }
    /// [`OpKind::MOE_PERMUTE`].
    MoePermute = MOE_PERMUTE {
        /// First expert of the local slice.
        expert_start: i64 = EXPERT_START or 0,
    }
    /// [`OpKind::GROUPED_LINEAR`].
    GroupedLinear = GROUPED_LINEAR {
        /// Activation quantisation, as in [`Linear`].
        act_quant: i64 = ACT_QUANT or 0,
    }
    /// [`OpKind::MOE_UNPERMUTE`].
    MoeUnpermute = MOE_UNPERMUTE {}
    /// [`OpKind::ARGMAX`].
    Argmax = ARGMAX {}
    /// [`OpKind::TOPK`].
    Topk = TOPK {}
    /// [`OpKind::LOGPROBS`].
    Logprobs = LOGPROBS {}
    /// [`OpKind::LOGITS_PROCESS`].
    LogitsProcess = LOGITS_PROCESS {}
    /// [`OpKind::SAMPLE`].
    Sample = SAMPLE {}
    /// [`OpKind::QKV_POST`].
    QkvPost = QKV_POST {
        /// Added to the mean square.
        eps: f64 = EPS or 1e-6,
        /// The norms' weights are `gamma + 1`.
        plus_one: bool = PLUS_ONE or false,
        /// Pairs `(2i, 2i + 1)` instead of `(i, i + R/2)`.
        interleaved: bool = STYLE or false,
        /// First rotated dim.
        offset: i64 = OFFSET or 0,
    }
    /// [`OpKind::LINEAR_ACT_MUL`].
    LinearActMul = LINEAR_ACT_MUL {
        /// Activation of the gate: 0 silu, 1 gelu (tanh), 2 gelu (erf).
        act: Act = ACT or Act::Silu,
        /// Clamp; 0 is off.
        limit: f64 = LIMIT or 0.0,
        /// Activation quantisation, as in [`Linear`].
        act_quant: i64 = ACT_QUANT or 0,
    }
    /// [`OpKind::LINEAR_ALL_REDUCE`].
    LinearAllReduce = LINEAR_ALL_REDUCE {
        /// The communicator's number.
        comm: i64 = COMM or 0,
        /// Activation quantisation, as in [`Linear`].
        act_quant: i64 = ACT_QUANT or 0,
    }
    /// [`OpKind::RMS_NORM_QUANT`].
    RmsNormQuant = RMS_NORM_QUANT {
        /// Added to the mean square.
        eps: f64 = EPS or 1e-6,
        /// The weight is `gamma + 1`.
        plus_one: bool = PLUS_ONE or false,
        /// As in [`QuantAct`].
        mode: i64 = MODE or 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Code, DType, Scheme},
        ops::OpBuf,
        types::{TensorSpec, WeightDesc},
    };
    use abi_stable::std_types::RSlice;

    fn linear() -> OpBuf {
        OpBuf::new(
            &Linear { accumulate: true, ..Default::default() },
            [
                TensorSpec::new(DType::F32, &[-1, 64]),
                TensorSpec::NONE,
                TensorSpec::new(DType::F32, &[-1, 32]),
            ],
            [WeightDesc::linear(Scheme::GGUF_Q4_1, DType::NONE, 32, 64)],
        )
    }

    #[test]
    fn attributes_come_back_as_they_went() {
        let op = linear();
        let parsed = Linear::from_desc(&op.desc()).unwrap();
        assert_eq!(parsed, Linear { accumulate: true, act_quant: 0 });
        let shown = "linear x:f32[*,64] y:f32[*,32] w0:q4_1[32,64] accumulate=true act_quant=0";
        assert_eq!(op.to_string(), shown);
    }

    /// The next revision of LINEAR, as a newer side may have it.
    #[expect(unreachable_pub, reason = "the macro makes public items")]
    mod newer {
        use super::super::*;

        op_attrs! {
            /// With a clamp.
            Linear = LINEAR {
                /// Adds to `y`.
                accumulate: bool = ACCUMULATE or false,
                /// Clamps `y`;
                /// 0 is off.
                limit: f64 = LIMIT or 0.0; since 2,
                /// As before.
                act_quant: i64 = ACT_QUANT or 0,
            }
        }
    }

    #[test]
    fn a_newer_attribute_is_written_only_where_it_matters() {
        let today = linear();
        let op = |attrs: &newer::Linear| OpBuf::new(attrs, today.tensors(), today.weights());
        let same = op(&newer::Linear { accumulate: true, ..Default::default() });
        assert_eq!((same.desc().revision, same.attrs()), (1, today.attrs()));
        assert!(Linear::from_desc(&same.desc()).is_ok(), "an older side knows all of it");

        let clamped = op(&newer::Linear { limit: 6.0, ..Default::default() });
        assert_eq!(clamped.desc().revision, 2);
        assert_eq!(Linear::from_desc(&clamped.desc()).unwrap_err().code, Code::UNSUPPORTED);

        let schema = newer::schema(OpKind::LINEAR);
        assert_eq!(schema[1].default, Value::Float(0.0));
        assert_eq!((schema[1].since, schema[1].doc), (2, "Clamps `y`; 0 is off."));
    }

    #[test]
    fn unknown_attributes_and_newer_revisions_are_refused() {
        let op = linear();
        let mut attrs = op.attrs().to_vec();
        attrs.push(Attr { key: AttrKey(9999), ty: 1, bits: 1 });
        let desc = OpDesc { attrs: RSlice::from_slice(&attrs), ..op.desc() };
        let error = Linear::from_desc(&desc).unwrap_err();
        assert_eq!(error.code, Code::UNSUPPORTED);
        assert!(error.message.contains("AttrKey#9999"), "{error}");
        let error = Linear::from_desc(&OpDesc { revision: 2, ..op.desc() }).unwrap_err();
        assert_eq!(error.code, Code::UNSUPPORTED);
        assert!(RmsNorm::from_desc(&op.desc()).is_err());
    }

    #[test]
    fn wrong_types_and_order_are_invalid() {
        let op = linear();
        let mut attrs = op.attrs().to_vec();
        attrs[0].ty = 2;
        let desc = OpDesc { attrs: RSlice::from_slice(&attrs), ..op.desc() };
        assert_eq!(Linear::from_desc(&desc).unwrap_err().code, Code::INVALID_ARGUMENT);
        attrs[0].ty = 3;
        attrs[0].bits = 7;
        let desc = OpDesc { attrs: RSlice::from_slice(&attrs), ..op.desc() };
        assert_eq!(Linear::from_desc(&desc).unwrap_err().code, Code::INVALID_ARGUMENT);
        let mut attrs = op.attrs().to_vec();
        attrs.reverse();
        let desc = OpDesc { attrs: RSlice::from_slice(&attrs), ..op.desc() };
        assert_eq!(Linear::from_desc(&desc).unwrap_err().code, Code::INVALID_ARGUMENT);
    }
}
