//! What a decoder computes, whichever file said so.

mod ascend;
mod from_gguf;
mod from_hf;
mod json;
mod quantization;

use crate::error::ConfigError;
use crate::format::TensorFormat;

pub use quantization::{Compressed, QuantMethod, Quantization};

/// The model families with one decoder. All are pre-norm transformers with rotary embeddings and a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2 and the many models of the same shape.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Mistral with a mixture of experts.
    Mixtral,
    /// Llama with biases on q, k and v.
    Qwen2,
    /// Qwen2 with a mixture of experts and a shared one.
    Qwen2Moe,
    /// Llama with norms on q and k.
    Qwen3,
    /// Qwen3 with a mixture of experts.
    Qwen3Moe,
}

/// A decoder's shape and constants.
///
/// Made by [`Checkpoint::config`](crate::Checkpoint::config), [`ModelConfig::from_json`] or
/// [`ModelConfig::from_gguf`], which check it: counts are positive and bounded, the heads divide by the key-value
/// heads, rotary dimensions are even, expert counts are consistent.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense MLP; for a mixture see [`Moe::intermediate_size`].
    pub intermediate_size: usize,
    /// Number of decoder layers, which is `layers.len()`.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// What differs between layers.
    pub layers: Vec<LayerConfig>,
    /// Whether `q_proj`, `k_proj` and `v_proj` have a bias.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether q and k go through an RMS norm per head before the rotary embedding.
    pub qk_norm: bool,
    /// Whether the head is the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// The type of the checkpoint's dense weights, if the configuration names it.
    pub dtype: Option<TensorFormat>,
    /// How the quantised layers of a safetensors checkpoint are stored. A GGUF's tensors say it themselves.
    pub quantization: Option<Quantization>,
    /// Beginning of sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation; the first is the main one. Empty if the files name none.
    pub eos_token_ids: Vec<u32>,
    /// What the model's authors recommend for sampling.
    pub generation: GenerationDefaults,
}

/// What differs between the layers of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// A query at position `p` sees keys at `p - window + 1 ..= p`; all before it if `None`.
    pub sliding_window: Option<usize>,
    /// The layer's MLP.
    pub mlp: MlpKind,
}

/// A layer's MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(act(gate(x)) * up(x))`.
    Dense {
        /// Width of gate and up.
        intermediate_size: usize,
    },
    /// Routed experts.
    Moe(Moe),
}

/// A mixture of experts. The router is a softmax over all experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moe {
    /// Experts in the layer.
    pub num_experts: usize,
    /// Experts a token goes to.
    pub top_k: usize,
    /// Width of each expert.
    pub intermediate_size: usize,
    /// Whether the chosen experts' weights are scaled to sum to one.
    pub norm_topk_prob: bool,
    /// Width of the expert every token goes to, weighted by `sigmoid(shared_expert_gate(x))`.
    pub shared_intermediate_size: Option<usize>,
}

/// The MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
}

/// Rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many dimensions at the start of a head rotate: even, at most `head_dim`.
    pub dim: usize,
    /// Which dimensions form a pair.
    pub style: RopeStyle,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Which dimensions form a rotated pair, out of `R`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + R/2)`: Hugging Face checkpoints, and GGUF of Qwen.
    Neox,
    /// `(2i, 2i + 1)`: GGUF of Llama, Mistral and Mixtral, whose q and k rows the converter has reordered.
    Interleaved,
}

/// How the rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context before stretching.
        original_max_position_embeddings: usize,
    },
    /// YaRN: as above with a ramp over dimensions, and a magnitude factor on cos and sin.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Dimensions that turn more often than this within the original context are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are divided.
        beta_slow: f64,
        /// The context before stretching.
        original_max_position_embeddings: usize,
        /// Multiplies cos and sin.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// Frequency `i` divided by `factors[i]`, as GGUF's `rope_freqs.weight` says; `dim / 2` of them.
    Factors(Vec<f32>),
}

/// Sampling parameters recommended by the model's authors in `generation_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GenerationDefaults {
    /// Temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling.
    pub top_p: Option<f64>,
    /// Sampling from the k likeliest; 0 means all.
    pub top_k: Option<u32>,
    /// Least probability relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divides (multiplies if negative) the logits of tokens that occurred.
    pub repetition_penalty: Option<f64>,
    /// New tokens where a request does not say.
    pub max_new_tokens: Option<u32>,
}

