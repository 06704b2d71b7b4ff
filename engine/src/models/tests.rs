//! The recorded programs of the golden models, without a device.

use std::{collections::HashMap, path::PathBuf};

use halyard_core::{
    DType, OpBuf, Scheme, WEIGHT_ZERO,
    attrs::{Linear, MoeExperts},
    ops::{OpAttrs, check::check_desc},
};
use halyard_weights::Checkpoint;
use safetensors::{SafeTensors, tensor::TensorView};

use crate::{
    error::LoadError,
    models::Shares,
    program::{Content, Fallback, Graph, Program, Rank, Share, Source, VectorPart},
    sampling,
};

fn folder(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/models").join(path)
}

fn open(model: &str) -> Checkpoint {
    Checkpoint::open(&folder(model)).expect("test data")
}

/// Names in a folder of the golden models.
fn names(path: &str) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(folder(path)).expect("test data");
    entries.map(|entry| entry.expect("test data").file_name().into_string().expect("UTF-8"))
}

/// Every golden model, in every form.
fn models() -> Vec<String> {
    let checkpoint = |name: &String| folder(name).join("config.json").exists();
    let mut models: Vec<String> = names("").filter(checkpoint).collect();
    for family in names("gguf") {
        let files = names(&format!("gguf/{family}")).filter(|name| name.ends_with(".gguf"));
        models.extend(files.map(|name| format!("gguf/{family}/{name}")));
    }
    assert!(models.len() > 20, "{models:?}");
    models.sort();
    models
}

fn record(checkpoint: &Checkpoint) -> Program {
    record_with(checkpoint, None).0
}

fn record_with(checkpoint: &Checkpoint, fallback: Option<Fallback>) -> (Program, Vec<Scheme>) {
    let (program, replaced) =
        record_rank(checkpoint, fallback, Rank::ALONE).expect("a model we know");
    (program, replaced)
}

fn record_rank(
    checkpoint: &Checkpoint,
    fallback: Option<Fallback>,
    rank: Rank,
) -> Result<(Program, Vec<Scheme>), LoadError> {
    let config = checkpoint.config().expect("test data");
    let source = Source::new(checkpoint, &config, fallback);
    let mut graph = Graph::new(&source, DType::F32, false, rank);
    let shares = Shares::new(&config, rank)?;
    let decoder = super::record(&mut graph, &config, &shares, 128, 16)?;
    if rank.index == 0 {
        sampling::record(&mut graph, &decoder.logits, config.vocab_size, 5);
    }
    let replaced = source.replaced().into_iter().map(|replaced| replaced.scheme);
    Ok((graph.finish(), replaced.collect()))
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
        for layer in parts.map(|part| part.layer.name.as_str()) {
            // The weight, or codes, scales and the like.
            let is_of_weight = |name: &str| {
                name.rsplit_once('.').is_some_and(|(of, leaf)| of == layer && leaf != "bias")
            };
            uses.iter_mut()
                .filter(|(name, _)| is_of_weight(name))
                .for_each(|(_, count)| *count += 1);
        }
        for VectorPart { name, .. } in vectors {
            *uses.get_mut(name.as_str()).expect("the checkpoint has it") += 1;
        }
        // The rotary factors went into the table.
        uses.remove("rope_freqs.weight");
        let odd: Vec<_> = uses.iter().filter(|(_, count)| **count != 1).collect();
        assert!(odd.is_empty(), "{model}: {odd:?}");
    }
}

/// The programs of all ranks, if the model can be shared as it is stored.
fn record_shared(checkpoint: &Checkpoint, world: usize) -> Option<Vec<Program>> {
    let ranks = (0..world).map(|index| Rank { index, world });
    let programs = ranks.map(|rank| match record_rank(checkpoint, None, rank) {
        Ok((program, _)) => Some(program),
        Err(LoadError::Indivisible { .. }) => None,
        Err(other) => panic!("{other}"),
    });
    programs.collect()
}

