//! Quantised weights as plain numbers, for devices that lack their scheme.

use std::ops::Range;

use half::{bf16, f16};
use halyard_core::{DType, FP8_BLOCK, fp8::e4m3_to_f32};
use halyard_weights::{DequantError, Matrix, MatrixForm, TensorFormat, dequantize};

/// Some rows and columns of a matrix as `[rows, columns]` of a float type, whatever shares scales with whatever.
///
/// # Errors
/// The matrix is stored in something that is no weight.
pub(super) fn rows(
    matrix: &Matrix<'_>,
    rows: Range<u64>,
    columns: Range<usize>,
    dtype: DType,
) -> Result<Vec<u8>, DequantError> {
    let first = rows.start / FP8_BLOCK * FP8_BLOCK;
    let whole = values(matrix, first..rows.end)?;
    let row = matrix.shape().last().map_or(1, |&columns| index(columns)).max(1);
    let wanted = whole.chunks_exact(row).skip(index(rows.start - first));
    let values = wanted.flat_map(|row| row[columns.clone()].iter().copied());
    Ok(match dtype {
        DType::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    })
}

fn values(matrix: &Matrix<'_>, rows: Range<u64>) -> Result<Vec<f32>, DequantError> {
    let columns = matrix.shape().last().map_or(0, |&columns| index(columns));
    let parts = matrix.parts(rows);
    let floats = |part: usize| dequantize(TensorFormat::F32, &parts[part]);
    let by_row = |codes: &dyn Fn(u8) -> f32, scales: &[f32]| {
        let rows = parts[0].chunks_exact(columns).zip(scales);
        rows.flat_map(|(row, scale)| row.iter().map(|&q| codes(q) * scale).collect::<Vec<_>>())
            .collect()
    };
    Ok(match matrix.form() {
        MatrixForm::Fp8Block => {
            let scales = floats(1)?;
            let (block, blocks) = (index(FP8_BLOCK), columns.div_ceil(index(FP8_BLOCK)));
            let codes = parts[0].iter().enumerate();
            let scale = |i: usize| scales[i / columns / block * blocks + i % columns / block];
            codes.map(|(i, &q)| e4m3_to_f32(q) * scale(i)).collect()
        }
        MatrixForm::Fp8Channel => by_row(&e4m3_to_f32, &floats(1)?),
        MatrixForm::Int8Channel => by_row(&|q| f32::from(q.cast_signed()), &floats(1)?),
        MatrixForm::Int4Group { group_size, scale, zero, perm } => {
            let scales = dequantize(scale, &parts[1])?;
            let zero = |group: usize| if zero { f32::from(parts[2][group]) } else { 8.0 };
            let codes = parts[0].iter().flat_map(|byte| [byte & 15, byte >> 4]).enumerate();
            let group = |i: usize| i / group_size as usize;
            let sorted = codes.map(|(i, q)| (f32::from(q) - zero(group(i))) * scales[group(i)]);
            match perm {
                None => sorted.collect(),
                Some(perm) => in_order(&sorted.collect::<Vec<_>>(), &perm),
            }
        }
        MatrixForm::Plain(format) => dequantize(format, &parts[0])?,
        other => unreachable!("{other:?} was refused when the model was recorded"),
    })
}

