//! Models that several devices share: the same answers, and refusals that say what would do.

mod support;

use std::path::Path;

use halyard_core::{Device, OpBuf, OpKind};
use halyard_engine::{EngineEvent, LoadOptions, Plan, SamplingParams};
use halyard_sdk::abi::AttrKey;
use halyard_weights::Checkpoint;
use support::{
    DENSE, QUANTISED, W8A8, changed, check::check, events, folder, goldens, greedy, options,
    quantised, ranks, start_shared, submit,
};

/// Numbers of ranks that a golden model with a multiple of them as heads can have: with two heads of keys, four share each.
const RANKS: [usize; 2] = [2, 4];

fn dequantised() -> LoadOptions {
    LoadOptions { allow_dequant: true, ..options() }
}

#[test]
fn dense_models() {
    for model in DENSE {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        for count in RANKS {
            let [oracle, devices] = ranks(count);
            check(&oracle, model, &goldens[..1], &options());
            check(&devices, model, &goldens, &options());
        }
    }
}

#[test]
fn dense_models_as_gguf() {
    let [_, devices] = ranks(2);
    for model in DENSE.iter().filter(|model| **model != "llama") {
        let goldens = goldens(&format!("{model}/golden.tensors"));
        check(&devices, &format!("gguf/{model}/model-bf16.gguf"), &goldens, &options());
    }
}

/// Layers whose scales a rank could have only parts of become plain numbers.
#[test]
fn quantised_checkpoints() {
    let file = |model: &str| goldens(&format!("{model}/golden.tensors"));
    let [oracle, devices] = ranks(2);
    for model in QUANTISED {
        // The oracle is slow: one prompt.
        check(&oracle, model, &file(model)[..1], &dequantised());
        check(&devices, model, &file(model), &dequantised());
    }
    let [_, devices] = ranks(4);
    for model in QUANTISED.iter().filter(|model| **model != "llama_fp8") {
        check(&devices, model, &file(model), &dequantised());
    }
}

/// As they are in the file, where blocks and groups allow.
#[test]
fn quantised_layers_are_cut_as_they_are() {
    for (model, golden) in [
        ("llama_awq", "llama_awq/golden.tensors"),
        ("llama_gptq", "llama_gptq/golden.tensors"),
        ("qwen2_awq", "qwen2_awq/golden.tensors"),
        ("gguf/llama/model-q4_0.gguf", "gguf/llama/golden-q4_0.tensors"),
        ("gguf/llama/model-q8_0.gguf", "gguf/llama/golden-q8_0.tensors"),
        ("gguf/llama/model-iq4_nl.gguf", "gguf/llama/golden-iq4_nl.tensors"),
    ] {
        let [oracle, devices] = ranks(2);
        check(&oracle, model, &goldens(golden)[..1], &options());
        check(&devices, model, &goldens(golden), &options());
    }
}

#[test]
fn inputs_of_eight_bits() {
    for devices in ranks(2) {
        for model in W8A8 {
            let goldens = goldens(&format!("{model}/golden-tp2.tensors"));
            check(&devices, model, &goldens, &options());
        }
    }
}

#[test]
fn quantised_gguf() {
    let [_, devices] = ranks(2);
    for form in quantised() {
        let goldens = goldens(&format!("gguf/llama/golden-{form}.tensors"));
        check(&devices, &format!("gguf/llama/model-{form}.gguf"), &goldens, &dequantised());
    }
}

/// The ranks' columns of the logits need not be equally many: each prompt's distribution with a vocabulary of 1023.
#[test]
fn a_vocabulary_that_is_no_multiple() {
    let model = support::with_vocabulary("qwen2_moe", 1023);
    let path = model.path().to_str().expect("UTF-8");
    let params = SamplingParams {
        prompt_logprobs: Some(1023),
        repetition_penalty: 1.1,
        logprobs: Some(5),
        ..greedy(8)
    };
    for (alone, shared) in ranks(1).into_iter().zip(ranks(4)) {
        let answer = |devices: &[Device]| {
            let options = LoadOptions { max_logprobs: 1023, ..options() };
            let engine = start_shared(devices, path, &options, Box::new(()));
            let all = events(submit(&engine, &[5, 900, 1022, 17, 255, 256, 511], params.clone()));
            engine.shutdown();
            all
        };
        let (alone, shared) = (answer(&alone), answer(&shared));
        assert_eq!(alone.len(), shared.len());
        for (alone, shared) in alone.iter().zip(&shared) {
            let (EngineEvent::Prompt(a), EngineEvent::Prompt(b)) = (alone, shared) else {
                let id = |event: &EngineEvent| match event {
                    EngineEvent::Token(token) => Some(token.id),
                    _ => None,
                };
                assert_eq!(id(alone), id(shared));
                continue;
            };
            let rows = a.logprobs.iter().flatten().zip(b.logprobs.iter().flatten()).skip(1);
            for (a, b) in rows.map(|(a, b)| (a.as_ref().expect("all"), b.as_ref().expect("all"))) {
                let of = |id: u32| b.top.iter().find(|(other, _)| *other == id).expect("all ids").1;
                assert!(
                    a.top.len() == 1023 && a.top.iter().all(|&(id, p)| (p - of(id)).abs() < 1e-4)
                );
            }
        }
    }
}

