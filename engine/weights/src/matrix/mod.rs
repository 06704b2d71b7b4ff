//! A linear layer's weight in the parts that backends take, whatever tool quantised it.
//!
//! | stored | form | parts of `rows` rows |
//! |---|---|---|
//! | floats, GGUF blocks | [`MatrixForm::Plain`] | the file's bytes |
//! | f8e4m3 `weight`, `weight_scale_inv` or `weight_scale` | [`MatrixForm::Fp8Block`], [`MatrixForm::Fp8Channel`] | codes; scales f32 |
//! | i8 `weight`, `weight_scale`, `weight_offset` of zeros or none | [`MatrixForm::Int8Channel`] | codes; scales f32 |
//! | AWQ and GPTQ `qweight`, compressed-tensors' `weight_packed` | [`MatrixForm::Int4Group`] | codes; scales; zeros?; permutation? |

mod int4;
mod scaled;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, TensorData};
use crate::config::{Compressed, Quantization};
use crate::error::{FormatError, WeightsError};
use crate::format::TensorFormat;
use int4::Int4;
use scaled::Scaled;

/// Which parts a matrix `[N, K]` has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MatrixForm {
    /// The tensor itself.
    Plain(TensorFormat),
    /// f8e4m3 `[rows, K]`, and f32 `[ceil(rows / 128), ceil(K / 128)]`: `w = q scale`.
    Fp8Block,
    /// f8e4m3 `[rows, K]`, and f32 `[rows]`: `w = q scale`.
    Fp8Channel,
    /// i8 `[rows, K]`, and f32 `[rows]`: `w = q scale`.
    Int8Channel,
    /// Four bits `[rows, K]`, the low nibble first; scales `[rows, K / group_size]`; zeros u8 of the same shape;
    /// the permutation i32 `[K]`: `w = (q - zero) scale`.
    Int4Group {
        /// Columns that share a scale.
        group_size: u32,
        /// Of the scales: F32, F16 or BF16.
        scale: TensorFormat,
        /// Whether there are zeros; all are 8 if not.
        zero: bool,
        /// Which input each column belongs to, where columns are sorted by group (GPTQ's act-order).
        perm: Option<Arc<[i32]>>,
    },
}

/// A linear layer's weight, or some rows and columns of one, opened and checked.
#[derive(Debug)]
pub struct Matrix<'a> {
    stored: Stored<'a>,
    /// Which rows and columns, if not all.
    window: Option<Window>,
}

