//! The checkpoint as the models ask it: which form a tensor has, and whether its shape is right.

use std::{cell::RefCell, fmt, sync::Arc};

use halyard_core::{DType, FP8_BLOCK, Role, Scheme, WEIGHT_PERM, WEIGHT_ZERO, WeightDesc};
use halyard_weights::{
    Checkpoint, MatrixForm, ModelConfig, Quantization, SliceError, TensorFormat,
};

use super::{Layer, Rank, Share};
use crate::error::LoadError;

/// ACT_QUANT: inputs are rounded to i8, each token with a scale of its own.
const INT8_TOKEN: i64 = 1;

/// A checkpoint.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Option<Quantization>,
    fallback: Option<Fallback>,
    /// What the fallback replaced, each once.
    replaced: RefCell<Vec<Replaced>>,
}

/// Makes weights dense that a device or a rank cannot have as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fallback {
    /// A bit for each scheme that the device has, by its number. `None`: it does not say, and is not second-guessed.
    pub(crate) schemes: Option<u64>,
    /// What the dense elements are.
    pub(crate) dtype: DType,
}

/// Weights that became dense.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Replaced {
    pub(crate) scheme: Scheme,
    pub(crate) why: String,
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        config: &ModelConfig,
        fallback: Option<Fallback>,
    ) -> Self {
        let replaced = RefCell::default();
        Self { checkpoint, quantization: config.quantization, fallback, replaced }
    }

    /// What weights are to become dense.
    pub(crate) fn replaced(&self) -> Vec<Replaced> {
        self.replaced.borrow().clone()
    }

    /// Looks for a vector.
    pub(crate) fn check_vector(&self, name: &str, len: usize) -> Result<(), LoadError> {
        check_shape(name, self.checkpoint.tensor(name)?.shape, &[len])
    }

    /// The form of the wanted part of a layer's weight, after a look at the whole one's shape.
    pub(crate) fn matrix(&self, layer: &Layer, rank: Rank) -> Result<Form, LoadError> {
        let Layer { name, rows, columns } = layer;
        let matrix = self.checkpoint.matrix(name, self.quantization.as_ref())?;
        check_shape(matrix.name(), matrix.shape(), &[rows.whole, columns.whole])?;
        let tensor = matrix.name();
        let refused = |found| LoadError::TensorFormat { tensor: tensor.to_owned(), found };
        let form_of = |form| self.form_of(form).map_err(refused);
        let whole = form_of(matrix.form())?;
        let form = match matrix.slice(rows.file_range(), columns.file_range()) {
            Ok(part) => form_of(part.form())?,
            Err(error) => {
                let why = format!("{}: {error}", extents(error, *rows, *columns));
                let Some(Fallback { dtype, .. }) = self.fallback else {
                    let why = format!("{why} (--allow-dequant makes it plain numbers)");
                    let (tensor, works) = (tensor.to_owned(), Vec::new());
                    return Err(LoadError::Indivisible { tensor, why, ranks: rank.world, works });
                };
                let why = format!("{} ranks cannot share them as they are", rank.world);
                self.replace(whole.scheme, why);
                return Ok(Form::plain(Scheme::DENSE, dtype));
            }
        };
        match self.fallback {
            Some(fallback) if !fallback.has(form.scheme) => {
                self.replace(form.scheme, "the device lacks them".into());
                Ok(Form::plain(Scheme::DENSE, fallback.dtype))
            }
            _ => Ok(form),
        }
    }

    /// `Err` has the name of what no scheme is for.
    fn form_of(&self, form: MatrixForm) -> Result<Form, String> {
        let form = Form::of(form)?;
        let rounds = self.quantization.is_some_and(|quantization| quantization.rounds_inputs());
        let act_quant = if rounds && form.scheme == Scheme::INT8_CHANNEL { INT8_TOKEN } else { 0 };
        Ok(Form { act_quant, ..form })
    }

    fn replace(&self, scheme: Scheme, why: String) {
        let replaced = Replaced { scheme, why };
        let mut all = self.replaced.borrow_mut();
        if !all.contains(&replaced) {
            all.push(replaced);
        }
    }
}

/// What of a layer was wanted and cannot be had.
fn extents(error: SliceError, rows: Share, columns: Share) -> String {
    let (what, share) = match error {
        SliceError::Rows { .. } => ("rows", rows),
        _ => ("columns", columns),
    };
    let Share { start, len, whole } = share;
    format!("a rank would have {what} {start} to {} of {whole}", start + len)
}

impl Fallback {
    fn has(&self, scheme: Scheme) -> bool {
        let bit = 1u64.checked_shl(scheme.0);
        self.schemes.is_none_or(|schemes| bit.is_some_and(|bit| schemes & bit != 0))
    }
}

fn check_shape(tensor: &str, found: Vec<u64>, expected: &[usize]) -> Result<(), LoadError> {
    let expected: Vec<u64> = expected.iter().map(|&dim| dim as u64).collect();
    if found == expected {
        return Ok(());
    }
    Err(LoadError::TensorShape { tensor: tensor.to_owned(), found, expected })
}

