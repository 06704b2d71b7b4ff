//! Streams the checkpoint's tensors to the device.

use std::{borrow::Cow, ops::Range};

use halyard_core::{DType, Device, DeviceError, FP8_BLOCK, Scheme, Stream, Weight, WeightBuilder};
use halyard_weights::{Checkpoint, Matrix, MatrixForm, ModelConfig, rope_table};

use super::{dense, failed};
use crate::{
    error::LoadError,
    program::{Content, Layer, Program, Share, VectorPart, WeightPart, WeightSpec},
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

/// Bytes of the files that the weights of a program are made from.
pub(super) fn stored_bytes(
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    program: &Program,
) -> Result<u64, LoadError> {
    let parts = program.weights.iter().flat_map(|spec| &spec.parts);
    let bytes = parts.map(|part| {
        let matrix = checkpoint.matrix(&part.layer.name, config.quantization.as_ref())?;
        Ok(bytes_of(&part.layer, matrix.stored_bytes()))
    });
    bytes.sum()
}

/// What is wanted of a layer that takes so many bytes.
fn bytes_of(layer: &Layer, bytes: u64) -> u64 {
    let of = |bytes: u64, share: Share| {
        let part = u128::from(bytes) * share.len as u128 / share.whole.max(1) as u128;
        u64::try_from(part).unwrap_or(bytes)
    };
    of(of(bytes, layer.rows), layer.columns)
}

/// Loads all weights of a program. `report` is told of bytes of the files that are done.
pub(super) fn load(
    device: &Device,
    stream: &Stream,
    (checkpoint, config): (&Checkpoint, &ModelConfig),
    program: &Program,
    report: &mut dyn FnMut(u64),
) -> Result<Vec<Weight>, LoadError> {
    let quantization = config.quantization.as_ref();
    let mut load_weight = |spec: &WeightSpec| {
        let name = &spec.parts[0].layer.name;
        let mut builder = device.weight(spec.desc).map_err(loading(name))?;
        for part in &spec.parts {
            let open = || checkpoint.matrix(&part.layer.name, quantization);
            let dense = (spec.desc.scheme == Scheme::DENSE).then_some(spec.desc.dtype);
            let Layer { rows, columns, .. } = part.layer;
            let matrix = match open()?.slice(rows.file_range(), columns.file_range()) {
                Ok(matrix) => Cut::Slice(matrix),
                // Recorded as dense for this reason.
                Err(_) => Cut::Whole(open()?),
            };
            let source = Rows { checkpoint, part, matrix, dense };
            source.fill(&mut builder, stream, report)?;
        }
        builder.seal(stream).map_err(loading(name))
    };
    program.weights.iter().map(&mut load_weight).collect()
}

fn loading(layer: &str) -> impl Fn(DeviceError) -> LoadError {
    move |source| LoadError::Device { action: format!("loading {layer}"), source }
}

/// A layer's rows and columns on their way to a weight.
struct Rows<'a> {
    checkpoint: &'a Checkpoint,
    part: &'a WeightPart,
    matrix: Cut<'a>,
    /// The type of a dense weight's elements.
    dense: Option<DType>,
}

/// Where they are taken from.
enum Cut<'a> {
    /// What is wanted and nothing else.
    Slice(Matrix<'a>),
    /// All of the layer, of which no slice can be made before it is dense.
    Whole(Matrix<'a>),
}

impl<'a> Rows<'a> {
    /// Copies them, a piece at a time.
    fn fill(
        &self,
        builder: &mut WeightBuilder,
        stream: &Stream,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), LoadError> {
        let Self { checkpoint, part, matrix, .. } = self;
        let (Cut::Slice(matrix) | Cut::Whole(matrix)) = matrix;
        let Layer { name, rows, .. } = &part.layer;
        let total = match self.matrix {
            Cut::Slice(_) => matrix.stored_bytes(),
            Cut::Whole(_) => bytes_of(&part.layer, matrix.stored_bytes()),
        };
        let rows = rows.len as u64;
        // Whole blocks of rows, for the formats whose rows share scales.
        let piece = (CHUNK / (total / rows).max(1)).max(1).next_multiple_of(FP8_BLOCK);
        let piece = if matrix.is_transposed() { rows } else { piece };
        // The shape was checked when the program was recorded.
        for start in (0..rows).step_by(index(piece)) {
            let end = rows.min(start + piece);
            let parts = self.parts(start..end)?;
            let bytes: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
            builder
                .fill(stream, part.group, part.first_row + start, end - start, &bytes)
                .map_err(loading(name))?;
            bytes.iter().for_each(|bytes| checkpoint.release(bytes));
            report(total * end / rows - total * start / rows);
        }
        // What was rewritten on the way was read, too.
        matrix.stored().iter().for_each(|bytes| checkpoint.release(bytes));
        Ok(())
    }

    fn parts(&self, rows: Range<u64>) -> Result<Vec<Cow<'a, [u8]>>, LoadError> {
        let Layer { rows: all, columns, .. } = &self.part.layer;
        let dense = |matrix: &Matrix<'_>, rows, columns, dtype| {
            let bytes = dense::rows(matrix, rows, columns, dtype);
            let tensor = || matrix.name().to_owned();
            let bytes = bytes.map_err(|source| LoadError::Dequant { tensor: tensor(), source })?;
            Ok(vec![Cow::Owned(bytes)])
        };
        let as_is = |matrix: &Matrix<'_>| match matrix.form() {
            MatrixForm::Plain(format) => format.is_float(),
            _ => false,
        };
        match (&self.matrix, self.dense) {
            (Cut::Slice(matrix), Some(dtype)) if !as_is(matrix) => {
                dense(matrix, rows, 0..columns.len, dtype)
            }
            (Cut::Slice(matrix), _) => Ok(matrix.parts(rows)),
            (Cut::Whole(matrix), dtype) => {
                let first = all.start as u64;
                let dtype = dtype.expect("recorded as dense, since it cannot be sliced");
                dense(matrix, first + rows.start..first + rows.end, columns.range(), dtype)
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
            Content::Vectors(parts) => {
                let mut values = Vec::new();
                for VectorPart { name, share } in parts {
                    let whole = checkpoint.tensor(name)?.dequantize();
                    let whole = whole
                        .map_err(|source| LoadError::Dequant { tensor: name.clone(), source })?;
                    values.extend_from_slice(&whole[share.range()]);
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
