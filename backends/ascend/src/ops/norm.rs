//! RMS_NORM.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs::RmsNorm as Attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
};

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

impl RmsNorm {
    /// The weight as the operators take it.
    fn gamma(&self, args: &Args<'_>, gamma: &Place) -> Result<Place> {
        if self.direct {
            return Ok(gamma.clone());
        }
        let wide = args.cast(gamma, Kind::F32)?;
        if self.plus_one {
            args.add_to(&wide, &args.number(1.0)?)?;
        }
        Ok(wide)
    }

    fn norm(&self, args: &Args<'_>, [x, gamma, y, rstd]: [&Place; 4]) -> Result<()> {
        let (x, gamma) = (args.tensor(x), args.tensor(gamma));
        let (y, rstd) = (args.tensor(y), args.tensor(rstd));
        enqueue!(args.on, RmsNorm(&x, &gamma, self.eps, &y, &rstd))
    }
}

impl Launch for RmsNorm {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let Some((cols, rows)) = shapes.first().and_then(|s| s.dims().split_last()) else {
            return 0;
        };
        scratch_bytes(Kind::F32, rows)
            + scratch_bytes(Kind::F32, &[*cols])
            + scratch_bytes(Kind::F32, &[1])
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, gamma, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        if y.is_empty() {
            return Ok(());
        }
        let mut dims = x.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = 1;
        }
        let rstd = args.scratch(Kind::F32, &dims)?;
        let gamma = self.gamma(args, &gamma)?;
        let Some(residual) = args.optional(3)? else {
            return self.norm(args, [&x, &gamma, &y, &rstd]);
        };
        let packed = [&x, &y, &residual].iter().all(|place| place.is_contiguous());
        let apart = x.address() != y.address();
        if packed && apart && args.on.driver().operators.AddRmsNorm.is_some() {
            let (x, r, gamma) = (args.tensor(&x), args.tensor(&residual), args.tensor(&gamma));
            let (y, rstd) = (args.tensor(&y), args.tensor(&rstd));
            let (x, r, gamma, y, rstd) = (&x, &r, &gamma, &y, &rstd);
            return enqueue!(args.on, AddRmsNorm(x, r, gamma, self.eps, y, rstd, r));
        }
        args.add_to(&residual, &x)?;
        self.norm(args, [&residual, &gamma, &y, &rstd])
    }
}
