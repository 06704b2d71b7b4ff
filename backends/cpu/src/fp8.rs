//! 8-bit floats: the values of f8e4m3, and the one nearest to a number, without branches.

/// The value of each f8e4m3.
pub(crate) const E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = value(bits as u32);
        bits += 1;
    }
    table
};

/// Largest f8e4m3.
pub(crate) const E4M3_MAX: f32 = 448.0;

/// 2^-9, the smallest f8e4m3 above 0.
const STEP: f32 = 1.0 / 512.0;

const fn value(bits: u32) -> f32 {
    let (size, sign) = (bits & 0x7f, bits >> 7 << 31);
    let size = match size {
        0x7f => f32::NAN,
        0..8 => size as f32 * STEP,
        // An exponent of 4 bits with bias 7 becomes one of 8 bits with bias 127.
        _ => f32::from_bits((size << 20) + (120 << 23)),
    };
    f32::from_bits(size.to_bits() | sign)
}

/// The f8e4m3 nearest to `x`: ties to even, saturating; NaN stays NaN.
#[inline(always)]
pub(crate) fn nearest_e4m3(x: f64) -> u8 {
    let bits = x.to_bits();
    let (size, sign) = (bits & (u64::MAX >> 1), (bits >> 63 << 7) as u8);
    // Three bits of mantissa: add half of what is cut off, less one if the last bit that stays is even. A carry moves into the
    // exponent by itself, whose bias becomes 7.
    let even = (size >> 49) & 1;
    let normal = ((size + (1 << 48) - 1 + even) >> 49).wrapping_sub((1023 - 7) << 3);
    // Below 2^-6 numbers are multiples of 2^-9, which is the last bit of sums this large.
    let shifted = f64::from_bits(size) + SHIFT;
    let subnormal = shifted.to_bits() & 15;
    let code = if f64::from_bits(size) < 1.0 / 64.0 { subnormal } else { normal.min(0x7e) };
    let code = if size > INFINITE { 0x7f } else { code };
    code as u8 | sign
}

/// 2^52 steps of 2^-9.
const SHIFT: f64 = (1u64 << 43) as f64;

/// The bits of infinity.
const INFINITE: u64 = 0x7ff << 52;

#[cfg(test)]
mod tests {
    use super::*;
    use halyard_sdk::abi::fp8::{E4M3_MAX as MAX, e4m3_from_f64, e4m3_to_f32};

    #[test]
    fn values_are_those_of_the_contract() {
        assert_eq!(f64::from(E4M3_MAX), MAX);
        for bits in 0..=255u8 {
            let (value, want) = (E4M3[usize::from(bits)], e4m3_to_f32(bits));
            assert!(value.to_bits() == want.to_bits() || value.is_nan() && want.is_nan(), "{bits}");
        }
    }

    #[test]
    fn the_nearest_is_that_of_the_contract() {
        let mut all = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 5e-324];
        for pair in E4M3[..0x7f].windows(2) {
            let (low, high) = (f64::from(pair[0]), f64::from(pair[1]));
            let middle = low.midpoint(high);
            all.extend([low, low.next_up(), middle.next_down(), middle, middle.next_up()]);
            all.push(high.next_down());
        }
        for x in all.iter().flat_map(|&x| [x, -x]) {
            let (code, want) = (nearest_e4m3(x), e4m3_from_f64(x));
            let nan = code & want & 0x7f == 0x7f;
            assert!(code == want || nan, "{x:e}: {code:#x}, {want:#x}");
        }
    }
}
