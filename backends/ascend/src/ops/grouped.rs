//! GROUPED_LINEAR, and the operator for products of groups of rows.

use halyard_sdk::{DType, Result, TensorSpec, abi::ops::attrs};

use super::{
    Launch, Op,
    args::{Args, Kind, Place, scratch_bytes},
    index::put,
    quantised, widen,
};
use crate::{
    driver::{self, NO_INTS, NO_LIST, TensorList},
    weights::{Form, Packed},
};

/// Last dims of `GroupedMatmul` are below this, and its groups at most so many.
pub(super) const MAX_LAST: i64 = 65536;
const MAX_GROUPS: i64 = 1024;

/// `splitItem`: rows of all groups in one tensor, `groupType`: groups of rows, `groupListType`: ends of groups.
const ONE_TENSOR: i64 = 3;
const ROWS: i64 = 0;
const ENDS: i64 = 0;

/// What `GroupedMatmul` takes.
pub(super) struct Product {
    /// Without gaps, `[rows, k]`.
    pub(super) x: Place,
    /// `[groups, k, n]`
    pub(super) w: Place,
    /// `[groups, n]`
    pub(super) bias: Option<Place>,
    /// Of codes, `[groups, n]` or `[groups, scales, n]`.
    pub(super) scale: Option<Place>,
    pub(super) offset: Option<Place>,
    /// Of an `x` of codes, f32 `[rows]`; `scale` is `[groups, n]` then.
    pub(super) x_scale: Option<Place>,
    /// i64, a group's end each.
    pub(super) ends: Place,
}

impl Product {
    /// Writes the rows of groups to `out`, which has no gaps; others stay.
    pub(super) fn enqueue(&self, args: &Args<'_>, out: &Place) -> Result<()> {
        let list = |place: &Place| TensorList(args.tensor(place));
        let some = |place: &Option<Place>| place.as_ref().map(list);
        let (x, w, y) = (list(&self.x), list(&self.w), list(out));
        let (bias, scale, offset) = (some(&self.bias), some(&self.scale), some(&self.offset));
        let x_scale = some(&self.x_scale);
        let (bias, scale, offset) = (bias.as_ref(), scale.as_ref(), offset.as_ref());
        let x_scale = x_scale.as_ref();
        // Scales of a product of codes, and those of a weight in codes, are not the same parameter.
        let (of_both, of_weight) =
            if x_scale.is_none() { (NO_LIST, scale) } else { (scale, NO_LIST) };
        let ends = args.tensor(&self.ends);
        let (x, w, y, ends, no) = (&x, &w, &y, &ends, NO_LIST);
        if args.on.driver().operators.GroupedMatmulV5.is_some() {
            #[rustfmt::skip]
            return enqueue!(args.on, GroupedMatmulV5(
                x, w, bias, of_both, no, of_weight, offset, x_scale, ends, no, no, no, ONE_TENSOR, ROWS, ENDS, 0, NO_INTS, y, no, no,
            ));
        }
        #[rustfmt::skip]
        return enqueue!(args.on, GroupedMatmulV4(
            x, w, bias, of_both, no, of_weight, offset, x_scale, ends, no, no, no, ONE_TENSOR, ROWS, ENDS, 0, y, no, no,
        ));
    }
}

/// The products of rows sorted by their group.
pub(super) struct Grouped {
    weight: Packed,
    x: DType,
    y: DType,
    /// Inputs are quantised a row, and the operator multiplies codes.
    codes: bool,
}

