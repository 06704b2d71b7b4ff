//! Quantised activations: QUANT_ACT, alone and inside the linear layers (ACT_QUANT).

use halyard_sdk::{Error, HostTensor, OpDesc, Result, abi::fp8};

use crate::glue::Args;

/// Columns that share a scale in mode 2.
const GROUP: usize = 128;

/// What activations are rounded to.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// 1: i8, a scale a row.
    Int8Row,
    /// 2: f8e4m3, a scale a row and 128 columns.
    Fp8Group,
}

impl Mode {
    fn of(mode: i64) -> Option<Self> {
        match mode {
            1 => Some(Self::Int8Row),
            2 => Some(Self::Fp8Group),
            _ => None,
        }
    }

    /// Columns that share a scale, of `k`.
    fn group(self, k: usize) -> usize {
        match self {
            Self::Int8Row => k.max(1),
            Self::Fp8Group => GROUP,
        }
    }

    fn largest(self) -> f64 {
        match self {
            Self::Int8Row => 127.0,
            Self::Fp8Group => fp8::E4M3_MAX,
        }
    }

    /// `x / scale`, to nearest even, saturating; an i8 has no NaN, it gets 0.
    fn round(self, x: f64) -> f64 {
        match self {
            Self::Int8Row if x.is_nan() => 0.0,
            Self::Int8Row => x.round_ties_even().clamp(-128.0, 127.0),
            Self::Fp8Group => f64::from(fp8::e4m3_to_f32(fp8::e4m3_from_f64(x))),
        }
    }

    /// `max |x| / largest` as f32, and 1 where that is 0. NaN stays.
    fn scale(self, group: &[f64]) -> f64 {
        let amax =
            group.iter().fold(0.0, |m: f64, x| if x.abs() > m || x.is_nan() { x.abs() } else { m });
        #[expect(clippy::cast_possible_truncation, reason = "the scale is stored in f32")]
        let scale = (amax / self.largest()) as f32;
        if scale == 0.0 { 1.0 } else { f64::from(scale) }
    }
}

/// A row's codes and scales.
struct Quantised {
    codes: Vec<f64>,
    scales: Vec<f64>,
    group: usize,
}

impl Quantised {
    /// `q = round(x / scale)`, group by group.
    fn new(mode: Mode, row: &[f64]) -> Self {
        let group = mode.group(row.len());
        let scales: Vec<f64> = row.chunks(group).map(|g| mode.scale(g)).collect();
        let code = |(i, x): (usize, &f64)| mode.round(x / scales[i / group]);
        Self { codes: row.iter().enumerate().map(code).collect(), scales, group }
    }

    fn values(&self) -> Vec<f64> {
        self.codes.iter().enumerate().map(|(i, q)| q * self.scales[i / self.group]).collect()
    }
}

/// What the inputs of a linear layer become by ACT_QUANT: QUANT_ACT's codes times their scales.
pub(crate) fn activations(act_quant: i64, row: Vec<f64>) -> Vec<f64> {
    match Mode::of(act_quant) {
        Some(mode) => Quantised::new(mode, &row).values(),
        None => row,
    }
}

/// Refuses an ACT_QUANT that this backend does not have.
pub(crate) fn check_activations(desc: &OpDesc<'_>, act_quant: i64) -> Result<()> {
    if act_quant == 0 { Ok(()) } else { check_mode(desc, act_quant) }
}

/// Refuses a MODE that this backend does not have.
pub(crate) fn check_mode(desc: &OpDesc<'_>, mode: i64) -> Result<()> {
    if Mode::of(mode).is_some() {
        return Ok(());
    }
    Err(Error::unsupported(format!(
        "{}: quantised activations of mode {mode}; supported: 1 (i8 a row), 2 (f8e4m3 a group of 128)",
        desc.kind
    )))
}

/// The outputs of QUANT_ACT in a launch.
pub(crate) struct Outputs {
    mode: Mode,
    q: HostTensor,
    scale: HostTensor,
}

impl Outputs {
    /// Opens slots `q` and `q + 1`.
    pub(crate) fn open(attr: i64, args: &Args, q: usize) -> Result<Self> {
        let (q, scale) = (args.tensor(q)?, args.tensor(q + 1)?);
        let mode = Mode::of(attr).expect("checked at prepare");
        Ok(Self { mode, q, scale })
    }

    /// Writes a row.
    pub(crate) fn store(&self, t: usize, row: &[f64]) {
        let Quantised { codes, scales, .. } = Quantised::new(self.mode, row);
        self.q.set_row(&[t], codes);
        self.scale.set_row(&[t], scales);
    }
}
