//! GGUF files, right ones and wrong ones.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use halyard_weights::gguf::Gguf;
use halyard_weights::{Checkpoint, Family, MlpKind, RopeScaling, TensorFormat, WeightsError};
use proptest::prelude::*;
use support::{Builder, Value};

fn small() -> Builder {
    Builder::default()
        .value("a.text", Value::Str("héllo".to_owned()))
        .value("a.number", Value::U32(7))
        .value("a.float", Value::F32(0.5))
        .value("a.flag", Value::Bool(true))
        .value("a.list", Value::I32s(vec![-1, 2]))
        .value("a.names", Value::Strings(vec!["x".to_owned(), String::new()]))
        .f32s("t", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .tensor("q", &[2, 32], 2, vec![0; 36])
}

/// Positions of 8-byte little-endian values in the file.
fn find(file: &[u8], value: u64) -> Vec<usize> {
    let needle = value.to_le_bytes();
    (0..file.len() - 7).filter(|at| file[*at..*at + 8] == needle).collect()
}

#[test]
fn values_and_tensors() {
    let file = small().build();
    let gguf = Gguf::parse(&file).unwrap();
    let metadata = gguf.metadata(&file);
    assert_eq!(metadata.str("a.text"), Some("héllo"));
    assert_eq!((metadata.u64("a.number"), metadata.u32("a.number")), (Some(7), Some(7)));
    assert_eq!(metadata.f64("a.float"), Some(0.5));
    assert_eq!(metadata.bool("a.flag"), Some(true));
    assert_eq!(metadata.i64_array("a.list"), Some(vec![-1, 2]));
    assert_eq!(metadata.str_array("a.names"), Some(vec!["x", ""]));
    assert_eq!(metadata.str("a.number"), None);
    assert_eq!(metadata.u64("absent"), None);
    assert_eq!(metadata.value("a.list").unwrap(), "an array of 2 I32");
    let [t, q] = gguf.tensors() else { panic!("two tensors") };
    assert_eq!((t.shape.as_slice(), t.format), (&[2, 3][..], TensorFormat::F32));
    assert_eq!((q.num_bytes, q.format), (36, TensorFormat::Q4_0));
    assert_eq!(q.offset % 32, 0);
}

#[test]
fn mistakes_are_named() {
    let message = |file: &[u8]| Gguf::parse(file).unwrap_err().to_string();
    let good = small().build();
    assert!(message(b"GGML").contains("GGUF"));
    let mut version = good.clone();
    version[4] = 1;
    assert!(message(&version).contains("version"));
    version[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert!(message(&version).contains("big-endian"));
    assert!(message(&good[..good.len() - 1]).contains("tensor q"));
    assert!(
        message(&small().value("a.text", Value::Bool(true)).build())
            .contains("a.text is there twice")
    );
    assert!(message(&small().f32s("t", &[1], &[1.0]).build()).contains("tensor t is there twice"));
    assert!(
        message(&Builder::default().tensor("x", &[32], 23, vec![0; 32]).build()).contains("IQ4_XS")
    );
    assert!(
        message(&Builder::default().tensor("x", &[33], 2, vec![0; 36]).build()).contains("blocks")
    );
    assert!(
        message(&Builder::default().tensor("x", &[1; 5], 0, vec![0; 4]).build())
            .contains("at most 4")
    );
    let odd = Builder::default().value("general.alignment", Value::U32(3)).build();
    assert!(message(&odd).contains("power of two"));
    // The second tensor's offset, 32, becomes 0.
    let mut overlap = good.clone();
    let at = *find(&overlap, 32).last().unwrap();
    overlap[at..at + 8].copy_from_slice(&0_u64.to_le_bytes());
    assert!(message(&overlap).contains("overlap"));
    let mut far = good;
    far[at..at + 8].copy_from_slice(&(u64::MAX - 31).to_le_bytes());
    assert!(message(&far).contains("tensor q"));
}

#[test]
fn huge_counts_allocate_nothing() {
    let good = small().build();
    for at in 0..good.len() - 8 {
        for value in [u64::MAX, u64::MAX / 2, 1 << 60, 1 << 40, u64::from(u32::MAX)] {
            let mut file = good.clone();
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let _ = Gguf::parse(&file);
        }
    }
    // Arrays in arrays in arrays: refused, not followed.
    let mut nested = b"GGUF\x03\0\0\0".to_vec();
    nested.extend([0_u64.to_le_bytes(), 1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat());
    nested.extend(b"k\x09\0\0\0");
    for _ in 0..10_000 {
        nested.extend(9_u32.to_le_bytes());
        nested.extend(1_u64.to_le_bytes());
    }
    assert!(Gguf::parse(&nested).unwrap_err().to_string().contains("nested"));
}

/// A mixture with stacked experts, as its converter writes it.
fn mixture() -> Builder {
    let key = |name: &str| format!("qwen2moe.{name}");
    let number = |builder: Builder, name: &str, value| builder.value(&key(name), Value::U32(value));
    let mut builder =
        Builder::default().value("general.architecture", Value::Str("qwen2moe".to_owned()));
    for (name, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 4),
        ("feed_forward_length", 6),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("expert_count", 3),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 2),
    ] {
        builder = number(builder, name, value);
    }
    builder = builder.value(&key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6));
    let experts: Vec<f32> = (0..24_u8).map(f32::from).collect();
    builder
        .f32s("token_embd.weight", &[8, 4], &[0.0; 32])
        .f32s("blk.0.attn_q.bias", &[4], &[0.0; 4])
        .f32s("blk.0.ffn_gate_inp.weight", &[3, 4], &[0.0; 12])
        .f32s("blk.0.ffn_gate_inp_shexp.weight", &[4], &[0.0; 4])
        .f32s("blk.0.ffn_gate_shexp.weight", &[5, 4], &[0.0; 20])
        .f32s("blk.0.ffn_up_exps.weight", &[3, 2, 4], &experts)
}