/// Bounds on sizes taken from files: far beyond any model, small enough that products stay within 64 bits.
const MAX_LAYERS: usize = 4096;
const MAX_WIDTH: usize = 1 << 24;
const MAX_VOCAB: usize = 1 << 28;
const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// Whether any layer has experts.
    #[must_use]
    pub fn is_moe(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.mlp, MlpKind::Moe(_)))
    }

    /// Checks what every source has to keep, naming fields as `config.json` does.
    fn check(self) -> Result<Self, ConfigError> {
        let widths = [
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_WIDTH),
            ("num_key_value_heads", self.num_key_value_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, MAX_WIDTH),
            ("vocab_size", self.vocab_size, MAX_VOCAB),
            ("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS),
        ];
        for (field, value, limit) in widths {
            check_size(field, value, limit)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(ConfigError::invalid(
                "num_key_value_heads",
                self.num_key_value_heads,
                format!("a divisor of num_attention_heads = {}", self.num_attention_heads),
            ));
        }
        if self.num_attention_heads * self.head_dim > MAX_WIDTH {
            return Err(ConfigError::invalid(
                "head_dim",
                self.head_dim,
                format!("at most {MAX_WIDTH} / num_attention_heads"),
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(ConfigError::invalid("rms_norm_eps", self.rms_norm_eps, "a number >= 0"));
        }
        self.rope.check(self.head_dim)?;
        for layer in &self.layers {
            layer.check()?;
        }
        Ok(self)
    }
}

fn check_size(field: &str, value: usize, limit: usize) -> Result<(), ConfigError> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::invalid(field, value, format!("1 to {limit}")))
}

impl LayerConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(window) = self.sliding_window {
            check_size("sliding_window", window, MAX_POSITIONS)?;
        }
        let moe = match self.mlp {
            MlpKind::Dense { intermediate_size } => {
                return check_size("intermediate_size", intermediate_size, MAX_WIDTH);
            }
            MlpKind::Moe(moe) => moe,
        };
        check_size("num_experts", moe.num_experts, MAX_WIDTH)?;
        check_size("num_experts_per_tok", moe.top_k, moe.num_experts)?;
        check_size("moe_intermediate_size", moe.intermediate_size, MAX_WIDTH)?;
        moe.shared_intermediate_size
            .map_or(Ok(()), |size| check_size("shared_expert_intermediate_size", size, MAX_WIDTH))
    }
}

impl RopeConfig {
    fn check(&self, head_dim: usize) -> Result<(), ConfigError> {
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(ConfigError::invalid("rope_theta", self.theta, "a number above 1"));
        }
        if self.dim == 0 || !self.dim.is_multiple_of(2) || self.dim > head_dim {
            return Err(ConfigError::invalid(
                "head_dim",
                self.dim,
                format!("an even number of rotary dimensions up to {head_dim}"),
            ));
        }
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(ConfigError::invalid(&format!("rope_scaling.{field}"), value, "a number above 0"))
        };
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(ConfigError::invalid(
                        "rope_scaling.high_freq_factor",
                        high_freq_factor,
                        format!("more than low_freq_factor = {low_freq_factor}"),
                    ));
                }
                positive("high_freq_factor", *high_freq_factor)?;
                check_original(*original_max_position_embeddings)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                attention_factor,
                truncate: _,
            } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                check_original(*original_max_position_embeddings)
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != self.dim / 2 {
                    return Err(ConfigError::invalid(
                        "rope_freqs.weight length",
                        factors.len(),
                        format!("{}, half the rotary dimensions", self.dim / 2),
                    ));
                }
                factors.iter().try_for_each(|&factor| positive("factors", f64::from(factor)))
            }
        }
    }
}

fn check_original(positions: usize) -> Result<(), ConfigError> {
    check_size("rope_scaling.original_max_position_embeddings", positions, MAX_POSITIONS)
}

/// The magnitude factor of YaRN: `0.1 mscale ln(scale) + 1`.
fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn without_repeats(ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut unique = Vec::new();
    for id in ids {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}
