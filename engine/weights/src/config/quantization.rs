//! `quantization_config`: how the linear layers of a checkpoint are stored.
//!
//! It gives what the tensors cannot tell. Which layers are quantised they do tell, so the lists of exceptions
//! (`modules_to_not_convert`, `ignored_layers`, `ignore`) are not needed.
//!
//! Where weights are i8 and inputs are to be i8 a token at a time, layers compute with both as codes
//! ([`Quantization::rounds_inputs`]): that is what such a model was made for. Inputs of layers in f8e4m3 are not rounded, whatever
//! `activation_scheme` or `input_activations` say. Weights alone are exact in the type of the activations; three bits of mantissa for these would
//! cost accuracy and give nothing that the model needs.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::json::Fields;
use crate::error::ConfigError;

/// The tool or format that made a checkpoint, by the name that `quant_method` and vLLM's `--quantization` have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantMethod {
    /// AutoAWQ.
    Awq,
    /// AutoGPTQ and GPTQModel.
    Gptq,
    /// 8-bit floats, as DeepSeek and Qwen publish them.
    Fp8,
    /// LLM Compressor.
    CompressedTensors,
    /// msModelSlim, by vLLM Ascend's name.
    Ascend,
    /// GGUF files.
    Gguf,
}

impl QuantMethod {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Awq, Self::Gptq, Self::Fp8, Self::CompressedTensors, Self::Ascend, Self::Gguf];
}

impl fmt::Display for QuantMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Awq => "awq",
            Self::Gptq => "gptq",
            Self::Fp8 => "fp8",
            Self::CompressedTensors => "compressed-tensors",
            Self::Ascend => "ascend",
            Self::Gguf => "gguf",
        })
    }
}

impl FromStr for QuantMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|method| method.to_string() == text);
        named.ok_or_else(|| {
            let names = Self::ALL.map(|method| method.to_string()).join(", ");
            format!("{text:?} is not a way to quantise; there are {names}")
        })
    }
}

/// How the quantised layers of a checkpoint are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantization {
    /// `qweight`, `qzeros` and `scales` of 4 bits, packed along the outputs in AWQ's order.
    Awq {
        /// Inputs that share a scale; `None` for all of a row.
        group_size: Option<u64>,
    },
    /// `qweight`, `qzeros`, `scales` and `g_idx` of 4 bits, packed along the inputs.
    Gptq {
        /// As for AWQ.
        group_size: Option<u64>,
        /// What the file's zero points are short of: 1 in the format `gptq`, 0 in `gptq_v2`.
        zero_offset: u8,
    },
    /// `weight` in f8e4m3 and `weight_scale_inv` or `weight_scale`.
    Fp8 {
        /// Whether a scale belongs to 128 × 128 elements; to a row or the whole matrix if not.
        blocks: bool,
    },
    /// LLM Compressor's formats.
    CompressedTensors(Compressed),
    /// msModelSlim's `W8A8_DYNAMIC`: `weight` in i8, `weight_scale`, `weight_offset` of zeros; inputs are rounded to i8.
    Ascend,
}

/// What LLM Compressor stores for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compressed {
    /// `weight_packed` of 4 bits along the inputs, `weight_scale`, `weight_zero_point` unless symmetric, `weight_g_idx`.
    Int4 {
        /// As for AWQ.
        group_size: Option<u64>,
        /// Whether zero is in the middle of the codes.
        symmetric: bool,
    },
    /// `weight` in i8 and `weight_scale`, symmetric.
    Int8 {
        /// Whether inputs are rounded to i8, each token with a scale of its own.
        rounds_inputs: bool,
    },
    /// `weight` in f8e4m3 and `weight_scale`.
    Fp8 {
        /// As for FP8.
        blocks: bool,
    },
}

impl Quantization {
    /// What made it.
    #[must_use]
    pub fn method(&self) -> QuantMethod {
        match self {
            Self::Awq { .. } => QuantMethod::Awq,
            Self::Gptq { .. } => QuantMethod::Gptq,
            Self::Fp8 { .. } => QuantMethod::Fp8,
            Self::CompressedTensors(_) => QuantMethod::CompressedTensors,
            Self::Ascend => QuantMethod::Ascend,
        }
    }

