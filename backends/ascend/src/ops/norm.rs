//! RMS_NORM.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs::RmsNorm as Attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, scratch_bytes},
};
use crate::driver::Scalar;

struct RmsNorm {
    eps: f64,
    plus_one: bool,
    /// The weight is used as it is; otherwise it is widened first.
    direct: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let Attrs { eps, plus_one } = op.attrs()?;
    op.floats(&[0, 1, 2, 3])?;
    let gamma = op.dtype(1);
    let direct = !plus_one && (gamma == op.dtype(0) || gamma == DType::F32);
    Ok(Box::new(RmsNorm { eps, plus_one, direct }))
}

impl Launch for RmsNorm {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let Some((cols, rows)) = shapes.first().and_then(|s| s.dims().split_last()) else {
            return 0;
        };
        scratch_bytes(Kind::F32, rows) + 2 * scratch_bytes(Kind::F32, &[*cols])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, gamma, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        let driver = args.on.driver();
        let mut dims = x.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = 1;
        }
        let rstd = args.tensor(&args.scratch(Kind::F32, &dims)?)?;
        let x = match args.optional(3)? {
            None => args.tensor(&x)?,
            Some(residual) => {
                let (r, x) = (args.tensor(&residual)?, args.tensor(&x)?);
                let one = Scalar::float(driver, 1.0)?;
                enqueue!(args.on, InplaceAdd(r.raw(), x.raw(), one.raw()))?;
                r
            }
        };
        let mut gamma = if self.direct { gamma } else { args.cast(&gamma, Kind::F32)? };
        if self.plus_one {
            let sum = args.scratch(Kind::F32, &gamma.dims)?;
            let (from, to) = (args.tensor(&gamma)?, args.tensor(&sum)?);
            let one = Scalar::float(driver, 1.0)?;
            enqueue!(args.on, Adds(from.raw(), one.raw(), one.raw(), to.raw()))?;
            gamma = sum;
        }
        let (gamma, y) = (args.tensor(&gamma)?, args.tensor(&y)?);
        enqueue!(args.on, RmsNorm(x.raw(), gamma.raw(), self.eps, y.raw(), rstd.raw()))
    }
}
