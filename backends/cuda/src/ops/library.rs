//! Dense linear layers on many rows by cuBLASLt, where it is there.

use std::sync::{Mutex, PoisonError};

use halyard_sdk::{Result, Scheme};

use super::{
    Op,
    args::{Args, Float},
    linear::Operands,
};
use crate::{
    cublas::{self, Addresses, Matmul, OPERAND_ALIGN, Shape},
    weights::{Layout, Packed},
};

/// The most rows that own kernels multiply in any case: they read W straight from memory, and time is that of reading it.
const FEW_ROWS: u64 = 16;

/// The library's products of one weight.
pub(super) struct Library {
    operands: cublas::Operands,
    /// Descriptions that launches change, one after the other.
    matmul: Mutex<Matmul>,
    workspace_bytes: u64,
}

impl Library {
    /// None without the library, and for weights that are no floats of x's type.
    pub(super) fn new(op: &Op<'_>, layout: &Layout, x: Float) -> Result<Option<Self>> {
        let Some(blas) = &op.shared.blas else { return Ok(None) };
        let same = layout.scheme == Scheme::DENSE && Float::of(layout.dtype).ok() == Some(x);
        // Dense weights have one plane.
        let Some(plane) = layout.planes.first().filter(|_| same && layout.k > 0) else {
            return Ok(None);
        };
        let w_stride = (plane.pitch / x.bytes()).cast_signed();
        let operands = cublas::Operands { float: x, n: layout.n, k: layout.k, w_stride };
        let _bound = op.shared.bind()?;
        let matmul = Mutex::new(Matmul::new(blas, operands)?);
        Ok(Some(Self { operands, matmul, workspace_bytes: blas.workspace_bytes() }))
    }

    /// Scratch bytes for `rows` rows.
    pub(super) fn workspace_bytes(&self, rows: u64) -> u64 {
        if rows > FEW_ROWS { self.workspace_bytes } else { 0 }
    }

    /// The shape of a launch; none if the library is not asked: few rows, sorted rows, matrices that begin or end anywhere or have rows
    /// in common, a bias of another type than y.
    fn shape(&self, o: &Operands) -> Option<Shape> {
        let step = |stride: i64, float: Float, least: u64| {
            let stride = u64::try_from(stride).ok()?;
            (stride >= least && (stride * float.bytes()).is_multiple_of(OPERAND_ALIGN))
                .then_some(())
        };
        step(o.x_stride, self.operands.float, self.operands.k)?;
        step(o.y_stride, o.y_type, self.operands.n)?;
        let bias = o.bias.map_or(o.y, |(at, _)| at);
        let placed = [o.x, o.y, bias].iter().all(|at| at.is_multiple_of(OPERAND_ALIGN));
        let biased = o.bias.is_none_or(|(_, float)| float == o.y_type);
        let asked = u64::from(o.rows) > FEW_ROWS && o.offsets.is_none() && placed && biased;
        asked.then_some(Shape {
            rows: o.rows,
            x_stride: o.x_stride,
            y_stride: o.y_stride,
            y_type: o.y_type,
            biased: o.bias.is_some(),
        })
    }

    /// Enqueues the product; false if the library is not asked or refuses. `workspace` has [`Self::workspace_bytes`].
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        weight: &Packed,
        o: &Operands,
        workspace: u64,
    ) -> Result<bool> {
        let (Some(blas), Some(shape)) = (&args.shared.blas, self.shape(o)) else {
            return Ok(false);
        };
        let w = weight.start + weight.layout.planes.first().map_or(0, |plane| plane.offset);
        let at = Addresses { x: o.x, w, y: o.y, bias: o.bias.map(|(at, _)| at), workspace };
        let mut matmul = self.matmul.lock().unwrap_or_else(PoisonError::into_inner);
        args.multiply(blas, &mut matmul, &shape, &at, o.accumulate)
    }
}
