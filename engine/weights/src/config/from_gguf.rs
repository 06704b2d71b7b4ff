//! The same configuration from GGUF metadata and the tensor table.

use std::collections::HashMap;

use super::{
    Activation, Family, GenerationDefaults, LayerConfig, MAX_LAYERS, MlpKind, ModelConfig, Moe,
    RopeConfig, RopeScaling, RopeStyle, check_size, without_repeats, yarn_mscale,
};
use crate::error::ConfigError;
use crate::format::TensorFormat;
use crate::gguf::{GgufTensor, Metadata};

const SUPPORTED_ARCHITECTURES: &str = "llama, qwen2, qwen2moe, qwen3, qwen3moe";

/// Keys that change what a decoder computes and that no supported family has: better refused than ignored.
const UNSUPPORTED_KEYS: [&str; 6] = [
    "attention.scale",
    "attention.clamp_kqv",
    "attn_logit_softcapping",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
];

impl ModelConfig {
    /// Reads the configuration out of a GGUF's metadata and tensor table (of all parts, if it is split).
    ///
    /// `rope_factors` are the values of the tensor `rope_freqs.weight`, if there is one.
    ///
    /// # Errors
    /// A key is missing or has an impossible value, or the model needs something that is not supported.
    pub fn from_gguf<'a>(
        metadata: Metadata<'a>,
        tensors: impl IntoIterator<Item = &'a GgufTensor>,
        rope_factors: Option<Vec<f32>>,
    ) -> Result<Self, ConfigError> {
        let architecture = metadata
            .str("general.architecture")
            .ok_or_else(|| ConfigError::missing("general.architecture"))?;
        let tensors = tensors.into_iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        Source { metadata, tensors, architecture }.read(rope_factors)
    }
}

struct Source<'a> {
    metadata: Metadata<'a>,
    tensors: HashMap<&'a str, &'a GgufTensor>,
    architecture: &'a str,
}

