//! Sizes and conversions of numbers.

use half::f16;

/// Bytes of an element of an `aclDataType`; none for one that is not known or has less than a byte.
pub(crate) fn element_bytes(dtype: i32) -> Option<usize> {
    match dtype {
        2 | 4 | 12 | 34..=37 => Some(1),
        1 | 6 | 7 | 27 => Some(2),
        0 | 3 | 8 | 33 => Some(4),
        9 | 10 | 11 | 16 => Some(8),
        17 => Some(16),
        _ => None,
    }
}

values! { VALUES of Acl:
    fn aclDataTypeSize(dtype: i32) -> usize, 0; {
        Ok(element_bytes(dtype).unwrap_or(0))
    }

    fn aclFloatToFloat16(value: f32) -> u16, 0; {
        Ok(f16::from_f32(value).to_bits())
    }

    fn aclFloat16ToFloat(value: u16) -> f32, 0.0; {
        Ok(f16::from_bits(value).to_f32())
    }
}
