//! The structs that cross the boundary. Closed for ever within an ABI major: new meaning goes into open key lists.

use abi_stable::{
    StableAbi,
    std_types::{RSlice, RStr},
};

use crate::ids::{AttrKey, DType, MetricKey, OpKind, Plan, Scheme, Weight};

/// Most dimensions a tensor can have.
pub const MAX_RANK: usize = 8;

/// The view's data is host memory.
pub const FLAG_HOST: u8 = 1;
/// The arrangement is the backend's own: dims are logical, strides are ignored.
pub const FLAG_OPAQUE: u8 = 2;

/// Memory kinds of [`AllocReq`], [`Buffer`] and [`MemRef`].
pub mod mem {
    /// Plain memory of the host process ([`MemRef`](super::MemRef) only).
    pub const HOST: u32 = 0;
    /// Device memory.
    pub const DEVICE: u32 = 1;
    /// Host memory that the device reaches directly.
    pub const PINNED: u32 = 2;
    /// Memory that migrates.
    pub const MANAGED: u32 = 3;
}

/// A tensor in device memory (or in host memory, if flagged so).
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq)]
pub struct TensorView {
    /// Opaque to the host: an address for CPU, CUDA and CANN, a handle elsewhere. The host does no arithmetic on it.
    pub data: u64,
    /// Where the first element is, in bytes from `data`; this is what the host moves.
    pub byte_offset: u64,
    /// Element type; `NONE` marks an absent optional slot.
    pub dtype: DType,
    /// Dimensions in use.
    pub rank: u8,
    /// [`FLAG_HOST`], [`FLAG_OPAQUE`].
    pub flags: u8,
    /// Must be 0.
    pub reserved: u16,
    /// Extents; entries at `rank..` are 0.
    pub dims: [i64; MAX_RANK],
    /// Steps in elements; may be 0 (a broadcast input), never negative.
    pub strides: [i64; MAX_RANK],
}

/// The type and shape of a tensor slot.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Element type; `NONE` marks an absent optional slot.
    pub dtype: DType,
    /// Dimensions in use.
    pub rank: u8,
    /// As [`TensorView::flags`].
    pub flags: u8,
    /// Must be 0.
    pub reserved: u16,
    /// Extents; -1 is known only at launch.
    pub dims: [i64; MAX_RANK],
}

/// A named parameter of an op.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attr {
    /// Which.
    pub key: AttrKey,
    /// 1 `i64`, 2 `f64`, 3 `bool`, 4 an identifier.
    pub ty: u32,
    /// The value's bits.
    pub bits: u64,
}

/// An operation with everything that has meaning: what a kernel is prepared from.
///
/// A backend must refuse (`UNSUPPORTED`) an attribute it does not know, a non-empty slot it does not know and a revision above its
/// own; it may ignore hints. Attributes are sorted by key and unique, so equal ops have equal bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct OpDesc<'a> {
    /// Which op.
    pub kind: OpKind,
    /// Which revision of its definition; 1 is the first.
    pub revision: u32,
    /// Slots by position; an absent optional slot has dtype `NONE`, trailing absent ones may be left out.
    pub tensors: RSlice<'a, TensorSpec>,
    /// Weights by position.
    pub weights: RSlice<'a, WeightDesc<'a>>,
    /// Parameters.
    pub attrs: RSlice<'a, Attr>,
    /// Wishes that change no result.
    pub hints: RSlice<'a, Attr>,
}

/// The arguments of one launch; slots as in the [`OpDesc`] the kernel was prepared from.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct LaunchArgs<'a> {
    /// From `Kernel::plan`, or none.
    pub plan: Plan,
    /// Device address of scratch memory; contents are undefined before and after.
    pub workspace: u64,
    /// Its size.
    pub workspace_bytes: u64,
    /// Tensors by slot.
    pub tensors: RSlice<'a, TensorView>,
    /// Weights by slot.
    pub weights: RSlice<'a, Weight>,
    /// Scalars of the op, in its order.
    pub scalars: RSlice<'a, u64>,
    /// Host mirrors of length arrays, in the op's order.
    pub host: RSlice<'a, RSlice<'a, i32>>,
}

/// A wish for memory.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct AllocReq {
    /// Size; at least 1.
    pub bytes: u64,
    /// Power of two; the base is aligned to at least 256 in any case.
    pub align: u64,
    /// One of [`mem`], not `HOST`.
    pub kind: u32,
    /// Must be 0.
    pub flags: u32,
}

/// Memory the host owns until it calls `free`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Buffer {
    /// Unique within the device for ever.
    pub id: u64,
    /// What views name as `data`.
    pub base: u64,
    /// Size.
    pub bytes: u64,
    /// As asked for.
    pub kind: u32,
    /// 0.
    pub flags: u32,
}

/// A place in memory.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct MemRef {
    /// A buffer's base, or a host address.
    pub base: u64,
    /// Bytes from there.
    pub offset: u64,
    /// One of [`mem`].
    pub kind: u32,
    /// Ordinal of the device it belongs to.
    pub device: u32,
}

