/* halyard_backend.h: the C door of the Halyard backend ABI. C99 and C++11, 64-bit hosts.
 *
 * A backend is a shared library `libhalyard_backend_<id>.so` that exports one symbol, halyard_backend_v1 (declared below).
 * It hands out a table of functions; devices, kernels and communicators are opaque pointers of the backend's own. What
 * each operation computes, slot by slot, is in docs/ops.md; `halyard verify <id>` proves a backend against it.
 * docs/adding-a-backend.md is the way from an empty folder, docs/abi.md the contract in full, examples/backend-c a complete
 * backend.
 *
 * RULES
 *
 * Versions.   The table begins with its size and version. Before 1.0 major and minor must equal the host's; from 1.0 on,
 *             major. Structs are closed for ever within a major version; the two tables grow at their ends. A host reads
 *             min(struct_size, its own size) bytes of a backend's table; what lies beyond reads as NULL. An optional
 *             entry may be NULL: the host then uses the default that its comment names.
 * Open sets.  Ids (dtypes, ops, attributes, codes ...) are integers. An id that a backend does not know is data, not an
 *             error of the host: answer "unsupported" or "no answer". An attribute, a non-empty slot or a revision that
 *             a backend does not know MUST be refused with HALYARD_CODE_UNSUPPORTED, never ignored; hints may be ignored.
 *             Fields named reserved, pad or flags without a listed value are 0; a backend refuses anything else.
 * Ownership.  Whatever a call points to belongs to its caller and may be gone when the call returns; copy what must live
 *             on. In a slice { ptr, len }, ptr is never NULL, but must not be read if len is 0. Objects that a backend
 *             hands out are the host's until it passes them to their close or destroy function. device_close comes after
 *             every kernel and communicator of that device is destroyed. The backend's table and the host's live for
 *             ever; a library is never unloaded.
 * Threads.    Any function may be called from any thread; a backend binds its own context inside the call and restores
 *             the previous one. Calls that name the same stream, plan or communicator are serialised by the host;
 *             different ones may run at once. No fork after device_open.
 * Asynchrony. OK from a launch, copy, fill, weight or collective call means "enqueued". A failure on the device surfaces
 *             from the next stream_query, stream_sync or event call of that device (or from collective_status), never
 *             silently. Memory and weights that a call names live until its work is done. A device that is the host's own
 *             processor may do the work inside the call and says so by HALYARD_PROP_INLINE = 1.
 * Errors.     A function that returns halyard_code returns HALYARD_CODE_OK, or a code after filling *err. err and outputs
 *             are never NULL and come zeroed; on failure outputs are ignored. After DEVICE_LOST, KERNEL_FAULT or PANIC the
 *             host calls nothing of that device but kernel_plan_free, kernel_destroy, collective_destroy and at last
 *             device_close, which frees what is left: it answers POISONED itself. COMM_ERROR and COMM_ABORTED concern one
 *             communicator, which answers so from then on.
 * Exceptions. No exception, longjmp or signal leaves a function, and no failure ends the process.
 * Text.       UTF-8 with a length, no terminating 0. A function that returns text writes at most cap bytes to buf and
 *             returns the whole text's length; if that is above cap, the host asks again. 0 means "no answer".
 * Units.      Sizes and offsets are bytes, dims and strides are elements, times are nanoseconds unless a name says
 *             otherwise.
 */
#ifndef HALYARD_BACKEND_H
#define HALYARD_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header, and of the operations that it knows. */
#define HALYARD_ABI_MAJOR 0u
#define HALYARD_ABI_MINOR 2u
#define HALYARD_OPSET 1u

/* ---- Identifiers ------------------------------------------------------------------------------------------------- */

/* Element type of a tensor. */
#define HALYARD_DTYPE_NONE 0u   /* An absent optional slot. */
#define HALYARD_DTYPE_F32 1u    /* IEEE 754 binary32. */
#define HALYARD_DTYPE_F16 2u    /* IEEE 754 binary16. */
#define HALYARD_DTYPE_BF16 3u   /* The upper half of a binary32. */
/* 8-bit float, 4 exponent and 3 mantissa bits, "fn" variant: largest 448, no infinity; conversions saturate. */
#define HALYARD_DTYPE_F8E4M3 4u
#define HALYARD_DTYPE_F8E5M2 5u /* 8-bit float, 5 exponent and 2 mantissa bits. */
#define HALYARD_DTYPE_I8 6u     /* Signed byte. */
#define HALYARD_DTYPE_U8 7u     /* Unsigned byte. */
#define HALYARD_DTYPE_I32 8u    /* Signed 32-bit. */
#define HALYARD_DTYPE_I64 9u    /* Signed 64-bit. */
#define HALYARD_DTYPE_U32 10u   /* Unsigned 32-bit. */
#define HALYARD_DTYPE_I4 11u    /* Signed nibble: two a byte along the last dimension, low nibble first. */
#define HALYARD_DTYPE_U4 12u    /* Unsigned nibble, packed as HALYARD_DTYPE_I4. */
#define HALYARD_DTYPE_U64 13u   /* Unsigned 64-bit. */

/* How a weight is stored before a backend packs it. W is [N, K], row-major ("out, in"). The GGUF schemes take the
 * file's bytes as they are: [N, K / block * block_bytes]. */
#define HALYARD_SCHEME_DENSE 0u        /* data [N, K] of a float dtype. */
/* data f8e4m3 [N, K], scale f32 [ceil(N/128), ceil(K/128)]; w = q scale[n/128, k/128]. */
#define HALYARD_SCHEME_FP8_BLOCK 1u
#define HALYARD_SCHEME_FP8_CHANNEL 2u  /* data f8e4m3 [N, K], scale f32 [N]; w = q scale[n]. */
#define HALYARD_SCHEME_INT8_CHANNEL 3u /* data i8 [N, K], scale f32 [N]; w = q scale[n]. */
/* data u4 [N, K], scale [N, K/G] of a float dtype, zero u8 [N, K/G]?, perm i32 [K]? (the same for all rows of a
 * group); w = (q - zero) scale, zero 8 if absent; with perm (GPTQ's act-order), column j multiplies x[perm[j]]. */
#define HALYARD_SCHEME_INT4_GROUP 4u
/* 18 bytes for 32: f16 d, 16 bytes of nibbles (low: 0..16, high: 16..32); w = d (q - 8). */
#define HALYARD_SCHEME_GGUF_Q4_0 16u
#define HALYARD_SCHEME_GGUF_Q4_1 17u   /* 20 bytes for 32: f16 d, f16 m, nibbles; w = d q + m. */
#define HALYARD_SCHEME_GGUF_Q8_0 18u   /* 34 bytes for 32: f16 d, 32 x i8; w = d q. */
/* 144 bytes for 256: f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, nibbles; w = d sc q - dmin m. */
#define HALYARD_SCHEME_GGUF_Q4_K 19u
#define HALYARD_SCHEME_GGUF_Q6_K 20u   /* 210 bytes for 256: 128 ql, 64 qh, 16 x i8 sc, f16 d; w = d sc (q - 32). */
#define HALYARD_SCHEME_GGUF_Q5_0 21u   /* 22 bytes for 32: f16 d, 4 bytes of fifth bits, nibbles; w = d (q - 16). */
#define HALYARD_SCHEME_GGUF_Q5_1 22u   /* 24 bytes for 32: f16 d, f16 m, 4 bytes of fifth bits, nibbles; w = d q + m. */
/* 84 bytes for 256: 16 bytes of 4-bit scales and minima, 64 bytes of 2-bit codes, f16 d, f16 dmin. */
#define HALYARD_SCHEME_GGUF_Q2_K 23u
/* 110 bytes for 256: 32 bytes of third bits, 64 of 2-bit codes, 12 of 6-bit scales, f16 d. */
#define HALYARD_SCHEME_GGUF_Q3_K 24u
#define HALYARD_SCHEME_GGUF_Q5_K 25u   /* 176 bytes for 256: as Q4_K with 32 bytes of fifth bits before the nibbles. */
/* 18 bytes for 32: f16 d, nibbles that index a table of 16 values; w = d table[q]. */
#define HALYARD_SCHEME_GGUF_IQ4_NL 26u

