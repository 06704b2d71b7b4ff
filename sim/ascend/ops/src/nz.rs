//! FRACTAL_NZ: a matrix of `R` rows and `C` columns as `[⌈C/C0⌉, ⌈R/16⌉, 16, C0]`, `C0` elements being 32 bytes.

use crate::dtype::DType;
use crate::launch::{Fault, Launch, Number};
use crate::refusal::{Refusal, ensure};
use crate::view::View;

/// Rows of a fractal.
pub(crate) const ROWS: usize = 16;

/// Columns of a fractal.
pub(crate) fn fractal_columns(dtype: DType) -> usize {
    256 / dtype.bits()
}

/// The storage of a matrix.
pub(crate) fn storage_dims(dtype: DType, rows: usize, columns: usize) -> [usize; 4] {
    let width = fractal_columns(dtype);
    [columns.div_ceil(width), rows.div_ceil(ROWS), ROWS, width]
}

/// A weight `[…, K, N]`, stored so or transposed, in either format.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    view: View,
    /// Stored as `[…, N, K]`.
    transposed: bool,
}

impl Weight {
    /// Checks the storage of a FRACTAL_NZ weight against its shape.
    pub(crate) fn of(view: View) -> Result<Self, Refusal> {
        let transposed = view.is_transposed();
        let weight = Self { view, transposed };
        if weight.view.nz {
            let (rows, columns) = weight.stored();
            let batch = &weight.view.dims[..weight.view.rank() - 2];
            let expected = [batch, &storage_dims(weight.view.dtype, rows, columns)].concat();
            ensure!(
                weight.view.storage == expected && weight.view.offset == 0,
                "{}: FRACTAL_NZ storage shape {:?} with offset {}, expected {expected:?} and 0",
                weight.view.name,
                weight.view.storage,
                weight.view.offset
            );
        }
        Ok(weight)
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Rows and columns of the matrix in memory.
    fn stored(&self) -> (usize, usize) {
        let (k, n) = self.shape();
        if self.transposed { (n, k) } else { (k, n) }
    }

    /// `K` and `N`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        let rank = self.view.rank();
        (self.view.dims[rank - 2], self.view.dims[rank - 1])
    }

    /// The matrix of a batch index, as `N` rows of `K`. The index is into the product of the batch dims, which are
    /// one at most where the weight is FRACTAL_NZ.
    pub(crate) fn rows<T: Number>(
        &self,
        launch: &Launch<'_>,
        batch: &[usize],
    ) -> Result<Vec<T>, Fault> {
        if !self.view.nz {
            let matrix = batch.iter().fold(self.view.clone(), |view, &index| view.select(0, index));
            return launch.read(&matrix.transposed());
        }
        let (rows, columns) = self.stored();
        let matrix =
            read_nz(launch, &self.view, (rows, columns), batch.first().copied().unwrap_or(0))?;
        Ok(if self.transposed { matrix } else { transpose(&matrix, columns) })
    }
}

/// INT32 elements that hold eight INT4 each, as INT4 elements.
pub(crate) fn unpacked(view: View) -> View {
    const EACH: usize = 8;
    if view.dtype != DType::I32 {
        return view;
    }
    let mut wide = view;
    wide.dtype = DType::I4;
    wide.offset *= EACH;
    let packed = (0..wide.rank()).rev().find(|&axis| wide.strides[axis] == 1);
    for axis in 0..wide.rank() {
        if Some(axis) == packed {
            wide.dims[axis] *= EACH;
        } else {
            wide.strides[axis] *= EACH;
        }
    }
    if let Some(last) = wide.storage.last_mut() {
        *last *= EACH;
    }
    wide
}

fn transpose<T: Copy>(matrix: &[T], columns: usize) -> Vec<T> {
    let rows = matrix.len().checked_div(columns).unwrap_or(0);
    (0..columns).flat_map(|c| (0..rows).map(move |r| matrix[r * columns + c])).collect()
}

/// The columns of one stripe of fractals.
fn stripe(view: &View, rows: usize, width: usize, at: usize) -> View {
    let mut part = view.clone();
    let fractal = fractal_columns(view.dtype);
    part.dims = vec![rows, width];
    part.strides = vec![fractal, 1];
    part.offset = at * rows.next_multiple_of(ROWS) * fractal;
    part
}

fn read_nz<T: Number>(
    launch: &Launch<'_>,
    view: &View,
    (rows, columns): (usize, usize),
    batch: usize,
) -> Result<Vec<T>, Fault> {
    let fractal = fractal_columns(view.dtype);
    let stripes = columns.div_ceil(fractal);
    let mut matrix = vec![T::default(); rows * columns];
    for number in 0..stripes {
        let (start, width) = (number * fractal, fractal.min(columns - number * fractal));
        let part: Vec<T> = launch.read(&stripe(view, rows, width, batch * stripes + number))?;
        for (row, values) in part.chunks_exact(width).enumerate() {
            matrix[row * columns + start..][..width].copy_from_slice(values);
        }
    }
    Ok(matrix)
}

/// Writes a row-major matrix as FRACTAL_NZ, with zeros where fractals are not full.
pub(crate) fn write_nz<T: Number>(
    launch: &Launch<'_>,
    view: &View,
    matrix: &[T],
    columns: usize,
    batch: usize,
) -> Result<(), Fault> {
    let fractal = fractal_columns(view.dtype);
    let (rows, stripes) =
        (matrix.len().checked_div(columns).unwrap_or(0), columns.div_ceil(fractal));
    let padded = rows.next_multiple_of(ROWS);
    for number in 0..stripes {
        let (start, width) = (number * fractal, fractal.min(columns - number * fractal));
        let mut part = vec![T::default(); padded * fractal];
        for row in 0..rows {
            part[row * fractal..][..width]
                .copy_from_slice(&matrix[row * columns + start..][..width]);
        }
        launch.write(&stripe(view, padded, fractal, batch * stripes + number), &part)?;
    }
    Ok(())
}
