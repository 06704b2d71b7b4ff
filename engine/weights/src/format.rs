//! Element and block formats of stored tensors.

/// How a tensor's elements are stored.
///
/// The plain types hold one element in `block_bytes` bytes; the `Q`/`IQ` types are GGUF's blocks along a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are the formats' own")]
#[expect(non_camel_case_types, reason = "GGUF's own spelling")]
pub enum TensorFormat {
    F32,
    F16,
    BF16,
    F64,
    F8E4M3,
    F8E5M2,
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
}

impl TensorFormat {
    /// Elements in one block: 1 for the plain types.
    #[must_use]
    pub const fn block_elements(self) -> u64 {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 1,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> u64 {
        match self {
            Self::F8E4M3 | Self::F8E5M2 | Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Whether elements come in blocks that share a scale.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        self.block_elements() > 1
    }

    /// Whether this is one of the plain floating-point types that a model's activations may have.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Bytes of a row of `elements`; `None` if they don't fill whole blocks or the number overflows.
    #[must_use]
    pub const fn row_bytes(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Bytes of a row-major tensor; `None` if its rows don't fill whole blocks or the number overflows.
    #[must_use]
    pub fn tensor_bytes(self, shape: &[u64]) -> Option<u64> {
        let (row, outer) = match shape.split_last() {
            Some((&row, outer)) => (row, outer),
            None => (1, shape),
        };
        outer.iter().try_fold(self.row_bytes(row)?, |bytes, &dim| bytes.checked_mul(dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(TensorFormat::BF16.tensor_bytes(&[3, 5]), Some(30));
        assert_eq!(TensorFormat::Q4_0.tensor_bytes(&[2, 64]), Some(72));
        assert_eq!(TensorFormat::Q4_0.tensor_bytes(&[2, 65]), None);
        assert_eq!(TensorFormat::F32.tensor_bytes(&[]), Some(4));
        assert_eq!(TensorFormat::F32.tensor_bytes(&[u64::MAX, 2]), None);
        assert_eq!(TensorFormat::F32.tensor_bytes(&[0, 7]), Some(0));
    }
}
