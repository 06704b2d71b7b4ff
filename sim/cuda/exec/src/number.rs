//! Narrow floats: f16, bf16, tf32 and the two 8-bit ones.

use half::f16;

#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest even; NaN stays NaN. Without branches, so that loops over lanes become vector code.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fff } else { rounded }
}

#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    // The exponent is moved by a product with 2^112, which also makes subnormals right.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13);
    let scaled = magnitude * f32::from_bits((127 + 112) << 23);
    let special = f32::from_bits(u32::from(bits & 0x7fff) << 13 | 0x7f80_0000);
    let value = if bits & 0x7c00 == 0x7c00 { special } else { scaled };
    f32::from_bits(value.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { f16::from_f32(x).to_bits() }
}

/// An 8-bit float: bits of its exponent, mantissa, bias, and its largest finite value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct F8 {
    mantissa: u32,
    bias: i32,
    /// Bits of the largest finite value.
    largest: u8,
}

/// 4 exponent bits, 3 mantissa bits, no infinity, one NaN.
pub(crate) const E4M3: F8 = F8 { mantissa: 3, bias: 7, largest: 0x7e };
/// 5 exponent bits, 2 mantissa bits, infinity and NaN as IEEE has them.
pub(crate) const E5M2: F8 = F8 { mantissa: 2, bias: 15, largest: 0x7b };

/// 2 to the power of `exponent`, at least -126 and at most 127.
#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits((exponent + 127).cast_unsigned() << 23)
}

impl F8 {
    /// Without branches, so that loops over lanes become vector code.
    #[inline(always)]
    pub(crate) fn to_f32(self, bits: u8) -> f32 {
        let magnitude = bits & 0x7f;
        // The exponent is moved by a product, which also makes subnormals right.
        let small = f32::from_bits(u32::from(magnitude) << (23 - self.mantissa));
        let scaled = small * power_of_two(127 - self.bias);
        let infinite = self.mantissa == 2 && magnitude == 0x7c;
        let special = if infinite { f32::INFINITY } else { f32::NAN };
        let value = if magnitude > self.largest { special } else { scaled };
        f32::from_bits(value.to_bits() | u32::from(bits & 0x80) << 24)
    }

    /// Rounds to nearest even; what is too large becomes the largest finite value (`.satfinite`), NaN stays NaN.
    pub(crate) fn of_f32(self, x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        if x.is_nan() {
            return 0x7f;
        }
        let x = x.abs();
        if x >= self.to_f32(self.largest) {
            return sign | self.largest;
        }
        // Values ascend with their bits: the rounded one is the last not above x, or its successor.
        let exponent = ((x.to_bits() >> 23).cast_signed() - 127).max(1 - self.bias);
        let unit = power_of_two(exponent - self.mantissa.cast_signed());
        let steps = (x / unit).round_ties_even() as u32;
        let first = (exponent + self.bias).cast_unsigned() << self.mantissa;
        let normal = 1 << self.mantissa;
        let bits = first + steps - normal;
        sign | bits as u8
    }
}

/// The nearest tf32: ten bits of mantissa, ties away from zero.
pub(crate) fn f32_to_tf32(x: f32) -> f32 {
    if x.is_finite() { f32::from_bits(x.to_bits().wrapping_add(0x1000) & !0x1fff) } else { x }
}

/// Rounds toward zero to a bf16.
pub(crate) fn f32_to_bf16_cut(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { (x.to_bits() >> 16) as u16 }
}

/// Rounds toward zero to an f16.
pub(crate) fn f32_to_f16_cut(x: f32) -> u16 {
    let near = f32_to_f16(x);
    let value = f16_to_f32(near);
    if value.abs() > x.abs() && !x.is_infinite() { near - 1 } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn halves_are_those_of_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(
                ours == theirs && ours.is_sign_negative() == theirs.is_sign_negative()
                    || ours.is_nan() && theirs.is_nan(),
                "{bits:x}"
            );
            let x = f32::from_bits(u32::from(bits) << 16 | 0x8123);
            if !x.is_nan() {
                assert_eq!(f32_to_bf16(x), bf16::from_f32(x).to_bits());
            }
        }
    }

    #[test]
    fn eight_bits_round_to_the_nearest_value() {
        for format in [E4M3, E5M2] {
            let values: Vec<_> = (0..=format.largest).map(|bits| format.to_f32(bits)).collect();
            for (bits, pair) in values.windows(2).enumerate() {
                let bits = bits as u8;
                assert!(pair[0] < pair[1]);
                assert_eq!(format.of_f32(pair[0]), bits);
                let middle = f32::midpoint(pair[0], pair[1]);
                assert_eq!(format.of_f32(middle), bits + (bits & 1), "ties to even");
                assert_eq!(format.of_f32(middle.next_up()), bits + 1);
                assert_eq!(format.of_f32(-middle.next_down()), bits | 0x80);
            }
            assert_eq!(format.of_f32(1e9), format.largest);
            assert!(format.to_f32(format.of_f32(f32::NAN)).is_nan());
        }
        assert_eq!((E4M3.to_f32(0x7e), E5M2.to_f32(0x7b)), (448.0, 57344.0));
    }
}