/* What a weight is for; decides its logical shape. */
#define HALYARD_ROLE_LINEAR 1u    /* [N, K]. */
/* [V, H]: rows are gathered by HALYARD_OP_EMBEDDING; may serve HALYARD_OP_LINEAR too (tied output layer). */
#define HALYARD_ROLE_EMBEDDING 2u
#define HALYARD_ROLE_EXPERTS 3u   /* [E, N, K]. */
#define HALYARD_ROLE_BATCHED 4u   /* [G, N, K]. */

/* An operation. >= 0x100 are fusions of basic ones, >= 0x80000000 is the vendors' own space. */
#define HALYARD_OP_COPY 1u                  /* Element-wise copy and conversion. */
#define HALYARD_OP_ADD 2u                   /* y = a + alpha b. */
#define HALYARD_OP_MUL 3u                   /* y = a b. */
#define HALYARD_OP_GATHER_ROWS 4u           /* Rows by index. */
#define HALYARD_OP_EMBEDDING 5u             /* Rows of a weight by token id. */
#define HALYARD_OP_RMS_NORM 6u              /* Root-mean-square normalisation, with optional residual. */
#define HALYARD_OP_ROPE 7u                  /* Rotary position embedding. */
#define HALYARD_OP_ACT_MUL 8u               /* Gated activation. */
#define HALYARD_OP_LINEAR 10u               /* y = x W^T + b. */
#define HALYARD_OP_BATCHED_LINEAR 11u       /* One linear layer a group. */
#define HALYARD_OP_QUANT_ACT 12u            /* Quantises activations. */
#define HALYARD_OP_KV_WRITE 13u             /* Writes keys and values into the paged cache. */
#define HALYARD_OP_PAGED_ATTENTION 14u      /* Attention over the paged cache. */
#define HALYARD_OP_MLA_WRITE 15u            /* Writes the latent cache of multi-head latent attention. */
#define HALYARD_OP_MLA_ATTENTION 16u        /* Absorbed multi-head latent attention. */
#define HALYARD_OP_VARLEN_ATTENTION 17u     /* Attention over contiguous keys and values. */
#define HALYARD_OP_MERGE_ATTENTION 18u      /* Merges two partial attentions. */
#define HALYARD_OP_KV_GATHER 19u            /* Cache to contiguous. */
#define HALYARD_OP_KV_COPY_BLOCKS 20u       /* Copies whole cache blocks. */
#define HALYARD_OP_MOE_ROUTER 21u           /* Chooses experts. */
#define HALYARD_OP_MOE_EXPERTS 22u          /* Runs the chosen experts. */
#define HALYARD_OP_MOE_PERMUTE 23u          /* Sorts tokens by expert. */
#define HALYARD_OP_GROUPED_LINEAR 24u       /* One linear layer an expert on sorted tokens. */
#define HALYARD_OP_MOE_UNPERMUTE 25u        /* Undoes the sort and sums. */
#define HALYARD_OP_ARGMAX 26u               /* Largest logit. */
#define HALYARD_OP_TOPK 27u                 /* The K largest logits. */
#define HALYARD_OP_LOGPROBS 28u             /* Log-softmax at given ids. */
#define HALYARD_OP_LOGITS_PROCESS 29u       /* Bias, penalties and masks. */
#define HALYARD_OP_SAMPLE 30u               /* Draws a token. */
/* Fusion: splits q, k and v, normalises and rotates q and k, writes k and v into the paged cache. */
#define HALYARD_OP_QKV_POST 0x100u
#define HALYARD_OP_LINEAR_ACT_MUL 0x101u    /* Fusion: a linear layer and its gated activation. */
#define HALYARD_OP_LINEAR_ALL_REDUCE 0x102u /* Fusion: a linear layer, summed over the ranks of a communicator. */
#define HALYARD_OP_RMS_NORM_QUANT 0x103u    /* Fusion: a norm whose result is quantised. */

/* Key of a halyard_attr. Which an op has, with types, defaults and since when, is in docs/ops.md. An attribute that is left out has its
 * default; one that came after the op's first revision is sent only where it differs from that. */
#define HALYARD_ATTR_ALPHA 1u            /* Multiplier of the second addend. */
#define HALYARD_ATTR_SCALE 2u            /* Multiplier of the result, or of attention's logits. */
#define HALYARD_ATTR_VOCAB_START 3u      /* First id held by an embedding shard. */
#define HALYARD_ATTR_EPS 4u              /* Added to the mean square. */
#define HALYARD_ATTR_PLUS_ONE 5u         /* The norm's weight is gamma + 1. */
#define HALYARD_ATTR_STYLE 6u            /* 0 pairs (i, i + R/2), 1 pairs (2i, 2i + 1). */
#define HALYARD_ATTR_OFFSET 7u           /* First rotated dimension. */
#define HALYARD_ATTR_ACT 8u              /* 0 silu, 1 gelu (tanh), 2 gelu (erf). */
#define HALYARD_ATTR_LIMIT 9u            /* Clamp of gate and up values; 0 is off. */
#define HALYARD_ATTR_ACCUMULATE 10u      /* The output is added to. */
#define HALYARD_ATTR_ACT_QUANT 11u       /* 0 none, 1 int8 a token, 2 fp8 a 1x128 group, 3 static. */
#define HALYARD_ATTR_CAUSAL 12u          /* Keys after the query are hidden. */
#define HALYARD_ATTR_WINDOW 13u          /* How far left a query sees; -1 is all. */
#define HALYARD_ATTR_SOFTCAP 14u         /* cap tanh(z / cap); 0 is off. */
#define HALYARD_ATTR_BLOCK 15u           /* Tokens a KV block. */
#define HALYARD_ATTR_SCORE 16u           /* 0 softmax, 1 sigmoid. */
#define HALYARD_ATTR_TOPK 17u            /* Experts a token. */
#define HALYARD_ATTR_N_GROUP 18u         /* Expert groups. */
#define HALYARD_ATTR_TOPK_GROUP 19u      /* Groups kept. */
#define HALYARD_ATTR_GROUP_SCORE 20u     /* 0 largest, 1 sum of the best two. */
#define HALYARD_ATTR_NORM 21u            /* Weights are divided by their sum. */
#define HALYARD_ATTR_EXPERT_START 22u    /* First expert of the local slice. */
#define HALYARD_ATTR_WEIGHT_ON_INPUT 23u /* The routing weight multiplies the input instead of the output. */
/* Quantisation mode of HALYARD_OP_QUANT_ACT: 1 int8 a token, 2 fp8 a 1x128 group. */
#define HALYARD_ATTR_MODE 24u
#define HALYARD_ATTR_LATENT 25u          /* The cache is one of multi-head latent attention (HALYARD_KV_MLA). */
/* A number the host chose for a communicator, in halyard_comm_desc.attrs and in the op. */
#define HALYARD_ATTR_COMM 26u

