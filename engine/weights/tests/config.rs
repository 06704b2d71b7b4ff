//! `config.json`: what it means, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use halyard_weights::{
    Activation, Compressed, ConfigError, Family, MlpKind, ModelConfig, QuantMethod, Quantization,
    RopeScaling, TensorFormat,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5
    })
}

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
fn with(changes: Value) -> Result<ModelConfig, ConfigError> {
    let mut config = base();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string(), None)
}

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.layers.iter().map(|layer| layer.sliding_window).collect()
}

#[test]
fn defaults() {
    let config = with(json!({})).unwrap();
    assert_eq!(config.family, Family::Llama);
    assert_eq!(config.head_dim, 16);
    assert_eq!((config.rope.theta, config.rope.dim), (10_000.0, 16));
    assert_eq!(config.hidden_act, Activation::Silu);
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias);
    assert_eq!(config.dtype, None);
    assert_eq!(config.eos_token_ids, Vec::<u32>::new());
}

#[test]
fn newer_spellings() {
    let config = with(json!({
        "dtype": "float16",
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 2.0}
    }))
    .unwrap();
    assert_eq!(config.dtype, Some(TensorFormat::F16));
    assert_eq!(config.rope.theta.to_bits(), 500_000_f64.to_bits());
    assert_eq!(config.rope.scaling, RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn sliding_windows() {
    let mistral = with(json!({"model_type": "mistral", "sliding_window": 32})).unwrap();
    assert_eq!(windows(&mistral), [Some(32); 4]);
    let none = with(json!({"model_type": "mistral", "sliding_window": null})).unwrap();
    assert_eq!(windows(&none), [None; 4]);
    let llama = with(json!({"sliding_window": 32})).unwrap();
    assert_eq!(windows(&llama), [None; 4]);
    let unused = json!({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": false});
    assert_eq!(windows(&with(unused).unwrap()), [None; 4]);
    let upper = json!({
        "model_type": "qwen2", "sliding_window": 32, "use_sliding_window": true,
        "max_window_layers": 3
    });
    assert_eq!(windows(&with(upper).unwrap()), [None, None, None, Some(32)]);
    let named = json!({
        "model_type": "qwen3", "sliding_window": 8, "use_sliding_window": true,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    });
    assert_eq!(windows(&with(named).unwrap()), [None, Some(8), None, None]);
    assert!(with(json!({"model_type": "mistral", "sliding_window": 0})).is_err());
}

#[test]
fn sparse_layers() {
    let moe = json!({
        "model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "norm_topk_prob": true
    });
    let config = with(moe.clone()).unwrap();
    let sparse: Vec<bool> =
        config.layers.iter().map(|layer| matches!(layer.mlp, MlpKind::Moe(_))).collect();
    assert_eq!(sparse, [false, true, false, false]);
    let mut too_many = moe;
    too_many["num_experts_per_tok"] = json!(9);
    let error = with(too_many).unwrap_err().to_string();
    assert_eq!(error, "field num_experts_per_tok is 9, expected 1 to 8");
}

#[test]
fn biases() {
    let bias = |model: &str, attention_bias| {
        let config = with(json!({"model_type": model, "attention_bias": attention_bias})).unwrap();
        (config.qkv_bias, config.o_bias)
    };
    assert_eq!(bias("llama", true), (true, true));
    assert_eq!(bias("qwen2", false), (true, false));
    assert_eq!(bias("qwen3", false), (false, false));
}

#[test]
fn generation_defaults_and_ends() {
    let generation = r#"{"eos_token_id": [7, 5], "temperature": 0.6, "top_p": 0.95, "top_k": 20,
                         "repetition_penalty": 1.05, "do_sample": true}"#;
    let mut config = base();
    config["eos_token_id"] = json!(5);
    config["bos_token_id"] = json!(1);
    let config = ModelConfig::from_json(&config.to_string(), Some(generation)).unwrap();
    assert_eq!(config.eos_token_ids, [7, 5]);
    assert_eq!(config.bos_token_id, Some(1));
    let defaults = config.generation;
    assert_eq!(
        (defaults.temperature, defaults.top_p, defaults.top_k),
        (Some(0.6), Some(0.95), Some(20))
    );
    assert_eq!((defaults.repetition_penalty, defaults.min_p), (Some(1.05), None));
}

#[test]
fn refusals_name_field_value_and_choice() {
    let cases = [
        (json!({"model_type": "gpt2"}), "field model_type is gpt2, supported: llama, mistral"),
        (json!({"model_type": null}), "field model_type is missing"),
        (json!({"hidden_act": "relu"}), "field hidden_act is relu, supported: silu"),
        (
            json!({"quantization_config": {"quant_method": "bitsandbytes"}}),
            "field quantization_config.quant_method is bitsandbytes, supported: awq, gptq, fp8, compressed-tensors",
        ),
        (json!({"quantization_config": {}}), "field quantization_config.quant_method is missing"),
        (json!({"quantization_config": 4}), "field quantization_config is 4, expected an object"),
        (
            json!({"quantization_config": {"quant_method": "awq", "bits": 3}}),
            "field quantization_config.bits is 3, supported: 4",
        ),
        (
            json!({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}}),
            "field quantization_config.version is \"gemv\", supported: gemm",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 0}}),
            "field quantization_config.group_size is 0, expected -1, or 1 to",
        ),
        (
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}),
            "field quantization_config.checkpoint_format is marlin, supported: gptq, gptq_v2",
        ),
        (
            json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}),
            "field quantization_config.weight_block_size is [64,64], supported: [128, 128]",
        ),
        (
            json!({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}),
            "field quantization_config.config_groups is {}, expected a group",
        ),
        (
            json!({"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}),
            "field quantization_config.format is \"nvfp4-pack-quantized\", supported: pack-quantized",
        ),
        (
            json!({"rope_scaling": {"type": "dynamic", "factor": 2}}),
            "field rope_scaling.type is dynamic, supported: default, linear, llama3, yarn",
        ),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "field rope_scaling.factor is missing"),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}),
            "field rope_scaling.factor is 0, expected a number above 0",
        ),
        (json!({"rope_scaling": 3}), "field rope_scaling is 3, expected an object"),
        (json!({"partial_rotary_factor": 0.5}), "field partial_rotary_factor is 0.5, supported: 1"),
        (json!({"mlp_bias": true}), "field mlp_bias is true"),
        (json!({"torch_dtype": "int8"}), "field torch_dtype is int8, supported: float32"),
        (json!({"hidden_size": "64"}), "field hidden_size is \"64\", expected a whole number"),
        (json!({"hidden_size": -1}), "field hidden_size is -1"),
        (
            json!({"num_key_value_heads": 3}),
            "field num_key_value_heads is 3, expected a divisor of num_attention_heads = 4",
        ),
        (json!({"num_attention_heads": 0}), "field num_attention_heads is 0"),
        (json!({"num_hidden_layers": 1_000_000_000_u64}), "field num_hidden_layers is 1000000000"),
        (json!({"vocab_size": u64::MAX}), "field vocab_size is"),
        (json!({"head_dim": 15}), "field head_dim is 15"),
        (json!({"eos_token_id": "x"}), "field eos_token_id is \"x\", expected a token id"),
    ];
    for (change, expected) in cases {
        let message = with(change.clone()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{change}: {message}");
    }
    assert!(matches!(ModelConfig::from_json("[", None), Err(ConfigError::Json(_))));
    assert!(ModelConfig::from_json("[]", None).unwrap_err().to_string().contains("the whole file"));
}