    /// Whether layers with weights of i8 take their inputs as i8, too: `round(x / s)`, `s = max |x| / 127` of each token.
    #[must_use]
    pub fn rounds_inputs(&self) -> bool {
        matches!(
            self,
            Self::Ascend | Self::CompressedTensors(Compressed::Int8 { rounds_inputs: true })
        )
    }

    /// Reads the object under `quantization_config`.
    pub(super) fn read(config: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::new(config, "quantization_config.")?;
        let method = fields.str("quant_method")?;
        let method = method.ok_or_else(|| ConfigError::missing(&fields.path("quant_method")))?;
        match method {
            "awq" => awq(&fields),
            "gptq" => gptq(&fields),
            "fp8" => fp8(&fields),
            "compressed-tensors" => compressed(&fields).map(Self::CompressedTensors),
            other => {
                unsupported(&fields, "quant_method", other, "awq, gptq, fp8, compressed-tensors")
            }
        }
    }
}

fn unsupported<T>(
    fields: &Fields<'_>,
    field: &str,
    value: impl ToString,
    supported: &str,
) -> Result<T, ConfigError> {
    Err(ConfigError::unsupported(&fields.path(field), value, supported))
}

/// Refuses a field that is there and has another value.
fn only<'a>(
    fields: &Fields<'a>,
    field: &str,
    fits: impl Fn(&Value) -> bool,
    supported: &str,
) -> Result<(), ConfigError> {
    match fields.get(field) {
        Some(value) if !fits(value) => unsupported(fields, field, value, supported),
        _ => Ok(()),
    }
}

fn text(value: &Value, allowed: &[&str]) -> bool {
    value.as_str().is_some_and(|text| allowed.iter().any(|a| text.eq_ignore_ascii_case(a)))
}

/// `-1` or none at all: a row is one group.
fn group_size(fields: &Fields<'_>) -> Result<Option<u64>, ConfigError> {
    let Some(value) = fields.get("group_size") else { return Ok(None) };
    if value.as_i64() == Some(-1) {
        return Ok(None);
    }
    match value.as_u64().filter(|&size| size > 0 && size <= 1 << 24) {
        Some(size) => Ok(Some(size)),
        None => Err(ConfigError::invalid(&fields.path("group_size"), value, "-1, or 1 to 2^24")),
    }
}

fn awq(fields: &Fields<'_>) -> Result<Quantization, ConfigError> {
    four_bits(fields)?;
    only(fields, "version", |v| text(v, &["gemm"]), "gemm")?;
    only(fields, "zero_point", |v| v == &Value::Bool(true), "true")?;
    Ok(Quantization::Awq { group_size: group_size(fields)? })
}

fn gptq(fields: &Fields<'_>) -> Result<Quantization, ConfigError> {
    four_bits(fields)?;
    let format = fields.str("checkpoint_format")?.unwrap_or("gptq");
    let zero_offset = match format {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => return unsupported(fields, "checkpoint_format", other, "gptq, gptq_v2"),
    };
    only(fields, "is_marlin_format", |v| v == &Value::Bool(false), "false")?;
    Ok(Quantization::Gptq { group_size: group_size(fields)?, zero_offset })
}

fn four_bits(fields: &Fields<'_>) -> Result<(), ConfigError> {
    match fields.get("bits") {
        None => Err(ConfigError::missing(&fields.path("bits"))),
        Some(bits) if bits.as_u64() == Some(4) => Ok(()),
        Some(bits) => unsupported(fields, "bits", bits, "4"),
    }
}

fn fp8(fields: &Fields<'_>) -> Result<Quantization, ConfigError> {
    only(fields, "fmt", |v| text(v, &["e4m3", "float8_e4m3fn"]), "e4m3")?;
    only(fields, "activation_scheme", |v| text(v, &["dynamic", "static"]), "dynamic, static")?;
    Ok(Quantization::Fp8 { blocks: blocks(fields, "weight_block_size")? })
}

/// Whether there are blocks; their size must be that of the backends' scheme.
fn blocks(fields: &Fields<'_>, field: &str) -> Result<bool, ConfigError> {
    only(fields, field, |v| v == &serde_json::json!([128, 128]), "[128, 128]")?;
    Ok(fields.get(field).is_some())
}

