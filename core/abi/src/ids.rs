//! Open sets of identifiers, and handles.
//!
//! Each is a transparent integer: a value that this build does not know is valid data and must be treated as unsupported.

use abi_stable::StableAbi;

macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident($ty:ty) {
        $($(#[$cmeta:meta])* $c:ident = $v:expr => $label:literal),* $(,)?
    })*) => {$(
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(StableAbi, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $ty);

        impl $name {
            $($(#[$cmeta])* pub const $c: Self = Self($v);)*

            /// Every identifier of this set that this build knows.
            pub const ALL: &'static [Self] = &[$(Self::$c),*];

            /// The same by the names of their constants, which the C header has, too.
            pub const CONSTANTS: &'static [(&'static str, Self)] = &[$((stringify!($c), Self::$c)),*];

            /// The name used in messages, files and command lines; `None` for an unknown value.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$c => Some($label),)*
                    _ => None,
                }
            }

            /// The identifier with this [`name`](Self::name).
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|id| id.name() == Some(name))
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "{}#{}", stringify!($name), self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }
    )*};
}

ids! {
    /// Element type of a tensor.
    DType(u32) {
        /// An absent optional slot.
        NONE = 0 => "none",
        /// IEEE 754 binary32.
        F32 = 1 => "f32",
        /// IEEE 754 binary16.
        F16 = 2 => "f16",
        /// The upper half of a binary32.
        BF16 = 3 => "bf16",
        /// 8-bit float, 4 exponent and 3 mantissa bits, "fn" variant: largest 448, no infinity; conversions saturate.
        F8E4M3 = 4 => "f8e4m3",
        /// 8-bit float, 5 exponent and 2 mantissa bits.
        F8E5M2 = 5 => "f8e5m2",
        /// Signed byte.
        I8 = 6 => "i8",
        /// Unsigned byte.
        U8 = 7 => "u8",
        /// Signed 32-bit.
        I32 = 8 => "i32",
        /// Signed 64-bit.
        I64 = 9 => "i64",
        /// Unsigned 32-bit.
        U32 = 10 => "u32",
        /// Signed nibble: two a byte along the last dimension, low nibble first.
        I4 = 11 => "i4",
        /// Unsigned nibble, packed as [`DType::I4`].
        U4 = 12 => "u4",
        /// Unsigned 64-bit.
        U64 = 13 => "u64",
    }

    /// How a weight is stored before a backend packs it. `W` is `[N, K]`, row-major ("out, in").
    ///
    /// The GGUF schemes take the file's bytes as they are: `[N, K / block * block_bytes]`.
    Scheme(u32) {
        /// `data [N, K]` of a float dtype.
        DENSE = 0 => "dense",
        /// `data` f8e4m3 `[N, K]`, `scale` f32 `[ceil(N/128), ceil(K/128)]`; `w = q scale[n/128, k/128]`.
        FP8_BLOCK = 1 => "fp8_block",
        /// `data` f8e4m3 `[N, K]`, `scale` f32 `[N]`; `w = q scale[n]`.
        FP8_CHANNEL = 2 => "fp8_channel",
        /// `data` i8 `[N, K]`, `scale` f32 `[N]`; `w = q scale[n]`.
        INT8_CHANNEL = 3 => "int8_channel",
        /// `data` u4 `[N, K]`, `scale [N, K/G]` of a float dtype, `zero` u8 `[N, K/G]`?, `perm` i32 `[K]`? (the same for all rows of a
        /// group); `w = (q - zero) scale`, zero 8 if absent; with perm (GPTQ's act-order), column `j` multiplies `x[perm[j]]`.
        INT4_GROUP = 4 => "int4_group",
        /// 18 bytes for 32: f16 d, 16 bytes of nibbles (low: 0..16, high: 16..32); `w = d (q - 8)`.
        GGUF_Q4_0 = 16 => "q4_0",
        /// 20 bytes for 32: f16 d, f16 m, nibbles; `w = d q + m`.
        GGUF_Q4_1 = 17 => "q4_1",
        /// 34 bytes for 32: f16 d, 32 × i8; `w = d q`.
        GGUF_Q8_0 = 18 => "q8_0",
        /// 144 bytes for 256: f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, nibbles; `w = d sc q - dmin m`.
        GGUF_Q4_K = 19 => "q4_k",
        /// 210 bytes for 256: 128 ql, 64 qh, 16 × i8 sc, f16 d; `w = d sc (q - 32)`.
        GGUF_Q6_K = 20 => "q6_k",
        /// 22 bytes for 32: f16 d, 4 bytes of fifth bits, nibbles; `w = d (q - 16)`.
        GGUF_Q5_0 = 21 => "q5_0",
        /// 24 bytes for 32: f16 d, f16 m, 4 bytes of fifth bits, nibbles; `w = d q + m`.
        GGUF_Q5_1 = 22 => "q5_1",
        /// 84 bytes for 256: 16 bytes of 4-bit scales and minima, 64 bytes of 2-bit codes, f16 d, f16 dmin.
        GGUF_Q2_K = 23 => "q2_k",
        /// 110 bytes for 256: 32 bytes of third bits, 64 of 2-bit codes, 12 of 6-bit scales, f16 d.
        GGUF_Q3_K = 24 => "q3_k",
        /// 176 bytes for 256: as Q4_K with 32 bytes of fifth bits before the nibbles.
        GGUF_Q5_K = 25 => "q5_k",
        /// 18 bytes for 32: f16 d, nibbles that index a table of 16 values; `w = d table[q]`.
        GGUF_IQ4_NL = 26 => "iq4_nl",
    }

    /// What a weight is for; decides its logical shape.
    Role(u32) {
        /// `[N, K]`.
        LINEAR = 1 => "linear",
        /// `[V, H]`: rows are gathered by [`OpKind::EMBEDDING`]; may serve [`OpKind::LINEAR`] too (tied output layer).
        EMBEDDING = 2 => "embedding",
        /// `[E, N, K]`.
        EXPERTS = 3 => "experts",
        /// `[G, N, K]`.
        BATCHED = 4 => "batched",
    }

    /// An operation. `>= 0x100` are fusions of basic ones, `>= 0x8000_0000` is the vendors' own space.
    OpKind(u32) {
        /// Element-wise copy and conversion.
        COPY = 1 => "copy",
        /// `y = a + alpha b`.
        ADD = 2 => "add",
        /// `y = a b`.
        MUL = 3 => "mul",
        /// Rows by index.
        GATHER_ROWS = 4 => "gather_rows",
        /// Rows of a weight by token id.
        EMBEDDING = 5 => "embedding",
        /// Root-mean-square normalisation, with optional residual.
        RMS_NORM = 6 => "rms_norm",
        /// Rotary position embedding.
        ROPE = 7 => "rope",
        /// Gated activation.
        ACT_MUL = 8 => "act_mul",
        /// `y = x Wᵀ + b`.
        LINEAR = 10 => "linear",
        /// One linear layer a group.
        BATCHED_LINEAR = 11 => "batched_linear",
        /// Quantises activations.
        QUANT_ACT = 12 => "quant_act",
        /// Writes keys and values into the paged cache.
        KV_WRITE = 13 => "kv_write",
        /// Attention over the paged cache.
        PAGED_ATTENTION = 14 => "paged_attention",
        /// Writes the latent cache of multi-head latent attention.
        MLA_WRITE = 15 => "mla_write",
        /// Absorbed multi-head latent attention.
        MLA_ATTENTION = 16 => "mla_attention",
        /// Attention over contiguous keys and values.
        VARLEN_ATTENTION = 17 => "varlen_attention",
        /// Merges two partial attentions.
        MERGE_ATTENTION = 18 => "merge_attention",
        /// Cache to contiguous.
        KV_GATHER = 19 => "kv_gather",
        /// Copies whole cache blocks.
        KV_COPY_BLOCKS = 20 => "kv_copy_blocks",
        /// Chooses experts.
        MOE_ROUTER = 21 => "moe_router",
        /// Runs the chosen experts.
        MOE_EXPERTS = 22 => "moe_experts",
        /// Sorts tokens by expert.
        MOE_PERMUTE = 23 => "moe_permute",
        /// One linear layer an expert on sorted tokens.
        GROUPED_LINEAR = 24 => "grouped_linear",
        /// Undoes the sort and sums.
        MOE_UNPERMUTE = 25 => "moe_unpermute",
        /// Largest logit.
        ARGMAX = 26 => "argmax",
        /// The `K` largest logits.
        TOPK = 27 => "topk",
        /// Log-softmax at given ids.
        LOGPROBS = 28 => "logprobs",
        /// Bias, penalties and masks.
        LOGITS_PROCESS = 29 => "logits_process",
        /// Draws a token.
        SAMPLE = 30 => "sample",
        /// Fusion: splits q, k and v, normalises and rotates q and k, writes k and v into the paged cache.
        QKV_POST = 0x100 => "qkv_post",
        /// Fusion: a linear layer and its gated activation.
        LINEAR_ACT_MUL = 0x101 => "linear_act_mul",
        /// Fusion: a linear layer, summed over the ranks of a communicator.
        LINEAR_ALL_REDUCE = 0x102 => "linear_all_reduce",
        /// Fusion: a norm whose result is quantised.
        RMS_NORM_QUANT = 0x103 => "rms_norm_quant",
    }

    /// Key of an [`Attr`](crate::Attr).
    AttrKey(u32) {
        /// Multiplier of the second addend.
        ALPHA = 1 => "alpha",
        /// Multiplier of the result, or of attention's logits.
        SCALE = 2 => "scale",
        /// First id held by an embedding shard.
        VOCAB_START = 3 => "vocab_start",
        /// Added to the mean square.
        EPS = 4 => "eps",
        /// The norm's weight is `gamma + 1`.
        PLUS_ONE = 5 => "plus_one",
        /// 0 pairs `(i, i + R/2)`, 1 pairs `(2i, 2i + 1)`.
        STYLE = 6 => "style",
        /// First rotated dimension.
        OFFSET = 7 => "offset",
        /// 0 silu, 1 gelu (tanh), 2 gelu (erf).
        ACT = 8 => "act",
        /// Clamp of gate and up values; 0 is off.
        LIMIT = 9 => "limit",
        /// The output is added to.
        ACCUMULATE = 10 => "accumulate",
        /// 0 none, 1 int8 a token, 2 fp8 a 1×128 group, 3 static.
        ACT_QUANT = 11 => "act_quant",
        /// Keys after the query are hidden.
        CAUSAL = 12 => "causal",
        /// How far left a query sees; -1 is all.
        WINDOW = 13 => "window",
        /// `cap tanh(z / cap)`; 0 is off.
        SOFTCAP = 14 => "softcap",
        /// Tokens a KV block.
        BLOCK = 15 => "block",
        /// 0 softmax, 1 sigmoid.
        SCORE = 16 => "score",
        /// Experts a token.
        TOPK = 17 => "topk",
        /// Expert groups.
        N_GROUP = 18 => "n_group",
        /// Groups kept.
        TOPK_GROUP = 19 => "topk_group",
        /// 0 largest, 1 sum of the best two.
        GROUP_SCORE = 20 => "group_score",
        /// Weights are divided by their sum.
        NORM = 21 => "norm",
        /// First expert of the local slice.
        EXPERT_START = 22 => "expert_start",
        /// The routing weight multiplies the input instead of the output.
        WEIGHT_ON_INPUT = 23 => "weight_on_input",
        /// Quantisation mode of [`OpKind::QUANT_ACT`]: 1 int8 a token, 2 fp8 a 1×128 group.
        MODE = 24 => "mode",
        /// The cache is one of multi-head latent attention ([`KV_MLA`](crate::types::KV_MLA)).
        LATENT = 25 => "latent",
        /// A number the host chose for a communicator, in [`CommDesc::attrs`](crate::CommDesc::attrs) and in the op.
        COMM = 26 => "comm",
    }

    /// Key of a device property (`u64`); an unknown or unanswered key reads as absent.
    PropKey(u32) {
        /// Bytes of device memory.
        TOTAL_MEMORY = 1 => "total_memory",
        /// Streaming multiprocessors, cores, threads.
        COMPUTE_UNITS = 2 => "compute_units",
        /// Major number of the architecture.
        ARCH_MAJOR = 3 => "arch_major",
        /// Minor number of the architecture.
        ARCH_MINOR = 4 => "arch_minor",
        /// Threads that run in lockstep.
        WARP = 5 => "warp",
        /// Largest single allocation in bytes.
        MAX_ALLOC = 6 => "max_alloc",
        /// Alignment of every allocation in bytes.
        ALIGN = 7 => "align",
        /// 1 if graphs can be captured.
        GRAPH = 8 => "graph",
        /// 1 if `notify` works.
        NOTIFY = 9 => "notify",
        /// Bit `i`: can copy to ordinal `i`.
        PEER_MASK = 10 => "peer_mask",
        /// NUMA node of the device.
        NUMA_NODE = 11 => "numa_node",
        /// Tokens a KV block at which attention runs best.
        PREFERRED_KV_BLOCK = 12 => "preferred_kv_block",
        /// Bit `i`: KV blocks of `2^i` tokens work.
        KV_BLOCK_MASK = 13 => "kv_block_mask",
        /// Bit `id`: the dtype can be stored.
        DTYPE_MASK = 14 => "dtype_mask",
        /// Bit `id`: weights of the scheme can be used.
        SCHEME_MASK = 15 => "scheme_mask",
        /// Bit `id`: the dtype has matrix instructions.
        TENSOR_CORE_MASK = 16 => "tensor_core_mask",
        /// Memory bandwidth in MB/s.
        MEM_BW_MBPS = 17 => "mem_bw_mbps",
        /// 1 if `launch` runs the work on the caller's thread before it returns.
        INLINE = 18 => "inline",
        /// 1 if a graph can capture the calls of communicators, too.
        GRAPH_COMM = 19 => "graph_comm",
    }

    /// Key of an information string.
    InfoKey(u32) {
        /// The backend's id: `cpu`, `cuda`, `ascend`.
        ID = 1 => "id",
        /// Name for people: of the backend (module) or the device.
        NAME = 2 => "name",
        /// Version of the backend.
        VERSION = 3 => "version",
        /// Who made it.
        VENDOR = 4 => "vendor",
        /// Unique id of the device.
        UUID = 5 => "uuid",
        /// Driver version.
        DRIVER = 6 => "driver",
        /// Architecture and instruction sets.
        ARCH = 7 => "arch",
        /// Bus address.
        PCI = 8 => "pci",
        /// Compiler and options of the build.
        BUILD = 9 => "build",
        /// `unwind` or `abort`.
        PANIC_STRATEGY = 10 => "panic_strategy",
        /// Conformance profiles the backend declares, separated by commas: `dense,quant:q4_0,sample`.
        PROFILES = 11 => "profiles",
        /// The opset the backend was written against, a decimal number.
        OPSET = 12 => "opset",
        /// Why `probe` gave the score it gave; for people.
        PROBE_REASON = 13 => "probe_reason",
    }

    /// Key of a live measurement.
    MetricKey(u32) {
        /// Bytes.
        MEM_FREE = 1 => "mem_free",
        /// Bytes.
        MEM_USED = 2 => "mem_used",
        /// Bytes allocated through this backend.
        MEM_USED_BY_US = 3 => "mem_used_by_us",
        /// Percent.
        UTIL_PCT = 4 => "util_pct",
        /// Percent.
        MEM_BW_PCT = 5 => "mem_bw_pct",
        /// Degrees Celsius.
        TEMP_C = 6 => "temp_c",
        /// Milliwatts.
        POWER_MW = 7 => "power_mw",
        /// Megahertz.
        CLOCK_MHZ = 8 => "clock_mhz",
        /// Bytes sent.
        LINK_TX_BYTES = 9 => "link_tx_bytes",
        /// Bytes received.
        LINK_RX_BYTES = 10 => "link_rx_bytes",
        /// Count.
        ECC_ERRORS = 11 => "ecc_errors",
        /// Bit mask of the vendor.
        THROTTLE_REASONS = 12 => "throttle_reasons",
    }

    /// How a collective combines elements.
    ReduceOp(u32) {
        /// Sum.
        SUM = 1 => "sum",
        /// Product.
        PROD = 2 => "prod",
        /// Smallest.
        MIN = 3 => "min",
        /// Largest.
        MAX = 4 => "max",
        /// Mean.
        AVG = 5 => "avg",
    }

    /// Result of a call. Codes `>= 1000` belong to vendors and are treated as [`Code::INTERNAL`].
    Code(i32) {
        /// Done, or enqueued.
        OK = 0 => "ok",
        /// The caller passed something that the contract forbids.
        INVALID_ARGUMENT = 1 => "invalid argument",
        /// Never works on this backend.
        UNSUPPORTED = 2 => "unsupported",
        /// No memory of the kind asked for.
        OUT_OF_MEMORY = 3 => "out of memory",
        /// Still running; an answer to a query.
        NOT_READY = 4 => "not ready",
        /// The time given ran out.
        TIMEOUT = 5 => "timeout",
        /// Somebody else holds the resource.
        BUSY = 6 => "busy",
        /// A file or a link failed.
        IO = 7 => "i/o",
        /// Sticky: the device is gone.
        DEVICE_LOST = 20 => "device lost",
        /// Sticky: a kernel faulted.
        KERNEL_FAULT = 21 => "kernel fault",
        /// A call after a sticky error.
        POISONED = 22 => "poisoned",
        /// Sticky: the backend panicked; caught on its side.
        PANIC = 23 => "panic",
        /// Sticky for the communicator.
        COMM_ERROR = 30 => "communicator error",
        /// The communicator was aborted.
        COMM_ABORTED = 31 => "communicator aborted",
        /// A bug of the backend.
        INTERNAL = 40 => "internal error",
        /// The two sides disagree about the boundary.
        ABI = 41 => "abi mismatch",
    }
}

