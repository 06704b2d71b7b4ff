//! LINEAR, with weights as floats and as codes.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    grouped::{MAX_LAST, Product},
    quantised, widen,
};
use crate::weights::{Form, Packed};

/// `cubeMathType`: products of the operands' own type.
const KEEP: i8 = 0;

/// How a layer is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A product of floats, a bias added by its operator or by none.
    Floats { bias: bool },
    /// Inputs quantised a row, a product of codes of 8 bits.
    Int8,
    /// A product of floats with codes.
    Codes,
    /// The weight is widened, some rows at a time: operands of two types, codes that no operator takes, or a result that must not be rounded
    /// to its operands' 16 bits.
    Widened,
}

struct Linear {
    accumulate: bool,
    bias: bool,
    weight: Packed,
    way: Way,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::Linear { accumulate, act_quant } = op.attrs()?;
    op.floats(&[0, 1, 2])?;
    let weight = op.weights[0];
    let (x, bias, y) = (op.dtype(0), op.present(1), op.dtype(2));
    let sixteen = x == y && [DType::F16, DType::BF16].contains(&x) && !accumulate;
    if act_quant != 0 {
        if act_quant != 1 || weight.form != Form::Int8 || !sixteen {
            return Err(op.refuse(format!(
                "activations quantised by {act_quant} with a weight of {}, x of {x}, y of {y}; supported: 1 (int8 a token) with int8_channel, both f16 or both bf16, without accumulation",
                op.desc.weights[0].scheme
            )));
        }
        quantised::check(op)?;
        return Ok(Box::new(Linear { accumulate, bias, weight, way: Way::Int8 }));
    }
    // f16 wants its bias in f16, which others do not fit.
    let exact = !bias || x == DType::BF16 || op.dtype(1) == DType::F16;
    let short = weight.n < MAX_LAST && weight.k < MAX_LAST;
    let dense = weight.form == Form::Dense && x == weight.dtype;
    let way = if dense && sixteen && bias && exact && short {
        Way::Floats { bias: true }
    } else if dense && (x == DType::F32 || sixteen && !bias) {
        Way::Floats { bias: false }
    } else if sixteen && exact && quantised::takes(&weight, x) {
        Way::Codes
    } else {
        Way::Widened
    };
    Ok(Box::new(Linear { accumulate, bias, weight, way }))
}

impl Linear {
    /// `out = x Wᵀ`, in the type of the operands or of `out`, which is f32 then.
    fn product(&self, args: &Args<'_>, x: &Place, w: &Packed, out: &Place) -> Result<()> {
        if self.way != Way::Widened {
            let w = Place::contiguous(w.start, Kind::of(w.dtype)?, &[w.n, w.k]);
            return multiply(args, x, &w, out);
        }
        let x = args.cast(&widen::arranged(args, w, 0, x)?, Kind::F32)?;
        let (a_time, mark, mut first) = (widen::rows_at_a_time(w), args.mark(), 0);
        while first < w.n {
            args.release(mark);
            let rows = a_time.min(w.n - first);
            let part = widen::rows(args, w, 0, (first, rows))?;
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
    let ends = args.whole(x.dims[0])?;
    // bf16 wants a bias in f32, f16 one in f16.
    let f16 = Kind::of(DType::F16)?;
    let wanted = if x.kind == f16 { f16 } else { Kind::F32 };
    let bias = args.cast(bias, wanted)?.reshaped(&[1, w.dims[0]]);
    let w = w.spread(0).exchanged(1, 2);
    let x = if x.is_contiguous() { x.clone() } else { args.cast(x, x.kind)? };
    let result = if out.is_contiguous() { out.clone() } else { args.scratch(out.kind, &out.dims)? };
    let (scale, offset, x_scale) = (None, None, None);
    let product = Product { x, w, bias: Some(bias), scale, offset, x_scale, ends };
    product.enqueue(args, &result)?;
    if out.is_contiguous() { Ok(()) } else { args.copy(out, &result) }
}

/// `out = x wᵀ`.
pub(super) fn multiply(args: &Args<'_>, x: &Place, w: &Place, out: &Place) -> Result<()> {
    let transposed = w.seen(&[w.dims[1], w.dims[0]], &[w.strides[1], w.strides[0]]);
    let (x, w, out) = (args.tensor(x), args.tensor(&transposed), args.tensor(out));
    enqueue!(args.on, Mm(&x, &w, &out, KEEP))
}

impl Launch for Linear {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        let rows = shapes.first().map_or(0, |s| s.dims[0]);
        let w = &self.weight;
        let (x, y) =
            (scratch_bytes(Kind::F32, &[rows, w.k]), scratch_bytes(Kind::F32, &[rows, w.n]));
        let lists = scratch_bytes(Kind::F32, &[w.n]) + scratch_bytes(Kind::F32, &[rows.max(2)]);
        let widened = if self.way == Way::Widened {
            widen::row_bytes(w, widen::rows_at_a_time(w))
        } else {
            0
        };
        2 * x + 2 * y + lists + widened
    }

    fn slow(&self) -> Option<&'static str> {
        (self.way == Way::Widened).then_some(
            "the weight is widened to f32 at each launch, for a result that is rounded once",
        )
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, y, w) = (args.place(0)?, args.place(2)?, args.weight(0)?);
        if y.is_empty() {
            return Ok(());
        }
        let bias = args.optional(1)?;
        match self.way {
            Way::Int8 => return quantised::both(args, &x, &w, (bias.as_ref(), &y)),
            Way::Codes => return quantised::weight_only(args, &x, &w, (bias.as_ref(), &y)),
            Way::Floats { bias: true } => {
                let w = Place::contiguous(w.start, Kind::of(w.dtype)?, &[w.n, w.k]);
                return multiply_add(args, (&x, &w), &args.place(1)?, &y);
            }
            Way::Floats { bias: false } | Way::Widened => {}
        }
        let sum = if self.way == Way::Widened { Kind::F32 } else { x.kind };
        if !self.bias && !self.accumulate && sum == y.kind {
            return self.product(args, &x, &w, &y);
        }
        let out = args.scratch(sum, &y.dims)?;
        self.product(args, &x, &w, &out)?;
        if self.accumulate {
            args.add_to(&out, &y)?;
        }
        if let Some(bias) = &bias {
            args.add_to(&out, bias)?;
        }
        args.copy(&y, &out)
    }
}
