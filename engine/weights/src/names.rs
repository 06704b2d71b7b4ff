//! One name for a tensor, whichever format it comes from: Hugging Face's, with experts always at
//! `model.layers.L.mlp.experts.E.{gate,up,down}_proj.weight` and routers at `model.layers.L.mlp.gate.weight`.

/// What a stored tensor is called here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Canonical {
    /// One tensor.
    One(String),
    /// All experts of a layer in one `[E, N, K]` tensor: expert `e` is `{prefix}{e}{suffix}`.
    Experts { prefix: String, suffix: &'static str },
}

/// The canonical name of a tensor in a safetensors file.
pub(crate) fn from_hf(name: &str) -> String {
    mixtral(name).unwrap_or_else(|| name.to_owned())
}

/// Mixtral calls its experts' matrices w1, w3, w2 and their block `block_sparse_moe`.
fn mixtral(name: &str) -> Option<String> {
    let (layer, rest) = name.split_once(".block_sparse_moe.")?;
    let Some(expert) = rest.strip_prefix("experts.") else {
        return Some(format!("{layer}.mlp.{rest}"));
    };
    let (expert, rest) = expert.split_once('.')?;
    let (matrix, leaf) = rest.split_once('.')?;
    let matrix = match matrix {
        "w1" => "gate_proj",
        "w3" => "up_proj",
        "w2" => "down_proj",
        _ => return None,
    };
    Some(format!("{layer}.mlp.experts.{expert}.{matrix}.{leaf}"))
}

/// The canonical name of a tensor in a GGUF. Unknown ones keep theirs.
pub(crate) fn from_gguf(name: &str) -> Canonical {
    let one = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => {
            return in_layer(name).unwrap_or_else(|| Canonical::One(name.to_owned()));
        }
    };
    Canonical::One(one.to_owned())
}

fn in_layer(name: &str) -> Option<Canonical> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let stacked = match rest {
        "ffn_gate_exps.weight" => Some(".gate_proj.weight"),
        "ffn_up_exps.weight" => Some(".up_proj.weight"),
        "ffn_down_exps.weight" => Some(".down_proj.weight"),
        _ => None,
    };
    if let Some(suffix) = stacked {
        let prefix = format!("model.layers.{layer}.mlp.experts.");
        return Some(Canonical::Experts { prefix, suffix });
    }
    let (module, leaf) = rest.rsplit_once('.')?;
    // Old Mixtral files hold each expert apart: ffn_gate.3.weight.
    if let Some((module, expert)) = module.split_once('.') {
        let module = mlp_module(module)?;
        return Some(Canonical::One(format!(
            "model.layers.{layer}.mlp.experts.{expert}.{module}.{leaf}"
        )));
    }
    let module = match module {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate_inp" => "mlp.gate",
        "ffn_gate_inp_shexp" => "mlp.shared_expert_gate",
        "ffn_gate_shexp" => "mlp.shared_expert.gate_proj",
        "ffn_up_shexp" => "mlp.shared_expert.up_proj",
        "ffn_down_shexp" => "mlp.shared_expert.down_proj",
        dense => {
            return Some(Canonical::One(format!(
                "model.layers.{layer}.mlp.{}.{leaf}",
                mlp_module(dense)?
            )));
        }
    };
    Some(Canonical::One(format!("model.layers.{layer}.{module}.{leaf}")))
}

fn mlp_module(gguf: &str) -> Option<&'static str> {
    Some(match gguf {
        "ffn_gate" => "gate_proj",
        "ffn_up" => "up_proj",
        "ffn_down" => "down_proj",
        _ => return None,
    })
}

/// The names most like `wanted`, best first.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    const SHOWN: usize = 3;
    let mut scored: Vec<(usize, &str)> =
        names.map(|name| (distance(wanted.as_bytes(), name.as_bytes()), name)).collect();
    scored.sort_unstable();
    let close = scored.into_iter().filter(|(distance, _)| *distance <= wanted.len() / 2);
    close.take(SHOWN).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance; texts past a tensor name's usual length count as far.
fn distance(a: &[u8], b: &[u8]) -> usize {
    const LONGEST: usize = 256;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str) -> String {
        match from_gguf(name) {
            Canonical::One(name) => name,
            Canonical::Experts { .. } => panic!("{name} is stacked"),
        }
    }

    #[test]
    fn gguf_names() {
        assert_eq!(one("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(one("blk.7.attn_k.bias"), "model.layers.7.self_attn.k_proj.bias");
        assert_eq!(one("blk.0.ffn_up.weight"), "model.layers.0.mlp.up_proj.weight");
        assert_eq!(one("blk.0.ffn_gate_inp.weight"), "model.layers.0.mlp.gate.weight");
        assert_eq!(one("blk.1.ffn_down.3.weight"), "model.layers.1.mlp.experts.3.down_proj.weight");
        assert_eq!(one("rope_freqs.weight"), "rope_freqs.weight");
        assert_eq!(one("blk.0.something"), "blk.0.something");
        assert_eq!(one("blk."), "blk.");
        assert_eq!(
            from_gguf("blk.2.ffn_gate_exps.weight"),
            Canonical::Experts {
                prefix: "model.layers.2.mlp.experts.".to_owned(),
                suffix: ".gate_proj.weight"
            }
        );
    }

    #[test]
    fn mixtral_names() {
        assert_eq!(
            from_hf("model.layers.0.block_sparse_moe.experts.3.w2.weight"),
            "model.layers.0.mlp.experts.3.down_proj.weight"
        );
        assert_eq!(
            from_hf("model.layers.1.block_sparse_moe.experts.0.w1.qweight"),
            "model.layers.1.mlp.experts.0.gate_proj.qweight"
        );
        assert_eq!(
            from_hf("model.layers.0.block_sparse_moe.gate.weight"),
            "model.layers.0.mlp.gate.weight"
        );
        assert_eq!(from_hf("model.norm.weight"), "model.norm.weight");
    }

    #[test]
    fn nearest_names() {
        let names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"];
        let near = nearest("model.layers.0.mlp.upproj.weight", names.into_iter());
        assert_eq!(near[0], "model.layers.0.mlp.up_proj.weight");
        assert!(nearest("x", names.into_iter()).is_empty());
        assert_eq!(distance(b"kitten", b"sitting"), 3);
    }
}