impl DType {
    /// Bits an element; `0` for [`DType::NONE`], `None` for an unknown dtype.
    #[must_use]
    pub fn bits(self) -> Option<u32> {
        Some(match self {
            Self::NONE => 0,
            Self::I4 | Self::U4 => 4,
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 | Self::U8 => 8,
            Self::F16 | Self::BF16 => 16,
            Self::F32 | Self::I32 | Self::U32 => 32,
            Self::I64 | Self::U64 => 64,
            _ => return None,
        })
    }

    /// Bytes that `elements` contiguous elements take; `None` for an unknown dtype or on overflow.
    #[must_use]
    pub fn bytes(self, elements: u64) -> Option<u64> {
        Some(elements.checked_mul(u64::from(self.bits()?))?.div_ceil(8))
    }
}

impl Scheme {
    /// Elements and bytes of one block for the GGUF schemes; `None` for the others.
    #[must_use]
    pub fn gguf_block(self) -> Option<(u64, u64)> {
        Some(match self {
            Self::GGUF_Q4_0 | Self::GGUF_IQ4_NL => (32, 18),
            Self::GGUF_Q4_1 => (32, 20),
            Self::GGUF_Q5_0 => (32, 22),
            Self::GGUF_Q5_1 => (32, 24),
            Self::GGUF_Q8_0 => (32, 34),
            Self::GGUF_Q2_K => (256, 84),
            Self::GGUF_Q3_K => (256, 110),
            Self::GGUF_Q4_K => (256, 144),
            Self::GGUF_Q5_K => (256, 176),
            Self::GGUF_Q6_K => (256, 210),
            _ => return None,
        })
    }
}

impl Code {
    /// Whether the device (or, for 30 and 31, the communicator) is unusable from now on.
    #[must_use]
    pub fn is_sticky(self) -> bool {
        (20..40).contains(&self.0)
    }
}

macro_rules! handles {
    ($($(#[$meta:meta])* $name:ident)*) => {$(
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(StableAbi, Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// No object.
            pub const NONE: Self = Self(0);
        }
    )*};
}

handles! {
    /// An ordered queue of work on one device; `NONE` names the device's own default stream.
    Stream
    /// A point in a stream.
    Event
    /// A weight that the backend packed.
    Weight
    /// A captured sequence of launches.
    Graph
    /// Per-step preparation of a kernel, shared by all layers.
    Plan
}
