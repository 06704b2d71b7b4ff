//! Rows of x as the kernels of linear layers want them, in scratch memory: `kernels/{stage,quantise}.cu`.

use halyard_sdk::{Error, Result};

use super::{
    Op,
    args::{Args, Float},
    linear::Operands,
};
use crate::{
    driver::{Function, Grid},
    memory::ALIGN,
    weights::{EIGHT, Layout, Packed, ROW_ALIGN},
};

/// Columns that share a scale of f8e4m3 codes.
pub(super) const GROUP: u64 = 128;

/// `struct Stage` of `kernels/stage.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopyParams {
    x: u64,
    y: u64,
    order: u64,
    order_group: i64,
    offsets: u64,
    x_stride: i64,
    x_group: i64,
    y_stride: i64,
    y_group: i64,
    cols: u32,
    padded: u32,
    groups: u32,
}

/// `struct StageQuantised` of `kernels/quantise.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct QuantiseParams {
    x: u64,
    y: u64,
    scale: u64,
    x_stride: i64,
    x_group: i64,
    y_stride: i64,
    y_group: i64,
    cols: u32,
    padded: u32,
    scales: u32,
}

/// Where the scales of codes are, f32.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    pub(super) start: u64,
    pub(super) a_row: u32,
}

/// What kernels read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Numbers: x, or what its codes stand for.
    Numbers(Float),
    /// Codes as bf16, and their scales.
    Codes,
    /// Codes of i8, and their scales.
    Bytes,
    /// Codes of f8e4m3, and their scales.
    Fp8,
}

impl Read {
    fn bytes(self) -> u64 {
        match self {
            Self::Numbers(float) => float.bytes(),
            Self::Codes => 2,
            Self::Bytes | Self::Fp8 => 1,
        }
    }
}

enum Kernel {
    Copy(Function<CopyParams>),
    /// With so many scales a row.
    Quantise(Function<QuantiseParams>, u32),
}

/// A way of copying rows to scratch memory.
pub(super) struct Stage {
    x: Float,
    read: Read,
    k: u64,
    /// Whether columns come in the weight's order.
    ordered: bool,
    kernel: Kernel,
}

impl Stage {
    /// For `x`es that kernels read as another type, quantised before if `act_quant` says so.
    pub(super) fn new(
        op: &Op<'_>,
        layout: &Layout,
        x: Float,
        read: Read,
        act_quant: i64,
    ) -> Result<Self> {
        let (k, ordered) = (layout.k, layout.order.is_some());
        let kernel = match act_quant {
            0 => {
                let same = read == Read::Numbers(x);
                let name = if same { format!("b{}", x.bytes() * 8) } else { x.suffix().into() };
                Kernel::Copy(op.kernel("stage", &format!("stage_{name}"))?)
            }
            1 | 2 if ordered => {
                return Err(Error::unsupported(format!(
                    "{}: quantised activations and a weight with an order of columns",
                    op.desc.kind
                )));
            }
            1 | 2 => {
                let (code, scales) =
                    if act_quant == 1 { ("i8", 1) } else { ("e4m3", k.div_ceil(GROUP) as u32) };
                let (suffix, scales) = match read {
                    Read::Numbers(_) => ("", 0),
                    Read::Codes => ("_bf16", scales),
                    Read::Bytes => ("_i8", scales),
                    Read::Fp8 => ("_e4m3", scales),
                };
                let name = format!("stage_{}_{code}{suffix}", x.suffix());
                Kernel::Quantise(op.kernel("quantise", &name)?, scales)
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "{}: act_quant {act_quant}; supported: 0 (none), 1 (i8 a row), 2 (f8e4m3 a group of 128)",
                    op.desc.kind
                )));
            }
        };
        Ok(Self { x, read, k, ordered, kernel })
    }

    /// Elements from row to row: whole eights, and 16 bytes.
    fn padded(&self) -> u64 {
        self.k.next_multiple_of(if self.read.bytes() == 1 { ROW_ALIGN } else { EIGHT })
    }

    /// Bytes of `rows` rows, without their scales.
    fn row_bytes(&self, rows: u64) -> u64 {
        let bytes = rows.saturating_mul(self.padded()).saturating_mul(self.read.bytes());
        bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
    }

    /// Scratch bytes for `rows` rows (counting groups), wherever they lie.
    pub(super) fn bytes(&self, rows: u64) -> u64 {
        let scales = match self.kernel {
            Kernel::Copy(_) => 0,
            Kernel::Quantise(_, scales) => rows.saturating_mul(u64::from(scales) * 4),
        };
        let bytes = self.row_bytes(rows).saturating_add(scales);
        bytes.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
    }

    /// Whether kernels can read x where it lies.
    fn in_place(&self, o: &Operands) -> bool {
        let aligned = |step: i64| (step.unsigned_abs() * self.x.bytes()).is_multiple_of(ROW_ALIGN);
        matches!(self.kernel, Kernel::Copy(_))
            && self.read == Read::Numbers(self.x)
            && !self.ordered
            && o.x.is_multiple_of(ROW_ALIGN)
            && aligned(o.x_stride)
            && aligned(o.x_group)
            && self.k.is_multiple_of(EIGHT)
    }

    /// The operands as kernels read them; `scratch` has [`Self::bytes`].
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        weight: &Packed,
        o: Operands,
        scratch: u64,
    ) -> Result<Operands> {
        if self.in_place(&o) {
            return Ok(o);
        }
        let stride = self.padded().cast_signed();
        // Sorted rows are of one group each: there is one set of them.
        let (groups, group) = match o.offsets {
            Some(_) => (1, 0),
            None => (weight.groups, stride * i64::from(o.rows)),
        };
        let grid = Grid { blocks: [o.rows, groups, 1], threads: 256, shared: 0 };
        let (cols, padded) = (self.k as u32, self.padded() as u32);
        let staged = Operands { x: scratch, x_stride: stride, x_group: group, ..o };
        match &self.kernel {
            Kernel::Copy(kernel) => {
                let params = CopyParams {
                    x: o.x,
                    y: scratch,
                    order: weight.layout.order.map_or(0, |offset| weight.start + offset),
                    order_group: (weight.layout.bytes / 4).cast_signed(),
                    offsets: o.offsets.unwrap_or(0),
                    x_stride: o.x_stride,
                    x_group: o.x_group,
                    y_stride: stride,
                    y_group: group,
                    cols,
                    padded,
                    groups: weight.groups,
                };
                args.enqueue(kernel, grid, &params)?;
                Ok(staged)
            }
            Kernel::Quantise(kernel, scales) => {
                let start = scratch + self.row_bytes(u64::from(o.rows) * u64::from(groups));
                let params = QuantiseParams {
                    x: o.x,
                    y: scratch,
                    scale: start,
                    x_stride: o.x_stride,
                    x_group: o.x_group,
                    y_stride: stride,
                    y_group: group,
                    cols,
                    padded,
                    scales: *scales,
                };
                args.enqueue(kernel, grid, &params)?;
                let scales = (*scales > 0).then_some(Scales { start, a_row: *scales });
                Ok(Operands { scales, ..staged })
            }
        }
    }
}
