//! RMS_NORM: `kernels/norm.cu`.

use halyard_sdk::{Result, abi::ops::attrs::RmsNorm as Attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, Rows, address, check_rank},
};
use crate::driver::{Function, Grid};

const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    x: Rows,
    y: Rows,
    r: Rows,
    gamma: u64,
    gamma_type: Float,
    cols: u32,
    residual: u32,
    eps: f32,
    gamma_plus: f32,
}

struct RmsNorm {
    kernel: Function<Params>,
    gamma: Float,
    eps: f32,
    gamma_plus: f32,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Prepared> {
    let Attrs { eps, plus_one } = op.attrs()?;
    check_rank(op.desc.tensors[0].rank)?;
    Ok(Prepared::native(RmsNorm {
        kernel: op.kernel("norm", &format!("rms_norm_{}", op.float(0)?.suffix()))?,
        gamma: op.float(1)?,
        eps: eps as f32,
        gamma_plus: if plus_one { 1.0 } else { 0.0 },
    }))
}

impl Launch for RmsNorm {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y) = (args.rows(0)?, args.rows(2)?);
        let r = args.optional(3).map(|_| args.rows(3)).transpose()?;
        let params = Params {
            x: x.rows,
            y: y.rows,
            r: r.map_or_else(Rows::default, |r| r.rows),
            gamma: address(args.view(1)?),
            gamma_type: self.gamma,
            cols: y.cols,
            residual: u32::from(r.is_some()),
            eps: self.eps,
            gamma_plus: self.gamma_plus,
        };
        args.enqueue(&self.kernel, Grid::line(y.count, THREADS), &params)
    }
}
