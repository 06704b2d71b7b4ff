//! Every golden model opens, and says what its files say.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};

use halyard_weights::{
    Checkpoint, Family, MlpKind, ModelConfig, RopeScaling, RopeStyle, TensorFormat,
};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

fn open(name: &str) -> (Checkpoint, ModelConfig) {
    let checkpoint = Checkpoint::open(&models().join(name)).unwrap();
    let config = checkpoint.config().unwrap();
    (checkpoint, config)
}

/// Every tensor that the configuration promises is there and has the promised shape.
fn check_tensors(checkpoint: &Checkpoint, config: &ModelConfig) {
    let hidden = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let mut wanted = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        wanted.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for (index, layer) in config.layers.iter().enumerate() {
        let mut add = |name: &str, shape: &[usize]| {
            wanted.push((format!("model.layers.{index}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, width) in [("q", q), ("k", kv), ("v", kv)] {
            add(&format!("self_attn.{name}_proj.weight"), &[width, hidden]);
            if config.qkv_bias {
                add(&format!("self_attn.{name}_proj.bias"), &[width]);
            }
        }
        if config.qk_norm {
            add("self_attn.q_norm.weight", &[config.head_dim]);
            add("self_attn.k_norm.weight", &[config.head_dim]);
        }
        add("self_attn.o_proj.weight", &[hidden, q]);
        let mut mlp = |prefix: &str, width: usize| {
            add(&format!("{prefix}.gate_proj.weight"), &[width, hidden]);
            add(&format!("{prefix}.up_proj.weight"), &[width, hidden]);
            add(&format!("{prefix}.down_proj.weight"), &[hidden, width]);
        };
        match layer.mlp {
            MlpKind::Dense { intermediate_size } => mlp("mlp", intermediate_size),
            MlpKind::Moe(moe) => {
                for expert in 0..moe.num_experts {
                    mlp(&format!("mlp.experts.{expert}"), moe.intermediate_size);
                }
                if let Some(width) = moe.shared_intermediate_size {
                    mlp("mlp.shared_expert", width);
                    add("mlp.shared_expert_gate.weight", &[1, hidden]);
                }
                add("mlp.gate.weight", &[moe.num_experts, hidden]);
            }
        }
    }
    let names = checkpoint.names().filter(|name| *name != "rope_freqs.weight");
    assert_eq!(names.count(), wanted.len());
    for (name, shape) in wanted {
        let tensor = checkpoint.tensor(&name).unwrap();
        let shape: Vec<u64> = shape.into_iter().map(|dim| dim as u64).collect();
        assert_eq!(tensor.shape, shape, "{name}");
        assert_eq!(tensor.bytes.len() as u64, tensor.format.tensor_bytes(&shape).unwrap());
        let values = tensor.dequantize().unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
        checkpoint.release(tensor.bytes);
    }
}

#[test]
fn safetensors_models() {
    for (name, family) in [
        ("llama", Family::Llama),
        ("llama32", Family::Llama),
        ("qwen2", Family::Qwen2),
        ("qwen3", Family::Qwen3),
        ("qwen2_moe", Family::Qwen2Moe),
        ("qwen3_moe", Family::Qwen3Moe),
        ("mixtral", Family::Mixtral),
    ] {
        let (checkpoint, config) = open(name);
        assert_eq!(config.family, family);
        assert_eq!(config.rope.style, RopeStyle::Neox);
        assert_eq!(config.dtype, Some(TensorFormat::BF16));
        assert!(!config.eos_token_ids.is_empty());
        check_tensors(&checkpoint, &config);
    }
}

#[test]
fn gguf_models() {
    let (_, dense) = open("llama");
    for (name, format) in [
        ("q4_0", TensorFormat::Q4_0),
        ("q4_1", TensorFormat::Q4_1),
        ("q5_0", TensorFormat::Q5_0),
        ("q5_1", TensorFormat::Q5_1),
        ("q8_0", TensorFormat::Q8_0),
        ("q2_k", TensorFormat::Q2_K),
        ("q3_k", TensorFormat::Q3_K),
        ("q4_k", TensorFormat::Q4_K),
        ("q5_k", TensorFormat::Q5_K),
        ("iq4_nl", TensorFormat::IQ4_NL),
        ("q6_k", TensorFormat::Q6_K),
    ] {
        let (checkpoint, config) = open(&format!("gguf/llama/model-{name}.gguf"));
        assert_eq!(config.family, Family::Llama);
        assert_eq!(config.rope.style, RopeStyle::Interleaved);
        assert_eq!(config.rope.theta.to_bits(), dense.rope.theta.to_bits());
        assert_eq!(config.dtype, None);
        assert_eq!((config.hidden_size, config.head_dim), (256, 32));
        assert_eq!((config.bos_token_id, &config.eos_token_ids[..]), (Some(1019), &[1023][..]));
        let q = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
        assert_eq!(q.format, format);
        check_tensors(&checkpoint, &config);
    }
}

/// Rows of q and k as a GGUF of Llama's family orders them: pairs `(i, i + d/2)` become neighbours.
fn interleaved(rows: &[f32], config: &ModelConfig, width: usize) -> Vec<f32> {
    let half = config.head_dim / 2;
    let head = |head: &[f32]| -> Vec<f32> {
        (0..half)
            .flat_map(|i| [i, i + half])
            .flat_map(|row| head[row * width..][..width].to_vec())
            .collect()
    };
    rows.chunks(config.head_dim * width).flat_map(head).collect()
}

#[test]
fn a_gguf_holds_the_same_model() {
    for name in ["llama32", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe"] {
        let (safetensors, hf) = open(name);
        let (gguf, config) = open(&format!("gguf/{name}/model-bf16.gguf"));
        check_tensors(&gguf, &config);
        for tensor in safetensors.names() {
            let mut expected = safetensors.tensor(tensor).unwrap().dequantize().unwrap();
            let permuted = tensor.contains("q_proj") || tensor.contains("k_proj");
            if permuted && config.rope.style == RopeStyle::Interleaved {
                expected = interleaved(&expected, &config, config.hidden_size);
            }
            assert!(gguf.tensor(tensor).unwrap().dequantize().unwrap() == expected, "{tensor}");
        }
        let table = |config| halyard_weights::rope_table(config, 64);
        let close = |(a, b): (f32, f32)| (a - b).abs() < 1e-4;
        assert!(table(&config).into_iter().zip(table(&hf)).all(close), "{name}");
        // What the formats can't both say, or round differently.
        let same = ModelConfig {
            rope: hf.rope.clone(),
            rms_norm_eps: hf.rms_norm_eps,
            eos_token_ids: hf.eos_token_ids.clone(),
            ..config.clone()
        };
        assert_eq!(same, hf);
        assert!((config.rms_norm_eps / hf.rms_norm_eps - 1.0).abs() < 1e-6);
        assert!(hf.eos_token_ids.contains(&config.eos_token_ids[0]));
    }
}

#[test]
fn facts_of_some_configurations() {
    let (_, llama32) = open("llama32");
    assert!(llama32.tie_word_embeddings);
    assert!(matches!(llama32.rope.scaling, RopeScaling::Llama3 { .. }));
    assert_eq!(llama32.eos_token_ids, [1020, 1023]);
    let (_, qwen3) = open("qwen3");
    assert!(qwen3.qk_norm && !qwen3.qkv_bias && !qwen3.is_moe());
    let (_, qwen2_moe) = open("qwen2_moe");
    assert!(qwen2_moe.qkv_bias && !qwen2_moe.o_bias);
    let MlpKind::Moe(moe) = qwen2_moe.layers[0].mlp else { panic!("layer 0 is dense") };
    assert_eq!((moe.num_experts, moe.top_k, moe.norm_topk_prob), (8, 2, false));
    assert_eq!(moe.shared_intermediate_size, Some(256));
}

#[test]
fn a_missing_tensor_names_the_nearest() {
    let (checkpoint, _) = open("llama");
    let error = checkpoint.tensor("model.layers.0.self_attn.qproj.weight").unwrap_err().to_string();
    assert!(error.contains("model.layers.0.self_attn.q_proj.weight"), "{error}");
}

#[test]
fn golden_tensors_open_too() {
    let checkpoint = Checkpoint::open(&models().join("llama/golden.tensors")).unwrap();
    assert_eq!(checkpoint.tensor("p0.input_ids").unwrap().format, TensorFormat::I32);
}
