//! Weight formats: the bytes of a row to its values, as [`Scheme`] describes them.

mod blocks;
mod k_blocks;
mod scaled;

use half::{bf16, f16};
use halyard_sdk::{DType, Scheme, WeightDesc};

pub(crate) use scaled::columns;

/// A row's values, from its bytes of each part in the order of [`halyard_sdk::abi::scheme::parts`].
///
/// # Panics
/// For a scheme that `weights::check` refuses.
pub(crate) fn row(w: &WeightDesc<'_>, parts: &[&[u8]]) -> Vec<f64> {
    let block: fn(&[u8]) -> Vec<f64> = match w.scheme {
        Scheme::DENSE => return floats(w.dtype, parts[0]),
        Scheme::FP8_BLOCK => return scaled::fp8_block(w, parts),
        Scheme::FP8_CHANNEL => return scaled::fp8_channel(w, parts),
        Scheme::INT8_CHANNEL => return scaled::int8_channel(w, parts),
        Scheme::INT4_GROUP => return scaled::int4_group(w, parts),
        Scheme::GGUF_Q4_0 => blocks::q4_0,
        Scheme::GGUF_Q4_1 => blocks::q4_1,
        Scheme::GGUF_Q5_0 => blocks::q5_0,
        Scheme::GGUF_Q5_1 => blocks::q5_1,
        Scheme::GGUF_Q8_0 => blocks::q8_0,
        Scheme::GGUF_IQ4_NL => blocks::iq4_nl,
        Scheme::GGUF_Q2_K => k_blocks::q2_k,
        Scheme::GGUF_Q3_K => k_blocks::q3_k,
        Scheme::GGUF_Q4_K => k_blocks::q4_k,
        Scheme::GGUF_Q5_K => k_blocks::q5_k,
        Scheme::GGUF_Q6_K => k_blocks::q6_k,
        other => panic!("scheme {other} was refused at prepare"),
    };
    let (_, block_bytes) = w.scheme.gguf_block().expect("a GGUF scheme has blocks");
    let block_bytes = usize::try_from(block_bytes).expect("a block is at most 210 bytes");
    parts[0].chunks_exact(block_bytes).flat_map(block).collect()
}

fn floats(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        DType::F32 => {
            let (words, _) = bytes.as_chunks();
            words.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
        }
        DType::F16 => bytes.chunks_exact(2).map(f16_at).collect(),
        DType::BF16 => {
            let (words, _) = bytes.as_chunks();
            words.iter().map(|b| f64::from(bf16::from_le_bytes(*b))).collect()
        }
        other => panic!("values of {other} was refused at prepare"),
    }
}

/// The f16 at the start of `bytes`.
fn f16_at(bytes: &[u8]) -> f64 {
    f64::from(f16::from_le_bytes([bytes[0], bytes[1]]))
}
