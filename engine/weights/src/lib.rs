//! Model configurations and weight files: `config.json`, safetensors, GGUF.
//!
//! [`Checkpoint`] opens a model's files by `mmap` and finds tensors under Hugging Face's names, whatever the
//! file format; [`Matrix`] is a linear layer's weight in the parts that backends take, whatever tool quantised it;
//! [`ModelConfig`] says what the decoder computes; [`rope_table`] and [`dequantize`] turn the rest
//! of a file into numbers.
//!
//! ```no_run
//! use halyard_weights::Checkpoint;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/llama".as_ref())?;
//! let config = checkpoint.config()?;
//! let norm = checkpoint.tensor("model.norm.weight")?;
//! assert_eq!(norm.shape, [config.hidden_size as u64]);
//! let values: Vec<f32> = norm.dequantize()?;
//! # Ok(()) }
//! ```
//!
//! Every parser takes hostile input: counts are checked against the bytes that are really there before anything
//! is allocated, and a mistake in a file is an error that says where.

mod checkpoint;
mod config;
mod dequant;
mod error;
mod format;
pub mod gguf;
mod mapping;
mod matrix;
mod names;
mod open;
mod rope;
mod safetensors_file;

pub use checkpoint::{Checkpoint, TensorData};
pub use config::{
    Activation, Compressed, Family, GenerationDefaults, LayerConfig, MlpKind, ModelConfig, Moe,
    QuantMethod, Quantization, RopeConfig, RopeScaling, RopeStyle,
};
pub use dequant::{DequantError, dequantize, dequantize_into};
pub use error::{ConfigError, FormatError, WeightsError};
pub use format::TensorFormat;
pub use matrix::{Matrix, MatrixForm, SliceError};
pub use rope::{inverse_frequencies, rope_table};
pub use safetensors_file::{SafetensorsEntry, parse_safetensors};