/* Key of a device property (u64); an unknown or unanswered key reads as absent. */
#define HALYARD_PROP_TOTAL_MEMORY 1u        /* Bytes of device memory. */
#define HALYARD_PROP_COMPUTE_UNITS 2u       /* Streaming multiprocessors, cores, threads. */
#define HALYARD_PROP_ARCH_MAJOR 3u          /* Major number of the architecture. */
#define HALYARD_PROP_ARCH_MINOR 4u          /* Minor number of the architecture. */
#define HALYARD_PROP_WARP 5u                /* Threads that run in lockstep. */
#define HALYARD_PROP_MAX_ALLOC 6u           /* Largest single allocation in bytes. */
#define HALYARD_PROP_ALIGN 7u               /* Alignment of every allocation in bytes. */
#define HALYARD_PROP_GRAPH 8u               /* 1 if graphs can be captured. */
#define HALYARD_PROP_NOTIFY 9u              /* 1 if notify works. */
#define HALYARD_PROP_PEER_MASK 10u          /* Bit i: can copy to ordinal i. */
#define HALYARD_PROP_NUMA_NODE 11u          /* NUMA node of the device. */
#define HALYARD_PROP_PREFERRED_KV_BLOCK 12u /* Tokens a KV block at which attention runs best. */
#define HALYARD_PROP_KV_BLOCK_MASK 13u      /* Bit i: KV blocks of 2^i tokens work. */
#define HALYARD_PROP_DTYPE_MASK 14u         /* Bit id: the dtype can be stored. */
#define HALYARD_PROP_SCHEME_MASK 15u        /* Bit id: weights of the scheme can be used. */
#define HALYARD_PROP_TENSOR_CORE_MASK 16u   /* Bit id: the dtype has matrix instructions. */
#define HALYARD_PROP_MEM_BW_MBPS 17u        /* Memory bandwidth in MB/s. */
#define HALYARD_PROP_INLINE 18u             /* 1 if launch runs the work on the caller's thread before it returns. */
#define HALYARD_PROP_GRAPH_COMM 19u         /* 1 if a graph can capture the calls of communicators, too. */

/* Key of an information string. */
#define HALYARD_INFO_ID 1u              /* The backend's id: cpu, cuda, ascend. */
#define HALYARD_INFO_NAME 2u            /* Name for people: of the backend (module) or the device. */
#define HALYARD_INFO_VERSION 3u         /* Version of the backend. */
#define HALYARD_INFO_VENDOR 4u          /* Who made it. */
#define HALYARD_INFO_UUID 5u            /* Unique id of the device. */
#define HALYARD_INFO_DRIVER 6u          /* Driver version. */
#define HALYARD_INFO_ARCH 7u            /* Architecture and instruction sets. */
#define HALYARD_INFO_PCI 8u             /* Bus address. */
#define HALYARD_INFO_BUILD 9u           /* Compiler and options of the build. */
#define HALYARD_INFO_PANIC_STRATEGY 10u /* unwind or abort. */
/* Conformance profiles the backend declares, separated by commas: dense,quant:q4_0,sample. */
#define HALYARD_INFO_PROFILES 11u
#define HALYARD_INFO_OPSET 12u          /* The opset the backend was written against, a decimal number. */
#define HALYARD_INFO_PROBE_REASON 13u   /* Why probe gave the score it gave; for people. */

/* Key of a live measurement. */
#define HALYARD_METRIC_MEM_FREE 1u          /* Bytes. */
#define HALYARD_METRIC_MEM_USED 2u          /* Bytes. */
#define HALYARD_METRIC_MEM_USED_BY_US 3u    /* Bytes allocated through this backend. */
#define HALYARD_METRIC_UTIL_PCT 4u          /* Percent. */
#define HALYARD_METRIC_MEM_BW_PCT 5u        /* Percent. */
#define HALYARD_METRIC_TEMP_C 6u            /* Degrees Celsius. */
#define HALYARD_METRIC_POWER_MW 7u          /* Milliwatts. */
#define HALYARD_METRIC_CLOCK_MHZ 8u         /* Megahertz. */
#define HALYARD_METRIC_LINK_TX_BYTES 9u     /* Bytes sent. */
#define HALYARD_METRIC_LINK_RX_BYTES 10u    /* Bytes received. */
#define HALYARD_METRIC_ECC_ERRORS 11u       /* Count. */
#define HALYARD_METRIC_THROTTLE_REASONS 12u /* Bit mask of the vendor. */

/* How a collective combines elements. */
#define HALYARD_REDUCE_SUM 1u  /* Sum. */
#define HALYARD_REDUCE_PROD 2u /* Product. */
#define HALYARD_REDUCE_MIN 3u  /* Smallest. */
#define HALYARD_REDUCE_MAX 4u  /* Largest. */
#define HALYARD_REDUCE_AVG 5u  /* Mean. */

/* Result of a call. Codes >= 1000 belong to vendors and are treated as HALYARD_CODE_INTERNAL. */
#define HALYARD_CODE_OK 0                /* Done, or enqueued. */
#define HALYARD_CODE_INVALID_ARGUMENT 1  /* The caller passed something that the contract forbids. */
#define HALYARD_CODE_UNSUPPORTED 2       /* Never works on this backend. */
#define HALYARD_CODE_OUT_OF_MEMORY 3     /* No memory of the kind asked for. */
#define HALYARD_CODE_NOT_READY 4         /* Still running; an answer to a query. */
#define HALYARD_CODE_TIMEOUT 5           /* The time given ran out. */
#define HALYARD_CODE_BUSY 6              /* Somebody else holds the resource. */
#define HALYARD_CODE_IO 7                /* A file or a link failed. */
#define HALYARD_CODE_DEVICE_LOST 20      /* Sticky: the device is gone. */
#define HALYARD_CODE_KERNEL_FAULT 21     /* Sticky: a kernel faulted. */
#define HALYARD_CODE_POISONED 22         /* A call after a sticky error. */
#define HALYARD_CODE_PANIC 23            /* Sticky: the backend panicked; caught on its side. */
#define HALYARD_CODE_COMM_ERROR 30       /* Sticky for the communicator. */
#define HALYARD_CODE_COMM_ABORTED 31     /* The communicator was aborted. */
#define HALYARD_CODE_INTERNAL 40         /* A bug of the backend. */
#define HALYARD_CODE_ABI 41              /* The two sides disagree about the boundary. */

/* ---- Flags and kinds --------------------------------------------------------------------------------------------- */

#define HALYARD_MAX_RANK 8