impl Grouped {
    /// The product with the weight of a slot, whose inputs are quantised before if `act_quant` says so.
    pub(super) fn new(
        op: &Op<'_>,
        slot: usize,
        (x, y): (DType, DType),
        act_quant: i64,
    ) -> Result<Self> {
        let grouped = Self { weight: op.weights[slot], x, y, codes: act_quant == 1 };
        if act_quant == 0 {
            return Ok(grouped);
        }
        let sixteen = x == y && [DType::F16, DType::BF16].contains(&x);
        if !grouped.codes || grouped.weight.form != Form::Int8 || !sixteen || !grouped.fits() {
            return Err(op.refuse(format!(
                "inputs quantised by {act_quant} with a weight of {}, x of {x}, y of {y}; supported: 1 (int8 a token) with int8_channel, both f16 or both bf16, sides below {MAX_LAST}",
                op.desc.weights[slot].scheme
            )));
        }
        quantised::check(op)?;
        Ok(grouped)
    }

    /// Whether the operator takes it; otherwise each group's matrix is multiplied with all rows, in f32.
    fn fits(&self) -> bool {
        let w = &self.weight;
        let operators = driver::start().map(|driver| &driver.operators);
        let there = operators
            .is_ok_and(|found| found.GroupedMatmulV5.is_some() || found.GroupedMatmulV4.is_some());
        // Codes as in `quantised::takes`.
        let form = match w.form {
            Form::Dense => w.dtype == self.x,
            Form::Int8 => self.x == DType::BF16 || self.codes,
            Form::Int4 { perm, .. } => !perm && w.dtype == self.x && self.x != DType::F32,
        };
        let small = w.n < MAX_LAST && w.k < MAX_LAST && (1..=MAX_GROUPS).contains(&w.groups);
        there && form && small && self.x == self.y
    }

    pub(super) fn slow(&self) -> Option<&'static str> {
        (!self.fits()).then_some("every group's matrix is multiplied with all rows, in f32")
    }

    pub(super) fn workspace_bytes(&self, rows: i64) -> u64 {
        let w = &self.weight;
        let ends =
            2 * scratch_bytes(Kind::I64, &[w.groups + 1]) + scratch_bytes(Kind::I64, &[rows]);
        let (x, y) =
            (scratch_bytes(Kind::F32, &[rows, w.k]), scratch_bytes(Kind::F32, &[rows, w.n]));
        let masks = 4 * scratch_bytes(Kind::BOOL, &[rows]) + 4 * scratch_bytes(Kind::F32, &[1]);
        let widened =
            if self.fits() { 0 } else { widen::row_bytes(w, widen::rows_at_a_time(w)) + x + y };
        let codes = scratch_bytes(Kind::I8, &[rows, w.k]) + scratch_bytes(Kind::F32, &[rows]);
        x + y + ends + masks + widened + codes
    }

    fn operator(
        &self,
        args: &Args<'_>,
        x: &Place,
        w: &Packed,
        ends: &Place,
        y: &Place,
    ) -> Result<()> {
        let mut x = if x.is_contiguous() { x.clone() } else { args.cast(x, x.kind)? };
        let mut x_scale = None;
        if self.codes {
            let (codes, scales) =
                (args.scratch(Kind::I8, &x.dims)?, args.scratch(Kind::F32, &[x.dims[0]])?);
            args.quantise(&x, &codes, &scales)?;
            (x, x_scale) = (codes, Some(scales));
        }
        let scales = w.scales();
        let by_column = |start: u64, kind: Kind, width: i64| {
            Place::contiguous(start, kind, &[w.groups, w.n, width]).exchanged(1, 2)
        };
        let (kind, scale, offset) = match w.form {
            Form::Dense => (Kind::of(w.dtype)?, None, None),
            Form::Int8 => {
                // Products in f16 are of codes alone, whose scales are f32; others have scales of their own type.
                let (start, kind) = match self.x {
                    DType::F16 => (w.scale, Kind::F32),
                    other => (w.rounded, Kind::of(other)?),
                };
                (Kind::I8, Some(Place::contiguous(start, kind, &[w.groups, w.n])), None)
            }
            Form::Int4 { offset, .. } => {
                let offset = offset.then(|| by_column(w.offset, x.kind, scales));
                (Kind::I4, Some(by_column(w.scale, x.kind, scales)), offset)
            }
        };
        let out = if y.is_contiguous() { y.clone() } else { args.scratch(y.kind, &y.dims)? };
        let (w, ends) = (by_column(w.start, kind, w.k), ends.clone());
        Product { x, w, bias: None, scale, offset, x_scale, ends }.enqueue(args, &out)?;
        if y.is_contiguous() { Ok(()) } else { args.copy(y, &out) }
    }

    fn one_by_one(
        &self,
        args: &Args<'_>,
        x: &Place,
        w: &Packed,
        ends: &Place,
        y: &Place,
    ) -> Result<()> {
        let wide = args.cast(x, Kind::F32)?;
        let out = args.scratch(Kind::F32, &y.dims)?;
        args.zero(&out)?;
        let rows = args.count(y.dims[0], 1)?.column();
        let (before, after) =
            (args.scratch(Kind::BOOL, &rows.dims)?, args.scratch(Kind::BOOL, &rows.dims)?);
        let (a_time, mark) = (widen::rows_at_a_time(w), args.mark());
        for group in 0..w.groups {
            // Rows before the group's end that are not before the one of the last group.
            args.less(&rows, &ends.slice(0, group, 1), &after)?;
            if group == 0 {
                args.copy(&before, &after)?;
            } else {
                args.at_most(&ends.slice(0, group - 1, 1), &rows, &before)?;
                args.bit_and(&before, &after, &before)?;
            }
            let mut first = 0;
            while first < w.n {
                args.release(mark);
                let x = widen::arranged(args, w, group, &wide)?;
                let number = a_time.min(w.n - first);
                let part = widen::rows(args, w, group, (first, number))?;
                let product = args.scratch(Kind::F32, &[y.dims[0], number])?;
                super::linear::multiply(args, &x, &part, &product)?;
                let to = out.slice(1, first, number);
                args.choose(&before, [&product, &to], &to)?;
                first += number;
            }
        }
        args.copy(y, &out)
    }

    /// `y[p] = W_e x[p]` where `p` is below `ends[e]` and not below the end before; other rows are anything.
    pub(super) fn run(
        &self,
        args: &Args<'_>,
        x: &Place,
        w: &Packed,
        ends: &Place,
        y: &Place,
    ) -> Result<()> {
        if self.fits() {
            self.operator(args, x, w, ends, y)
        } else {
            self.one_by_one(args, x, w, ends, y)
        }
    }
}

