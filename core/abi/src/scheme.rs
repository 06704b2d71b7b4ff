//! The parts that a weight's scheme consists of: what a host hands over and a backend packs.
//!
//! | scheme | parts of `rows` rows |
//! |---|---|
//! | DENSE | `data` `[rows, K]` |
//! | FP8_BLOCK | `data` f8e4m3 `[rows, K]`; `scale` `[ceil(rows / 128), ceil(K / 128)]`; fills start at multiples of 128 rows |
//! | FP8_CHANNEL | `data` f8e4m3 `[rows, K]`; `scale` `[rows]` |
//! | INT8_CHANNEL | `data` i8 `[rows, K]`; `scale` `[rows]` |
//! | INT4_GROUP | `data` u4 `[rows, K]`; `scale` `[rows, K / G]`; `zero` u8 `[rows, K / G]`?; `perm` i32 `[K]`? |
//! | GGUF | `data` u8 `[rows, K / block * block_bytes]`, the file's bytes |

use crate::{
    error::AbiError,
    ids::{DType, Scheme},
    types::{TensorView, WEIGHT_PERM, WEIGHT_ZERO, WeightDesc, WeightFill},
};

/// Rows and columns that share a scale in [`Scheme::FP8_BLOCK`].
pub const FP8_BLOCK: u64 = 128;

/// How often a part has a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// One a row of the weight: `[rows, columns]`.
    Each,
    /// One number a row of the weight: `[rows]`.
    Scalar,
    /// One a block of 128 rows: `[ceil(rows / 128), columns]`.
    Blocks,
    /// The same for all rows of a group: `[columns]`.
    Shared,
}

/// One part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Name in messages.
    pub name: &'static str,
    /// Element type.
    pub dtype: DType,
    /// Elements a row.
    pub columns: u64,
    /// How often there is a row.
    pub rows: Rows,
}

impl Part {
    /// The dims of this part of `rows` rows.
    #[must_use]
    pub fn dims(&self, rows: u64) -> Vec<i64> {
        let columns = self.columns.cast_signed();
        match self.rows {
            Rows::Each => vec![rows.cast_signed(), columns],
            Rows::Scalar => vec![rows.cast_signed()],
            Rows::Blocks => vec![rows.div_ceil(FP8_BLOCK).cast_signed(), columns],
            Rows::Shared => vec![columns],
        }
    }

    /// Bytes of this part of `rows` rows, contiguous; `None` on overflow.
    #[must_use]
    pub fn bytes(&self, rows: u64) -> Option<u64> {
        let dims = self.dims(rows);
        let elements = dims.iter().try_fold(1u64, |n, d| n.checked_mul(d.cast_unsigned()))?;
        self.dtype.bytes(elements)
    }
}

const fn part(name: &'static str, dtype: DType, columns: u64, rows: Rows) -> Part {
    Part { name, dtype, columns, rows }
}

/// The parts of a weight, in order.
///
/// # Errors
/// `UNSUPPORTED` for an unknown scheme or flag; `INVALID_ARGUMENT` for dtypes, group sizes or columns that the scheme does not have.
pub fn parts(w: &WeightDesc<'_>) -> Result<Vec<Part>, AbiError> {
    let k = w.k;
    let floats = [DType::F32, DType::F16, DType::BF16];
    let bad =
        |why: String| Err(AbiError::invalid(format!("a weight of scheme {}: {why}", w.scheme)));
    let allowed = if w.scheme == Scheme::INT4_GROUP { WEIGHT_ZERO | WEIGHT_PERM } else { 0 };
    if w.flags & !allowed != 0 || !w.attrs.is_empty() {
        let (flags, attrs) = (w.flags, w.attrs.len());
        let why = format!("flags {flags:#x} and {attrs} attributes are not known");
        return Err(AbiError::unsupported(format!("a weight of scheme {}: {why}", w.scheme)));
    }
    if k == 0 {
        return bad("rows of no elements".into());
    }
    let scale = match (w.scheme, w.dtype) {
        (Scheme::DENSE | Scheme::INT4_GROUP, dtype) if floats.contains(&dtype) => dtype,
        (Scheme::FP8_BLOCK | Scheme::FP8_CHANNEL | Scheme::INT8_CHANNEL, DType::F32) => DType::F32,
        (scheme, DType::NONE) if scheme.gguf_block().is_some() => DType::NONE,
        (Scheme::DENSE, dtype) => {
            return bad(format!("data of {dtype}, expected f32, f16 or bf16"));
        }
        (_, dtype) => return bad(format!("dtype {dtype}")),
    };
    let group = match w.scheme {
        Scheme::FP8_BLOCK => FP8_BLOCK,
        Scheme::INT4_GROUP => u64::from(w.group_size),
        _ => 0,
    };
    if u64::from(w.group_size) != group {
        return bad(format!("groups of {}, expected {group}", w.group_size));
    }
    Ok(match w.scheme {
        Scheme::DENSE => vec![part("data", scale, k, Rows::Each)],
        Scheme::FP8_BLOCK => vec![
            part("data", DType::F8E4M3, k, Rows::Each),
            part("scale", scale, k.div_ceil(FP8_BLOCK), Rows::Blocks),
        ],
        Scheme::FP8_CHANNEL => {
            vec![part("data", DType::F8E4M3, k, Rows::Each), part("scale", scale, 1, Rows::Scalar)]
        }
        Scheme::INT8_CHANNEL => {
            vec![part("data", DType::I8, k, Rows::Each), part("scale", scale, 1, Rows::Scalar)]
        }
        Scheme::INT4_GROUP => {
            if group == 0 || !k.is_multiple_of(group) || !k.is_multiple_of(2) {
                return bad(format!("rows of {k} are not whole groups of {group}"));
            }
            let groups = k / group;
            let mut all = vec![
                part("data", DType::U4, k, Rows::Each),
                part("scale", scale, groups, Rows::Each),
            ];
            if w.flags & WEIGHT_ZERO != 0 {
                all.push(part("zero", DType::U8, groups, Rows::Each));
            }
            if w.flags & WEIGHT_PERM != 0 {
                all.push(part("perm", DType::I32, k, Rows::Shared));
            }
            all
        }
        scheme => {
            let Some((elements, bytes)) = scheme.gguf_block() else {
                return Err(AbiError::unsupported(format!("weights of scheme {scheme}")));
            };
            if !k.is_multiple_of(elements) {
                return bad(format!("needs whole blocks of {elements}, a row has {k}"));
            }
            let Some(columns) = (k / elements).checked_mul(bytes) else {
                return bad("a row too long".into());
            };
            vec![part("data", DType::U8, columns, Rows::Each)]
        }
    })
}

