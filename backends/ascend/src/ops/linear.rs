//! LINEAR with weights as floats.

use std::ptr::null;

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
};
use crate::driver::{Scalar, TensorList};

/// `cubeMathType`: products of the operands' own type.
const KEEP: i8 = 0;

/// Bytes of the weight's rows that are widened at a time.
const WIDENED: i64 = 64 << 20;

/// Last dims of `GroupedMatmul` are below this.
const MAX_LAST: i64 = 65536;

/// `splitItem`: rows of all groups in one tensor, `groupType`: groups of rows, `groupListType`: counts.
const ONE_TENSOR: i64 = 3;
const ROWS: i64 = 0;
const COUNTS: i64 = 1;

struct Linear {
    accumulate: bool,
    bias: bool,
    dtype: DType,
    n: i64,
    k: i64,
    /// Operands of two types, or of 16 bits with a result that must not be rounded to them: the weight is widened, some rows at a time.
    widen: bool,
    /// A bias that is added before the one rounding.
    fused: bool,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Linear { accumulate, act_quant } = op.attrs()?;
    op.floats(&[0, 1, 2])?;
    if act_quant != 0 {
        return Err(op.refuse("quantised activations; supported: none"));
    }
    let (x, w, y) = (op.dtype(0), &op.weights[0], op.dtype(2));
    let (bias, dtype) = (op.present(1), w.dtype);
    let short = w.n < MAX_LAST && w.k < MAX_LAST;
    // f16 wants its bias in f16, which others do not fit.
    let exact = dtype == DType::BF16 || (dtype == DType::F16 && op.dtype(1) == DType::F16);
    let fused = exact && x == dtype && y == dtype && bias && !accumulate && short;
    let alike = x == dtype && (dtype == DType::F32 || y == dtype && !bias && !accumulate);
    let widen = !fused && !alike;
    Ok(Box::new(Linear { accumulate, bias, dtype, n: w.n, k: w.k, widen, fused }))
}

impl Linear {
    fn rows_widened(&self) -> i64 {
        (WIDENED / 4 / self.k.max(1)).clamp(1, self.n.max(1))
    }

    /// `out = x Wᵀ`, in the type of the operands or of `out`, which is f32 then.
    fn product(&self, args: &Args<'_>, x: &Place, w: &Place, out: &Place) -> Result<()> {
        if !self.widen {
            return multiply(args, x, w, out);
        }
        let x = args.cast(x, Kind::F32)?;
        let a_time = self.rows_widened();
        let wide = args.scratch(Kind::F32, &[a_time, self.k])?;
        let mut first = 0;
        while first < self.n {
            let rows = a_time.min(self.n - first);
            let part = wide.slice(0, 0, rows);
            args.copy(&part, &w.slice(0, first, rows))?;
            multiply(args, &x, &part, &out.slice(1, first, rows))?;
            first += rows;
        }
        Ok(())
    }
}

/// `out = x wᵀ + bias`, rounded once: a product of one group, since `Mm` has no bias.
fn multiply_add(
    args: &Args<'_>,
    (x, w): (&Place, &Place),
    bias: &Place,
    out: &Place,
) -> Result<()> {
    let driver = args.on.driver();
    let list = |place: &Place| TensorList::of(args.tensor(place)?);
    let rows = args.scratch(Kind::I64, &[1])?;
    let count = Scalar::int(driver, x.dims[0])?;
    let rows = args.tensor(&rows)?;
    enqueue!(args.on, InplaceFillScalar(rows.raw(), count.raw()))?;
    // bf16 wants a bias in f32, f16 one in f16.
    let f16 = Kind::of(DType::F16)?;
    let wanted = if x.kind == f16 { f16 } else { Kind::F32 };
    let bias = args.cast(bias, wanted)?.reshaped(&[1, w.dims[0]]);
    let [n, k] = [w.dims[0], w.dims[1]];
    let transposed = w.seen(&[1, k, n], &[n * k, 1, k]);
    let packed = if x.is_contiguous() { x.clone() } else { args.cast(x, x.kind)? };
    let (x, w, bias) = (list(&packed)?, list(&transposed)?, list(&bias)?);
    let result = if out.is_contiguous() { out.clone() } else { args.scratch(out.kind, &out.dims)? };
    let y = list(&result)?;
    let (x, w, bias, rows, y) = (x.raw(), w.raw(), bias.raw(), rows.raw(), y.raw());
    let no = null();
    if driver.operators.GroupedMatmulV5.is_some() {
        #[rustfmt::skip]
        enqueue!(args.on, GroupedMatmulV5(
            x, w, bias, no, no, no, no, no, rows, no, no, no, ONE_TENSOR, ROWS, COUNTS, 0, null(), y, no, no,
        ))?;
    } else {
        #[rustfmt::skip]
        enqueue!(args.on, GroupedMatmulV4(
            x, w, bias, no, no, no, no, no, rows, no, no, no, ONE_TENSOR, ROWS, COUNTS, 0, y, no, no,
        ))?;
    }
    if out.is_contiguous() { Ok(()) } else { args.copy(out, &result) }
}

/// `out = x wᵀ`.
fn multiply(args: &Args<'_>, x: &Place, w: &Place, out: &Place) -> Result<()> {
    let transposed = w.seen(&[w.dims[1], w.dims[0]], &[w.strides[1], w.strides[0]]);
    let (x, w, out) = (args.tensor(x)?, args.tensor(&transposed)?, args.tensor(out)?);
    enqueue!(args.on, Mm(x.raw(), w.raw(), out.raw(), KEEP))
}

impl Launch for Linear {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let rows = shapes.first().map_or(0, |s| s.dims[0]);
        let mut bytes = 2 * scratch_bytes(Kind::F32, &[rows, self.n]);
        bytes += scratch_bytes(Kind::F32, &[self.n]) + scratch_bytes(Kind::I64, &[1]);
        if self.fused {
            bytes += scratch_bytes(Kind::F32, &[rows, self.k]);
        }
        if self.widen {
            bytes += scratch_bytes(Kind::F32, &[rows, self.k]);
            bytes += scratch_bytes(Kind::F32, &[self.rows_widened(), self.k]);
        }
        bytes
    }

    fn slow(&self) -> Option<&'static str> {
        self.widen.then_some(
            "the weight is widened to f32 at each launch, for a result that is rounded once",
        )
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y, w) = (args.place(0)?, args.place(2)?, args.weight(0)?);
        if y.is_empty() {
            return Ok(());
        }
        let w = Place::contiguous(w.start, Kind::of(self.dtype)?, &[w.n, w.k]);
        if self.fused {
            return multiply_add(args, (&x, &w), &args.place(1)?, &y);
        }
        let plain = Kind::of(self.dtype)?;
        let sum = if self.widen { Kind::F32 } else { plain };
        if !self.bias && !self.accumulate && sum == y.kind {
            return self.product(args, &x, &w, &y);
        }
        let out = args.scratch(sum, &y.dims)?;
        self.product(args, &x, &w, &out)?;
        let one = Scalar::float(args.on.driver(), 1.0)?;
        let to = args.tensor(&out)?;
        if self.accumulate {
            let y = args.tensor(&y)?;
            enqueue!(args.on, InplaceAdd(to.raw(), y.raw(), one.raw()))?;
        }
        if self.bias {
            let bias = args.tensor(&args.place(1)?)?;
            enqueue!(args.on, InplaceAdd(to.raw(), bias.raw(), one.raw()))?;
        }
        args.copy(&y, &out)
    }
}
