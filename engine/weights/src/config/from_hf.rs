//! `config.json` and `generation_config.json` as Hugging Face writes them.

use serde_json::Value;

use super::json::Fields;
use super::{
    Activation, Family, GenerationDefaults, LayerConfig, MAX_LAYERS, MlpKind, ModelConfig, Moe,
    Quantization, RopeConfig, RopeScaling, RopeStyle, check_size, without_repeats, yarn_mscale,
};
use crate::error::ConfigError;
use crate::format::TensorFormat;

const SUPPORTED_MODELS: &str = "llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe";

impl ModelConfig {
    /// Reads a `config.json` and, where there is one, a `generation_config.json`.
    ///
    /// # Errors
    /// The text is not JSON, a field is missing or has an impossible value, or the model needs something that is
    /// not supported: the error names the field, its value and what is supported.
    pub fn from_json(config: &str, generation: Option<&str>) -> Result<Self, ConfigError> {
        let config: Value = serde_json::from_str(config)?;
        let fields = Fields::new(&config, "")?;
        let generation = generation.map(serde_json::from_str::<Value>).transpose()?;
        let generation = generation
            .as_ref()
            .map(|value| Fields::new(value, "generation_config."))
            .transpose()?;
        read(&fields, generation.as_ref())
    }
}

fn read(fields: &Fields<'_>, generation: Option<&Fields<'_>>) -> Result<ModelConfig, ConfigError> {
    let family = family(fields)?;
    if fields.bool("mlp_bias")? == Some(true) {
        return Err(ConfigError::unsupported("mlp_bias", true, "false"));
    }
    let hidden_size = fields.required_size("hidden_size")?;
    let num_attention_heads = fields.required_size("num_attention_heads")?;
    let num_hidden_layers = fields.required_size("num_hidden_layers")?;
    check_size("num_hidden_layers", num_hidden_layers, MAX_LAYERS)?;
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
    };
    let max_position_embeddings = fields.required_size("max_position_embeddings")?;
    let attention_bias = fields.bool("attention_bias")?.unwrap_or(false);
    let qwen2 = matches!(family, Family::Qwen2 | Family::Qwen2Moe);
    let default_eps = if family == Family::Mixtral { 1e-5 } else { 1e-6 };
    let mut eos_token_ids = match generation {
        Some(generation) => generation.token_ids("eos_token_id")?,
        None => Vec::new(),
    };
    eos_token_ids.extend(fields.token_ids("eos_token_id")?);
    ModelConfig {
        family,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: fields.size("num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(default_eps),
        rope: rope(fields, family, head_dim, max_position_embeddings)?,
        layers: layers(fields, family, num_hidden_layers)?,
        qkv_bias: qwen2 || attention_bias,
        o_bias: !qwen2 && attention_bias,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        tie_word_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
        hidden_act: activation(fields)?,
        dtype: dtype(fields)?,
        quantization: fields.get("quantization_config").map(Quantization::read).transpose()?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: without_repeats(eos_token_ids),
        generation: generation.map_or(Ok(GenerationDefaults::default()), generation_defaults)?,
    }
    .check()
}

fn family(fields: &Fields<'_>) -> Result<Family, ConfigError> {
    Ok(match fields.str("model_type")?.ok_or_else(|| ConfigError::missing("model_type"))? {
        "llama" => Family::Llama,
        "mistral" => Family::Mistral,
        "mixtral" => Family::Mixtral,
        "qwen2" => Family::Qwen2,
        "qwen2_moe" => Family::Qwen2Moe,
        "qwen3" => Family::Qwen3,
        "qwen3_moe" => Family::Qwen3Moe,
        other => return Err(ConfigError::unsupported("model_type", other, SUPPORTED_MODELS)),
    })
}

fn activation(fields: &Fields<'_>) -> Result<Activation, ConfigError> {
    Ok(match fields.str("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Activation::Silu,
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        other => {
            return Err(ConfigError::unsupported(
                "hidden_act",
                other,
                "silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh",
            ));
        }
    })
}