/// A copy of `rows` rows of `row_bytes` each.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct CopyReq {
    /// To.
    pub dst: MemRef,
    /// From.
    pub src: MemRef,
    /// Bytes a row.
    pub row_bytes: u64,
    /// Rows; 1 for a flat copy.
    pub rows: u64,
    /// Bytes between rows at the destination.
    pub dst_pitch: u64,
    /// Bytes between rows at the source.
    pub src_pitch: u64,
}

/// One live measurement.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Metric {
    /// Which.
    pub key: MetricKey,
    /// Of which part (a link, a sensor); 0 if there is one.
    pub index: u32,
    /// Its value in the key's unit.
    pub value: f64,
}

/// [`WeightDesc::flags`]: [`Scheme::INT4_GROUP`] has zero points; 8 without.
pub const WEIGHT_ZERO: u32 = 1;
/// [`WeightDesc::flags`]: [`Scheme::INT4_GROUP`] has its columns in another order.
pub const WEIGHT_PERM: u32 = 2;

/// A weight as the host has it.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct WeightDesc<'a> {
    /// Storage form.
    pub scheme: Scheme,
    /// A [`Role`](crate::Role)'s number.
    pub role: u32,
    /// Element type of `data` (DENSE), or of the scales; `NONE` for the GGUF schemes, which fix it.
    pub dtype: DType,
    /// Experts or groups; 1 otherwise.
    pub groups: u32,
    /// Rows (outputs) a group.
    pub n: u64,
    /// Columns (inputs).
    pub k: u64,
    /// Columns that share a scale ([`Scheme::INT4_GROUP`]; 128 for [`Scheme::FP8_BLOCK`]); else 0.
    pub group_size: u32,
    /// [`WEIGHT_ZERO`], [`WEIGHT_PERM`].
    pub flags: u32,
    /// Parameters of the scheme.
    pub attrs: RSlice<'a, Attr>,
}

/// What a backend wants for a weight.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightPlan {
    /// Bytes of the packed form.
    pub bytes: u64,
    /// Alignment of its start.
    pub align: u64,
    /// Scratch that `weight_fill` needs on the device.
    pub scratch_bytes: u64,
    /// Stable id of the packed form; 0 is "as given".
    pub format: u64,
}

/// Rows of a weight, in its canonical form.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct WeightFill<'a> {
    /// Expert or group.
    pub group: u32,
    /// Must be 0.
    pub flags: u32,
    /// First row.
    pub row0: u64,
    /// Rows.
    pub rows: u64,
    /// The scheme's parts for these rows ([`scheme`](crate::scheme)).
    pub parts: RSlice<'a, TensorView>,
}

/// [`KvDesc::kind`]: keys and values.
pub const KV_STANDARD: u32 = 1;
/// [`KvDesc::kind`]: the latent cache of multi-head latent attention.
pub const KV_MLA: u32 = 2;

/// A paged cache as the host wants it.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct KvDesc<'a> {
    /// [`KV_STANDARD`] or [`KV_MLA`].
    pub kind: u32,
    /// Element type.
    pub dtype: DType,
    /// KV heads.
    pub heads: u32,
    /// Dimensions of a key (or of the latent).
    pub dim_k: u32,
    /// Dimensions of a value (or of the rotated part).
    pub dim_v: u32,
    /// Tokens a block.
    pub block_size: u32,
    /// Parameters.
    pub attrs: RSlice<'a, Attr>,
}

/// How a backend arranges a paged cache.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Bytes a block of cache 0 (keys) and cache 1 (values; 0 if fused into cache 0).
    pub block_bytes: [u64; 2],
    /// Alignment of each cache.
    pub align: u64,
    /// Stable id of the arrangement.
    pub format: u64,
}

/// Arguments of an all-to-all with own counts for each peer. Counts and displacements are rows of dimension 0.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct A2av<'a> {
    /// What is sent.
    pub send: TensorView,
    /// Where it is received.
    pub recv: TensorView,
    /// Rows to each peer.
    pub send_counts: RSlice<'a, u64>,
    /// First row to each peer.
    pub send_displs: RSlice<'a, u64>,
    /// Rows from each peer.
    pub recv_counts: RSlice<'a, u64>,
    /// First row from each peer.
    pub recv_displs: RSlice<'a, u64>,
}

/// A call back into the host when a stream reaches a point.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct Notify {
    /// Called from any thread; must not call the backend.
    pub func: extern "C" fn(ctx: u64, status: i32),
    /// Passed on.
    pub ctx: u64,
}

/// An option by name.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct KeyValue<'a> {
    /// Name.
    pub key: RStr<'a>,
    /// Value.
    pub value: RStr<'a>,
}

/// How to join a communicator.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct CommDesc<'a> {
    /// From `comm_unique_id` of rank 0.
    pub id: RSlice<'a, u8>,
    /// This rank.
    pub rank: u32,
    /// Ranks.
    pub world: u32,
    /// Bound of the set-up, and of a collective before `status` reports it.
    pub timeout_ms: u64,
    /// For messages.
    pub name: RStr<'a>,
    /// Parameters.
    pub attrs: RSlice<'a, Attr>,
}

