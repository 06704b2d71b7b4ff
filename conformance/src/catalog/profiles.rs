//! What a backend can declare, and be certified for.

use halyard_abi::types::FLAG_OPAQUE;
use halyard_core::{
    DType, OpBuf, OpKind,
    attrs::{KvCopyBlocks, KvGather},
};

use crate::opbuf;

/// The profile that an op with dense weights belongs to.
pub(super) fn of(op: &OpBuf) -> &'static str {
    let eight_bit_cache = |t: &halyard_core::TensorSpec| {
        t.flags & FLAG_OPAQUE != 0 && matches!(t.dtype, DType::F8E4M3 | DType::I8)
    };
    match op.kind() {
        OpKind::QKV_POST | OpKind::LINEAR_ACT_MUL | OpKind::RMS_NORM_QUANT => "fusion",
        OpKind::QUANT_ACT => "act_quant",
        _ if opbuf::act_quant(op) != 0 => "act_quant",
        _ if op.tensors().iter().any(eight_bit_cache) => "kv8",
        OpKind::BATCHED_LINEAR | OpKind::MLA_WRITE | OpKind::MLA_ATTENTION => "mla",
        OpKind::KV_GATHER if opbuf::attrs_of::<KvGather>(op).latent => "mla",
        OpKind::KV_COPY_BLOCKS if opbuf::attrs_of::<KvCopyBlocks>(op).latent => "mla",
        OpKind::VARLEN_ATTENTION | OpKind::MERGE_ATTENTION | OpKind::KV_GATHER => "contiguous",
        OpKind::MOE_ROUTER | OpKind::MOE_EXPERTS => "moe",
        OpKind::MOE_PERMUTE | OpKind::GROUPED_LINEAR | OpKind::MOE_UNPERMUTE => "moe_trio",
        OpKind::TOPK | OpKind::LOGPROBS | OpKind::LOGITS_PROCESS | OpKind::SAMPLE => "sample",
        _ => "dense",
    }
}
