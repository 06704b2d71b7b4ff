//! The decoder that Llama, Mistral, Qwen2, Qwen3 and their mixtures of experts share.
//!
//! Pre-norm transformer layers with rotary embeddings, grouped-query attention over a paged cache, and
//! a gated MLP or experts. What differs between the families is in the configuration: biases on q, k
//! and v (Qwen2), norms on q and k (Qwen3), a sliding window (Mistral), experts.

use halyard_core::{
    DType,
    attrs::{Act, MoeRouter},
};
use halyard_weights::{Activation, LayerConfig, MlpKind, ModelConfig, Moe, RopeStyle};

use crate::{
    error::LoadError,
    program::{Graph, Inputs, Section, Size, Tensor},
};

/// What the rest of the engine needs to know about the recorded decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) inputs: Inputs,
    /// `[rows, vocab]`, f32.
    pub(crate) logits: Tensor,
}

/// Activations that all layers use in turn.
struct Stream {
    /// The residual stream.
    residual: Tensor,
    /// What a block adds to it; the next norm does the adding.
    delta: Tensor,
    /// The residual stream normalised: a block's input.
    normed: Tensor,
    attended: Tensor,
}

/// What attention needs beside the stream, the same for all layers.
struct Attention<'a> {
    config: &'a ModelConfig,
    inputs: Inputs,
    qkv: Tensor,
    rope_table: Tensor,
    block_size: usize,
}

/// Records the whole model.
pub(crate) fn record(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    max_model_len: usize,
    block_size: usize,
) -> Result<Decoder, LoadError> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let (q_width, kv_width) = widths(config);
    let attention = Attention {
        config,
        inputs: g.inputs(),
        qkv: g.activations(Size::Tokens, q_width + 2 * kv_width),
        rope_table: g.rope_table(max_model_len, config.rope.dim),
        block_size,
    };
    let mut stream = Stream::new(g, config, Size::Tokens);
    let mut mlp = Mlp::new(g, config, Size::Tokens);

    let embedding = g.embedding_weight("model.embed_tokens", vocab, hidden)?;
    g.embedding(&attention.inputs.ids, embedding, &stream.residual);
    for (index, layer) in config.layers.iter().enumerate() {
        let prefix = format!("model.layers.{index}");
        norm(g, config, &format!("{prefix}.input_layernorm.weight"), &stream, index > 0)?;
        attention.record(g, layer, &format!("{prefix}.self_attn"), &stream)?;
        if index + 1 == config.layers.len() {
            // From here on no token looks at another: only those whose logits are wanted go on.
            g.begin(Section::Head);
            stream = stream.gather(g, config, &attention.inputs.rows);
            mlp = Mlp::new(g, config, Size::Rows);
        }
        let o = [(format!("{prefix}.self_attn.o_proj"), hidden)];
        let o = g.linear_weight(&o, q_width, config.o_bias)?;
        g.linear(&stream.attended, &o, &stream.delta);
        norm(g, config, &format!("{prefix}.post_attention_layernorm.weight"), &stream, true)?;
        match &layer.mlp {
            MlpKind::Dense { intermediate_size } => {
                mlp.dense(g, &format!("{prefix}.mlp"), *intermediate_size, &stream)?;
            }
            MlpKind::Moe(moe) => mlp.experts(g, &format!("{prefix}.mlp"), moe, &stream)?,
        }
    }
    norm(g, config, "model.norm.weight", &stream, true)?;
    let head = if config.tie_word_embeddings {
        Graph::tied(embedding, vocab)
    } else {
        g.linear_weight(&[("lm_head".into(), vocab)], hidden, false)?
    };
    let logits = g.tensor(DType::F32, &[Size::Rows, Size::Fixed(vocab)]);
    g.linear(&stream.normed, &head, &logits);
    Ok(Decoder { inputs: attention.inputs, logits })
}

fn widths(config: &ModelConfig) -> (usize, usize) {
    (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim)
}

