//! The checkpoint as the models ask it: which form a tensor has, and whether its shape is right.

use halyard_core::{DType, Scheme};
use halyard_weights::{Checkpoint, TensorFormat};

use crate::error::LoadError;

/// A checkpoint.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> Source<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// The tensor's format, after a look at its shape.
    pub(crate) fn check_shape(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<TensorFormat, LoadError> {
        let tensor = self.checkpoint.tensor(name)?;
        let expected: Vec<u64> = expected.iter().map(|&dim| dim as u64).collect();
        if tensor.shape != expected {
            return Err(LoadError::TensorShape {
                tensor: name.to_owned(),
                found: tensor.shape,
                expected,
            });
        }
        Ok(tensor.format)
    }

    /// How backends call the form of a matrix.
    pub(crate) fn scheme(&self, name: &str, shape: &[usize]) -> Result<(Scheme, DType), LoadError> {
        let format = self.check_shape(name, shape)?;
        Ok(match format {
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
            other => {
                return Err(LoadError::TensorFormat {
                    tensor: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        })
    }
}