fn write(name: &str, file: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, file).unwrap();
    (dir, path)
}

#[test]
fn stacked_experts_come_apart() {
    let (_dir, path) = write("m.gguf", &mixture().build());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let second = checkpoint.tensor("model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
    assert_eq!(second.shape, [2, 4]);
    assert_eq!(second.dequantize().unwrap(), [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
    assert!(!checkpoint.contains("model.layers.0.mlp.experts.3.up_proj.weight"));
    let gate = checkpoint.tensor("model.layers.0.mlp.shared_expert_gate.weight").unwrap();
    assert_eq!(gate.shape, [1, 4]);
    let config = checkpoint.config().unwrap();
    assert_eq!(config.family, Family::Qwen2Moe);
    assert!(config.qkv_bias && config.tie_word_embeddings);
    assert_eq!(config.rope.scaling, RopeScaling::None);
    let MlpKind::Moe(moe) = config.layers[0].mlp else { panic!("a mixture") };
    assert_eq!((moe.num_experts, moe.top_k, moe.intermediate_size), (3, 2, 2));
    assert_eq!((moe.norm_topk_prob, moe.shared_intermediate_size), (false, Some(5)));
}

#[test]
fn configurations_that_are_not_supported_say_so() {
    let message = |builder: Builder| {
        let (_dir, path) = write("m.gguf", &builder.build());
        let error = Checkpoint::open(&path).unwrap().config().unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    let gemma = Builder::default().value("general.architecture", Value::Str("gemma".to_owned()));
    assert_eq!(
        message(gemma),
        "field general.architecture is gemma, supported: llama, qwen2, qwen2moe, qwen3, qwen3moe"
    );
    let missing = Builder::default().value("general.architecture", Value::Str("llama".to_owned()));
    assert_eq!(message(missing), "field llama.embedding_length is missing");
    let scaled = mixture().value("qwen2moe.logit_scale", Value::F32(2.0));
    assert!(message(scaled).contains("qwen2moe.logit_scale is 2"));
    let rope = mixture().value("qwen2moe.rope.scaling.type", Value::Str("longrope".to_owned()));
    assert!(message(rope).contains("longrope, supported: none, linear, yarn"));
    let factors = mixture().f32s("rope_freqs.weight", &[3], &[1.0; 3]);
    assert!(message(factors).contains("rope_freqs.weight length is 3"));
}

#[test]
fn split_files_are_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let part = |number: u32, count: u32| {
        Builder::default()
            .value("split.count", Value::U32(count))
            .value("split.tensors.count", Value::U32(2))
            .f32s(&format!("t{number}"), &[1], &[1.5])
            .build()
    };
    for number in 1..=2 {
        let name = format!("m-0000{number}-of-00002.gguf");
        std::fs::write(dir.path().join(name), part(number, 2)).unwrap();
    }
    for path in [dir.path().to_owned(), dir.path().join("m-00002-of-00002.gguf")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert!(checkpoint.contains("t1") && checkpoint.contains("t2"));
    }
    let path = dir.path().join("m-00001-of-00002.gguf");
    std::fs::write(&path, part(1, 3)).unwrap();
    assert!(matches!(Checkpoint::open(&path), Err(WeightsError::Format { .. })));
    std::fs::write(&path, part(2, 2)).unwrap();
    assert!(matches!(Checkpoint::open(&path), Err(WeightsError::DuplicateTensor { .. })));
    std::fs::remove_file(dir.path().join("m-00002-of-00002.gguf")).unwrap();
    assert!(matches!(Checkpoint::open(&path), Err(WeightsError::Io { .. })));
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = mixture().build();
        for (at, value) in damage {
            let at = at.index(file.len());
            file[at] = value;
        }
        let keep = file.len() / 2 + cut.index(file.len() / 2 + 1);
        for file in [&file[..], &file[..keep.min(file.len())]] {
            if let Ok(gguf) = Gguf::parse(file) {
                for tensor in gguf.tensors() {
                    prop_assert!(tensor.offset + tensor.num_bytes <= file.len() as u64);
                }
                let metadata = gguf.metadata(file);
                for key in metadata.keys() {
                    let _ = (metadata.value(key), metadata.str_array(key), metadata.i64_array(key));
                }
            }
        }
    }
}
