//! The recorded programs of the golden models, without a device.

use std::{collections::HashMap, path::PathBuf};

use halyard_core::{DType, ops::check::check_desc};
use halyard_weights::Checkpoint;

use crate::{
    program::{Content, Graph, Program, Source},
    sampling,
};

fn folder(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(path)
}

fn open(model: &str) -> Checkpoint {
    Checkpoint::open(&folder(model)).expect("test data")
}

/// Every golden model, in every form.
fn models() -> Vec<String> {
    let mut models: Vec<String> =
        ["llama", "llama32", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"]
            .map(str::to_owned)
            .to_vec();
    for family in models.clone() {
        let files = std::fs::read_dir(folder("gguf").join(&family)).expect("test data");
        let names = files.map(|file| file.expect("test data").file_name().into_string());
        let files = names.flatten().filter(|name| name.ends_with(".gguf"));
        models.extend(files.map(|name| format!("gguf/{family}/{name}")));
    }
    assert!(models.len() > 20, "{models:?}");
    models
}

fn record(checkpoint: &Checkpoint) -> Program {
    let config = checkpoint.config().expect("test data");
    let source = Source::new(checkpoint);
    let mut graph = Graph::new(&source, DType::F32, false);
    let decoder = super::record(&mut graph, &config, 128, 16).expect("a model we know");
    sampling::record(&mut graph, &decoder.logits, config.vocab_size, 5);
    graph.finish()
}

#[test]
fn every_operation_keeps_to_the_catalogue() {
    for model in models() {
        for op in &record(&open(&model)).ops {
            if let Err(error) = check_desc(&op.desc()) {
                panic!("{model}: {op}: {error}");
            }
        }
    }
}

#[test]
fn every_tensor_is_used_once() {
    for model in models() {
        let checkpoint = open(&model);
        let program = record(&checkpoint);
        let mut uses: HashMap<&str, usize> = checkpoint.names().map(|name| (name, 0)).collect();
        let parts = program.weights.iter().flat_map(|spec| &spec.parts);
        let vectors = program.buffers.iter().flat_map(|buffer| match &buffer.content {
            Content::Vectors(names) => names.as_slice(),
            _ => &[],
        });
        for name in parts.map(|part| &part.tensor).chain(vectors) {
            *uses.get_mut(name.as_str()).expect("the checkpoint has it") += 1;
        }
        // The rotary factors went into the table.
        uses.remove("rope_freqs.weight");
        let odd: Vec<_> = uses.iter().filter(|(_, count)| **count != 1).collect();
        assert!(odd.is_empty(), "{model}: {odd:?}");
    }
}

#[test]
fn equal_layers_share_their_kernels_and_like_parts_one_weight() {
    let program = record(&open("llama"));
    let linears = program.ops.iter().filter(|op| op.kind().name() == Some("linear")).count();
    // qkv, o, gate and up, down, output layer.
    assert_eq!(linears, 5);
    assert_eq!(program.weights[1].parts.len(), 3);
    assert_eq!(program.weights[1].desc.n, 64 + 2 * 32);
}