/* halyard_tensor_view.flags and halyard_tensor_spec.flags. */
#define HALYARD_FLAG_HOST 1u   /* The data is host memory. */
#define HALYARD_FLAG_OPAQUE 2u /* The arrangement is the backend's own: dims are logical, strides are ignored. */

/* Memory: the kind of a halyard_alloc_req, halyard_buffer or halyard_mem_ref. */
#define HALYARD_MEM_HOST 0u    /* Plain memory of the host process (halyard_mem_ref only). */
#define HALYARD_MEM_DEVICE 1u  /* Device memory. */
#define HALYARD_MEM_PINNED 2u  /* Host memory that the device reaches directly. */
#define HALYARD_MEM_MANAGED 3u /* Memory that migrates. */

/* halyard_attr.ty: how bits is read. */
#define HALYARD_TYPE_I64 1u  /* int64_t */
#define HALYARD_TYPE_F64 2u  /* double */
#define HALYARD_TYPE_BOOL 3u /* 0 or 1 */
#define HALYARD_TYPE_ID 4u   /* uint64_t */

/* halyard_weight_desc.flags, of HALYARD_SCHEME_INT4_GROUP. */
#define HALYARD_WEIGHT_ZERO 1u /* It has zero points; 8 without. */
#define HALYARD_WEIGHT_PERM 2u /* Its columns are in another order. */

/* halyard_kv_desc.kind. */
#define HALYARD_KV_STANDARD 1u /* Keys and values. */
#define HALYARD_KV_MLA 2u      /* The latent cache of multi-head latent attention. */

/* kernel_flags. */
#define HALYARD_KERNEL_CAPTURABLE 1u      /* May be captured in a graph, also before its first launch. */
#define HALYARD_KERNEL_DETERMINISTIC 2u   /* Equal inputs give equal bits. */
#define HALYARD_KERNEL_HOST_LENGTHS 4u    /* halyard_launch_args.host must be filled. */
#define HALYARD_KERNEL_BATCH_INVARIANT 8u /* A row's bits do not depend on what else is in the batch. */
#define HALYARD_KERNEL_PLAN_UPDATE 16u    /* kernel_plan_update works: it can be captured with lengths that vary. */

/* device_supports. */
#define HALYARD_SUPPORT_NO 0u
#define HALYARD_SUPPORT_SLOW 1u   /* Correct, but slow. */
#define HALYARD_SUPPORT_NATIVE 2u
#define HALYARD_SUPPORT_TUNED 3u  /* Tuned for this shape. */

/* ---- Plain data -------------------------------------------------------------------------------------------------- */

typedef int32_t halyard_code;    /* HALYARD_CODE_* */
typedef uint64_t halyard_stream; /* An ordered queue of work; 0 is the device's own default stream. */
typedef uint64_t halyard_event;  /* A point in a stream. */
typedef uint64_t halyard_weight; /* A weight that the backend packed; never 0. */
typedef uint64_t halyard_graph;  /* A captured sequence of launches. */
typedef uint64_t halyard_plan;   /* A step's preparation of a kernel; 0 is none. */

/* A borrowed text, and borrowed arrays. */
typedef struct halyard_str { const char *ptr; size_t len; } halyard_str;
typedef struct halyard_bytes { const uint8_t *ptr; size_t len; } halyard_bytes;
typedef struct halyard_i32s { const int32_t *ptr; size_t len; } halyard_i32s;
typedef struct halyard_u64s { const uint64_t *ptr; size_t len; } halyard_u64s;

/* A tensor. An absent optional slot has dtype NONE. */
typedef struct halyard_tensor_view {
  uint64_t data;        /* Buffer: its base (an address where there are addresses); the host does no arithmetic on it. */
  uint64_t byte_offset; /* Of the first element, from data. */
  uint32_t dtype;       /* HALYARD_DTYPE_* */
  uint8_t rank;
  uint8_t flags;        /* HALYARD_FLAG_* */
  uint16_t reserved;
  int64_t dims[HALYARD_MAX_RANK];    /* Entries at rank and above are 0. */
  int64_t strides[HALYARD_MAX_RANK]; /* In elements; may be 0 (a broadcast input), never negative. */
} halyard_tensor_view;

/* Type and shape of a slot; a dim of -1 is known only at launch. */
typedef struct halyard_tensor_spec {
  uint32_t dtype;
  uint8_t rank;
  uint8_t flags;
  uint16_t reserved;
  int64_t dims[HALYARD_MAX_RANK];
} halyard_tensor_spec;

/* A named parameter. */
typedef struct halyard_attr {
  uint32_t key; /* HALYARD_ATTR_<name> */
  uint32_t ty;  /* HALYARD_TYPE_* */
  uint64_t bits;
} halyard_attr;

typedef struct halyard_tensor_views { const halyard_tensor_view *ptr; size_t len; } halyard_tensor_views;
typedef struct halyard_tensor_specs { const halyard_tensor_spec *ptr; size_t len; } halyard_tensor_specs;
typedef struct halyard_attrs { const halyard_attr *ptr; size_t len; } halyard_attrs;

/* A weight as the host has it: `groups` matrices of n rows (outputs) and k columns (inputs). */
typedef struct halyard_weight_desc {
  uint32_t scheme;     /* HALYARD_SCHEME_* */
  uint32_t role;       /* HALYARD_ROLE_* */
  uint32_t dtype;      /* Of the data (DENSE) or the scales; NONE for the GGUF schemes. */
  uint32_t groups;     /* Experts or groups; 1 otherwise. */
  uint64_t n;
  uint64_t k;
  uint32_t group_size; /* Columns that share a scale (INT4_GROUP; 128 for FP8_BLOCK); else 0. */
  uint32_t flags;      /* HALYARD_WEIGHT_* */
  halyard_attrs attrs;
} halyard_weight_desc;

typedef struct halyard_weight_descs { const halyard_weight_desc *ptr; size_t len; } halyard_weight_descs;

/* An operation with everything that has meaning. Attributes are sorted by key and unique. */
typedef struct halyard_op_desc {
  uint32_t kind;                /* HALYARD_OP_* */
  uint32_t revision;            /* Of the op's definition; 1 is the first. */
  halyard_tensor_specs tensors; /* By slot; trailing absent ones may be left out. */
  halyard_weight_descs weights;
  halyard_attrs attrs;
  halyard_attrs hints;          /* Wishes that change no result. */
} halyard_op_desc;

typedef struct halyard_weights { const halyard_weight *ptr; size_t len; } halyard_weights;
typedef struct halyard_host_arrays { const halyard_i32s *ptr; size_t len; } halyard_host_arrays;

/* The arguments of one launch, slots as in the halyard_op_desc. */
typedef struct halyard_launch_args {
  halyard_plan plan;
  uint64_t workspace;       /* Device address of scratch memory; contents are undefined before and after. */
  uint64_t workspace_bytes; /* At least what kernel_workspace_bytes said. */
  halyard_tensor_views tensors;
  halyard_weights weights;
  halyard_u64s scalars;     /* Of the op, in its order. */
  halyard_host_arrays host; /* Host mirrors of length arrays, in the op's order. */
} halyard_launch_args;