/// Some rows and columns.
#[derive(Debug)]
struct Window {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Rows or columns that cannot be taken apart from their neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SliceError {
    /// Neighbouring rows share a scale.
    #[error("its rows share scales in blocks of {unit}")]
    Rows {
        /// Rows that stay together.
        unit: u64,
    },
    /// Neighbouring columns share a scale.
    #[error("its columns share scales in blocks of {unit}")]
    Columns {
        /// Columns that stay together.
        unit: u64,
    },
    /// The columns are sorted by group, which is not the order of the inputs.
    #[error("its columns are sorted by group (act-order), so no inputs in a row make whole groups")]
    Order,
}

#[derive(Debug)]
enum Stored<'a> {
    Plain(TensorData<'a>),
    Scaled(Scaled<'a>),
    Int4(Int4<'a>),
}

impl Checkpoint {
    /// The weight of a layer such as `model.layers.0.self_attn.q_proj`, stored as `{layer}.weight` or as a tool for
    /// quantisation stores it.
    ///
    /// # Errors
    /// A tensor is missing, or has another type or shape than its companions and `quantization` (of the model's
    /// configuration) ask for.
    pub fn matrix(
        &self,
        layer: &str,
        quantization: Option<&Quantization>,
    ) -> Result<Matrix<'_>, WeightsError> {
        let opener = Opener { checkpoint: self, layer };
        let stored = match packing(quantization) {
            Some(packed) if self.contains(&format!("{layer}.{}", packed.codes)) => {
                Stored::Int4(Int4::open(&opener, packed)?)
            }
            _ => opener.plain_or_scaled(quantization)?,
        };
        Ok(Matrix { stored, window: None })
    }
}

/// The packed format that a checkpoint's quantised layers have.
fn packing(quantization: Option<&Quantization>) -> Option<int4::Format> {
    match *quantization? {
        Quantization::Awq { group_size } => Some(int4::Format::awq(group_size)),
        Quantization::Gptq { group_size, zero_offset } => {
            Some(int4::Format::gptq(group_size, zero_offset))
        }
        Quantization::CompressedTensors(Compressed::Int4 { group_size, symmetric }) => {
            Some(int4::Format::compressed(group_size, symmetric))
        }
        _ => None,
    }
}

impl<'a> Matrix<'a> {
    /// Canonical name of the tensor with the elements or codes.
    #[must_use]
    pub fn name(&self) -> &'a str {
        match &self.stored {
            Stored::Plain(tensor) => tensor.name,
            Stored::Scaled(scaled) => scaled.codes.name,
            Stored::Int4(int4) => int4.codes.name,
        }
    }

    /// `[N, K]`: "out, in". A plain tensor's own shape, whatever its rank.
    #[must_use]
    pub fn shape(&self) -> Vec<u64> {
        if let Some(Window { rows, columns }) = &self.window {
            return vec![rows.len() as u64, columns.len() as u64];
        }
        self.whole_shape()
    }

    fn whole_shape(&self) -> Vec<u64> {
        match &self.stored {
            Stored::Plain(tensor) => tensor.shape.clone(),
            Stored::Scaled(scaled) => scaled.codes.shape.clone(),
            Stored::Int4(int4) => vec![int4.rows as u64, int4.columns as u64],
        }
    }

    /// Which parts it has.
    #[must_use]
    pub fn form(&self) -> MatrixForm {
        match &self.stored {
            Stored::Plain(tensor) => MatrixForm::Plain(tensor.format),
            Stored::Scaled(scaled) => scaled.form.clone(),
            Stored::Int4(int4) => int4.form(self.window.as_ref().map(|window| &window.columns)),
        }
    }

    /// Some rows and columns of a whole matrix, as a matrix.
    ///
    /// # Errors
    /// They share scales with others, or are not in order; see [`SliceError`].
    ///
    /// # Panics
    /// If they leave the matrix, or it is a slice or has another rank than 2.
    pub fn slice(self, rows: Range<u64>, columns: Range<u64>) -> Result<Self, SliceError> {
        let &[n, k] = &self.shape()[..] else { panic!("{:?} is no matrix", self.shape()) };
        let inside = rows.start <= rows.end && rows.end <= n && columns.end <= k;
        assert!(inside && self.window.is_none(), "{rows:?} x {columns:?} of {n} x {k}");
        let whole = |range: &Range<u64>, extent: u64, unit: u64| {
            range.start.is_multiple_of(unit)
                && (range.end.is_multiple_of(unit) || range.end == extent)
        };
        let (row_unit, column_unit) = self.units();
        if !whole(&rows, n, row_unit) {
            return Err(SliceError::Rows { unit: row_unit });
        }
        if columns != (0..k) {
            if matches!(&self.stored, Stored::Int4(int4) if int4.is_sorted_by_group()) {
                return Err(SliceError::Order);
            }
            if !whole(&columns, k, column_unit) {
                return Err(SliceError::Columns { unit: column_unit });
            }
        }
        let window = Window { rows: index(rows.start)..index(rows.end), columns: usizes(columns) };
        Ok(Self { window: Some(window), ..self })
    }

    /// Rows and columns that stay together.
    fn units(&self) -> (u64, u64) {
        match &self.stored {
            Stored::Plain(tensor) => (1, tensor.format.block_elements()),
            Stored::Scaled(scaled) => scaled.units(),
            Stored::Int4(int4) => (1, int4.column_unit()),
        }
    }

    /// The parts of some rows, in the order of [`MatrixForm`]: what the file has is borrowed, what it has otherwise is
    /// made for these rows.
    ///
    /// # Panics
    /// If the rows leave the matrix, or those of [`MatrixForm::Fp8Block`] start at no multiple of 128.
    #[must_use]
    pub fn parts(&self, rows: Range<u64>) -> Vec<Cow<'a, [u8]>> {
        let rows = usizes(rows);
        let (rows, columns) = match &self.window {
            None => (rows, None),
            Some(Window { rows: all, columns }) => {
                assert!(rows.end <= all.len(), "rows {rows:?} of {}", all.len());
                (all.start + rows.start..all.start + rows.end, Some(columns.clone()))
            }
        };
        match &self.stored {
            Stored::Plain(tensor) => vec![plain_rows(tensor, rows, columns)],
            Stored::Scaled(scaled) => scaled.parts(rows, columns.unwrap_or(0..scaled.columns)),
            Stored::Int4(int4) => int4.parts(rows, columns.unwrap_or(0..int4.columns)),
        }
    }

    /// Whether [`parts`](Self::parts) of any rows goes through the whole file tensor, so that it is best asked for all
    /// rows at once.
    #[must_use]
    pub fn is_transposed(&self) -> bool {
        matches!(&self.stored, Stored::Int4(int4) if int4.is_transposed())
    }

    /// The bytes of all its tensors, as they lie in the files; of a slice too, whose bytes may lie anywhere in them.
    #[must_use]
    pub fn stored(&self) -> Vec<&'a [u8]> {
        match &self.stored {
            Stored::Plain(tensor) => vec![tensor.bytes],
            Stored::Scaled(scaled) => vec![scaled.codes.bytes, scaled.scale.bytes],
            Stored::Int4(int4) => int4.stored(),
        }
    }

    /// Bytes that it takes in the files; of a slice, its share of them.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        let bytes = self.stored().iter().map(|bytes| bytes.len() as u64).sum();
        let elements = |shape: &[u64]| shape.iter().map(|&dim| u128::from(dim)).product::<u128>();
        let (own, whole) = (elements(&self.shape()), elements(&self.whole_shape()).max(1));
        u64::try_from(u128::from(bytes) * own / whole).unwrap_or(bytes)
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a row or column of a file in memory")
}