#[test]
fn what_ranks_launch_keeps_to_the_catalogue() {
    let mut shared = 0;
    for model in models() {
        for world in [2, 4] {
            let Some(programs) = record_shared(&open(&model), world) else { continue };
            shared += 1;
            for op in programs.iter().flat_map(|program| &program.ops) {
                if let Err(error) = check_desc(&op.desc()) {
                    panic!("{model}: {op}: {error}");
                }
            }
        }
    }
    assert!(shared > 20, "{shared}");
}

/// How often each row and column of each matrix is on some rank: once, or the same number of times where ranks have copies.
#[test]
fn the_ranks_parts_make_the_whole() {
    let checkpoint = open("qwen2_moe");
    for world in [2, 4] {
        let programs = record_shared(&checkpoint, world).expect("can be shared");
        let mut cover: HashMap<String, (Vec<usize>, Vec<usize>)> = HashMap::new();
        let mut vectors: HashMap<String, Vec<usize>> = HashMap::new();
        let count = |counts: &mut Vec<usize>, share: Share| {
            counts.resize(share.whole, 0);
            counts[share.range()].iter_mut().for_each(|count| *count += 1);
        };
        for program in &programs {
            for part in program.weights.iter().flat_map(|spec| &spec.parts) {
                let (rows, columns) = cover.entry(part.layer.name.clone()).or_default();
                count(rows, part.layer.rows);
                count(columns, part.layer.columns);
            }
            for buffer in &program.buffers {
                if let Content::Vectors(parts) = &buffer.content {
                    for VectorPart { name, share } in parts {
                        count(vectors.entry(name.clone()).or_default(), *share);
                    }
                }
            }
        }
        let even = |name: &str, counts: &[usize]| {
            assert!(counts[0] > 0 && counts.iter().all(|&n| n == counts[0]), "{name}: {counts:?}");
            counts[0]
        };
        for (name, (rows, columns)) in &cover {
            let copies = even(name, rows) * even(name, columns) / world;
            let leaf = name.rsplit('.').next().unwrap_or(name);
            let expected = match leaf {
                "gate" | "shared_expert_gate" => world,
                // Two heads of keys and values.
                "k_proj" | "v_proj" => world / 2,
                _ => 1,
            };
            assert_eq!(copies, expected, "{name} of {world}");
        }
        for (name, counts) in &vectors {
            let copies = even(name, counts);
            let expected = match name.rsplit('.').nth(1) {
                Some("q_proj") => 1,
                Some("k_proj" | "v_proj") => world / 2,
                _ => world,
            };
            assert_eq!(copies, expected, "{name} of {world}");
        }
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

/// The weights of the first layer, each by its parts' names.
fn first_layer(program: &Program) -> Vec<String> {
    let weights = program.weights.iter().map(|spec| {
        let names =
            spec.parts.iter().filter_map(|part| part.layer.name.strip_prefix("model.layers.0."));
        let short = names.map(|name| name.rsplit('.').next().unwrap_or(name));
        short.map(|name| name.trim_end_matches("_proj")).collect::<Vec<_>>().join("+")
    });
    weights.filter(|names| !names.is_empty()).collect()
}

#[test]
fn quantised_layers_share_a_weight_where_their_parts_allow() {
    let names = |model| first_layer(&record(&open(model)));
    assert_eq!(names("llama_awq"), ["q+k+v", "o", "gate+up", "down"]);
    assert_eq!(names("llama_gptq"), ["q+k+v", "o", "gate+up", "down"]);
    // Each has its own order of columns.
    let apart = ["q", "k", "v", "o", "gate", "up", "down"];
    assert_eq!(names("qwen2_gptq_act_order"), apart);
    // 192, 64 and 320 rows end inside blocks of 128.
    assert_eq!(names("llama_fp8"), apart);
    let int4 = record(&open("llama_awq")).weights[1].desc;
    assert_eq!((int4.scheme, int4.dtype, int4.group_size), (Scheme::INT4_GROUP, DType::F16, 128));
    assert_eq!(int4.flags, WEIGHT_ZERO);
}

#[test]
fn weights_of_other_schemes_than_the_devices_become_dense_where_allowed() {
    let fallback = Fallback { schemes: Some(1 << Scheme::DENSE.0), dtype: DType::F16 };
    for (model, scheme) in [
        ("llama_awq", Scheme::INT4_GROUP),
        ("qwen3_moe_fp8", Scheme::FP8_BLOCK),
        ("gguf/llama/model-q4_0.gguf", Scheme::GGUF_Q4_0),
    ] {
        let (program, replaced) = record_with(&open(model), Some(fallback));
        assert!(replaced.contains(&scheme), "{model}: {replaced:?}");
        assert!(program.weights.iter().all(|spec| spec.desc.scheme == Scheme::DENSE), "{model}");
    }
}

/// ACT_QUANT of an operation that has it.
fn act_quant(op: &OpBuf) -> Option<i64> {
    let linear = Linear::from_desc(&op.desc()).ok().map(|attrs| attrs.act_quant);
    linear.or_else(|| Some(MoeExperts::from_desc(&op.desc()).ok()?.act_quant))
}

#[test]
fn inputs_are_rounded_where_weights_are_codes_of_eight_bits() {
    let dense = Fallback { schemes: Some(1 << Scheme::DENSE.0), dtype: DType::F32 };
    for model in ["qwen2_w8a8", "qwen3_moe_w8a8"] {
        let checkpoint = open(model);
        let mut kinds = std::collections::HashSet::new();
        for op in &record(&checkpoint).ops {
            let Some(found) = act_quant(op) else { continue };
            let codes = op.weights()[0].scheme == Scheme::INT8_CHANNEL;
            assert_eq!(found, i64::from(codes), "{model}: {op}");
            kinds.insert((op.kind(), codes));
        }
        // Layers, the output layer; with experts the router, too.
        assert!(kinds.len() >= 2, "{model}: {kinds:?}");
        let (program, replaced) = record_with(&checkpoint, Some(dense));
        assert_eq!(replaced, [Scheme::INT8_CHANNEL]);
        let rounded = program.ops.iter().filter_map(act_quant).filter(|&act_quant| act_quant != 0);
        assert_eq!(rounded.count(), 0, "{model} as plain numbers");
    }
    // 8-bit floats are weights alone, whatever `activation_scheme` says.
    for op in &record(&open("qwen3_moe_fp8")).ops {
        assert!(act_quant(op).is_none_or(|act_quant| act_quant == 0), "{op}");
    }
}

/// An operation rounds the inputs of both layers of an expert, or of none.
#[test]
fn experts_of_which_one_layer_is_plain_are_refused() {
    let (from, to) = (folder("qwen3_moe_w8a8"), tempfile::tempdir().expect("a folder"));
    let bytes = std::fs::read(from.join("quant_model_weights.safetensors")).expect("test data");
    let tensors = SafeTensors::deserialize(&bytes).expect("test data").tensors();
    let down = |name: &str| name.contains(".down_proj.");
    let plain = vec![0; 4 * 64 * 48];
    let mut mixed = Vec::new();
    for (name, tensor) in &tensors {
        let (dtype, data) = match (down(name), name.ends_with(".weight")) {
            (true, true) => (safetensors::Dtype::F32, plain.as_slice()),
            (true, false) => continue,
            (false, _) => (tensor.dtype(), tensor.data()),
        };
        let view = TensorView::new(dtype, tensor.shape().to_vec(), data);
        mixed.push((name, view.expect("64 by 48")));
    }
    let mixed = safetensors::serialize(mixed, None).expect("serialises");
    std::fs::write(to.path().join("quant_model_weights.safetensors"), mixed).expect("writes");
    for file in ["config.json", "quant_model_description.json"] {
        std::fs::copy(from.join(file), to.path().join(file)).expect("copies");
    }
    let checkpoint = Checkpoint::open(to.path()).expect("opens");
    let error = record_rank(&checkpoint, None, Rank::ALONE).expect_err("mixed").to_string();
    let expected = "layer model.layers.0.mlp.experts.0.down_proj is stored as dense, its mixture's experts need int8_channel with rounded inputs";
    assert_eq!(error, expected);
}