fn dtype(fields: &Fields<'_>) -> Result<Option<TensorFormat>, ConfigError> {
    let field = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(name) = fields.str(field)? else { return Ok(None) };
    Ok(Some(match name {
        "float32" => TensorFormat::F32,
        "float16" => TensorFormat::F16,
        "bfloat16" => TensorFormat::BF16,
        other => {
            return Err(ConfigError::unsupported(field, other, "float32, float16, bfloat16"));
        }
    }))
}

fn layers(
    fields: &Fields<'_>,
    family: Family,
    num_layers: usize,
) -> Result<Vec<LayerConfig>, ConfigError> {
    let windows = sliding_windows(fields, family, num_layers)?;
    let dense = MlpKind::Dense { intermediate_size: fields.required_size("intermediate_size")? };
    let moe = moe(fields, family)?;
    let step = fields.size("decoder_sparse_step")?.unwrap_or(1);
    if moe.is_some() && step == 0 {
        return Err(ConfigError::invalid("decoder_sparse_step", step, "at least 1"));
    }
    let mlp_only = fields.array("mlp_only_layers")?.unwrap_or_default();
    let layer = |(index, sliding_window): (usize, Option<usize>)| {
        let mlp = match moe {
            Some(moe) if family == Family::Mixtral => MlpKind::Moe(moe),
            Some(moe)
                if (index + 1).is_multiple_of(step)
                    && !mlp_only.iter().any(|only| only.as_u64() == Some(index as u64)) =>
            {
                MlpKind::Moe(moe)
            }
            _ => dense,
        };
        LayerConfig { sliding_window, mlp }
    };
    Ok(windows.into_iter().enumerate().map(layer).collect())
}

/// Qwen slides from layer `max_window_layers` on, and only if `use_sliding_window`; Mistral in all layers.
fn sliding_windows(
    fields: &Fields<'_>,
    family: Family,
    num_layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let qwen =
        matches!(family, Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 | Family::Qwen3Moe);
    let used = match family {
        Family::Llama => false,
        _ if qwen => fields.bool("use_sliding_window")?.unwrap_or(false),
        _ => true,
    };
    let window = fields.size("sliding_window")?.filter(|_| used);
    if let Some(types) = fields.array("layer_types")? {
        if types.len() != num_layers {
            return Err(ConfigError::invalid(
                "layer_types",
                format!("{} entries", types.len()),
                format!("{num_layers}, one a layer"),
            ));
        }
        return types.iter().map(|kind| window_of_type(kind, window)).collect();
    }
    let first = match family {
        Family::Qwen2 | Family::Qwen2Moe | Family::Qwen3 => {
            fields.size("max_window_layers")?.unwrap_or(28)
        }
        _ => 0,
    };
    Ok((0..num_layers).map(|layer| window.filter(|_| layer >= first)).collect())
}

fn window_of_type(kind: &Value, window: Option<usize>) -> Result<Option<usize>, ConfigError> {
    match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => match window {
            Some(window) => Ok(Some(window)),
            None => Err(ConfigError::missing("sliding_window")),
        },
        _ => {
            Err(ConfigError::unsupported("layer_types", kind, "full_attention, sliding_attention"))
        }
    }
}

fn moe(fields: &Fields<'_>, family: Family) -> Result<Option<Moe>, ConfigError> {
    if family == Family::Mixtral {
        return Ok(Some(Moe {
            num_experts: fields.required_size("num_local_experts")?,
            top_k: fields.required_size("num_experts_per_tok")?,
            intermediate_size: fields.required_size("intermediate_size")?,
            norm_topk_prob: true,
            shared_intermediate_size: None,
        }));
    }
    if !matches!(family, Family::Qwen2Moe | Family::Qwen3Moe) {
        return Ok(None);
    }
    let num_experts = fields.required_size("num_experts")?;
    if num_experts == 0 {
        return Ok(None);
    }
    let shared_intermediate_size = match family {
        Family::Qwen2Moe => Some(fields.required_size("shared_expert_intermediate_size")?),
        _ => None,
    };
    Ok(Some(Moe {
        num_experts,
        top_k: fields.required_size("num_experts_per_tok")?,
        intermediate_size: fields.required_size("moe_intermediate_size")?,
        norm_topk_prob: fields.bool("norm_topk_prob")?.unwrap_or(false),
        shared_intermediate_size,
    }))
}