typedef struct halyard_alloc_req {
  uint64_t bytes; /* At least 1. */
  uint64_t align; /* A power of two; the base is aligned to at least 256 in any case. */
  uint32_t kind;  /* HALYARD_MEM_DEVICE, PINNED or MANAGED */
  uint32_t flags;
} halyard_alloc_req;

/* Memory that is the host's until device_free. */
typedef struct halyard_buffer {
  uint64_t id;    /* Unique within the device for ever. */
  uint64_t base;  /* What views name as data. */
  uint64_t bytes;
  uint32_t kind;
  uint32_t flags;
} halyard_buffer;

/* A place in memory. */
typedef struct halyard_mem_ref {
  uint64_t base;   /* A buffer's base, or a host address. */
  uint64_t offset; /* Bytes from there. */
  uint32_t kind;   /* HALYARD_MEM_* */
  uint32_t device; /* Ordinal of the device that it belongs to. */
} halyard_mem_ref;

/* A copy of `rows` rows of row_bytes each; pitches are bytes between rows, of no meaning if rows is 1. */
typedef struct halyard_copy_req {
  halyard_mem_ref dst;
  halyard_mem_ref src;
  uint64_t row_bytes;
  uint64_t rows;
  uint64_t dst_pitch;
  uint64_t src_pitch;
} halyard_copy_req;

/* One live measurement. */
typedef struct halyard_metric {
  uint32_t key;   /* HALYARD_METRIC_*, which says the unit. */
  uint32_t index; /* Of which part (a link, a sensor); 0 if there is one. */
  double value;
} halyard_metric;

/* What a backend wants for a weight. */
typedef struct halyard_weight_plan {
  uint64_t bytes;         /* Of the packed form. */
  uint64_t align;         /* Of its start. */
  uint64_t scratch_bytes; /* On the device, while filling. */
  uint64_t format;        /* Stable id of the packed form; 0 is "as given". */
} halyard_weight_plan;

/* Rows row0 .. row0 + rows of one group, in the scheme's canonical parts (docs/ops.md, at its end). */
typedef struct halyard_weight_fill {
  uint32_t group;
  uint32_t flags;
  uint64_t row0;
  uint64_t rows;
  halyard_tensor_views parts;
} halyard_weight_fill;

/* A paged cache as the host wants it. */
typedef struct halyard_kv_desc {
  uint32_t kind;       /* HALYARD_KV_* */
  uint32_t dtype;
  uint32_t heads;
  uint32_t dim_k;      /* Of a key, or of the latent. */
  uint32_t dim_v;      /* Of a value, or of the rotated part. */
  uint32_t block_size; /* Tokens a block. */
  halyard_attrs attrs;
} halyard_kv_desc;

/* How a backend arranges a paged cache. */
typedef struct halyard_kv_layout {
  uint64_t block_bytes[2]; /* A block of cache 0 (keys) and cache 1 (values; 0 if they are in cache 0). */
  uint64_t align;
  uint64_t format;         /* Stable id of the arrangement. */
} halyard_kv_layout;

/* All-to-all with own counts for each peer; counts and displacements are rows of dim 0, in host memory. */
typedef struct halyard_a2av {
  halyard_tensor_view send;
  halyard_tensor_view recv;
  halyard_u64s send_counts;
  halyard_u64s send_displs;
  halyard_u64s recv_counts;
  halyard_u64s recv_displs;
} halyard_a2av;

/* A call back into the host; from any thread, never from inside a call of the host, and it calls no backend. */
typedef struct halyard_notify {
  void (*func)(uint64_t ctx, halyard_code status);
  uint64_t ctx;
} halyard_notify;

typedef struct halyard_key_value { halyard_str key, value; } halyard_key_value;
typedef struct halyard_key_values { const halyard_key_value *ptr; size_t len; } halyard_key_values;

/* How to join a communicator. */
typedef struct halyard_comm_desc {
  halyard_bytes id;    /* From device_comm_unique_id of rank 0. */
  uint32_t rank;
  uint32_t world;      /* Ranks. */
  uint64_t timeout_ms; /* Of the set-up, and of a collective before collective_status reports it. */
  halyard_str name;    /* For messages. */
  halyard_attrs attrs;
} halyard_comm_desc;

#define HALYARD_MESSAGE_BYTES 480

/* Why a call failed. */
typedef struct halyard_error {
  halyard_code code;   /* The code that the function returns. */
  int32_t vendor_code; /* The vendor library's own, 0 if none. */
  uint32_t msg_len;    /* Bytes of msg in use. */
  uint32_t pad;
  char msg[HALYARD_MESSAGE_BYTES]; /* One line of English that names the failing vendor call, if there was one. */
} halyard_error;

/* ---- What the host offers ---------------------------------------------------------------------------------------- */

typedef struct halyard_host_api {
  size_t struct_size;
  uint32_t abi_major, abi_minor;
  void *ctx; /* Passed back to every function. */
  /* Whether a message of this level (1 error, 2 warning, 3 information, 4 debug, 5 trace) would be kept: 0 or 1. */
  int32_t (*log_enabled)(void *ctx, uint32_t level, halyard_str target);
  /* Logs a message; fields_json is a JSON object, `{}` if there is nothing to add. */
  void (*log)(void *ctx, uint32_t level, halyard_str target, halyard_str message, halyard_str fields_json);
} halyard_host_api;

/* ---- What a backend offers --------------------------------------------------------------------------------------- */

typedef struct halyard_device halyard_device;
typedef struct halyard_kernel halyard_kernel;
typedef struct halyard_collective halyard_collective;