/// Whether neighbouring rows share a part, so that fills start at multiples of [`FP8_BLOCK`].
#[must_use]
pub fn in_blocks(parts: &[Part]) -> bool {
    parts.iter().any(|p| p.rows == Rows::Blocks)
}

/// Checks the rows and parts of a fill.
///
/// # Errors
/// As [`parts`]; `INVALID_ARGUMENT` for rows outside the weight, another number of parts, or parts of another dtype or shape or without
/// contiguous rows.
pub fn check_fill(w: &WeightDesc<'_>, f: &WeightFill<'_>) -> Result<(), AbiError> {
    let inside = f.row0.checked_add(f.rows).is_some_and(|end| end <= w.n);
    if !inside || f.rows == 0 || f.group >= w.groups || f.flags != 0 {
        return Err(AbiError::invalid(format!(
            "rows {}+{} of group {} (flags {:#x}) of a weight of {} × {} rows",
            f.row0, f.rows, f.group, f.flags, w.groups, w.n
        )));
    }
    let parts = parts(w)?;
    if f.parts.len() != parts.len() {
        let (got, want) = (f.parts.len(), parts.len());
        return Err(AbiError::invalid(format!("{got} parts, expected {want} for {}", w.scheme)));
    }
    if in_blocks(&parts) && !f.row0.is_multiple_of(FP8_BLOCK) {
        let at = f.row0;
        return Err(AbiError::invalid(format!("{}: row {at} begins no block of 128", w.scheme)));
    }
    parts.iter().zip(f.parts.iter()).try_for_each(|(part, view)| check_part(part, f.rows, view))
}

fn check_part(part: &Part, rows: u64, view: &TensorView) -> Result<(), AbiError> {
    let dims = part.dims(rows);
    let strides = view.strides();
    let fits = view.dtype == part.dtype
        && view.dims() == dims
        && strides.last() == Some(&1)
        && (dims.len() == 1 || strides[0] >= dims[1]);
    if fits {
        return Ok(());
    }
    Err(AbiError::invalid(format!(
        "part {} is {} {:?} with strides {strides:?}, expected {} {dims:?} with contiguous rows",
        part.name,
        view.dtype,
        view.dims(),
        part.dtype,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(w: &WeightDesc<'_>) -> Vec<&'static str> {
        parts(w).unwrap().iter().map(|p| p.name).collect()
    }

    #[test]
    fn every_scheme_has_its_parts() {
        let block = WeightDesc::linear(Scheme::FP8_BLOCK, DType::F32, 300, 200);
        let block = WeightDesc { group_size: 128, ..block };
        let all = parts(&block).unwrap();
        assert_eq!((all[0].bytes(300), all[1].dims(300)), (Some(60_000), vec![3, 2]));
        let int4 = WeightDesc::linear(Scheme::INT4_GROUP, DType::F16, 8, 64);
        let int4 = WeightDesc { group_size: 32, ..int4 };
        assert_eq!(names(&int4), ["data", "scale"]);
        assert_eq!(parts(&int4).unwrap()[0].bytes(3), Some(96));
        let full = WeightDesc { flags: WEIGHT_ZERO | WEIGHT_PERM, ..int4 };
        assert_eq!(names(&full), ["data", "scale", "zero", "perm"]);
        for scheme in Scheme::ALL.iter().filter(|s| s.gguf_block().is_some()) {
            assert_eq!(names(&WeightDesc::linear(*scheme, DType::NONE, 4, 256)), ["data"]);
        }
    }

    #[test]
    fn what_a_scheme_does_not_have_is_refused() {
        let int8 = WeightDesc::linear(Scheme::INT8_CHANNEL, DType::F32, 8, 64);
        assert!(parts(&int8).is_ok());
        for bad in [
            WeightDesc { dtype: DType::F16, ..int8 },
            WeightDesc { group_size: 64, ..int8 },
            WeightDesc { flags: WEIGHT_ZERO, ..int8 },
            WeightDesc { scheme: Scheme::INT4_GROUP, group_size: 48, ..int8 },
            WeightDesc { scheme: Scheme(77), ..int8 },
            WeightDesc { scheme: Scheme::GGUF_Q4_K, dtype: DType::NONE, ..int8 },
            WeightDesc { scheme: Scheme::DENSE, dtype: DType::I8, ..int8 },
            WeightDesc { k: 0, ..int8 },
        ] {
            assert!(parts(&bad).is_err(), "{bad:?}");
        }
    }
}
