//! Why a model could not be loaded.

use halyard_weights::{DequantError, WeightsError};

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model's files are missing something or are malformed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A vector could not be read as numbers.
    #[error("tensor {tensor} cannot be read")]
    Dequant {
        /// Its name.
        tensor: String,
        /// Why.
        #[source]
        source: DequantError,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {tensor} has shape {found:?}, the configuration says {expected:?}")]
    TensorShape {
        /// Its name.
        tensor: String,
        /// As in the file.
        found: Vec<u64>,
        /// As the configuration says.
        expected: Vec<u64>,
    },
    /// A matrix is stored in a form that no backend takes.
    #[error(
        "tensor {tensor} is stored as {found}; supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, \
         Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_NL, and with a quantization_config of \
         config.json what awq, gptq, fp8 and compressed-tensors store"
    )]
    TensorFormat {
        /// Its name.
        tensor: String,
        /// The form.
        found: String,
    },
    /// The experts of a layer are not all stored alike, so they cannot be one weight.
    #[error("layer {layer} is stored as {found}, its mixture's experts need {expected}")]
    MixedExperts {
        /// The expert's layer.
        layer: String,
        /// Its form.
        found: String,
        /// That of the others.
        expected: String,
    },
    /// An option has a value that cannot work.
    #[error("{option}: {message}")]
    Option {
        /// As the command line spells it.
        option: &'static str,
        /// What was given and what is allowed.
        message: String,
    },
    /// A tensor cannot be divided among the ranks.
    #[error(
        "tensor_parallel_size: {ranks} ranks cannot share {tensor}: {why}; {}",
        works_with(.works)
    )]
    Indivisible {
        /// The layer.
        tensor: String,
        /// What does not come out even, with the numbers.
        why: String,
        /// How many ranks were asked for.
        ranks: usize,
        /// How many the model could have.
        works: Vec<usize>,
    },
    /// A rank could not load its part.
    #[error("rank {rank} ({device}) could not load its part of the model")]
    Rank {
        /// Which.
        rank: usize,
        /// Its device.
        device: String,
        /// Why.
        #[source]
        source: Box<LoadError>,
    },
    /// The process of a rank has failed or is gone.
    #[error("{0}")]
    Process(String),
    /// The backend lacks kernels that the model needs.
    #[error("the device {device} cannot run this model: {}", missing.join("; "))]
    Unsupported {
        /// The device, for people.
        device: String,
        /// Each missing operation with the backend's reason.
        missing: Vec<String>,
    },
    /// The device's memory is too small.
    #[error("{0}")]
    Memory(String),
    /// The device failed.
    #[error("{action} failed")]
    Device {
        /// What was being done.
        action: String,
        /// The device's error.
        #[source]
        source: halyard_core::DeviceError,
    },
    /// A step without any work failed.
    #[error("launching a step of no tokens failed: {0}")]
    Step(String),
    /// Decode steps could not be captured.
    #[error("capturing decode steps in graphs failed (--enforce-eager does without): {0}")]
    Capture(String),
    /// A thread of the engine could not be started.
    #[error("a thread of the engine could not be started")]
    Thread(#[source] std::io::Error),
}

fn works_with(works: &[usize]) -> String {
    let all: Vec<String> = works.iter().map(ToString::to_string).collect();
    match all.len() {
        0 => "no number of ranks works".into(),
        1 => format!("{} works", all[0]),
        _ => format!("{} work", all.join(", ")),
    }
}