typedef struct halyard_backend_api {
  size_t struct_size;            /* sizeof(halyard_backend_api) as the backend was compiled. */
  uint32_t abi_major, abi_minor; /* HALYARD_ABI_MAJOR, HALYARD_ABI_MINOR as the backend was compiled. */

  /* == Required ==================================================================================================== */

  /* -- The library -- */

  /* A text about the backend. Must answer ID, NAME, VERSION and PROFILES; must not initialise a driver. */
  size_t (*info)(uint32_t key, char *buf, size_t cap);
  /* How well it would run here; 0 or less means that it cannot (driver absent, instruction set missing). */
  int32_t (*probe)(void);
  /* Devices present. */
  halyard_code (*device_count)(uint32_t *count, halyard_error *err);
  /* Opens a device. An ordinal that does not exist and an unknown or malformed option are INVALID_ARGUMENT. */
  halyard_code (*device_open)(uint32_t ordinal, halyard_key_values options, halyard_device **device, halyard_error *err);
  /* After everything of the device is destroyed. The last one to be closed stops whatever the backend started: threads, a
   * driver's state of the whole process. Another may be opened later. A process may also end without closing anything. */
  void (*device_close)(halyard_device *device);

  /* -- About a device -- */

  /* A number: returns 1 and sets *value, or 0 if the key is unknown or has no answer here. */
  int32_t (*device_property)(halyard_device *device, uint32_t key, uint64_t *value);
  /* A text. */
  size_t (*device_info)(halyard_device *device, uint32_t key, char *buf, size_t cap);

  /* -- Memory -- */

  /* Allocates, aligned to max(align, 256); contents are undefined. OUT_OF_MEMORY if there is none. */
  halyard_code (*device_alloc)(halyard_device *device, const halyard_alloc_req *req, halyard_buffer *buffer, halyard_error *err);
  /* Frees. No work in flight uses it. */
  halyard_code (*device_free)(halyard_device *device, const halyard_buffer *buffer, halyard_error *err);
  /* Copies between host and device or within the device, in stream order. */
  halyard_code (*device_copy)(halyard_device *device, halyard_stream stream, const halyard_copy_req *req, halyard_error *err);
  /* Fills `bytes` (a multiple of 4) with a repeated 32-bit pattern. */
  halyard_code (*device_fill)(halyard_device *device, halyard_stream stream, const halyard_mem_ref *dst, uint32_t pattern,
                              uint64_t bytes, halyard_error *err);

  /* -- Streams and events -- */

  /* Lower priority values run first where the device can tell; flags is 0. */
  halyard_code (*stream_create)(halyard_device *device, int32_t priority, uint32_t flags, halyard_stream *stream,
                                halyard_error *err);
  /* After its work is done. */
  halyard_code (*stream_destroy)(halyard_device *device, halyard_stream stream, halyard_error *err);
  /* Waits; UINT64_MAX is for ever. TIMEOUT leaves the work running. */
  halyard_code (*stream_sync)(halyard_device *device, halyard_stream stream, uint64_t timeout_ns, halyard_error *err);
  /* NOT_READY while work is pending. */
  halyard_code (*stream_query)(halyard_device *device, halyard_stream stream, halyard_error *err);
  /* Flag 1 makes it keep the time. */
  halyard_code (*event_create)(halyard_device *device, uint32_t flags, halyard_event *event, halyard_error *err);
  halyard_code (*event_destroy)(halyard_device *device, halyard_event event, halyard_error *err);
  /* Marks the current end of the stream. */
  halyard_code (*event_record)(halyard_device *device, halyard_event event, halyard_stream stream, halyard_error *err);
  /* Later work of the stream waits for the event. */
  halyard_code (*event_wait)(halyard_device *device, halyard_stream stream, halyard_event event, halyard_error *err);
  /* Waits on the host. */
  halyard_code (*event_sync)(halyard_device *device, halyard_event event, uint64_t timeout_ns, halyard_error *err);
  /* NOT_READY until reached. */
  halyard_code (*event_query)(halyard_device *device, halyard_event event, halyard_error *err);
  /* Nanoseconds from a to b, both created with flag 1 and reached. */
  halyard_code (*event_elapsed_ns)(halyard_device *device, halyard_event a, halyard_event b, uint64_t *ns, halyard_error *err);

  /* -- Operations -- */

  /* HALYARD_SUPPORT_*. A yes is a promise that device_prepare succeeds and that the result passes conformance. */
  uint32_t (*device_supports)(halyard_device *device, const halyard_op_desc *op);
  /* Why device_supports said NO or SLOW; for people. */
  size_t (*device_explain)(halyard_device *device, const halyard_op_desc *op, char *buf, size_t cap);
  /* Prepares a kernel, once for each distinct op; may compile and tune for seconds. */
  halyard_code (*device_prepare)(halyard_device *device, const halyard_op_desc *op, halyard_kernel **kernel, halyard_error *err);
  /* HALYARD_KERNEL_* */
  uint64_t (*kernel_flags)(halyard_kernel *kernel);
  /* Upper bound of the scratch bytes of a launch with tensors of these shapes; monotone in every dim. */
  uint64_t (*kernel_workspace_bytes)(halyard_kernel *kernel, halyard_tensor_specs shapes);
  /* Enqueues the operation; does not block, allocate device memory or synchronise. The host has checked dtypes, ranks, fixed
   * dims, strides and bounds; the backend checks what only values can tell (an index beyond its table: INVALID_ARGUMENT).
   * Outputs overlap no input unless the op says so. */
  halyard_code (*kernel_launch)(halyard_kernel *kernel, halyard_stream stream, const halyard_launch_args *args, halyard_error *err);
  void (*kernel_destroy)(halyard_kernel *kernel);

  /* -- Weights and caches -- */

  /* How much memory the packed form of a weight takes. */
  halyard_code (*weight_plan)(halyard_device *device, const halyard_weight_desc *desc, halyard_weight_plan *plan,
                              halyard_error *err);
  /* Begins a weight in memory of the host's, as planned, which lives until weight_destroy. */
  halyard_code (*weight_create)(halyard_device *device, const halyard_weight_desc *desc, const halyard_mem_ref *dst,
                                halyard_weight *weight, halyard_error *err);
  /* Packs some rows; any number of times, in any order, until every row of every group has come once. Parts may be host
   * memory and are consumed when the stream has reached this point. */
  halyard_code (*weight_fill)(halyard_device *device, halyard_stream stream, halyard_weight weight,
                              const halyard_weight_fill *fill, halyard_error *err);
  /* Ends filling. INVALID_ARGUMENT if rows are missing. */
  halyard_code (*weight_seal)(halyard_device *device, halyard_stream stream, halyard_weight weight, halyard_error *err);
  /* Forgets a weight; its memory is the host's to free. */
  halyard_code (*weight_destroy)(halyard_device *device, halyard_weight weight, halyard_error *err);
  /* How the backend arranges a paged cache. Only the KV ops and attention touch its contents. */
  halyard_code (*kv_layout)(halyard_device *device, const halyard_kv_desc *desc, halyard_kv_layout *layout, halyard_error *err);

  /* == Optional: NULL, or beyond struct_size; without a default in the comment, UNSUPPORTED ========================= */

  /* Writes live measurements, at most cap; returns how many exist. Default: none. */
  uint32_t (*device_telemetry)(halyard_device *device, halyard_metric *out, size_t cap);
  /* Prepares a step for a batch shape: depends only on host arrays, scalars and dims, and serves every layer. Default: plan 0. */
  halyard_code (*kernel_plan)(halyard_kernel *kernel, halyard_stream stream, const halyard_launch_args *args, halyard_plan *plan,
                              halyard_error *err);
  /* Releases a plan. Default: nothing. */
  void (*kernel_plan_free)(halyard_kernel *kernel, halyard_plan plan);
  /* Calls the host back when the stream reaches this point (HALYARD_PROP_NOTIFY). */
  halyard_code (*device_notify)(halyard_device *device, halyard_stream stream, const halyard_notify *notify, halyard_error *err);
  /* Captures what is enqueued on a stream (HALYARD_PROP_GRAPH), replays it, and forgets it. */
  halyard_code (*graph_begin)(halyard_device *device, halyard_stream stream, halyard_error *err);
  halyard_code (*graph_end)(halyard_device *device, halyard_stream stream, halyard_graph *graph, halyard_error *err);
  halyard_code (*graph_launch)(halyard_device *device, halyard_graph graph, halyard_stream stream, halyard_error *err);
  halyard_code (*graph_destroy)(halyard_device *device, halyard_graph graph, halyard_error *err);
  /* The vendor's own door: bytes in, at most cap bytes out; *out_bytes is how many the answer has. */
  halyard_code (*device_vendor_call)(halyard_device *device, halyard_str name, halyard_bytes input, uint8_t *out, size_t cap,
                                     uint64_t *out_bytes, halyard_error *err);

  /* -- Collectives: a backend that has device_comm_create has everything up to collective_destroy -- */

  /* Writes a fresh communicator id, if it fits cap; *id_bytes is its size, at most 8192. */
  halyard_code (*device_comm_unique_id)(halyard_device *device, uint8_t *id, size_t cap, uint32_t *id_bytes, halyard_error *err);
  /* Joins a communicator; blocks until all ranks have come, or the timeout. */
  halyard_code (*device_comm_create)(halyard_device *device, const halyard_comm_desc *desc, halyard_collective **comm,
                                     halyard_error *err);
  /* All ranks issue the same calls in the same order. Views are contiguous and plain, of equal dtypes; in place where src and
   * dst are the same data (all_gather, reduce_scatter: the own slot), else they do not overlap. Reductions (HALYARD_REDUCE_*)
   * of 8- and 16-bit floats accumulate in f32 or better and round once; every rank gets the same bits. What a rank's own
   * arguments tell is INVALID_ARGUMENT; ranks that disagree, a rank that is gone and a wait beyond the timeout are COMM_ERROR. */
  halyard_code (*collective_all_reduce)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *src,
                                        const halyard_tensor_view *dst, uint32_t op, halyard_error *err);
  /* Concatenates src of all ranks along dim 0, by rank. */
  halyard_code (*collective_all_gather)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *src,
                                        const halyard_tensor_view *dst, halyard_error *err);
  /* Combination, of which rank r keeps slice r of dim 0. */
  halyard_code (*collective_reduce_scatter)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *src,
                                            const halyard_tensor_view *dst, uint32_t op, halyard_error *err);
  /* buf of root, everywhere. */
  halyard_code (*collective_broadcast)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *buf,
                                       uint32_t root, halyard_error *err);
  /* Rows to and from each peer; what a rank sends is what its peer expects. */
  halyard_code (*collective_all_to_all_v)(halyard_collective *comm, halyard_stream stream, const halyard_a2av *args,
                                          halyard_error *err);
  /* Messages to one peer arrive in their order; to oneself in a group only. */
  halyard_code (*collective_send)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *src, uint32_t peer,
                                  halyard_error *err);
  halyard_code (*collective_recv)(halyard_collective *comm, halyard_stream stream, const halyard_tensor_view *dst, uint32_t peer,
                                  halyard_error *err);
  /* Calls between begin and end are issued together. Groups do not nest. */
  halyard_code (*collective_group_begin)(halyard_collective *comm, halyard_error *err);
  halyard_code (*collective_group_end)(halyard_collective *comm, halyard_error *err);
  /* No rank passes before all have arrived. */
  halyard_code (*collective_barrier)(halyard_collective *comm, halyard_stream stream, halyard_error *err);
  /* The communicator's asynchronous error, if any; never blocks. */
  halyard_code (*collective_status)(halyard_collective *comm, halyard_error *err);
  /* From any thread, at any time: unblocks pending work everywhere with COMM_ABORTED. */
  halyard_code (*collective_abort)(halyard_collective *comm, halyard_error *err);
  void (*collective_destroy)(halyard_collective *comm);
  /* A communicator of the ranks that pass the same color, ordered by key, then rank; all ranks call it. One with a negative color
   * gets a communicator without ranks, whose every call is INVALID_ARGUMENT. */
  halyard_code (*collective_split)(halyard_collective *comm, int32_t color, int32_t key, halyard_collective **part,
                                   halyard_error *err);

  /* -- Since then -- */

  /* Prepares a plan anew, for other host arrays of the same lengths, and the dims and scalars that it was made with. Launches that
   * were captured with the plan go by it in every graph_launch that comes after this call; one in flight is left alone. On failure
   * the plan is as before. (HALYARD_KERNEL_PLAN_UPDATE) */
  halyard_code (*kernel_plan_update)(halyard_kernel *kernel, halyard_stream stream, halyard_plan plan,
                                     const halyard_launch_args *args, halyard_error *err);
} halyard_backend_api;

