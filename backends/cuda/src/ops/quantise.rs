//! QUANT_ACT and RMS_NORM_QUANT: `kernels/quantise.cu`.

use halyard_sdk::{DType, Error, Result, abi::ops::attrs};

use super::{
    Launch, Op, Prepared,
    args::{Args, Float, address, small},
};
use crate::driver::{Function, Grid};

const THREADS: u32 = 256;
const WARPS: u32 = THREADS / 32;

/// `struct Codes` of `kernels/quantise.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Codes {
    q: u64,
    scale: u64,
    q_stride: i64,
    scale_stride: i64,
    cols: u32,
    step: u32,
}

/// What numbers become.
#[derive(Clone, Copy)]
enum Mode {
    /// i8, a scale a row.
    Int8Row,
    /// f8e4m3, a scale a row and 128 columns.
    Fp8Group,
}

impl Mode {
    /// The mode of an attribute, for codes in slot `q`.
    fn of(op: &Op<'_>, mode: i64, _q: usize) -> Result<Self> {
        let kind = op.desc.kind;
        let (this, _dtype) = match mode {
            1 => (Self::Int8Row, DType::I8),
            2 => (Self::Fp8Group, DType::F8E4M3),
            _ => {
                return Err(Error::unsupported(format!(
                    "{kind}: mode {mode}; supported: 1 (i8 a row), 2 (f8e4m3 a group of 128)"
                )));
            }
        };
        Ok(this)
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Int8Row => "i8",
            Self::Fp8Group => "e4m3",
        }
    }

    /// The codes in slots `q` and `q + 1`, and how many blocks a row takes if it is split.
    fn codes(self, args: &Args<'_>, q: usize, split: bool) -> Result<(Codes, u32)> {
        let (q, scale) = (args.view(q)?, args.view(q + 1)?);
        let blocks = match self {
            Self::Fp8Group if split => {
                small("groups", scale.dims[1])?.div_ceil(WARPS).clamp(1, u16::MAX.into())
            }
            _ => 1,
        };
        let codes = Codes {
            q: address(q),
            scale: address(scale),
            q_stride: q.strides[0],
            scale_stride: scale.strides[0],
            cols: small("columns", q.dims[1])?,
            step: blocks * WARPS,
        };
        Ok((codes, blocks))
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct QuantParams {
    x: u64,
    x_stride: i64,
    codes: Codes,
}

struct QuantAct {
    kernel: Function<QuantParams>,
    mode: Mode,
}

pub(super) fn quant_act(op: &Op<'_>) -> Result<Prepared> {
    let attrs::QuantAct { mode } = op.attrs()?;
    let mode = Mode::of(op, mode, 1)?;
    let name = format!("quant_act_{}_{}", op.float(0)?.suffix(), mode.suffix());
    Ok(Prepared::native(QuantAct { kernel: op.kernel("quantise", &name)?, mode }))
}

impl Launch for QuantAct {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let x = args.view(0)?;
        let (codes, across) = self.mode.codes(args, 1, true)?;
        let params = QuantParams { x: address(x), x_stride: x.strides[0], codes };
        let blocks = [small("rows", x.dims[0])?, across, 1];
        args.enqueue(&self.kernel, Grid { blocks, threads: THREADS, shared: 0 }, &params)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormParams {
    x: u64,
    gamma: u64,
    r: u64,
    x_stride: i64,
    r_stride: i64,
    gamma_type: Float,
    eps: f32,
    gamma_plus: f32,
    codes: Codes,
}

struct NormQuant {
    kernel: Function<NormParams>,
    mode: Mode,
    gamma: Float,
    eps: f32,
    gamma_plus: f32,
}

pub(super) fn norm_quant(op: &Op<'_>) -> Result<Prepared> {
    let attrs::RmsNormQuant { eps, plus_one, mode } = op.attrs()?;
    let mode = Mode::of(op, mode, 2)?;
    let name = format!("rms_norm_quant_{}_{}", op.float(0)?.suffix(), mode.suffix());
    Ok(Prepared::native(NormQuant {
        kernel: op.kernel("quantise", &name)?,
        mode,
        gamma: op.float(1)?,
        eps: eps as f32,
        gamma_plus: f32::from(u8::from(plus_one)),
    }))
}

impl Launch for NormQuant {
    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, r) = (args.view(0)?, args.optional(4));
        let params = NormParams {
            x: address(x),
            gamma: address(args.view(1)?),
            r: r.map_or(0, address),
            x_stride: x.strides[0],
            r_stride: r.map_or(0, |r| r.strides[0]),
            gamma_type: self.gamma,
            eps: self.eps,
            gamma_plus: self.gamma_plus,
            codes: self.mode.codes(args, 2, false)?.0,
        };
        args.enqueue(&self.kernel, Grid::line(small("rows", x.dims[0])?, THREADS), &params)
    }
}
