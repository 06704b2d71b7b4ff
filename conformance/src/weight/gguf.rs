//! Random blocks of the GGUF schemes.

use half::f16;
use halyard_core::Scheme;

use crate::rng::Rng;

/// Where a scheme's f16 scales lie, by what they are multiplied; the rest of a block may be any bytes.
struct Scales {
    /// Offset of `d`, and the standard deviation of what it multiplies.
    d: (usize, f64),
    /// Offset of the second scale, and its ratio to `d` that centres the values.
    m: Option<(usize, f64)>,
}

fn scales(scheme: Scheme) -> Scales {
    let (d, m) = match scheme {
        Scheme::GGUF_Q4_0 => ((0, 4.6), None),
        Scheme::GGUF_Q4_1 => ((0, 4.6), Some((2, -7.5))),
        Scheme::GGUF_Q5_0 => ((0, 9.2), None),
        Scheme::GGUF_Q5_1 => ((0, 9.2), Some((2, -15.5))),
        Scheme::GGUF_Q8_0 => ((0, 74.0), None),
        Scheme::GGUF_Q2_K => ((80, 13.0), Some((82, 1.5))),
        Scheme::GGUF_Q3_K => ((108, 42.0), None),
        Scheme::GGUF_Q4_K => ((0, 240.0), Some((2, 7.5))),
        Scheme::GGUF_Q5_K => ((0, 490.0), Some((2, 15.5))),
        Scheme::GGUF_Q6_K => ((208, 1370.0), None),
        // IQ4_NL.
        _ => ((0, 71.0), None),
    };
    Scales { d, m }
}

/// A random block: random codes and inner scales, f16 scales such that the values have about this deviation. One in 32 has a scale
/// of zero, as in files where a whole block is zero.
pub(super) fn block(scheme: Scheme, bytes: usize, deviation: f64, rng: &mut Rng) -> Vec<u8> {
    let mut block: Vec<u8> = (0..bytes).map(|_| rng.next() as u8).collect();
    let scales = scales(scheme);
    let mut put = |at: usize, value: f64| {
        block[at..at + 2].copy_from_slice(&f16::from_f64(value).to_le_bytes());
    };
    let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
    let zero = rng.below(32) == 0;
    let d = if zero { 0.0 } else { sign * deviation / scales.d.1 * rng.between(0.5, 1.5) };
    put(scales.d.0, d);
    if let Some((at, ratio)) = scales.m {
        put(at, d * ratio * rng.between(0.8, 1.2));
    }
    block
}
