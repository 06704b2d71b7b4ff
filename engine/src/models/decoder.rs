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
    models::Shares,
    program::{Graph, Inputs, Layer, Section, Share, Size, Tensor},
};

/// What the rest of the engine needs to know about the recorded decoder.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) inputs: Inputs,
    /// `[rows, vocab]`, f32; on other ranks than 0 its share of the columns.
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
    shares: &'a Shares,
    inputs: Inputs,
    qkv: Tensor,
    rope_table: Tensor,
    block_size: usize,
}

/// Records what one rank computes of the whole model.
pub(crate) fn record(
    g: &mut Graph<'_>,
    config: &ModelConfig,
    shares: &Shares,
    max_model_len: usize,
    block_size: usize,
) -> Result<Decoder, LoadError> {
    let (q_rows, kv_rows) = head_rows(config, shares);
    let hidden = Share::all(config.hidden_size);
    let attention = Attention {
        config,
        shares,
        inputs: g.inputs(),
        qkv: g.activations(Size::Tokens, q_rows.len + 2 * kv_rows.len),
        rope_table: g.rope_table(max_model_len, config.rope.dim),
        block_size,
    };
    let mut stream = Stream::new(g, hidden.len, q_rows.len, Size::Tokens);
    let mut mlp = Mlp::new(g, config, *shares, Size::Tokens)?;

    let table = Layer::new("model.embed_tokens", shares.vocab, hidden);
    let embedding = g.embedding_weight(table)?;
    g.embedding(&attention.inputs.ids, embedding, &stream.residual, shares.vocab.start);
    g.all_reduce(&stream.residual);
    for (index, layer) in config.layers.iter().enumerate() {
        let prefix = format!("model.layers.{index}");
        norm(g, config, &format!("{prefix}.input_layernorm.weight"), &stream, index > 0)?;
        attention.record(g, layer, &format!("{prefix}.self_attn"), &stream)?;
        if index + 1 == config.layers.len() {
            // From here on no token looks at another: only those whose logits are wanted go on.
            g.begin(Section::Head);
            stream = stream.gather(g, &attention.inputs.rows);
            mlp = Mlp::new(g, config, *shares, Size::Rows)?;
        }
        let o = [Layer::new(format!("{prefix}.self_attn.o_proj"), hidden, q_rows)];
        // Once in the sum.
        let o = g.linear_weight(&o, config.o_bias && shares.rank.index == 0)?;
        g.linear(&stream.attended, &o, &stream.delta);
        g.all_reduce(&stream.delta);
        norm(g, config, &format!("{prefix}.post_attention_layernorm.weight"), &stream, true)?;
        match &layer.mlp {
            MlpKind::Dense { intermediate_size } => {
                mlp.dense(g, &format!("{prefix}.mlp"), *intermediate_size, &stream)?;
            }
            MlpKind::Moe(moe) => mlp.experts(g, &format!("{prefix}.mlp"), moe, &stream)?,
        }
        g.all_reduce(&stream.delta);
    }
    norm(g, config, "model.norm.weight", &stream, true)?;
    let head = if config.tie_word_embeddings {
        Graph::tied(embedding, shares.vocab.len)
    } else {
        g.linear_weight(&[Layer::new("lm_head", shares.vocab, hidden)], false)?
    };
    let width = shares.widest_vocab();
    let own = g.tensor(DType::F32, &[Size::Rows, Size::Fixed(width)]);
    g.linear(&stream.normed, &head, &own.columns(0, shares.vocab.len));
    let logits = g.all_gather_columns(&own, shares.vocab.whole);
    Ok(Decoder { inputs: attention.inputs, logits })
}

/// Rows of queries, and of keys or values.
fn head_rows(config: &ModelConfig, shares: &Shares) -> (Share, Share) {
    (shares.q_heads.of_units(config.head_dim), shares.kv_heads.of_units(config.head_dim))
}

impl Stream {
    fn new(g: &mut Graph<'_>, hidden: usize, attended: usize, rows: Size) -> Self {
        Self {
            residual: g.activations(rows, hidden),
            delta: g.activations(rows, hidden),
            normed: g.activations(rows, hidden),
            attended: g.activations(rows, attended),
        }
    }

