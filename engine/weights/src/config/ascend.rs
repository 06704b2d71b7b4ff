//! `quant_model_description.json`: what msModelSlim (its format AscendV1) says of each tensor that it stores.
//!
//! Taken are layers that are `FLOAT` or `W8A8_DYNAMIC`. Other kinds are refused, and so is what a model must compute besides to be right: inputs
//! that are scaled or rotated first, norms and layers with a shift.

use serde_json::Value;

use super::json::Fields;
use super::{ModelConfig, Quantization};
use crate::error::ConfigError;

const KINDS: &str =
    "FLOAT, W8A8_DYNAMIC (int8 weights with a scale a row, inputs as int8 with a scale a token)";

impl Quantization {
    /// Reads the description of a model that has this configuration.
    pub(crate) fn from_ascend(text: &str, config: &ModelConfig) -> Result<Self, ConfigError> {
        let description: Value = serde_json::from_str(text)?;
        let fields = Fields::new(&description, "")?;
        if let Some(metadata) = fields.get("metadata") {
            let metadata = Fields::new(metadata, "metadata.")?;
            if let Some(rotation) = metadata.get("quarot") {
                let field = metadata.path("quarot");
                return Err(ConfigError::unsupported(&field, rotation, "no rotation of inputs"));
            }
        }
        let entries = description.as_object().into_iter().flatten();
        for (name, kind) in entries.filter(|(name, _)| name.contains('.')) {
            check(name, kind, config)?;
        }
        Ok(Self::Ascend)
    }
}

/// One tensor.
fn check(name: &str, kind: &Value, config: &ModelConfig) -> Result<(), ConfigError> {
    let text = kind.as_str();
    let kind = text.ok_or_else(|| ConfigError::invalid(name, kind, "the kind of a tensor"))?;
    let (layer, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    match (kind, leaf) {
        ("FLOAT" | "W8A8_DYNAMIC", "bias") if has_bias(layer, config) => Ok(()),
        ("FLOAT", "weight") | ("W8A8_DYNAMIC", "weight" | "weight_scale" | "weight_offset") => {
            Ok(())
        }
        ("FLOAT" | "W8A8_DYNAMIC", _) => {
            let supported =
                "weight, weight_scale, weight_offset, and bias where config.json has it";
            Err(ConfigError::unsupported(name, format!("a {leaf}"), supported))
        }
        _ => Err(ConfigError::unsupported(name, kind, KINDS)),
    }
}

fn has_bias(layer: &str, config: &ModelConfig) -> bool {
    match layer.rsplit('.').next() {
        Some("q_proj" | "k_proj" | "v_proj") => config.qkv_bias,
        Some("o_proj") => config.o_bias,
        _ => false,
    }
}
