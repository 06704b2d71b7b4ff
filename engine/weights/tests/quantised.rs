//! Quantised layers of safetensors checkpoints, by tensors whose parts are known by hand.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::error::Error;

use halyard_weights::{
    Checkpoint, Compressed, MatrixForm, Quantization, SliceError, TensorFormat, WeightsError,
};
use support::{StTensor, write_safetensors};

const AWQ: Quantization = Quantization::Awq { group_size: Some(2) };
const GPTQ: Quantization = Quantization::Gptq { group_size: Some(4), zero_offset: 1 };

struct Model {
    folder: tempfile::TempDir,
    quantization: Option<Quantization>,
}

impl Model {
    fn new(quantization: Quantization, tensors: &[StTensor<'_>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("model.safetensors"), tensors);
        Self { folder, quantization: Some(quantization) }
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    /// The form, and the parts of some rows.
    fn parts(&self, rows: std::ops::Range<u64>) -> (MatrixForm, Vec<Vec<u8>>) {
        let checkpoint = self.open();
        let matrix = checkpoint.matrix("layer", self.quantization.as_ref()).unwrap();
        let parts = matrix.parts(rows).into_iter().map(std::borrow::Cow::into_owned).collect();
        (matrix.form(), parts)
    }

    fn error(&self) -> (WeightsError, String) {
        let checkpoint = self.open();
        let error = checkpoint.matrix("layer", self.quantization.as_ref()).unwrap_err();
        let why = error.source().map(ToString::to_string).unwrap_or_default();
        (error, why)
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Outputs 0 to 7 have the codes 0 to 7 in AWQ's order, and 8 to 15.
const LOW: u32 = 0x7531_6420;
const HIGH: u32 = 0xfdb9_eca8;

fn awq() -> Vec<StTensor<'static>> {
    vec![
        StTensor::new("layer.qweight", "I32", &[4, 1], words(&[LOW, HIGH, LOW, 0])),
        StTensor::new("layer.qzeros", "I32", &[2, 1], words(&[HIGH, LOW])),
        StTensor::new("layer.scales", "F16", &[2, 8], (0..32).collect()),
    ]
}

#[test]
fn awq_is_turned_and_its_nibbles_sorted() {
    let model = Model::new(AWQ, &awq());
    let (form, parts) = model.parts(2..5);
    assert_eq!(
        form,
        MatrixForm::Int4Group { group_size: 2, scale: TensorFormat::F16, zero: true, perm: None }
    );
    // Of output n: codes n, n + 8, n, 0; zeros n + 8, n; scales are elements n and 8 + n of the file.
    assert_eq!(parts[0], [0xa2, 0x02, 0xb3, 0x03, 0xc4, 0x04]);
    assert_eq!(parts[1], [4, 5, 20, 21, 6, 7, 22, 23, 8, 9, 24, 25]);
    assert_eq!(parts[2], [10, 2, 11, 3, 12, 4]);
    let checkpoint = model.open();
    let matrix = checkpoint.matrix("layer", Some(&AWQ)).unwrap();
    assert_eq!((matrix.shape(), matrix.name()), (vec![8, 4], "layer.qweight"));
    assert!(matrix.is_transposed());
    assert_eq!(matrix.stored().iter().map(|bytes| bytes.len()).sum::<usize>(), 16 + 8 + 32);
}

fn gptq(g_idx: &[u32]) -> Vec<StTensor<'static>> {
    let codes = words(&[0x7654_3210, 0xfedc_ba98, 0, 0, 0, 0, 0, 0x1111_1111]);
    vec![
        StTensor::new("layer.qweight", "I32", &[1, 8], codes),
        StTensor::new("layer.qzeros", "I32", &[2, 1], words(&[0x7654_3210, 0xffff_ffff])),
        StTensor::new("layer.scales", "BF16", &[2, 8], (0..32).collect()),
        StTensor::new("layer.g_idx", "I32", &[g_idx.len() as u64], words(g_idx)),
    ]
}

#[test]
fn gptq_is_turned_and_its_zeros_are_one_more() {
    let model = Model::new(GPTQ, &gptq(&[0, 0, 0, 0, 1, 1, 1, 1]));
    let (form, parts) = model.parts(0..8);
    assert!(matches!(form, MatrixForm::Int4Group { group_size: 4, perm: None, .. }));
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[0][..8], [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe]);
    assert_eq!(parts[0][28..], [0x11; 4]);
    assert_eq!(parts[1][..8], [0, 1, 16, 17, 2, 3, 18, 19]);
    // 15 stands for zero.
    assert_eq!(parts[2], [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 7, 0, 8, 0]);

    let second = Quantization::Gptq { group_size: Some(4), zero_offset: 0 };
    let (_, parts) = Model { quantization: Some(second), ..model }.parts(0..2);
    assert_eq!(parts[2], [0, 15, 1, 15]);
}

#[test]
fn act_order_sorts_columns_by_group() {
    let model = Model::new(GPTQ, &gptq(&[1, 0, 1, 0, 1, 0, 1, 0]));
    let (form, parts) = model.parts(0..1);
    let MatrixForm::Int4Group { perm: Some(perm), .. } = form else { panic!("{form:?}") };
    assert_eq!(*perm, [1, 3, 5, 7, 0, 2, 4, 6]);
    // The row's codes are their inputs' numbers.
    assert_eq!(parts[0], [0x31, 0x75, 0x20, 0x64]);
    assert_eq!(parts[3], words(&[1, 3, 5, 7, 0, 2, 4, 6]));
}

#[test]
fn rows_that_are_one_group() {
    let whole = Quantization::Gptq { group_size: None, zero_offset: 1 };
    let mut tensors = gptq(&[0; 8]);
    tensors[1] = StTensor::new("layer.qzeros", "I32", &[1, 1], words(&[0x7777_7777]));
    tensors[2] = StTensor::new("layer.scales", "F16", &[1, 8], (0..16).collect());
    let (form, parts) = Model::new(whole, &tensors).parts(6..8);
    assert!(matches!(form, MatrixForm::Int4Group { group_size: 8, perm: None, .. }));
    assert_eq!((&parts[1][..], &parts[2][..]), (&[12, 13, 14, 15][..], &[8, 8][..]));
}

#[test]
fn compressed_tensors_of_four_bits() {
    let packed = |symmetric| {
        let stored = Compressed::Int4 { group_size: Some(4), symmetric };
        let tensors = [
            StTensor::new(
                "layer.weight_packed",
                "I32",
                &[2, 1],
                words(&[0x7654_3210, 0x89ab_cdef]),
            ),
            StTensor::new("layer.weight_scale", "F32", &[2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
            StTensor::new("layer.weight_zero_point", "I32", &[1, 2], words(&[0x21, 0x43])),
            StTensor::new("layer.weight_shape", "I64", &[2], vec![0; 16]),
        ];
        Model::new(Quantization::CompressedTensors(stored), &tensors)
    };
    let (form, parts) = packed(true).parts(1..2);
    assert!(matches!(form, MatrixForm::Int4Group { zero: false, scale: TensorFormat::F32, .. }));
    assert_eq!(parts, [vec![0xef, 0xcd, 0xab, 0x89], f32s(&[3.0, 4.0])]);
    let (_, parts) = packed(false).parts(1..2);
    assert_eq!(parts[2], [2, 4]);
}

#[test]
fn fp8_blocks_with_ragged_ends() {
    let blocks = Quantization::Fp8 { blocks: true };
    let codes = (0..130 * 3).map(|i: u32| i.to_le_bytes()[0]).collect();
    // bf16 1, 2.
    let scale = vec![0x80, 0x3f, 0x00, 0x40];
    let model = Model::new(
        blocks,
        &[
            StTensor::new("layer.weight", "F8_E4M3", &[130, 3], codes),
            StTensor::new("layer.weight_scale_inv", "BF16", &[2, 1], scale),
        ],
    );
    let (form, parts) = model.parts(0..130);
    assert_eq!((form, parts[0].len()), (MatrixForm::Fp8Block, 390));
    assert_eq!(parts[1], f32s(&[1.0, 2.0]));
    let (_, parts) = model.parts(128..130);
    assert_eq!(parts, [vec![128, 129, 130, 131, 132, 133], f32s(&[2.0])]);
}

#[test]
fn scales_of_rows_or_of_the_whole() {
    let eight_bits = |quantization, dtype, shape: &[u64], scale: &[f32]| {
        let weight = StTensor::new("layer.weight", dtype, &[3, 2], vec![1, 2, 3, 4, 5, 6]);
        let scale = StTensor::new("layer.weight_scale", "F32", shape, f32s(scale));
        Model::new(quantization, &[weight, scale]).parts(1..3)
    };
    let fp8 = Quantization::Fp8 { blocks: false };
    let rows = (MatrixForm::Fp8Channel, vec![vec![3, 4, 5, 6], f32s(&[2.0, 3.0])]);
    assert_eq!(eight_bits(fp8, "F8_E4M3", &[3], &[1.0, 2.0, 3.0]), rows);
    let one = (MatrixForm::Fp8Channel, vec![vec![3, 4, 5, 6], f32s(&[0.5, 0.5])]);
    assert_eq!(eight_bits(fp8, "F8_E4M3", &[], &[0.5]), one);
    let int8 = Quantization::CompressedTensors(Compressed::Int8 { rounds_inputs: true });
    let rows = (MatrixForm::Int8Channel, vec![vec![3, 4, 5, 6], f32s(&[2.0, 3.0])]);
    assert_eq!(eight_bits(int8, "I8", &[3, 1], &[1.0, 2.0, 3.0]), rows);
}

#[test]
fn layers_that_were_left_out_are_plain() {
    let weight = StTensor::new("layer.weight", "BF16", &[2, 1], vec![0, 0, 0x80, 0x3f]);
    let (form, parts) = Model::new(AWQ, &[weight]).parts(1..2);
    assert_eq!((form, &parts[0][..]), (MatrixForm::Plain(TensorFormat::BF16), &[0x80, 0x3f][..]));
}

#[test]
fn what_does_not_fit_names_tensor_and_file() {
    let without =
        |name: &str| awq().into_iter().filter(|tensor| tensor.name != name).collect::<Vec<_>>();
    let (error, _) = Model::new(AWQ, &without("layer.qzeros")).error();
    assert!(error.to_string().contains("no tensor layer.qzeros in"), "{error}");
    let (error, _) = Model::new(AWQ, &without("layer.scales")).error();
    assert!(error.to_string().contains("no tensor layer.scales in"), "{error}");

    let replaced = |at: usize, tensor: StTensor<'static>| {
        let mut tensors = awq();
        tensors[at] = tensor;
        Model::new(AWQ, &tensors)
    };
    let order = |g_idx: &[u32]| Model::new(GPTQ, &gptq(g_idx));
    let group_of_3 = Quantization::Awq { group_size: Some(3) };
    let cases = [
        (
            replaced(0, StTensor::new("layer.qweight", "U8", &[4, 1], vec![0; 4])),
            "layer.qweight",
            "type is U8, expected I32",
        ),
        (
            replaced(0, StTensor::new("layer.qweight", "I32", &[4], vec![0; 16])),
            "layer.qweight",
            "shape is [4], expected a matrix",
        ),
        (
            replaced(1, StTensor::new("layer.qzeros", "I32", &[1, 1], vec![0; 4])),
            "layer.qzeros",
            "shape is [1, 1], expected [2, 1]",
        ),
        (
            replaced(2, StTensor::new("layer.scales", "F16", &[8, 2], vec![0; 32])),
            "layer.scales",
            "shape is [8, 2], expected [2, 8]",
        ),
        (
            replaced(2, StTensor::new("layer.scales", "I32", &[2, 8], vec![0; 64])),
            "layer.scales",
            "type is I32, expected F32 or F16 or BF16",
        ),
        (
            Model::new(group_of_3, &awq()),
            "layer.qweight",
            "number of inputs is 4, expected an even number of whole groups of 3",
        ),
        (order(&[0, 0, 0, 0, 1, 1, 1, 2]), "layer.g_idx", "a group is 2, expected 0 to 1"),
        (order(&[0, 0, 0, 0, 1, 1, 1, u32::MAX]), "layer.g_idx", "a group is -1, expected 0 to 1"),
        (
            order(&[0, 0, 0, 0, 0, 1, 1, 1]),
            "layer.g_idx",
            "number of inputs in group 0 is 5, expected 4",
        ),
        (order(&[0; 4]), "layer.g_idx", "shape is [4], expected [8]"),
    ];
    for (model, tensor, expected) in cases {
        let (error, why) = model.error();
        let text = error.to_string();
        assert!(text.contains(tensor) && text.contains("model.safetensors"), "{text}");
        assert!(why.starts_with(expected), "{why}");
    }
}

#[test]
fn fp8_without_fitting_scales() {
    let weight = || StTensor::new("layer.weight", "F8_E4M3", &[3, 2], vec![0; 6]);
    let fp8 = Quantization::Fp8 { blocks: false };
    let (error, _) = Model::new(fp8, &[weight()]).error();
    assert!(error.to_string().contains("no tensor layer.weight_scale in"), "{error}");
    let scale = StTensor::new("layer.weight_scale", "F32", &[2], f32s(&[1.0, 1.0]));
    let (_, why) = Model::new(fp8, &[weight(), scale]).error();
    assert_eq!(why, "shape is [2], expected [], [1], [3] or [3, 1]");
    // Without a configuration the codes are what the file says, and nothing more.
    let model = Model { quantization: None, ..Model::new(fp8, &[weight()]) };
    assert_eq!(model.parts(0..3).0, MatrixForm::Plain(TensorFormat::F8E4M3));
}

/// The parts of all rows of a slice, or why there is none.
fn slice(
    model: &Model,
    rows: std::ops::Range<u64>,
    columns: std::ops::Range<u64>,
) -> Result<(MatrixForm, Vec<Vec<u8>>), SliceError> {
    let checkpoint = model.open();
    let matrix = checkpoint.matrix("layer", model.quantization.as_ref()).unwrap();
    let count = rows.end - rows.start;
    let slice = matrix.slice(rows, columns.clone())?;
    assert_eq!(slice.shape(), [count, columns.end - columns.start]);
    let parts = slice.parts(0..count).into_iter().map(std::borrow::Cow::into_owned).collect();
    Ok((slice.form(), parts))
}

#[test]
fn slices_have_their_own_columns_of_each_part() {
    // Two groups of eight inputs, and one row of words each.
    let codes = words(&[0x7654_3210, 0xfedc_ba98, 0x1111_1111, 0x2222_2222]);
    let tensors = [
        StTensor::new("layer.qweight", "I32", &[2, 2], codes),
        StTensor::new("layer.qzeros", "I32", &[2, 1], words(&[0x21, 0x43])),
        StTensor::new("layer.scales", "F32", &[2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
    ];
    let two = Quantization::Gptq { group_size: Some(8), zero_offset: 0 };
    let model = Model::new(two, &tensors);
    let (form, parts) = slice(&model, 1..2, 8..16).unwrap();
    assert!(matches!(form, MatrixForm::Int4Group { group_size: 8, .. }));
    assert_eq!(parts, [vec![0x22; 4], f32s(&[4.0]), vec![4]]);
    assert_eq!(slice(&model, 0..2, 4..8), Err(SliceError::Columns { unit: 8 }));

    let blocks = Quantization::Fp8 { blocks: true };
    let codes: Vec<u8> = (0..200 * 300).map(|i: u32| (i % 251) as u8).collect();
    let scales: Vec<f32> = (0_u8..6).map(f32::from).collect();
    let weight = StTensor::new("layer.weight", "F8_E4M3", &[200, 300], codes.clone());
    let scale = StTensor::new("layer.weight_scale_inv", "F32", &[2, 3], f32s(&scales));
    let model = Model::new(blocks, &[weight, scale]);
    let (form, parts) = slice(&model, 128..200, 256..300).unwrap();
    assert_eq!(form, MatrixForm::Fp8Block);
    assert_eq!(parts[0][..44], codes[128 * 300 + 256..129 * 300]);
    assert_eq!((parts[0].len(), &parts[1]), (72 * 44, &f32s(&[5.0])));
    assert_eq!(slice(&model, 0..100, 0..300), Err(SliceError::Rows { unit: 128 }));
    assert_eq!(slice(&model, 0..200, 0..150), Err(SliceError::Columns { unit: 128 }));
}

#[test]
fn a_row_that_is_one_group_has_one_in_each_slice() {
    let whole = Quantization::Gptq { group_size: None, zero_offset: 0 };
    let tensors = [
        StTensor::new("layer.qweight", "I32", &[2, 1], words(&[0x7654_3210, 0x1111_1111])),
        StTensor::new("layer.qzeros", "I32", &[1, 1], words(&[7])),
        StTensor::new("layer.scales", "F32", &[1, 1], f32s(&[0.5])),
    ];
    let (form, parts) = slice(&Model::new(whole, &tensors), 0..1, 8..16).unwrap();
    assert!(matches!(form, MatrixForm::Int4Group { group_size: 8, .. }));
    assert_eq!(parts, [vec![0x11; 4], f32s(&[0.5]), vec![7]]);
}

#[test]
fn columns_sorted_by_group_are_not_cut() {
    let model = Model::new(GPTQ, &gptq(&[1, 0, 1, 0, 1, 0, 1, 0]));
    assert_eq!(slice(&model, 0..8, 0..4), Err(SliceError::Order));
    let (_, parts) = slice(&model, 2..3, 0..8).unwrap();
    assert_eq!(parts[3], words(&[1, 3, 5, 7, 0, 2, 4, 6]));
}

/// A folder as msModelSlim writes it, and what its description says.
fn ascend(description: &str) -> Result<Option<Quantization>, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let tensor = StTensor::new("model.norm.weight", "F32", &[1], vec![0; 4]);
    write_safetensors(&folder.path().join("quant_model_weights.safetensors"), &[tensor]);
    let config = r#"{"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100,
        "max_position_embeddings": 256}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let name = "quant_model_description_w8a8_dynamic.json";
    std::fs::write(folder.path().join(name), description).unwrap();
    Checkpoint::open(folder.path()).unwrap().config().map(|config| config.quantization)
}

#[test]
fn the_description_of_msmodelslim_says_what_is_rounded() {
    let fine = r#"{"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0", "metadata": {},
        "model.norm.weight": "FLOAT", "model.layers.0.self_attn.q_proj.bias": "FLOAT",
        "model.layers.0.self_attn.q_proj.weight": "W8A8_DYNAMIC",
        "model.layers.0.self_attn.q_proj.weight_scale": "W8A8_DYNAMIC",
        "model.layers.0.self_attn.q_proj.weight_offset": "W8A8_DYNAMIC"}"#;
    let found = ascend(fine).unwrap().unwrap();
    assert_eq!((found, found.rounds_inputs()), (Quantization::Ascend, true));

    let kinds = "supported: FLOAT, W8A8_DYNAMIC (int8 weights with a scale a row, inputs as int8";
    for (description, expected) in [
        // Static: a scale of all inputs, found when the model was made.
        (r#"{"a.q_proj.weight": "W8A8", "a.q_proj.input_scale": "W8A8"}"#, ["a.q_proj", kinds]),
        (r#"{"a.q_proj.deq_scale": "W8A8_MIX"}"#, ["a.q_proj.deq_scale is W8A8_MIX", kinds]),
        (r#"{"a.q_proj.weight": "W4A8_DYNAMIC"}"#, ["a.q_proj.weight is W4A8_DYNAMIC", kinds]),
        (r#"{"a.k_proj.kv_cache_scale": "C8"}"#, ["a.k_proj.kv_cache_scale is C8", kinds]),
        (r#"{"a.down_proj.div.mul_scale": "FLOAT"}"#, ["is a mul_scale", "supported: weight"]),
        (r#"{"a.input_layernorm.bias": "FLOAT"}"#, ["is a bias", "where config.json has it"]),
        (r#"{"a.o_proj.bias": "FLOAT"}"#, ["a.o_proj.bias is a bias", "where config.json has it"]),
        (r#"{"metadata": {"quarot": {}}}"#, ["metadata.quarot", "supported: no rotation"]),
        (r#"{"a.q_proj.weight": 8}"#, ["a.q_proj.weight is 8", "expected the kind of a tensor"]),
        ("[]", ["(the whole file)", "expected an object"]),
        ("{", ["not valid JSON", ""]),
    ] {
        let error = ascend(description).unwrap_err();
        assert!(error.to_string().contains("quant_model_description_w8a8_dynamic.json"), "{error}");
        let why = error.source().unwrap().to_string();
        assert!(expected.iter().all(|part| why.contains(part)), "{description}: {why}");
    }
}

#[test]
fn offsets_of_symmetric_weights_are_zero() {
    let model = |offsets: &[f32]| {
        let weight = StTensor::new("layer.weight", "I8", &[2, 2], vec![1, 2, 3, 4]);
        let scale = StTensor::new("layer.weight_scale", "F32", &[2, 1], f32s(&[1.0, 2.0]));
        let offset = StTensor::new("layer.weight_offset", "F32", &[2, 1], f32s(offsets));
        Model::new(Quantization::Ascend, &[weight, scale, offset])
    };
    let rows = (MatrixForm::Int8Channel, vec![vec![1, 2, 3, 4], f32s(&[1.0, 2.0])]);
    assert_eq!(model(&[0.0, -0.0]).parts(0..2), rows);
    let (error, why) = model(&[0.0, 3.0]).error();
    assert!(error.to_string().contains("layer.weight_offset"), "{error}");
    assert_eq!(why, "an offset is 3, expected 0: symmetric weights");
}