    /// The stream of some of its rows, after attention.
    fn gather(&self, g: &mut Graph<'_>, rows: &Tensor) -> Self {
        let few = Self::new(g, self.residual.width(), self.attended.width(), Size::Rows);
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
    let gamma = g.vector(gamma.to_owned(), config.hidden_size)?;
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
        let Self { config, shares, inputs, qkv, .. } = self;
        let (q_rows, kv_rows) = head_rows(config, shares);
        let (heads, kv_heads, dim) = (shares.q_heads.len, shares.kv_heads.len, config.head_dim);
        let (q_width, kv_width) = (q_rows.len, kv_rows.len);

        let hidden = Share::all(config.hidden_size);
        let part = |name: &str, rows: Share| Layer::new(format!("{prefix}.{name}"), rows, hidden);
        let parts = [part("q_proj", q_rows), part("k_proj", kv_rows), part("v_proj", kv_rows)];
        let weight = g.linear_weight(&parts, config.qkv_bias)?;
        g.linear(&stream.normed, &weight, qkv);
        let q = qkv.columns(0, q_width).heads(heads, dim);
        let k = qkv.columns(q_width, kv_width).heads(kv_heads, dim);
        let v = qkv.columns(q_width + kv_width, kv_width).heads(kv_heads, dim);
        if config.qk_norm {
            for (name, x) in [("q_norm", &q), ("k_norm", &k)] {
                let gamma = g.vector(format!("{prefix}.{name}.weight"), dim)?;
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
    shares: Shares,
    /// Tokens, or wanted rows.
    rows: Size,
    hidden: Share,
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
    fn new(
        g: &mut Graph<'_>,
        config: &ModelConfig,
        shares: Shares,
        rows: Size,
    ) -> Result<Self, LoadError> {
        let act = match config.hidden_act {
            Activation::GeluTanh => Act::GeluTanh,
            Activation::GeluErf => Act::GeluErf,
            _ => Act::Silu,
        };
        let mut widest = None;
        for (index, layer) in config.layers.iter().enumerate() {
            if let MlpKind::Dense { intermediate_size } = layer.mlp {
                let prefix = format!("model.layers.{index}.mlp");
                widest = widest.max(Some(dense_inner(&shares, &prefix, intermediate_size)?.len));
            }
        }
        Ok(Self {
            shares,
            rows,
            hidden: Share::all(config.hidden_size),
            act,
            gate_up: widest.map(|width| g.activations(rows, 2 * width)),
            inner: widest.map(|width| g.activations(rows, width)),
            routings: Vec::new(),
        })
    }

    /// `delta = down(act(gate(normed)) * up(normed))`.
    fn dense(
        &mut self,
        g: &mut Graph<'_>,
        prefix: &str,
        size: usize,
        stream: &Stream,
    ) -> Result<(), LoadError> {
        let (Some(gate_up), Some(inner)) = (&self.gate_up, &self.inner) else {
            unreachable!("made as wide as the widest dense layer")
        };
        let share = dense_inner(&self.shares, prefix, size)?;
        let (gate_up, inner) = (gate_up.columns(0, 2 * share.len), inner.columns(0, share.len));
        let part = |name: &str| Layer::new(format!("{prefix}.{name}"), share, self.hidden);
        let weight = g.linear_weight(&[part("gate_proj"), part("up_proj")], false)?;
        g.linear(&stream.normed, &weight, &gate_up);
        g.act_mul(&gate_up, &inner, self.act);
        let down = Layer::new(format!("{prefix}.down_proj"), self.hidden, share);
        let down = g.linear_weight(&[down], false)?;
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
        let inner = ("moe_intermediate_size", moe.intermediate_size);
        let inner = self.shares.inner(&format!("{}.gate_proj", expert(0)), inner)?;
        let experts = g.expert_weights(expert, moe.num_experts, self.hidden, inner)?;
        g.moe_experts(normed, (&routed.ids, &routed.weight), experts, delta, (self.act, None));

        if let Some(inner) = moe.shared_intermediate_size {
            let sigmoid = MoeRouter { sigmoid: true, ..MoeRouter::default() };
            let gate = format!("{prefix}.shared_expert_gate");
            let shared = self.route(g, gate, (1, 1), &sigmoid, normed)?;
            let expert = |_| format!("{prefix}.shared_expert");
            let inner = ("shared_expert_intermediate_size", inner);
            let inner = self.shares.inner(&format!("{}.gate_proj", expert(0)), inner)?;
            let weights = g.expert_weights(expert, 1, self.hidden, inner)?;
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
        // Whole on every rank: all must choose the same.
        let gate = g.linear_weight(&[Layer::new(gate, Share::all(experts), self.hidden)], false)?;
        g.linear(normed, &gate, &routing.logits);
        g.moe_router(&routing.logits, &routing.ids, &routing.weight, attrs);
        Ok(routing)
    }
}

fn dense_inner(shares: &Shares, prefix: &str, size: usize) -> Result<Share, LoadError> {
    shares.inner(&format!("{prefix}.gate_proj"), ("intermediate_size", size))
}