impl Source<'_> {
    fn read(&self, rope_factors: Option<Vec<f32>>) -> Result<ModelConfig, ConfigError> {
        let family = self.family()?;
        self.refuse_unsupported()?;
        let hidden_size = self.required_size("embedding_length")?;
        let num_attention_heads = self.required_size("attention.head_count")?;
        let num_hidden_layers = self.required_size("block_count")?;
        check_size(&self.key("block_count"), num_hidden_layers, MAX_LAYERS)?;
        let head_dim = match self.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
        };
        if let Some(value_dim) = self.size("attention.value_length")?.filter(|dim| *dim != head_dim)
        {
            return Err(ConfigError::unsupported(
                &self.key("attention.value_length"),
                value_dim,
                format!("{head_dim}, the key length"),
            ));
        }
        let max_position_embeddings = self.required_size("context_length")?;
        let id = |key: &str| self.metadata.u32(&format!("tokenizer.ggml.{key}_token_id"));
        ModelConfig {
            family,
            hidden_size,
            intermediate_size: self.size("feed_forward_length")?.unwrap_or(0),
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: self
                .size("attention.head_count_kv")?
                .unwrap_or(num_attention_heads),
            head_dim,
            vocab_size: self.rows("token_embd.weight").unwrap_or(0),
            max_position_embeddings,
            rms_norm_eps: self.required_number("attention.layer_norm_rms_epsilon")?,
            rope: self.rope(family, head_dim, max_position_embeddings, rope_factors)?,
            layers: self.layers(family, num_hidden_layers)?,
            qkv_bias: self.has("blk.0.attn_q.bias"),
            o_bias: self.has("blk.0.attn_output.bias"),
            qk_norm: self.has("blk.0.attn_q_norm.weight"),
            tie_word_embeddings: !self.has("output.weight"),
            hidden_act: Activation::Silu,
            quantization: None,
            dtype: self
                .tensor("blk.0.attn_q.weight")
                .map(|tensor| tensor.format)
                .filter(|format: &TensorFormat| format.is_float()),
            bos_token_id: id("bos"),
            eos_token_ids: without_repeats(["eos", "eot", "eom"].into_iter().filter_map(id)),
            generation: GenerationDefaults::default(),
        }
        .check()
    }

    fn family(&self) -> Result<Family, ConfigError> {
        Ok(match self.architecture {
            "llama" if self.size("expert_count")?.unwrap_or(0) > 0 => Family::Mixtral,
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen2moe" => Family::Qwen2Moe,
            "qwen3" => Family::Qwen3,
            "qwen3moe" => Family::Qwen3Moe,
            other => {
                return Err(ConfigError::unsupported(
                    "general.architecture",
                    other,
                    SUPPORTED_ARCHITECTURES,
                ));
            }
        })
    }

    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        for key in UNSUPPORTED_KEYS {
            let key = self.key(key);
            if let Some(value) = self.metadata.value(&key) {
                return Err(ConfigError::unsupported(&key, value, "no such key"));
            }
        }
        match self.tensors.keys().find(|name| name.ends_with("ffn_gate.bias")) {
            Some(bias) => Err(ConfigError::unsupported("mlp_bias", bias, "an MLP without biases")),
            None => Ok(()),
        }
    }

    fn layers(&self, family: Family, num_layers: usize) -> Result<Vec<LayerConfig>, ConfigError> {
        let sliding_window = self.size("attention.sliding_window")?.filter(|window| *window > 0);
        let routed: Vec<bool> = (0..num_layers)
            .map(|layer| self.has(&format!("blk.{layer}.ffn_gate_inp.weight")))
            .collect();
        let moe = if routed.contains(&true) { Some(self.moe(family)?) } else { None };
        let dense = self.size("feed_forward_length")?;
        let mlp = |routed: bool| match (routed, moe, dense) {
            (true, Some(moe), _) => Ok(MlpKind::Moe(moe)),
            (_, _, Some(intermediate_size)) => Ok(MlpKind::Dense { intermediate_size }),
            _ => Err(ConfigError::missing(&self.key("feed_forward_length"))),
        };
        routed
            .into_iter()
            .map(|routed| Ok(LayerConfig { sliding_window, mlp: mlp(routed)? }))
            .collect()
    }

    fn moe(&self, family: Family) -> Result<Moe, ConfigError> {
        let intermediate_size = match self.size("expert_feed_forward_length")? {
            Some(size) => size,
            None => self.required_size("feed_forward_length")?,
        };
        let shared_intermediate_size = match family {
            // The key came later than the files; the matrix has always been there.
            Family::Qwen2Moe => match self.size("expert_shared_feed_forward_length")? {
                Some(size) => Some(size),
                None => self.tensors.iter().find_map(|(name, tensor)| {
                    let shared = name.ends_with("ffn_gate_shexp.weight");
                    usize::try_from(*tensor.shape.first()?).ok().filter(|_| shared)
                }),
            },
            _ => None,
        };
        Ok(Moe {
            num_experts: self.required_size("expert_count")?,
            top_k: self.required_size("expert_used_count")?,
            intermediate_size,
            norm_topk_prob: self
                .metadata
                .bool(&self.key("expert_weights_norm"))
                .unwrap_or(family != Family::Qwen2Moe),
            shared_intermediate_size,
        })
    }

    fn rope(
        &self,
        family: Family,
        head_dim: usize,
        max_positions: usize,
        factors: Option<Vec<f32>>,
    ) -> Result<RopeConfig, ConfigError> {
        let scaling = match factors {
            Some(factors) => RopeScaling::Factors(factors),
            None => self.rope_scaling(max_positions)?,
        };
        Ok(RopeConfig {
            theta: self.number("rope.freq_base")?.unwrap_or(10_000.0),
            dim: self.size("rope.dimension_count")?.unwrap_or(head_dim),
            style: match family {
                Family::Llama | Family::Mistral | Family::Mixtral => RopeStyle::Interleaved,
                _ => RopeStyle::Neox,
            },
            scaling,
        })
    }

    fn rope_scaling(&self, max_positions: usize) -> Result<RopeScaling, ConfigError> {
        let factor = self.number("rope.scaling.factor")?;
        let kind_key = self.key("rope.scaling.type");
        Ok(match self.metadata.str(&kind_key) {
            None if self.metadata.contains(&kind_key) => {
                return Err(ConfigError::invalid(
                    &kind_key,
                    self.metadata.value(&kind_key).unwrap_or_default(),
                    "a string",
                ));
            }
            None => match self.number("rope.scale_linear")? {
                Some(factor) => RopeScaling::Linear { factor },
                None => RopeScaling::None,
            },
            Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: factor
                    .ok_or_else(|| ConfigError::missing(&self.key("rope.scaling.factor")))?,
            },
            Some("yarn") => {
                let factor =
                    factor.ok_or_else(|| ConfigError::missing(&self.key("rope.scaling.factor")))?;
                let attention = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
                RopeScaling::Yarn {
                    factor,
                    beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    original_max_position_embeddings: self
                        .size("rope.scaling.original_context_length")?
                        .unwrap_or(max_positions),
                    attention_factor: attention * yarn_mscale(factor, 1.0),
                    truncate: true,
                }
            }
            Some(other) => {
                return Err(ConfigError::unsupported(&kind_key, other, "none, linear, yarn"));
            }
        })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A size, which some converters write as an array with one entry a layer.
    fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let key = self.key(key);
        let Some(shown) = self.metadata.value(&key) else { return Ok(None) };
        if let Some(size) = self.metadata.u64(&key).and_then(|v| usize::try_from(v).ok()) {
            return Ok(Some(size));
        }
        if let Some(values) = self.metadata.i64_array(&key) {
            let first = values.first().copied().unwrap_or(-1);
            return match usize::try_from(first) {
                Ok(size) if values.iter().all(|value| *value == first) => Ok(Some(size)),
                _ => Err(ConfigError::unsupported(
                    &key,
                    format!("{values:?}"),
                    "the same value in every layer",
                )),
            };
        }
        Err(ConfigError::invalid(&key, shown, "a whole number >= 0"))
    }

    fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?.ok_or_else(|| ConfigError::missing(&self.key(key)))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let key = self.key(key);
        match (self.metadata.f64(&key), self.metadata.value(&key)) {
            (None, Some(value)) => Err(ConfigError::invalid(&key, value, "a number")),
            (number, _) => Ok(number),
        }
    }

    fn required_number(&self, key: &str) -> Result<f64, ConfigError> {
        self.number(key)?.ok_or_else(|| ConfigError::missing(&self.key(key)))
    }

    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.tensor(name).is_some()
    }

    fn rows(&self, name: &str) -> Option<usize> {
        usize::try_from(*self.tensor(name)?.shape.first()?).ok()
    }
}