fn refusal(path: &Path, devices: &[Device]) -> String {
    let checkpoint = Checkpoint::open(path).expect("opens");
    Plan::new(devices, checkpoint, &options()).expect_err("cannot be shared").to_string()
}

#[test]
fn what_does_not_come_out_even_is_refused_with_numbers() {
    let ranks = |count| ranks(count).into_iter().next().expect("the oracle");
    let of = |model: &str, count| refusal(&folder(model), &ranks(count));
    let layer = "model.layers.0";
    assert_eq!(
        of("llama", 3),
        format!(
            "tensor_parallel_size: 3 ranks cannot share {layer}.self_attn.q_proj: \
             num_attention_heads = 4 is no multiple of 3; 1, 2, 4 work"
        )
    );
    assert_eq!(
        of("gguf/llama/model-q4_k.gguf", 2),
        format!(
            "tensor_parallel_size: 2 ranks cannot share {layer}.self_attn.o_proj.weight: a rank \
             would have columns 0 to 128 of 256: its columns share scales in blocks of 256 \
             (--allow-dequant makes it plain numbers); 1 works"
        )
    );
    let error = of("llama_awq", 4);
    assert!(error.contains("columns 0 to 64 of 256"), "{error}");
    assert!(error.contains("blocks of 128") && error.ends_with("1, 2 work"), "{error}");
    let error = of("llama_fp8", 2);
    assert!(error.contains("q_proj.weight: a rank would have rows 0 to 96 of 192"), "{error}");
    assert!(error.contains("share scales in blocks of 128"), "{error}");
    let error = of("qwen2_gptq_act_order", 2);
    assert!(error.contains("o_proj.qweight") && error.contains("act-order"), "{error}");

    for (changes, expected) in [
        // Weights of the wrong shape are none of the question: heads come first.
        (("num_key_value_heads", 3), "num_key_value_heads = 3 is neither a multiple nor a divisor"),
        (("intermediate_size", 161), "intermediate_size = 161 is no multiple of 2"),
        (("vocab_size", 1), "vocab_size = 1 in parts of 1 leaves nothing for the last"),
    ] {
        let mut all = vec![(changes.0, changes.1.into())];
        if changes.0 == "num_key_value_heads" {
            all.push(("num_attention_heads", 6.into()));
        }
        let error = refusal(changed("llama", &all).path(), &ranks(2));
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let error = refusal(&folder("llama"), &[]);
    assert_eq!(error, "tensor_parallel_size: must be 1 to 64, got 0");
    let mixed: Vec<Device> = support::devices();
    let error = refusal(&folder("llama"), &mixed);
    assert!(error.contains("of one backend"), "{error}");
}

/// What the gate is to prove: with the shapes of the shares, and what differs from rank to rank.
#[test]
fn every_ranks_kernels_are_in_the_set() {
    let [_, devices] = ranks(2);
    let checkpoint = Checkpoint::open(&folder("llama")).expect("opens");
    let plan = Plan::new(&devices, checkpoint, &options()).expect("fits");
    let sets = plan.kernel_sets();
    let [(_, ops)] = &sets[..] else { panic!("devices of one kind: {sets:?}") };
    let rows = |op: &OpBuf| op.weights().iter().map(|w| [w.n, w.k]).collect::<Vec<_>>();
    let of = |kind| ops.iter().filter(move |op| op.kind() == kind);
    let starts: Vec<i64> = of(OpKind::EMBEDDING)
        .filter_map(|op| op.attrs().iter().find(|attr| attr.key == AttrKey::VOCAB_START))
        .map(|attr| attr.bits.cast_signed())
        .collect();
    assert_eq!(starts, [0, 512]);
    let linear: Vec<_> = of(OpKind::LINEAR).flat_map(rows).collect();
    // qkv, o, gate and up, down, output layer; some for all tokens and some for the wanted ones, alike.
    assert_eq!(linear, [[64, 64], [64, 32], [160, 64], [64, 80], [512, 64]]);
    assert!(of(OpKind::PAGED_ATTENTION).all(|op| op.tensors()[0].dims()[1] == 2));
    assert_eq!(of(OpKind::ARGMAX).count(), 1);
}

#[test]
fn the_pool_and_the_weights_are_divided() {
    let info = |count| {
        let [_, devices] = ranks(count);
        let checkpoint = Checkpoint::open(&folder("qwen2_awq")).expect("opens");
        let options = LoadOptions { kv_cache_memory_bytes: Some(1 << 20), ..options() };
        Plan::new(&devices, checkpoint, &options).expect("fits").info().clone()
    };
    let (one, two) = (info(1), info(2));
    // A rank has half of each block, in as many bytes as one device would have.
    assert_eq!((two.num_blocks, two.kv_bytes), (2 * one.num_blocks, 2 * one.kv_bytes));
    assert!(two.weight_bytes < one.weight_bytes + one.weight_bytes / 8, "{two:?}");
}
