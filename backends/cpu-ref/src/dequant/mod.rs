//! Weight formats: the bytes of a row to its values, as [`Scheme`] describes them.

mod blocks;
mod k_blocks;

use half::{bf16, f16};
use halyard_sdk::{DType, Scheme};

/// A row's values. `dtype` matters for dense rows only.
///
/// # Panics
/// For a scheme that `weights::check` refuses.
pub(crate) fn row(scheme: Scheme, dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let block: fn(&[u8]) -> Vec<f64> = match scheme {
        Scheme::DENSE => return dense(dtype, bytes),
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
    let (_, block_bytes) = scheme.gguf_block().expect("a GGUF scheme has blocks");
    let block_bytes = usize::try_from(block_bytes).expect("a block is at most 210 bytes");
    bytes.chunks_exact(block_bytes).flat_map(block).collect()
}

fn dense(dtype: DType, bytes: &[u8]) -> Vec<f64> {
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
        other => panic!("a dense weight of {other} was refused at prepare"),
    }
}

/// The f16 at the start of `bytes`.
fn f16_at(bytes: &[u8]) -> f64 {
    f64::from(f16::from_le_bytes([bytes[0], bytes[1]]))
}