fn rope(
    fields: &Fields<'_>,
    family: Family,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeConfig, ConfigError> {
    // Newer files keep theta and scaling together in `rope_parameters`.
    let scaling = match (fields.get("rope_parameters"), fields.get("rope_scaling")) {
        (Some(value), _) => Some(Fields::new(value, "rope_parameters.")?),
        (None, Some(value)) => Some(Fields::new(value, "rope_scaling.")?),
        (None, None) => None,
    };
    let nested_theta = scaling.as_ref().map_or(Ok(None), |fields| fields.number("rope_theta"))?;
    let default_theta = if family == Family::Mixtral { 1e6 } else { 1e4 };
    let theta = fields.number("rope_theta")?.or(nested_theta).unwrap_or(default_theta);
    match fields.number("partial_rotary_factor")? {
        None => {}
        Some(factor) if (factor - 1.0).abs() < f64::EPSILON => {}
        Some(factor) => {
            return Err(ConfigError::unsupported("partial_rotary_factor", factor, "1"));
        }
    }
    let scaling = match scaling {
        Some(fields) => rope_scaling(&fields, max_positions)?,
        None => RopeScaling::None,
    };
    Ok(RopeConfig { theta, dim: head_dim, style: RopeStyle::Neox, scaling })
}

fn rope_scaling(fields: &Fields<'_>, max_positions: usize) -> Result<RopeScaling, ConfigError> {
    let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
    let original = fields.size("original_max_position_embeddings")?;
    Ok(match fields.str(key)?.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: fields.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: fields.required_number("factor")?,
            low_freq_factor: fields.required_number("low_freq_factor")?,
            high_freq_factor: fields.required_number("high_freq_factor")?,
            original_max_position_embeddings: original.ok_or_else(|| {
                ConfigError::missing(&fields.path("original_max_position_embeddings"))
            })?,
        },
        "yarn" => {
            let factor = fields.required_number("factor")?;
            RopeScaling::Yarn {
                factor,
                beta_fast: fields.number("beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.number("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: original.unwrap_or(max_positions),
                attention_factor: yarn_attention_factor(fields, factor)?,
                truncate: fields.bool("truncate")?.unwrap_or(true),
            }
        }
        other => {
            return Err(ConfigError::unsupported(
                &fields.path(key),
                other,
                "default, linear, llama3, yarn",
            ));
        }
    })
}

fn yarn_attention_factor(fields: &Fields<'_>, factor: f64) -> Result<f64, ConfigError> {
    if let Some(given) = fields.number("attention_factor")? {
        return Ok(given);
    }
    let nonzero = |value: Option<f64>| value.filter(|v| *v != 0.0);
    let mscale = nonzero(fields.number("mscale")?);
    let mscale_all_dim = nonzero(fields.number("mscale_all_dim")?);
    Ok(match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all),
        _ => yarn_mscale(factor, 1.0),
    })
}

fn generation_defaults(fields: &Fields<'_>) -> Result<GenerationDefaults, ConfigError> {
    Ok(GenerationDefaults {
        temperature: fields.number("temperature")?,
        top_p: fields.number("top_p")?,
        top_k: fields.u32("top_k")?,
        min_p: fields.number("min_p")?,
        repetition_penalty: fields.number("repetition_penalty")?,
        max_new_tokens: fields.u32("max_new_tokens")?,
    })
}
