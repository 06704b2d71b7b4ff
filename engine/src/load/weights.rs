//! Streams the checkpoint's tensors to the device.

use std::{borrow::Cow, ops::Range};

use halyard_core::{DType, Device, DeviceError, FP8_BLOCK, Scheme, Stream, Weight, WeightBuilder};
use halyard_weights::{Checkpoint, Matrix, MatrixForm, ModelConfig, rope_table};

use super::{LoadProgress, dense, failed};
use crate::{
    error::LoadError,
    program::{Content, Program, WeightPart, WeightSpec},
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
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    program: &Program,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Vec<Weight>, LoadError> {
    checkpoint.advise_sequential();
    let quantization = config.quantization.as_ref();
    let mut total_bytes = 0;
    for part in program.weights.iter().flat_map(|spec| &spec.parts) {
        total_bytes += stored_bytes(&checkpoint.matrix(&part.layer, quantization)?);
    }
    let mut bytes = 0;
    let mut report = |more: u64| {
        bytes += more;
        progress(LoadProgress { bytes, total_bytes });
    };
    report(0);
    let load_weight = |spec: &WeightSpec| {
        let layer = &spec.parts[0].layer;
        let mut builder = device.weight(spec.desc).map_err(loading(layer))?;
        for part in &spec.parts {
            let matrix = checkpoint.matrix(&part.layer, quantization)?;
            let dense = (spec.desc.scheme == Scheme::DENSE).then_some(spec.desc.dtype);
            let source = Rows { checkpoint, part, matrix, dense };
            source.fill(&mut builder, stream, &mut report)?;
        }
        builder.seal(stream).map_err(loading(layer))
    };
    program.weights.iter().map(load_weight).collect()
}

fn loading(layer: &str) -> impl Fn(DeviceError) -> LoadError {
    move |source| LoadError::Device { action: format!("loading {layer}"), source }
}

fn stored_bytes(matrix: &Matrix<'_>) -> u64 {
    matrix.stored().iter().map(|bytes| bytes.len() as u64).sum()
}

/// A layer's rows on their way to a weight.
struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    part: &'a WeightPart,
    matrix: Matrix<'a>,
    /// The type of a dense weight's elements.
    dense: Option<DType>,
}

impl<'a> Rows<'a> {
    /// Copies them, a piece at a time.
    fn fill(
        &self,
        builder: &mut WeightBuilder,
        stream: &Stream,
        report: &mut impl FnMut(u64),
    ) -> Result<(), LoadError> {
        let Self { checkpoint, part, matrix, .. } = self;
        let total = stored_bytes(matrix);
        // Whole blocks of rows, for the formats whose rows share scales.
        let piece = (CHUNK / (total / part.rows).max(1)).max(1).next_multiple_of(FP8_BLOCK);
        let piece = if matrix.is_transposed() { part.rows } else { piece };
        // The shape was checked when the program was recorded.
        for start in (0..part.rows).step_by(index(piece)) {
            let end = part.rows.min(start + piece);
            let parts = self.parts(start..end)?;
            let bytes: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
            builder
                .fill(stream, part.group, part.first_row + start, end - start, &bytes)
                .map_err(loading(&part.layer))?;
            bytes.iter().for_each(|bytes| checkpoint.release(bytes));
            report(total * end / part.rows - total * start / part.rows);
        }
        // What was rewritten on the way was read, too.
        matrix.stored().iter().for_each(|bytes| checkpoint.release(bytes));
        Ok(())
    }

    fn parts(&self, rows: Range<u64>) -> Result<Vec<Cow<'a, [u8]>>, LoadError> {
        let as_is = match self.matrix.form() {
            MatrixForm::Plain(format) => format.is_float(),
            _ => false,
        };
        match self.dense.filter(|_| !as_is) {
            None => Ok(self.matrix.parts(rows)),
            Some(dtype) => {
                let bytes = dense::rows(&self.matrix, rows, dtype);
                let tensor = || self.matrix.name().to_owned();
                let bytes =
                    bytes.map_err(|source| LoadError::Dequant { tensor: tensor(), source })?;
                Ok(vec![Cow::Owned(bytes)])
            }
        }
    }
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