fn compressed(fields: &Fields<'_>) -> Result<Compressed, ConfigError> {
    const FORMATS: [&str; 5] =
        ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense"];
    only(fields, "format", |v| text(v, &FORMATS), &FORMATS.join(", "))?;
    only(fields, "quantization_status", |v| text(v, &["compressed", "frozen"]), "compressed")?;
    let sparse = |v: &Value| v.as_object().is_some_and(serde_json::Map::is_empty);
    only(fields, "sparsity_config", sparse, "none")?;
    let groups = fields.get("config_groups");
    let groups = groups.ok_or_else(|| ConfigError::missing(&fields.path("config_groups")))?;
    let expected = || ConfigError::invalid(&fields.path("config_groups"), groups, "an object");
    let mut found = None;
    for group in groups.as_object().ok_or_else(expected)?.values() {
        let group = Fields::new(group, "quantization_config.config_groups.*.")?;
        let weights = group.get("weights").unwrap_or(&Value::Null);
        let weights = Fields::new(weights, "quantization_config.config_groups.*.weights.")?;
        let mut stored = compressed_weights(&weights)?;
        if let Compressed::Int8 { rounds_inputs } = &mut stored {
            *rounds_inputs = compressed_inputs(&group)?;
        }
        if *found.get_or_insert(stored) != stored {
            return unsupported(fields, "config_groups", groups, "groups that are stored alike");
        }
    }
    found.ok_or_else(|| ConfigError::invalid(&fields.path("config_groups"), groups, "a group"))
}

fn compressed_weights(fields: &Fields<'_>) -> Result<Compressed, ConfigError> {
    let bits = fields.required_size("num_bits")?;
    let symmetric = fields.bool("symmetric")?.unwrap_or(true);
    let strategy = fields.str("strategy")?.unwrap_or("tensor");
    let kind = fields.str("type")?.unwrap_or("int");
    match (kind, bits, strategy, symmetric) {
        ("int", 4, "group", _) => {
            Ok(Compressed::Int4 { group_size: group_size(fields)?, symmetric })
        }
        ("int", 4, "channel", _) => Ok(Compressed::Int4 { group_size: None, symmetric }),
        ("int", 8, "channel" | "tensor", true) => Ok(Compressed::Int8 { rounds_inputs: false }),
        ("float", 8, "channel" | "tensor", true) => Ok(Compressed::Fp8 { blocks: false }),
        ("float", 8, "block", true) => {
            only(fields, "block_structure", is_block_128, "[128, 128]")?;
            Ok(Compressed::Fp8 { blocks: true })
        }
        _ => unsupported(
            fields,
            "num_bits",
            format!("{bits} of type {kind}, strategy {strategy}, symmetric {symmetric}"),
            "int 4 by group or channel; symmetric int 8 by channel or tensor; symmetric float 8 by channel, tensor or block",
        ),
    }
}

/// Whether the inputs of layers with weights of i8 are rounded.
fn compressed_inputs(group: &Fields<'_>) -> Result<bool, ConfigError> {
    let Some(inputs) = group.get("input_activations") else { return Ok(false) };
    let fields = Fields::new(inputs, "quantization_config.config_groups.*.input_activations.")?;
    let bits = fields.required_size("num_bits")?;
    let kind = fields.str("type")?.unwrap_or("int");
    let strategy = fields.str("strategy")?.unwrap_or("tensor");
    let symmetric = fields.bool("symmetric")?.unwrap_or(true);
    let dynamic = fields.get("dynamic") == Some(&Value::Bool(true));
    if (bits, kind, strategy, symmetric, dynamic) == (8, "int", "token", true, true) {
        return Ok(true);
    }
    unsupported(
        group,
        "input_activations",
        format!(
            "{bits} of type {kind}, strategy {strategy}, symmetric {symmetric}, dynamic {dynamic}"
        ),
        "none, or dynamic symmetric int 8 by token (of layers with int 8 weights)",
    )
}

/// Older files have the sizes as a text.
fn is_block_128(value: &Value) -> bool {
    value == &serde_json::json!([128, 128]) || value == "128x128"
}