fn usizes(range: Range<u64>) -> Range<usize> {
    index(range.start)..index(range.end)
}

/// Rows of a plain tensor, whole or cut to some columns.
fn plain_rows<'a>(
    tensor: &TensorData<'a>,
    rows: Range<usize>,
    columns: Option<Range<usize>>,
) -> Cow<'a, [u8]> {
    let count = tensor.shape.first().map_or(1, |&rows| index(rows));
    let bytes = rows_of(tensor.bytes, count, rows);
    let Some(columns) = columns else { return Cow::Borrowed(bytes) };
    let at = |column: usize| {
        index(tensor.format.row_bytes(column as u64).expect("slices hold whole blocks"))
    };
    columns_of(bytes, tensor.bytes.len() / count.max(1), at(columns.start)..at(columns.end))
}

/// The bytes `columns` of each row of `row_bytes`: borrowed if that is all of them.
fn columns_of(rows: &[u8], row_bytes: usize, columns: Range<usize>) -> Cow<'_, [u8]> {
    if columns == (0..row_bytes) {
        return Cow::Borrowed(rows);
    }
    let rows = rows.chunks_exact(row_bytes);
    let mut cut = Vec::with_capacity(rows.len() * columns.len());
    rows.for_each(|row| cut.extend_from_slice(&row[columns.clone()]));
    Cow::Owned(cut)
}

/// The rows `rows` of `count` equal ones.
fn rows_of(bytes: &[u8], count: usize, rows: Range<usize>) -> &[u8] {
    let row = bytes.len() / count.max(1);
    &bytes[rows.start * row..rows.end * row]
}

/// Finds the tensors of a layer and checks them.
struct Opener<'a, 'l> {
    checkpoint: &'a Checkpoint,
    layer: &'l str,
}

impl<'a> Opener<'a, '_> {
    fn plain_or_scaled(
        &self,
        quantization: Option<&Quantization>,
    ) -> Result<Stored<'a>, WeightsError> {
        let weight = self.tensor("weight")?;
        let kind = match (weight.format, quantization) {
            (TensorFormat::F8E4M3, Some(&Quantization::Fp8 { blocks }))
            | (
                TensorFormat::F8E4M3,
                Some(&Quantization::CompressedTensors(Compressed::Fp8 { blocks })),
            ) => {
                if blocks {
                    MatrixForm::Fp8Block
                } else {
                    MatrixForm::Fp8Channel
                }
            }
            (
                TensorFormat::I8,
                Some(
                    Quantization::Ascend | Quantization::CompressedTensors(Compressed::Int8 { .. }),
                ),
            ) => MatrixForm::Int8Channel,
            _ => return Ok(Stored::Plain(weight)),
        };
        Ok(Stored::Scaled(Scaled::open(self, weight, kind)?))
    }

    /// A tensor that must be there.
    fn tensor(&self, leaf: &str) -> Result<TensorData<'a>, WeightsError> {
        self.checkpoint.tensor(&format!("{}.{leaf}", self.layer))
    }

    /// A tensor that may be there.
    fn optional(&self, leaf: &str) -> Result<Option<TensorData<'a>>, WeightsError> {
        let there = self.checkpoint.contains(&format!("{}.{leaf}", self.layer));
        if there { self.tensor(leaf).map(Some) } else { Ok(None) }
    }

    fn wrong(
        &self,
        tensor: &TensorData<'_>,
        what: &str,
        value: impl ToString,
        expected: impl Into<String>,
    ) -> WeightsError {
        WeightsError::Tensor {
            name: tensor.name.to_owned(),
            path: self.checkpoint.file_of(tensor.name).to_owned(),
            source: FormatError::invalid(what, value, expected),
        }
    }

    fn check_format(
        &self,
        tensor: &TensorData<'_>,
        allowed: &[TensorFormat],
    ) -> Result<(), WeightsError> {
        if allowed.contains(&tensor.format) {
            return Ok(());
        }
        let names: Vec<String> = allowed.iter().map(|format| format!("{format:?}")).collect();
        Err(self.wrong(tensor, "type", format!("{:?}", tensor.format), names.join(" or ")))
    }

    fn check_shape(&self, tensor: &TensorData<'_>, shape: &[usize]) -> Result<(), WeightsError> {
        if tensor.shape.iter().copied().eq(shape.iter().map(|&dim| dim as u64)) {
            return Ok(());
        }
        let (found, expected) = (format!("{:?}", tensor.shape), format!("{shape:?}"));
        Err(self.wrong(tensor, "shape", found, expected))
    }

    /// The dims of a matrix, neither of them zero.
    fn matrix_dims(&self, tensor: &TensorData<'_>) -> Result<[usize; 2], WeightsError> {
        let dim = |dim: u64| usize::try_from(dim).ok().filter(|&dim| dim > 0);
        let dims: Option<Vec<usize>> = tensor.shape.iter().map(|&d| dim(d)).collect();
        match dims.as_deref() {
            Some(&[rows, columns]) => Ok([rows, columns]),
            _ => Err(self.wrong(tensor, "shape", format!("{:?}", tensor.shape), "a matrix")),
        }
    }
}
