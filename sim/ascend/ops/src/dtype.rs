//! `aclDataType`, as far as a 910B has it.

use std::fmt;

/// A dtype of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DType {
    F32,
    F16,
    BF16,
    I8,
    U8,
    I16,
    I32,
    U32,
    I64,
    U64,
    Bool,
    I4,
}

use DType::{BF16, Bool, F16, F32, I4, I8, I16, I32, I64, U8, U32, U64};

/// The floats of a 910B's vector and cube units.
pub(crate) const FLOATS: &[DType] = &[F16, BF16, F32];
/// The floats of 16 bits.
pub(crate) const HALVES: &[DType] = &[F16, BF16];
/// What indices of tensors are.
pub(crate) const INDICES: &[DType] = &[I32, I64];
/// Every dtype of whole bytes.
pub(crate) const ALL: &[DType] = &[F32, F16, BF16, I8, U8, I16, I32, U32, I64, U64, Bool];
/// What arithmetic of elements knows.
pub(crate) const NUMBERS: &[DType] = &[F32, F16, BF16, I8, U8, I16, I32, I64];

const TABLE: &[(i32, DType, &str, usize)] = &[
    (0, F32, "FLOAT", 32),
    (1, F16, "FLOAT16", 16),
    (27, BF16, "BFLOAT16", 16),
    (2, I8, "INT8", 8),
    (4, U8, "UINT8", 8),
    (6, I16, "INT16", 16),
    (3, I32, "INT32", 32),
    (8, U32, "UINT32", 32),
    (9, I64, "INT64", 64),
    (10, U64, "UINT64", 64),
    (12, Bool, "BOOL", 8),
    (29, I4, "INT4", 4),
];

impl DType {
    /// Of the number in `aclDataType`.
    pub(crate) fn of(number: i32) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    fn row(self) -> &'static (i32, DType, &'static str, usize) {
        TABLE.iter().find(|row| row.1 == self).unwrap_or(&TABLE[0])
    }

    pub(crate) fn bits(self) -> usize {
        self.row().3
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, F32 | F16 | BF16)
    }

    /// The dtype that two operands are brought to.
    pub(crate) fn promote(self, other: Self) -> Self {
        let rank = |d: Self| match d {
            Bool => 0,
            I4 | U8 | I8 => 1,
            I16 => 2,
            I32 | U32 => 3,
            I64 | U64 => 4,
            F16 | BF16 => 5,
            F32 => 6,
        };
        match (self, other) {
            (a, b) if a == b => a,
            (F16, BF16) | (BF16, F16) => F32,
            (U8, I8) | (I8, U8) => I16,
            (a, b) if rank(a) >= rank(b) => a,
            (_, b) => b,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// `a, b or c`.
pub(crate) fn one_of<T: fmt::Display>(choices: &[T]) -> String {
    let words: Vec<String> = choices.iter().map(ToString::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        Some((last, _)) => last.clone(),
        None => "nothing".into(),
    }
}
