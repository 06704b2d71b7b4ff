//! Streams the checkpoint's tensors to the device.

use halyard_core::{Device, Stream, Weight};
use halyard_weights::{Checkpoint, ModelConfig, rope_table};

use super::{LoadProgress, failed};
use crate::{
    error::LoadError,
    program::{Content, Program, WeightSpec},
};

/// Bytes of a tensor that are packed at once. Small enough that the file's pages do not pile up.
const CHUNK: u64 = 16 << 20;

/// Bytes of all weights in the backend's packed form.
pub(super) fn planned_bytes(device: &Device, program: &Program) -> Result<u64, LoadError> {
    let bytes = program.weights.iter().map(|spec| {
        let plan = device.weight_plan(&spec.desc).map_err(failed("planning a weight"))?;
        Ok(plan.bytes)
    });
    bytes.sum()
}

/// Loads all weights of a program.
pub(super) fn load(
    device: &Device,
    stream: &Stream,
    checkpoint: &Checkpoint,
    program: &Program,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Vec<Weight>, LoadError> {
    checkpoint.advise_sequential();
    let mut total_bytes = 0;
    for part in program.weights.iter().flat_map(|spec| &spec.parts) {
        total_bytes += checkpoint.tensor(&part.tensor)?.bytes.len() as u64;
    }
    let mut bytes = 0;
    let mut report = |more: u64| {
        bytes += more;
        progress(LoadProgress { bytes, total_bytes });
    };
    report(0);
    let weights = program.weights.iter();
    weights.map(|spec| load_weight(device, stream, checkpoint, spec, &mut report)).collect()
}

fn load_weight(
    device: &Device,
    stream: &Stream,
    checkpoint: &Checkpoint,
    spec: &WeightSpec,
    report: &mut impl FnMut(u64),
) -> Result<Weight, LoadError> {
    let of = |tensor: &str| {
        let action = format!("loading {tensor}");
        move |source| LoadError::Device { action, source }
    };
    let first = &spec.parts[0].tensor;
    let mut builder = device.weight(spec.desc).map_err(of(first))?;
    for part in &spec.parts {
        let tensor = checkpoint.tensor(&part.tensor)?;
        // The shape was checked when the program was recorded: whole rows of equal size.
        let row_bytes = tensor.bytes.len() as u64 / part.rows;
        let rows_at_once = (CHUNK / row_bytes.max(1)).max(1);
        let mut row = 0;
        while row < part.rows {
            let rows = rows_at_once.min(part.rows - row);
            let range = index(row * row_bytes)..index((row + rows) * row_bytes);
            let data = &tensor.bytes[range];
            builder
                .fill(stream, part.group, part.first_row + row, rows, &[data])
                .map_err(of(&part.tensor))?;
            checkpoint.release(data);
            report(data.len() as u64);
            row += rows;
        }
    }
    builder.seal(stream).map_err(of(first))
}

/// The initial contents of buffers, by their index in the program.
pub(super) fn contents(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    program: &Program,
    max_model_len: usize,
) -> Result<Vec<(usize, Vec<f32>)>, LoadError> {
    let mut contents = Vec::new();
    for (at, buffer) in program.buffers.iter().enumerate() {
        match &buffer.content {
            Content::Nothing => {}
            Content::RopeTable => contents.push((at, rope_table(config, max_model_len))),
            Content::Vectors(names) => {
                let mut values = Vec::new();
                for name in names {
                    let part = checkpoint.tensor(name)?.dequantize();
                    values.extend(
                        part.map_err(|source| LoadError::Dequant { tensor: name.clone(), source })?,
                    );
                }
                contents.push((at, values));
            }
        }
    }
    Ok(contents)
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("the tensor is in memory")
}
