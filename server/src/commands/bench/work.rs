//! How much reading and computing a model's tokens take, by its configuration.

use halyard_weights::{MlpKind, ModelConfig};

use super::stats::{bytes_to_f64, to_f64};

/// Counts of a model; all as floats, since only shares are made of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    /// Weights of all matrices that every token meets.
    always: f64,
    /// Weights of all experts.
    experts: f64,
    /// Share of the experts that a token meets.
    expert_share: f64,
    /// Weights of the output layer, which only chosen positions meet.
    head: f64,
    /// Multiplications and additions of attention a token a position it looks at.
    attention_per_position: f64,
    /// Bytes a weight, averaged over all of them.
    bytes_per_weight: f64,
}

impl Work {
    /// `weight_bytes` is what the weights take on the device.
    pub(super) fn of(config: &ModelConfig, weight_bytes: u64) -> Self {
        let count = |a: usize, b: usize| to_f64(a) * to_f64(b);
        let heads = config.num_attention_heads * config.head_dim;
        let kv_heads = config.num_key_value_heads * config.head_dim;
        let (mut always, mut experts, mut expert_share) = (0.0, 0.0, 0.0);
        for layer in &config.layers {
            always += count(config.hidden_size, 2 * heads + 2 * kv_heads);
            match &layer.mlp {
                MlpKind::Dense { intermediate_size } => {
                    always += 3.0 * count(config.hidden_size, *intermediate_size);
                }
                MlpKind::Moe(moe) => {
                    let shared = moe.shared_intermediate_size.unwrap_or(0);
                    always += 3.0 * count(config.hidden_size, shared);
                    always += count(config.hidden_size, moe.num_experts);
                    let expert = 3.0 * count(config.hidden_size, moe.intermediate_size);
                    experts += expert * to_f64(moe.num_experts);
                    expert_share = to_f64(moe.top_k) / to_f64(moe.num_experts.max(1));
                }
            }
        }
        let head = count(config.hidden_size, config.vocab_size);
        let tables = if config.tie_word_embeddings { 1.0 } else { 2.0 };
        let weights = always + experts + tables * head;
        Self {
            always,
            experts,
            expert_share,
            head,
            attention_per_position: 4.0 * count(heads, config.num_hidden_layers),
            bytes_per_weight: bytes_to_f64(weight_bytes) / weights.max(1.0),
        }
    }

    /// Bytes of weights that a step with so many tokens reads, each matrix once. Which experts are met is
    /// taken to be random.
    pub(super) fn bytes_per_step(&self, num_tokens: usize) -> f64 {
        let met = 1.0 - (1.0 - self.expert_share).powf(to_f64(num_tokens));
        (self.always + self.experts * met + self.head) * self.bytes_per_weight
    }

    /// Operations to process a prompt and choose one token.
    pub(super) fn prompt_flops(&self, num_tokens: usize) -> f64 {
        let tokens = to_f64(num_tokens);
        self.matrices() * tokens + 2.0 * self.head + self.attention(num_tokens)
    }

    /// Operations to generate so many tokens after one of prompt.
    pub(super) fn generation_flops(&self, num_tokens: usize) -> f64 {
        let tokens = to_f64(num_tokens);
        (self.matrices() + 2.0 * self.head) * tokens + self.attention(num_tokens)
    }

    fn matrices(&self) -> f64 {
        2.0 * (self.always + self.experts * self.expert_share)
    }

    /// Each token looks at itself and those before it.
    fn attention(&self, num_tokens: usize) -> f64 {
        let tokens = to_f64(num_tokens);
        self.attention_per_position * tokens * (tokens + 1.0) / 2.0
    }
}