/// How a weight goes to a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Form {
    pub(crate) scheme: Scheme,
    /// Of dense elements, or of scales.
    dtype: DType,
    group_size: u32,
    flags: u32,
    /// Which input each column belongs to, if not in order.
    perm: Option<Arc<[i32]>>,
    /// What a layer does with its inputs: ACT_QUANT of its operation. 0 of weights that became dense, whose inputs are not rounded.
    pub(crate) act_quant: i64,
}

impl Form {
    /// `Err` has the name of what no scheme is for.
    fn of(form: MatrixForm) -> Result<Self, String> {
        let (scheme, dtype) = match form {
            MatrixForm::Plain(format) => plain(format).ok_or_else(|| format!("{format:?}"))?,
            MatrixForm::Fp8Block => (Scheme::FP8_BLOCK, DType::F32),
            MatrixForm::Fp8Channel => (Scheme::FP8_CHANNEL, DType::F32),
            MatrixForm::Int8Channel => (Scheme::INT8_CHANNEL, DType::F32),
            MatrixForm::Int4Group { group_size, scale, zero, perm } => {
                let (_, dtype) = plain(scale).ok_or_else(|| format!("scales of {scale:?}"))?;
                let flag = |there, flag| if there { flag } else { 0 };
                let flags = flag(zero, WEIGHT_ZERO) | flag(perm.is_some(), WEIGHT_PERM);
                let scheme = Scheme::INT4_GROUP;
                return Ok(Self { group_size, flags, perm, ..Self::plain(scheme, dtype) });
            }
            other => return Err(format!("{other:?}")),
        };
        Ok(Self::plain(scheme, dtype))
    }

    /// A form of which there is only one.
    fn plain(scheme: Scheme, dtype: DType) -> Self {
        let WeightDesc { group_size, flags, .. } = WeightDesc::linear(scheme, dtype, 0, 0);
        Self { scheme, dtype, group_size, flags, perm: None, act_quant: 0 }
    }

    /// A linear weight `[n, k]` of this form.
    pub(crate) fn linear(&self, n: usize, k: usize) -> WeightDesc<'static> {
        let desc = WeightDesc::linear(self.scheme, self.dtype, n as u64, k as u64);
        WeightDesc { group_size: self.group_size, flags: self.flags, ..desc }
    }

    /// The same as an embedding.
    pub(crate) fn embedding(&self, n: usize, k: usize) -> WeightDesc<'static> {
        WeightDesc { role: Role::EMBEDDING.0, ..self.linear(n, k) }
    }

    /// The same for each of `groups` experts.
    pub(crate) fn experts(&self, groups: u32, n: usize, k: usize) -> WeightDesc<'static> {
        WeightDesc { role: Role::EXPERTS.0, groups, ..self.linear(n, k) }
    }

    /// Whether a weight of this form may go on with one of another after `rows` rows.
    pub(crate) fn joins(&self, other: &Self, rows: usize) -> bool {
        self == other && self.may_start_at(rows)
    }

    /// Scales of blocks of rows must not straddle two matrices.
    pub(crate) fn may_start_at(&self, row: usize) -> bool {
        self.scheme != Scheme::FP8_BLOCK || (row as u64).is_multiple_of(FP8_BLOCK)
    }

    /// Alike but for the order of columns, which each expert may have for itself.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let own = Self { perm: self.perm.clone(), ..other.clone() };
        *self == own
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.scheme)?;
        if self.act_quant != 0 {
            write!(f, " with rounded inputs")?;
        }
        if self.scheme != Scheme::INT4_GROUP {
            return Ok(());
        }
        let has = |flag| if self.flags & flag == 0 { "no" } else { "with" };
        let (zeros, perm) = (has(WEIGHT_ZERO), has(WEIGHT_PERM));
        write!(
            f,
            " of {}, {} scales, {zeros} zeros, {perm} permutation",
            self.group_size, self.dtype
        )
    }
}

/// The scheme of tensors that go to a backend as they are.
fn plain(format: TensorFormat) -> Option<(Scheme, DType)> {
    Some(match format {
        TensorFormat::F32 => (Scheme::DENSE, DType::F32),
        TensorFormat::F16 => (Scheme::DENSE, DType::F16),
        TensorFormat::BF16 => (Scheme::DENSE, DType::BF16),
        TensorFormat::Q4_0 => (Scheme::GGUF_Q4_0, DType::NONE),
        TensorFormat::Q4_1 => (Scheme::GGUF_Q4_1, DType::NONE),
        TensorFormat::Q5_0 => (Scheme::GGUF_Q5_0, DType::NONE),
        TensorFormat::Q5_1 => (Scheme::GGUF_Q5_1, DType::NONE),
        TensorFormat::Q8_0 => (Scheme::GGUF_Q8_0, DType::NONE),
        TensorFormat::Q2_K => (Scheme::GGUF_Q2_K, DType::NONE),
        TensorFormat::Q3_K => (Scheme::GGUF_Q3_K, DType::NONE),
        TensorFormat::Q4_K => (Scheme::GGUF_Q4_K, DType::NONE),
        TensorFormat::Q5_K => (Scheme::GGUF_Q5_K, DType::NONE),
        TensorFormat::Q6_K => (Scheme::GGUF_Q6_K, DType::NONE),
        TensorFormat::IQ4_NL => (Scheme::GGUF_IQ4_NL, DType::NONE),
        _ => return None,
    })
}