#define HALYARD_EXPORT __attribute__((visibility("default")))

/* The entry. Returns the table, or NULL after filling *err. Called once, before anything else; starts no driver and no thread. */
HALYARD_EXPORT const halyard_backend_api *halyard_backend_v1(const halyard_host_api *host, halyard_error *err);

/* ---- Layout: checked by every compiler that reads this ------------------------------------------------------------- */

#if defined(__cplusplus)
#define HALYARD_CHECK(name, truth) static_assert(truth, #name)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define HALYARD_CHECK(name, truth) _Static_assert(truth, #name)
#else
#define HALYARD_CHECK(name, truth) typedef char halyard_check_##name[(truth) ? 1 : -1]
#endif
#define HALYARD_SIZE(type, bytes) HALYARD_CHECK(size_of_##type, sizeof(type) == (bytes))
#define HALYARD_AT(type, field, offset) HALYARD_CHECK(type##_##field, offsetof(type, field) == (offset))

HALYARD_CHECK(a_64_bit_host, sizeof(void *) == 8 && sizeof(size_t) == 8);
HALYARD_SIZE(halyard_str, 16);
HALYARD_SIZE(halyard_bytes, 16);
HALYARD_SIZE(halyard_i32s, 16);
HALYARD_SIZE(halyard_u64s, 16);
HALYARD_SIZE(halyard_tensor_view, 152);
HALYARD_AT(halyard_tensor_view, data, 0);
HALYARD_AT(halyard_tensor_view, byte_offset, 8);
HALYARD_AT(halyard_tensor_view, dtype, 16);
HALYARD_AT(halyard_tensor_view, rank, 20);
HALYARD_AT(halyard_tensor_view, flags, 21);
HALYARD_AT(halyard_tensor_view, reserved, 22);
HALYARD_AT(halyard_tensor_view, dims, 24);
HALYARD_AT(halyard_tensor_view, strides, 88);
HALYARD_SIZE(halyard_tensor_spec, 72);
HALYARD_AT(halyard_tensor_spec, dtype, 0);
HALYARD_AT(halyard_tensor_spec, rank, 4);
HALYARD_AT(halyard_tensor_spec, flags, 5);
HALYARD_AT(halyard_tensor_spec, reserved, 6);
HALYARD_AT(halyard_tensor_spec, dims, 8);
HALYARD_SIZE(halyard_attr, 16);
HALYARD_AT(halyard_attr, key, 0);
HALYARD_AT(halyard_attr, ty, 4);
HALYARD_AT(halyard_attr, bits, 8);
HALYARD_SIZE(halyard_tensor_views, 16);
HALYARD_SIZE(halyard_tensor_specs, 16);
HALYARD_SIZE(halyard_attrs, 16);
HALYARD_SIZE(halyard_weight_desc, 56);
HALYARD_AT(halyard_weight_desc, scheme, 0);
HALYARD_AT(halyard_weight_desc, role, 4);
HALYARD_AT(halyard_weight_desc, dtype, 8);
HALYARD_AT(halyard_weight_desc, groups, 12);
HALYARD_AT(halyard_weight_desc, n, 16);
HALYARD_AT(halyard_weight_desc, k, 24);
HALYARD_AT(halyard_weight_desc, group_size, 32);
HALYARD_AT(halyard_weight_desc, flags, 36);
HALYARD_AT(halyard_weight_desc, attrs, 40);
HALYARD_SIZE(halyard_weight_descs, 16);
HALYARD_SIZE(halyard_op_desc, 72);
HALYARD_AT(halyard_op_desc, kind, 0);
HALYARD_AT(halyard_op_desc, revision, 4);
HALYARD_AT(halyard_op_desc, tensors, 8);
HALYARD_AT(halyard_op_desc, weights, 24);
HALYARD_AT(halyard_op_desc, attrs, 40);
HALYARD_AT(halyard_op_desc, hints, 56);
HALYARD_SIZE(halyard_weights, 16);
HALYARD_SIZE(halyard_host_arrays, 16);
HALYARD_SIZE(halyard_launch_args, 88);
HALYARD_AT(halyard_launch_args, plan, 0);
HALYARD_AT(halyard_launch_args, workspace, 8);
HALYARD_AT(halyard_launch_args, workspace_bytes, 16);
HALYARD_AT(halyard_launch_args, tensors, 24);
HALYARD_AT(halyard_launch_args, weights, 40);
HALYARD_AT(halyard_launch_args, scalars, 56);
HALYARD_AT(halyard_launch_args, host, 72);
HALYARD_SIZE(halyard_alloc_req, 24);
HALYARD_AT(halyard_alloc_req, bytes, 0);
HALYARD_AT(halyard_alloc_req, align, 8);
HALYARD_AT(halyard_alloc_req, kind, 16);
HALYARD_AT(halyard_alloc_req, flags, 20);
HALYARD_SIZE(halyard_buffer, 32);
HALYARD_AT(halyard_buffer, id, 0);
HALYARD_AT(halyard_buffer, base, 8);
HALYARD_AT(halyard_buffer, bytes, 16);
HALYARD_AT(halyard_buffer, kind, 24);
HALYARD_AT(halyard_buffer, flags, 28);
HALYARD_SIZE(halyard_mem_ref, 24);
HALYARD_AT(halyard_mem_ref, base, 0);
HALYARD_AT(halyard_mem_ref, offset, 8);
HALYARD_AT(halyard_mem_ref, kind, 16);
HALYARD_AT(halyard_mem_ref, device, 20);
HALYARD_SIZE(halyard_copy_req, 80);
HALYARD_AT(halyard_copy_req, dst, 0);
HALYARD_AT(halyard_copy_req, src, 24);
HALYARD_AT(halyard_copy_req, row_bytes, 48);
HALYARD_AT(halyard_copy_req, rows, 56);
HALYARD_AT(halyard_copy_req, dst_pitch, 64);
HALYARD_AT(halyard_copy_req, src_pitch, 72);
HALYARD_SIZE(halyard_metric, 16);
HALYARD_AT(halyard_metric, key, 0);
HALYARD_AT(halyard_metric, index, 4);
HALYARD_AT(halyard_metric, value, 8);
HALYARD_SIZE(halyard_weight_plan, 32);
HALYARD_AT(halyard_weight_plan, bytes, 0);
HALYARD_AT(halyard_weight_plan, align, 8);
HALYARD_AT(halyard_weight_plan, scratch_bytes, 16);
HALYARD_AT(halyard_weight_plan, format, 24);
HALYARD_SIZE(halyard_weight_fill, 40);
HALYARD_AT(halyard_weight_fill, group, 0);
HALYARD_AT(halyard_weight_fill, flags, 4);
HALYARD_AT(halyard_weight_fill, row0, 8);
HALYARD_AT(halyard_weight_fill, rows, 16);
HALYARD_AT(halyard_weight_fill, parts, 24);
HALYARD_SIZE(halyard_kv_desc, 40);
HALYARD_AT(halyard_kv_desc, kind, 0);
HALYARD_AT(halyard_kv_desc, dtype, 4);
HALYARD_AT(halyard_kv_desc, heads, 8);
HALYARD_AT(halyard_kv_desc, dim_k, 12);
HALYARD_AT(halyard_kv_desc, dim_v, 16);
HALYARD_AT(halyard_kv_desc, block_size, 20);
HALYARD_AT(halyard_kv_desc, attrs, 24);
HALYARD_SIZE(halyard_kv_layout, 32);
HALYARD_AT(halyard_kv_layout, block_bytes, 0);
HALYARD_AT(halyard_kv_layout, align, 16);
HALYARD_AT(halyard_kv_layout, format, 24);
HALYARD_SIZE(halyard_a2av, 368);
HALYARD_AT(halyard_a2av, send, 0);
HALYARD_AT(halyard_a2av, recv, 152);
HALYARD_AT(halyard_a2av, send_counts, 304);
HALYARD_AT(halyard_a2av, send_displs, 320);
HALYARD_AT(halyard_a2av, recv_counts, 336);
HALYARD_AT(halyard_a2av, recv_displs, 352);
HALYARD_SIZE(halyard_notify, 16);
HALYARD_AT(halyard_notify, func, 0);
HALYARD_AT(halyard_notify, ctx, 8);
HALYARD_SIZE(halyard_key_value, 32);
HALYARD_AT(halyard_key_value, key, 0);
HALYARD_AT(halyard_key_value, value, 16);
HALYARD_SIZE(halyard_key_values, 16);
HALYARD_SIZE(halyard_comm_desc, 64);
HALYARD_AT(halyard_comm_desc, id, 0);
HALYARD_AT(halyard_comm_desc, rank, 16);
HALYARD_AT(halyard_comm_desc, world, 20);
HALYARD_AT(halyard_comm_desc, timeout_ms, 24);
HALYARD_AT(halyard_comm_desc, name, 32);
HALYARD_AT(halyard_comm_desc, attrs, 48);
HALYARD_SIZE(halyard_error, 496);
HALYARD_AT(halyard_error, code, 0);
HALYARD_AT(halyard_error, vendor_code, 4);
HALYARD_AT(halyard_error, msg_len, 8);
HALYARD_AT(halyard_error, pad, 12);
HALYARD_AT(halyard_error, msg, 16);
HALYARD_SIZE(halyard_host_api, 40);
HALYARD_AT(halyard_host_api, struct_size, 0);
HALYARD_AT(halyard_host_api, abi_major, 8);
HALYARD_AT(halyard_host_api, abi_minor, 12);
HALYARD_AT(halyard_host_api, ctx, 16);
HALYARD_AT(halyard_host_api, log_enabled, 24);
HALYARD_AT(halyard_host_api, log, 32);
HALYARD_SIZE(halyard_backend_api, 504);
HALYARD_AT(halyard_backend_api, struct_size, 0);
HALYARD_AT(halyard_backend_api, abi_major, 8);
HALYARD_AT(halyard_backend_api, abi_minor, 12);
HALYARD_AT(halyard_backend_api, info, 16);
HALYARD_AT(halyard_backend_api, device_telemetry, 296);
HALYARD_AT(halyard_backend_api, device_comm_unique_id, 368);
HALYARD_AT(halyard_backend_api, collective_split, 488);
HALYARD_AT(halyard_backend_api, kernel_plan_update, 496);

#undef HALYARD_AT
#undef HALYARD_SIZE
#undef HALYARD_CHECK

#ifdef __cplusplus
}
#endif

#endif