#[test]
fn quantizations() {
    let read = |config: Value| with(json!({"quantization_config": config})).unwrap().quantization;
    assert_eq!(with(json!({"quantization_config": null})).unwrap().quantization, None);
    let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMM",
        "zero_point": true, "modules_to_not_convert": ["visual"]});
    assert_eq!(read(awq), Some(Quantization::Awq { group_size: Some(128) }));
    let gptq = |format| {
        json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": true, "sym": false,
            "checkpoint_format": format})
    };
    let stored = |zero_offset| Some(Quantization::Gptq { group_size: None, zero_offset });
    assert_eq!(read(gptq("gptq")), stored(1));
    assert_eq!(read(gptq("gptq_v2")), stored(0));
    let fp8 = json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128]});
    assert_eq!(read(fp8), Some(Quantization::Fp8 { blocks: true }));
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "static"});
    assert_eq!(read(fp8), Some(Quantization::Fp8 { blocks: false }));
    let compressed = |weights: Value| {
        let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
        read(json!({"quant_method": "compressed-tensors", "config_groups": groups,
            "ignore": ["lm_head"]}))
    };
    for (weights, stored) in [
        (
            json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}),
            Compressed::Int4 { group_size: Some(64), symmetric: true },
        ),
        (
            json!({"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": false}),
            Compressed::Int4 { group_size: None, symmetric: false },
        ),
        (
            json!({"num_bits": 8, "type": "int", "strategy": "channel"}),
            Compressed::Int8 { rounds_inputs: false },
        ),
        (json!({"num_bits": 8, "type": "float"}), Compressed::Fp8 { blocks: false }),
        (
            json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}),
            Compressed::Fp8 { blocks: true },
        ),
    ] {
        assert_eq!(compressed(weights), Some(Quantization::CompressedTensors(stored)));
    }
    for method in QuantMethod::ALL {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    assert!("int3".parse::<QuantMethod>().is_err());
}

