//! The 8-bit floats of [`DType`](crate::DType): their values, and conversion to the nearest.
//!
//! "FP8 Formats for Deep Learning" (Micikevicius et al., 2022). E4M3 is the variant without infinities: 448 is the largest number and
//! `S.1111.111` is NaN. E5M2 follows IEEE 754. Conversions round to nearest even and saturate; NaN stays NaN.

/// Largest f8e4m3.
pub const E4M3_MAX: f64 = 448.0;
/// Largest finite f8e5m2.
pub const E5M2_MAX: f64 = 57_344.0;

/// The value of an f8e4m3.
#[must_use]
pub fn e4m3_to_f32(bits: u8) -> f32 {
    if bits & 0x7f == 0x7f {
        return f32::NAN;
    }
    finite(bits, 3, 7)
}

/// The value of an f8e5m2.
#[must_use]
pub fn e5m2_to_f32(bits: u8) -> f32 {
    match bits & 0x7f {
        0x7c if bits & 0x80 == 0 => f32::INFINITY,
        0x7c => f32::NEG_INFINITY,
        0x7d.. => f32::NAN,
        _ => finite(bits, 2, 15),
    }
}

/// The value of a finite number with so many mantissa bits and this bias.
fn finite(bits: u8, mantissa_bits: i32, bias: i32) -> f32 {
    let exponent = i32::from((bits & 0x7f) >> mantissa_bits);
    let fraction = f32::from(bits & ((1 << mantissa_bits) - 1)) / 2f32.powi(mantissa_bits);
    let size = match exponent {
        0 => fraction * 2f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

/// The f8e4m3 nearest to a value.
#[must_use]
pub fn e4m3_from_f64(value: f64) -> u8 {
    nearest(value, 3, 7, E4M3_MAX)
}

/// The f8e5m2 nearest to a value; infinities saturate, too.
#[must_use]
pub fn e5m2_from_f64(value: f64) -> u8 {
    nearest(value, 2, 15, E5M2_MAX)
}

fn nearest(value: f64, mantissa_bits: i32, bias: i32, max: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let sign = u8::from(value.is_sign_negative()) << 7;
    let size = value.abs().min(max);
    // The exponent field's; below the normal range the step stays that of the smallest normal number.
    let exponent = if size < 2f64.powi(1 - bias) { 1 - bias } else { ilog2(size) };
    let step = 2f64.powi(exponent - mantissa_bits);
    let steps = (size / step).round_ties_even();
    // A normal number has 2^mantissa_bits steps up to its binade; a carry moves on to the next by itself.
    let below = f64::from((exponent + bias - 1) << mantissa_bits);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 0x7e")]
    let code = (below + steps) as u8;
    sign | code
}

/// The exponent of a normal number.
fn ilog2(size: f64) -> i32 {
    let field = (size.to_bits() >> 52) & 0x7ff;
    i32::try_from(field).unwrap_or(0) - 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_as_it_went() {
        for bits in 0..=255u8 {
            let value = e4m3_to_f32(bits);
            let back = e4m3_from_f64(f64::from(value));
            assert!(value.is_nan() && back & 0x7f == 0x7f || back == bits, "{bits:#x} {value}");
            let value = e5m2_to_f32(bits);
            let back = e5m2_from_f64(f64::from(value));
            assert!(!value.is_finite() || back == bits, "{bits:#x} {value}");
        }
        assert_eq!(e4m3_to_f32(0x7e).to_bits(), 448f32.to_bits());
        assert_eq!(e4m3_to_f32(1).to_bits(), 2f32.powi(-9).to_bits());
        assert_eq!(e5m2_to_f32(0x7b).to_bits(), 57_344f32.to_bits());
        assert_eq!(e5m2_to_f32(0xfc).to_bits(), f32::NEG_INFINITY.to_bits());
    }

    #[test]
    fn ties_go_to_even_and_large_values_saturate() {
        // Between 1 and 1.125; between 1.125 and 1.25.
        assert_eq!(e4m3_from_f64(1.0625), 0x38);
        assert_eq!(e4m3_from_f64(1.1875), 0x3a);
        assert_eq!(e4m3_from_f64(1.0626), 0x39);
        assert_eq!(e4m3_from_f64(1e9), 0x7e);
        assert_eq!(e4m3_from_f64(f64::NEG_INFINITY), 0xfe);
        // Half of the smallest goes to zero, more to it; a carry reaches the normal range.
        assert_eq!(e4m3_from_f64(2f64.powi(-10)), 0);
        assert_eq!(e4m3_from_f64(-2f64.powi(-10) * 1.01), 0x81);
        assert_eq!(e4m3_from_f64(2f64.powi(-6) * 0.999), 0x08);
        assert_eq!(e4m3_from_f64(f64::NAN) & 0x7f, 0x7f);
        assert_eq!(e5m2_from_f64(f64::INFINITY), 0x7b);
    }
}
