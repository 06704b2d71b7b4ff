//! A linear layer's weight in the parts that backends take, whatever tool quantised it.
//!
//! | stored | form | parts of `rows` rows |
//! |---|---|---|
//! | floats, GGUF blocks | [`MatrixForm::Plain`] | the file's bytes |
//! | f8e4m3 `weight`, `weight_scale_inv` or `weight_scale` | [`MatrixForm::Fp8Block`], [`MatrixForm::Fp8Channel`] | codes; scales f32 |
//! | i8 `weight`, `weight_scale` | [`MatrixForm::Int8Channel`] | codes; scales f32 |
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

/// A linear layer's weight, opened and checked.
#[derive(Debug)]
pub struct Matrix<'a> {
    stored: Stored<'a>,
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
        Ok(Matrix { stored })
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
            Stored::Int4(int4) => int4.form(),
        }
    }

    /// The parts of some rows, in the order of [`MatrixForm`]: what the file has is borrowed, what it has otherwise is
    /// made for these rows.
    ///
    /// # Panics
    /// If the rows leave the matrix, or those of [`MatrixForm::Fp8Block`] start at no multiple of 128.
    #[must_use]
    pub fn parts(&self, rows: Range<u64>) -> Vec<Cow<'a, [u8]>> {
        let row = |row| usize::try_from(row).expect("a row of a file in memory");
        let rows = row(rows.start)..row(rows.end);
        match &self.stored {
            Stored::Plain(tensor) => {
                let count = tensor.shape.first().map_or(1, |&rows| row(rows));
                vec![Cow::Borrowed(rows_of(tensor.bytes, count, rows))]
            }
            Stored::Scaled(scaled) => scaled.parts(rows),
            Stored::Int4(int4) => int4.parts(rows),
        }
    }

    /// Whether [`parts`](Self::parts) of any rows goes through the whole file tensor, so that it is best asked for all
    /// rows at once.
    #[must_use]
    pub fn is_transposed(&self) -> bool {
        matches!(&self.stored, Stored::Int4(int4) if int4.is_transposed())
    }

    /// The bytes of all its tensors, as they lie in the files.
    #[must_use]
    pub fn stored(&self) -> Vec<&'a [u8]> {
        match &self.stored {
            Stored::Plain(tensor) => vec![tensor.bytes],
            Stored::Scaled(scaled) => vec![scaled.codes.bytes, scaled.scale.bytes],
            Stored::Int4(int4) => int4.stored(),
        }
    }
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
            (TensorFormat::I8, Some(Quantization::CompressedTensors(Compressed::Int8))) => {
                MatrixForm::Int8Channel
            }
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