impl Stream {
    fn new(g: &mut Graph<'_>, config: &ModelConfig, rows: Size) -> Self {
        Self {
            residual: g.activations(rows, config.hidden_size),
            delta: g.activations(rows, config.hidden_size),
            normed: g.activations(rows, config.hidden_size),
            attended: g.activations(rows, widths(config).0),
        }
    }

    /// The stream of some of its rows, after attention.
    fn gather(&self, g: &mut Graph<'_>, config: &ModelConfig, rows: &Tensor) -> Self {
        let few = Self::new(g, config, Size::Rows);
        g.gather_rows(&self.residual, rows, &few.residual);
        g.gather_rows(&self.attended, rows, &few.attended);
        few
    }
}

/// `normed = norm(residual += delta)`; before the first block there is no delta yet.
fn norm(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    gamma: &str,
    stream: &Stream,
    has_delta: bool,
) -> Result<(), LoadError> {
    let gamma = g.vectors(&[(gamma.to_owned(), config.hidden_size)])?;
    let Stream { residual, delta, normed, .. } = stream;
    if has_delta {
        g.rms_norm(delta, &gamma, normed, Some(residual), config.rms_norm_eps);
    } else {
        g.rms_norm(residual, &gamma, normed, None, config.rms_norm_eps);
    }
    Ok(())
}

impl Attention<'_> {
    /// `attended = attention(normed)`, without the output layer.
    fn record(
        &self,
        g: &mut Graph<'_>,
        layer: &LayerConfig,
        prefix: &str,
        stream: &Stream,
    ) -> Result<(), LoadError> {
        let Self { config, inputs, qkv, .. } = self;
        let (q_width, kv_width) = widths(config);
        let (heads, kv_heads, dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);

        let part = |name: &str, width: usize| (format!("{prefix}.{name}"), width);
        let parts = [part("q_proj", q_width), part("k_proj", kv_width), part("v_proj", kv_width)];
        let weight = g.linear_weight(&parts, config.hidden_size, config.qkv_bias)?;
        g.linear(&stream.normed, &weight, qkv);
        let q = qkv.columns(0, q_width).heads(heads, dim);
        let k = qkv.columns(q_width, kv_width).heads(kv_heads, dim);
        let v = qkv.columns(q_width + kv_width, kv_width).heads(kv_heads, dim);
        if config.qk_norm {
            for (name, x) in [("q_norm", &q), ("k_norm", &k)] {
                let gamma = g.vectors(&[(format!("{prefix}.{name}.weight"), dim)])?;
                g.rms_norm(x, &gamma, x, None, config.rms_norm_eps);
            }
        }
        let interleaved = config.rope.style == RopeStyle::Interleaved;
        g.rope(&q, &k, &inputs.positions, &self.rope_table, interleaved);
        let cache = g.cache(self.block_size, kv_heads, dim);
        g.kv_write(&k, &v, &inputs.slots, &cache);
        // The configuration counts the query's own position, the operation only those to its left.
        let window = layer.sliding_window.map(|window| window.saturating_sub(1));
        g.attention(&q, &cache, inputs, &stream.attended.heads(heads, dim), window);
        Ok(())
    }
}

/// The second block of a layer, dense or routed; layers share its buffers.
struct Mlp {
    /// Tokens, or wanted rows.
    rows: Size,
    hidden: usize,
    act: Act,
    gate_up: Option<Tensor>,
    inner: Option<Tensor>,
    /// By number of experts and of chosen ones.
    routings: Vec<((usize, usize), Routing)>,
}

/// Which experts the tokens go to.
#[derive(Clone)]
struct Routing {
    logits: Tensor,
    ids: Tensor,
    weight: Tensor,
}

impl Mlp {
    fn new(g: &mut Graph<'_>, config: &ModelConfig, rows: Size) -> Self {
        let act = match config.hidden_act {
            Activation::GeluTanh => Act::GeluTanh,
            Activation::GeluErf => Act::GeluErf,
            _ => Act::Silu,
        };
        let dense = config.layers.iter().filter_map(|layer| match layer.mlp {
            MlpKind::Dense { intermediate_size } => Some(intermediate_size),
            MlpKind::Moe(_) => None,
        });
        let widest = dense.max();
        Self {
            rows,
            hidden: config.hidden_size,
            act,
            gate_up: widest.map(|width| g.activations(rows, 2 * width)),
            inner: widest.map(|width| g.activations(rows, width)),
            routings: Vec::new(),
        }
    }