struct GroupedLinear {
    grouped: Grouped,
}

pub(super) fn prepare(op: &Op<'_>) -> Result<Box<dyn Launch>> {
    let attrs::GroupedLinear { act_quant } = op.attrs()?;
    op.floats(&[0, 2])?;
    let grouped = Grouped::new(op, 0, (op.dtype(0), op.dtype(2)), act_quant)?;
    Ok(Box::new(GroupedLinear { grouped }))
}

impl Launch for GroupedLinear {
    fn workspace_bytes(&self, shapes: &[TensorSpec]) -> u64 {
        self.grouped.workspace_bytes(shapes.first().map_or(0, |s| s.dims[0]))
    }

    fn slow(&self) -> Option<&'static str> {
        self.grouped.slow()
    }

    fn launch(&self, args: &Args<'_>) -> Result<()> {
        let (x, offsets, y) = (args.place(0)?, args.place(1)?, args.place(2)?);
        let w = args.weight(0)?;
        if y.is_empty() {
            return Ok(());
        }
        let ends = args.cast(&offsets.slice(0, 1, w.groups), Kind::I64)?;
        self.grouped.run(args, &x, &w, &ends, &y)?;
        let rows = args.count(y.dims[0], 1)?.column();
        let nobody = args.scratch(Kind::BOOL, &rows.dims)?;
        args.at_most(&ends.slice(0, w.groups - 1, 1), &rows, &nobody)?;
        put(args, &y, &nobody, 0.0)
    }
}