/// Undoes the sorting of columns by group.
fn in_order(sorted: &[f32], perm: &[i32]) -> Vec<f32> {
    let mut out = vec![0.0; sorted.len()];
    for (from, to) in sorted.chunks_exact(perm.len()).zip(out.chunks_exact_mut(perm.len())) {
        for (value, &column) in from.iter().zip(perm) {
            to[index(u64::from(column.cast_unsigned()))] = *value;
        }
    }
    out
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("the matrix is in memory")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use halyard_weights::Checkpoint;

    use super::*;

    fn open(model: &str) -> Checkpoint {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
        Checkpoint::open(&models.join(model)).expect("test data")
    }

    fn all_values(checkpoint: &Checkpoint, layer: &str) -> (usize, Vec<f32>) {
        let config = checkpoint.config().expect("test data");
        let matrix = checkpoint.matrix(layer, config.quantization.as_ref()).expect("test data");
        let shape = matrix.shape();
        (index(shape[1]), values(&matrix, 0..shape[0]).expect("a weight"))
    }

    fn words(checkpoint: &Checkpoint, name: &str) -> Vec<u32> {
        let (words, _) = checkpoint.tensor(name).expect("test data").bytes.as_chunks();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    /// The formula of GPTQ on the file's own words, without a permutation.
    #[test]
    fn columns_come_back_in_order() {
        let checkpoint = open("qwen2_gptq_act_order");
        let layer = "model.layers.1.self_attn.k_proj";
        let (columns, values) = all_values(&checkpoint, layer);
        let of = |leaf: &str| words(&checkpoint, &format!("{layer}.{leaf}"));
        let (codes, zeros, groups) = (of("qweight"), of("qzeros"), of("g_idx"));
        let scales = checkpoint.tensor(&format!("{layer}.scales")).expect("test data");
        let scales = scales.dequantize().expect("floats");
        let rows = values.len() / columns;
        for (i, &value) in values.iter().enumerate() {
            let (n, k) = (i / columns, i % columns);
            let group = groups[k] as usize;
            let code = codes[k / 8 * rows + n] >> (k % 8 * 4) & 15;
            let stored = zeros[group * rows / 8 + n / 8] >> (n % 8 * 4);
            let zero = (stored + 1) & 15;
            let expected = (code as f32 - zero as f32) * scales[group * rows + n];
            assert_eq!(value.to_bits(), expected.to_bits(), "row {n}, column {k}");
        }
    }

    #[test]
    fn blocks_have_their_own_scales() {
        let checkpoint = open("llama_fp8");
        let layer = "model.layers.0.mlp.down_proj";
        let (columns, values) = all_values(&checkpoint, layer);
        let of = |leaf: &str| checkpoint.tensor(&format!("{layer}.{leaf}")).expect("test data");
        let scale = of("weight_scale_inv");
        let (blocks, scales) = (index(scale.shape[1]), scale.dequantize().expect("floats"));
        assert_eq!((columns, blocks), (320, 3));
        for (i, (&value, &code)) in values.iter().zip(of("weight").bytes).enumerate() {
            let (n, k) = (i / columns, i % columns);
            let expected = e4m3_to_f32(code) * scales[n / 128 * blocks + k / 128];
            assert_eq!(value.to_bits(), expected.to_bits(), "row {n}, column {k}");
        }
    }

    /// Every matrix of the models, cut in halves both ways where that can be.
    #[test]
    fn a_slice_has_the_values_of_the_whole() {
        let mut cut = 0;
        for model in [
            "qwen2_moe",
            "llama_awq",
            "llama_gptq",
            "mixtral_awq",
            "qwen3_moe_fp8",
            "gguf/llama/model-q4_k.gguf",
            "gguf/llama/model-q5_1.gguf",
            "gguf/llama/model-iq4_nl.gguf",
        ] {
            let checkpoint = open(model);
            let config = checkpoint.config().expect("test data");
            let mut layers: Vec<&str> =
                checkpoint.names().filter_map(|name| Some(name.rsplit_once('.')?.0)).collect();
            layers.sort_unstable();
            layers.dedup();
            for layer in layers {
                let matrix = || checkpoint.matrix(layer, config.quantization.as_ref());
                let Some(&[n, k]) = matrix().ok().map(|matrix| matrix.shape()).as_deref() else {
                    continue;
                };
                let all = values(&matrix().expect("there"), 0..n).expect("a weight");
                for (rows, columns) in [(n / 2..n, 0..k), (0..n, k / 2..k), (0..n / 2, 0..k / 2)] {
                    let Ok(slice) = matrix().expect("there").slice(rows.clone(), columns.clone())
                    else {
                        continue;
                    };
                    let found = values(&slice, 0..rows.end - rows.start).expect("a weight");
                    let columns = index(columns.start)..index(columns.end);
                    let rows = index(rows.start)..index(rows.end);
                    let whole = all.chunks_exact(index(k)).skip(rows.start).take(rows.len());
                    let whole = whole.flat_map(|row| &row[columns.clone()]).copied();
                    let bits = |values: Vec<f32>| -> Vec<u32> {
                        values.into_iter().map(f32::to_bits).collect()
                    };
                    assert!(bits(found) == bits(whole.collect()), "{layer} of {model}");
                    cut += 1;
                }
            }
        }
        assert!(cut > 200, "{cut} slices");
    }
}
