//! Codes of eight bits with scales beside them.

use std::borrow::Cow;
use std::ops::Range;

use super::{MatrixForm, Opener, columns_of, rows_of};
use crate::checkpoint::TensorData;
use crate::dequant::dequantize;
use crate::error::WeightsError;
use crate::format::TensorFormat;

/// Rows and columns that share a scale.
const BLOCK: usize = 128;

/// `weight` and its scales.
#[derive(Debug)]
pub(super) struct Scaled<'a> {
    pub(super) form: MatrixForm,
    pub(super) codes: TensorData<'a>,
    /// `[ceil(N / 128), ceil(K / 128)]` of blocks; else `[N]` numbers, or a single one for all rows.
    pub(super) scale: TensorData<'a>,
    rows: usize,
    pub(super) columns: usize,
}

impl<'a> Scaled<'a> {
    /// The scale is called `weight_scale_inv` by DeepSeek and Qwen, `weight_scale` by others; both are factors.
    pub(super) fn open(
        opener: &Opener<'a, '_>,
        codes: TensorData<'a>,
        form: MatrixForm,
    ) -> Result<Self, WeightsError> {
        let [rows, columns] = opener.matrix_dims(&codes)?;
        let scale = match opener.optional("weight_scale_inv")? {
            Some(scale) => scale,
            None => opener.tensor("weight_scale")?,
        };
        opener.check_format(&scale, &[TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16])?;
        if form == MatrixForm::Fp8Block {
            opener.check_shape(&scale, &[rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)])?;
        } else if !matches!(*scale.shape, [] | [1] | [1, 1]) {
            let n = rows as u64;
            if !(*scale.shape == [n] || *scale.shape == [n, 1]) {
                let expected = format!("[], [1], [{n}] or [{n}, 1]");
                let found = format!("{:?}", scale.shape);
                return Err(opener.wrong(&scale, "shape", found, expected));
            }
        }
        check_offset(opener)?;
        Ok(Self { form, codes, scale, rows, columns })
    }

    /// Rows and columns that share a scale, where a slice would need a part of one. A scale a row is the same for all
    /// its columns.
    pub(super) fn units(&self) -> (u64, u64) {
        if self.form == MatrixForm::Fp8Block { (BLOCK as u64, BLOCK as u64) } else { (1, 1) }
    }

    pub(super) fn parts(&self, rows: Range<usize>, columns: Range<usize>) -> Vec<Cow<'a, [u8]>> {
        let codes = rows_of(self.codes.bytes, self.rows, rows.clone());
        let scale = if self.form == MatrixForm::Fp8Block {
            assert!(rows.start.is_multiple_of(BLOCK), "row {} begins no block", rows.start);
            let blocks = rows.start / BLOCK..rows.end.div_ceil(BLOCK);
            let scale = self.floats(rows_of(self.scale.bytes, self.rows.div_ceil(BLOCK), blocks));
            let of_columns = columns.start / BLOCK..columns.end.div_ceil(BLOCK);
            let rows = scale.chunks_exact(self.columns.div_ceil(BLOCK));
            rows.flat_map(|row| &row[of_columns.clone()]).copied().collect()
        } else if self.scale.shape.iter().product::<u64>() == 1 {
            self.floats(self.scale.bytes).repeat(rows.len())
        } else {
            self.floats(rows_of(self.scale.bytes, self.rows, rows))
        };
        let scale = scale.into_iter().flat_map(f32::to_le_bytes).collect();
        vec![columns_of(codes, self.columns, columns), Cow::Owned(scale)]
    }

    fn floats(&self, bytes: &[u8]) -> Vec<f32> {
        dequantize(self.scale.format, bytes).expect("scales were found to be floats")
    }
}

/// msModelSlim stores an offset beside each scale: zeros for what is symmetric.
fn check_offset(opener: &Opener<'_, '_>) -> Result<(), WeightsError> {
    let Some(offset) = opener.optional("weight_offset")? else { return Ok(()) };
    opener.check_format(&offset, &[TensorFormat::F32, TensorFormat::F16, TensorFormat::BF16])?;
    let values = offset.dequantize().expect("offsets were found to be floats");
    match values.into_iter().find(|&value| value != 0.0) {
        None => Ok(()),
        Some(value) => Err(opener.wrong(&offset, "an offset", value, "0: symmetric weights")),
    }
}