/// LLM Compressor's int8 layers with inputs that are treated so.
fn int8_with(inputs: &Value) -> Result<ModelConfig, ConfigError> {
    let weights = json!({"num_bits": 8, "type": "int", "strategy": "channel"});
    let groups = json!({"group_0": {"weights": weights, "input_activations": inputs}});
    with(json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups,
    }}))
}

#[test]
fn inputs_are_rounded_a_token_at_a_time_or_not_at_all() {
    let inputs = json!({"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true,
        "symmetric": true});
    for (inputs, rounds_inputs) in [(&inputs, true), (&Value::Null, false)] {
        let found = int8_with(inputs).unwrap().quantization.unwrap();
        let stored = Compressed::Int8 { rounds_inputs };
        assert_eq!(found, Quantization::CompressedTensors(stored));
        assert_eq!(found.rounds_inputs(), rounds_inputs);
    }
    for (key, value) in [
        ("dynamic", json!(false)),
        ("dynamic", json!("local")),
        ("strategy", json!("tensor")),
        ("symmetric", json!(false)),
        ("num_bits", json!(4)),
        ("type", json!("float")),
    ] {
        let mut changed = inputs.clone();
        changed[key] = value;
        let error = int8_with(&changed).unwrap_err().to_string();
        let field = "field quantization_config.config_groups.*.input_activations is ";
        assert!(error.starts_with(field), "{error}");
        let supported =
            "supported: none, or dynamic symmetric int 8 by token (of layers with int 8 weights)";
        assert!(error.ends_with(supported), "{error}");
    }
    // Those of 8-bit floats are not looked at.
    let weights = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    let groups = json!({"g": {"weights": weights, "input_activations": {"dynamic": false}}});
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "config_groups": groups,
    }});
    assert!(!with(config).unwrap().quantization.unwrap().rounds_inputs());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "llama",
            "yarn",
            "linear",
            "llama3",
            "silu",
            "x",
            "awq",
            "fp8",
            "compressed-tensors",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        let keys = prop::sample::select(vec![
            "rope_type",
            "factor",
            "beta_fast",
            "mscale",
            "x",
            "quant_method",
            "bits",
            "config_groups",
            "weights",
            "num_bits",
            "group_size",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(keys.prop_map(str::to_owned), inner, 0..4)
                .prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn odd_values_never_panic(changes in prop::collection::vec((prop::sample::select(vec![
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "rope_theta", "rope_scaling", "rms_norm_eps", "sliding_window",
        "layer_types", "eos_token_id", "num_experts", "mlp_only_layers", "decoder_sparse_step",
        "quantization_config",
    ]), any_json()), 1..5)) {
        let mut config = base();
        for (key, value) in changes {
            config[key] = value;
        }
        if let Ok(config) = ModelConfig::from_json(&config.to_string(), None) {
            let table = halyard_weights::rope_table(&config, 3);
            prop_assert_eq!(table.len(), 3 * config.rope.dim);
        }
    }
}