    /// `delta = down(act(gate(normed)) * up(normed))`.
    fn dense(
        &mut self,
        g: &mut Graph<'_>,
        prefix: &str,
        width: usize,
        stream: &Stream,
    ) -> Result<(), LoadError> {
        let (Some(gate_up), Some(inner)) = (&self.gate_up, &self.inner) else {
            unreachable!("made as wide as the widest dense layer")
        };
        let (gate_up, inner) = (gate_up.columns(0, 2 * width), inner.columns(0, width));
        let part = |name: &str, width: usize| (format!("{prefix}.{name}"), width);
        let parts = [part("gate_proj", width), part("up_proj", width)];
        let weight = g.linear_weight(&parts, self.hidden, false)?;
        g.linear(&stream.normed, &weight, &gate_up);
        g.act_mul(&gate_up, &inner, self.act);
        let down = g.linear_weight(&[part("down_proj", self.hidden)], width, false)?;
        g.linear(&inner, &down, &stream.delta);
        Ok(())
    }

    /// `delta = sum of w_e expert_e(normed)` over the chosen experts, and for Qwen2 one more expert for
    /// every token, whose weight is a sigmoid of its own.
    fn experts(
        &mut self,
        g: &mut Graph<'_>,
        prefix: &str,
        moe: &Moe,
        stream: &Stream,
    ) -> Result<(), LoadError> {
        let Stream { normed, delta, .. } = stream;
        let softmax = MoeRouter { norm: moe.norm_topk_prob, ..MoeRouter::default() };
        let gate = format!("{prefix}.gate");
        let routed = self.route(g, gate, (moe.num_experts, moe.top_k), &softmax, normed)?;
        let expert = |index| format!("{prefix}.experts.{index}");
        let (hidden, inner) = (self.hidden, moe.intermediate_size);
        let experts = g.expert_weights(expert, moe.num_experts, hidden, inner)?;
        g.moe_experts(normed, (&routed.ids, &routed.weight), experts, delta, (self.act, None));

        if let Some(inner) = moe.shared_intermediate_size {
            let sigmoid = MoeRouter { sigmoid: true, ..MoeRouter::default() };
            let gate = format!("{prefix}.shared_expert_gate");
            let shared = self.route(g, gate, (1, 1), &sigmoid, normed)?;
            let expert = |_| format!("{prefix}.shared_expert");
            let weights = g.expert_weights(expert, 1, hidden, inner)?;
            let routing = (&shared.ids, &shared.weight);
            g.moe_experts(normed, routing, weights, delta, (self.act, Some(delta)));
        }
        Ok(())
    }

    /// Chooses `top_k` of `experts` for each token.
    fn route(
        &mut self,
        g: &mut Graph<'_>,
        gate: String,
        (experts, top_k): (usize, usize),
        attrs: &MoeRouter,
        normed: &Tensor,
    ) -> Result<Routing, LoadError> {
        let known = self.routings.iter().find(|known| known.0 == (experts, top_k));
        let routing = match known {
            Some((_, routing)) => routing.clone(),
            None => {
                let mut tensor = |dtype, width| g.tensor(dtype, &[self.rows, Size::Fixed(width)]);
                let routing = Routing {
                    logits: tensor(DType::F32, experts),
                    ids: tensor(DType::I32, top_k),
                    weight: tensor(DType::F32, top_k),
                };
                self.routings.push(((experts, top_k), routing.clone()));
                routing
            }
        };
        let gate = g.linear_weight(&[(gate, experts)], self.hidden, false)?;
        g.linear(normed, &gate, &routing.logits);
        g.moe_router(&routing.logits, &routing.ids, &routing.weight, attrs);
        Ok(routing)
    }
}