impl TensorSpec {
    /// An absent optional slot.
    pub const NONE: Self =
        Self { dtype: DType::NONE, rank: 0, flags: 0, reserved: 0, dims: [0; MAX_RANK] };

    /// A slot of this dtype and these dims; -1 is known only at launch.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`] dims.
    #[must_use]
    pub fn new(dtype: DType, dims: &[i64]) -> Self {
        assert!(dims.len() <= MAX_RANK, "a tensor has at most {MAX_RANK} dims");
        let mut all = [0; MAX_RANK];
        all[..dims.len()].copy_from_slice(dims);
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_RANK")]
        Self { dtype, rank: dims.len() as u8, flags: 0, reserved: 0, dims: all }
    }

    /// The same with [`FLAG_OPAQUE`].
    #[must_use]
    pub fn opaque(mut self) -> Self {
        self.flags |= FLAG_OPAQUE;
        self
    }

    /// Whether the slot is absent.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.dtype == DType::NONE
    }

    /// The dims in use.
    #[must_use]
    pub fn dims(&self) -> &[i64] {
        &self.dims[..usize::from(self.rank).min(MAX_RANK)]
    }
}

impl TensorView {
    /// An absent optional slot.
    pub const NONE: Self = Self {
        data: 0,
        byte_offset: 0,
        dtype: DType::NONE,
        rank: 0,
        flags: 0,
        reserved: 0,
        dims: [0; MAX_RANK],
        strides: [0; MAX_RANK],
    };

    /// A row-major view of `spec` at `data + byte_offset`.
    #[must_use]
    pub fn contiguous(data: u64, byte_offset: u64, spec: &TensorSpec) -> Self {
        let mut strides = [0; MAX_RANK];
        let mut step = 1i64;
        for axis in (0..spec.dims().len()).rev() {
            strides[axis] = step;
            step = step.saturating_mul(spec.dims[axis].max(0));
        }
        Self {
            data,
            byte_offset,
            dtype: spec.dtype,
            rank: spec.rank,
            flags: spec.flags,
            reserved: 0,
            dims: spec.dims,
            strides,
        }
    }

    /// Whether the slot is absent.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.dtype == DType::NONE
    }

    /// The dims in use.
    #[must_use]
    pub fn dims(&self) -> &[i64] {
        &self.dims[..usize::from(self.rank).min(MAX_RANK)]
    }

    /// The strides in use.
    #[must_use]
    pub fn strides(&self) -> &[i64] {
        &self.strides[..usize::from(self.rank).min(MAX_RANK)]
    }

    /// Type and shape.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            dtype: self.dtype,
            rank: self.rank,
            flags: self.flags,
            reserved: 0,
            dims: self.dims,
        }
    }

    /// Elements; `None` on a negative dim or overflow.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.dims().iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
    }

    /// Bytes from `data + byte_offset` to one past the last element, 0 for an empty view; `None` if a dim or stride is
    /// negative, the dtype unknown, or the sum overflows. Meaningless for [`FLAG_OPAQUE`].
    #[must_use]
    pub fn extent_bytes(&self) -> Option<u64> {
        if self.elements()? == 0 {
            return Some(0);
        }
        let mut last = 0u64;
        for (&d, &s) in self.dims().iter().zip(self.strides()) {
            let steps = u64::try_from(d).ok()? - 1;
            last = last.checked_add(steps.checked_mul(u64::try_from(s).ok()?)?)?;
        }
        self.dtype.bytes(last.checked_add(1)?)
    }
}

impl WeightDesc<'static> {
    /// A linear weight `[n, k]`; `dtype` is that of the data (DENSE) or the scales, `NONE` for the GGUF schemes.
    #[must_use]
    pub fn linear(scheme: Scheme, dtype: DType, n: u64, k: u64) -> Self {
        let group_size = if scheme == Scheme::FP8_BLOCK { 128 } else { 0 };
        Self {
            scheme,
            role: crate::Role::LINEAR.0,
            dtype,
            groups: 1,
            n,
            k,
            group_size,
            flags: 0,
            attrs: RSlice::EMPTY,
        }
    }

    /// The same as an embedding `[V, H]`.
    #[must_use]
    pub fn embedding(scheme: Scheme, dtype: DType, n: u64, k: u64) -> Self {
        Self { role: crate::Role::EMBEDDING.0, ..Self::linear(scheme, dtype, n, k) }
    }

    /// The same for `groups` matrices `[G, n, k]` of a batched layer.
    #[must_use]
    pub fn batched(scheme: Scheme, dtype: DType, groups: u32, n: u64, k: u64) -> Self {
        Self { role: crate::Role::BATCHED.0, groups, ..Self::linear(scheme, dtype, n, k) }
    }

    /// The same for `groups` experts `[E, n, k]`.
    #[must_use]
    pub fn experts(scheme: Scheme, dtype: DType, groups: u32, n: u64, k: u64) -> Self {
        Self { role: crate::Role::EXPERTS.0, groups, ..Self::linear(scheme, dtype, n, k) }
    }
}
